"""How things look in a terminal: tables, times, JSON. Data goes to stdout, everything else to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tidecell.client.units import format_duration
from tidecell.client.views import CellStatus, JobStatus
from tidecell.structs.job import TERMINAL, TaskState
from tidecell.structs.resources import format_bytes

# Where nobody watches, lines are not cut to a terminal that is not there.
_WIDE = 240
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _WIDE)
err = Console(stderr=True, highlight=False, soft_wrap=True, width=None if sys.stderr.isatty() else _WIDE)

_STYLES = {
    TaskState.RUNNING: "green",
    TaskState.SUCCEEDED: "green",
    TaskState.PENDING: "yellow",
    TaskState.STARTING: "yellow",
    TaskState.RESIZING: "cyan",
    TaskState.FAILED: "red",
    TaskState.TIMEOUT: "red",
    TaskState.CANCELLED: "dim",
}


class NamesToo(click.Group):
    """A group with ``show``, whose unknown words are names to show: ``tide quota vision``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``show`` before what is no command."""
        words = [a for a in args if not a.startswith("-")]
        if "--help" not in args and "-h" not in args and (not words or words[0] not in self.commands):
            args = ["show", *args]
        return super().parse_args(ctx, args)


def print_json(value: Any) -> None:
    """Print a value as JSON, one document, two spaces."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    """Print a plain table: no frame, so that it can be cut and grepped."""
    out.print(make_table(columns, rows))


def make_table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> Table:
    """Return a plain table."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=column not in ("WAITS FOR", "WHAT", "COMMAND"))
    for row in rows:
        table.add_row(*row)
    return table


def state_text(state: TaskState) -> Text:
    """Return a state, coloured where colours are."""
    return Text(state.value, style=_STYLES.get(state, ""))


def ago(then_s: float, now_s: float | None = None) -> str:
    """Return how long ago something was, in one or two units."""
    if not then_s:
        return "-"
    return span((now_s or time.time()) - then_s)


def span(seconds: float) -> str:
    """Return a duration in one or two units: 75 gives ``1m15s``."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def clock(at_s: float) -> str:
    """Return a moment as local time of day."""
    return time.strftime("%H:%M:%S", time.localtime(at_s))


def moment(at_s: float) -> str:
    """Return a moment as local date and time, the date only where it is not today."""
    today = time.strftime("%Y-%m-%d") == time.strftime("%Y-%m-%d", time.localtime(at_s))
    return time.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M", time.localtime(at_s))


def replicas_text(job: JobStatus) -> str:
    """Return replicas as ``running/desired`` and the range they may move in."""
    if job.array is not None:
        ended = sum(job.array.counts.get(s.value, 0) for s in TERMINAL)
        return f"{ended}/{job.array.count} done, {job.running} run"
    if job.schedule is not None:
        return f"{len(job.runs)} runs"
    now = f"{job.ready if job.kind == 'service' else job.running}/{job.desired}"
    return now if job.replicas.min == job.replicas.max else f"{now} ({job.replicas})"


def waits_text(job: JobStatus) -> str:
    """Return what a job waits for, or how it ended, in a few words."""
    if job.done:
        return job.message
    if job.stopping:
        return f"stopping ({job.stopping})"
    parts = []
    if job.next_s:
        parts.append(f"next {moment(job.next_s)}")
    elif job.schedule is not None and job.held:
        parts.append("OnHold")
    if job.last_event:
        parts.append(job.last_event)
    if job.update is not None:
        parts.append(f"update to version {job.update.version}: {job.update.phase}, {job.update.old} old left")
    if job.waiting is not None:
        tokens = " · ".join(r.value for r in job.waiting.reasons)
        growth = "" if job.running < job.replicas.min else "for more: "
        parts.append(f"{growth}{tokens}")
    return "; ".join(parts)


def journal_text(cell: CellStatus) -> str:
    """Return how far a cell's event log goes back, and what it takes of the disk."""
    since = f" since {moment(cell.journal_since_s)}" if cell.journal_since_s else ""
    kept = f"for {format_duration(cell.keep_events_s)}" if cell.keep_events_s else "for ever"
    return f"{cell.journal_seq} events{since}, {format_bytes(cell.journal_bytes)}; kept {kept}"
