"""A replica for the router's tests: a process that answers as the request tells it to.

    python router_replica.py --port 0 [--name a]

prints its port. Fields of the JSON body: ``tokens`` (length of the answer), ``pace_s`` (between tokens),
``wait_s`` (before the head), ``stream``, ``status``, ``act`` (``die``: exit without an answer, ``hang_up``:
close without an answer, ``cut``: close in the middle of the answer, ``plain``: a body that ends with the
connection, ``close_after``: close the connection after the answer as an idle time-out would). ``GET /seen``
counts, ``/echo`` answers with the request as received, ``/sum`` with the length and hash of the body,
 ``/ws`` switches to a protocol that echoes bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os

SEEN = {"requests": 0, "completed": 0, "aborted": 0, "open": 0}


def frame(index: int) -> bytes:
    """Return one server-sent event, of a length that varies."""
    text = "tide " * (1 + index % 7)
    return b"data: " + json.dumps({"index": index, "text": text}).encode() + b"\n\n"


def stream_body(num_tokens: int) -> bytes:
    """Return all of what a stream of this many tokens carries."""
    usage = {"usage": {"prompt_tokens": 3, "completion_tokens": num_tokens}}
    last = b"data: " + json.dumps(usage).encode() + b"\n\ndata: [DONE]\n\n"
    return b"".join(frame(i) for i in range(num_tokens)) + last


def whole_body(num_tokens: int, name: str) -> bytes:
    """Return the body of an answer that is not streamed."""
    usage = {"prompt_tokens": 3, "completion_tokens": num_tokens}
    return json.dumps({"replica": name, "text": "tide " * num_tokens, "usage": usage}).encode()


async def read_request(reader: asyncio.StreamReader) -> tuple[str, bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    if b"\r\ntransfer-encoding: chunked\r\n" in head.lower():
        return head.split(b" ", 2)[1].decode(), head, await read_chunks(reader)
    return head.split(b" ", 2)[1].decode(), head, await reader.readexactly(length)


async def read_chunks(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while size := int(await reader.readline(), 16):
        parts.append((await reader.readexactly(size + 2))[:-2])
    await reader.readline()
    return b"".join(parts)


class Replica:
    def __init__(self, name: str) -> None:
        self.name = name

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                path, head, body = await read_request(reader)
                if not await self.answer(path, head, body, reader, writer):
                    break
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def answer(
        self, path: str, head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        if path == "/seen":
            return await send(writer, 200, json.dumps(SEEN).encode(), head)
        if path.startswith("/echo") or path == "/v1/echo":
            return await send(writer, 200, head + body, head)
        if path == "/ws":
            return await self.tunnel(reader, writer)
        if path == "/sum":
            found = {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
            return await send(writer, 200, json.dumps(found).encode(), head)
        if path == "/nothing":
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            return True
        if path == "/early":
            writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n")
            return await send(writer, 200, b"late", head)
        SEEN["requests"] += 1
        SEEN["open"] += 1
        ask = json.loads(body or b"{}")
        work = asyncio.create_task(self.work(ask, head, writer))
        gone = asyncio.create_task(watch(reader))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() or work.exception() is not None:
                SEEN["aborted"] += 1
                work.cancel()
                return False
            SEEN["completed"] += 1
            return work.result()
        finally:
            SEEN["open"] -= 1
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)

    async def work(self, ask: dict, head: bytes, writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(ask.get("wait_s", 0) if ask.get("slow_at", self.name) == self.name else 0)
        act, num_tokens = ask.get("act"), ask.get("tokens", 5)
        if act == "die":
            os._exit(9)
        if act == "hang_up":
            return False
        if not ask.get("stream"):
            body = whole_body(num_tokens, self.name)
            if act == "cut":
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body[:10])
                return False
            if act == "plain":
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + body)
                await writer.drain()
                return False
            await send(writer, ask.get("status", 200), body, head)
            return act != "close_after"
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        if ask.get("long_event"):
            data = b"data: " + b"x" * ask["long_event"] + b"\n\n"
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        for index in range(num_tokens):
            data = frame(index)
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            await writer.drain()
            if act == "cut" and index == num_tokens // 2:
                return False
            if ask.get("pace_s"):
                await asyncio.sleep(ask["pace_s"])
        tail = stream_body(num_tokens)[len(b"".join(frame(i) for i in range(num_tokens))) :]
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(tail), tail))
        await writer.drain()
        return True

    async def tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        return False


async def watch(reader: asyncio.StreamReader) -> None:
    """Return when the other side has gone."""
    while not reader.at_eof():
        try:
            await asyncio.sleep(0.01)
            if reader.exception() is not None:
                return
        except OSError:
            return


async def send(writer: asyncio.StreamWriter, status: int, body: bytes, head: bytes) -> bool:
    line = b"HTTP/1.1 %d Some\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (
        status,
        len(body),
    )
    writer.write(line if head.startswith(b"HEAD ") else line + body)
    await writer.drain()
    return True


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--name", default="a")
    arguments = parser.parse_args()
    replica = Replica(arguments.name)
    server = await asyncio.start_server(replica.serve, "127.0.0.1", arguments.port, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
