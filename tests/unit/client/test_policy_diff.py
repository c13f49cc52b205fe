"""What a quota file would change, said value by value."""

from __future__ import annotations

from tidecell.client.policy import parse_policy
from tidecell.client.policy_diff import describe_change
from tidecell.structs.tenant import Policy

BEFORE = """
teams:
  red: {cohort: sea, quota: {batch: {cpu: 2, lend: none}, production: {cpu: 1}}}
  blue: {quota: {batch: {gpu: {H100: 2}}}}
prices: {cpu_hour: 0.05}
"""
AFTER = """
teams:
  red: {cohort: sea, weight: 2, quota: {batch: {cpu: 4, borrow: {gpu: 1}}}}
  green: {quota: {batch: {cpu: 8, memory: 1GiB}}}
prices: {cpu_hour: 0.1, currency: EUR}
patience: 10s
"""


def read(text: str) -> Policy:
    return parse_policy(text, "quota.yaml")


def test_each_value_that_differs_has_a_line() -> None:
    assert describe_change(read(BEFORE), read(AFTER)) == (
        "team green: new; batch 8 cpu, 1.0 GiB memory",
        "team red: weight (none) -> 2",
        "team red: batch 2 cpu -> 4 cpu",
        "team red: batch borrow (none) -> 1 gpu",
        "team red: batch lend none -> (none)",
        "team red: production 1 cpu -> (none)",
        "team blue: taken away",
        "the cell: patience (none) -> 10s",
        "the cell: prices.cpu_hour 0.05 -> 0.1",
        "the cell: prices.currency (none) -> EUR",
    )


def test_the_same_policy_changes_nothing() -> None:
    assert describe_change(read(BEFORE), read(BEFORE)) == ("unchanged",)


def test_from_nothing_all_is_new_and_to_nothing_all_is_taken_away() -> None:
    first = describe_change(None, read(BEFORE))
    assert first[0] == "team red: new; cohort sea; batch 2 cpu; batch lend none; production 1 cpu"
    assert describe_change(read(BEFORE), None) == (
        "team red: taken away",
        "team blue: taken away",
        "no quota any more: everything is allowed",
    )


def test_another_order_of_teams_is_a_change() -> None:
    policy = read(BEFORE)
    assert describe_change(policy, Policy(policy.teams[::-1], policy.prices)) == ("another order of teams",)
