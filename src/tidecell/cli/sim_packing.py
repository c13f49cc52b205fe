"""`tide sim --policy`: how full accelerators get when pods arrive and none leaves (FGD's protocol)."""

from __future__ import annotations

from pathlib import Path

from tidecell.cli.show import out, print_json, print_table
from tidecell.sim.openb import read_machines, read_pods
from tidecell.sim.packing import PackingReport, run_packing
from tidecell.structs.errors import DataError


def pack_trace(
    trace: str, machines: str | None, variant: str, policy: str, seed: int, arrived: float
) -> list[PackingReport]:
    """Run the protocol on a list of pods, or on one variant of several.

    Raises:
        DataError: The files, the variant or the policy are not as they should be.
    """
    if machines is None:
        raise DataError(f"{trace} says nothing of machines", "give --machines FILE, an openb node list")
    if not 0 < arrived <= 10:
        raise DataError(f"--arrived {arrived:g} is not between 0 and 10", "1.3 is FGD's: 130 % arrive")
    rows = read_machines(Path(machines))
    lists = read_pods([Path(trace)], rows.models)
    if variant and variant not in lists:
        raise DataError(f"{trace} has no variant '{variant}'", f"there are {', '.join(sorted(lists))}")
    chosen = [variant] if variant else list(lists)
    return [run_packing(lists[name], rows, policy, seed, arrived) for name in chosen]


def print_packing(reports: list[PackingReport], as_json: bool) -> None:
    """Print reports; as JSON one object, or a list where there are several variants."""
    if as_json:
        print_json(reports[0] if len(reports) == 1 else reports)
        return
    marks = sorted({min(m, len(r.allocated)) for r in reports for m in (50, 80, 90, 100, 110, 120, 130)})
    columns = ("VARIANT", "POLICY", "SEED", *(f"AT {m}%" for m in marks), "BOUND", "NO ROOM FOR")
    print_table(columns, [_row(r, marks) for r in reports])
    out.print("accelerators allocated, in % of all, when so much of them has been asked for")


def _row(report: PackingReport, marks: list[int]) -> tuple[str, ...]:
    shares = [f"{report.allocated[m - 1]:.2f}" if m <= len(report.allocated) else "-" for m in marks]
    failed = f"{sum(report.failed.values())} pods"
    return (report.variant or "-", report.policy, str(report.seed), *shares, f"{report.bound:.2f}", failed)
