"""The range of an expected start holds at the rate it states, where work goes on as it did."""

from __future__ import annotations

import math
import random

from tidecell.cell.past import history_of
from tidecell.cell.runtime import Outcome
from tidecell.cell.snapshot import take_snapshot
from tidecell.cell.state import CellState
from tidecell.client.views import StartRange
from tidecell.scheduler.startrange import RATE, start_range
from tidecell.sim.recorder import Recorder
from tidecell.sim.simple import make_machine
from tidecell.sim.workload import Behaviour, SimJob, Workload
from tidecell.sim.world import World
from tidecell.structs.job import JobSpec
from tidecell.structs.resources import Resources

NUM_JOBS = 300
NUM_CELLS = 5
EVERY_S = 800.0  # far apart: answers of the same queue are one answer


class Asker:
    """Asks about one waiting job now and then, once there is a past."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.rng, self.next_s = world, random.Random(seed), 5000.0
        self.found: list[tuple[str, StartRange]] = []

    def __call__(self, now_s: float, outcome: Outcome, state: CellState) -> None:
        """Take in one tick."""
        waiting = list(self.world.runtime.trace.waiting)
        if now_s < self.next_s or not waiting:
            return
        self.next_s = now_s + EVERY_S
        at_s, uid = self.world.clock.now_s, self.rng.choice(waiting)
        found = start_range(take_snapshot(state, at_s), uid, history_of(state, at_s))
        if found is not None and found.rate:
            self.found.append((uid, found))


def asked(seed: int) -> list[bool]:
    """Run a cell with steady, heavy-tailed work, and return which answers held."""
    rng = random.Random(seed)
    jobs, at_s = [], 0.0
    for number in range(NUM_JOBS):
        at_s += rng.expovariate(1 / 56.0)
        cpu = rng.choice((1, 2))
        spec = JobSpec(f"j{number}", run="x", resources=Resources(1000 * cpu, 0))
        jobs.append(SimJob(spec, at_s, min(4000.0, rng.lognormvariate(4.4, 1.0))))
    fleet = (make_machine("a", 2000, 0), make_machine("b", 2000, 0))
    world = World(Workload(fleet, tuple(jobs)), behaviour=Behaviour(starts_after_s=0.0, batch_s=10.0))
    recorder, asker = Recorder(), Asker(world, seed)
    world.observers += [recorder, asker]
    world.open()
    world.run()
    return [holds(found, recorder.jobs[uid].placed_s, world.offset_s) for uid, found in asker.found]


def holds(found: StartRange, placed_s: float | None, offset_s: float) -> bool:
    if placed_s is None:
        return found.latest_s is None
    at_s = placed_s + offset_s
    return found.earliest_s - 10.0 <= at_s <= (math.inf if found.latest_s is None else found.latest_s + 10.0)


def test_the_stated_rate_holds_for_steady_work_within_binomial_bounds():
    held = [one for seed in range(NUM_CELLS) for one in asked(seed)]
    assert len(held) >= 50
    share, deviation = sum(held) / len(held), math.sqrt(RATE * (1 - RATE) / len(held))
    assert share >= RATE - 2.5 * deviation, f"{sum(held)} of {len(held)}"
