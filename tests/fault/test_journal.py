"""Damage to the journal: what was readable before the damage is kept, what follows is moved aside."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from cell_harness import Cell, job_spec

from tidecell.cell.journal import Journal
from tidecell.cell.runtime import Runtime
from tidecell.cell.state import CellState, apply, encode_state
from tidecell.structs.errors import JournalError, JournalFull
from tidecell.structs.messages import CellOpened, Event, JobSubmitted


def fill(path: Path, count: int = 12) -> list[bytes]:
    """Write a journal of epochs; return the state after each number of records."""
    journal, state = Journal(path), CellState()
    states = [encode_state(state)]
    for number in range(1, count + 1):
        event = CellOpened(number)
        journal.append([event], 1000.0 + number)
        apply(state, event, 1000.0 + number)
        states.append(encode_state(state))
        if number == 5:
            journal.write_snapshot(state)
    journal.close()
    return states


def edit(path: Path, statement: str) -> None:
    db = sqlite3.connect(path)
    db.execute(statement)
    db.commit()
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()


def reopened(path: Path, kept: int, states: list[bytes]) -> Journal:
    """Open a damaged journal: exactly ``kept`` records remain, with the state of that moment; it goes on."""
    journal = Journal(path)
    assert journal.last_seq == kept
    assert encode_state(journal.replay()) == states[kept]
    assert encode_state(journal.replay(use_snapshot=False)) == states[kept]
    journal.append([CellOpened(77)], 2000.0)
    journal.close()
    again = Journal(path)
    assert again.repair is None
    assert again.last_seq == kept + 1
    return journal


def test_a_journal_reads_back_what_was_written(tmp_path: Path):
    states = fill(tmp_path / "j.db")
    journal = Journal(tmp_path / "j.db")
    assert journal.repair is None
    assert [r.seq for r in journal.records(after=10)] == [11, 12]
    assert [r.seq for r in journal.records(after=3, limit=2)] == [4, 5]
    journal.close()
    reopened(tmp_path / "j.db", 12, states)


@pytest.mark.parametrize("bad", [1, 4, 6, 12])
@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (
            "UPDATE events SET body = replace(body, 'epoch', 'epocj') WHERE seq = {}",
            "record {} does not match its checksum",
        ),
        ("UPDATE events SET at_s = at_s + 1 WHERE seq = {}", "record {} does not match its checksum"),
        ("UPDATE events SET sum = x'00' WHERE seq = {}", "record {} does not match its checksum"),
    ],
)
def test_an_altered_record_and_all_after_it_are_moved_aside(tmp_path: Path, damage: str, why: str, bad: int):
    states = fill(tmp_path / "j.db")
    edit(tmp_path / "j.db", damage.format(bad))
    journal = Journal(tmp_path / "j.db")
    repair = journal.repair
    journal.close()
    assert repair is not None
    assert (repair.first_bad_seq, repair.num_records, repair.why) == (bad, 13 - bad, why.format(bad))
    aside = sqlite3.connect(repair.kept_at)
    assert aside.execute("SELECT min(seq), count(*) FROM events").fetchone() == (bad, 13 - bad)
    aside.close()
    reopened(tmp_path / "j.db", bad - 1, states)


@pytest.mark.parametrize("bad", [1, 5, 11])
def test_a_missing_record_is_found(tmp_path: Path, bad: int):
    states = fill(tmp_path / "j.db")
    edit(tmp_path / "j.db", f"DELETE FROM events WHERE seq = {bad}")
    journal = Journal(tmp_path / "j.db")
    assert journal.repair is not None
    assert journal.repair.why == f"record {bad} is missing"
    journal.close()
    reopened(tmp_path / "j.db", bad - 1, states)


def test_records_that_changed_places_are_found(tmp_path: Path):
    states = fill(tmp_path / "j.db")
    for statement in ("-7 WHERE seq = 7", "7 WHERE seq = 8", "8 WHERE seq = -7"):
        edit(tmp_path / "j.db", f"UPDATE events SET seq = {statement}")
    reopened(tmp_path / "j.db", 6, states)


def test_records_of_another_history_are_found(tmp_path: Path):
    """Each is sound by itself; what comes before it is not what it followed."""
    states = fill(tmp_path / "j.db")
    other = Journal(tmp_path / "other.db")
    for number in range(1, 13):
        other.append([CellOpened(number + (number == 6))], 1000.0 + number)
    other.close()
    edit(tmp_path / "j.db", "DELETE FROM events WHERE seq > 6")
    db = sqlite3.connect(tmp_path / "j.db")
    db.execute("ATTACH ? AS other", (str(tmp_path / "other.db"),))
    db.execute("INSERT INTO events SELECT * FROM other.events WHERE seq > 6")
    db.commit()
    db.close()
    reopened(tmp_path / "j.db", 6, states)


def test_a_torn_tail_loses_only_what_was_being_written(tmp_path: Path):
    """A crash leaves a write-ahead log whose last bytes never reached the disk."""
    path = tmp_path / "j.db"
    states = fill(path, 3)
    journal = Journal(path)
    for number in (4, 5):
        journal.append([CellOpened(number)], 1000.0 + number)
    copy = tmp_path / "crashed"
    copy.mkdir()
    for part in ("j.db", "j.db-wal"):
        (copy / part).write_bytes((tmp_path / part).read_bytes())
    journal.close()
    whole = (copy / "j.db-wal").read_bytes()
    (copy / "j.db-wal").write_bytes(whole[:-100])
    after = Journal(copy / "j.db")
    assert after.repair is None
    assert after.last_seq == 4
    assert after.replay().epoch == 4
    assert encode_state(after.replay()) != states[3]
    after.close()


def test_a_damaged_snapshot_is_not_believed(tmp_path: Path):
    states = fill(tmp_path / "j.db")
    edit(tmp_path / "j.db", "UPDATE snapshots SET body = replace(body, '5', '6')")
    reopened(tmp_path / "j.db", 12, states)


@pytest.mark.parametrize("offset", [0, 30, 100, 4096 + 10, 2 * 4096 + 10])
def test_a_database_with_flipped_bytes_never_stops_the_cell_from_opening(tmp_path: Path, offset: int):
    path = tmp_path / "j.db"
    states = fill(path)
    data = bytearray(path.read_bytes())
    for i in range(offset, min(offset + 64, len(data))):
        data[i] ^= 0xA5
    path.write_bytes(data)
    journal = Journal(path)
    kept = journal.last_seq
    assert encode_state(journal.replay()) == states[kept]
    journal.append([CellOpened(99)], 3000.0)
    assert journal.replay().epoch == 99
    journal.close()
    if kept < 12:
        assert journal.repair is not None
        assert journal.repair.kept_at.exists()


def test_a_file_that_is_no_database_is_moved_aside_whole(tmp_path: Path):
    path = tmp_path / "j.db"
    path.write_bytes(b"this is not a database" * 500)
    journal = Journal(path)
    assert journal.repair is not None
    assert journal.repair.kept_at.read_bytes().startswith(b"this is not")
    assert journal.last_seq == 0
    journal.close()


def test_a_journal_of_a_newer_program_is_left_alone(tmp_path: Path):
    path = tmp_path / "j.db"
    fill(path)
    edit(path, "UPDATE meta SET value = '99' WHERE key = 'format'")
    before = path.read_bytes()
    with pytest.raises(JournalError) as caught:
        Journal(path)
    assert caught.value.render() == (
        f"error: the journal {path} has format 99; this program reads up to 3\n\n"
        "hint: use the Tidecell version that wrote it, or a newer one"
    )
    assert path.read_bytes() == before


def test_a_directory_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(JournalError, match="cannot be opened: unable to open database file"):
        Journal(tmp_path / "no" / "j.db")


# ---------------------------------------------------------------------------------------------- full disk


def test_a_full_disk_refuses_the_whole_batch_and_goes_on_when_there_is_space(tmp_path: Path):
    journal = Journal(tmp_path / "j.db")
    journal.append([CellOpened(1)], 1.0)
    page_count = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count = {page_count}")
    batch: list[Event] = [CellOpened(i) for i in range(300)]
    with pytest.raises(JournalFull) as caught:
        journal.append(batch, 2.0)
    assert (
        caught.value.message == f"the journal {tmp_path / 'j.db'} cannot be written: database or disk is full"
    )
    assert journal.last_seq == 1
    journal._db.execute("PRAGMA max_page_count = 100000")
    journal.append(batch, 3.0)
    journal.close()
    again = Journal(tmp_path / "j.db")
    assert (again.repair, again.last_seq) == (None, 301)
    again.close()


def test_a_cell_on_a_full_disk_accepts_nothing_and_forgets_nothing(tmp_path: Path):
    cell = Cell(Journal(tmp_path / "j.db")).machine("m", 4)
    cell.submit(job_spec("a"))
    journal = cell.journal
    assert isinstance(journal, Journal)
    page_count = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count = {page_count}")
    before = encode_state(cell.state)
    spec = job_spec("b", env={f"V{i}": "x" * 1000 for i in range(50)})
    with pytest.raises(JournalFull):
        cell.send(JobSubmitted(spec))
    assert encode_state(cell.state) == before
    journal._db.execute("PRAGMA max_page_count = 100000")
    cell.submit(spec)
    assert cell.staying("b") == 1
    journal.close()


def test_a_limit_on_file_size_is_a_full_disk_too(tmp_path: Path):
    """The operating system refuses the write itself (EFBIG), in a process of its own."""
    program = f"""
        import resource, signal
        from pathlib import Path
        from tidecell.cell.journal import Journal
        from tidecell.structs.errors import JournalFull
        from tidecell.structs.messages import CellOpened
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        journal = Journal(Path({str(tmp_path / "j.db")!r}))
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))
        number = 0
        try:
            while number < 5000:
                journal.append([CellOpened(number + 1)], 1.0)
                number += 1
        except JournalFull:
            print("full", journal.last_seq == number, number)
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    word, agrees, count = done.stdout.split()
    assert (word, agrees) == ("full", "True")
    journal = Journal(tmp_path / "j.db")
    assert (journal.repair, journal.last_seq) == (None, int(count))
    journal.close()


def test_a_snapshot_that_cannot_be_written_costs_no_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cell = Cell(Journal(tmp_path / "j.db")).machine("m", 4)
    refuse = raising(JournalFull("no space for a snapshot"))
    monkeypatch.setattr(cell.journal, "snapshot_due", lambda: True)
    monkeypatch.setattr(cell.journal, "write_snapshot", refuse)
    cell.submit(job_spec("a"))
    assert len(cell.engine.processes) == 1
    cell.journal.close()


def test_an_unforeseen_error_leaves_the_state_as_it_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cell = Cell(Journal(tmp_path / "j.db")).machine("m", 4)
    before = encode_state(cell.state)
    monkeypatch.setattr("tidecell.cell.runtime.schedule", raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cell.send(JobSubmitted(job_spec("a")))
    assert encode_state(cell.state) == before
    monkeypatch.undo()
    cell.submit(job_spec("a"))
    assert cell.staying("a") == 1
    cell.journal.close()


def raising(error: Exception) -> Callable[..., None]:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    return fail


def test_a_killed_writer_leaves_a_prefix(tmp_path: Path):
    """kill -9 in the middle of appends: every append that returned is there."""
    program = f"""
        import sys
        from pathlib import Path
        from tidecell.cell.journal import Journal
        from tidecell.structs.messages import CellOpened
        journal = Journal(Path({str(tmp_path / "j.db")!r}))
        number = 0
        while True:
            number += 1
            journal.append([CellOpened(number)], 1.0)
            print(number, flush=True)
        """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        told = 0
        for line in writer.stdout:
            told = int(line)
            if told == 25:
                writer.send_signal(signal.SIGKILL)
    journal = Journal(tmp_path / "j.db")
    assert journal.repair is None
    assert journal.last_seq >= told >= 25
    assert Runtime(journal).state.epoch == journal.last_seq
    assert [r.seq for r in journal.records()] == list(range(1, journal.last_seq + 1))
    journal.close()


def test_random_damage_leaves_a_prefix_and_a_journal_that_goes_on(tmp_path: Path):
    """Whatever bytes a disk returns: opening succeeds, and what is used is a prefix of what was written."""
    base = tmp_path / "base.db"
    states = fill(base)
    data = base.read_bytes()
    for seed in range(150):
        chance = random.Random(seed)
        path = tmp_path / f"{seed}" / "j.db"
        path.parent.mkdir()
        damaged = bytearray(data)
        start = chance.choice([chance.randrange(len(data)), chance.randrange(4096), chance.randrange(200)])
        length = chance.choice([1, 4, 64, 500])
        damaged[start : start + length] = chance.randbytes(min(length, len(data) - start))
        path.write_bytes(damaged[: chance.randrange(len(data))] if chance.random() < 0.2 else damaged)
        journal = Journal(path)
        assert encode_state(journal.replay()) == states[journal.last_seq], seed
        assert journal.last_seq == 12 or journal.repair is not None or path.stat().st_size == 0, seed
        journal.append([CellOpened(99)], 3000.0)
        journal.close()
