"""Log files of tasks: read, filter by time, follow. The processes write the files themselves."""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

CHUNK = 1 << 16
POLL_S = 0.05


class LogChunk(msgspec.Struct, frozen=True):
    """A piece of one stream of one attempt of one replica."""

    index: int
    attempt: int
    stream: str
    text: str


@dataclass
class _File:
    path: Path
    index: int
    attempt: int
    stream: str
    offset: int = 0
    rest: bytes = field(default=b"")


class LogReader:
    """Reads all log files of one run that match.

    Args:
        folder: The run's log directory.
        replica: Only this replica, or None.
        streams: ``out``, ``err`` or both.
        since_s: Skip what was written before this moment (to the second), or 0.
        tail: Start with the last so many lines of each file, or None for all.
    """

    def __init__(
        self,
        folder: Path,
        replica: int | None = None,
        streams: Sequence[str] = ("out", "err"),
        since_s: float = 0.0,
        tail: int | None = None,
    ) -> None:
        self._folder = folder
        self._replica = replica
        self._streams = streams
        self._since_s = since_s
        self._tail = tail
        self._files: dict[Path, _File] = {}

    def read_new(self) -> list[LogChunk]:
        """Return what was written since the last call, whole lines where possible."""
        self._discover()
        return [chunk for file in self._ordered() for chunk in self._read(file)]

    def _ordered(self) -> list[_File]:
        return sorted(self._files.values(), key=lambda f: (f.attempt, f.index, f.stream))

    def _discover(self) -> None:
        if not self._folder.is_dir():
            return
        for path in self._folder.iterdir():
            parts = path.name.split(".")
            if path in self._files or len(parts) != 3 or parts[2] not in self._streams:
                continue
            index, attempt = int(parts[0]), int(parts[1])
            if self._replica is None or index == self._replica:
                self._files[path] = _File(path, index, attempt, parts[2], self._start_of(path, parts[2]))

    def _start_of(self, path: Path, stream: str) -> int:
        start = offset_at(path.with_suffix(".idx"), stream, self._since_s) if self._since_s else 0
        return max(start, tail_offset(path, self._tail)) if self._tail is not None else start

    def _read(self, file: _File) -> list[LogChunk]:
        try:
            with file.path.open("rb") as opened:
                opened.seek(file.offset)
                data = opened.read(CHUNK * 16)
        except FileNotFoundError:
            return []
        if not data:
            return []
        file.offset += len(data)
        data = file.rest + data
        keep = _incomplete_tail(data)
        file.rest = data[len(data) - keep :] if keep else b""
        text = data[: len(data) - keep].decode("utf-8", errors="replace")
        return [LogChunk(file.index, file.attempt, file.stream, text)] if text else []

    async def follow(
        self, done: Callable[[], bool], wake: Callable[[], asyncio.Event]
    ) -> AsyncIterator[LogChunk]:
        """Yield what is written until ``done`` and everything was read."""
        while True:
            finished = done()
            event = wake()
            chunks = self.read_new()
            for chunk in chunks:
                yield chunk
            if chunks:
                continue
            if finished:
                return
            try:
                await asyncio.wait_for(event.wait(), POLL_S)
            except TimeoutError:
                pass


def _incomplete_tail(data: bytes) -> int:
    """Return how many bytes at the end begin a UTF-8 character that is not complete."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0xC0:
            need = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if back < need else 0
        if byte & 0x80 == 0:
            return 0
    return 0


def offset_at(index: Path, stream: str, since_s: float) -> int:
    """Return how long a stream was at a moment, by the marks the agent left (about one a second)."""
    try:
        rows = [line.split() for line in index.read_text().splitlines()]
    except FileNotFoundError:
        return 0
    column = 1 if stream == "out" else 2
    marks = [(float(r[0]), int(r[column])) for r in rows if len(r) == 3]
    place = bisect.bisect_right([at_s for at_s, _ in marks], since_s)
    return marks[place - 1][1] if place else 0


def tail_offset(path: Path, lines: int | None) -> int:
    """Return where the last ``lines`` lines of a file begin."""
    if lines is None:
        return 0
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            if lines <= 0:
                return end
            position, found = end, 0
            while position > 0:
                step = min(CHUNK, position)
                position -= step
                file.seek(position)
                block = file.read(step)
                stop = len(block) - 1 if position + step == end and block.endswith(b"\n") else len(block)
                while (stop := block.rfind(b"\n", 0, stop)) >= 0:
                    found += 1
                    if found == lines:
                        return position + stop + 1
            return 0
    except FileNotFoundError:
        return 0
