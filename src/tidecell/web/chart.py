"""The tide chart as a picture: capacity by band, requests, training, on one time axis.

Colours, stacking order and panels are those of the console. matplotlib comes with the extra ``demo``
and is imported late, so that nothing else needs it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tidecell.client.views import Sample, ServiceSample, TrainSample
from tidecell.structs.errors import TidecellError
from tidecell.web.figure import load_matplotlib

WIDTH_PX, HEIGHT_PX, DPI = 1400, 900, 140
MAX_GAP_S = 5.0  # a longer silence is a gap, not a slope
INK, SOFT, RULE = "#14212b", "#566775", "#dbe3e9"


@dataclass(frozen=True)
class _BandStyle:
    name: str
    fill: str
    ink: str


# Bottom of the stack first: what nobody may take, up to what anybody may.
_BANDS = (
    _BandStyle("monitoring", "#b46a97", "white"),
    _BandStyle("production", "#e5893c", "#3b1f04"),
    _BandStyle("batch", "#3d87c0", "white"),
    _BandStyle("best-effort", "#a9c0cd", "#1f3038"),
)
_SERVICE_LINES = ("#c25a10", "#1e6ba8", "#0a7d5c", "#a24c83", "#6b6f1b")
_TRAINING_LINES = ("#1e6ba8", "#c25a10", "#0a7d5c", "#a24c83", "#6b6f1b")

_STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "ytick.major.size": 0,
}


def draw_tide(
    samples: Sequence[Sample], path: Path, title: str, marks: Sequence[tuple[float, str]] = ()
) -> None:
    """Draw the tide chart as a PNG of some 1400 x 900 pixels.

    Args:
        samples: Oldest first, at least two; the time axis counts from the first.
        path: Where the picture goes; its directory must exist.
        title: Stands above it.
        marks: Moments (seconds since the epoch) with what began then, for example ``burst begins``.

    Raises:
        TidecellError: There are fewer than two samples, matplotlib is missing, or ``path`` cannot be written.
    """
    if len(samples) < 2:
        raise TidecellError(
            f"a tide chart needs at least 2 samples; there are {len(samples)}",
            "the cell takes one a second: wait a little, or choose a longer time",
        )
    matplotlib, figure_type = load_matplotlib("charts need matplotlib", "pip install 'tidecell[demo]'")
    with matplotlib.rc_context(_STYLE):
        figure = figure_type(figsize=(WIDTH_PX / DPI, HEIGHT_PX / DPI), dpi=DPI, facecolor="white")
        axes = figure.subplots(3, 1, sharex=True, gridspec_kw={"height_ratios": (1.9, 1, 1)})
        figure.subplots_adjust(left=0.07, right=0.925, bottom=0.07, hspace=0.36)
        figure.text(0.07, 0.955, title, fontsize=13, fontweight="bold", va="center")
        times = [s.at_s - samples[0].at_s for s in samples]
        _capacity(axes[0], samples, times)
        _requests(axes[1], samples, times)
        _training(axes[2], samples, times)
        _time_axis(axes, times[-1])
        num_rows = _marks(axes, [(at_s - samples[0].at_s, text) for at_s, text in marks], times[-1])
        figure.subplots_adjust(top=0.89 - 0.026 * num_rows)
        try:
            figure.savefig(path, format="png")
        except OSError as error:
            raise TidecellError(
                f"the chart cannot be written to {path}: {error.strerror or error}",
                "choose another path with --output",
            ) from error


# ---------------------------------------------------------------------------------------- panels


def _capacity(axis: Any, samples: Sequence[Sample], times: Sequence[float]) -> None:
    edges = _step_edges(times)
    base = [0.0] * len(times)
    for band in _BANDS:
        top = [b + s.reserved_by_band.get(band.name, 0) / 1000 for b, s in zip(base, samples, strict=True)]
        if top != base:
            area = axis.fill_between(
                edges, _steps(times, base), _steps(times, top), color=band.fill, linewidth=0
            )
            axis.plot(edges, _steps(times, top), color="white", linewidth=0.8)
            if not _name_area(axis, band, times, base, top):
                area.set_label(band.name)
        base = top
    capacity = [s.capacity_cpu_millis / 1000 for s in samples]
    used = [sum(j.used_cpu_millis for j in s.jobs.values()) / 1000 for s in samples]
    if any(used):
        axis.plot(
            *_broken(times, used), color=INK, linewidth=1.1, linestyle=(0, (1, 2)), label="measured use"
        )
    axis.plot(edges, _steps(times, capacity), color=INK, linewidth=1.6, label="capacity")
    axis.set_ylim(0, max(0.1, *capacity, *base) * 1.08)
    axis.spines["right"].set_visible(False)
    _head(axis, "Cores reserved, by priority band")
    _legend(axis, axis.get_legend_handles_labels()[0])


def _name_area(
    axis: Any, band: _BandStyle, times: Sequence[float], base: Sequence[float], top: Sequence[float]
) -> bool:
    """Write a band's name where its area is wide and high enough for it; return whether it is anywhere."""
    place = _widest(times, base, top, min_height=0.1 * max(top))
    if place is None or place[0] < (times[-1] - times[0]) * 0.012 * len(band.name):
        return False
    behind = {"facecolor": band.fill, "edgecolor": "none", "pad": 2}
    font = {"color": band.ink, "fontsize": 9.5, "fontweight": "bold"}
    axis.text(place[1], place[2], band.name, ha="center", va="center", bbox=behind, zorder=6, **font)
    return True


def _widest(
    times: Sequence[float], base: Sequence[float], top: Sequence[float], min_height: float
) -> tuple[float, float, float] | None:
    """Return (width, middle, height) of the longest stretch in which an area is high enough throughout."""
    best: tuple[float, float, float] | None = None
    start, low, high, gap_s = 0, -math.inf, math.inf, _gap_s(times)
    for i, at in enumerate(times):
        if i and at - times[i - 1] > gap_s:
            start, low, high = i, -math.inf, math.inf
        low, high = max(low, base[i]), min(high, top[i])
        if high - low < min_height:
            start, low, high = i + 1, -math.inf, math.inf
        elif best is None or at - times[start] > best[0]:
            best = (at - times[start], (at + times[start]) / 2, (low + high) / 2)
    return best


def _requests(axis: Any, samples: Sequence[Sample], times: Sequence[float]) -> None:
    right = axis.twinx()
    names = sorted({name for s in samples for name in s.services})
    for name, color in zip(names, _cycle(_SERVICE_LINES), strict=False):
        points = [s.services.get(name) for s in samples]
        gappy, rate = _broken(times, [None if p is None else p.rate_per_s for p in points])
        axis.fill_between(gappy, rate, color=color, alpha=0.12, linewidth=0)
        axis.plot(gappy, rate, color=color, linewidth=1.6, label=f"{name}: requests/s")
        gappy, late = _broken(times, [_p95(p) for p in points])
        right.plot(
            gappy, late, color=color, linewidth=1.2, linestyle=(0, (4, 2)), label=f"{name}: p95 latency"
        )
    _finish(
        axis, right, "Requests per second", "p95 latency, ms", "no service in this time" if not names else ""
    )


def _p95(point: ServiceSample | None) -> float | None:
    return point.latency_ms_p95 if point is not None and point.latency_ms_p95 > 0 else None


def _training(axis: Any, samples: Sequence[Sample], times: Sequence[float]) -> None:
    right = axis.twinx()
    names = sorted({name for s in samples for name in s.trainings})
    for name, color in zip(names, _cycle(_TRAINING_LINES), strict=False):
        points: list[TrainSample | None] = [s.trainings.get(name) for s in samples]
        gappy, speed = _broken(times, [None if p is None else p.tokens_per_s for p in points])
        axis.fill_between(gappy, speed, color=color, alpha=0.12, linewidth=0)
        axis.plot(gappy, speed, color=color, linewidth=1.6, label=f"{name}: tokens/s")
        gappy, size = _broken(times, [None if p is None else float(p.world_size) for p in points])
        right.step(
            gappy,
            size,
            where="post",
            color=color,
            linewidth=1.2,
            linestyle=(0, (4, 2)),
            label=f"{name}: workers",
        )
    _finish(
        axis, right, "Training tokens per second", "workers", "no training in this time" if not names else ""
    )
    workers = max((t.world_size for s in samples for t in s.trainings.values()), default=1)
    right.set_ylim(0, workers + 1)
    right.yaxis.get_major_locator().set_params(integer=True)


# --------------------------------------------------------------------------------------- furniture


def _finish(axis: Any, right: Any, title: str, right_title: str, empty: str) -> None:
    for side in (axis, right):
        side.set_ylim(0, max(side.dataLim.y1 * 1.18, 1.0) if empty == "" else 1.0)
        side.locator_params(axis="y", nbins=4)
        side.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    right.grid(False)
    right.spines["left"].set_visible(False)
    right.set_ylabel(right_title, color=SOFT, labelpad=6)
    _head(axis, title)
    if empty:
        axis.text(0.5, 0.5, empty, transform=axis.transAxes, color=SOFT, ha="center", va="center")
        return
    handles = [h for side in (axis, right) for h in side.get_legend_handles_labels()[0]]
    _legend(axis, handles)


def _legend(axis: Any, handles: Sequence[Any]) -> None:
    place = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "borderaxespad": 0.2, "borderpad": 0.2}
    paper = {"frameon": True, "facecolor": "white", "edgecolor": "none", "framealpha": 1.0}
    axis.legend(handles=handles, ncols=6, columnspacing=1.4, handlelength=1.8, **place, **paper)


def _head(axis: Any, title: str) -> None:
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 2}
    axis.set_title(title, loc="left", fontsize=9.5, fontweight="bold", pad=7, bbox=behind)


def _time_axis(axes: Any, last: float) -> None:
    last_axis = axes[-1]
    last_axis.set_xlim(0, last)
    steps = (1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200, 86400)
    step = next((s for s in steps if last / s <= 12), steps[-1])
    last_axis.set_xticks([i * step for i in range(int(last / step) + 1)])
    last_axis.xaxis.set_major_formatter(lambda value, _: _clock(value))
    last_axis.set_xlabel(
        "minutes:seconds since the first sample" if last < 3600 else "time since the first sample"
    )
    for axis in axes[:-1]:
        axis.tick_params(axis="x", length=0)


def _clock(seconds: float) -> str:
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def _marks(axes: Any, marks: Sequence[tuple[float, str]], last: float) -> int:
    """Draw a line through all panels at each mark; return how many rows their labels above need."""
    row_starts: list[float] = []
    for at, text in sorted((m for m in marks if 0 <= m[0] <= last), reverse=True):
        for axis in axes:
            axis.axvline(at, color=INK, linewidth=0.9, linestyle=(0, (5, 3)), zorder=5)
        end = at + last * 0.0078 * (len(text) + 2)
        row = next((r for r, begin in enumerate(row_starts) if end < begin), len(row_starts))
        row_starts[row : row + 1] = [at]
        _flag(axes[0], at, text, 25 + 12 * row, before=end > last * 1.06)
    return len(row_starts)


def _flag(axis: Any, at: float, text: str, height_pt: float, before: bool) -> None:
    """Write a mark's label above the panel, on a pole that stands on its line."""
    pole = {"arrowstyle": "-", "color": INK, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}
    at_top = {"xycoords": axis.get_xaxis_transform(), "textcoords": "offset points"}
    axis.annotate("", (at, 1.0), xytext=(0, height_pt + 5), arrowprops=pole, zorder=1, **at_top)
    axis.annotate(
        text, (at, 1.0), xytext=(-4 if before else 4, height_pt), fontsize=8.5, va="center",
        ha="right" if before else "left", **at_top,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ numbers


def _cycle(colors: Sequence[str]) -> Iterator[str]:
    while True:
        yield from colors


def _step_edges(times: Sequence[float]) -> list[float]:
    """Return times for steps: every sample holds until the next one."""
    return [t for a, b in pairwise(times) for t in (a, b)]


def _steps(times: Sequence[float], values: Sequence[float]) -> list[float]:
    """Return values at the edges of steps, NaN over a gap."""
    gap_s = _gap_s(times)
    held = [v if b - a <= gap_s else math.nan for (a, b), v in zip(pairwise(times), values, strict=False)]
    return [v for value in held for v in (value, value)]


def _gap_s(times: Sequence[float]) -> float:
    """Return how long a silence is a gap, from the usual distance of samples."""
    usual_s = sorted(b - a for a, b in pairwise(times))[(len(times) - 1) // 2]
    return max(MAX_GAP_S, 3 * usual_s)


def _broken(times: Sequence[float], values: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """Return a line with a break (NaN) where values or samples are missing."""
    xs: list[float] = []
    ys: list[float] = []
    gap_s = _gap_s(times)
    for i, (at, value) in enumerate(zip(times, values, strict=True)):
        if i and at - times[i - 1] > gap_s:
            xs.append((at + times[i - 1]) / 2)
            ys.append(math.nan)
        xs.append(at)
        ys.append(math.nan if value is None else value)
    return xs, ys
