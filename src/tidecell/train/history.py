"""What a training wrote down while it ran, read back. Imports no torch.

Only the leader of a group writes. Leaders change and die, so a line may be missing or be written twice:
readers take the last line of a step, and a torn line is skipped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return a file's records, oldest first; lines that are no JSON object are skipped."""
    records = []
    content = path.read_bytes() if path.exists() else b""
    for line in content.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def read_by_step(path: Path) -> list[dict[str, Any]]:
    """Return the last record of each step, in the order of steps; events are left out."""
    by_step = {r["step"]: r for r in read_lines(path) if "step" in r and "event" not in r}
    return [by_step[step] for step in sorted(by_step)]


def read_digests(run_dir: Path) -> dict[int, str]:
    """Return the digest of weights and optimizer state at each step where one was written."""
    return {int(r["step"]): str(r["digest"]) for r in read_by_step(run_dir / "digests.jsonl")}


def count_steps(run_dir: Path) -> tuple[int, int]:
    """Return steps committed, and steps lost: done once and, after a fall back, done again."""
    highest = lost = 0
    for record in read_lines(run_dir / "metrics.jsonl"):
        if "event" in record or "step" not in record:
            continue
        step = int(record["step"])
        if step <= highest:
            lost += 1
        highest = max(highest, step)
    return highest, lost
