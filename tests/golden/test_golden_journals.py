"""Journals of earlier versions still lead to the states that those versions saw."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from golden_facts import facts_of

from tidecell.cell.invariants import check_state
from tidecell.cell.journal import Journal

HERE = Path(__file__).parent
JOURNALS = sorted(p.stem for p in HERE.glob("*.db"))


def opened(name: str, folder: Path) -> Journal:
    path = folder / "journal.db"
    shutil.copy(HERE / f"{name}.db", path)
    return Journal(path)


def test_a_journal_of_the_first_version_is_kept():
    assert "0.1.0" in JOURNALS


@pytest.mark.parametrize("name", JOURNALS)
def test_a_golden_journal_leads_to_the_state_it_led_to(name: str, tmp_path: Path):
    journal = opened(name, tmp_path)
    assert journal.repair is None
    assert facts_of(journal.replay()) == json.loads((HERE / f"{name}.json").read_text())
    state = journal.replay(use_snapshot=False)
    assert facts_of(state) == json.loads((HERE / f"{name}.json").read_text())
    check_state(state)
    for job in state.live_jobs():
        for task in job.active_tasks():
            assert task.resources == job.spec.resources, "what it was granted is accounted for"
    journal.close()


@pytest.mark.parametrize("name", JOURNALS)
def test_a_golden_journal_goes_on_after_a_restart(name: str, tmp_path: Path):
    journal = opened(name, tmp_path)
    before = facts_of(journal.replay())
    journal.write_snapshot(journal.replay())
    journal.close()
    again = Journal(tmp_path / "journal.db")
    assert facts_of(again.replay()) == before
    assert facts_of(again.replay(use_snapshot=False)) == before
    again.close()
