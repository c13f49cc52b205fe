"""Traces of requests that the router recorded: read back, and as the load that a service was under."""

from __future__ import annotations

from pathlib import Path

import msgspec

from tidecell.sim.workload import LoadPoint
from tidecell.structs.errors import DataError
from tidecell.traffic.trace import SCHEMA, Row

STEP_S = 1.0


def is_request_trace(path: Path) -> bool:
    """Return whether a file begins like a trace of requests; one that cannot be read does not."""
    try:
        with path.open("rb") as file:
            return file.read(1) == b"{"
    except OSError:
        return False


def read_requests(path: Path) -> list[Row]:
    """Return the requests of a trace, by time of admission.

    Raises:
        DataError: The file cannot be read, is no such trace, or of a newer schema.
    """
    try:
        rows = msgspec.json.Decoder(Row).decode_lines(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", "give an existing file") from error
    except msgspec.DecodeError as error:
        raise DataError(
            f"{path} is no trace of requests: {error}", "tide up --trace-requests records one; docs/router.md"
        ) from error
    newer = next((row.schema for row in rows if row.schema > SCHEMA), None)
    if newer is not None:
        raise DataError(f"{path} has schema {newer}; this program reads {SCHEMA}", "use a newer Tidecell")
    return sorted(rows, key=lambda row: row.timestamp)


def load_of(rows: list[Row]) -> list[LoadPoint]:
    """Return how many requests each service had under way: the mean of every second in which that changed."""
    busy: dict[str, dict[int, float]] = {}
    for row in rows:
        seconds = busy.setdefault(row.service, {})
        begin_s = row.timestamp / 1000.0
        end_s = begin_s + row.duration_ms / 1000.0
        for step in range(int(begin_s // STEP_S), int(end_s // STEP_S) + 1):
            covered_s = min(end_s, (step + 1) * STEP_S) - max(begin_s, step * STEP_S)
            seconds[step] = seconds.get(step, 0.0) + covered_s / STEP_S
            seconds.setdefault(step + 1, 0.0)
    points = []
    for service, seconds in busy.items():
        last = 0.0
        for step in sorted(seconds):
            if abs(seconds[step] - last) > 1e-9:
                last = seconds[step]
                points.append(LoadPoint(step * STEP_S, service, round(last, 6)))
    return sorted(points, key=lambda point: point.at_s)
