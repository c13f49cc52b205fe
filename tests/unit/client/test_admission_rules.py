"""Admission rules: what they match, what they change, and that a rule cannot make a wrong spec."""

from __future__ import annotations

import pytest

from tidecell.client.rules import apply_rules, parse_rules
from tidecell.structs.errors import RefusedError, SpecError
from tidecell.structs.job import Band, JobSpec, Priority, Replicas
from tidecell.structs.resources import Resources

RULES = parse_rules(
    """
rules:
  - name: accelerators need a team
    match: {resources.gpu: any, team: none}
    refuse: set team
  - match: {kind: job, priority: [batch, best-effort]}
    default: {max_duration: 2d, labels.tier: cheap}
    cap: {max_duration: 7d, replicas.max: 4, resources.memory: 8GB}
  - match: {labels.tier: gold}
    set: {priority: batch+5}
""",
    "admission.yaml",
)
JOB = JobSpec("j", run="true")


def test_defaults_are_given_where_nothing_is_said() -> None:
    spec = apply_rules(RULES, JOB)
    assert (spec.max_duration_s, spec.labels) == (2 * 86400.0, {"tier": "cheap"})
    own = JobSpec("j", run="true", max_duration_s=60.0, labels={"tier": "mine"})
    assert apply_rules(RULES, own) == own


def test_caps_lower_what_is_larger_and_a_gang_with_them() -> None:
    big = JobSpec(
        "j",
        run="true",
        max_duration_s=30 * 86400.0,
        replicas=Replicas(6, 9),
        resources=Resources(1000, 9 * 10**9),
    )
    spec = apply_rules(RULES, big)
    assert spec.max_duration_s == 7 * 86400.0
    assert spec.replicas == Replicas(4, 4)
    assert spec.resources.memory_bytes == 8 * 10**9


def test_a_refusal_names_the_rule_and_says_what_to_do() -> None:
    with pytest.raises(RefusedError) as caught:
        apply_rules(RULES, JobSpec("j", run="true", resources=Resources(1000, 0, 1000)))
    assert caught.value.message == "job 'j' is refused by rule 'accelerators need a team' of this cell"
    assert caught.value.hint == "set team"


def test_rules_apply_in_order_and_set_overrides() -> None:
    spec = apply_rules(RULES, JobSpec("j", run="true", labels={"tier": "gold"}))
    assert spec.priority == Priority(Band.BATCH, 5)


def test_a_spec_that_no_rule_touches_stays_the_same_object() -> None:
    production = JobSpec("j", run="true", priority=Priority(Band.PRODUCTION))
    assert apply_rules(RULES, production) is production


def test_what_a_rule_makes_wrong_is_refused_in_words() -> None:
    rules = parse_rules("rules: [{set: {max_duration: soon}}]", "admission.yaml")
    with pytest.raises(RefusedError, match="rules make no spec of job 'j': max_duration"):
        apply_rules(rules, JOB)


def test_all_mistakes_of_a_rule_file_are_listed() -> None:
    with pytest.raises(SpecError) as caught:
        parse_rules("rules:\n  - match: {kind: job}\n  - refuze: x\n    cap: 3\n", "admission.yaml")
    text = caught.value.render()
    assert "line 2: rules #1: does nothing" in text
    assert "unknown key 'refuze'" in text
    assert "cap must be a mapping" in text
