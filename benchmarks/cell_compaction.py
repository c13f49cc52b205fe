"""Cell compaction by Borg's method on every openb variant: machines needed, ours beside best fit and FGD.

For each variant: the 90th percentile of eleven trials under the packing policy of the simulator
(``value``), under best fit (``baseline``) and under FGD, in one run, trials paired by seed. ``ratio`` below 1
means fewer machines. At most 0.2 % of the pods may stay pending.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path

from tidecell.sim.compaction import TRIALS, machines_needed, summed_up
from tidecell.sim.openb import read_machines, read_pods
from tidecell.structs.errors import DataError

HERE = Path(__file__).resolve().parent
TRACES = Path(os.environ.get("TIDECELL_TRACES") or HERE.parent.parent / "shared" / "traces") / "fgd"


def main() -> None:
    """Run all variants and policies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--variants", nargs="+", default=[])
    parser.add_argument("--without-fgd", action="store_true", help="It takes the most time.")
    options = parser.parse_args()
    if not (TRACES / "openb_pods.parquet").exists():
        print(f"skipped: no openb trace in {TRACES.parent} (set TIDECELL_TRACES)")
        return
    machines, ratios = read_machines(TRACES / "openb_node_list_gpu_node.csv.gz"), []
    for variant, pods in read_pods([TRACES / "openb_pods.parquet"], machines.models).items():
        if options.variants and variant not in options.variants:
            continue
        p90, trials = {}, {}
        try:
            for policy in ("tidecell", "best-fit", "fgd")[: 2 if options.without_fgd else 3]:
                needed = [machines_needed(pods, machines, policy, seed) for seed in range(options.trials)]
                trials[policy] = needed
                p90[policy] = summed_up(pods, machines, policy, 0, needed).needed_p90
        except DataError as error:
            print(json.dumps({"name": f"cell_compaction_{variant}", "skipped": str(error)}), flush=True)
            continue
        ratios.append(p90["tidecell"] / p90["best-fit"])
        line = {
            "name": f"cell_compaction_{variant}",
            "value": p90["tidecell"],
            "unit": f"machines, 90th percentile of {options.trials} trials",
            "baseline": p90["best-fit"],
            "ratio": round(ratios[-1], 4),
            "fgd": p90.get("fgd"),
            "mean": {policy: round(statistics.fmean(found), 1) for policy, found in trials.items()},
        }
        print(json.dumps(line), flush=True)
    fewer = 100.0 * (1.0 - statistics.fmean(ratios))
    unit, ratio = "% fewer machines than best fit, mean of variants", round(fewer / 3.0, 3)
    print(
        json.dumps(
            {"name": "cell_compaction", "value": round(fewer, 2), "unit": unit, "baseline": 3, "ratio": ratio}
        )
    )


if __name__ == "__main__":
    main()
