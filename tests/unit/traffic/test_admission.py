"""Admission, balancers and explanations behind the data plane's calls."""

from __future__ import annotations

from random import Random

import pytest

from tidecell.structs.errors import RefusedError
from tidecell.structs.traffic import (
    Affinity,
    BreakerPolicy,
    Canary,
    Key,
    Limits,
    OverloadPolicy,
    PrefixPolicy,
    PrequalPolicy,
    Rule,
    Shadow,
    Split,
    Tenant,
    TrafficPolicy,
)
from tidecell.traffic.balance import Load
from tidecell.traffic.balancers import ServiceBalancer
from tidecell.traffic.directory import Directory
from tidecell.traffic.explain import Decisions, Seen, explain
from tidecell.traffic.fleet import Fleet
from tidecell.traffic.health import Health
from tidecell.traffic.http1 import parse_request
from tidecell.traffic.policies import TrafficPolicies
from tidecell.traffic.policy import ADMIT, End, Facts
from tidecell.traffic.rules import Routed
from tidecell.traffic.table import Endpoint, Route, Table, check, decode, encode

KEY = "ab" * 32


def facts(fields: str = "", body: bytes = b"", key: str = KEY, at_s: float = 0.0, user: str = "") -> Facts:
    head = parse_request(f"POST /v1/completions HTTP/1.1\r\nhost: h\r\n{fields}\r\n".encode())
    return Facts("chat", "m", key, False, 10, user, len(body), head, body, at_s)


def end(status: int = 200, outcome: str = "ok", tokens: int | None = 5, frames: int = 0) -> End:
    return End(outcome, status, tokens, 0 if tokens is not None else None, frames, 1.0, 2.0)


def table(policy: TrafficPolicy | None = None, **more: object) -> Table:
    endpoints = (Endpoint("r0", "h", 1), Endpoint("r1", "h", 2))
    chat = Route("chat", ("m",), endpoints, traffic=policy or TrafficPolicy())
    new = Route("new", (), (Endpoint("n0", "h", 3),))
    return Table(1, 1, (chat, new), (KEY,), **more)  # type: ignore[arg-type]


def policies(policy: TrafficPolicy | None = None, **more: object) -> TrafficPolicies:
    return TrafficPolicies(table(policy, **more), Random(1))


def fleet(num: int = 2) -> list[Load]:
    return [Load(0, 0.0, -100.0, f"r{i}") for i in range(num)]


def test_a_request_without_policies_is_admitted_as_it_is() -> None:
    admission = policies().traffic
    asked = facts()
    assert admission.admit(asked, 0.0) is ADMIT
    admission.settle(asked, end(), 1.0)


def test_limits_are_reserved_and_settled() -> None:
    tenants = (Tenant("t", (Key("k", KEY),), Limits(tokens_per_minute=20)),)
    admission = policies(tenants=tenants).traffic
    first, second = facts(), facts()
    assert admission.admit(first, 0.0).refusal is None
    refusal = admission.admit(facts(body=b"x" * 44), 0.0).refusal
    assert refusal is not None
    assert (refusal.status, refusal.outcome) == (429, "limit_tokens_per_minute")
    admission.settle(first, end(tokens=5), 1.0)
    assert admission.admit(second, 1.0).refusal is None
    assert admission.refused == {"chat": {"limit_tokens_per_minute": 1}}


def test_a_broken_stream_is_charged_for_what_was_passed_on() -> None:
    tenants = (Tenant("t", (Key("k", KEY),), Limits(tokens_per_minute=100)),)
    admission = policies(tenants=tenants).traffic
    asked = facts(body=b"x" * 40)
    admission.admit(asked, 0.0)
    admission.settle(asked, end(200, "stream_broken", None, frames=7), 1.0)
    admission.settle(asked, end(200, "stream_broken", None, frames=7), 1.0)
    assert admission.ledger.accounts["tenant t"].windows["tokens_per_minute"].used == 17


def test_a_canary_and_a_shadow_are_decided_at_admission() -> None:
    rule = Rule("r", canary=Canary("new", 1.0), shadow=Shadow("chat"))
    admission = policies(rules=(rule,)).traffic
    asked = facts(user="ann")
    decision = admission.admit(asked, 0.0)
    assert (decision.service, decision.shadow) == ("new", "chat")
    assert admission.routed(asked) == Routed("new", "canary", "r", "chat")


def test_a_breaker_that_is_open_refuses_and_its_fallback_takes_over() -> None:
    broken = TrafficPolicy(breaker=BreakerPolicy(min_requests=1))
    admission = policies(broken).traffic
    asked = facts()
    admission.admit(asked, 0.0)
    admission.settle(asked, end(502, "upstream_lost", None), 0.0)
    refusal = admission.admit(facts(), 1.0).refusal
    assert refusal is not None
    assert (refusal.status, refusal.outcome) == (503, "breaker_open")
    second = policies(broken, rules=(Rule("r", fallback=("new",)),)).traffic
    second.admit(asked, 0.0)
    second.settle(asked, end(502, "upstream_lost", None), 0.0)
    assert second.admit(facts(), 1.0).service == "new"


def test_criticality_is_the_rank_and_a_deadline_ends_the_wait() -> None:
    admission = policies(TrafficPolicy(overload=OverloadPolicy(deadline_s=9.0))).traffic
    decision = admission.admit(facts("x-tide-criticality: sheddable\r\nx-tide-deadline-ms: 1500\r\n"), 0.0)
    assert (decision.rank, decision.deadline_s) == (3, 1.5)
    plain = admission.admit(facts(), 0.0)
    assert (plain.rank, plain.deadline_s) == (1, 9.0)
    late = admission.admit(facts("x-tide-deadline-ms: 100\r\n"), 0.2).refusal
    assert late is not None
    assert (late.status, late.outcome) == (504, "late")


def test_a_tenant_asks_for_no_more_than_its_ceiling() -> None:
    tenants = (Tenant("t", (Key("k", KEY),), ceiling="sheddable"),)
    admission = policies(TrafficPolicy(overload=OverloadPolicy()), tenants=tenants).traffic
    assert admission.admit(facts("x-tide-criticality: critical-plus\r\n"), 0.0).rank == 3


def test_a_new_table_keeps_what_was_learned_where_the_policy_is_the_same() -> None:
    one = policies(TrafficPolicy(balance="prequal"))
    two = TrafficPolicies(table(TrafficPolicy(balance="prequal")), Random(1), one)
    assert two.services["chat"] is one.services["chat"]
    three = TrafficPolicies(table(TrafficPolicy(balance="prefix")), Random(1), two)
    assert three.services["chat"] is not two.services["chat"]
    assert three.traffic is one.traffic


@pytest.mark.parametrize(
    "balance", ["power-of-two", "prequal", "least-outstanding", "least-tokens", "round-robin", "prefix",
                "weighted-round-robin"],
)  # fmt: skip
def test_every_policy_keeps_its_counts_over_an_attempt(balance: str) -> None:
    balancer = ServiceBalancer(TrafficPolicy(balance=balance), Random(1))  # type: ignore[arg-type]
    loads = fleet(3)
    for number in range(30):
        asked = facts(body=b"p" * 3000 * (number % 3))
        load = loads[balancer.pick(loads, asked, 0.0)]
        balancer.on_start(load, asked, 0.0)
        assert load.tokens > 0
        if number % 2:
            balancer.on_first_byte(load, asked, 5.0, 0.1)
        balancer.on_end(load, asked, end(), 0.2)
        assert load.tokens == 0
    assert balancer.reason
    assert sum(balancer.reasons.values()) == 30
    assert not balancer._open
    assert not balancer._chains


def test_prequal_says_whom_to_probe_and_follows_the_answers() -> None:
    balancer, loads, asked = ServiceBalancer(TrafficPolicy(balance="prequal"), Random(1)), fleet(4), facts()
    balancer.probes_are_remote = True
    balancer.pick(loads, asked, 0.0)
    balancer.on_start(loads[0], asked, 0.0)
    assert len(balancer.take_targets()) == 3
    assert balancer.take_targets() == []
    for load in loads:
        balancer.on_report(load, 1, 10.0 if load.id == "r2" else 90.0, 0.0)
    assert balancer.pick(loads, facts(), 0.1) == 2
    assert balancer.reason == "cold"


def test_a_session_stays_whatever_the_policy() -> None:
    policy = TrafficPolicy(affinity=Affinity("X-Session-ID", by_user=True))
    balancer, loads = ServiceBalancer(policy, Random(1)), fleet(8)
    assert len({balancer.pick(loads, facts("X-Session-Id: s1\r\n"), 0.0) for _ in range(20)}) == 1
    assert len({balancer.pick(loads, facts(user="ann"), 0.0) for _ in range(20)}) == 1
    assert len({balancer.pick(loads, facts(), 0.0) for _ in range(50)}) > 1


def test_a_prompt_follows_its_prefix_through_the_data_planes_calls() -> None:
    policy = TrafficPolicy(balance="prefix", prefix=PrefixPolicy(block_bytes=64))
    balancer, loads = ServiceBalancer(policy, Random(1)), fleet(4)
    first = facts(body=b"system prompt " * 50)
    index = balancer.pick(loads, first, 0.0)
    balancer.on_start(loads[index], first, 0.0)
    balancer.on_end(loads[index], first, end(), 0.1)
    again = facts(body=b"system prompt " * 50 + b"and more")
    assert balancer.pick(loads, again, 0.2) == index
    assert balancer.reason == "prefix_hit"


def test_an_explanation_says_of_each_replica_why() -> None:
    policy = TrafficPolicy(balance="prequal", prequal=PrequalPolicy(remove_rate=0.0))
    balancer, loads = ServiceBalancer(policy, Random(1)), fleet(5)
    for load, rif in zip(loads[:3], (1, 2, 90), strict=True):
        balancer.on_report(load, rif, 20.0 + rif, 0.0)
    health = [Health() for _ in loads]
    health[3].ejected_until_s = 9.0
    health[4].unreachable_until_s = 2.0
    chosen = loads[balancer.pick(loads[:3], facts(), 0.5)].id
    seen = [Seen(load, one) for load, one in zip(loads, health, strict=True)]
    said = explain("chat", balancer, seen, 0.5, Routed("chat", "canary", "beta"), chosen)
    assert [verdict.reason for verdict in said.replicas] == [
        "chosen",
        "slower",
        "hot",
        "ejected",
        "unreachable",
    ]
    text = "\n".join(said.lines())
    assert "chat  canary by rule beta, prequal: cold" in text
    assert "for 8.5 s more" in text
    assert "rif 90 (hot above 2)" in text


def test_decisions_are_kept_by_request_id_up_to_a_number() -> None:
    kept, balancer = Decisions(2), ServiceBalancer(TrafficPolicy(), Random(1))
    said = explain("chat", balancer, [Seen(load, Health()) for load in fleet()], 0.0)
    for name in ("a", "b", "c"):
        kept.keep(name, said)
    assert kept.find("a") is None
    assert kept.find("c") is said


def test_a_table_with_policies_survives_its_encoding() -> None:
    given = table(
        TrafficPolicy(balance="prequal", overload=OverloadPolicy(), breaker=BreakerPolicy()),
        rules=(Rule("r", splits=(Split("new"),)),),
        tenants=(Tenant("t", (Key("k", KEY),)),),
        aliases={"gpt": "m"},
    )
    assert decode(encode(given)) == given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            table(TrafficPolicy(prequal=PrequalPolicy(pool_size=1))),
            "service 'chat' has traffic.prequal.pool_size 1; allowed: 2 to 256",
        ),
        (
            table(TrafficPolicy(slow_start_s=-1.0)),
            "service 'chat' has traffic.slow_start_s -1; allowed: 0 or more",
        ),
        (
            table(rules=(Rule("r", splits=(Split("old"),)),)),
            "rule 'r' has service 'old'; allowed: services of the table: chat, new",
        ),
        (
            table(rules=(Rule("r", canary=Canary("new", 1.5)),)),
            "rule 'r' has canary.share 1.5; allowed: 0 to 1",
        ),
        (table(rules=(Rule("r"), Rule("r"))), "rule 'r' appears twice or has no name"),
        (
            table(tenants=(Tenant("t", limits=Limits(time_zone="Mars/Base")),)),
            "tenant 't' has limits.time_zone 'Mars/Base'; allowed: IANA names such as Europe/Berlin",
        ),
        (
            table(tenants=(Tenant("t", (Key("k", "cd"),)),)),
            "key 'k' of tenant 't' is not among the table's tokens",
        ),
        (
            table(tenants=(Tenant("t", (Key("k", KEY),)), Tenant("u", (Key("k", KEY),)))),
            "key 'k' of tenant 'u' is also a key of tenant 't'",
        ),
    ],
)
def test_a_table_with_an_impossible_policy_is_refused(given: Table, message: str) -> None:
    with pytest.raises(RefusedError) as caught:
        check(given)
    assert caught.value.message == message
    assert caught.value.hint


def test_prequal_learns_from_the_routers_own_counts_which_replica_is_slow() -> None:
    balancer, loads = ServiceBalancer(TrafficPolicy(balance="prequal"), Random(1)), fleet(4)
    chosen = []
    for number in range(400):
        asked, now_s = facts(), number * 0.02
        load = loads[balancer.pick(loads, asked, now_s)]
        balancer.on_start(load, asked, now_s)
        balancer.on_first_byte(load, asked, 400.0 if load.id == "r2" else 20.0, now_s)
        balancer.on_end(load, asked, end(), now_s)
        chosen.append(load.id)
    assert chosen[100:].count("r2") < 15  # a quarter would be 75
    assert balancer.reasons["cold"] > 350


def test_a_breaker_counts_what_is_under_way() -> None:
    admission = policies(TrafficPolicy(breaker=BreakerPolicy(max_in_flight=1))).traffic
    first = facts()
    assert admission.admit(first, 0.0).refusal is None
    refusal = admission.admit(facts(), 0.0).refusal
    assert refusal is not None
    assert refusal.outcome == "breaker_full"
    admission.settle(first, end(), 1.0)
    assert admission.admit(facts(), 1.0).refusal is None


def test_weights_and_slow_start_of_the_table_reach_the_replicas() -> None:
    endpoints = (Endpoint("a", "h", 1, weight=3.0), Endpoint("b", "h", 2))
    policy = TrafficPolicy(balance="weighted-round-robin", slow_start_s=0.0)
    given = Table(1, 1, (Route("chat", (), endpoints, traffic=policy),))
    fleet_ = Fleet(Random(1), lambda: 1.0)
    fleet_.apply(given, TrafficPolicies(given, Random(1)))
    service, names = fleet_.services["chat"], []
    for _ in range(40):
        replica = service.pick(facts(), 1.0)
        assert replica is not None
        names.append(replica.id)
    assert abs(names.count("a") - 30) <= 1
    bad = Table(1, 1, (Route("chat", (), (Endpoint("a", "h", 1, weight=-1.0),)),))
    with pytest.raises(RefusedError, match="endpoint 'a' has weight -1; it must be 0 or more"):
        check(bad)


def test_an_alias_leads_to_the_service_of_its_model() -> None:
    given = Directory(table(aliases={"gpt": "m", "nothing": "unknown"}))
    assert [card["id"] for card in given.models()["data"]] == ["gpt", "m"]
