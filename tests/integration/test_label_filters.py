"""`tide ps -l` and `tide stop -l` through the CLI and the API."""

from __future__ import annotations

import json

import pytest

from tidecell.client.client import Client
from tidecell.structs.errors import RefusedError
from tidecell.structs.job import JobSpec
from tidecell.structs.resources import Resources


def test_jobs_are_listed_and_stopped_by_label(cell, client: Client) -> None:
    for name, labels in (("a", {"owner": "ana"}), ("b", {"owner": "ana", "keep": "yes"}), ("c", {})):
        spec = JobSpec(name, argv=("sleep", "600"), labels=labels, resources=Resources(100))
        client.submit(spec)

    def listed(*labels: str) -> list[str]:
        options = [part for label in labels for part in ("-l", label)]
        return sorted(j["name"] for j in json.loads(cell.tide("ps", "--json", *options).stdout))

    assert listed() == ["a", "b", "c"]
    assert listed("owner=ana") == ["a", "b"]
    assert listed("owner=ana", "!keep") == ["a"]
    assert "no live jobs with these labels" in cell.tide("ps", "-l", "owner=eve").stderr
    with pytest.raises(RefusedError, match="names no key"):
        client.jobs(labels=["=x"])
    asked = cell.tide("stop", "-l", "owner=ana", check=False)  # nobody answers
    assert asked.returncode != 0
    assert "stop these 2 jobs?" in asked.stderr
    assert listed() == ["a", "b", "c"]
    cell.tide("cancel", "-l", "owner=ana", "-l", "!keep", "-y", "--now")
    assert listed() == ["b", "c"]
    both = cell.tide("stop", "c", "-l", "owner=ana", check=False)
    assert "gives names and labels" in both.stderr
    assert "says neither names nor labels" in cell.tide("stop", check=False).stderr
    cell.tide("stop", "-l", "owner", "-y", "--now")
    assert listed() == ["c"]
