"""Accept a job or refuse it, with the reason and a fix that works. Pure."""

from __future__ import annotations

import math

from msgspec.structs import replace

from tidecell.cell.allocs import alloc_of, empty_envelopes
from tidecell.cell.records import CellState, Job
from tidecell.scheduler.attributes import unmet
from tidecell.scheduler.fleet import Fleet
from tidecell.scheduler.gang import fits_empty
from tidecell.scheduler.snapshot import JobView, TaskView
from tidecell.scheduler.topology import num_that_fit
from tidecell.structs.errors import ConflictError, RefusedError
from tidecell.structs.job import (
    MAX_REPLICAS,
    NAME_HINT,
    JobSpec,
    Reason,
    Replicas,
    RetryOn,
    Shape,
    TaskState,
    is_name,
)
from tidecell.structs.labels import is_label
from tidecell.structs.machine import MachineSpec
from tidecell.structs.placement import attributes_of
from tidecell.structs.resources import GPU, Resources, format_bytes, format_cpu


def check_admissible(state: CellState, spec: JobSpec) -> None:
    """Raise if the cell cannot take this job.

    Raises:
        ConflictError: A live job has this name.
        RefusedError: No machine could ever hold it, or it depends on a job that does not exist.
    """
    known = state.find(spec.name)
    if known is not None and known.live and known.spec.name == spec.name:
        raise ConflictError(
            f"a job named '{spec.name}' is {known.state}",
            f"choose another name, or stop it first: tide stop {spec.name}",
        )
    check_dependencies(state, spec)
    check_capacity(state, spec, spec.replicas)


def check_sound(spec: JobSpec) -> None:
    """Raise RefusedError if a spec says what none can mean; for those that come as JSON."""
    if not is_name(spec.name):
        raise RefusedError(f"{spec.name!r} is no name of a job", NAME_HINT)
    least, most = spec.replicas.min, spec.replicas.max
    times = (spec.grace_period_s, spec.min_runtime_s, spec.max_duration_s, spec.begin_s, spec.idle_timeout_s)
    sizes = (*(shape.resources for shape in spec.shapes), *(size for _, _, size in spec.sizes))
    wrong = (
        (not 0 <= least <= most <= MAX_REPLICAS or most < 1, f"replicas {spec.replicas} are no range"),
        (any(size.has_negative() for size in sizes), "resources are below 0"),
        (not all(0 <= seconds < math.inf for seconds in times), "a time is below 0, or no number"),
        (spec.name in spec.after, "it comes after itself"),
        (not all(is_label(key) for key in spec.labels), "a label has an empty key, or =, ! or a comma in it"),
    )
    for bad, text in wrong:
        if bad:
            raise RefusedError(f"job '{spec.name}': {text}", "docs/spec.md says what each value may be")


def check_dependencies(state: CellState, spec: JobSpec) -> None:
    """Raise RefusedError if a job comes after one that does not exist."""
    for name in spec.after:
        if state.find(name) is None:
            raise RefusedError(
                f"job '{spec.name}' comes after '{name}', and no job of that name exists",
                "submit it first, or take it out of `after`",
            )


def resolve_needs(state: CellState, spec: JobSpec, known: dict[str, str] | None = None) -> dict[str, str]:
    """Return the runs that ``after`` means, by name: those that are the newest now, or were ``known`` before.

    A dependent waits for the run that was there when it was submitted; another of that name, submitted
    later, is none of its business.
    """
    found = {name: (known or {}).get(name) or state.by_name.get(name, name) for name in spec.after}
    return {name: uid for name, uid in found.items() if uid in state.jobs}


def blocking(state: CellState, job: Job) -> list[tuple[str, Job]]:
    """Return the runs that must succeed before this job starts and have not, with their names in ``after``.

    A run that was forgotten had ended; had it failed, its dependents would have ended with it.
    """
    runs = ((name, state.jobs.get(job.needs.get(name, ""))) for name in job.spec.after)
    if not job.needs:  # accepted by an earlier version of this program
        runs = ((name, state.find(name)) for name in job.spec.after)
    return [(name, run) for name, run in runs if run is not None and run.outcome is not TaskState.SUCCEEDED]


def check_capacity(state: CellState, spec: JobSpec, replicas: Replicas) -> None:
    """Raise RefusedError if the gang would not fit on the empty cell (unless the job waits for that)."""
    check_alloc(state, spec)
    if RetryOn.NO_CAPACITY in spec.retry.on:
        return
    if spec.sizes:
        _check_sizes(rows_for(state, spec), spec, replicas)
        return
    room = _room_when_empty(state, spec)
    if room is None or room >= max(1, replicas.min):
        return
    rows = rows_for(state, spec)
    matching = [m for m in rows if m.has_type(spec.accelerator_type)]
    if not matching:
        raise _no_accelerator(spec, rows)
    allowed = [m for m in matching if unmet(spec, m) is None]
    if not allowed:
        raise _no_such_machine(spec, matching)
    if not sum(copies_on(spec.shapes[0], m) for m in allowed):
        raise _too_large(spec, allowed)
    where, fix = _together(spec)
    raise RefusedError(
        f"job '{spec.name}' needs {replicas.min} replicas of {spec.resources.describe()} together{where}; "
        f"the empty cell holds {room}",
        (f"set replicas.min to {room} or fewer" if room else "") + (" or " if room and fix else "") + fix,
        Reason.NO_MATCHING_MACHINE,
    )


def check_alloc(state: CellState, spec: JobSpec) -> None:
    """Raise RefusedError if a job is for an alloc that it may not enter."""
    if not spec.alloc:
        return
    if spec.is_alloc:
        raise RefusedError(f"alloc '{spec.name}' cannot be inside another alloc", "take alloc out")
    alloc_of(state, spec)


def rows_for(state: CellState, spec: JobSpec) -> list[MachineSpec]:
    """Return what a job's replicas may be placed on: machines, or the envelopes that its alloc asks for.

    Raises:
        RefusedError: It is for an alloc that it may not enter.
    """
    if spec.alloc:
        return empty_envelopes(alloc_of(state, spec))
    return [m.spec for m in state.machines.values() if m.up]


def _check_sizes(machines: list[MachineSpec], spec: JobSpec, replicas: Replicas) -> None:
    """Raise RefusedError if a gang of differing sizes would not fit on the empty cell."""
    if not machines:
        return
    fleet, count = Fleet.of(machines), max(1, replicas.min)
    view = JobView("", spec, 0.0, count, tuple(TaskView(i, pending=True) for i in range(count)))
    if fits_empty(fleet, view, range(count)):
        return
    alone = next((i for i in range(count) if not fits_empty(fleet, view, [i])), None)
    if alone is not None:
        raise RefusedError(
            f"replica {alone} of job '{spec.name}' needs {spec.request(alone).describe()}; "
            "no machine is large enough, also when it is empty",
            "ask for less under tasks, or add a machine",
            Reason.NO_MATCHING_MACHINE,
        )
    where, _ = _together(spec)
    needs = spec.describe_sizes(range(count))
    raise RefusedError(
        f"job '{spec.name}' needs {needs} together{where}; the empty cell does not hold that",
        "set replicas.min lower, ask for less, or add machines",
        Reason.NO_MATCHING_MACHINE,
    )


def _together(spec: JobSpec) -> tuple[str, str]:
    """Return how its replicas must go together beyond a number, and what to change about that."""
    if spec.topology is not None and spec.topology.required:
        level = spec.topology.level
        return f" in one {level}", f"say topology: {{preferred: {level}}}"
    if spec.spread is not None and spec.spread.max_skew:
        return (
            f" with at most {spec.spread.max_skew} more in one {spec.spread.by}",
            "take spread.max_skew out",
        )
    return "", ""


def _room_when_empty(state: CellState, spec: JobSpec) -> int | None:
    """Return how many replicas the empty cell would hold together; None: no machine has joined."""
    if spec.alloc:
        return num_that_fit(Fleet.of(rows_for(state, spec)), spec)
    key = (spec.shapes, spec.constraints, spec.topology, spec.spread)
    known = state.index.capacity.get(key)
    if known is None:
        fleet = state.index.capacity.get("fleet")
        if fleet is None:
            fleet = state.index.capacity["fleet"] = Fleet.of(rows_for(state, spec))
        if not fleet.names:
            return None
        known = state.index.capacity[key] = num_that_fit(fleet, spec)
    return int(known)


def copies_on(shape: Shape, machine: MachineSpec) -> int:
    """Return how many replicas of one shape an empty machine holds, in accelerators of the type asked for."""
    wanted = shape.accelerator_type.lower()
    devices = sum(1 for a in machine.accelerators if wanted in a.type.lower())
    return shape.resources.copies_in(replace(machine.capacity, gpu_millis=devices * GPU))


def _no_such_machine(spec: JobSpec, machines: list[MachineSpec]) -> RefusedError:
    """Say which condition excludes how many machines, and name the machine that comes closest."""
    failing = {
        str(c): sum(1 for m in machines if not c.holds(attributes_of(m, c.key))) for c in spec.constraints
    }
    counts = ", ".join(f"'{text}' excludes {n} of {len(machines)}" for text, n in failing.items() if n)

    def misses(machine: MachineSpec) -> list[str]:
        return [str(c) for c in spec.constraints if not c.holds(attributes_of(machine, c.key))]

    nearest = min(machines, key=lambda m: (len(misses(m)), m.name))
    has = ", ".join(
        f"{c.key} {' and '.join(attributes_of(nearest, c.key)) or 'unknown'}"
        for c in spec.constraints
        if str(c) in misses(nearest)
    )
    return RefusedError(
        f"job '{spec.name}': no machine meets its constraints: {counts}; "
        f"machine '{nearest.name}', which comes closest, has {has}",
        "take out of constraints: " + ", ".join(misses(nearest)),
        Reason.NO_MATCHING_MACHINE,
    )


def _no_accelerator(spec: JobSpec, machines: list[MachineSpec]) -> RefusedError:
    types = sorted({a.type for m in machines for a in m.accelerators})
    have = ", ".join(types) if types else "none"
    hint = f"set resources.gpu to {types[0]}:1" if types else "take resources.gpu out to run on the CPU"
    return RefusedError(
        f"job '{spec.name}' asks for {spec.accelerator_type} accelerators; this cell has {have}",
        hint,
        Reason.NO_MATCHING_MACHINE,
    )


def _too_large(spec: JobSpec, machines: list[MachineSpec]) -> RefusedError:
    """Name the machine that comes closest, and the numbers that would fit on it."""
    nearest = min(machines, key=lambda m: (len(_excess(spec.resources, m.capacity)), m.name))
    excess = _excess(spec.resources, nearest.capacity)
    asks = " and ".join(f"{asked} {what}" for what, asked, _, _ in excess)
    has = " and ".join(f"{has} {what}" for what, _, has, _ in excess)
    fixes = " and ".join(f"{key} to {has}" for _, _, has, key in excess)
    return RefusedError(
        f"job '{spec.name}' asks for {asks} per replica; "
        f"machine '{nearest.name}', which comes closest, has {has}",
        f"set {fixes}",
        Reason.NO_MATCHING_MACHINE,
    )


def _excess(request: Resources, capacity: Resources) -> list[tuple[str, str, str, str]]:
    """Return (what, asked, available, spec key) for each component that is too large."""
    rows = []
    if request.cpu_millis > capacity.cpu_millis:
        rows.append(("cpu", format_cpu(request.cpu_millis), format_cpu(capacity.cpu_millis), "resources.cpu"))
    if request.memory_bytes > capacity.memory_bytes:
        asked, has = format_bytes(request.memory_bytes), _floor_size(capacity.memory_bytes)
        rows.append(("memory", asked, has, "resources.memory"))
    if request.gpu_millis > capacity.gpu_millis:
        rows.append(("gpu", format_cpu(request.gpu_millis), format_cpu(capacity.gpu_millis), "resources.gpu"))
    return rows


def _floor_size(num_bytes: int) -> str:
    """Return a size that people can type and that fits: rounded down to MiB."""
    return f"{num_bytes // (1 << 20)}MiB"
