"""CPU that the router costs per request and per streamed token, beside a direct connection and other proxies.

    python benchmarks/router_overhead.py [--rounds 3] [--seconds 3] [--only nginx,router] [--loads small]

What is measured is CPU time of the proxy's processes: it holds on a shared machine, where rates and latencies
do not. One JSON object per proxy and load with the median over the rounds; ``value`` is in microseconds of
CPU per unit, ``baseline`` is nginx's value where nginx is installed. For ``direct``, without a proxy, it is
the rate, which says how much driver and replicas allow. Proxies that are not installed are named and left
out (see ``router_peers``). All have one worker, the same four replicas and connections that are kept.

``small``: completions of some hundred bytes in a closed loop. ``paced``: the same at 1,000 a second.
``stream``: server-sent events, 50 tokens/s each. ``large``: prompts of 128 kB. Our router asks for a token,
finds the model in the body, balances, counts tokens and writes its access log meanwhile; the others only
pass on what they get (their logs are off).

For ``stream`` also: ``delay_ms_p99``, from the replica's writing of a token to the client's reading, and
``kb_per_stream``, resident memory added by a stream.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple, cast

import uvloop
from router_peers import PEERS, TOKEN, NotInstalled, Peer, free_port, wait_for

NUM_REPLICAS = 4
PACE_S = 0.02
TEXT = b'data: {"choices":[{"index":0,"delta":{"content":" tide"}}],"at":%016d}\n\n'
FRAME_BYTES = len(TEXT % 0)
CHUNK = b"%x\r\n%b\r\n" % (FRAME_BYTES, TEXT)
CHUNK_BYTES = len(CHUNK % 0)
TOKENS_PER_STREAM = 100
ANSWER = json.dumps({"choices": [{"message": {"content": "tide " * 40}}], "usage": {}}).encode()
WHOLE = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER) + ANSWER
)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Load(NamedTuple):
    """What is asked for, and by how many clients."""

    num_clients: int
    is_stream: bool = False
    prompt_bytes: int = 120
    every_s: float = 0.0  # per client; 0: as soon as the answer is there


LOADS = {
    "small": Load(32),
    "paced": Load(32, every_s=0.032),
    "stream": Load(200, is_stream=True),
    "large": Load(8, prompt_bytes=128_000),
}


def request(load: Load) -> bytes:
    prompt = "hi " * (load.prompt_bytes // 3)
    body = json.dumps(
        {"model": "m", "stream": load.is_stream, "messages": [{"role": "user", "content": prompt}]}
    )
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
    head += f"authorization: Bearer {TOKEN}\r\naccept: application/json\r\nuser-agent: driver/1\r\n"
    return (head + "content-type: application/json\r\n\r\n" + body).encode()


class Replica(asyncio.Protocol):
    """Answers a request as fast as it can; a stream at its pace."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.left = 0
        self.is_stream = False
        self.is_gone = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_gone = True

    def data_received(self, data: bytes) -> None:
        if self.left == 0:
            data = b"".join((*self.parts, data))
            head, end, body = data.partition(b"\r\n\r\n")
            if not end:
                self.parts = [data]
                return
            self.parts = []
            length = head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
            self.left = int(length or 0) - len(body)
            self.is_stream = b'"stream": true' in body[:200]
        else:
            self.left -= len(data)
        if self.left == 0:
            self.answer()

    def answer(self) -> None:
        if self.is_stream:
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
        self.transport.write(CHUNK % time.monotonic_ns())
        asyncio.get_running_loop().call_later(PACE_S, self.send_token, num_left - 1)


def serve_replicas(ports: list[int]) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        for port in ports:
            await loop.create_server(Replica, "127.0.0.1", port, backlog=1024)
        await asyncio.Event().wait()

    uvloop.run(run())


def is_complete(answer: bytes) -> bool:
    """Return whether an answer is there in full: by its length, or by its last chunk."""
    head, end, body = answer.partition(b"\r\n\r\n")
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return bool(end) and (len(body) >= int(length) if length else body.endswith(b"0\r\n\r\n"))


class Counts:
    """What the clients saw."""

    def __init__(self) -> None:
        self.units = self.failed = self.lost = 0
        self.delays_ns: list[int] = []


class Driver(asyncio.Protocol):
    """One client: the next request goes out when the answer before it is complete, or when it is due."""

    def __init__(self, load: Load, wire: bytes, counts: Counts) -> None:
        self.load, self.wire, self.counts = load, wire, counts
        self.buffer = b""
        self.due_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.due_s = asyncio.get_running_loop().time()
        self.transport.write(self.wire)

    def data_received(self, data: bytes) -> None:
        if self.load.is_stream:
            self.take_tokens(data)
            is_done = data.endswith(b"0\r\n\r\n") and not data.endswith(b"00\r\n\r\n")
        else:
            self.buffer += data
            is_done = is_complete(self.buffer)
            self.counts.units += is_done
            if is_done and not self.buffer.startswith(b"HTTP/1.1 200"):
                self.counts.failed += 1
        if is_done:
            self.buffer = b""
            self.ask_again()

    def take_tokens(self, data: bytes) -> None:
        count = data.count(b"data: ")
        self.counts.units += count
        if self.counts.units % 8 < count:  # one in eight is looked at: the driver has to be cheap
            at = data.find(b'"at":')
            if at >= 0 and len(data) >= at + 21:
                self.counts.delays_ns.append(time.monotonic_ns() - int(data[at + 5 : at + 21]))

    def ask_again(self) -> None:
        self.due_s += self.load.every_s
        loop = asyncio.get_running_loop()
        delay_s = self.due_s - loop.time()
        if self.load.every_s and delay_s > 0:
            loop.call_later(delay_s, self.ask)
        else:
            self.ask()

    def ask(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(self.wire)

    def connection_lost(self, exc: Exception | None) -> None:
        self.counts.lost += 1


async def drive(port: int, load: Load, seconds: float, pids: list[int]) -> dict[str, float]:
    """Load a port and return what it cost the processes behind it."""
    counts, wire = Counts(), request(load)
    loop = asyncio.get_running_loop()
    idle_mb = rss_mb(pids)
    pairs = []
    for _ in range(load.num_clients):
        await asyncio.sleep(load.every_s / load.num_clients)
        pairs.append(await loop.create_connection(lambda: Driver(load, wire, counts), "127.0.0.1", port))
    await asyncio.sleep(1.0)  # connections and pools are warm from here on
    counts.delays_ns.clear()
    before_units, before_s, begin_s = counts.units, cpu_s(pids), time.monotonic()
    await asyncio.sleep(seconds)
    units, used_s, wall_s = counts.units - before_units, cpu_s(pids) - before_s, time.monotonic() - begin_s
    result = {
        "value": round(used_s / max(1, units) * 1e6, 1) if pids else round(units / wall_s, 1),
        "per_s": round(units / wall_s, 1),
        "failed": counts.failed + counts.lost,
        "rss_mb": rss_mb(pids),
    }
    if load.is_stream:
        result["delay_ms_p99"] = round(quantile(counts.delays_ns, 0.99) / 1e6, 3)
        result["kb_per_stream"] = round((result["rss_mb"] - idle_mb) * 1024 / load.num_clients, 1)
    for transport, _ in pairs:
        transport.abort()
    await asyncio.sleep(0.1)
    return result


def quantile(values: list[int], q: float) -> float:
    return sorted(values)[int(q * len(values))] if values else 0.0


def cpu_s(pids: list[int]) -> float:
    """Return the CPU seconds of processes, to the nanosecond where the kernel says so."""
    total = 0.0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0]) / 1e9
    return total


def rss_mb(pids: list[int]) -> float:
    status = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    return round(sum(int(text.split("VmRSS:")[1].split()[0]) for text in status) / 1024, 2)


def measure(peer: Peer, ports: list[int], loads: list[str], seconds: float) -> dict[str, dict[str, float]]:
    """Run one proxy through the loads."""
    with tempfile.TemporaryDirectory() as home, peer(Path(home), ports) as (port, pids):
        return {name: uvloop.run(drive(port, LOADS[name], seconds, pids)) for name in loads}


def median(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(result[key] for result in rounds) for key in rounds[0]}


def row(peer: str, load: str, rounds: list[dict[str, float]], base: float | None) -> dict[str, Any]:
    result: dict[str, Any] = {"name": f"router_overhead.{load}.{peer}", **median(rounds)}
    unit = "token" if LOADS[load].is_stream else "request"
    result["unit"] = f"{unit}s/s" if peer == "direct" else f"us CPU per {unit}"
    result["baseline"] = None if peer == "direct" else base
    result["ratio"] = None if peer == "direct" or not base else round(result["value"] / base, 2)
    result["clients"], result["rounds"], result["cores"] = (
        LOADS[load].num_clients,
        len(rounds),
        os.cpu_count(),
    )
    return result


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="measured time per load and round")
    parser.add_argument("--rounds", type=int, default=3, help="times that all are measured, in turn")
    parser.add_argument("--only", default=",".join(PEERS), help=f"of {', '.join(PEERS)}")
    parser.add_argument("--loads", default=",".join(LOADS), help=f"of {', '.join(LOADS)}")
    return parser.parse_args()


def main() -> int:
    """Run all proxies on all loads, in turn, so that what disturbs the machine disturbs all."""
    asked = arguments()
    loads, ports = asked.loads.split(","), [free_port() for _ in range(NUM_REPLICAS)]
    process = multiprocessing.get_context("spawn").Process(target=serve_replicas, args=(ports,), daemon=True)
    process.start()
    wait_for(ports[-1])
    rounds: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in asked.only.split(",")}
    for _ in range(asked.rounds):
        for name in list(rounds):
            try:
                rounds[name].append(measure(PEERS[name], ports, loads, asked.seconds))
            except NotInstalled as missing:
                print(f"{name}: {missing}; left out", file=sys.stderr)
                del rounds[name]
    for load in loads:
        nginx = [result[load] for result in rounds.get("nginx", [])]
        base = median(nginx)["value"] if nginx else None
        for name, results in rounds.items():
            print(json.dumps(row(name, load, [result[load] for result in results], base)), flush=True)
    process.terminate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
