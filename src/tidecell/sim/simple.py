"""The simple format of a user's own traces: one row a job, one row a machine (docs/sim.md). Pure.

Every column but one that says what a replica needs may be left out. Without ``duration_s`` a trace has
arrivals only, and is packed rather than simulated in time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from tidecell.client.units import (
    parse_cpu,
    parse_duration,
    parse_preemption,
    parse_priority,
    parse_size,
)
from tidecell.sim.table import Rows, Table, moment, number, one_of, require_columns, seconds, text, whole
from tidecell.sim.workload import LoadPoint, MachineChange, SimJob
from tidecell.structs.errors import DataError
from tidecell.structs.job import (
    Checkpoint,
    JobSpec,
    Kind,
    Preemption,
    Priority,
    Replicas,
    Retry,
    RetryOn,
    Scaling,
)
from tidecell.structs.machine import Accelerator, MachineSpec
from tidecell.structs.resources import GPU, Resources

JOB_COLUMNS = (
    "name",
    "submit_s",
    "duration_s",
    "stop_s",
    "replicas",
    "replicas_min",
    "replicas_max",
    "cpu",
    "memory",
    "gpu",
    "gpu_type",
    "priority",
    "team",
    "kind",
    "max_duration",
    "checkpoint_every",
    "min_runtime",
    "grace_period",
    "preemption",
    "after",
    "scaling_target",
)
MACHINE_COLUMNS = (
    "name",
    "count",
    "cpu",
    "memory",
    "gpu",
    "gpu_type",
    "gpu_memory",
    "attributes",
    "up_s",
    "down_s",
)
LOAD_COLUMNS = ("service", "time_s", "ongoing")
_NEEDS = ("cpu", "memory", "gpu")
MAX_REPLICAS = 100_000
MAX_MACHINES = 1_000_000
MAX_GPUS = 1024  # of one machine


def gpu_millis(value: object) -> int:
    """Return thousandths of an accelerator of ``2`` or ``0.25``; above one only whole ones."""
    found = number(0.0, MAX_GPUS)(value)
    millis = round(found * GPU)
    if millis > GPU and millis % GPU:
        raise ValueError("is not allowed: above one accelerator only whole ones")
    return millis


def clean_name(raw: str, fallback: str) -> str:
    """Return a name that a job may have: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", raw.lower()).strip("-") or fallback


def unique_names(raw: list[str], prefix: str) -> list[str]:
    """Return a name for each row: its own, numbered where it comes again."""
    seen: dict[str, int] = {}
    bases = [clean_name(name, f"{prefix}-{i}") for i, name in enumerate(raw)]
    taken, out = set(bases), []
    for base in bases:
        seen[base] = seen.get(base, 0) + 1
        name = base
        while name in taken and seen[base] > 1:  # another row may have the numbered name for its own
            name = f"{base}-x{seen[base]}"
            seen[base] += name in taken
        taken.add(name)
        out.append(name)
    return out


def cpu_millis(value: object) -> int:
    """Return thousandths of a core; 0 is allowed, since many traces know accelerators only."""
    try:
        if float(value) == 0:  # type: ignore[arg-type]
            return 0
    except (TypeError, ValueError, OverflowError):
        pass
    return parse_cpu(value)


def _attributes(value: object) -> dict[str, str]:
    out = {}
    for part in str(value).split(";"):
        key, eq, found = part.partition("=")
        if not eq or not key.strip():
            raise ValueError("is no list of attributes; write key=value;key=value")
        out[key.strip()] = found.strip()
    return out


def read_jobs(table: Table) -> list[SimJob]:
    """Return the jobs of a simple trace, in order of submission.

    Raises:
        DataError: A column is missing or unknown.
        SpecError: Cells are wrong; all of them are listed, with their lines.
    """
    require_columns(table, (), JOB_COLUMNS, "the simple job format")
    if not table.names & set(_NEEDS):
        raise DataError(
            f"{table.source}: no column says what a replica needs",
            f"give at least one of {', '.join(_NEEDS)}",
        )
    rows = Rows(table)
    columns = _job_columns(rows)
    _check_jobs(rows, columns)
    rows.check()
    names = unique_names(columns["name"], "job")
    jobs = [_job(names[i], {key: values[i] for key, values in columns.items()}) for i in range(len(table))]
    return sorted(jobs, key=lambda job: job.submit_s)


def _job_columns(rows: Rows) -> dict[str, list[Any]]:
    replicas = rows.read("replicas", whole(1, MAX_REPLICAS), 0)
    parsers: dict[str, tuple[Callable[[object], Any], Any]] = {
        "name": (text, ""),
        "submit_s": (moment, 0.0),
        "duration_s": (seconds, None),
        "stop_s": (moment, None),
        "replicas_min": (whole(0, MAX_REPLICAS), None),
        "replicas_max": (whole(1, MAX_REPLICAS), None),
        "cpu": (cpu_millis, 0),
        "memory": (parse_size, 0),
        "gpu": (gpu_millis, 0),
        "gpu_type": (text, ""),
        "priority": (lambda v: parse_priority(text(v)), Priority()),
        "team": (text, ""),
        "kind": (one_of("job", "service"), "job"),
        "max_duration": (parse_duration, 0.0),
        "checkpoint_every": (parse_duration, 0.0),
        "min_runtime": (parse_duration, 0.0),
        "grace_period": (parse_duration, 30.0),
        "preemption": (lambda v: parse_preemption(text(v)), Preemption.ANY),
        "after": (lambda v: tuple(n for n in re.split(r"[;\s]+", text(v)) if n), ()),
        "scaling_target": (number(1e-9), 0.0),
    }
    columns = {name: rows.read(name, parse, default) for name, (parse, default) in parsers.items()}
    for i, same in enumerate(replicas):
        low, high = columns["replicas_min"][i], columns["replicas_max"][i]
        low = low if low is not None else (same or min(1, high or 1))
        columns["replicas_min"][i] = low
        columns["replicas_max"][i] = high if high is not None else max(1, same, low)
    return columns


def _check_jobs(rows: Rows, columns: Mapping[str, list[Any]]) -> None:
    known = {clean_name(n, "") for n in columns["name"]} if any(columns["after"]) else set()
    for i, names in enumerate(columns["after"]):
        for name in names:
            if clean_name(name, name) not in known:
                rows.mistake(i, "after", f"there is no job named '{name}'", "write names of this trace")
    for i in range(len(rows.table)):
        low, high = columns["replicas_min"][i], columns["replicas_max"][i]
        if low > high:
            rows.mistake(i, "replicas_min", f"{low} is above replicas_max, which is {high}")
        submit_s, stop_s = columns["submit_s"][i], columns["stop_s"][i]
        if stop_s is not None and stop_s < submit_s:
            rows.mistake(i, "stop_s", f"{stop_s:g} is before submit_s, which is {submit_s:g}")
        if columns["scaling_target"][i] and columns["kind"][i] != "service":
            rows.mistake(i, "scaling_target", "is for services; this is a job", "set kind to service")


def _job(name: str, row: Mapping[str, Any]) -> SimJob:
    service = row["kind"] == "service"
    every_s = row["checkpoint_every"]
    spec = JobSpec(
        name=name,
        kind=Kind.SERVICE if service else Kind.JOB,
        run="simulated",
        resources=Resources(row["cpu"], row["memory"], row["gpu"]),
        accelerator_type=row["gpu_type"],
        replicas=Replicas(row["replicas_min"], row["replicas_max"]),
        priority=row["priority"],
        preemption=row["preemption"],
        grace_period_s=row["grace_period"],
        min_runtime_s=row["min_runtime"],
        checkpoint=Checkpoint("checkpoint", every_s) if every_s else None,
        retry=Retry((RetryOn.INTERRUPTION, RetryOn.ERROR), 1_000_000),
        max_duration_s=row["max_duration"],
        after=tuple(clean_name(n, n) for n in row["after"]),
        scaling=Scaling(target=row["scaling_target"]) if row["scaling_target"] else None,
        team=row["team"],
    )
    stop_s = row["stop_s"]
    if service and stop_s is None and row["duration_s"] is not None:
        stop_s = row["submit_s"] + row["duration_s"]
    return SimJob(spec, row["submit_s"], None if service else row["duration_s"], stop_s)


def read_machines(table: Table) -> tuple[list[MachineSpec], list[MachineChange]]:
    """Return the machines of a simple list, and when which of them come and go.

    Raises:
        DataError, SpecError: As for jobs.
    """
    require_columns(table, (), MACHINE_COLUMNS, "the simple machine format")
    if not table.names & {"cpu", "gpu"}:
        raise DataError(f"{table.source}: no column says what a machine has", "give at least cpu or gpu")
    rows = Rows(table)
    names = rows.read("name", text, "")
    counts = rows.read("count", whole(1, MAX_MACHINES), 1)
    cpus, memories = rows.read("cpu", cpu_millis, 0), rows.read("memory", parse_size, 0)
    gpus, types = rows.read("gpu", whole(0, MAX_GPUS), 0), rows.read("gpu_type", text, "")
    gpu_memories = rows.read("gpu_memory", parse_size, 0)
    attributes: list[dict[str, str]] = rows.read("attributes", _attributes, {})
    ups, downs = rows.read("up_s", moment, None), rows.read("down_s", moment, None)
    for i in range(len(table)):
        joins_s, leaves_s = ups[i] or 0.0, downs[i]
        if leaves_s is not None and leaves_s <= joins_s:
            rows.mistake(i, "down_s", f"{leaves_s:g} is not after up_s, which is {joins_s:g}")
        if not cpus[i] and not gpus[i]:
            rows.mistake(i, "cpu", "the machine has neither cpu nor gpu", "give it one of them")
    rows.check()
    if sum(counts) > MAX_MACHINES:
        raise DataError(
            f"{table.source} has {sum(counts):,} machines", f"at most {MAX_MACHINES:,} are simulated"
        )
    machines: list[MachineSpec] = []
    changes: list[MachineChange] = []
    for i in range(len(table)):
        base = names[i] or f"m{len(machines):05d}"
        for copy in range(counts[i]):
            name = base if counts[i] == 1 else f"{base}-{copy:0{len(str(counts[i] - 1))}d}"
            spec = make_machine(name, cpus[i], memories[i], gpus[i], types[i], gpu_memories[i], attributes[i])
            up_s, down_s = ups[i], downs[i]
            if not up_s:
                machines.append(spec)
            changes += [MachineChange(at_s, spec, up) for at_s, up in ((up_s, True), (down_s, False)) if at_s]
    check_names(machines, table.source)
    return machines, sorted(changes, key=lambda c: c.at_s)


def check_names(machines: list[MachineSpec], source: str) -> None:
    """Raise DataError if there are no machines, or two have the same name."""
    if not machines:
        raise DataError(f"{source} has no machine that is there from the start", "give one row a machine")
    seen: set[str] = set()
    for machine in machines:
        if machine.name in seen:
            raise DataError(f"{source}: machine '{machine.name}' is there twice", "give each its own name")
        seen.add(machine.name)


def make_machine(
    name: str,
    cpu_millis: int,
    memory_bytes: int,
    num_gpus: int = 0,
    gpu_type: str = "",
    gpu_memory_bytes: int = 0,
    attributes: Mapping[str, str] | None = None,
) -> MachineSpec:
    """Return a machine with equal accelerators."""
    gpus = tuple(Accelerator(i, gpu_type or "gpu", gpu_memory_bytes) for i in range(num_gpus))
    capacity = Resources(cpu_millis, memory_bytes, num_gpus * GPU)
    return MachineSpec(name, capacity, gpus, dict(attributes or {}))


def read_load(table: Table) -> list[LoadPoint]:
    """Return a service's load over time: requests in flight and queued, from each moment on.

    Raises:
        DataError, SpecError: As for jobs.
    """
    require_columns(table, LOAD_COLUMNS, LOAD_COLUMNS, "a load file")
    rows = Rows(table)
    services = rows.required("service", text, "")
    times = rows.required("time_s", moment, 0.0)
    ongoing = rows.required("ongoing", number(), 0.0)
    rows.check()
    points = [LoadPoint(t, clean_name(s, s), o) for s, t, o in zip(services, times, ongoing, strict=True)]
    return sorted(points, key=lambda p: p.at_s)
