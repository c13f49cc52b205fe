"""`tide resize` and `tide apply` on what really runs: limits, what the task is told, kill -9 in between."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tidecell.client.client import Client
from tidecell.structs.errors import TidecellError
from tidecell.structs.job import JobSpec, TaskState
from tidecell.structs.resources import Resources

MIB = 1 << 20
EATER = textwrap.dedent(
    """
    import os, resource, sys, time
    import tidecell
    held = []
    last = None
    while True:
        granted = tidecell.resources()
        fence = resource.getrlimit(resource.RLIMIT_DATA)[0]
        if (granted, fence) != last:
            last = granted, fence
            print(f"{granted.cpu:g} {granted.memory_bytes >> 20} {fence}", flush=True)
        if os.path.exists(sys.argv[1]) and not held:
            held.append(bytearray(b"x") * (int(open(sys.argv[1]).read()) << 20))
        time.sleep(0.02)
    """
)


def submit(cell, client: Client, tmp_path: Path, **more: object) -> Path:
    order = tmp_path / "eat"
    argv = (sys.executable, "-c", EATER, str(order))
    client.submit(JobSpec("eat", argv=argv, resources=Resources(500, 200 * MIB), **more))
    client.wait("eat", until="started", timeout_s=30)
    return order


def said(client: Client) -> list[str]:
    return "".join(line.text for line in client.logs("eat")).splitlines()


def test_a_task_that_runs_gets_more_memory_and_may_use_it(
    cell, client: Client, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    order = submit(cell, client, tmp_path)
    pid = client.job("eat").tasks[0].pid
    done = cell.tide("resize", "eat", "--cpu", "1", "--memory", "500MiB")
    assert "each has 1 cpu, 500.0 MiB" in done.stdout
    wait_until(lambda: any(line.startswith("1 500 ") for line in said(client)))
    order.write_text("300")  # more than it had at first
    wait_until(lambda: client.job("eat").tasks[0].memory_bytes > 300 * MIB)
    refused = cell.tide("resize", "eat", "--memory", "250MiB", check=False)
    assert "cannot be resized while it runs: replica 0 uses" in refused.stderr
    time.sleep(1.5)  # longer than a look at its memory takes
    job = client.job("eat")
    assert (job.state, job.tasks[0].pid, job.tasks[0].attempt) == (TaskState.RUNNING, pid, 1)
    machine = client.machines()[0]
    assert machine.reserved == Resources(1000, 500 * MIB)
    client.resize("eat", memory_bytes=0)
    wait_until(lambda: said(client)[-1].startswith("1 0 "))


def test_a_smaller_limit_holds_once_it_is_met(
    cell, client: Client, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    order = submit(cell, client, tmp_path)
    client.resize("eat", memory_bytes=100 * MIB)
    wait_until(lambda: any(line.startswith("0.5 100 ") for line in said(client)))
    order.write_text("150")
    job = client.wait("eat", timeout_s=30)
    assert job.state is TaskState.FAILED
    assert "memory" in job.message


@pytest.mark.parametrize("victim", ["control", "agent"])
def test_a_resize_outlives_kill_9(
    cell, client: Client, tmp_path: Path, wait_until: Callable[..., None], victim: str
) -> None:
    order = submit(cell, client, tmp_path)
    client.resize("eat", memory_bytes=500 * MIB)
    pid = cell.home.read_int(f"{victim}/pid")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    if victim == "agent":
        cell.tide("up", "--machine", "m")

    def back() -> bool:
        try:
            return client.cell().agent_up and client.job("eat").tasks[0].pid > 0
        except TidecellError:
            return False

    wait_until(back)
    order.write_text("300")
    wait_until(lambda: client.job("eat").tasks[0].memory_bytes > 300 * MIB)
    time.sleep(1.5)
    assert client.job("eat").state is TaskState.RUNNING
    assert client.job("eat").resources == Resources(500, 500 * MIB)
    client.resize("eat", memory_bytes=600 * MIB)
    assert client.machines()[0].reserved == Resources(500, 600 * MIB)


def test_apply_says_how_a_changed_size_gets_there(cell, client: Client, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"

    def text(cpu: float) -> None:
        file.write_text(f"name: sleeper\nrun: sleep 600\nresources: {{cpu: {cpu}}}\n")

    text(0.5)
    cell.tide("apply", "-y", "-f", str(file))
    client.wait("sleeper", until="started", timeout_s=30)
    text(1)
    assert (
        "change sleeper, in place: resources.cpu: 0.5 -> 1"
        in cell.tide("apply", "-y", "-f", str(file)).stdout
    )
    client.submit(JobSpec("beside", argv=("sleep", "600"), resources=Resources(500)))
    client.wait("beside", until="started", timeout_s=30)
    cores = client.machines()[0].capacity.cpu_millis / 1000
    text(cores)
    plan = cell.tide("plan", "-f", str(file)).stdout
    assert "replicas started again together, since m has" in plan
    assert "more are asked for: resources.cpu: 1 ->" in plan


def test_whose_job_it_is_stands_in_its_labels(cell, client: Client) -> None:
    import pwd

    me = pwd.getpwuid(os.getuid()).pw_name
    cell.tide("run", "-d", "--name", "mine", "--cpu", "0.1", "--", "sleep", "600")
    cell.tide("run", "-d", "--name", "hers", "-l", "user=ana", "--cpu", "0.1", "--", "sleep", "600")
    assert [j.name for j in client.jobs(labels=[f"user={me}"])] == ["mine"]
    assert [j.name for j in client.jobs(labels=["user=ana"])] == ["hers"]
    assert {row.user for row in client.usage("user").rows} == {me, "ana"}


def test_what_has_no_meaning_is_refused_in_words(cell, client: Client) -> None:
    name = cell.tide("run", "-d", "--name", "x y", "--", "true", check=False)
    assert "'x y' is no name of a job" in name.stderr
    option = cell.tide("run", "--labl", "a=b", "--", "true", check=False)
    assert "there is no option '--labl'" in option.stderr
    kind = cell.tide("events", "--kind", "TaskEnd", check=False)
    assert "did you mean TaskEnded?" in kind.stderr
    assert "is not above 0" in cell.tide("events", "-n", "-3", check=False).stderr
    with pytest.raises(TidecellError, match="it comes after itself"):
        client.submit(JobSpec("loop", argv=("true",), after=("loop",)))
    with pytest.raises(TidecellError, match="resources are below 0"):
        client.submit(JobSpec("less", argv=("true",), resources=Resources(-1)))
