"""Conditions on machines: names are compared as names, sizes as sizes."""

from __future__ import annotations

import pytest

from tidecell.structs.placement import parse_condition


@pytest.mark.parametrize(
    ("text", "values", "holds"),
    [
        ("rack = 1", ("1b",), False),
        ("rack != 1b", ("1",), True),
        ("version = 1", ("1.0",), False),
        ("rack in (r1, r2)", ("r2",), True),
        ("rack not in (r1, r2)", (), True),
        ("gpu_memory = 40GB", ("40000000000",), True),
        ("gpu.memory >= 40GB", ("80000000000",), True),
        ("cpu >= 16", ("8",), False),
        ("cpu_model ~ epyc", ("AMD EPYC 7B13",), True),
    ],
)
def test_a_condition_holds_or_not(text: str, values: tuple[str, ...], holds: bool) -> None:
    assert parse_condition(text).holds(values) is holds


def test_other_names_of_built_in_attributes_are_understood() -> None:
    assert parse_condition("gpu.memory >= 40GB").key == "gpu_memory"
    assert parse_condition("gpu.type = H100").key == "gpu"
