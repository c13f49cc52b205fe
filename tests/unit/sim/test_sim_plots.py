"""The picture of a simulation is a picture, and says so where it cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from tidecell.sim.packing import PackingReport
from tidecell.sim.plots import check_picture, draw_figures, draw_packing
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


def test_packing_is_drawn_and_paths_that_take_no_picture_are_refused_before(tmp_path: Path):
    report = PackingReport(
        variant="",
        policy="tidecell",
        seed=1,
        machines=2,
        accelerators=16.0,
        pods=20,
        arrived=130.0,
        allocated_at_end=95.0,
        allocated=[float(min(95, i)) for i in range(1, 131)],
        bound=100.0,
        failed={},
        machines_in_use=2,
        cpu_used=10.0,
        memory_used=10.0,
    )
    path = tmp_path / "p.png"
    check_picture(path)
    draw_packing([report, replace(report, variant="b")], path)
    assert path.read_bytes()[:4] == b"\x89PNG"
    for wrong, message in (
        (tmp_path / "p.txt", "does not end in .png"),
        (tmp_path / "no" / "p.png", "no directory"),
    ):
        with pytest.raises(DataError, match=message):
            check_picture(wrong)
