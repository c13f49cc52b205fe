"""The picture of a simulation is a picture, and says so where it cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidecell.sim.plots import draw_figures
from tidecell.sim.report import Figures, Point, Shares, spread
from tidecell.structs.errors import DataError

pytest.importorskip("matplotlib")
POINTS = tuple(Point(60.0 * i, 50.0, 20.0, 0.0) for i in range(5))
FIGURES = Figures(
    source="t.csv",
    utilisation=Shares(cpu=50.0, memory=20.0),
    utilisation_over_time=POINTS,
    wait_s_by_band={"batch": spread([1.0, 90.0, 4000.0])},
)


@pytest.mark.parametrize("figures", [FIGURES, Figures(source="empty")])
def test_figures_become_a_png(figures: Figures, tmp_path: Path):
    draw_figures(figures, tmp_path / "o.png")
    assert (tmp_path / "o.png").read_bytes().startswith(b"\x89PNG")


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="cannot be drawn"):
        draw_figures(FIGURES, tmp_path / "missing" / "o.png")
