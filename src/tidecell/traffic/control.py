"""The control plane's side of the router's control socket.

One JSON object per line, both ways, one answer per question, in order, on a unix socket that only its
owner may open:

    {"op": "put_table", "table": {...}}  ->  {"ok": true, "version": 7, "epoch": 2, "persisted": true}
    {"op": "stats"}                      ->  {"ok": true, "stats": {...}}       see ``stats.RouterStats``
    {"op": "why", "name": "chat"}        ->  {"ok": true, "why": {...}}         see ``Why``
    {"op": "metrics"}                    ->  {"ok": true, "text": "..."}        Prometheus text
    refused                              ->  {"ok": false, "error": "...", "hint": "...", "kind": "..."}

A first line that is an HTTP GET is answered with the Prometheus text, so that
``curl --unix-socket PATH http://router/metrics`` works too.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import TracebackType

import msgspec

from tidecell.structs.errors import (
    CellUnreachable,
    ConflictError,
    NotFoundError,
    RefusedError,
    TidecellError,
)
from tidecell.traffic.access_log import Line
from tidecell.traffic.explain import Explanation
from tidecell.traffic.stats import RouterStats
from tidecell.traffic.table import Table

MAX_LINE_BYTES = 64 * 1024 * 1024


class Why(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the router says of a route, or of one request.

    Attributes:
        explanation: Each replica's state and why it is, or was, chosen or not; None where that of a
            request was not kept: of those that come fast only some are.
        request: The request's line of the access log, once it has ended.
        sheds: Requests of the service that were shed or refused, by reason.
        in_flight: Requests at its replicas.
        queued: Requests that wait.
        limit: How many may be in flight, as learned; 0: no limit.
        breaker: ``open`` or ``closed``; empty: it has none.
    """

    explanation: Explanation | None = None
    request: Line | None = None
    sheds: dict[str, int] = {}
    in_flight: int = 0
    queued: int = 0
    limit: float = 0.0
    breaker: str = ""


class Question(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line to the router."""

    op: str
    table: Table | None = None
    name: str = ""


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line from the router."""

    ok: bool
    version: int = 0
    epoch: int = 0
    persisted: bool = True
    stats: RouterStats | None = None
    why: Why | None = None
    text: str = ""
    error: str = ""
    hint: str = ""
    kind: str = ""


class RouterControl:
    """A client of the router's control socket; it connects when needed, and again after a router's restart.

    Calls may come from several tasks; they are answered one after the other.

    Example:
        control = RouterControl(home / "router" / "control.sock")
        await control.put_table(table)
        load = (await control.stats()).services["chat"].ongoing
    """

    def __init__(self, path: str | Path, timeout_s: float = 5.0) -> None:
        self._path = str(path)
        self._timeout_s = timeout_s
        self._lock = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def put_table(self, table: Table) -> int:
        """Give the router its table and return the version that it now serves.

        Raises:
            ConflictError: The router serves a newer table.
            RefusedError: The table contradicts itself.
            CellUnreachable: The router did not answer.
        """
        return (await self._ask(Question("put_table", table))).version

    async def stats(self) -> RouterStats:
        """Return what the router counted.

        Raises:
            CellUnreachable: The router did not answer.
        """
        answer = await self._ask(Question("stats"))
        return answer.stats or RouterStats()

    async def why(self, name: str) -> Why:
        """Return what the router says of a service, a model, or a request by its id.

        Raises:
            NotFoundError: It knows none of that name.
            CellUnreachable: The router did not answer.
        """
        return (await self._ask(Question("why", name=name))).why or Why()

    async def metrics(self) -> str:
        """Return the router's metrics as Prometheus text.

        Raises:
            CellUnreachable: The router did not answer.
        """
        return (await self._ask(Question("metrics"))).text

    async def close(self) -> None:
        """Close the connection; a later call opens it again."""
        async with self._lock:
            self._drop()

    async def __aenter__(self) -> RouterControl:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(self, question: Question) -> Answer:
        line = msgspec.json.encode(question) + b"\n"
        async with self._lock:
            fresh = self._streams is None
            try:
                raw = await self._exchange(line)
            except (OSError, EOFError, TimeoutError) as error:
                self._drop()
                if fresh or isinstance(error, TimeoutError):
                    raise self._unreachable(error) from error
                raw = await self._again(line)
            except BaseException:  # cancelled half-way: an answer may still come, to nobody
                self._drop()
                raise
        return _checked(raw)

    async def _again(self, line: bytes) -> bytes:
        """Ask on a new connection: the old one may have ended with the router that was there before."""
        try:
            return await self._exchange(line)
        except (OSError, EOFError, TimeoutError) as error:
            self._drop()
            raise self._unreachable(error) from error

    async def _exchange(self, line: bytes) -> bytes:
        async with asyncio.timeout(self._timeout_s):
            if self._streams is None:
                self._streams = await asyncio.open_unix_connection(self._path, limit=MAX_LINE_BYTES)
            reader, writer = self._streams
            writer.write(line)
            await writer.drain()
            raw = await reader.readline()
        if not raw.endswith(b"\n"):
            raise EOFError("the router closed the connection")
        return raw

    def _drop(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    def _unreachable(self, error: BaseException) -> CellUnreachable:
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        return CellUnreachable(
            f"the router did not answer at {self._path} ({what})",
            hint="is `python -m tidecell.traffic.router` running with this --control path?",
        )


def _checked(raw: bytes) -> Answer:
    answer = msgspec.json.decode(raw, type=Answer)
    if answer.ok:
        return answer
    kinds: dict[str, type[TidecellError]] = {"ConflictError": ConflictError, "NotFoundError": NotFoundError}
    raise kinds.get(answer.kind, RefusedError)(answer.error, hint=answer.hint)
