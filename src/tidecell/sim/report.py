"""The figures of a simulation: waits, utilisation, evictions, fairness, work lost. Pure.

Definitions, so that figures of two runs may be compared:

- **wait**: from a job's submission to the moment its whole gang had machines for the first time.
- **utilisation**: what was reserved for tasks over what the machines had, both integrated over the span.
- **finish-time ratio**: time from submission to end over the time its work takes with all its replicas on an
  empty cell; 1 is ideal (Themis, NSDI 2020, uses it against a fair share; ours is against an empty cell).
- **Jain's index** over teams (Jain et al. 1984) of the mean inverse finish-time ratio: 1 is even.
- **work lost**: work done again because a gang was stopped or broken since its last checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from tidecell.sim.progress import Progress
from tidecell.sim.recorder import JobRecord, Recorder, Series
from tidecell.sim.world import World
from tidecell.structs.job import TaskState

NUM_POINTS = 240  # of the utilisation curve


class Spread(msgspec.Struct, frozen=True):
    """A sample in a few numbers."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float


class Shares(msgspec.Struct, frozen=True, omit_defaults=True):
    """Shares in per cent, one for each resource that the cell has."""

    cpu: float | None = None
    memory: float | None = None
    gpu: float | None = None


class Point(msgspec.Struct, frozen=True):
    """What was reserved of what there was, at one moment."""

    at_s: float
    cpu: float
    memory: float
    gpu: float


class Fairness(msgspec.Struct, frozen=True, omit_defaults=True):
    """How even it was.

    Attributes:
        jain_teams: Jain's index over teams; None with fewer than two teams.
        ratio_by_team: Mean finish-time ratio of each team.
        max_min_teams: Largest over smallest of these.
    """

    finish_time_ratio: Spread | None = None
    jain_teams: float | None = None
    max_min_teams: float | None = None
    ratio_by_team: dict[str, float] = {}


class Figures(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a simulation found; times in seconds, shares in per cent."""

    source: str
    policy: str = ""
    seed: int = 0
    num_machines: int = 0
    num_jobs: int = 0
    num_refused: int = 0
    num_finished: int = 0
    num_running: int = 0
    num_waiting: int = 0
    span_s: float = 0.0
    wait_s: Spread | None = None
    wait_s_by_band: dict[str, Spread] = {}
    completion_s: Spread | None = None
    utilisation: Shares = Shares()
    utilisation_over_time: tuple[Point, ...] = ()
    evictions: int = 0
    evictions_by_band: dict[str, int] = {}
    evicted_jobs: int = 0
    tasks_lost_with_machines: int = 0
    work_lost_s: float = 0.0
    work_lost_share: float = 0.0
    fairness: Fairness = Fairness()
    num_events: int = 0
    num_passes: int = 0
    refused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def spread(values: Iterable[float]) -> Spread | None:
    """Return a sample in a few numbers, or None if it is empty; percentiles by the nearest rank."""
    ordered = sorted(values)
    if not ordered:
        return None
    mean = math.fsum(ordered) / len(ordered)
    p50, p90, p99 = (_rank(ordered, q) for q in (0.5, 0.9, 0.99))
    return Spread(len(ordered), _round(mean), _round(p50), _round(p90), _round(p99), _round(ordered[-1]))


def _rank(ordered: Sequence[float], q: float) -> float:
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


def _round(value: float) -> float:
    return round(value, 4)


def figures_of(world: World, recorder: Recorder, policy: str = "") -> Figures:
    """Return the figures of a world that has run."""
    records = list(recorder.jobs.values())
    start_s, now_s = world.workload.start_s if world.start_s is None else world.start_s, recorder.end_s
    done = [r for r in records if r.finished_s is not None]
    waiting = [r for r in records if r.placed_s is None and r.finished_s is None]
    lost_s = math.fsum(p.lost_s for p in world.progress.values())
    done_s = math.fsum(p.done_s for p in world.progress.values())
    return Figures(
        source=world.workload.source,
        policy=policy,
        seed=world.seed,
        num_machines=sum(1 for m in world.state.machines.values() if m.up),
        num_jobs=len(records) + len(world.refusals),
        num_refused=len(world.refusals),
        num_finished=len(done),
        num_running=len(records) - len(done) - len(waiting),
        num_waiting=len(waiting),
        span_s=_round(now_s - start_s),
        wait_s=spread(_waits(records)),
        wait_s_by_band=_by_band(records),
        completion_s=spread(r.finished_s - r.submit_s for r in done if r.finished_s is not None),
        utilisation=_utilisation(recorder.series),
        utilisation_over_time=_curve(recorder.series, start_s, now_s),
        evictions=len(recorder.evictions),
        evictions_by_band=_evictions_by_band(records),
        evicted_jobs=sum(1 for r in records if r.num_evicted),
        tasks_lost_with_machines=sum(r.num_lost for r in records),
        work_lost_s=_round(lost_s),
        work_lost_share=_round(100.0 * lost_s / (done_s + lost_s)) if done_s + lost_s else 0.0,
        fairness=_fairness(done, world.progress),
        num_events=recorder.num_events,
        num_passes=world.num_ticks,
        refused=tuple(f"{r.name}: {r.error.message}" for r in world.refusals[:10]),
        notes=world.workload.notes,
    )


def _waits(records: Iterable[JobRecord]) -> list[float]:
    return [r.placed_s - r.submit_s for r in records if r.placed_s is not None]


def _by_band(records: Sequence[JobRecord]) -> dict[str, Spread]:
    out = {}
    for band in sorted({r.band for r in records}, reverse=True):
        found = spread(_waits(r for r in records if r.band is band))
        if found is not None:
            out[band.word] = found
    return out


def _evictions_by_band(records: Iterable[JobRecord]) -> dict[str, int]:
    out: dict[str, int] = {}
    for record in records:
        if record.num_evicted:
            out[record.band.word] = out.get(record.band.word, 0) + record.num_evicted
    return out


def _utilisation(series: Series) -> Shares:
    shares = [
        _round(100.0 * used / capacity) if capacity else None
        for used, capacity in zip(series.used_area, series.capacity_area, strict=True)
    ]
    return Shares(*shares)


def _curve(series: Series, start_s: float, end_s: float) -> tuple[Point, ...]:
    """Return the staircase at evenly spaced moments."""
    points = series.points
    if not points or end_s <= start_s:
        return ()
    out, at = [], 0
    for i in range(NUM_POINTS + 1):
        moment_s = start_s + (end_s - start_s) * i / NUM_POINTS
        while at + 1 < len(points) and points[at + 1][0] <= moment_s:
            at += 1
        _, used, capacity = points[at]
        out.append(
            Point(
                _round(moment_s - start_s),
                _share(used.cpu_millis, capacity.cpu_millis),
                _share(used.memory_bytes, capacity.memory_bytes),
                _share(used.gpu_millis, capacity.gpu_millis),
            )
        )
    return tuple(out)


def _share(used: int, capacity: int) -> float:
    return round(100.0 * used / capacity, 2) if capacity else 0.0


def _fairness(done: Sequence[JobRecord], progress: Mapping[str, Progress]) -> Fairness:
    ratios: list[float] = []
    by_team: dict[str, list[float]] = {}
    for record in done:
        ideal_s = progress[record.uid].job.ideal_s if record.uid in progress else None
        if record.outcome is not TaskState.SUCCEEDED or not ideal_s or record.finished_s is None:
            continue
        ratio = max(1.0, (record.finished_s - record.submit_s) / ideal_s)
        ratios.append(ratio)
        by_team.setdefault(record.spec.team, []).append(ratio)
    means = {team: math.fsum(found) / len(found) for team, found in sorted(by_team.items())}
    several = len(means) > 1
    return Fairness(
        finish_time_ratio=spread(ratios),
        jain_teams=_round(jain([1.0 / m for m in means.values()])) if several else None,
        max_min_teams=_round(max(means.values()) / min(means.values())) if several else None,
        ratio_by_team={team or "(none)": _round(mean) for team, mean in means.items()} if several else {},
    )


def jain(values: Sequence[float]) -> float:
    """Return Jain's fairness index: 1 if all are equal, 1/n if one has everything.

    Source: Jain, Chiu, Hawe, A Quantitative Measure of Fairness, DEC-TR-301, 1984.
    """
    square = math.fsum(values) ** 2
    return square / (len(values) * math.fsum(v * v for v in values)) if square else 1.0
