"""The score cache changes no plan: it answers what full scans answer, interpreted and compiled."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from tidecell.scheduler import cached, gang, runs, sampling
from tidecell.scheduler.compiled import can_compile
from tidecell.scheduler.options import Options
from tidecell.scheduler.schedule import schedule
from tidecell.scheduler.snapshot import JobView, Snapshot, TaskView
from tidecell.structs.job import Band, JobSpec, Kind, Preemption, Priority, Replicas, Shape
from tidecell.structs.machine import Accelerator, MachineSpec
from tidecell.structs.resources import Resources

NOW_S = 1000.0
PLAIN = Options(cached=False)  # full scans, unit by unit


def _machine(rng: random.Random, number: int) -> MachineSpec:
    kinds = rng.choice([(), (), ("A100",) * 4, ("T4",) * 2, ("T4", "A100")])
    devices = tuple(Accelerator(i, kind) for i, kind in enumerate(kinds))
    capacity = Resources(rng.choice([4000, 8000, 16000]), rng.choice([16, 32]) << 30, 1000 * len(kinds))
    return MachineSpec(f"m{number:03d}", capacity, devices)


def _spec(rng: random.Random, name: str) -> JobSpec:
    gpu = rng.choice([0, 0, 0, 250, 500, 1000, 2000])
    low = rng.choice([1, 1, 1, 2, 4])
    other = Shape(Resources(500, 0, 0)) if rng.random() < 0.15 else None
    return JobSpec(
        name,
        rng.choice([Kind.JOB, Kind.JOB, Kind.SERVICE]),
        argv=("x",),
        resources=Resources(rng.choice([250, 500, 1000, 3000]), rng.choice([0, 1, 4]) << 30, gpu),
        accelerator_type=rng.choice(["", "", "A100", "T4"]) if gpu else "",
        any_of=(other,) if other is not None else (),
        replicas=Replicas(low, low + rng.choice([0, 0, 2])),
        priority=Priority(rng.choice(list(Band)), rng.choice([0, 0, 3])),
        preemption=rng.choice(list(Preemption)),
        max_duration_s=rng.choice([0.0, 20.0, 300.0]),
    )


def _snapshot(rng: random.Random) -> Snapshot:
    """A random cell: what fits was placed by the scheduler itself, and more waits than fits."""
    machines = tuple(_machine(rng, i) for i in range(rng.randint(1, 9)))
    closed = tuple(m.name for m in machines if rng.random() < 0.1)
    jobs = [_waiting(rng, f"j{i}", NOW_S - 100 + i) for i in range(rng.randint(1, 12))]
    first = Snapshot(NOW_S, machines, tuple(jobs), closed=closed)
    plan, _ = schedule(first, options=Options(cached=False))
    where = {(p.uid, p.index): p for p in plan.placements}
    running = [
        JobView(
            job.uid,
            job.spec,
            job.submitted_s,
            job.desired,
            tuple(
                TaskView(
                    t.index,
                    machine=p.machine,
                    accelerators=p.accelerators,
                    resources=p.resources,
                    placed_s=NOW_S,
                    leaving=(leaves := rng.random() < 0.1),
                    leaving_by_s=NOW_S + 30 if leaves else 0.0,
                )
                if (p := where.get((job.uid, t.index))) is not None
                else t
                for t in job.tasks
            ),
            ends_by_s=job.ends_by_s,
        )
        for job in jobs
    ]
    more = [_waiting(rng, f"k{i}", NOW_S + i) for i in range(rng.randint(0, 25))]
    return Snapshot(NOW_S + 30, machines, (*running, *more), closed=closed)


def _waiting(rng: random.Random, name: str, at_s: float) -> JobView:
    spec = _spec(rng, name)
    tasks = tuple(TaskView(i, pending=True) for i in range(spec.replicas.max))
    ends_s = at_s + spec.max_duration_s if spec.max_duration_s else 0.0
    return JobView(f"{name}.1", spec, at_s, spec.replicas.max, tasks, ends_by_s=ends_s)


@pytest.mark.parametrize("seed", range(120))
def test_plans_with_and_without_the_cache_are_equal(seed: int) -> None:
    snapshot = _snapshot(random.Random(seed))
    for ties in (0, 7):
        assert schedule(snapshot, ties, options=Options(cached=True)) == schedule(
            snapshot, ties, options=Options(cached=False)
        )


@pytest.mark.skipif(not can_compile(), reason="numba is not installed (pip install 'tidecell[scale]')")
def test_compiled_scores_lead_to_the_same_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    scans = [schedule(_snapshot(random.Random(1000 + n)), 3, options=PLAIN) for n in range(40)]
    for module in (cached, gang, runs, sampling):
        monkeypatch.setattr(module, "COMPILE_FROM", 1)
    for seed in range(40):
        snapshot = _snapshot(random.Random(1000 + seed))
        singles = _with_singles(random.Random(seed), snapshot)
        assert schedule(singles, 3, options=Options(runs=True)) == schedule(singles, 3, options=PLAIN)
        assert schedule(singles, 3, options=Options(sample=99)) == schedule(singles, 3, options=PLAIN)
        assert schedule(snapshot, 3, options=Options(cached=True)) == scans[seed]
        assert schedule(snapshot, 3, options=Options(cached=False)) == scans[seed]


def _with_singles(rng: random.Random, snapshot: Snapshot) -> Snapshot:
    """The same cell with many single tasks of few kinds beside: runs of them begin, fail and go on."""
    kinds = [replace(_spec(rng, f"s{i}"), kind=Kind.JOB, replicas=Replicas(1, 1)) for i in range(4)]
    singles = [
        JobView(f"s{i}.1", rng.choice(kinds), NOW_S + i, 1, (TaskView(0, pending=True),)) for i in range(40)
    ]
    return replace(snapshot, jobs=(*snapshot.jobs, *singles))


@pytest.mark.parametrize("seed", range(120))
def test_runs_of_single_tasks_are_placed_as_one_by_one(seed: int) -> None:
    snapshot = _with_singles(random.Random(seed), _snapshot(random.Random(seed)))
    for ties in (0, 7):
        one_by_one = schedule(snapshot, ties, options=PLAIN)
        assert schedule(snapshot, ties, options=Options(runs=True)) == one_by_one
        assert schedule(snapshot, ties, options=Options(runs=True, classes=False)) == one_by_one
        assert schedule(snapshot, ties, options=Options(cached=True, classes=False)) == one_by_one


@pytest.mark.parametrize("seed", range(60))
def test_a_sample_of_all_rows_is_a_full_look(seed: int) -> None:
    snapshot = _with_singles(random.Random(seed), _snapshot(random.Random(seed)))
    all_rows = Options(sample=len(snapshot.machines))
    assert schedule(snapshot, 3, options=all_rows) == schedule(snapshot, 3, options=PLAIN)


def test_a_small_sample_still_finds_the_only_room() -> None:
    machines = tuple(
        MachineSpec(f"m{i:02d}", Resources(4000 if i == 17 else 100, 1 << 30)) for i in range(30)
    )
    job = JobView("j.1", JobSpec("j", resources=Resources(3000)), NOW_S, 1, (TaskView(0, pending=True),))
    for seed in range(20):
        plan, _ = schedule(Snapshot(NOW_S, machines, (job,)), seed, options=Options(sample=1))
        assert [p.machine for p in plan.placements] == ["m17"]


def test_a_small_sample_spreads_what_a_full_look_packs() -> None:
    machines = tuple(MachineSpec(f"m{i:02d}", Resources(4000, 1 << 30)) for i in range(30))
    spec = JobSpec("j", resources=Resources(1000))
    jobs = tuple(JobView(f"j{i}.1", spec, NOW_S + i, 1, (TaskView(0, pending=True),)) for i in range(8))
    snapshot = Snapshot(NOW_S, machines, jobs)
    full, _ = schedule(snapshot, 5)
    sampled, _ = schedule(snapshot, 5, options=Options(sample=1))
    assert len({p.machine for p in full.placements}) == 2
    assert len({p.machine for p in sampled.placements}) == 8
    assert schedule(snapshot, 5, options=Options(sample=1))[0] == sampled


@pytest.mark.parametrize("seed", range(120))
def test_victims_by_row_are_those_of_the_whole_cell(seed: int) -> None:
    snapshot = _snapshot(random.Random(5000 + seed))
    assert schedule(snapshot, 3, options=Options(by_row=True)) == schedule(
        snapshot, 3, options=Options(by_row=False)
    )


def test_random_cells_place_preempt_reserve_and_wait() -> None:
    """The generator reaches what the equality is about."""
    seen = dict.fromkeys(("placements", "removals", "claims", "gangs", "shares", "waiting"), 0)
    for seed in range(120):
        plan, trace = schedule(_snapshot(random.Random(seed)), options=Options(cached=True))
        seen["placements"] += len(plan.placements)
        seen["removals"] += len(plan.removals)
        seen["claims"] += len(plan.claims)
        seen["gangs"] += sum(1 for p in plan.placements if p.index == 1)
        seen["shares"] += sum(1 for p in plan.placements if 0 < p.resources.gpu_millis < 1000)
        seen["waiting"] += len(trace.waiting)
    assert all(count >= 10 for count in seen.values()), seen
