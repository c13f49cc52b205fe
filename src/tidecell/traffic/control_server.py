"""The router's side of the control socket; ``control`` documents the protocol."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path
from typing import Protocol

import msgspec

from tidecell.structs.errors import ConflictError, NotFoundError, RefusedError, TidecellError
from tidecell.traffic import metrics
from tidecell.traffic.control import MAX_LINE_BYTES, Answer, Question, Why
from tidecell.traffic.stats import RouterStats
from tidecell.traffic.table import Table, check


class Controlled(Protocol):
    """What can be asked of the router."""

    async def put_table(self, table: Table) -> bool:
        """Serve a table from now on; return whether it is on disk as well."""

    def stats(self) -> RouterStats:
        """Return what was counted."""

    def why(self, name: str) -> Why | None:
        """Return what there is to say of a service or a request; None: there is none of that name."""


class ControlServer:
    """Answers the questions of whoever may open the socket.

    Args:
        path: Where the socket is made.
        router: Who is asked.
    """

    def __init__(self, path: Path, router: Controlled) -> None:
        self._path = path
        self._router = router
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._answering: set[asyncio.Future[Answer]] = set()
        self._serving: set[asyncio.Task[None] | None] = set()
        self._is_closed = False

    async def start(self) -> None:
        """Listen.

        Raises:
            ConflictError: Another router answers there.
            RefusedError: The path cannot be a socket.
        """
        self._server = await asyncio.start_unix_server(
            self._serve, sock=_private_socket(self._path), limit=MAX_LINE_BYTES
        )

    async def close(self) -> None:
        """Stop listening, finish what is being answered, hang up and remove the socket."""
        if self._server is None:
            return
        self._server.close()
        self._is_closed = True
        if self._answering:  # a table that is on its way to the disk
            await asyncio.wait(self._answering)
            await asyncio.sleep(0)
        for writer in self._writers:
            writer.close()
        self._path.unlink(missing_ok=True)
        while self._serving:  # what was read before it was hung up is done, if not answered
            await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self._serving.add(task := asyncio.current_task())
        if self._is_closed:
            writer.close()
        try:
            while line := await reader.readline():
                if line.startswith(b"GET "):
                    writer.write(self._page())
                    break
                answer = asyncio.ensure_future(self._answer(line))
                self._answering.add(answer)
                answer.add_done_callback(self._answering.discard)
                writer.write(msgspec.json.encode(await answer) + b"\n")
                await writer.drain()
        except (OSError, ValueError):  # hung up half-way, or a line beyond all limits
            pass
        finally:
            self._writers.discard(writer)
            self._serving.discard(task)
            writer.close()

    async def _answer(self, line: bytes) -> Answer:
        try:
            question = msgspec.json.decode(line, type=Question)
            return await self._act(question)
        except TidecellError as error:
            return Answer(False, error=error.message, hint=error.hint, kind=type(error).__name__)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            return Answer(False, error=f"not understood: {error}", kind="RefusedError")

    async def _act(self, question: Question) -> Answer:
        if question.op == "stats":
            return Answer(True, stats=self._router.stats())
        if question.op == "why":
            why = self._router.why(question.name)
            if why is None:
                hint = "the router remembers its newest requests; older ones are in its access log"
                raise NotFoundError(f"the router knows no service, model or request {question.name!r}", hint)
            return Answer(True, why=why)
        if question.op == "metrics":
            return Answer(True, text=metrics.render(self._router.stats()))
        if question.op == "put_table" and question.table is not None:
            check(question.table)
            persisted = await self._router.put_table(question.table)
            return Answer(True, question.table.version, question.table.epoch, persisted)
        raise RefusedError(
            f"no operation {question.op!r} like this; known: put_table (with table), stats, why, metrics",
            hint="see tidecell.traffic.control",
        )

    def _page(self) -> bytes:
        body = metrics.render(self._router.stats()).encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: %d\r\n"
        return head % len(body) + b"connection: close\r\n\r\n" + body


def _private_socket(path: Path) -> socket.socket:
    """Return a socket bound to ``path`` that only its owner may open, from its first moment on."""
    _clear(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        sock.bind(str(path))
    except OSError as error:
        sock.close()
        hint = "give --control a short path in a directory you may write to"
        raise RefusedError(f"no control socket at {path}: {error}", hint=hint) from error
    finally:
        os.umask(mask)
    sock.setblocking(False)
    return sock


def _clear(path: Path) -> None:
    """Remove the socket of a router that is gone."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise RefusedError(f"{path} exists and is no socket", hint="give --control another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise ConflictError(f"a router answers at {path} already", hint="stop it, or give --control another path")
