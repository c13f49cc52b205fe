"""The admission hook of a cell: a Python file that may change, refuse or fail, and never harms the cell."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tidecell.cell.state import CellState
from tidecell.server import admission
from tidecell.server.admission import Admission, look_at_hook
from tidecell.structs.errors import RefusedError
from tidecell.structs.job import JobSpec
from tidecell.structs.tenant import Policy, Team

JOB = JobSpec("j", run="true", labels={"user": "ana"})


def ask(home: Path, spec: JobSpec = JOB, state: CellState | None = None) -> JobSpec:
    return asyncio.run(Admission(home).admit(spec, state or CellState()))


def write(home: Path, text: str) -> None:
    (home / "admission.py").write_text(text)


def test_without_a_file_nothing_changes(tmp_path: Path) -> None:
    assert ask(tmp_path) is JOB
    assert look_at_hook(tmp_path) is None


def test_a_hook_changes_a_spec_or_leaves_it(tmp_path: Path) -> None:
    write(tmp_path, "def admit(spec, cell):\n    return replace(spec, max_duration_s=60.0)\n")
    assert ask(tmp_path).max_duration_s == 60.0
    write(tmp_path, "def admit(spec, cell):\n    return None\n")
    os.utime(tmp_path / "admission.py", ns=(1, 1))
    assert ask(tmp_path) is JOB


def test_a_hook_refuses_with_its_own_words(tmp_path: Path) -> None:
    write(tmp_path, "def admit(spec, cell):\n    raise Refused('not on Sundays', 'come on Monday')\n")
    with pytest.raises(RefusedError) as caught:
        ask(tmp_path)
    assert caught.value.message == "job 'j' is refused by this cell's admission.py: not on Sundays"
    assert caught.value.hint == "come on Monday"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def admit(spec, cell):\n    return 1 / 0\n", "ZeroDivisionError: division by zero"),
        ("def admit(spec, cell):\n    return 7\n", "it answered 7, not a spec of that name"),
        ("def admit(spec\n", "SyntaxError"),
        ("x = 1\n", "defines no admit"),
    ],
)
def test_what_a_hook_does_wrong_is_a_refusal_that_names_it(tmp_path: Path, text: str, says: str) -> None:
    write(tmp_path, text)
    with pytest.raises(RefusedError) as caught:
        ask(tmp_path)
    assert caught.value.message.startswith("job 'j' cannot be admitted: this cell's admission.py failed: ")
    assert says in caught.value.message


def test_a_hook_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "TIMEOUT_S", 0.05)
    write(tmp_path, "import threading\ndef admit(spec, cell):\n    threading.Event().wait(0.3)\n")
    with pytest.raises(RefusedError, match="it did not answer within"):
        ask(tmp_path)


def test_rules_in_yaml_are_a_hook_too(tmp_path: Path) -> None:
    (tmp_path / "admission.yaml").write_text("rules: [{match: {kind: job}, default: {max_duration: 1h}}]")
    assert ask(tmp_path).max_duration_s == 3600.0
    (tmp_path / "admission.yaml").write_text("rules: 3")
    found = look_at_hook(tmp_path)
    assert found is not None
    assert found.error


def test_a_user_of_a_team_submits_for_it(tmp_path: Path) -> None:
    state = CellState(policy=Policy((Team("red", users=("ana",)),)))
    assert ask(tmp_path, JOB, state).team == "red"
