"""The tide as a picture: what was reserved is what is painted."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tidecell.client.views import JobSample, Sample, ServiceSample, TrainSample
from tidecell.structs.errors import TidecellError
from tidecell.web.chart import draw_tide

START_S = 1_700_000_000.0
PRODUCTION, BATCH = (229, 137, 60), (61, 135, 192)


def tide(length_s: int = 120) -> list[Sample]:
    """Return training that gives one of two cores to a service in the middle third."""
    samples = []
    for i in range(length_s):
        high = length_s / 3 <= i < 2 * length_s / 3
        workers = 1 if high else 2
        samples.append(
            Sample(
                START_S + i,
                2000,
                {"batch": 900 * workers, **({"production": 900} if high else {})},
                jobs={"train": JobSample("job", "batch", workers, 900 * workers, 800 * workers)},
                services={"chat": ServiceSample(rate_per_s=30.0 if high else 1.0, latency_ms_p95=200.0)},
                trainings={"train": TrainSample(i, 120, 3.0, 2500.0 * workers, workers)},
            )
        )
    return samples


def pixels(path: Path) -> Any:
    """Return the picture as rows of (red, green, blue), 0 to 255."""
    image = pytest.importorskip("matplotlib.image")
    return (image.imread(path)[:, :, :3] * 255).round().astype(int)


def share(picture: Any, color: tuple[int, int, int], left: float, right: float) -> float:
    """Return which part of a vertical strip of the plot has a colour; 0.07 to 0.925 is the plot's width."""
    width = picture.shape[1]
    plot = slice(int(width * (0.07 + 0.855 * left)), int(width * (0.07 + 0.855 * right)))
    return float((abs(picture[:, plot] - color) <= 2).all(axis=2).mean())


def draw(tmp_path: Path, samples: Sequence[Sample], marks: Sequence[tuple[float, str]] = ()) -> Any:
    path = tmp_path / "tide.png"
    draw_tide(samples, path, "A tide", marks)
    return pixels(path)


def test_the_picture_has_the_size_of_a_readme(tmp_path: Path) -> None:
    assert draw(tmp_path, tide()).shape[:2] == (900, 1400)


def test_production_is_painted_where_it_held_cores_and_only_there(tmp_path: Path) -> None:
    picture = draw(tmp_path, tide())
    assert share(picture, PRODUCTION, 0.40, 0.60) > 0.10
    assert share(picture, PRODUCTION, 0.05, 0.30) == 0
    assert share(picture, PRODUCTION, 0.70, 0.95) == 0


def test_an_area_is_as_high_as_what_it_stands_for(tmp_path: Path) -> None:
    picture = draw(tmp_path, tide())
    ebb, flood = share(picture, BATCH, 0.40, 0.44), share(picture, BATCH, 0.05, 0.10)
    assert flood == pytest.approx(2 * ebb, rel=0.05)


def test_marks_are_drawn_through_the_panels_and_labelled_above(tmp_path: Path) -> None:
    plain = draw(tmp_path, tide())
    marked = draw(tmp_path, tide(), [(START_S + 40, "burst begins"), (START_S + 41, "training shrinks")])
    ink = (20, 33, 43)
    assert share(marked, ink, 0.33, 0.35) > 2 * share(plain, ink, 0.33, 0.35)


def test_marks_outside_of_the_time_shown_are_left_out(tmp_path: Path) -> None:
    plain = draw(tmp_path, tide())
    assert (draw(tmp_path, tide(), [(START_S - 5, "before"), (START_S + 500, "after")]) == plain).all()


def test_a_time_without_samples_is_a_gap(tmp_path: Path) -> None:
    samples = [s for s in tide() if not 50 <= s.at_s - START_S < 70]
    picture = draw(tmp_path, samples)
    assert share(picture, PRODUCTION, 0.45, 0.55) == 0
    assert share(picture, BATCH, 0.45, 0.55) == 0
    assert share(picture, PRODUCTION, 0.36, 0.40) > 0


def test_an_idle_cell_has_a_picture_too(tmp_path: Path) -> None:
    picture = draw(tmp_path, [Sample(START_S + i, 2000, {}) for i in range(3)])
    assert share(picture, BATCH, 0.0, 1.0) == 0


def test_one_sample_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(TidecellError) as caught:
        draw_tide(tide()[:1], tmp_path / "tide.png", "A tide")
    assert caught.value.message == "a tide chart needs at least 2 samples; there are 1"
    assert caught.value.hint == "the cell takes one a second: wait a little, or choose a longer time"


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "tide.png"
    with pytest.raises(TidecellError) as caught:
        draw_tide(tide(), path, "A tide")
    assert caught.value.message == f"the chart cannot be written to {path}: No such file or directory"


def test_without_matplotlib_the_hint_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(TidecellError) as caught:
        draw_tide(tide(), tmp_path / "tide.png", "A tide")
    assert caught.value.message == "charts need matplotlib, which is not installed"
    assert caught.value.hint == "pip install 'tidecell[demo]'"
