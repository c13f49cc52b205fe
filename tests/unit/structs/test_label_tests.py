"""Which jobs a filter by labels means."""

from __future__ import annotations

import pytest

from tidecell.structs.errors import RefusedError
from tidecell.structs.labels import parse_labels, passes

ANA = {"owner": "ana", "tier": "gold=1", "empty": ""}


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("owner=ana", True),
        ("owner = ana", True),
        ("owner=bob", False),
        ("owner!=bob", True),
        ("owner!=ana", False),
        ("other!=x", True),
        ("other=", False),
        ("empty=", True),
        ("owner", True),
        ("other", False),
        ("!other", True),
        ("!owner", False),
        ("tier=gold=1", True),
    ],
)
def test_a_test_of_labels_holds_or_not(text: str, meant: bool) -> None:
    assert passes(ANA, parse_labels([text])) is meant


def test_all_tests_must_hold_and_none_means_all() -> None:
    assert passes(ANA, parse_labels(["owner=ana", "!other"]))
    assert not passes(ANA, parse_labels(["owner=ana", "other"]))
    assert passes(ANA, ())


@pytest.mark.parametrize("text", ["", "=x", "!", "!=x", " "])
def test_what_names_no_key_is_refused(text: str) -> None:
    with pytest.raises(RefusedError, match="names no key"):
        parse_labels([text])
