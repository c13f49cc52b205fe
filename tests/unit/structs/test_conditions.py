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
        ("ssd exists", ("1TB",), True),
        ("ssd exists", (), False),
        ("spot absent", (), True),
        ("spot absent", ("yes",), False),
        ("exists = absent", ("absent",), True),
    ],
)
def test_a_condition_holds_or_not(text: str, values: tuple[str, ...], holds: bool) -> None:
    assert parse_condition(text).holds(values) is holds


def test_other_names_of_built_in_attributes_are_understood() -> None:
    assert parse_condition("gpu.memory >= 40GB").key == "gpu_memory"
    assert parse_condition("gpu.type = H100").key == "gpu"


@pytest.mark.parametrize("text", ["ssd exists", "spot absent", "rack in (r1, r2)", "exists exists"])
def test_a_condition_reads_back_from_what_it_prints(text: str) -> None:
    assert str(parse_condition(text)) == text


@pytest.mark.parametrize("text", ["ssd exists 1TB", "exists", "ssd is absent", "absent ssd"])
def test_presence_takes_a_name_before_it_and_nothing_after(text: str) -> None:
    with pytest.raises(ValueError, match="is no condition"):
        parse_condition(text)


def test_presence_knows_other_names_of_built_in_attributes() -> None:
    assert parse_condition("gpu.memory exists").key == "gpu_memory"
