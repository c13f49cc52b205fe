"""The ``traffic`` section of a spec."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidecell.client.schema import parse_specs
from tidecell.client.specform import spec_to_dict
from tidecell.structs.errors import SpecError
from tidecell.structs.job import JobSpec
from tidecell.structs.traffic import (
    Affinity,
    BreakerPolicy,
    ConcurrencyPolicy,
    OverloadPolicy,
    PrequalPolicy,
    TrafficPolicy,
)


def parse_text(text: str) -> list[JobSpec]:
    return parse_specs(text, "spec", Path("/"))


SERVICE = "{kind: service, name: web, run: serve, traffic: %s}"


def test_a_spec_says_how_requests_are_treated() -> None:
    text = (
        "{balance: prequal, prequal: {hot_quantile: 0.8}, affinity: {by_user: true}, breaker: {}, "
        "overload: {criticality: sheddable, concurrency: {kind: fixed, initial: 8}, tenant_weights: {a: 2}}}"
    )
    (spec,) = parse_text(SERVICE % text)
    assert spec.traffic == TrafficPolicy(
        balance="prequal",
        prequal=PrequalPolicy(hot_quantile=0.8),
        affinity=Affinity(by_user=True),
        breaker=BreakerPolicy(),
        overload=OverloadPolicy(
            ConcurrencyPolicy("fixed", 8), criticality="sheddable", tenant_weights={"a": 2.0}
        ),
    )
    form = spec_to_dict(spec)
    assert form["traffic"]["prequal"] == {"hot_quantile": 0.8}
    (again,) = parse_text(str(form))
    assert again == spec


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("7", "must be a mapping"),
        ("{balanc: prequal}", "traffic has no key 'balanc'"),
        ("{prequal: {pool: 3}}", "traffic.prequal has no key 'pool'"),
        ("{prequal: {pool_size: 1}}", "traffic.prequal.pool_size 1; allowed: 2 to 256"),
        ("{balance: fastest}", "traffic.balance: invalid enum value 'fastest'"),
        ("{slow_start_s: soon}", "traffic.slow_start_s: expected `float`, got `str`"),
    ],
)
def test_a_mistake_in_it_is_named(section: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_text(SERVICE % section)
    assert message in [mistake.message for mistake in caught.value.mistakes]


def test_it_is_for_services_only() -> None:
    with pytest.raises(SpecError) as caught:
        parse_text("{name: a, run: x, traffic: {balance: prequal}}")
    assert caught.value.mistakes[0].message == "is for services only"
