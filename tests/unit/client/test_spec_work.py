"""What a spec says about arrays and sweeps, and what it is told when it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidecell.client.schema import parse_specs
from tidecell.structs.errors import SpecError
from tidecell.structs.job import JobSpec, Replicas
from tidecell.structs.work import Array


def read(text: str, name: str = "name: a\nrun: x\n") -> JobSpec:
    return parse_specs(name + text, "x.yaml", Path("/"))[0]


def mistakes(text: str, name: str = "name: a\nrun: x\n") -> list[str]:
    with pytest.raises(SpecError) as caught:
        read(text, name)
    return [f"{m.line}: {m.where}: {m.message} | {m.hint}" for m in caught.value.mistakes]


@pytest.mark.parametrize(
    ("text", "array", "parallel"),
    [
        ("array: 100%10", Array(100), 10),
        ("array: 7", Array(7), 7),
        ("array: {count: 100, parallel: 10}", Array(100), 10),
        ("array: {count: 5, parallel: 10}", Array(5), 5),
        (
            "array: {sweep: {lr: [0.1, 1e-3], bs: [8, 16]}, parallel: 3}",
            Array(4, {"lr": ("0.1", "1e-3"), "bs": ("8", "16")}),
            3,
        ),
        (
            "array: {sweep: {lr: [1, 2, 3]}, samples: 2, seed: 5}",
            Array(2, {"lr": ("1", "2", "3")}, 2, 5),
            2,
        ),
    ],
)
def test_arrays_and_sweeps_are_read(text: str, array: Array, parallel: int):
    spec = read(text)
    assert (spec.array, spec.replicas) == (array, Replicas(0, parallel))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("array: ten", "3: array: 'ten' is no array | write COUNT or COUNT%PARALLEL: 100, 100%10"),
        ("array: 0", "3: array: an array of 0 items; 1 to 100000 are allowed | split it into several"),
        ("array: {parallel: 3}", "3: array.count: is missing | give count: N, or sweep: {name: [values]}"),
        (
            "array: {count: 3, seed: 1}",
            "3: array.seed: is for sweeps only | take it out, or give sweep: {name: [values]}",
        ),
        (
            "array: {sweep: {lr: [1, 2]}, samples: 3}",
            "3: array.samples: 3 of a grid of 2 points | give 2 or fewer",
        ),
        (
            "array: {sweep: {lr: 1}}",
            "3: array.sweep: lr has no list of values | write lr: [a, b]",
        ),
        (
            "array: {sweep: {PORT: [1]}}",
            "3: array.sweep: PORT is set by Tidecell for every task | choose another name",
        ),
        (
            "array: 3\nreplicas: 2",
            "4: replicas: an array's items are its replicas | say array: {parallel: N}",
        ),
    ],
)
def test_mistakes_in_arrays_say_what_to_do(text: str, said: str):
    assert mistakes(text) == [said]


def test_a_service_is_no_array():
    said = mistakes("array: 3", "name: a\nkind: service\nrun: x\n")
    assert said == ["4: array: is for jobs that end | take it out, or give the service replicas"]
