"""Which parameters an item of a sweep has."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidecell.structs.work import Array, grid_size

GRID = {"lr": ("0.1", "0.01"), "bs": ("8", "16", "32")}


def test_a_sweep_goes_through_the_grid_with_the_last_parameter_fastest():
    points = [Array(6, GRID).parameters(i) for i in range(6)]
    assert points[:4] == [
        {"lr": "0.1", "bs": "8"},
        {"lr": "0.1", "bs": "16"},
        {"lr": "0.1", "bs": "32"},
        {"lr": "0.01", "bs": "8"},
    ]
    assert len({tuple(p.items()) for p in points}) == 6


def test_a_plain_array_has_no_parameters():
    assert Array(3).parameters(2) == {}


def test_an_item_beyond_the_end_is_an_error():
    with pytest.raises(IndexError, match="item 6 of an array of 6"):
        Array(6, GRID).parameters(6)


@given(st.integers(1, 500), st.integers(0, 99), st.data())
def test_samples_are_different_points_of_the_grid_and_the_same_for_the_same_seed(
    size: int, seed: int, data: st.DataObject
):
    sweep = {"a": tuple(map(str, range(size)))}
    count = data.draw(st.integers(1, size))
    array = Array(count, sweep, count, seed)
    points = [array.parameters(i)["a"] for i in range(count)]
    assert len(set(points)) == count
    assert set(points) <= set(sweep["a"])
    assert points == [Array(count, sweep, count, seed).parameters(i)["a"] for i in range(count)]


def test_another_seed_draws_other_points_of_a_huge_grid():
    sweep = {name: tuple(map(str, range(1000))) for name in "abcd"}
    one, other = Array(20, sweep, 20, 1), Array(20, sweep, 20, 2)
    assert grid_size(sweep) == 10**12
    assert [one.parameters(i) for i in range(20)] != [other.parameters(i) for i in range(20)]
