"""Figures as a picture. matplotlib is imported only here, and only when somebody wants one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tidecell.sim.packing import PackingReport
from tidecell.sim.report import Figures, Point
from tidecell.structs.errors import DataError

_INK, _GRID = "#22313f", "#d9e0e6"
_COLOURS = {"cpu": "#0b7a75", "memory": "#c98a1b", "gpu": "#7b3fa0"}
_BANDS = {"monitoring": "#22313f", "production": "#0b7a75", "batch": "#c98a1b", "best-effort": "#9aa7b1"}
_GREY = "#9aa7b1"
_CURVES = ("#0b7a75", "#c98a1b", "#7b3fa0", "#c0504d", "#3a6ea5", "#6b8e23", "#22313f", "#b0679a", "#8a6d3b")
_UNITS = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


def draw_figures(figures: Figures, path: Path) -> None:
    """Draw utilisation over time and waits by band into a PNG.

    Raises:
        DataError: matplotlib is not installed, or the file cannot be written.
    """
    figure = _new_figure(len(_panels(figures)))
    for axes, panel in zip(figure.axes, _panels(figures), strict=True):
        panel(axes, figures)
    title = f"{Path(figures.source).name}: {figures.num_jobs} jobs, {figures.num_machines} machines"
    _save(figure, title, path)


def draw_packing(reports: Sequence[PackingReport], path: Path) -> None:
    """Draw what is allocated against what has arrived, one curve a variant, into a PNG.

    Raises:
        DataError: matplotlib is not installed, or the file cannot be written.
    """
    figure = _new_figure(1, 4.6)
    axes = figure.axes[0]
    most = max(len(r.allocated) for r in reports)
    axes.plot([0, 100, most], [0, 100, 100], color=_GREY, linewidth=1.0, linestyle=":", label="all that fits")
    for i, report in enumerate(reports):
        name = report.variant or report.policy
        label = f"{name} ({report.allocated_at_end:.1f} % at the end)"
        colour = _CURVES[i % len(_CURVES)] if len(reports) > 1 else _COLOURS["gpu"]
        arrived = range(len(report.allocated) + 1)
        axes.plot(arrived, [0.0, *report.allocated], color=colour, linewidth=1.4, label=label)
    axes.set_xlim(0, most)
    axes.set_ylim(0, 102)
    axes.set_xlabel("accelerators asked for, % of all")
    axes.set_ylabel("allocated, % of all")
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    first = reports[0]
    title = f"packing by {first.policy}: {first.machines} machines, {first.accelerators:g} accelerators"
    _save(figure, f"{title}, seed {first.seed}", path)


def check_picture(path: Path) -> None:
    """Raise DataError if a picture could not be written there: before hours are spent on what it shows."""
    if path.suffix.lower() != ".png":
        raise DataError(f"--plot {path} does not end in .png", "give a path such as out.png")
    if not path.parent.is_dir():
        raise DataError(f"--plot {path}: there is no directory {path.parent}", "make it first")


def _save(figure: Any, title: str, path: Path) -> None:
    figure.suptitle(title, x=0.01, ha="left", color=_INK, fontsize=12, fontweight="bold")
    figure.tight_layout()
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be drawn: {error}", "give a path that ends in .png") from error


def _new_figure(num_panels: int, height: float = 3.2) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DataError("matplotlib is not installed", "pip install 'tidecell[scale]'") from error
    figure = Figure(figsize=(10.0, 0.6 + height * num_panels))
    FigureCanvasAgg(figure)
    for i in range(num_panels):
        axes = figure.add_subplot(num_panels, 1, i + 1)
        axes.grid(True, color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure


def _panels(figures: Figures) -> Sequence[Any]:
    panels: list[Any] = []
    if figures.utilisation_over_time:
        panels.append(_utilisation)
    if figures.wait_s_by_band:
        panels.append(_waits)
    return panels or [_nothing]


def _nothing(axes: Any, figures: Figures) -> None:
    axes.text(0.5, 0.5, "nothing happened", ha="center", transform=axes.transAxes, color=_INK)


def _unit(longest_s: float) -> tuple[float, str]:
    return next((u for u in _UNITS if longest_s >= 2 * u[0]), _UNITS[-1])


def _utilisation(axes: Any, figures: Figures) -> None:
    points: Sequence[Point] = figures.utilisation_over_time
    scale, unit = _unit(points[-1].at_s)
    means = figures.utilisation
    for name, mean in (("cpu", means.cpu), ("memory", means.memory), ("gpu", means.gpu)):
        if mean is None or not any(getattr(p, name) for p in points):
            continue
        values = [getattr(p, name) for p in points]
        label = f"{name} (mean {mean:.1f} %)"
        axes.step([p.at_s / scale for p in points], values, where="post", color=_COLOURS[name], label=label)
    axes.set_ylim(0, 102)
    axes.set_xlim(0, points[-1].at_s / scale)
    axes.set_ylabel("reserved, % of capacity")
    axes.set_xlabel(f"{unit} of virtual time")
    _legend(axes)


def _waits(axes: Any, figures: Figures) -> None:
    scale, unit = _unit(max(s.max for s in figures.wait_s_by_band.values()))
    names = ("mean", "p50", "p90", "p99", "max")
    width = 0.8 / len(figures.wait_s_by_band)
    for i, (band, found) in enumerate(figures.wait_s_by_band.items()):
        values = [getattr(found, name) / scale for name in names]
        at = [x + (i - (len(figures.wait_s_by_band) - 1) / 2) * width for x in range(len(names))]
        label = f"{band} ({found.count} jobs)"
        bars = axes.bar(at, values, width * 0.92, color=_BANDS.get(band, _INK), label=label)
        labels = [f"{v:.3g}{unit[0]}" if v >= 1 else _short(v * scale) for v in values]
        axes.bar_label(bars, labels=labels, fontsize=8, color=_INK)
    axes.margins(y=0.1)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel(f"wait, {unit}")
    _legend(axes)


def _legend(axes: Any) -> None:
    """Name the curves above the panel, where they hide nothing."""
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=4, frameon=False, borderaxespad=0.2)


def _short(seconds: float) -> str:
    """Return a duration in its largest unit: 5400 gives ``1.5h``."""
    for scale, letter in ((86400.0, "d"), (3600.0, "h"), (60.0, "m")):
        if seconds >= scale:
            return f"{seconds / scale:.3g}{letter}"
    return f"{seconds:.2g}s"
