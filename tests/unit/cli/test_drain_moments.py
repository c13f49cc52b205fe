"""When a planned drain begins: a time of day, a date and time, or from now."""

from __future__ import annotations

from datetime import datetime

import pytest

from tidecell.cli.drain import parse_moment
from tidecell.structs.errors import TidecellError

NOW_S = datetime(2026, 11, 24, 12, 0).timestamp()


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2h", datetime(2026, 11, 24, 14, 0)),
        ("13:30", datetime(2026, 11, 24, 13, 30)),
        ("02:30", datetime(2026, 11, 25, 2, 30)),
        ("2026-12-01T02:30", datetime(2026, 12, 1, 2, 30)),
    ],
)
def test_moments_are_read_as_people_write_them(text: str, at: datetime):
    assert parse_moment(text, NOW_S) == at.timestamp()


@pytest.mark.parametrize(("text", "why"), [("soon", "is no moment"), ("2020-01-01", "is over")])
def test_what_is_no_moment_to_come_is_refused(text: str, why: str):
    with pytest.raises(TidecellError, match=why):
        parse_moment(text, NOW_S)
