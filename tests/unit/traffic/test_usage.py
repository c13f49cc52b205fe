"""Tokens of an answer, from the usage at its end."""

from __future__ import annotations

import json

import pytest

from tidecell.traffic.usage import read_usage


def answer(**usage: object) -> bytes:
    return json.dumps({"text": "a", "usage": usage}).encode()


@pytest.mark.parametrize(
    ("tail", "counts"),
    [
        (answer(prompt_tokens=7, completion_tokens=2), (7, 2, None)),
        (answer(prompt_tokens=7, completion_tokens=2, prompt_tokens_details={"cached_tokens": 4}), (7, 2, 4)),
        (answer(prompt_tokens_details={"cached_tokens": 4}, prompt_tokens=7, completion_tokens=2), (7, 2, 4)),
        (b'{"text": "cached_tokens"}', (None, None, None)),
        (b"", (None, None, None)),
    ],
)
def test_cached_tokens_are_read_where_usage_says_them(
    tail: bytes, counts: tuple[int | None, int | None, int | None]
) -> None:
    assert read_usage(tail) == counts
