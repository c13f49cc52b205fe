"""``tasks`` in a spec: what single replicas have otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidecell.client.schema import parse_specs
from tidecell.structs.errors import SpecError
from tidecell.structs.job import JobSpec
from tidecell.structs.resources import Resources

GI = 1 << 30


def read(tasks: str, more: str = "replicas: 4") -> JobSpec:
    text = f"name: a\nrun: work\nenv: {{ROLE: worker, X: y}}\nresources: {{cpu: 1, memory: 1GiB}}\n{more}\n"
    (spec,) = parse_specs(text + f"tasks: {tasks}\n", "a.yaml", Path("/"))
    return spec


def mistakes(tasks: str, more: str = "replicas: 4") -> str:
    with pytest.raises(SpecError) as caught:
        read(tasks, more)
    return caught.value.render()


def test_one_replica_has_more_and_another_program() -> None:
    spec = read("{0: {resources: {cpu: 4}, env: {ROLE: leader}, run: [lead, now]}}")
    assert spec.request(0) == Resources(4000, GI)
    assert spec.request(1) == Resources(1000, GI)
    leader = spec.for_task(0)
    assert leader.argv == ("lead", "now")
    assert leader.run == ""
    assert leader.env == {"ROLE": "leader", "X": "y"}
    assert leader.resources == Resources(4000, GI)
    assert spec.for_task(1) is spec


def test_a_range_is_about_all_in_it() -> None:
    spec = read("{1-2: {env: {ROLE: reader}}}")
    assert [spec.for_task(i).env["ROLE"] for i in range(4)] == ["worker", "reader", "reader", "worker"]


@pytest.mark.parametrize(
    ("tasks", "more", "expected"),
    [
        ("{4: {env: {A: b}}}", "replicas: 4", "there is no replica 4; replicas are 0 to 3"),
        ("{x: {env: {A: b}}}", "replicas: 4", "no replica and no range"),
        ("{3-1: {env: {A: b}}}", "replicas: 4", "no replica and no range"),
        ("{0-2: {env: {A: b}}, 2: {env: {A: c}}}", "replicas: 4", "replica 2 is named twice"),
        ("{0: {priority: batch}}", "replicas: 4", "belongs at the top level"),
        ("{0: {resources: {disk: 4}}}", "replicas: 4", "unknown key"),
        ("{0: {resources: {cpu: lots}}}", "replicas: 4", "lots"),
        ("{0: {}}", "replicas: 4", "changes nothing"),
        ("[a]", "replicas: 4", "must be a mapping"),
        ("{0: {env: {A: b}}}", "array: 4", "all alike"),
        ("{0: {resources: {gpu: H100:1}}}", "replicas: 4", "asks for H100"),
    ],
)
def test_mistakes_name_what_is_allowed(tasks: str, more: str, expected: str) -> None:
    text = mistakes(tasks, more)
    assert expected in text
    assert "tasks" in text
