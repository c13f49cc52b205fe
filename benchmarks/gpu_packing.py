"""GPU packing by FGD's protocol: every openb variant at hand, seeds 42 to 51, one policy with the same
constants.

For each variant: allocated share of the accelerators when 130 % have arrived, mean of ten seeds, ours beside
FGD's published figure (``baseline``), our own FGD in the same run, best fit, and an upper bound that no
policy can pass. ``ratio`` is ours over the published figure.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
from pathlib import Path

from tidecell.sim.openb import read_machines, read_pods
from tidecell.sim.packing import PackingReport, run_packing

HERE = Path(__file__).resolve().parent
TRACES = Path(os.environ.get("TIDECELL_TRACES") or HERE.parent.parent / "shared" / "traces") / "fgd"
SEEDS = range(42, 52)


def published() -> dict[str, float]:
    """Return FGD's published share at 130 % by variant."""
    with (TRACES / "published_allocation.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["sc_policy"].endswith("FGD")]
    return {r["variant"]: float(r["130_mean"]) for r in rows}


def final(reports: list[PackingReport]) -> float:
    """Return the mean share at the end."""
    return statistics.fmean(r.allocated[-1] for r in reports)


def main() -> None:
    """Run all variants and policies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="How many of the ten.")
    parser.add_argument("--policies", nargs="+", default=["tidecell", "fgd", "best-fit"])
    options = parser.parse_args()
    if not (TRACES / "openb_pods.parquet").exists():
        print(f"skipped: no openb trace in {TRACES.parent} (set TIDECELL_TRACES)")
        return
    machines = read_machines(TRACES / "openb_node_list_gpu_node.csv.gz")
    figures, gains = published(), []
    for variant, pods in read_pods([TRACES / "openb_pods.parquet"], machines.models).items():
        runs = {
            policy: [run_packing(pods, machines, policy, seed) for seed in SEEDS[: options.seeds]]
            for policy in options.policies
        }
        ours, base = final(runs["tidecell"]), figures.get(variant)
        line: dict[str, object] = {
            "name": f"gpu_packing_{variant}",
            "value": round(ours, 3),
            "unit": "% allocated at 130 % arrived",
            "baseline": base,
            "ratio": round(ours / base, 4) if base else None,
            "bound": round(statistics.fmean(r.bound for r in runs["tidecell"]), 2),
            "seeds": options.seeds,
        }
        others = {p.replace("-", "_"): round(final(reports), 3) for p, reports in runs.items()}
        print(json.dumps({**line, **{k: v for k, v in others.items() if k != "tidecell"}}), flush=True)
        gains += [ours - base] if base else []
    mean = statistics.fmean(gains)
    print(
        json.dumps(
            {
                "name": "gpu_packing_mean_gain",
                "value": round(mean, 3),
                "unit": "points above FGD's published",
                "baseline": 0.5,
                "ratio": round(mean / 0.5, 3),
                "least": round(min(gains), 3),
            }
        )
    )


if __name__ == "__main__":
    main()
