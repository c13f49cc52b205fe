"""The autoscaler under any load: within bounds, still when the load is still, the same for the same calls."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tidecell.capacity.autoscale import Autoscaler
from tidecell.structs.job import Scaling

specs = st.builds(
    Scaling,
    metric=st.sampled_from(["ongoing_requests", "requests_per_second"]),
    target=st.floats(0.5, 100),
    up_delay_s=st.floats(0, 30),
    down_delay_s=st.floats(0, 300),
)
bounds = st.tuples(st.integers(0, 5), st.integers(0, 20)).map(lambda b: (b[0], max(1, b[0] + b[1])))
loads = st.lists(st.tuples(st.floats(0.1, 20), st.floats(0, 2000)), min_size=1, max_size=60)


def run(spec: Scaling, bound: tuple[int, int], series: list[tuple[float, float]], desired: int) -> list[int]:
    scaler, now_s, sizes = Autoscaler(spec, *bound), 0.0, []
    for gap_s, load in series:
        now_s += gap_s
        desired = scaler.observe(now_s, load, desired, desired, rate=load).desired
        sizes.append(desired)
    return sizes


@given(specs, bounds, loads, st.integers(0, 40))
def test_the_size_is_always_within_its_bounds(
    spec: Scaling, bound: tuple[int, int], series: list[tuple[float, float]], desired: int
) -> None:
    assert all(bound[0] <= size <= bound[1] for size in run(spec, bound, series, desired))


@given(specs, bounds, loads, st.integers(0, 40))
def test_the_same_calls_give_the_same_decisions(
    spec: Scaling, bound: tuple[int, int], series: list[tuple[float, float]], desired: int
) -> None:
    assert run(spec, bound, series, desired) == run(spec, bound, series, desired)


@given(specs, bounds, st.floats(0, 2000), st.integers(0, 20), st.floats(0.2, 5))
def test_a_constant_load_is_settled_with_one_way_changes_only(
    spec: Scaling, bound: tuple[int, int], load: float, desired: int, gap_s: float
) -> None:
    start = min(max(desired, bound[0]), bound[1])
    sizes = [start, *run(spec, bound, [(gap_s, load)] * 2500, start)]
    steps = [after - before for before, after in pairwise(sizes) if after != before]
    assert all(step > 0 for step in steps) or all(step < 0 for step in steps)
    assert len(steps) <= 1


@given(specs, st.floats(1, 500))
def test_a_settled_size_carries_the_load(spec: Scaling, load: float) -> None:
    size = run(spec, (0, 100_000), [(1.0, load)] * 700, 1)[-1]
    assert load <= spec.target * size * 1.1 + 1e-9
