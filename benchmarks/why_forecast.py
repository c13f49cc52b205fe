"""Does the range of `tide why` hold? Expected starts on slices of the Philly trace, and what then happened.

The trace is cut into windows of 2,500 jobs; each runs on a cell so small that it queues, in virtual time,
from empty. While it goes on, jobs that wait are asked when they start; the answer rests on what the cell
remembers, as live. Windows with an even number chose the method and its constants, those with an odd number
measure it. The baseline is what one would do without any of it: the quantiles of past waits of jobs of the
same size that had waited as long.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tidecell.cell.past import history_of
from tidecell.cell.runtime import Outcome
from tidecell.cell.snapshot import take_snapshot
from tidecell.cell.state import CellState
from tidecell.client.views import StartRange
from tidecell.scheduler.durations import History
from tidecell.scheduler.startrange import RATE, start_range
from tidecell.scheduler.waits import MIN_EXAMPLES, size_of
from tidecell.server.__main__ import collect_rarely
from tidecell.sim.published import read_philly
from tidecell.sim.recorder import Recorder
from tidecell.sim.table import read_table
from tidecell.sim.trace import read_fleet
from tidecell.sim.workload import Behaviour, SimJob, Workload
from tidecell.sim.world import ORIGIN_S, World

ROOT = Path(os.environ.get("TIDECELL_TRACES", Path(__file__).parents[1] / ".." / "shared" / "traces"))


WINDOW = 2500
FIRST, LAST = 3, 32  # windows before are of weeks in which the trace has hardly begun
LOAD = 0.8  # of the machines, by what is submitted: bursts queue
SLACK_S = 60.0  # what is decided together is up to so far apart


@dataclass
class Answer:
    """What was asked, what was said, and what happened."""

    window: int
    uid: str
    asked_s: float
    found: StartRange | None
    simple: tuple[float, float] | None
    took_s: float | None = None  # None: it never started

    @property
    def is_open(self) -> bool:
        """Whether no end was named."""
        return self.found is not None and self.found.latest_s is None


class Asker:
    """Asks about a waiting job, at even moments of a window's time."""

    def __init__(self, world: World, window: int, moments: list[float]) -> None:
        self.world, self.window, self.moments = world, window, moments
        self.answers: list[Answer] = []
        self.cpu_s = 0.0
        self.rng = random.Random(window)

    def __call__(self, now_s: float, outcome: Outcome, state: CellState) -> None:
        """Take in one tick."""
        if not self.moments or now_s < self.moments[0]:
            return
        while self.moments and self.moments[0] <= now_s:
            self.moments.pop(0)
        waiting = list(self.world.runtime.trace.waiting)
        if not waiting:
            return
        at_s, uid = self.world.clock.now_s, self.rng.choice(waiting)
        began_s = time.process_time()
        history = history_of(state, at_s)
        found = start_range(take_snapshot(state, at_s), uid, history, self.world.seed)
        self.cpu_s += time.process_time() - began_s
        self.answers.append(Answer(self.window, uid, now_s, found, past_waits(history, uid, at_s)))


def past_waits(history: History, uid: str, at_s: float) -> tuple[float, float] | None:
    """Return the range that 5 and 95 % of past waits of the same size give, of those that lasted as long."""
    mine = next(w for w in history.waits if w.uid == uid)
    waited_s, size = at_s - mine.since_s, size_of(mine.spec)
    past = sorted(
        w.until_s - w.since_s - waited_s
        for w in history.waits
        if w.started and size_of(w.spec) == size and w.until_s - w.since_s > max(SLACK_S, waited_s)
    )
    if len(past) < MIN_EXAMPLES:
        return None
    return past[int(0.05 * len(past))], past[min(len(past) - 1, int(0.95 * len(past)))]


def emit(name: str, value: float, unit: str, baseline: float | None = None) -> None:
    """Print one result."""
    ratio = round(value / baseline, 3) if baseline else None
    print(
        json.dumps(
            {"name": name, "value": round(value, 3), "unit": unit, "baseline": baseline, "ratio": ratio}
        ),
        flush=True,
    )


def gpus(job: SimJob) -> int:
    """Return how many accelerators a job has in all."""
    return job.spec.resources.gpu_millis // 1000 * job.spec.replicas.max


def ask_window(
    number: int, jobs: list[SimJob], num_questions: int, load: float
) -> tuple[list[Answer], float]:
    """Run one window and ask; return the answers, and seconds of CPU for them."""
    begin_s, end_s = jobs[0].submit_s, jobs[-1].submit_s
    work = sum(gpus(j) * min(j.work_s or 0.0, end_s - j.submit_s) for j in jobs)
    num_machines = max(6, round(work / (end_s - begin_s) / 8 / load))
    fleet = read_fleet(f"{num_machines}:gpu=8,cpu=64")
    some = tuple(j for j in jobs if gpus(j) <= 2 * num_machines)
    world = World(Workload(tuple(fleet.machines), some), seed=1, behaviour=Behaviour(batch_s=60.0))
    span_s = end_s - begin_s
    moments = [begin_s + span_s * (0.35 + 0.6 * i / num_questions) for i in range(num_questions)]
    recorder, asker = Recorder(), Asker(world, number, moments)
    world.observers += [recorder, asker]
    world.open()
    world.run(end_s + 4 * 86_400.0)
    for answer in asker.answers:
        placed_s = recorder.jobs[answer.uid].placed_s
        answer.took_s = placed_s - answer.asked_s if placed_s is not None else None
    return asker.answers, asker.cpu_s


def main() -> None:
    """Run the windows, ask, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--develop", action="store_true", help="the windows that chose the method")
    parser.add_argument("--load", type=float, default=LOAD, help="of the machines; less of them, more waits")
    parser.add_argument("--windows", type=int, default=0, help="only so many")
    parser.add_argument("--questions", type=int, default=40, help="moments of a window at which is asked")
    args = parser.parse_args()
    path = ROOT / "gpu" / "philly_jobs_pollux.csv.gz"
    if not path.exists():
        print(f"skipped: {path} is not there (docs/sim.md says what it is)", file=sys.stderr)
        return
    collect_rarely()
    jobs, _ = read_philly(read_table(path), read_fleet("9:gpu=8,cpu=64").machines)
    numbers = [k for k in range(FIRST, LAST) if k % 2 != args.develop and (k + 1) * WINDOW <= len(jobs)]
    answers: list[Answer] = []
    cpu_s = 0.0
    for number in numbers[: args.windows or None]:
        found, took_s = ask_window(
            number, jobs[number * WINDOW : (number + 1) * WINDOW], args.questions, args.load
        )
        answers += found
        cpu_s += took_s
        held = [is_inside(a) for a in found if a.found is not None and a.found.rate]
        print(f"window {number}: {sum(held)} of {len(held)} held, {len(found)} asked", file=sys.stderr)
    report(answers, cpu_s)


def is_inside(answer: Answer) -> bool:
    """Whether the truth is in the range; one that never starts is in a range without an end."""
    return not is_early(answer) and not is_late(answer)


def is_early(answer: Answer) -> bool:
    """Whether it started before the range."""
    low_s = bounds_s(answer)[0]
    return answer.took_s is not None and answer.took_s < low_s - SLACK_S


def is_late(answer: Answer) -> bool:
    """Whether it started after the range, or never."""
    return (answer.took_s if answer.took_s is not None else math.inf) > bounds_s(answer)[1] + SLACK_S


def bounds_s(answer: Answer) -> tuple[float, float]:
    """Return the range in seconds from the question."""
    found, at_s = answer.found, answer.asked_s + ORIGIN_S
    assert found is not None
    return found.earliest_s - at_s, found.latest_s - at_s if found.latest_s is not None else math.inf


def share(found: Sequence[bool]) -> float:
    """Return how many of these are so, in per cent."""
    return 100.0 * sum(found) / max(1, len(found))


def median(values: list[float]) -> float:
    """Return the middle one."""
    return sorted(values)[len(values) // 2] if values else 0.0


def report(answers: list[Answer], cpu_s: float) -> None:
    """Print how often the truth fell into the range, and how wide the ranges were."""
    rated = [a for a in answers if a.found is not None and a.found.rate]
    ended = [a for a in rated if not a.is_open]
    emit("why_forecast_windows", len({a.window for a in rated}), "windows")
    emit("why_forecast_questions", len(answers), "questions")
    emit("why_forecast_answered", share([a in rated for a in answers]), "% with a rate")
    emit("why_forecast_rated", len(rated), "answers with a rate")
    emit("why_forecast_held", share([is_inside(a) for a in rated]), "% of them", 100.0 * RATE)
    emit("why_forecast_early", share([is_early(a) for a in rated]), "% before the range")
    emit("why_forecast_late", share([is_late(a) for a in rated]), "% after the range")
    emit("why_forecast_without_end", share([a.is_open for a in rated]), "% name no end")
    emit(
        "why_forecast_ended_held",
        share([is_inside(a) for a in ended]),
        "% of those with an end",
        100.0 * RATE,
    )
    started = [a for a in ended if a.took_s is not None]
    widths = [(bounds_s(a)[1] - bounds_s(a)[0]) for a in started]
    ratios = [w / (a.took_s + SLACK_S) for w, a in zip(widths, started, strict=True) if a.took_s is not None]
    emit("why_forecast_width_p50", median(widths) / 3600.0, "h")
    emit("why_forecast_width_over_wait_p50", median(ratios), "x")
    simple = [(a.took_s, a.simple) for a in answers if a.took_s is not None and a.simple is not None]
    hit = [low - SLACK_S <= took_s <= high + SLACK_S for took_s, (low, high) in simple]
    emit(
        "why_forecast_baseline_held", share(hit), f"% of {len(simple)}, quantiles of past waits", 100.0 * RATE
    )
    emit(
        "why_forecast_baseline_width_over_wait_p50",
        median([(high - low) / (took_s + SLACK_S) for took_s, (low, high) in simple]),
        "x",
    )
    emit("why_forecast_cpu_per_answer", 1000.0 * cpu_s / max(1, len(answers)), "ms (shared machine)")


if __name__ == "__main__":
    main()
