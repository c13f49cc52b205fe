"""Mean completion time of trainings on Pollux's workloads: ours, Pollux's objective, Tiresias, Optimus.

16 machines x 4 GPUs, 60 s interval, 30 s restart, 8 workloads at each load, profiles and work as published
(docs/training-schedule.md). By default the loads 1x and 2x: ``--all`` adds 0.5x and 1.5x. One JSON object for
each load and policy: ``baseline`` is Pollux's published figure, ``published`` the policy's own where it
has one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tidecell.sim.pollux import read_profiles, read_published, read_workloads
from tidecell.sim.training import TrainingPolicy, TrainingReport, run_training
from tidecell.sim.training_policies import Goodput, Optimus, PolluxLike, Tiresias

HERE = Path(__file__).resolve().parent
TRACES = Path(os.environ.get("TIDECELL_TRACES") or HERE.parent.parent / "shared" / "traces") / "gpu"
SETS = {"0.5": "workloads-0.5", "1.0": "workloads", "1.5": "workloads-1.5", "2.0": "workloads-2.0"}
POLICIES: dict[str, Callable[[], TrainingPolicy]] = {
    "goodput": Goodput,
    "goodput-blind": lambda: Goodput(knows_epochs=False),
    "pollux-like": PolluxLike,
    "tiresias": Tiresias,
    "optimus": Optimus,
}


def published_h(config: str) -> float:
    """Return the mean of the workloads' published mean completion times."""
    by_workload = read_published(TRACES / "pollux_published_jcts.parquet", config)
    return statistics.fmean(statistics.fmean(jobs.values()) for jobs in by_workload.values()) / 3600


def hours(reports: list[TrainingReport]) -> float:
    """Return the mean of the workloads' mean completion times."""
    return statistics.fmean(r.jct_mean_s for r in reports) / 3600


def result(load: str, policy: str, reports: list[TrainingReport], cpu_s: float) -> dict[str, object]:
    """Return one line of output."""
    pollux_h = published_h(f"pollux-{load}")
    line: dict[str, object] = {
        "name": f"training_mean_jct_{load}x_{policy}",
        "value": round(hours(reports), 4),
        "unit": "h",
        "baseline": round(pollux_h, 4),
        "ratio": round(hours(reports) / pollux_h, 4),
        "by_workload": [round(r.jct_mean_s / 3600, 4) for r in reports],
        "median_h": round(statistics.fmean(r.jct_median_s for r in reports) / 3600, 4),
        "p99_h": round(statistics.fmean(r.jct_p99_s for r in reports) / 3600, 3),
        "makespan_h": round(statistics.fmean(r.makespan_s for r in reports) / 3600, 2),
        "gpu_utilisation": round(statistics.fmean(r.gpu_utilisation for r in reports), 4),
        "restarts_per_job": round(sum(r.restarts for r in reports) / sum(r.num_jobs for r in reports), 2),
        "cpu_s": round(cpu_s, 1),
    }
    if policy in ("tiresias", "optimus"):
        line["published"] = round(published_h(f"{policy}-{load}"), 4)
    return line


def main(arguments: list[str]) -> int:
    """Run the loads asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="all four loads, not 1x and 2x alone")
    parser.add_argument("--policy", action="append", choices=sorted(POLICIES), help="only these")
    options = parser.parse_args(arguments)
    if not TRACES.is_dir():
        print(f"skipped: no traces in {TRACES}; set TIDECELL_TRACES to their folder", file=sys.stderr)
        return 0
    profiles = read_profiles(
        TRACES / "sia_throughput_profiles.parquet", TRACES / "sia_validation_profiles.parquet"
    )
    for load in SETS if options.all else ("1.0", "2.0"):
        workloads = read_workloads(TRACES / "pollux_workloads.parquet", f"simulator/{SETS[load]}")
        for policy in options.policy or POLICIES:
            began_s = time.process_time()
            reports = [run_training(jobs, profiles, POLICIES[policy]()) for jobs in workloads.values()]
            print(json.dumps(result(load, policy, reports, time.process_time() - began_s)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
