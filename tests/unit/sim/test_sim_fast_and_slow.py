"""What makes the simulator fast decides nothing: without it, the same trace has the same report."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from tidecell.cell.snapshot import take_snapshot
from tidecell.cell.state import CellState
from tidecell.scheduler.snapshot import Snapshot
from tidecell.sim.recorder import Recorder
from tidecell.sim.report import Figures, figures_of
from tidecell.sim.simple import make_machine
from tidecell.sim.workload import Behaviour, LoadPoint, MachineChange, SimJob, Workload
from tidecell.sim.world import World
from tidecell.structs.job import (
    Band,
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
from tidecell.structs.messages import ReplicaDrained, Tick
from tidecell.structs.resources import GPU, Resources
from tidecell.structs.work import Array

AGAIN = Retry((RetryOn.INTERRUPTION,), 100)


class FreshPicture:
    """Looks at the whole cell each time, and keeps nothing."""

    def __init__(self, state: CellState) -> None:
        self._state = state

    def any_waits(self, now_s: float) -> bool:
        return any(t.pending for job in take_snapshot(self._state, now_s).jobs for t in job.tasks)

    def look(self, now_s: float) -> tuple[Snapshot, None]:
        return take_snapshot(self._state, now_s), None


class PatientWorld(World):
    """Ticks at every moment, and at every heartbeat, whether anything may have changed or not."""

    def _moves(self) -> bool:
        return bool(len(self.clock)) and bool(self.state.live_uids)

    def _pass(self, now_s: float) -> None:
        inputs = [told for _, happen in self.clock.take_until(now_s) if (told := happen()) is not None]
        inputs += [ReplicaDrained(ref) for ref in self._drained]
        self._drained.clear()
        if now_s >= self._beat_s or self._tick_due:
            self._beat_s, self._tick_due = now_s + self.behaviour.heartbeat_s, False
            inputs.append(Tick())
        self._tick(inputs)


def workload(seed: int) -> Workload:
    """A few hours of a busy small cell: all bands, gangs, arrays, elastic work, a service, a failure."""
    rng = random.Random(seed)
    fleet = tuple(make_machine(f"m{i}", 16_000, 64 << 30, 4 if i < 4 else 0, "H100") for i in range(6))
    jobs = []
    for number in range(36):
        gpus = rng.choice((0, 0, 1, 2, 4))
        more: dict[str, object] = rng.choice(
            (
                {},
                {"replicas": Replicas(2, 2)},
                {"replicas": Replicas(1, 3), "preemption": Preemption.ABOVE_MIN},
                {"array": Array(6), "replicas": Replicas(0, 3)},
                {"max_duration_s": 900.0, "min_runtime_s": 60.0},
                {"checkpoint": Checkpoint("c", 300.0)},
            )
        )
        priority = Priority(rng.choice((Band.BEST_EFFORT, Band.BATCH, Band.BATCH, Band.PRODUCTION)))
        spec = JobSpec(
            f"j{number}",
            run="x",
            resources=Resources(rng.choice((1, 4, 8)) * 1000, 4 << 30, gpus * GPU),
            priority=priority,
            retry=AGAIN,
            **more,  # type: ignore[arg-type]
        )
        jobs.append(SimJob(spec, float(rng.randint(0, 7200)), round(rng.lognormvariate(6.6, 1.0), 1)))
    chat = JobSpec(
        "chat",
        kind=Kind.SERVICE,
        run="x",
        resources=Resources(2000, 4 << 30, GPU),
        retry=AGAIN,
        priority=Priority(Band.PRODUCTION),
        replicas=Replicas(1, 4),
        scaling=Scaling(target=8.0),
    )
    jobs.append(SimJob(chat, 0.0, None, stop_s=9000.0))
    load = tuple(LoadPoint(600.0 * i, "chat", rng.uniform(2, 30)) for i in range(1, 14))
    gone = (MachineChange(3000.0, fleet[0], up=False), MachineChange(5000.0, fleet[0], up=True))
    return Workload(fleet, tuple(sorted(jobs, key=lambda j: j.submit_s)), gone, load, f"seed {seed}")


def run(kind: type[World], seed: int, batch_s: float) -> tuple[list[tuple[float, str, int, str]], Figures]:
    world = kind(workload(seed), seed, Behaviour(batch_s=batch_s))
    recorder = Recorder()
    world.observers.append(recorder)
    world.open()
    world.run()
    return recorder.starts, replace(figures_of(world, recorder), num_passes=0)


@pytest.mark.parametrize(("seed", "batch_s"), [(1, 0.0), (2, 10.0)])
def test_a_kept_picture_and_skipped_moments_change_no_start_and_no_figure(
    seed: int, batch_s: float, monkeypatch: pytest.MonkeyPatch
):
    fast = run(World, seed, batch_s)
    monkeypatch.setattr("tidecell.cell.runtime.Picture", FreshPicture)
    slow = run(PatientWorld, seed, batch_s)
    assert fast[0] == slow[0]
    assert fast[1] == slow[1]
    assert fast[1].evictions > 0
