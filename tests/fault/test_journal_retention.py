"""Old events are folded and deleted: the state, the sums and the rest of the log stay what they were."""

from __future__ import annotations

import math
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from cell_harness import Cell, job_spec

from tidecell.cell import journal as journal_module
from tidecell.cell.accounting import Account, Sums
from tidecell.cell.journal import Journal, find_damage, fold_before, reading
from tidecell.cell.retention import DAY_S, cut_before
from tidecell.cell.state import encode_state
from tidecell.structs.errors import JournalError
from tidecell.structs.job import TaskState
from tidecell.structs.messages import TaskEnded, TaskRef

FIRST_DAY = 20_000 * DAY_S


def busy_cell(path: Path, days: int = 6) -> Cell:
    """A cell over several days: jobs of two users come, run over midnight, and end."""
    cell = Cell(Journal(path))
    cell.now_s = FIRST_DAY
    cell.machine("a", cpu=8)
    for number in range(days * 4):
        user = ("ana", "ben")[number % 2]
        cell.submit(job_spec(f"j{number % 5}-{number}", cpu=1 + number % 2, labels={"user": user}))
        cell.up()
        cell.after(6 * 3600.0 - 60)
        if number >= 2:
            cell.down(min(cell.engine.processes, key=lambda ref: ref.epoch))
        cell.after(60.0)
        if number % 8 == 7:
            cell.journal.write_snapshot(cell.state)
    return cell


def usage(path: Path, since_s: float, until_s: float) -> dict[str, Sums]:
    """What each user held, from the journal as it is."""
    with reading(path) as (base, records):
        account = Account(since_s, until_s, 0.0, base.kept() if base is not None else None)
        for record, _ in records:
            if record.at_s >= until_s:
                break
            account.take(record.event, record.at_s)
    found: dict[str, Sums] = {}
    for key, sums in account.close(until_s).items():
        found.setdefault(key[3], Sums()).add(sums)
    return found


def forget(journal: Journal, path: Path, cut_s: float) -> None:
    base = fold_before(path, cut_s)
    assert base is not None
    journal.cut(base)
    while journal.sweep():
        pass


def same(one: dict[str, Sums], other: dict[str, Sums]) -> bool:
    close = all(
        math.isclose(getattr(one[user], name), getattr(other[user], name), rel_tol=1e-12)
        for user in one
        for name in ("cpu_milli_s", "requested_cpu_milli_s", "waited_s", "starts", "preemptions")
    )
    return close and one.keys() == other.keys()


def test_state_and_sums_are_the_same_before_and_after_old_events_are_folded(tmp_path: Path):
    path = tmp_path / "j.db"
    cell = busy_cell(path)
    live, end_s, count = encode_state(cell.state), cell.now_s, cell.journal.last_seq
    spans = [(FIRST_DAY + a * DAY_S, FIRST_DAY + b * DAY_S) for a in range(5) for b in range(a + 1, 6)]
    before = [usage(path, 0.0, end_s), *(usage(path, a, b) for a, b in spans)]
    for cut_s in (
        FIRST_DAY + 2 * DAY_S,
        FIRST_DAY + 4 * DAY_S,
    ):  # the second goes on from the first
        forget(cell.journal, path, cut_s)
        assert cell.journal.first_at_s() >= cut_s
        assert encode_state(cell.journal.replay(use_snapshot=False)) == live
        assert encode_state(cell.journal.replay()) == live
        after = [usage(path, 0.0, end_s), *(usage(path, a, b) for a, b in spans)]
        assert all(same(one, other) for one, other in zip(before, after, strict=True))
    assert find_damage(path) == ""
    cell.journal.close()
    again = Journal(path)
    assert again.repair is None
    assert (again.last_seq, encode_state(again.replay())) == (count, live)
    assert again.first_seq > count // 2
    assert [r.seq for r in again.records()] == list(range(again.first_seq, count + 1))


def test_a_journal_in_which_nothing_is_old_stays_as_it_is(tmp_path: Path):
    path = tmp_path / "j.db"
    cell = busy_cell(path, 1)
    assert fold_before(path, cut_before(cell.now_s, 30 * DAY_S)) is None
    assert cut_before(FIRST_DAY + 3.5 * DAY_S, DAY_S) == FIRST_DAY + 2 * DAY_S


def test_the_disk_space_is_given_back(tmp_path: Path):
    path = tmp_path / "j.db"
    journal = Journal(path)
    long = TaskEnded(TaskRef("x.1", 0, 1), TaskState.FAILED, "m", message="x" * 2000)
    chain_only = [long] * 1000
    for day in range(4):
        journal.append(chain_only, FIRST_DAY + day * DAY_S)
    full = journal.size_bytes
    row = journal._db.execute("SELECT seq, sum FROM events WHERE seq = 3000").fetchone()
    journal.cut(journal_module.Base(*row, FIRST_DAY + 3 * DAY_S, encode_state(Cell().state), b"[]"))
    while journal.sweep():
        pass
    assert journal.size_bytes < full / 3


def test_what_is_folded_elsewhere_is_refused(tmp_path: Path):
    one, other = busy_cell(tmp_path / "a.db", 2), busy_cell(tmp_path / "b.db", 3)
    other.after(1.0)
    one.submit(job_spec("more"))
    base = fold_before(tmp_path / "a.db", one.now_s + DAY_S)
    assert base is not None
    with pytest.raises(JournalError, match="is not of this journal"):
        other.journal.cut(base)


def test_a_garbled_base_is_stood_in_for_by_a_snapshot(tmp_path: Path):
    path = tmp_path / "j.db"
    cell = busy_cell(path)
    forget(cell.journal, path, FIRST_DAY + 2 * DAY_S)
    cell.journal.write_snapshot(cell.state)
    cell.submit(job_spec("last"))
    live = encode_state(cell.state)
    cell.journal.close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE base SET state = X'00'")
    db.close()
    assert "does not match its checksum" in find_damage(path)
    again = Journal(path)
    assert again.repair is not None
    assert encode_state(again.replay()) == live
    again.close()
    assert Journal(path).repair is None


def test_a_record_damaged_after_the_cut_is_found(tmp_path: Path):
    path = tmp_path / "j.db"
    cell = busy_cell(path)
    forget(cell.journal, path, FIRST_DAY + 2 * DAY_S)
    last = cell.journal.last_seq
    cell.journal.close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE events SET body = X'7b7d' WHERE seq = ?", (last - 3,))
    db.close()
    assert find_damage(path) == f"record {last - 3} does not match its checksum"
    again = Journal(path)
    assert again.repair is not None
    assert again.repair.first_bad_seq == last - 3
    assert again.last_seq == last - 4


def test_a_long_journal_is_walked_from_a_snapshot_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "j.db"
    cell = busy_cell(path)
    cell.journal.write_snapshot(cell.state)
    cell.submit(job_spec("last"))
    live = encode_state(cell.state)
    cell.journal.close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE events SET body = X'7b7d' WHERE seq = 3")
    db.close()
    monkeypatch.setattr(journal_module, "WALK_RECORDS", 10)
    opened = Journal(path)
    assert opened.repair is None, "the state does not need that record"
    assert encode_state(opened.replay()) == live
    opened.close()
    assert find_damage(path) == "record 3 does not match its checksum"


_FORGET = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from tidecell.cell import journal as module
    module.SWEEP_RECORDS = 3
    path = Path(sys.argv[1])
    journal = module.Journal(path)
    base = module.fold_before(path, float(sys.argv[2]))
    print("folded", flush=True)
    if base is not None:
        journal.cut(base)
    while journal.sweep():
        print("swept", flush=True)
    """
)


def test_killed_while_it_forgets_a_journal_loses_nothing(tmp_path: Path):
    """kill -9 at whatever point of folding and deleting: the state and the sums are those of before."""
    rng, first = random.Random(5), tmp_path / "first.db"
    cell = busy_cell(first)
    live, end_s = encode_state(cell.state), cell.now_s
    cell.journal.close()
    with sqlite3.connect(first) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    before = usage(first, 0.0, end_s)
    for attempt in range(5):
        path = tmp_path / f"j{attempt}.db"
        path.write_bytes(first.read_bytes())
        for _ in range(4):  # also in the middle of what an earlier one had left half done
            command = [sys.executable, "-c", _FORGET, str(path), repr(FIRST_DAY + 4 * DAY_S)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
                assert child.stdout is not None
                for _ in range(rng.randrange(6)):
                    child.stdout.readline()
                child.send_signal(signal.SIGKILL)
            journal = Journal(path)
            assert journal.repair is None
            assert encode_state(journal.replay(use_snapshot=False)) == live
            journal.close()
            assert same(before, usage(path, 0.0, end_s))
