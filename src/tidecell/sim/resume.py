"""A simulation that begins with a live cell: what runs goes on, what waits is decided by the scheduler. Pure.

How long running work still takes is not known; it is taken, in this order, from what the user says, from
earlier runs of the same name, from its ``max_duration``, or it never ends. Which of these it was is said of
every job, because the answer is worth no more than that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from tidecell.cell.log import MemoryLog
from tidecell.cell.state import CellState, Job
from tidecell.scheduler.durations import Durations
from tidecell.sim.recorder import Recorder
from tidecell.sim.workload import MachineChange, SimJob, Workload
from tidecell.sim.world import World
from tidecell.structs.errors import DataError
from tidecell.structs.job import JobSpec, TaskState
from tidecell.structs.machine import MachineSpec

MAX_SPAN_S = 30 * 86400.0


class Outlook(msgspec.Struct, frozen=True, omit_defaults=True):
    """What becomes of one job.

    Attributes:
        starts_s: Seconds from now until its gang has machines; 0: it runs; None: not within the span.
        ends_s: Seconds from now until its end; None: not within the span.
        basis: What its duration rests on.
        waits: If it waits at the end: why.
    """

    name: str
    priority: str
    state: str
    starts_s: float | None
    machines: tuple[str, ...]
    ends_s: float | None
    basis: str
    waits: str = ""


class Preempted(msgspec.Struct, frozen=True):
    """A replica that was told to leave."""

    at_s: float
    job: str
    index: int
    machine: str
    by: str
    new_size: int


class Forecast(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What happens from a snapshot on; times in seconds from it."""

    at_s: float
    until_s: float
    num_machines: int
    jobs: tuple[Outlook, ...]
    preempted: tuple[Preempted, ...] = ()
    waiting: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()


def past_durations(state: CellState) -> dict[str, Durations]:
    """Return how long successful earlier runs took, by name."""
    found: dict[str, list[float]] = {}
    for job in state.jobs.values():
        if job.outcome is TaskState.SUCCEEDED and job.started_s and job.finished_s > job.started_s:
            found.setdefault(job.spec.name, []).append(job.finished_s - job.started_s)
    return {name: Durations.of(times) for name, times in found.items()}


def run_forecast(
    state: CellState,
    at_s: float,
    added: Sequence[JobSpec] = (),
    durations_s: Mapping[str, float] | None = None,
    more: Sequence[MachineSpec] = (),
    fewer: Sequence[str] = (),
    until_s: float = 0.0,
    seed: int = 0,
) -> Forecast:
    """Let a copy of a cell go on by itself; nothing of the cell changes.

    Args:
        state: The cell; it is copied.
        at_s: When it was so.
        added: Jobs that are submitted now.
        durations_s: How long jobs take in all, by name; overrides every other source.
        more: Machines that join now.
        fewer: Names of machines that go away now, with what they run.
        until_s: Seconds to look ahead; 0: until nothing more happens by itself.
        seed: Breaks ties.
    """
    span_s = until_s or MAX_SPAN_S
    given, past = dict(durations_s or {}), past_durations(state)
    _check_names(given, state, added)
    changes = [MachineChange(at_s, m, True) for m in more]
    changes += [MachineChange(at_s, state.machines[n].spec, False) for n in fewer]
    basis: dict[str, str] = {}
    jobs = tuple(_added(spec, at_s, _expect(spec, 0.0, given, past, basis)) for spec in added)
    world = World(
        Workload((), jobs, tuple(changes), source="snapshot"),
        seed,
        log=MemoryLog(state, keep=False),
        start_s=at_s,
    )
    recorder = Recorder()
    recorder.begin(world.state, at_s)
    world.observers.append(recorder)
    now = {j.uid: _behaviour(j, at_s, given, past, basis) for j in world.state.live_jobs()}
    world.resume(now)
    world.run(at_s + span_s)
    return _report(world, recorder, basis, at_s, span_s)


def _check_names(given: Iterable[str], state: CellState, added: Iterable[JobSpec]) -> None:
    known = {j.spec.name for j in state.live_jobs()} | {s.name for s in added}
    for name in given:
        if name not in known:
            shown = ", ".join(sorted(known)) or "none"
            raise DataError(
                f"a duration is given for '{name}', which is no live or added job", f"there are {shown}"
            )


def _behaviour(
    job: Job, at_s: float, given: Mapping[str, float], past: Mapping[str, Durations], basis: dict[str, str]
) -> SimJob:
    """Return how a live job goes on."""
    ran_s = at_s - job.started_s if job.started_s and job.active_tasks() else 0.0
    left_s = _expect(job.spec, ran_s, given, past, basis)
    if job.spec.array is not None:
        return SimJob(job.spec, job.submitted_s, _of_item(job.spec, left_s, len(job.open)))
    size = sum(1 for t in job.tasks if t.state in (TaskState.RUNNING, TaskState.RESIZING))
    share = min(1.0, size / job.spec.replicas.max) if size and ran_s else 1.0
    return SimJob(job.spec, job.submitted_s, left_s * share if left_s is not None else None)


def _added(spec: JobSpec, at_s: float, takes_s: float | None) -> SimJob:
    """Return how a job goes on that is submitted now."""
    if spec.array is not None:
        takes_s = _of_item(spec, takes_s, spec.array.count)
    return SimJob(spec, at_s, takes_s)


def _of_item(spec: JobSpec, left_s: float | None, num_left: int) -> float | None:
    """Return how long each item takes of an array that takes so long in all, as many at once as it wants."""
    return left_s / max(1, -(-num_left // max(1, spec.replicas.max))) if left_s is not None else None


def _expect(
    spec: JobSpec,
    ran_s: float,
    given: Mapping[str, float],
    past: Mapping[str, Durations],
    basis: dict[str, str],
) -> float | None:
    """Return how long work still takes at its present size, and note what that rests on."""
    if spec.is_service:
        basis[spec.name] = "a service: runs until stopped"
        return None
    if spec.name in given:
        basis[spec.name] = f"takes {given[spec.name]:g} s in all, as given"
        return max(0.0, given[spec.name] - ran_s)
    earlier = past.get(spec.name, Durations())
    left_s = earlier.remaining_s(ran_s, 0.5, least=1)
    if left_s is not None:
        basis[spec.name] = f"median of {earlier.num_longer(ran_s)} earlier runs that took longer"
        return left_s
    if spec.max_duration_s:
        basis[spec.name] = "its max_duration"
        return None  # the cell ends it itself
    basis[spec.name] = "unknown: never ends here (--duration NAME=2h says otherwise)"
    return None


def _report(
    world: World, recorder: Recorder, basis: Mapping[str, str], at_s: float, span_s: float
) -> Forecast:
    trace = world.runtime.trace.waiting
    outlooks = []
    machines: dict[str, list[str]] = {}
    for _, uid, _, machine in recorder.starts:
        if machine not in machines.setdefault(uid, []):
            machines[uid].append(machine)
    for uid, record in recorder.jobs.items():
        job = world.state.jobs.get(uid)
        waiting = trace.get(uid) if job is not None and job.live else None
        starts_s = record.placed_s - at_s if record.placed_s is not None else None
        text = f"{' · '.join(waiting.reasons)}: {waiting.detail}" if waiting is not None else ""
        outlooks.append(
            Outlook(
                record.spec.name,
                str(record.spec.priority),
                str(record.outcome or (job.state if job is not None else "")),
                max(0.0, round(starts_s, 3)) if starts_s is not None else None,
                tuple(machines.get(uid, [])[:8]),
                round(record.finished_s - at_s, 3) if record.finished_s is not None else None,
                basis.get(record.spec.name, ""),
                text,
            )
        )
    names = {uid: record.spec.name for uid, record in recorder.jobs.items()}
    return Forecast(
        at_s=at_s,
        until_s=span_s,
        num_machines=sum(1 for m in world.state.machines.values() if m.up),
        jobs=tuple(outlooks),
        preempted=tuple(
            Preempted(round(e.at_s - at_s, 3), names[e.uid], e.index, e.machine, e.by, e.new_size)
            for e in recorder.evictions
        ),
        waiting=tuple(o.name for o in outlooks if o.waits),
        refused=tuple(f"{r.name}: {r.error.message}" for r in world.refusals),
        assumptions=(
            "nobody submits, stops or scales anything; services keep their size",
            "a task takes 1 s to start and 1 s to leave; no machine fails",
        ),
    )
