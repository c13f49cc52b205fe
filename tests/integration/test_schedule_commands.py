"""Begin times, holding and schedules through the command line, with real processes and the real clock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

CRON = 'name: tick\nrun: echo "$TIDECELL_JOB"\nresources: {cpu: 0.5}\nschedule: {cron: "* * * * *"}\n'


def test_a_held_job_starts_when_it_is_released(cell, client) -> None:
    cell.tide("run", "-d", "--hold", "-n", "kept", "--", "echo", "hi")
    assert "OnHold" in cell.tide("ps").stdout
    why = cell.tide("why", "kept").stdout
    assert "tide release kept" in why
    cell.tide("release", "kept")
    assert client.wait("kept", timeout_s=10).exit_code == 0


def test_a_begin_time_is_shown_and_kept(cell, client, wait_until) -> None:
    cell.tide("run", "-d", "--begin", "+1h", "-n", "later", "--", "true")
    cell.tide("run", "-d", "--begin", "+1s", "-n", "soon", "--", "true")
    assert client.wait("soon", timeout_s=10).done
    assert "BeginTime" in cell.tide("ps").stdout
    assert "begin -> now" in cell.tide("why", "later").stdout
    cell.tide("release", "later")
    assert client.wait("later", timeout_s=10).exit_code == 0


def test_a_schedule_shows_when_it_fires_and_is_paused_by_holding(cell, short_tmp: Path) -> None:
    spec = short_tmp / "tick.yaml"
    spec.write_text(CRON.replace("* * * * *", "0 3 1 1 *"))
    cell.tide("apply", "-y", "-f", str(spec))
    assert "next 20" in cell.tide("ps").stdout
    assert "BeginTime" in cell.tide("why", "tick").stdout
    cell.tide("hold", "tick")
    assert "OnHold" in cell.tide("ps").stdout
    job = json.loads(cell.tide("status", "tick", "--json").stdout)
    assert job["held"]
    assert "tide release tick" in cell.tide("why", "tick").stdout
    cell.tide("release", "tick")
    assert "next 20" in cell.tide("status", "tick").stdout
    cell.tide("stop", "tick")


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_run_starts_at_the_next_minute(cell, client, short_tmp: Path, wait_until) -> None:
    spec = short_tmp / "tick.yaml"
    spec.write_text(CRON)
    cell.tide("apply", "-y", "-f", str(spec))
    due_s = client.job("tick").next_s
    wait_until(lambda: bool(client.job("tick").runs), timeout_s=90)
    name = client.job("tick").runs[0]
    run = client.wait(name, timeout_s=20)
    assert run.exit_code == 0
    assert 0 <= run.submitted_s - due_s < 5
    assert cell.tide("logs", name).stdout == f"{name}\n"
