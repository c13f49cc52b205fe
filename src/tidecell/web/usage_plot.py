"""Usage over time as a picture: one stacked bar for each step, as the console's page has it.

matplotlib comes with the extra ``scale`` and is imported late, so that nothing else needs it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tidecell.client.account_views import UsageRow, UsageView
from tidecell.structs.errors import TidecellError
from tidecell.web.figure import load_matplotlib

WIDTH_PX, HEIGHT_PX, DPI = 1400, 700, 140
COLORS = ("#3d87c0", "#e5893c", "#2e9b77", "#b46a97", "#9a9a35", "#7fb6d9", "#c9564b")
OTHERS = "#93a3ad"
INK, SOFT, RULE = "#14212b", "#566775", "#dbe3e9"

# What may be drawn: title, and how it is read off a row.
MEASURES: Mapping[str, tuple[str, Callable[[UsageRow], float]]] = {
    "cpu": ("Cores reserved, cpu-hours", lambda r: r.cpu_hours),
    "requested": ("Cores requested, cpu-hours", lambda r: r.requested_cpu_hours),
    "used": ("Cores used, cpu-hours", lambda r: r.used_cpu_hours),
    "gpu": ("Accelerators reserved, gpu-hours", lambda r: r.all_gpu_hours),
    "requested-gpu": ("Accelerators requested, gpu-hours", lambda r: r.requested_gpu_hours),
    "memory": ("Memory reserved, GiB-hours", lambda r: r.memory_gib_hours),
    "waited": ("Waiting, hours", lambda r: r.waited_hours),
    "cost": ("Cost", lambda r: r.cost),
}
Series = tuple[list[float], list[tuple[str, list[float]]]]


def stack(view: UsageView, by: Sequence[str], every_s: float, measure: str) -> Series:
    """Return the beginnings of all steps, and the groups with one value for each of them.

    The largest group comes first; from the eighth on they are one, named ``N others``.
    """
    read = MEASURES[measure][1]
    times = _times(view, every_s)
    place = {round(at_s / every_s): i for i, at_s in enumerate(times)}
    sums: dict[str, list[float]] = {}
    for row in view.rows:
        name = " · ".join(str(getattr(row, part)) or f"no {part}" for part in by)
        sums.setdefault(name, [0.0] * len(times))[place[round(row.at_s / every_s)]] += read(row)
    ranked = sorted(((n, v) for n, v in sums.items() if any(v)), key=lambda g: (-sum(g[1]), g[0]))
    shown, rest = ranked[: len(COLORS)], ranked[len(COLORS) :]
    if rest:
        shown.append(
            (f"{len(rest)} others", [sum(values) for values in zip(*(v for _, v in rest), strict=True)])
        )
    return times, shown


def _times(view: UsageView, every_s: float) -> list[float]:
    """Return every step from the first in which something was to the last, those between included."""
    numbers = [round(row.at_s / every_s) for row in view.rows]
    return [n * every_s for n in range(min(numbers), max(numbers) + 1)] if numbers else []


def draw_usage(view: UsageView, by: Sequence[str], every_s: float, measure: str, path: Path) -> None:
    """Draw usage as a PNG of some 1400 x 700 pixels.

    Args:
        view: Usage in steps of ``every_s``.
        by: What its rows keep apart.
        every_s: How long a step is.
        measure: One of ``MEASURES``.
        path: Where the picture goes; its directory must exist.

    Raises:
        TidecellError: There is nothing to draw, matplotlib is missing, or ``path`` cannot be written.
    """
    times, groups = stack(view, by, every_s, measure)
    if not groups:
        raise TidecellError(
            f"there is nothing to draw: no {measure} in that time",
            f"choose a longer time, or another of {', '.join(MEASURES)} with --measure",
        )
    _, figure_type = load_matplotlib("--plot needs matplotlib", "pip install 'tidecell[scale]', or use --csv")
    figure = figure_type(figsize=(WIDTH_PX / DPI, HEIGHT_PX / DPI), dpi=DPI, facecolor="white")
    axis = figure.subplots()
    base = [0.0] * len(times)
    for (name, values), color in zip(groups, (*COLORS, OTHERS), strict=False):
        axis.bar(range(len(times)), values, 0.92, bottom=base, color=color, label=name)
        base = [b + v for b, v in zip(base, values, strict=True)]
    if measure == "cpu":
        _outline(axis, view, every_s, times)
    _furnish(axis, times, every_s, MEASURES[measure][0], view.currency if measure == "cost" else "")
    try:
        figure.savefig(path, format="png", bbox_inches="tight")
    except OSError as error:
        raise TidecellError(
            f"the picture cannot be written to {path}: {error.strerror or error}",
            "name a file in a directory that exists",
        ) from error


def _outline(axis: Any, view: UsageView, every_s: float, times: Sequence[float]) -> None:
    """Draw what was asked for, and what was really used, over what was reserved."""
    edges = [i - 0.5 for i in range(len(times) + 1)]
    for read, style, name in (
        (MEASURES["requested"][1], "-", "all requested"),
        (MEASURES["used"][1], (0, (1, 2)), "all used"),
    ):
        values = [
            sum(read(r) for r in view.rows if round(r.at_s / every_s) == round(t / every_s)) for t in times
        ]
        axis.stairs(values, edges, color=INK, linewidth=1.3, linestyle=style, label=name)


def _furnish(axis: Any, times: Sequence[float], every_s: float, title: str, unit: str) -> None:
    axis.set_title(
        f"{title}, {unit}" if unit else title, loc="left", fontsize=11, fontweight="bold", color=INK
    )
    step = max(1, -(-len(times) // 12))
    form = "%m-%d" if every_s >= 86400 else "%m-%d %H:%M"
    axis.set_xticks(
        range(0, len(times), step), [time.strftime(form, time.localtime(t)) for t in times[::step]]
    )
    axis.set_xlim(-0.7, len(times) - 0.3)
    axis.tick_params(colors=SOFT, labelsize=8.5)
    axis.tick_params(axis="x", rotation=30)
    axis.grid(axis="y", color=RULE, linewidth=0.7)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9, reverse=True)


__all__ = ["MEASURES", "draw_usage", "stack"]
