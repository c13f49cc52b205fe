"""Routing files: read, refused with what is wrong, and the difference that one makes."""

from __future__ import annotations

import pytest

from tidecell.client.routing_diff import describe_routing_change
from tidecell.client.routing_file import parse_routing
from tidecell.structs.errors import SpecError
from tidecell.structs.traffic import Canary, Key, Limits, Match, Routing, Rule, Shadow, Split, Tenant

FILE = """
aliases: {fast: llama}
rules:
  - name: beta
    match: {model: llama, headers: {x-beta: "yes"}}
    splits: [{service: a, weight: 3}, {service: b}]
    canary: {service: c, share: 0.05}
    shadow: {service: d, share: 0.5}
    fallback: [e, f]
tenants:
  acme: {limits: {tokens_per_day: 1000000, time_zone: Europe/Berlin}, weight: 2, ceiling: critical}
  guests:
"""


def test_a_file_says_all_that_the_table_can_hold() -> None:
    match = Match(model="llama", headers={"x-beta": "yes"})
    rule = Rule("beta", match, (Split("a", 3.0), Split("b")), Canary("c", 0.05), Shadow("d", 0.5), ("e", "f"))
    acme = Tenant(
        "acme", limits=Limits(tokens_per_day=10**6, time_zone="Europe/Berlin"), weight=2.0, ceiling="critical"
    )
    assert parse_routing(FILE, "f") == Routing({"fast": "llama"}, (rule,), (acme, Tenant("guests")))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rules: [{name: a, cannary: {}}]", "line 1: rules[0].cannary: has no key 'cannary'"),
        ("rules: [{name: a, canary: {service: c, shar: 1}}]", "did you mean share?"),
        (
            "rules: [{name: a, canary: {service: c, share: 2}}]",
            "rule 'a' has canary.share 2; allowed: 0 to 1",
        ),
        ("rules: [{name: a}, {name: a}]", "rule 'a' appears twice"),
        ("tenants: {acme: {limits: {concurrency: -1}}}", "limits.concurrency -1; allowed: 0 or more"),
        ("tenants: {acme: {limits: {time_zone: Mars}}}", "IANA names"),
        ("tenants: {acme: {keys: []}}", "tide key create makes keys"),
        ("tenants: {acme: {weight: heavy}}", "tenants[0].weight: expected `float`, got `str`"),
        ("tenants: [acme]", "must be a mapping"),
        ("tenants: {A B: {}}", "is no name"),
        ("alias: {a: b}", "allowed: aliases, rules, tenants"),
        ("aliases: {a: b, b: c}", "alias 'a' leads to 'b', which is an alias itself"),
        ("", "it is not one mapping"),
    ],
)
def test_a_mistake_is_named(text: str, said: str) -> None:
    with pytest.raises(SpecError) as raised:
        parse_routing(text, "routes.yaml")
    assert said in raised.value.render()


def test_each_value_that_differs_has_a_line() -> None:
    before = parse_routing(FILE, "f")
    acme = Tenant("acme", (Key("laptop", "00"),))
    before = Routing(before.aliases, (*before.rules, Rule("z")), (acme, before.tenants[1]))
    after = Routing(
        {"fast": "qwen"}, (Rule("z"), Rule("beta", canary=Canary("c", 0.1))), (Tenant("guests", weight=3.0),)
    )
    assert describe_routing_change(before, after) == (
        "alias fast llama -> qwen",
        "rule beta: canary.share 0.05 -> 0.1",
        "rule beta: match.model llama -> (none)",
        "rule beta: match.headers.x-beta yes -> (none)",
        "rule beta: splits a 3, b -> (none)",
        "rule beta: shadow.service d -> (none)",
        "rule beta: shadow.share 0.5 -> (none)",
        "rule beta: fallback e, f -> (none)",
        "rules in another order: z, beta",
        "tenant guests: weight (none) -> 3",
        "tenant acme: taken away",
        "tenant acme: its keys end with it: laptop",
    )
    assert describe_routing_change(before, before) == ("unchanged",)
