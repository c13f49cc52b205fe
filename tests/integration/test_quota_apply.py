"""`tide quota apply` shows what it changes and asks."""

from __future__ import annotations

from pathlib import Path

from tidecell.client.client import Client


def test_a_quota_file_is_shown_asked_about_and_set_with_y(cell, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "quota.yaml"
    path.write_text("teams: {red: {quota: {batch: {cpu: 2, period: 30d}}}}")
    asked = cell.tide("quota", "apply", "-f", str(path), check=False)  # nobody answers
    assert asked.returncode != 0
    assert "team red: new; batch 2 cpu" in asked.stdout
    assert "apply?" in asked.stderr
    assert client.policy() is None
    cell.tide("quota", "apply", "-f", str(path), "-y")
    policy = client.policy()
    assert policy is not None
    assert policy.teams[0].quotas["batch"].amounts == {"cpu": 2000}
    again = cell.tide("quota", "apply", "-f", str(path))  # nothing to ask about
    assert again.stdout.strip() == "unchanged"
    path.write_text("teams: {red: {quota: {batch: {cpu: 4, period: 30d}}}}")
    assert cell.tide("quota", "apply", "-f", str(path), "-y").stdout.strip() == (
        "team red: batch 2 cpu -> 4 cpu"
    )
    piped = cell.tide("quota", "apply", "-f", "-", check=False)
    assert piped.returncode != 0
