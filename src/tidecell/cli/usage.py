"""`tide usage`: who held how much, for how long, and what it costs; from the journal."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

import click

from tidecell.cli.export import write_csv, write_parquet
from tidecell.cli.show import err, print_json, print_table
from tidecell.client.account_views import UsageRow, UsageView
from tidecell.client.client import Client
from tidecell.client.units import UnitError, parse_duration
from tidecell.structs.errors import TidecellError
from tidecell.web.usage_plot import MEASURES, draw_usage

BAR = 24


def moment(text: str, flag: str, now_s: float) -> float:
    """Return a moment: a duration back from now (``10m``, ``30d``), or a date, or a date and time.

    Raises:
        TidecellError: It is neither.
    """
    try:
        return now_s - parse_duration(text)
    except UnitError:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError) as error:
        raise TidecellError(
            f"{flag} {text!r} is no moment", "write a duration back from now (2h, 30d) or a date (2027-03-01)"
        ) from error


@click.command()
@click.option("--by", default="team", show_default=True, help="What to keep apart: team,band,job,user.")
@click.option("--since", default="", help="From then on: 30d, or 2027-03-01 (default: all).")
@click.option("--until", default="", help="Before then (default: now).")
@click.option("--every", default="", help="In steps: 1h, 1d.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="Print as CSV.")
@click.option("--parquet", metavar="FILE", default="", help="Write to a Parquet file.")
@click.option("--plot", metavar="FILE", default="", help="Draw to a PNG file: stacked bars over time.")
@click.option(
    "--measure",
    type=click.Choice(list(MEASURES)),
    default="cpu",
    show_default=True,
    help="What --plot draws: reserved, requested or used cores, accelerators, memory, waiting, cost.",
)
def usage(
    by: str,
    since: str,
    until: str,
    every: str,
    as_json: bool,
    as_csv: bool,
    parquet: str,
    plot: str,
    measure: str,
) -> None:
    """Show who held how much: core, accelerator and memory hours, waiting, preemptions, cost."""
    now_s = time.time()
    since_s = moment(since, "--since", now_s) if since else 0.0
    until_s = moment(until, "--until", now_s) if until else None
    if until_s is not None and until_s <= since_s:
        raise TidecellError(f"--until {until} is not after --since {since}", "let it end after it begins")
    try:
        every_s = parse_duration(every) if every else 0.0
    except UnitError as error:
        raise TidecellError(f"--every {error.message}", error.hint) from error
    if plot and not every_s:
        raise TidecellError("--plot draws usage over time", "say how long a step is: --every 1h")
    with Client.from_home() as client:
        view = client.usage(by, since_s, until_s, every_s)
    if view.by_day_until_s:
        day = time.strftime("%Y-%m-%d", time.gmtime(view.by_day_until_s))
        err.print(f"note: before {day} (UTC) only whole days are known; events older than that are not kept")
    if plot:
        draw_usage(view, _groups(by), every_s, measure, Path(plot).expanduser())
        err.print(f"{measure} by {by} in {plot}")
    elif parquet:
        write_parquet(view.rows, UsageRow, parquet)
        err.print(f"{len(view.rows)} rows in {parquet}")
    elif as_json:
        print_json(view)
    elif as_csv:
        write_csv(view.rows, UsageRow)
    elif view.rows:
        _show(view, _groups(by), every_s)
    else:
        err.print("nothing was used in that time")


def _groups(by: str) -> list[str]:
    return [part for part in by.split(",") if part]


def _show(view: UsageView, by: list[str], every_s: float) -> None:
    top = max((_size(r) for r in view.rows), default=0.0)
    columns = [*(["FROM"] if every_s else []), *(name.upper() for name in by)]
    columns += ["CPU-H", "USED", "GPU-H", "GIB-H", "ASKED", "WAITED", "PREEMPTED", "COST", ""]
    rows = []
    for row in view.rows:
        names = [str(getattr(row, name)) or "-" for name in by]
        first = [time.strftime("%m-%d %H:%M", time.localtime(row.at_s))] if every_s else []
        rows.append((*first, *names, *_numbers(row, view.currency), _bar(_size(row), top)))
    print_table(columns, rows)


def _numbers(row: UsageRow, currency: str) -> tuple[str, ...]:
    gpu = " ".join(f"{_short(h)} {kind}".strip() for kind, h in row.gpu_hours.items()) or "-"
    used = f"{100 * row.used_cpu_hours / row.cpu_hours:.0f}%" if row.cpu_hours else "-"
    cost = f"{row.cost:.2f} {currency}".strip() if row.cost else "-"
    asked = _short(row.requested_cpu_hours)
    waited = f"{_short(row.waited_hours)}h"
    return (
        _short(row.cpu_hours),
        used,
        gpu,
        _short(row.memory_gib_hours),
        asked,
        waited,
        str(row.preemptions),
        cost,
    )


def _short(number: float) -> str:
    return f"{number:.3g}" if number < 1000 else f"{number:.0f}"


def _size(row: UsageRow) -> float:
    """What the bar shows: cost where there are prices, else accelerator hours, else core hours."""
    return row.cost or row.all_gpu_hours or row.cpu_hours


def _bar(size: float, top: float) -> str:
    return "█" * max(1, round(BAR * size / top)) if top > 0 and size > 0 else ""
