"""CPU that the router costs per request and per streamed token, beside a direct connection and nginx.

    python benchmarks/router_overhead.py [--seconds 4] [--clients 32] [--streams 100]

What is measured is CPU time of the proxy's processes: it holds on a shared machine, where rates and latencies
do not. One JSON object per proxy and load; ``value`` is in microseconds of CPU per unit, ``baseline`` is
nginx's value where nginx is installed. For ``direct``, without a proxy, it is the rate, which says how much
driver and replica allow.

``small``: completions of some hundred bytes in a closed loop. ``stream``: tokens as server-sent events, each
client one stream after the other, 50 tokens/s each. Expected on two shared cores: 60 to 120 us per
request, 15 to 60 us per token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import uvloop

from tidecell.traffic.control import RouterControl
from tidecell.traffic.table import Endpoint, Route, Table

TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":" tide"}}]}\n\n'
CHUNK = b"%x\r\n%b\r\n" % (len(TOKEN), TOKEN)
TOKENS_PER_STREAM = 50
PACE_S = 0.02
ANSWER = json.dumps({"choices": [{"message": {"content": "tide " * 40}}], "usage": {}}).encode()
WHOLE = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER) + ANSWER
)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
NGINX_CONF = """
worker_processes 1; pid {dir}/nginx.pid; error_log {dir}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f;
  uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
  upstream replica {{ server 127.0.0.1:{replica}; keepalive 1024; }}
  server {{ listen 127.0.0.1:{port}; keepalive_requests 1000000; location / {{
    proxy_pass http://replica; proxy_http_version 1.1; proxy_set_header Connection "";
    proxy_buffering off; }} }}
}}
"""


def request(stream: bool) -> bytes:
    body = json.dumps({"model": "m", "stream": stream, "messages": [{"role": "user", "content": "hi " * 40}]})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
    return (head + "content-type: application/json\r\n\r\n" + body).encode()


class Replica(asyncio.Protocol):
    """Answers a request as fast as it can; a stream at its pace."""

    def __init__(self) -> None:
        self.buffer = b""
        self.is_gone = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_gone = True

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, end, body = self.buffer.partition(b"\r\n\r\n")
        if not end or len(body) < int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]):
            return
        is_stream = b'"stream": true' in body
        self.buffer = b""
        if is_stream:
            self.transport.write(STREAM_HEAD)
            self.send_token(TOKENS_PER_STREAM)
        else:
            self.transport.write(WHOLE)

    def send_token(self, num_left: int) -> None:
        if self.is_gone:
            return
        if num_left == 0:
            self.transport.write(b"0\r\n\r\n")
            return
        self.transport.write(CHUNK)
        asyncio.get_running_loop().call_later(PACE_S, self.send_token, num_left - 1)


def serve_replica(port: int) -> None:
    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Replica, "127.0.0.1", port, backlog=1024)
        await server.serve_forever()

    uvloop.run(run())


class Driver(asyncio.Protocol):
    """One client in a closed loop: the next request goes out when the answer before it is complete."""

    def __init__(self, wire: bytes, is_stream: bool, counts: dict[str, int]) -> None:
        self.wire, self.is_stream, self.counts = wire, is_stream, counts
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self.wire)

    def data_received(self, data: bytes) -> None:
        if self.is_stream:
            self.counts["units"] += data.count(b"data: ")
            is_done = data.endswith(b"0\r\n\r\n")
        else:
            self.buffer += data
            is_done = self.buffer.endswith(ANSWER)
            self.counts["units"] += is_done
        if is_done:
            self.counts["answers"] += 1
            if not self.is_stream and not self.buffer.startswith(b"HTTP/1.1 200"):
                self.counts["failed"] += 1
            self.buffer = b""
            self.transport.write(self.wire)

    def connection_lost(self, exc: Exception | None) -> None:
        self.counts["lost"] += 1


async def drive(
    port: int, is_stream: bool, num_clients: int, seconds: float, pids: list[int]
) -> dict[str, Any]:
    """Load a port and return what it cost the processes behind it."""
    counts = {"units": 0, "answers": 0, "failed": 0, "lost": 0}
    loop, wire = asyncio.get_running_loop(), request(is_stream)
    pairs = [
        await loop.create_connection(lambda: Driver(wire, is_stream, counts), "127.0.0.1", port)
        for _ in range(num_clients)
    ]
    await asyncio.sleep(1.0)  # connections and pools are warm from here on
    before_units, before_s, begin_s = counts["units"], cpu_s(pids), time.monotonic()
    await asyncio.sleep(seconds)
    units, used_s, wall_s = counts["units"] - before_units, cpu_s(pids) - before_s, time.monotonic() - begin_s
    failed = counts["failed"] + counts["lost"]
    for transport, _ in pairs:
        transport.abort()
    unit = "token" if is_stream else "request"
    per_s = round(units / wall_s, 1)
    value = round(used_s / units * 1e6, 1) if pids else per_s
    return {
        "value": value,
        "unit": f"us CPU per {unit}" if pids else f"{unit}s/s",
        "count": units,
        "per_s": per_s,
        "failed": failed,
    }


def cpu_s(pids: list[int]) -> float:
    """Return the CPU seconds of processes, to the nanosecond where the kernel says so."""
    total = 0.0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0]) / 1e9
    return total


def rss_mb(pids: list[int]) -> float:
    status = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    return round(sum(int(text.split("VmRSS:")[1].split()[0]) for text in status) / 1024, 1)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(port: int) -> None:
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise SystemExit(f"nothing listens on port {port}")


@contextmanager
def router(home: Path, replica: int) -> Iterator[tuple[int, list[int]]]:
    port, control = free_port(), home / "c.sock"
    argv = [sys.executable, "-m", "tidecell.traffic.router", "--home", str(home), "--port", str(port)]
    process = subprocess.Popen([*argv, "--control", str(control)], stderr=subprocess.DEVNULL)
    try:
        wait_for(port)
        table = Table(1, 1, (Route("chat", ("m",), (Endpoint("a", "127.0.0.1", replica),)),))
        asyncio.run(push(control, table))
        yield port, [process.pid]
    finally:
        process.kill()
        process.wait()


async def push(control: Path, table: Table) -> None:
    async with RouterControl(control) as client:
        await client.put_table(table)


@contextmanager
def nginx(home: Path, replica: int) -> Iterator[tuple[int, list[int]]]:
    port, conf = free_port(), home / "nginx.conf"
    conf.write_text(NGINX_CONF.format(dir=home, replica=replica, port=port))
    process = subprocess.Popen(["nginx", "-c", str(conf), "-g", "daemon off;"], stderr=subprocess.DEVNULL)
    try:
        wait_for(port)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        yield port, [process.pid, *map(int, workers)]
    finally:
        process.terminate()
        process.wait()


@contextmanager
def direct(_home: Path, replica: int) -> Iterator[tuple[int, list[int]]]:
    yield replica, []


def main() -> int:
    """Run all proxies on all loads."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="measured time per line")
    parser.add_argument("--clients", type=int, default=32, help="clients of the small load")
    parser.add_argument("--streams", type=int, default=100, help="clients of the stream load")
    arguments = parser.parse_args()
    replica = free_port()
    process = multiprocessing.get_context("spawn").Process(target=serve_replica, args=(replica,), daemon=True)
    process.start()
    wait_for(replica)
    loads = {"small": (False, arguments.clients), "stream": (True, arguments.streams)}
    baseline: dict[str, float] = {}
    for proxy in (direct, nginx, router):
        if proxy is nginx and shutil.which("nginx") is None:
            print("nginx is not installed: no baseline", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as home, proxy(Path(home), replica) as (port, pids):
            for load, (is_stream, num_clients) in loads.items():
                result = uvloop.run(drive(port, is_stream, num_clients, arguments.seconds, pids))
                if proxy is nginx:
                    baseline[load] = result["value"]
                base = baseline.get(load) if pids else None
                row = {"name": f"router_overhead.{load}.{proxy.__name__}", **result, "baseline": base}
                row |= {"ratio": round(result["value"] / base, 2) if base else None}
                row |= {"clients": num_clients, "rss_mb": rss_mb(pids), "cores": os.cpu_count()}
                print(json.dumps(row), flush=True)
    process.terminate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
