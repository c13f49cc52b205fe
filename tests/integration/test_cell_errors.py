"""What goes wrong around a cell: clear errors, and nothing lost."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tidecell.client.client import Client
from tidecell.structs.errors import ConflictError, JournalFull
from tidecell.structs.job import JobSpec, TaskState


def test_port_in_use_is_named_with_the_flag_that_helps(stopped_cell) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = stopped_cell.tide("up", "--port", str(port), check=False)
    assert done.returncode == 1
    assert f"error: port {port} on 127.0.0.1 is in use by another program" in done.stderr
    assert "--port" in done.stderr
    stopped_cell.up()


def test_up_twice_leaves_the_running_cell_alone(cell) -> None:
    pid = cell.control_pid()
    assert "is up already" in cell.tide("up").stdout
    assert cell.control_pid() == pid


def test_down_without_a_cell_says_so(stopped_cell) -> None:
    assert "no cell runs in" in stopped_cell.tide("down").stdout


def test_damaged_journal_tail_is_moved_aside_and_the_rest_is_kept(cell, client: Client) -> None:
    client.submit(JobSpec("first", argv=("true",)))
    client.wait("first")
    cell.down()
    db = sqlite3.connect(cell.home / "journal.db")
    last = db.execute("SELECT max(seq) FROM events").fetchone()[0]
    db.execute("UPDATE events SET body = 'garbage' WHERE seq = ?", (last,))
    db.execute("DELETE FROM snapshots")
    db.commit()
    db.close()
    printed = cell.tide("up")
    assert f"record {last} does not match its checksum" in printed.stderr
    with Client.from_home(cell.home) as again:
        assert again.job("first").uid == "first.1"
        assert again.wait("first", timeout_s=20).done
    assert list(cell.home.path.glob("journal.db.tail-*"))


def test_journal_that_is_no_database_is_moved_aside_whole(cell) -> None:
    cell.down()
    for suffix in ("-wal", "-shm"):
        (cell.home / f"journal.db{suffix}").unlink(missing_ok=True)
    (cell.home / "journal.db").write_bytes(b"this is no database" * 1000)
    printed = cell.tide("up")
    assert "the journal was repaired" in printed.stderr
    assert list(cell.home.path.glob("journal.db.damaged-*"))
    assert cell.tide("run", "--", "echo", "works").stdout == "works\n"


def test_second_live_job_of_a_name_is_refused(client: Client) -> None:
    client.submit(JobSpec("one", argv=("sleep", "600")))
    with pytest.raises(ConflictError, match="a job named 'one' is"):
        client.submit(JobSpec("one", argv=("true",)))


@pytest.fixture
def small_disk(short_tmp: Path) -> Iterator[Path]:
    """A file system of its own with 6 MiB; needs the right to mount."""
    point = short_tmp / "disk"
    point.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(point)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("a file system cannot be mounted here")
    yield point
    subprocess.run(["umount", "-l", str(point)], check=False)


def test_full_disk_refuses_new_jobs_clearly_and_loses_nothing(
    small_disk: Path, stopped_cell, wait_until: Callable[..., None]
) -> None:
    cell = type(stopped_cell)(small_disk / "cell")
    try:
        client = cell.up("--cpu", "2")
        client.submit(
            JobSpec("before", argv=("sh", "-c", "while [ ! -e gate ]; do sleep 0.05; done; exit 4"))
        )
        client.wait("before", "started")
        _fill(small_disk / "filler")
        with pytest.raises(JournalFull, match="cannot be written"):
            _submit_many(client)
        (cell.home.run_dir("before.1") / "gate").touch()
        (small_disk / "filler").unlink()
        job = client.wait("before", timeout_s=30)
        assert (job.state, job.exit_code) == (TaskState.FAILED, 4)
        client.submit(JobSpec("after", argv=("true",)))
        assert client.wait("after", timeout_s=20).state is TaskState.SUCCEEDED
    finally:
        cell.down()
        shutil.rmtree(small_disk / "cell", ignore_errors=True)


def _submit_many(client: Client) -> None:
    for number in range(2000):
        client.submit(JobSpec(f"more-{number}", argv=("true",), labels={"pad": "x" * 2000}))


def _fill(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(fd, b"\0" * 4096)
    except OSError:
        os.close(fd)


def test_token_is_in_no_output_no_log_and_no_process_list(cell, client: Client) -> None:
    token = cell.home.token()
    client.submit(JobSpec("quiet", argv=("true",)))
    client.wait("quiet")
    printed = cell.tide("up").stdout + cell.tide("status").stdout
    assert token not in printed
    assert not any(token.encode() in _read(p) for p in Path("/proc").glob("[0-9]*/cmdline"))
    kept = [p for p in cell.home.path.rglob("*") if p.is_file() and p != cell.home.token_path]
    assert kept
    assert not any(token.encode() in _read(p) for p in kept)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # a process that ended meanwhile
        return b""
