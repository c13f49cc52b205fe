"""Rules, splits, canaries, fallbacks, sessions, other cells."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from tidecell.structs.traffic import Canary, Match, Rule, Shadow, Split
from tidecell.traffic.balance import Load
from tidecell.traffic.rules import Asked, Cell, Routed, Rules, by_affinity, fraction, waterfall


def asked(**given: str) -> Asked:
    headers = {"x-beta": given.pop("beta", "")}
    values = {
        "service": "chat", "model": "base:french", "path": "/v1/chat/completions", "host": "chat.localhost",
        "tenant": "acme", "user": "ann", "request_id": "req-1", **given,
    }  # fmt: skip
    return Asked(**values, header=lambda name: headers.get(name, ""))


def always(service: str) -> bool:
    return True


def test_without_a_rule_a_request_goes_where_it_was_going() -> None:
    assert Rules([], {}).route(asked(), always) == Routed("chat")


@pytest.mark.parametrize(
    ("match", "hit"),
    [
        (Match(), True),
        (Match(service="chat", tenant="acme", host="chat.localhost"), True),
        (Match(model="base"), True),
        (Match(model="base:french"), True),
        (Match(model="other"), False),
        (Match(adapter="french"), True),
        (Match(adapter="german"), False),
        (Match(path="/v1/chat"), True),
        (Match(path="/v2"), False),
        (Match(tenant="other"), False),
        (Match(headers={"x-beta": "yes"}), True),
        (Match(headers={"x-beta": "no"}), False),
        (Match(service="chat", model="other"), False),
    ],
)
def test_all_that_a_match_names_must_hold(match: Match, hit: bool) -> None:
    rules = Rules([Rule("r", match, splits=(Split("new"),))], {})
    assert rules.route(asked(beta="yes"), always).service == ("new" if hit else "chat")


def test_the_first_rule_that_matches_decides() -> None:
    rules = Rules([Rule("a", splits=(Split("x"),)), Rule("b", splits=(Split("y"),))], {})
    assert rules.route(asked(), always) == Routed("x", "rule", "a")


def test_an_alias_stands_for_a_model_and_keeps_the_adapter() -> None:
    rules = Rules([], {"gpt": "base"})
    assert rules.model_of("gpt") == "base"
    assert rules.model_of("gpt:french") == "base:french"
    assert rules.model_of("other") == "other"


def test_splits_follow_their_weights() -> None:
    rules = Rules([Rule("r", splits=(Split("a", 9), Split("b", 1)))], {})
    chosen = Counter(rules.route(asked(request_id=f"q{i}"), always).service for i in range(5000))
    assert 0.08 < chosen["b"] / 5000 < 0.12


def test_a_request_that_is_tried_again_goes_the_same_way() -> None:
    rules = Rules([Rule("r", splits=(Split("a"), Split("b")), shadow=Shadow("c", 0.5))], {})
    assert len({rules.route(asked(request_id="q7"), always) for _ in range(5)}) == 1


def test_users_stay_in_a_canary_that_grows() -> None:
    def inside(share: float) -> set[str]:
        rules = Rules([Rule("r", canary=Canary("new", share))], {})
        users = (f"u{i}" for i in range(2000))
        return {user for user in users if rules.route(asked(user=user), always).service == "new"}

    small, large = inside(0.05), inside(0.2)
    assert small < large
    assert 0.03 < len(small) / 2000 < 0.07
    assert inside(0.0) == set()
    assert len(inside(1.0)) == 2000


def test_a_canary_by_request_does_not_look_at_the_user() -> None:
    rules = Rules([Rule("r", canary=Canary("new", 0.5, "request"))], {})
    assert {rules.route(asked(request_id=f"q{i}"), always).service for i in range(50)} == {"chat", "new"}


def test_two_rules_hash_the_same_user_differently() -> None:
    users = [f"u{i}" for i in range(2000)]
    both = sum(fraction(u, "a/canary") < 0.1 and fraction(u, "b/canary") < 0.1 for u in users)
    assert both < 60  # a hundredth, not a tenth


def test_a_shadow_gets_its_share_and_changes_nothing_else() -> None:
    rules = Rules([Rule("r", shadow=Shadow("copy", 0.25))], {})
    routes = [rules.route(asked(request_id=f"q{i}"), always) for i in range(4000)]
    assert {route.service for route in routes} == {"chat"}
    assert 0.22 < sum(route.shadow == "copy" for route in routes) / 4000 < 0.28


def test_the_first_of_the_chain_that_is_ready_takes_over() -> None:
    rules = Rules([Rule("r", fallback=("small", "tiny"))], {})
    assert rules.route(asked(), always).reason == "rule"
    assert rules.route(asked(), lambda s: s == "tiny") == Routed("tiny", "fallback", "r")
    assert rules.route(asked(), lambda s: False) == Routed("chat", "no_fallback_ready", "r")


def fleet(num: int) -> list[Load]:
    return [Load(0, 0.0, -100.0, f"r{i}") for i in range(num)]


def test_only_sessions_of_a_replica_that_left_move() -> None:
    loads = fleet(8)
    before = {f"s{i}": loads[by_affinity(loads, f"s{i}")[0]].id for i in range(1000)}
    fewer = loads[:3] + loads[4:]
    after = {s: fewer[by_affinity(fewer, s)[0]].id for s in before}
    assert all(after[s] == before[s] for s in before if before[s] != "r3")
    assert len(Counter(after[s] for s in before if before[s] == "r3")) == 7  # spread over all others


def test_a_replica_with_too_much_passes_its_sessions_on_to_the_same_next() -> None:
    loads = fleet(4)
    index, reason = by_affinity(loads, "s")
    assert reason == "session"
    loads[index].in_flight = 40
    moved = {by_affinity(loads, "s") for _ in range(5)}
    assert len(moved) == 1
    assert moved.pop()[1] == "session_moved"


def test_the_near_cell_is_filled_before_anything_flows_on() -> None:
    cells = [Cell("here", 100.0, 79.0), Cell("there", 100.0, 0.0)]
    assert {waterfall(cells, Random(i)) for i in range(50)} == {("here", "local")}


def test_only_what_is_above_the_mark_flows_on() -> None:
    cells = [Cell("here", 100.0, 90.0), Cell("there", 100.0, 0.0)]
    chosen = Counter(waterfall(cells, Random(i)) for i in range(4000))
    assert abs(chosen["there", "spilled"] / 4000 - 10.0 / 90.0) < 0.02


def test_a_full_cell_and_one_that_is_down_get_nothing_while_another_has_room() -> None:
    cells = [Cell("here", 100.0, 120.0), Cell("down", 100.0, 0.0, False), Cell("there", 100.0, 10.0)]
    assert {waterfall(cells, Random(i)) for i in range(50)} == {("there", "spilled")}


def test_where_all_are_full_load_is_spread_by_capacity() -> None:
    cells = [Cell("a", 300.0, 900.0), Cell("b", 100.0, 300.0)]
    chosen = Counter(waterfall(cells, Random(i))[0] for i in range(4000))
    assert 0.7 < chosen["a"] / 4000 < 0.8
    with pytest.raises(ValueError, match="no cell"):
        waterfall([Cell("x", 1.0, 0.0, False)], Random(1))
