"""`tide sim --policy`: how full accelerators get when pods arrive and none leaves (FGD's protocol); with
`--compact`, how few machines hold the pods (Borg's cell compaction)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.progress import track

from tidecell.cli.show import err, out, print_json, print_table
from tidecell.sim.compaction import TRIALS, Compaction, machines_needed, summed_up
from tidecell.sim.openb import Machines, Pods, machines_of, pods_of, read_pods
from tidecell.sim.packing import PackingReport, run_packing
from tidecell.sim.table import read_table
from tidecell.sim.trace import check_format, detect_format, read_fleet, read_workload
from tidecell.structs.errors import DataError


def pack_trace(
    trace: str, machines: str | None, fmt: str, variant: str, policy: str, seed: int, arrived: float
) -> list[PackingReport]:
    """Run the protocol on a list of pods, or on one variant of several; of another format on its replicas.

    Raises:
        DataError: The files, the variant or the policy are not as they should be.
    """
    if not 0 < arrived <= 10:
        raise DataError(f"--arrived {arrived:g} is not between 0 and 10", "1.3 is FGD's: 130 % arrive")
    rows, lists = _read(trace, machines, fmt, variant)
    return [run_packing(pods, rows, policy, seed, arrived) for pods in lists]


def compact_trace(
    trace: str, machines: str | None, fmt: str, variant: str, policy: str, seed: int
) -> list[Compaction]:
    """Return how few machines hold a list of pods, or each variant of several; shows how far it is.

    Raises:
        DataError: The files, the variant or the policy are not as they should be, or the pods fit nowhere.
    """
    rows, lists = _read(trace, machines, fmt, variant)
    return [_compact(pods, rows, policy, seed) for pods in lists]


def _compact(pods: Pods, machines: Machines, policy: str, seed: int) -> Compaction:
    title, hidden = f"trials {pods.variant}".strip(), not err.is_terminal
    trials = track(range(seed, seed + TRIALS), title, console=err, transient=True, disable=hidden)
    needed = [machines_needed(pods, machines, policy, trial) for trial in trials]
    return summed_up(pods, machines, policy, seed, needed)


def _read(trace: str, machines: str | None, fmt: str, variant: str) -> tuple[Machines, list[Pods]]:
    """Return the machines, and the lists of pods that were asked for."""
    if machines is None:
        raise DataError(
            f"{trace} says nothing of machines", "give --machines FILE, or --machines 250:cpu=64,gpu=8"
        )
    fleet = read_fleet(machines)
    rows = machines_of(fleet.machines, machines)
    table = read_table(Path(trace))
    fmt = check_format(fmt) if fmt else detect_format(table)
    if fmt != "openb":
        return rows, [pods_of(read_workload(table, fleet, fmt, variant).jobs, rows.models)]
    lists = read_pods([Path(trace)], rows.models)
    if variant and variant not in lists:
        raise DataError(f"{trace} has no variant '{variant}'", f"there are {', '.join(sorted(lists))}")
    return rows, [lists[variant]] if variant else list(lists.values())


def _print_reports(reports: Sequence[object]) -> None:
    print_json(reports[0] if len(reports) == 1 else reports)


def print_compaction(reports: list[Compaction], as_json: bool) -> None:
    """Print reports; as JSON one object, or a list where there are several variants."""
    if as_json:
        _print_reports(reports)
        return
    columns = ("VARIANT", "POLICY", "SEED", "PODS", "MACHINES", "NEEDED (P90)", "LEAST", "MOST", "SHARE")
    print_table(columns, [_compaction_row(r) for r in reports])
    out.print("machines that hold the pods, packed from scratch with at most 0.2 % of them pending")


def _compaction_row(report: Compaction) -> tuple[str, ...]:
    counts = (report.seed, report.pods, report.machines, report.needed_p90)
    ends = (min(report.needed), max(report.needed))
    return (report.variant or "-", report.policy, *map(str, (*counts, *ends)), f"{report.share:.1f}%")


def print_packing(reports: list[PackingReport], as_json: bool) -> None:
    """Print reports; as JSON one object, or a list where there are several variants."""
    if as_json:
        _print_reports(reports)
        return
    marks = sorted({min(m, len(r.allocated)) for r in reports for m in (50, 80, 90, 100, 110, 120, 130)})
    columns = ("VARIANT", "POLICY", "SEED", *(f"AT {m}%" for m in marks), "BOUND", "NO ROOM FOR")
    print_table(columns, [_row(r, marks) for r in reports])
    out.print("accelerators allocated, in % of all, when so much of them has been asked for")


def _row(report: PackingReport, marks: list[int]) -> tuple[str, ...]:
    shares = [f"{report.allocated[m - 1]:.2f}" if m <= len(report.allocated) else "-" for m in marks]
    failed = f"{sum(report.failed.values())} pods"
    return (report.variant or "-", report.policy, str(report.seed), *shares, f"{report.bound:.2f}", failed)
