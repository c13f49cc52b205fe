"""Membership of an elastic group."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tidecell.engines.groups import Group


def indices(message: dict | None) -> list[int] | None:
    return None if message is None else [m["index"] for m in message["members"]]


def test_first_generation_forms_when_the_minimum_is_ready() -> None:
    group = Group(min_members=2)
    assert group.ready(1, "h:1") is None
    assert group.ready(0, "h:0") == {
        "type": "group",
        "generation": 1,
        "members": [{"index": 0, "endpoint": "h:0"}, {"index": 1, "endpoint": "h:1"}],
    }


def test_each_change_makes_one_generation() -> None:
    group = Group(min_members=1)
    assert indices(group.ready(0, "h:0")) == [0]
    assert indices(group.ready(1, "h:1")) == [0, 1]
    assert indices(group.leaving(0)) == [1]
    assert group.gone(0) is None
    assert indices(group.ready(0, "h:9")) == [0, 1]
    assert indices(group.gone(1)) == [0]
    assert group.generation == 5


def test_below_the_minimum_nothing_is_announced_until_it_is_reached_again() -> None:
    group = Group(min_members=2)
    group.ready(0, "h:0")
    group.ready(1, "h:1")
    assert group.gone(1) is None
    assert group.generation == 1
    message = group.ready(1, "h:2")
    assert message is not None
    assert (message["generation"], indices(message)) == (2, [0, 1])


def test_one_that_was_told_to_leave_is_not_taken_in_before_it_is_gone() -> None:
    group = Group(min_members=1)
    group.ready(0, "h:0")
    assert group.leaving(1) is None
    assert group.ready(1, "h:1") is None
    group.gone(1)
    assert indices(group.ready(1, "h:2")) == [0, 1]


def test_a_member_that_says_ready_again_lets_all_meet_again() -> None:
    group = Group(min_members=1)
    group.ready(0, "h:0")
    message = group.ready(0, "h:0")
    assert message is not None
    assert message["generation"] == 2


def test_numbers_go_on_after_the_agent_restarted() -> None:
    group = Group(min_members=2)
    assert group.ready(0, "h:0", seen=7) is None
    message = group.ready(1, "h:1", seen=6)
    assert message is not None
    assert message["generation"] == 8


def test_the_last_member_leaves_without_an_announcement() -> None:
    group = Group(min_members=0)
    group.ready(0, "h:0")
    assert group.gone(0) is None


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.sampled_from(["ready", "leaving", "gone"]), st.integers(0, 5)), max_size=60),
)
@settings(deadline=None)
def test_generations_only_rise_and_list_exactly_those_who_stay(
    min_members: int, steps: list[tuple[str, int]]
) -> None:
    group = Group(min_members)
    present: set[int] = set()
    told: set[int] = set()
    newest = 0
    for word, index in steps:
        before = set(present)
        if word == "ready":
            message = group.ready(index, f"h:{index}")
            if index not in told:
                present.add(index)
        else:
            message = getattr(group, word)(index)
            present.discard(index)
            (told.add if word == "leaving" else told.discard)(index)
        changed = present != before or (word == "ready" and index in present)
        assert (message is not None) == (changed and len(present) >= min_members)
        if message is not None:
            assert message["generation"] > newest
            newest = message["generation"]
            assert indices(message) == sorted(present)
