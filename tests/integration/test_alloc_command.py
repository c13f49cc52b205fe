"""`tide alloc` on a real cell: room that stays reserved while jobs come and go."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from tidecell.client.client import Client
from tidecell.structs.job import TaskState


def test_jobs_enter_and_leave_an_alloc(cell, client: Client, wait_until: Callable[..., None]) -> None:
    (machine,) = client.machines()
    shown = cell.tide("alloc", "lab", "--cpu", "1").stdout
    assert f"lab/0 on {machine.name}" in shown
    assert "hello" in cell.tide("run", "--alloc", "lab", "--cpu", "0.5", "--", "echo", "hello").stdout
    cell.tide("run", "-d", "-n", "long", "--alloc", "lab", "--cpu", "1", "--", "sleep", "100")
    client.wait("long", "started", timeout_s=20)
    (task,) = client.job("long").tasks
    assert (task.envelope, task.machine) == ("lab/0", machine.name)
    status = cell.tide("status", "lab").stdout
    assert "jobs in it long" in status
    assert "0 cpu" in status or "nothing" in status
    cell.tide("run", "-d", "-n", "next", "--alloc", "lab", "--cpu", "1", "--", "true")
    wait_until(lambda: bool(client.job("next").message))
    why = cell.tide("why", "next").stdout
    assert "long" in why
    refused = cell.tide("stop", "lab", check=False)
    assert refused.returncode != 0
    assert "2 jobs are in alloc 'lab': long, next" in refused.stderr
    assert "--force" in refused.stderr
    cell.tide("stop", "lab", "--force", "--now")
    for name in ("lab", "long", "next"):
        assert client.job(name).state is TaskState.CANCELLED, name


def test_an_alloc_survives_the_agent_and_the_control_plane(
    cell, client: Client, wait_until: Callable[..., None]
) -> None:
    cell.tide("alloc", "lab", "--cpu", "1")
    cell.tide("run", "-d", "-n", "long", "--alloc", "lab", "--cpu", "0.5", "--", "sleep", "100")
    client.wait("long", "started", timeout_s=20)
    os.kill(cell.home.read_int("agent/pid"), signal.SIGKILL)
    os.kill(cell.control_pid(), signal.SIGKILL)
    cell.tide("up")
    wait_until(lambda: client.cell().agent_up)
    wait_until(lambda: client.job("long").running == 1)
    assert client.job("lab").tasks[0].attempt == 1
    assert client.job("long").tasks[0].attempt == 1
