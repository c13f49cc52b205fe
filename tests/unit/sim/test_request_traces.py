"""Recorded requests as load over time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidecell.sim.requests import is_request_trace, load_of, read_requests
from tidecell.sim.workload import LoadPoint
from tidecell.structs.errors import DataError
from tidecell.traffic.trace import Row


def row(at_ms: int, duration_ms: float, service: str = "chat") -> Row:
    return Row(at_ms, 1, 1, (), 2048, service, "m", False, 0, None, duration_ms, "ok")


def test_load_is_the_mean_of_every_second_under_way() -> None:
    rows = [row(500, 1000.0), row(1000, 2000.0), row(5250, 500.0), row(0, 1000.0, "web")]
    assert load_of(rows) == [
        LoadPoint(0.0, "chat", 0.5),
        LoadPoint(0.0, "web", 1.0),
        LoadPoint(1.0, "chat", 1.5),
        LoadPoint(1.0, "web", 0.0),
        LoadPoint(2.0, "chat", 1.0),
        LoadPoint(3.0, "chat", 0.0),
        LoadPoint(5.0, "chat", 0.5),
        LoadPoint(6.0, "chat", 0.0),
    ]


def test_what_is_no_trace_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"timestamp": 1}\n')
    assert is_request_trace(path)
    with pytest.raises(DataError, match="is no trace of requests"):
        read_requests(path)
