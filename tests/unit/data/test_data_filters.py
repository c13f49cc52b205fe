"""Cleaning, and the rules that drop documents."""

from __future__ import annotations

import time

import pytest

from tidecell.data.document import Document, DropReason
from tidecell.data.filters import FilterParams, alnum_share, clean, judge, repeated_share

PROSE = "The tide comes in twice a day, and what it carries it leaves on the sand for us to find.\n"


def rejected(text: str, kind: str = "prose") -> str | None:
    found = judge(Document("d", text, "s", {"kind": kind}), FilterParams())
    return f"{found.reason}: {found.detail}" if found else None


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("a\r\nb\rc", "a\nb\nc\n"),
        ("\ufeffa  \t\n\n\nb\x00\x07\x1b[0m \n\n", "a\n\n\nb[0m\n"),
        ("e\u0301", "\u00e9\n"),
        ("bad \ud800 half", "bad \ufffd half\n"),
        (" \t\n \n", ""),
        ("", ""),
        ("    indented\n\tkept", "    indented\n\tkept\n"),
    ],
)
def test_cleaning_normalises(raw: str, cleaned: str) -> None:
    assert clean(raw) == cleaned
    assert clean(cleaned) == cleaned
    cleaned.encode()


def test_cleaning_a_run_of_a_million_spaces_takes_linear_time() -> None:
    began_s = time.monotonic()
    assert clean("x" + " " * 1_000_000 + "y").endswith("y\n")
    assert time.monotonic() - began_s < 2.0


def test_good_prose_and_code_are_kept() -> None:
    assert rejected(PROSE) is None
    assert (
        rejected("def f(x):\n    return x + 1\n" + "".join(f"y{i} = f({i})\n" for i in range(9)), "code")
        is None
    )


def test_each_rule_names_its_reason_its_value_and_its_bound() -> None:
    assert rejected("short\n") == "TooShort: 6 characters, at least 64"
    assert rejected("x = '" + "a" * 1001 + "'\n", "code") == (
        "LinesTooLong: longest line 1007 characters, at most 1000"
    )
    assert rejected(("x" * 150 + "\n") * 3, "code") == "LinesTooLong: mean line 113 characters, at most 100"
    assert rejected("word " * 21_000) == "LinesTooLong: longest line 105000 characters, at most 100000"
    assert rejected("|-+-|=*=|" * 20) == "LowAlphaRatio: 0.00 letters and digits, at least 0.5"
    assert rejected(PROSE * 2) == "Repetitive: 0.50 of characters in repeated lines, at most 0.2"


def test_code_may_repeat_lines_that_prose_may_not() -> None:
    text = "".join(f"    case{i}:\n        return\n        break\n" for i in range(20))
    assert rejected(text, "prose") is not None
    assert repeated_share(text.split("\n")) > 0.5
    share = repeated_share(["alpha beta", "alpha beta", "gamma delta epsilon", ""])
    assert share == pytest.approx(10 / 39)
    assert rejected("alpha beta\nalpha beta\ngamma delta epsilon\n" + "z" * 40, "code") is None


def test_alnum_share_ignores_white_space_and_counts_other_scripts_as_letters() -> None:
    assert alnum_share("ab -- \n\t") == 0.5
    assert alnum_share("прилив 潮") == 1.0
    assert alnum_share(" \n") == 0.0


def test_reasons_are_stable_tokens() -> None:
    assert [str(r) for r in DropReason] == [
        "Unreadable",
        "BrokenArchive",
        "NotUtf8",
        "Binary",
        "BadRecord",
        "Empty",
        "TooShort",
        "LinesTooLong",
        "LowAlphaRatio",
        "Repetitive",
        "ExactDuplicate",
        "NearDuplicate",
    ]
