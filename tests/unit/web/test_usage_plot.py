"""Usage as a picture: the values of the bars are those of the rows, and colours stand for groups."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tidecell.client.account_views import UsageRow, UsageView
from tidecell.structs.errors import TidecellError
from tidecell.web.usage_plot import MEASURES, draw_usage, stack

HOUR_S = 3600.0


def view(*rows: tuple[str, int, float]) -> UsageView:
    """Return what teams held: (team, number of the hour, cpu-hours)."""
    made = tuple(
        UsageRow(
            team,
            at_s=n * HOUR_S,
            cpu_hours=hours,
            requested_cpu_hours=hours + 1,
            gpu_hours={"H100": hours / 4},
        )
        for team, n, hours in rows
    )
    return UsageView(0.0, 9 * HOUR_S, made)


def test_steps_without_usage_are_there_and_the_largest_group_comes_first() -> None:
    times, groups = stack(view(("a", 2, 1.0), ("b", 2, 4.0), ("a", 5, 2.0)), ["team"], HOUR_S, "cpu")
    assert times == [2 * HOUR_S, 3 * HOUR_S, 4 * HOUR_S, 5 * HOUR_S]
    assert groups == [("b", [4.0, 0.0, 0.0, 0.0]), ("a", [1.0, 0.0, 0.0, 2.0])]


def test_each_measure_reads_its_own_number() -> None:
    row = UsageRow(
        cpu_hours=1.0,
        memory_gib_hours=2.0,
        gpu_hours={"H100": 3.0, "L4": 0.5},
        requested_cpu_hours=4.0,
        requested_gpu_hours=8.0,
        used_cpu_hours=5.0,
        waited_hours=6.0,
        cost=7.0,
    )
    read = {name: value(row) for name, (_, value) in MEASURES.items()}
    cores = {"cpu": 1, "requested": 4, "used": 5}
    assert read == {**cores, "gpu": 3.5, "requested-gpu": 8, "memory": 2, "waited": 6, "cost": 7}


def test_the_small_groups_beyond_seven_are_added_up() -> None:
    many = view(*((f"t{i}", 0, 10.0 - i) for i in range(9)))
    _, groups = stack(many, ["team"], HOUR_S, "cpu")
    assert [name for name, _ in groups] == [*(f"t{i}" for i in range(7)), "2 others"]
    assert groups[-1][1] == [5.0]
    assert sum(values[0] for _, values in groups) == sum(10.0 - i for i in range(9))


def test_work_of_nobody_is_named(tmp_path: Path) -> None:
    _, groups = stack(view(("", 0, 1.0)), ["team", "user"], HOUR_S, "cpu")
    assert [name for name, _ in groups] == ["no team · no user"]


def test_what_is_painted_is_in_proportion_to_what_was_held(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    path = tmp_path / "usage.png"
    draw_usage(view(("a", 0, 3.0), ("b", 0, 1.0)), ["team"], HOUR_S, "cpu", path)
    picture = (image.imread(path)[:, :, :3] * 255).round().astype(int)

    def painted(color: tuple[int, int, int]) -> int:
        plot = picture[:, : int(picture.shape[1] * 0.8)]  # the legend stands right of it
        return int((abs(plot - color) <= 2).all(axis=2).sum())

    assert painted((61, 135, 192)) / painted((229, 137, 60)) == pytest.approx(3.0, rel=0.05)


def test_a_time_in_which_nothing_was_held_is_refused_with_what_else_to_draw(tmp_path: Path) -> None:
    with pytest.raises(TidecellError, match="nothing to draw: no cost") as told:
        draw_usage(view(("a", 0, 1.0)), ["team"], HOUR_S, "cost", tmp_path / "x.png")
    assert "cpu, requested, used, gpu" in told.value.hint
    assert not (tmp_path / "x.png").exists()


def test_a_missing_matplotlib_is_said_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(TidecellError, match="matplotlib, which is not installed") as told:
        draw_usage(view(("a", 0, 1.0)), ["team"], HOUR_S, "cpu", tmp_path / "x.png")
    assert told.value.hint.startswith("pip install 'tidecell[scale]'")


def test_a_directory_that_is_not_there_is_said(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(TidecellError, match=r"cannot be written to .*/none/x\.png"):
        draw_usage(view(("a", 0, 1.0)), ["team"], HOUR_S, "cpu", tmp_path / "none" / "x.png")
