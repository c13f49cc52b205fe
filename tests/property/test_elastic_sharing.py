"""On any trainings and machines: places exist, are given once, and keep to the limits."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tidecell.capacity.elastic import ElasticTraining, Placement, num_replicas, share_machines
from tidecell.capacity.goodput import GoodputCurve

SPEEDS = st.floats(0.0, 50.0, allow_nan=False)


@st.composite
def curves(draw: st.DrawFn) -> GoodputCurve | None:
    if draw(st.booleans()):
        return None
    within = draw(st.lists(SPEEDS, min_size=1, max_size=8))
    across = draw(st.lists(SPEEDS, min_size=1, max_size=40))
    return GoodputCurve((0.0, *within), (0.0, 0.0, *across))


@st.composite
def clusters(draw: st.DrawFn) -> tuple[list[ElasticTraining], tuple[int, ...]]:
    machines = tuple(draw(st.lists(st.integers(0, 8), min_size=1, max_size=8)))
    free = list(machines)
    trainings = []
    for index in range(draw(st.integers(0, 12))):
        least = draw(st.integers(1, 4))
        placement: Placement = ()
        machine = draw(st.integers(0, len(machines) - 1))
        if free[machine] and draw(st.booleans()):
            count = draw(st.integers(1, free[machine]))
            free[machine] -= count
            placement = ((machine, count),)
        trainings.append(
            ElasticTraining(
                f"t{index}",
                draw(curves()),
                draw(st.none() | st.floats(0.0, 1e7)),
                attained_gpu_s=draw(st.floats(0.0, 1e6)),
                min_replicas=least,
                max_replicas=draw(st.integers(least, 40)),
                largest_size_seen=draw(st.integers(0, 16)),
                placement=placement,
            )
        )
    return trainings, machines


@given(clusters())
def test_no_gpu_is_given_twice_and_sizes_are_allowed(
    given_: tuple[list[ElasticTraining], tuple[int, ...]],
) -> None:
    trainings, machines = given_
    placements = share_machines(trainings, machines)
    used: Counter[int] = Counter()
    for training in trainings:
        placement = placements.get(training.name, ())
        assert all(count > 0 for _, count in placement)
        assert len({machine for machine, _ in placement}) == len(placement)
        used.update(dict(placement))
        size = sum(count for _, count in placement)
        assert size == 0 or training.min_replicas <= size <= training.max_replicas
    assert all(count <= machines[machine] for machine, count in used.items())
    assert set(placements) <= {t.name for t in trainings}


@given(clusters())
def test_the_same_question_has_the_same_answer(given_: tuple[list[ElasticTraining], tuple[int, ...]]) -> None:
    trainings, machines = given_
    assert share_machines(trainings, machines) == share_machines(list(trainings), tuple(machines))


@given(clusters())
def test_a_decision_stands_when_asked_again(given_: tuple[list[ElasticTraining], tuple[int, ...]]) -> None:
    """Whoever kept its size keeps its places, so asking with the same sizes moves nobody."""
    trainings, machines = given_
    for name, placement in share_machines(trainings, machines).items():
        before = next(t for t in trainings if t.name == name)
        if before.size == num_replicas({name: placement})[name]:
            assert placement == before.placement


@given(st.integers(1, 6), st.integers(1, 5), st.floats(0.3, 1.0))
def test_another_machine_never_leaves_a_lone_training_smaller(machines: int, gpus: int, bend: float) -> None:
    most = gpus * (machines + 1)
    curve = GoodputCurve(
        tuple(n**bend for n in range(gpus + 1)), (0.0, 0.0, *(n**bend for n in range(2, most + 1)))
    )
    alone = ElasticTraining("a", curve, 1e5, max_replicas=most, largest_size_seen=most)
    few = num_replicas(share_machines([alone], (gpus,) * machines)).get("a", 0)
    more = num_replicas(share_machines([alone], (gpus,) * (machines + 1))).get("a", 0)
    assert few <= more
