"""The router: a process of its own that carries requests to replicas.

    python -m tidecell.traffic.router --home DIR --port N --control SOCKET_PATH

It knows one table, which the control plane pushes over the control socket (``control`` has the protocol
and the client), and keeps it in ``DIR/router/table.json``: without a control plane, or after a restart,
it serves on. In ``DIR/router`` are also ``port`` (the port it listens on) and
``access.jsonl`` (see ``access_log``).

With ``--listen-fd`` it serves a socket that somebody else opened and keeps (in a cell the agent does): while
the router is started again, connections wait instead of being refused. With ``--reuse-port`` several routers,
each with its own directory and control socket, share a port. With ``--tls`` clients speak TLS.

SIGTERM: no new connections, requests in flight finish within ``--shutdown-s``, exit status 0.

Why protocols on uvloop and no library for the bytes: measured, such a proxy costs about what nginx costs;
ASGI servers and HTTP client libraries cost several times that.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from random import Random

import uvloop
from msgspec.structs import replace

from tidecell.structs.errors import RefusedError, TidecellError
from tidecell.traffic.access_log import AccessLog, Line
from tidecell.traffic.balancers import ServiceBalancer
from tidecell.traffic.control import Why
from tidecell.traffic.control_server import ControlServer
from tidecell.traffic.directory import Directory
from tidecell.traffic.downstream import ClientConnection
from tidecell.traffic.exchange import Exchange
from tidecell.traffic.explain import Decisions, Explanation, explain
from tidecell.traffic.fleet import Fleet, Service
from tidecell.traffic.http1 import RequestHead
from tidecell.traffic.http2 import Watched
from tidecell.traffic.policies import TrafficPolicies
from tidecell.traffic.policy import Policies
from tidecell.traffic.replies import Reply
from tidecell.traffic.request import Limits, Request
from tidecell.traffic.stats import RouterStats, ServiceStats
from tidecell.traffic.table import EMPTY, Table, check_order, decode, encode
from tidecell.traffic.tls import Certificates, Pair
from tidecell.traffic.trace import RecordedAdmission, Recorder

BACKLOG = 2048
BUSY_SWEEP_S = 0.25
IDLE_SWEEP_S = 5.0
UPSTREAM_IDLE_S = 60.0
EXPLAINED_PER_S = 20.0  # choices whose every replica's state is kept, for each service
# At the end a connection is open for so long after its last use: a request that is on its way to it would be
# lost. Whoever sends one meanwhile is told to close with its answer.
LAST_REQUEST_S = 0.5


class Router:
    """State of the process, and what its parts ask of it (``exchange.Context``, ``downstream.Gateway``).

    Args:
        home: The cell's directory.
        limits: Times and sizes.
        rng: Source of the balancer's choices.
        traces: Requests are recorded, see ``trace``.
    """

    def __init__(self, home: Path, limits: Limits, rng: Random, traces: bool = False) -> None:
        self.now = time.monotonic
        self.loop = asyncio.get_running_loop()
        self.limits = limits
        self.is_closing = False
        self.port = 0
        self._dir = home / "router"
        self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.log = AccessLog(self._dir / "access.jsonl")
        self._recorder = Recorder(self._dir / "trace.jsonl", self.now()) if traces else None
        self.table = _load(self._dir / "table.json")
        self._rng = rng
        self.fleet = Fleet(rng, self.now)
        self.traffic = self._make_policies(self.table, None)
        self.policies: Policies = self.traffic
        self.fleet.apply(self.table, self.policies)
        self.directory = Directory(self.table, int(time.time()))
        self._started_s = self.now()
        self._decisions = Decisions()
        self.exchanges: set[Exchange] = set()
        self._connections: set[Watched] = set()
        self._refused_total: dict[str, int] = {}
        self.numbers = count(1)
        self.id_prefix = b"req-%b-" % os.urandom(6).hex().encode()
        self._sweep: asyncio.TimerHandle | None = None
        self._sweep_is_busy = False
        self._persisting = asyncio.Lock()
        self._server: asyncio.Server | None = None

    # -- life

    async def listen(
        self, host: str, port: int, fd: int = -1, reuse_port: bool = False, tls: ssl.SSLContext | None = None
    ) -> None:
        """Accept clients.

        Args:
            host: Address.
            port: Port.
            fd: A socket that listens already, handed over by whoever keeps it through restarts; -1: none.
            reuse_port: Share the port with other routers of this machine.
            tls: Clients have to speak TLS.

        Raises:
            RefusedError: The port cannot be had.
        """
        port_file = self._dir / "port"
        port_file.unlink(missing_ok=True)
        try:
            if fd >= 0:
                sock = socket.socket(fileno=os.dup(fd))
                self._server = await self.loop.create_server(
                    self._client, sock=sock, backlog=BACKLOG, ssl=tls
                )
            else:
                self._server = await self.loop.create_server(
                    self._client, host, port, backlog=BACKLOG, reuse_port=reuse_port, ssl=tls
                )
        except (OSError, OverflowError) as error:
            raise RefusedError(
                f"the router cannot listen on {host}:{port}: {error}",
                hint="something else may use the port; give another with --port, or 0 to have one chosen",
            ) from error
        self.port = self._server.sockets[0].getsockname()[1]
        _write(port_file, b"%d\n" % self.port)

    def _client(self) -> ClientConnection:
        return ClientConnection(self)

    async def shut_down(self) -> None:
        """Finish what is in flight, within the time that ``limits`` allows."""
        self.is_closing = True
        if self._server is not None:
            self._server.close()
        (self._dir / "port").unlink(missing_ok=True)
        await self._until_quiet(self.limits.shutdown_s)
        for exchange in list(self.exchanges):
            exchange.shut_down()
        await self._until_quiet(1.0)  # what was refused just now is still being sent
        for connection in list(self._connections):
            connection.abort()
        self.fleet.close_idle(float("inf"))
        await asyncio.sleep(0)  # closing takes a turn of the loop
        if self._sweep is not None:
            self._sweep.cancel()
        self.log.close()
        if self._recorder is not None:
            self._recorder.close()

    async def _until_quiet(self, within_s: float) -> None:
        deadline_s = self.now() + within_s
        while (self.exchanges or self._connections) and self.now() < deadline_s:
            for connection in list(self._connections):
                connection.close_if_idle(self.now() - LAST_REQUEST_S)
            await asyncio.sleep(0.02)

    # -- control

    def _make_policies(self, table: Table, previous: TrafficPolicies | None) -> TrafficPolicies:
        offset_s = time.time() - self.now()
        policies = TrafficPolicies(table, self._rng, previous, offset_s, self._is_ready)
        if self._recorder is not None:
            policies.admission = RecordedAdmission(policies.traffic, self._recorder)
        return policies

    def _is_ready(self, name: str) -> bool:
        service = self.find(name)
        return service is not None and service.is_reachable(self.now())

    async def put_table(self, table: Table) -> bool:
        """Serve a table from now on; return whether it is on disk as well.

        Raises:
            ConflictError: A newer one is served.
        """
        check_order(self.table, table)
        self.table = table
        self.directory = Directory(table, int(time.time()))
        self.policies = self.traffic = self._make_policies(table, self.traffic)
        self.fleet.apply(table, self.policies)
        async with self._persisting:
            if self.table is not table:
                return True  # a newer one came meanwhile; that one counts
            try:
                await self.loop.run_in_executor(None, _write, self._dir / "table.json", encode(table))
            except OSError as error:
                _say(f"table {table.version} is served but not on disk: {error}")
                return False
        return True

    def stats(self) -> RouterStats:
        """Return what was counted."""
        return RouterStats(
            version=self.table.version,
            epoch=self.table.epoch,
            pid=os.getpid(),
            port=self.port,
            uptime_s=round(self.now() - self._started_s, 3),
            connections=len(self._connections),
            refused_total=dict(self._refused_total),
            services=self._service_stats(),
            accounts=self.traffic.traffic.ledger.use(self.now()),
        )

    def _service_stats(self) -> dict[str, ServiceStats]:
        refused = self.traffic.traffic.refused
        return {
            name: replace(stats, refused_total=dict(refused.get(name, {})))
            for name, stats in self.fleet.stats().items()
        }

    def why(self, name: str) -> Why | None:
        """Return why a service's replicas are or are not chosen, or what became of a request; None: neither.

        Args:
            name: A service or one of its models, or the id of a request.
        """
        service = self.find(name) or self.find(self.directory.service_of(name))
        if service is not None:
            return self._why_now(service)
        line, explanation = self.log.find(name), self._decisions.find(name)
        if line is None and explanation is None:
            return None
        return Why(explanation, request=line)

    def _why_now(self, service: Service) -> Why:
        stats, balancer = self.stats(), service.balancer
        limit = balancer.limit.limit if isinstance(balancer, ServiceBalancer) and balancer.limit else 0.0
        return Why(
            self._explain(service, None, "", self.now()),
            sheds=stats.sheds(service.name),
            in_flight=service.in_flight(),
            queued=service.num_queued,
            limit=round(limit, 1),
            breaker=self.traffic.traffic.breaker_state(service.name, self.now()),
        )

    def _explain(
        self, service: Service, request: Request | None, chosen: str, now_s: float
    ) -> Explanation | None:
        if not isinstance(service.balancer, ServiceBalancer):
            return None
        routed = None if request is None else self.traffic.traffic.routed(request)
        body = b"" if request is None else request.body
        return explain(service.name, service.balancer, service.seen(), now_s, routed, chosen, body)

    # -- what exchanges and connections ask

    def explain(self, service: Service, request: Request, chosen: str, now_s: float) -> None:
        """Keep why this replica was chosen; at most ``EXPLAINED_PER_S`` times a second for each service."""
        service.explain_after_s = now_s + 1.0 / EXPLAINED_PER_S
        explanation = self._explain(service, request, chosen, now_s)
        if explanation is not None:
            self._decisions.keep(request.request_id.decode("ascii"), explanation)

    def watch(self) -> None:
        """Look at the deadlines of ``exchanges`` from now on."""
        if not self._sweep_is_busy:
            self._sweep_in(BUSY_SWEEP_S)

    def opened(self, connection: Watched) -> None:
        """Watch a connection's deadlines."""
        self._connections.add(connection)
        if self._sweep is None:
            self._sweep_in(IDLE_SWEEP_S)

    def closed(self, connection: Watched) -> None:
        """Watch it no longer."""
        self._connections.discard(connection)

    def find(self, service: str) -> Service | None:
        """Return the service of that name, None if it has left the table."""
        found = self.fleet.services.get(service)
        return None if found is None or found.is_removed else found

    def refused(self, head: RequestHead | None, request_id: bytes, reply: Reply) -> None:
        """Count and log a request that was not admitted; the router's own pages are neither."""
        if reply.outcome == "local":
            return
        self._refused_total[reply.outcome] = self._refused_total.get(reply.outcome, 0) + 1
        if head is not None:
            self.log.write(_refusal(head, request_id, reply))

    # -- deadlines: one timer for all, slow when nothing is under way, none when nobody is connected

    def _sweep_in(self, delay_s: float) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
        self._sweep_is_busy = delay_s == BUSY_SWEEP_S
        self._sweep = self.loop.call_later(delay_s, self._check_deadlines)

    def _check_deadlines(self) -> None:
        now_s = self.now()
        for exchange in list(self.exchanges):
            exchange.check(now_s)
        for connection in list(self._connections):
            connection.check(now_s)
        has_idle = self.fleet.close_idle(now_s - UPSTREAM_IDLE_S)
        self._sweep = None
        self._sweep_is_busy = False
        if self.exchanges:
            self._sweep_in(BUSY_SWEEP_S)
        elif self._connections or has_idle:
            self._sweep_in(IDLE_SWEEP_S)


def _refusal(head: RequestHead, request_id: bytes, reply: Reply) -> Line:
    return Line(
        time=round(time.time(), 6),
        id=request_id.decode("ascii"),
        service="",
        model="",
        endpoint="",
        method=head.method.decode("ascii"),
        path=head.target.partition(b"?")[0].decode("ascii"),
        status=reply.status,
        stream=False,
        ttft_ms=None,
        duration_ms=0.0,
        queue_ms=0.0,
        bytes_in=max(0, head.content_length),
        bytes_out=len(reply.body),
        tokens_in=None,
        tokens_out=None,
        retries=0,
        outcome=reply.outcome,
    )


def _load(path: Path) -> Table:
    """Return the last table; a damaged one is worth a word, not the service."""
    try:
        return decode(path.read_bytes())
    except FileNotFoundError:
        return EMPTY
    except (OSError, TidecellError) as error:
        _say(f"{path} cannot be used ({error}); waiting for the control plane to push a table")
        return EMPTY


def _write(path: Path, content: bytes) -> None:
    """Replace a file as a whole, for its owner only; a crash leaves the old one or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _say(message: str) -> None:
    print(f"router: {message}", file=sys.stderr, flush=True)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tidecell.traffic.router")
    parser.add_argument("--home", type=Path, required=True, help="the cell's directory")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="port; 0: one is chosen")
    parser.add_argument("--listen-fd", type=int, default=-1, help="a listening socket handed over")
    parser.add_argument("--tls", nargs=2, type=Path, metavar=("CERT", "KEY"), help="speak TLS; PEM files")
    parser.add_argument(
        "--tls-name",
        nargs=3,
        action="append",
        default=[],
        metavar=("HOST", "CERT", "KEY"),
        help="certificate for clients that ask for this host; may be repeated",
    )
    parser.add_argument("--trace", action="store_true", help="record requests in DIR/router/trace.jsonl")
    parser.add_argument("--reuse-port", action="store_true", help="share the port with other routers")
    parser.add_argument("--control", type=Path, required=True, help="path of the control socket")
    defaults = Limits()
    for name in Limits.__struct_fields__:
        value = getattr(defaults, name)
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, dest=name, type=type(value), default=value, help="default: %(default)s")
    return parser.parse_args(argv)


def _certificates(arguments: argparse.Namespace, now: Callable[[], float]) -> ssl.SSLContext | None:
    if arguments.tls is None and not arguments.tls_name:
        return None
    if arguments.tls is None:
        raise RefusedError(
            "--tls-name without --tls", hint="--tls CERT KEY says what clients get that ask for no host"
        )
    named = [Pair(name.lower(), Path(cert), Path(key)) for name, cert, key in arguments.tls_name]
    return Certificates([Pair("", *arguments.tls), *named], now, _say).context


async def serve(arguments: argparse.Namespace) -> None:
    """Run the router until it is told to stop."""
    limits = Limits(**{name: getattr(arguments, name) for name in Limits.__struct_fields__})
    router = Router(arguments.home, limits, Random(), arguments.trace)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        router.loop.add_signal_handler(number, stop.set)
    control = ControlServer(arguments.control, router)
    await control.start()  # first: who has the socket owns the directory, and what a killed router left there
    try:
        tls = _certificates(arguments, router.now)
        await router.listen(arguments.host, arguments.port, arguments.listen_fd, arguments.reuse_port, tls)
        url = f"http{'s' if tls else ''}://{arguments.host}:{router.port}"
        _say(f"listens on {url}, table {router.table.version}")
        await stop.wait()
    finally:
        await router.shut_down()
        await control.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the process; return its exit status."""
    arguments = _arguments(argv)
    gc.freeze()  # what is loaded now stays; requests make few cycles, so looking for them seldom is enough
    gc.set_threshold(50_000, 20, 50)
    try:
        uvloop.run(serve(arguments))
    except TidecellError as error:
        print(error.render(), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
