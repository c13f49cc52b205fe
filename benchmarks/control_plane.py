"""The control plane on real processes: start latency, many small tasks, idle cost.

Compares with what the issue of this version asks for (baseline), on a cell of its own in a temporary
directory. `ratio` is baseline/value: above 1 is better than asked.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tidecell.cli.lifecycle import bring_down, bring_up
from tidecell.client.client import Client
from tidecell.client.home import Config, Home
from tidecell.engines.process import look_at
from tidecell.structs.job import JobSpec
from tidecell.structs.resources import Resources


def emit(name: str, value: float, unit: str, baseline: float) -> None:
    """Print one result."""
    ratio = round(baseline / value, 2) if value else None
    row = {"name": name, "value": round(value, 3), "unit": unit, "baseline": baseline, "ratio": ratio}
    print(json.dumps(row), flush=True)


def start_latency_ms(client: Client, count: int = 50) -> list[float]:
    """Return times from before the submission to the first line of the program, one per task."""
    times = []
    for number in range(count):
        # The program says when it began, by the same clock.
        began_s = time.time()
        spec = JobSpec(f"lat-{number}", argv=("date", "+%s.%N"), resources=Resources(100))
        client.submit(spec)
        client.wait(spec.name)
        said = "".join(line.text for line in client.logs(spec.name))
        times.append(1000 * (float(said) - began_s))
    return times


def many_tasks_s(client: Client, count: int = 1000) -> float:
    """Return the time from the first submission to the last end of ``count`` no-op jobs."""
    began_s = time.time()
    for number in range(count):
        client.submit(JobSpec(f"noop-{number}", argv=("true",)))
    while client.jobs():
        time.sleep(0.05)
    return time.time() - began_s


def one_job_many_replicas_s(client: Client, count: int = 1000) -> float:
    """Return the time that one job of ``count`` no-op replicas takes."""
    from tidecell.structs.job import Replicas

    began_s = time.time()
    spec = JobSpec("wide", argv=("true",), replicas=Replicas(count, count), resources=Resources(1))
    client.submit(spec)
    client.wait("wide")
    return time.time() - began_s


def idle_cost(pid: int, seconds: float = 10.0) -> tuple[float, float]:
    """Return percent of a core and MB of a process over some idle seconds."""
    before = look_at(pid)
    time.sleep(seconds)
    after = look_at(pid)
    if before is None or after is None:
        raise SystemExit("the process ended")
    return 100 * (after.cpu_s - before.cpu_s) / seconds, after.memory_bytes / 1e6


def main() -> None:
    """Run all of it on a fresh cell."""
    home = Home(Path(tempfile.mkdtemp(prefix="tide-bench-")) / "cell")
    try:
        emit("cell_up", bring_up(home, Config(machine="bench")), "s", 3.0)
        with Client.from_home(home) as client:
            times = start_latency_ms(client)
            emit("start_latency_p50", statistics.median(times), "ms", 50.0)
            emit("start_latency_p95", statistics.quantiles(times, n=20)[-1], "ms", 50.0)
            emit("1000_noop_jobs", many_tasks_s(client), "s", 20.0)
            emit("1_job_of_1000_noop_replicas", one_job_many_replicas_s(client), "s", 20.0)
            time.sleep(2.0)
            cpu, memory = idle_cost(client.cell().pid)
            emit("control_plane_idle_cpu", cpu, "% of a core", 2.0)
            emit("control_plane_memory", memory, "MB", 150.0)
            pid = home.read_int("agent/pid") or os.getpid()
            cpu, memory = idle_cost(pid)
            emit("agent_idle_cpu", cpu, "% of a core", 2.0)
            emit("agent_memory", memory, "MB", 150.0)
    finally:
        bring_down(home, 2.0)
        subprocess.run(["rm", "-rf", str(home.path.parent)], check=False)


if __name__ == "__main__":
    sys.exit(main())
