"""Does the range of `tide why` hold? Expected starts on the Philly trace against what then happened.

Every so often in a simulated cell, a waiting job is asked when it will start; the answer rests on the
durations of work finished before, as live. No system is known to publish such a rate, so there is no
baseline but the rate that the answer itself states: 90 %.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from tidecell.cell.past import history_of
from tidecell.cell.runtime import Outcome
from tidecell.cell.snapshot import take_snapshot
from tidecell.cell.state import CellState
from tidecell.client.views import StartRange
from tidecell.scheduler.startrange import RATE, start_range
from tidecell.sim.published import read_philly
from tidecell.sim.recorder import Recorder
from tidecell.sim.report import spread
from tidecell.sim.table import read_table
from tidecell.sim.trace import read_fleet
from tidecell.sim.workload import Behaviour, Workload
from tidecell.sim.world import World

ROOT = Path(os.environ.get("TIDECELL_TRACES", Path(__file__).parents[1] / ".." / "shared" / "traces"))


class Asker:
    """Asks about the oldest waiting job that was not asked about, at most once in a while."""

    def __init__(self, world: World, every_s: float, limit: int) -> None:
        self.world, self.every_s, self.limit = world, every_s, limit
        self.asked: dict[str, tuple[float, StartRange | None]] = {}
        self.next_s = 0.0
        self.cpu_s = 0.0

    def __call__(self, now_s: float, outcome: Outcome, state: CellState) -> None:
        """Take in one tick."""
        waiting = [uid for uid in self.world.runtime.trace.waiting if uid not in self.asked]
        if now_s < self.next_s or not waiting or len(self.asked) >= self.limit:
            return
        self.next_s = now_s + self.every_s
        began_s = time.process_time()
        at_s = self.world.clock.now_s
        uid = waiting[len(self.asked) % len(waiting)]  # some from the head of the queue, some from behind
        found = start_range(take_snapshot(state, at_s), uid, history_of(state, at_s), self.world.seed)
        self.cpu_s += time.process_time() - began_s
        self.asked[uid] = (now_s, found)


def emit(name: str, value: float, unit: str, baseline: float | None = None) -> None:
    """Print one result."""
    ratio = round(value / baseline, 3) if baseline else None
    print(
        json.dumps(
            {"name": name, "value": round(value, 3), "unit": unit, "baseline": baseline, "ratio": ratio}
        )
    )


def main() -> None:
    """Run the trace, ask, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machines", type=int, default=24, help="of 8 GPUs each")
    parser.add_argument("--jobs", type=int, default=12000)
    parser.add_argument("--skip", type=int, default=2000, help="jobs of the trace left out at its beginning")
    parser.add_argument("--questions", type=int, default=150)
    parser.add_argument("--every-h", type=float, default=4.0, help="hours between questions")
    args = parser.parse_args()
    path = ROOT / "gpu" / "philly_jobs_pollux.csv.gz"
    if not path.exists():
        print(f"skipped: {path} is not there (docs/sim.md says what it is)", file=sys.stderr)
        return
    fleet = read_fleet(f"{args.machines}:gpu=8,cpu=64")
    jobs, _ = read_philly(read_table(path), fleet.machines)
    few = tuple(jobs[args.skip : args.skip + args.jobs])
    world = World(Workload(tuple(fleet.machines), few), seed=1, behaviour=Behaviour(batch_s=60.0))
    recorder, asker = Recorder(), Asker(world, 3600.0 * args.every_h, args.questions)
    world.observers += [recorder, asker]
    world.open()
    world.run(few[-1].submit_s)
    report(recorder, asker, world.offset_s)


def report(recorder: Recorder, asker: Asker, offset_s: float) -> None:
    """Print how often the truth fell into the range, and how wide the ranges were."""
    inside, early, late, widths, errors = 0, 0, 0, [], []
    for uid, (asked_s, found) in asker.asked.items():
        placed_s = recorder.jobs[uid].placed_s
        if found is None:
            continue
        if placed_s is None:  # still waiting when the trace ended: late if the range is over, else not known
            over = found.latest_s - offset_s < recorder.end_s
            late += over
            continue
        low_s, high_s = found.earliest_s - offset_s, found.latest_s - offset_s
        early += placed_s < low_s - 60.0  # what is decided together is up to 60 s apart
        late += placed_s > high_s + 60.0
        inside += low_s - 60.0 <= placed_s <= high_s + 60.0
        widths.append(high_s - low_s)
        errors.append(abs(found.expected_s - offset_s - placed_s) / 3600.0)
        del asked_s
    total = inside + early + late
    emit("why_forecast_coverage", 100.0 * inside / max(1, total), "%", 100.0 * RATE)
    emit("why_forecast_early", 100.0 * early / max(1, total), "%")
    emit("why_forecast_late", 100.0 * late / max(1, total), "%")
    emit("why_forecast_answered", 100.0 * total / max(1, len(asker.asked)), "% of questions")
    emit("why_forecast_questions", float(total), "answers checked")
    if widths:
        width, error = spread(widths), spread(errors)
        assert width is not None
        assert error is not None
        emit("why_forecast_width_p50", width.p50 / 3600.0, "h")
        emit("why_forecast_error_p50", error.p50, "h")
    emit(
        "why_forecast_cpu_per_answer", 1000.0 * asker.cpu_s / max(1, len(asker.asked)), "ms (shared machine)"
    )


if __name__ == "__main__":
    main()
