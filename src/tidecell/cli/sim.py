"""`tide sim`: the cell in virtual time, on a trace or on a snapshot of a live cell."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from tidecell.cli.show import err, out, print_json, print_table, span
from tidecell.client.units import UnitError, parse_duration
from tidecell.sim.plots import check_picture, draw_figures, draw_packing
from tidecell.sim.recorder import Recorder
from tidecell.sim.report import Figures, Spread, figures_of
from tidecell.sim.trace import check_format, detect_format, has_times, read_fleet, read_workload
from tidecell.sim.workload import Behaviour, LoadPoint
from tidecell.sim.world import World
from tidecell.structs.errors import DataError, TidecellError

STARTUP_S = 1.0


@click.command()
@click.option(
    "--from", "source", metavar="FILE", help="Begin with a cell: `live`, or a file of `tide snapshot save`."
)
@click.option("--add", "added", metavar="FILE", help="With --from: submit the jobs of this spec now.")
@click.option(
    "--duration", "durations", multiple=True, metavar="NAME=2h", help="With --from: how long a job takes."
)
@click.option(
    "--trace", metavar="FILE", help="Jobs: CSV (plain or gzip) or Parquet; docs/sim.md has the formats."
)
@click.option(
    "--machines",
    metavar="FILE",
    multiple=True,
    help="Machines: a file, or 250:cpu=64,memory=512GB,gpu=8. With --from: +2, +2:NAME (copies), -1, -NAME.",
)
@click.option("--format", "fmt", default="", help="Format of the trace (default: told from its columns).")
@click.option("--variant", default="", help="Which variant or set, where the trace holds several.")
@click.option("--policy", metavar="NAME", help="Pack arrivals, nothing leaves: tidecell, fgd, best-fit, ...")
@click.option(
    "--arrived", default=1.3, show_default=True, help="With --policy: how much of all accelerators."
)
@click.option("--compact", is_flag=True, help="How few machines hold the trace under --policy.")
@click.option("--load", metavar="FILE", help="Load on services over time, for their autoscalers.")
@click.option("--seed", default=0, show_default=True, help="Breaks ties; the same seed gives the same run.")
@click.option("--until", default="", help="Stop after so much virtual time, for example 6h.")
@click.option("--batch", default="", help="Decide inputs of so much time together, for example 10s (faster).")
@click.option("--startup", default="", help="How long a task takes to start (default: 1s).")
@click.option("--plot", metavar="PNG", help="Draw the figures.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def sim(
    source: str | None,
    added: str | None,
    durations: tuple[str, ...],
    trace: str | None,
    machines: tuple[str, ...],
    fmt: str,
    variant: str,
    policy: str | None,
    arrived: float,
    compact: bool,
    load: str | None,
    seed: int,
    until: str,
    batch: str,
    startup: str,
    plot: str | None,
    as_json: bool,
) -> None:
    """Run the cell in virtual time: the very scheduler and state machine that run it live.

    From a trace: tide sim --trace jobs.csv --machines machines.csv --seed 1 --json

    Packing only, by FGD's protocol: tide sim --trace pods.csv --machines nodes.csv --policy tidecell

    How few machines would do: tide sim --trace pods.csv --machines nodes.csv --compact

    From a cell: tide sim --from live --add new.yaml --machines +2 --until 6h
    """
    if plot is not None:
        check_picture(Path(plot))
    if source is not None:
        _refuse(
            "--from", "runs a cell in time", ("--trace", trace), ("--format", fmt), ("--variant", variant)
        )
        _refuse(
            "--from", "runs a cell in time", ("--policy", policy), ("--compact", compact), ("--load", load)
        )
        _refuse("--from", "runs a cell in time", ("--plot", plot), ("--batch", batch), ("--startup", startup))
        from tidecell.cli.sim_live import simulate_cell

        until_s = _duration(until, "--until")
        simulate_cell(source, added, durations, machines, until_s, seed, as_json)
        return
    if trace is None:
        raise TidecellError("nothing to simulate", "give --trace FILE, or --from live")
    if added or durations:
        raise TidecellError("--add and --duration belong to --from", "begin with a cell: --from live")
    if len(machines) > 1:
        raise TidecellError("--machines is given twice", "put all machines into one file")
    fleet_file = machines[0] if machines else None
    if compact or policy is not None:
        what = "--compact" if compact else "--policy"
        _refuse(what, "packs, it runs nothing in time", ("--load", load), ("--until", until))
        _refuse(what, "packs, it runs nothing in time", ("--batch", batch), ("--startup", startup))
    if compact:
        from tidecell.cli.sim_packing import compact_trace, print_compaction

        _refuse("--compact", "has no curve to draw", ("--plot", plot))
        found = compact_trace(trace, fleet_file, fmt, variant, policy or "tidecell", seed)
        print_compaction(found, as_json)
        return
    if policy is not None:
        from tidecell.cli.sim_packing import pack_trace, print_packing

        reports = pack_trace(trace, fleet_file, fmt, variant, policy, seed, arrived)
        if plot:
            draw_packing(reports, Path(plot))
            err.print(f"drawn: {plot}")
        print_packing(reports, as_json)
        return
    until_s = _duration(until, "--until")
    starts_after_s = _duration(startup, "--startup") if startup else STARTUP_S
    behaviour = Behaviour(starts_after_s=starts_after_s, batch_s=_duration(batch, "--batch"))
    figures = run_trace(trace, fleet_file, fmt, variant, load, seed, until_s, behaviour)
    if plot:
        draw_figures(figures, Path(plot))
        err.print(f"drawn: {plot}")
    if as_json:
        print_json(figures)
    else:
        print_figures(figures)


def _refuse(mode: str, because: str, *options: tuple[str, object]) -> None:
    """Refuse options that a mode would ignore."""
    given = [name for name, value in options if value]
    if given:
        raise TidecellError(f"{mode} {because}; {given[0]} has no meaning there", f"leave out {given[0]}")


def _duration(text: str, flag: str) -> float:
    if not text:
        return 0.0
    try:
        return parse_duration(text)
    except UnitError as error:
        raise TidecellError(f"{flag}: {error.message}", error.hint) from error


def _read_load(path: Path) -> list[LoadPoint]:
    """Return the load in a file: a table, or the requests that a router recorded."""
    from tidecell.sim.requests import is_request_trace, load_of, read_requests
    from tidecell.sim.simple import read_load
    from tidecell.sim.table import read_table

    return load_of(read_requests(path)) if is_request_trace(path) else read_load(read_table(path))


def run_trace(
    trace: str,
    machines: str | None,
    fmt: str,
    variant: str,
    load: str | None,
    seed: int,
    until_s: float,
    behaviour: Behaviour,
) -> Figures:
    """Simulate a trace in time; return its figures."""
    from tidecell.sim.table import read_table

    table = read_table(Path(trace))
    fmt = check_format(fmt) if fmt else detect_format(table)
    if machines is None:
        raise DataError(
            f"{trace} says nothing of machines", "give --machines FILE, or --machines 250:cpu=64,memory=512GB"
        )
    fleet = read_fleet(machines)
    points = tuple(_read_load(Path(load))) if load else ()
    if not has_times(table, fmt):
        raise DataError(
            f"{trace} does not say how long its jobs run", "add a column duration_s (docs/sim.md)"
        )
    world = World(read_workload(table, fleet, fmt, variant, points), seed, behaviour)
    recorder = Recorder()
    world.observers.append(recorder)
    world.open()
    world.run(world.workload.start_s + until_s if until_s else float("inf"))
    recorder.close(world.workload.start_s + until_s if until_s else None)
    return figures_of(world, recorder)


# ------------------------------------------------------------------------------------------- showing


def print_figures(figures: Figures) -> None:
    """Print the figures for people."""
    out.print(
        f"{figures.source}: {figures.num_jobs} jobs on {figures.num_machines} machines, "
        f"{span(figures.span_s)} of virtual time, seed {figures.seed}"
    )
    facts = [
        (
            "jobs",
            f"{figures.num_finished} finished, {figures.num_running} running, "
            f"{figures.num_waiting} waiting, {figures.num_refused} refused",
        ),
        ("utilisation", _shares(figures)),
        ("evictions", f"{figures.evictions} tasks of {figures.evicted_jobs} jobs"),
        ("work lost", f"{span(figures.work_lost_s)}, {figures.work_lost_share:.2f} % of all work"),
    ]
    fairness = figures.fairness
    if fairness.finish_time_ratio is not None:
        ratio = fairness.finish_time_ratio
        facts.append(("finish time", f"{ratio.mean:.2f} x its work on average, p99 {ratio.p99:.2f}"))
    if fairness.jain_teams is not None:
        facts.append(("fairness", f"Jain over {len(fairness.ratio_by_team)} teams {fairness.jain_teams:.3f}"))
    for key, value in facts:
        out.print(f"  {key:<12}{value}")
    rows = [("all", figures.wait_s), *figures.wait_s_by_band.items(), ("completion", figures.completion_s)]
    print_table(
        ("WAIT", "JOBS", "MEAN", "P50", "P90", "P99", "MAX"),
        [_spread_row(name, found) for name, found in rows if found is not None],
    )
    for line in (*figures.refused, *figures.notes):
        print(f"note: {line}", file=sys.stderr)


def _shares(figures: Figures) -> str:
    shares = figures.utilisation
    parts = (("cpu", shares.cpu), ("memory", shares.memory), ("gpu", shares.gpu))
    return ", ".join(f"{name} {share:.1f} %" for name, share in parts if share is not None) or "-"


def _spread_row(name: str, found: Spread) -> tuple[str, ...]:
    values = (found.mean, found.p50, found.p90, found.p99, found.max)
    return (name, str(found.count), *(span(v) for v in values))
