"""kill -9 of the control plane and of the agent: jobs go on, exactly one outcome, the journal agrees."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tidecell.cell.journal import Journal
from tidecell.cell.state import encode_state
from tidecell.client.client import Client
from tidecell.engines.process import look_at
from tidecell.structs.job import JobSpec, TaskState
from tidecell.structs.messages import JobFinished


def _outcomes(home: Path) -> list[str]:
    journal = Journal(home / "journal.db")
    found = [r.event.uid for r in journal.records() if isinstance(r.event, JobFinished)]
    journal.close()
    return found


@pytest.mark.parametrize("seed", range(3))
def test_job_survives_kills_at_random_moments_and_ends_once(cell, client: Client, seed: int) -> None:
    rng = random.Random(seed)
    script = "for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.2; done; exit 5"
    client.submit(JobSpec("walk", argv=("sh", "-c", script)))
    for _ in range(3):
        time.sleep(rng.uniform(0.0, 0.4))
        os.kill(cell.control_pid(), signal.SIGKILL)
        _wait_for_new_control(cell, client)
    job = client.wait("walk", timeout_s=40)
    assert (job.state, job.exit_code) == (TaskState.FAILED, 5)
    assert "".join(line.text for line in client.logs("walk")) == "1\n2\n3\n4\n5\n6\n7\n8\n"
    cell.down()
    assert _outcomes(cell.home.path) == ["walk.1"]


def _wait_for_new_control(cell, client: Client) -> None:
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        try:
            if client.cell().agent_up:
                return
        except Exception:
            time.sleep(0.02)
    raise AssertionError("the control plane did not come back")


def test_task_that_ends_while_no_control_plane_is_there_keeps_its_exit_status(
    cell, client: Client, wait_until: Callable[..., None]
) -> None:
    gate = cell.home / "gate"
    client.submit(JobSpec("short", argv=("sh", "-c", f"while [ ! -e {gate} ]; do sleep 0.05; done; exit 7")))
    client.wait("short", "started")
    pid = client.job("short").tasks[0].pid
    os.kill(cell.control_pid(), signal.SIGSTOP)  # away, and not restarted by the agent
    gate.touch()
    wait_until(lambda: look_at(pid) is None)
    os.kill(cell.control_pid(), signal.SIGKILL)
    job = client.wait("short", timeout_s=20)
    assert (job.state, job.exit_code) == (TaskState.FAILED, 7)


def test_replaying_the_journal_gives_the_live_state(cell, client: Client) -> None:
    for number in range(5):
        client.submit(JobSpec(f"job-{number}", argv=("true",)))
    for number in range(5):
        client.wait(f"job-{number}")
    os.kill(cell.control_pid(), signal.SIGKILL)
    _wait_for_new_control(cell, client)
    cell.down()
    journal = Journal(cell.home / "journal.db")
    with_snapshot, from_scratch = journal.replay(), journal.replay(use_snapshot=False)
    assert encode_state(with_snapshot) == encode_state(from_scratch)
    assert {j.outcome for j in from_scratch.jobs.values()} == {TaskState.SUCCEEDED}


def test_agent_killed_its_task_goes_on_and_the_next_agent_finds_it(
    cell, client: Client, wait_until: Callable[..., None]
) -> None:
    client.submit(JobSpec("stays", argv=("sleep", "600")))
    client.wait("stays", "started")
    task = client.job("stays").tasks[0]
    agent_pid = cell.home.read_int("agent/pid")
    os.kill(agent_pid, signal.SIGKILL)
    cell.tide("up")
    wait_until(lambda: client.cell().agent_up)
    again = client.job("stays").tasks[0]
    assert (again.state, again.pid, again.attempt) == (TaskState.RUNNING, task.pid, 1)
    client.stop("stays")
    assert client.wait("stays", timeout_s=20).state is TaskState.CANCELLED
    assert look_at(task.pid) is None  # gone, or a zombie that nobody collects


def test_down_leaves_no_process_behind_not_even_one_that_left_its_session(
    cell, client: Client, wait_until: Callable[..., None]
) -> None:
    marker = f"stray-{os.getpid()}-{time.time_ns()}"
    script = f"setsid bash -c 'exec -a {marker} sleep 600' & exec -a {marker} sleep 600"
    client.submit(JobSpec("family", argv=("bash", "-c", script)))
    wait_until(lambda: _count(marker) >= 2, what="two processes")
    cell.down()
    wait_until(lambda: _count(marker) == 0, what="no process left")
    assert not (cell.home / "agent" / "pid").exists()


def _count(marker: str) -> int:
    found = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found += (entry / "cmdline").read_bytes().startswith(marker.encode())
            except OSError:
                continue
    return found


def test_state_and_finished_jobs_are_there_after_down_and_up(cell, client: Client) -> None:
    client.submit(JobSpec("done", argv=("echo", "kept")))
    client.wait("done")
    cell.down()
    cell.tide("up")
    with Client.from_home(cell.home) as again:
        assert again.job("done").state is TaskState.SUCCEEDED
    assert cell.tide("logs", "done").stdout == "kept\n"
