"""One admitted request, from its last body byte to its one outcome.

It looks for a replica, waits in the service's queue while there is none, sends the request whole, and
hands the answer through. Until the first byte has gone to the client, a replica that fails is replaced by
another (the request is held in full, so it can be sent again); after that the client's stream is cut, for
it to see what is missing.

Which failures are tried again:

* not connected: nothing was sent, so always: on another replica, or later on this one, while the queue's
  time lasts
* a pooled connection that had ended (stale): on a new connection; not counted as a failure
* lost before the answer's head: once for free, then under the service's retry budget, ``MAX_LOST`` times
  at most
* answered 503: under the same rule on a replica that was not tried yet; the last 503 goes to the client
* too late with its first byte: never; a second attempt would take as long
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from tidecell.traffic.access_log import AccessLog, Line
from tidecell.traffic.fleet import Replica, Service
from tidecell.traffic.http1 import RequestHead, ResponseHead
from tidecell.traffic.relay import Relay
from tidecell.traffic.replies import Reply, encode_head, error
from tidecell.traffic.upstream import Framing, UpstreamConnection

MAX_LOST = 3
# Replaced, or of no meaning behind the router.
_NOT_FORWARDED = frozenset({b"content-length", b"transfer-encoding", b"expect", b"trailer", b"x-request-id"})
_WITH_BODY = frozenset({b"POST", b"PUT", b"PATCH"})


class Limits(msgspec.Struct, frozen=True):
    """How long each phase may take, in seconds, and how large a body may be.

    Attributes:
        max_body_bytes: Of a request.
        connect_s: To connect to a replica.
        first_byte_s: From the request to the first byte of the answer.
        idle_s: Without a byte of progress, once the answer has begun.
        request_s: For a client to send a head or the next part of a body.
        keep_alive_s: Between a client's requests.
        shutdown_s: For requests in flight when the router is told to stop.
    """

    max_body_bytes: int = 8 * 1024 * 1024
    connect_s: float = 5.0
    first_byte_s: float = 600.0
    idle_s: float = 300.0
    request_s: float = 30.0
    keep_alive_s: float = 75.0
    shutdown_s: float = 30.0


class Client(Protocol):
    """The side that asked."""

    def write(self, data: bytes) -> None:
        """Send bytes of the answer."""

    def exchange_finished(self, keep_alive: bool) -> None:
        """The answer is complete; the next request may come if ``keep_alive``."""

    def exchange_broken(self, is_framed: bool) -> None:
        """The answer will not be complete: close, so that the client can tell."""

    def tunnel_started(self) -> None:
        """From now on bytes pass both ways as they are."""

    def tunnel_paused(self, paused: bool) -> None:
        """Read no more from the client for now, or do so again."""


class Context(Protocol):
    """What an exchange needs of the router."""

    loop: asyncio.AbstractEventLoop
    limits: Limits
    now: Callable[[], float]  # finer than the loop's clock, which stands still within one of its turns
    log: AccessLog
    is_closing: bool

    def started(self, exchange: Exchange) -> None:
        """Watch its deadlines."""

    def ended(self, exchange: Exchange) -> None:
        """Watch it no longer."""


class Request(msgspec.Struct, frozen=True):
    """What was asked, as far as it matters after routing.

    Attributes:
        path: Target for the replica.
        hides_token: The Authorization field was for the router; a replica has no use for it.
    """

    head: RequestHead
    path: bytes
    body: bytes
    model: str
    stream: bool
    request_id: bytes
    hides_token: bool

    def encode(self) -> bytes:
        """Return the request as a replica gets it: framed anew, by length."""
        head = self.head
        hidden = _NOT_FORWARDED | {b"authorization"} if self.hides_token else _NOT_FORWARDED
        fields = [field for field in head.fields if field[0] not in hidden]
        fields.append((b"x-request-id", self.request_id))
        if self.body or head.method in _WITH_BODY:
            fields.append((b"content-length", b"%d" % len(self.body)))
        if head.upgrade:
            fields += [(b"connection", b"Upgrade"), (b"upgrade", head.upgrade)]
        return encode_head(b"%b %b HTTP/1.1" % (head.method, self.path), fields) + self.body


class Exchange:
    """See the module. All methods are called on the loop's thread; none of them awaits but ``_open``."""

    def __init__(
        self, context: Context, client: Client, service: Service, request: Request, sequence: int
    ) -> None:
        self._context = context
        self._client = client
        self._service = service
        self._request = request
        self._wire = request.encode()
        self.sequence = sequence
        self.method = request.head.method
        self.wants_payload = request.head.is_http10
        self.is_queued = False
        self.is_done = False
        self._replica: Replica | None = None
        self._endpoint_id = ""
        self._upstream: UpstreamConnection | None = None
        self._connect: asyncio.Task[None] | None = None
        self._relay: Relay | None = None
        self._tried: list[Replica] = []
        self._num_attempts = 0
        self._num_lost = 0
        self._fresh_only = False
        self._is_paused = False
        self._is_tunnel = False
        self._status = 499
        self._admitted_s = context.now()
        self._queued_at_s = 0.0
        self._queue_s = 0.0
        self._progress_s = self._admitted_s
        self._progress_bytes = 0
        self._ttft_s: float | None = None

    # -- finding a replica

    def start(self) -> None:
        """Admit the request."""
        self._service.meter.admitted(self._admitted_s)
        self._service.budget.deposit()
        self._context.started(self)
        self.dispatch()

    def dispatch(self) -> None:
        """Go to a replica, or wait for one."""
        now_s = self._context.now()
        if self._queued_at_s:
            self._queue_s += now_s - self._queued_at_s
            self._queued_at_s = 0.0
        replica = self._service.pick(now_s, self._tried)
        if replica is None:
            self._wait(now_s)
            return
        self._replica = replica
        self._endpoint_id = replica.id
        self._num_attempts += 1
        replica.load.in_flight += 1
        replica.requests += 1
        connection = None if self._fresh_only else _pooled(replica)
        if connection is not None:
            self._send(connection)
        else:
            self._connect = self._context.loop.create_task(self._open(replica))

    def service_removed(self) -> None:
        """End: the service has left the table while the request waited for it."""
        message = f"the service {self._service.name!r} was stopped while the request waited for it"
        self._refuse(error(503, message, "removed", retry_after_s=5))

    def _wait(self, now_s: float) -> None:
        if self._service.is_removed:
            self.service_removed()
            return
        if not self._service.enqueue(self):
            message = f"{self._service.route.max_queue} requests wait for {self._service.name!r} already"
            self._refuse(error(503, message, "queue_full", retry_after_s=1))
            return
        self._queued_at_s = now_s

    async def _open(self, replica: Replica) -> None:
        """Connect, then send; a connection that comes too late for this request serves a later one."""
        loop = self._context.loop
        try:
            async with asyncio.timeout(self._context.limits.connect_s):
                _, connection = await loop.create_connection(
                    lambda: UpstreamConnection(replica, self._context.now), replica.host, replica.port
                )
        except OSError as problem:  # TimeoutError is one
            self._connect = None
            self._refused(replica, problem)
            return
        self._connect = None
        was_unreachable = replica.health.num_refusals > 0
        replica.health.connected()
        if not self.is_done:
            self._send(connection)
        elif not connection.rest():
            connection.close()
        if was_unreachable:
            self._service.flush(self._context.now())

    def _refused(self, replica: Replica, problem: OSError) -> None:
        """Nothing was sent: go elsewhere. Who waits for this replica tries it again after a growing pause."""
        now_s = self._context.now()
        replica.failures += 1
        if not replica.health.is_unreachable(now_s):  # one of many that failed together counts, not each
            pause_s = replica.health.refused(now_s)
            self._context.loop.call_later(pause_s, self._try_one, replica)
        if not self.is_done:
            self._leave_replica()
            self.dispatch()

    def _try_one(self, replica: Replica) -> None:
        """Let one waiting request find out whether the replica is back; its success wakes the others."""
        replica.health.pause_over()
        self._service.flush(self._context.now(), most=1)

    def _send(self, connection: UpstreamConnection) -> None:
        self._upstream = connection
        self._progress_s = self._context.now()
        connection.send(self, self._wire)
        if self._is_paused:
            connection.pause()

    # -- the answer

    def response_informational(self, head: ResponseHead) -> None:
        """Pass a 1xx on to clients that know them."""
        if not self._request.head.is_http10:
            self._client.write(encode_head(head.status_line, head.fields))

    def response_start(self, head: ResponseHead, framing: Framing, data: bytes, is_done: bool) -> None:
        """Pass the head on, unless the replica is to be replaced."""
        now_s = self._context.now()
        if is_done:
            self._upstream = None
        if head.status == 503 and self._may_go_elsewhere(now_s):
            self._lost(now_s)
            return
        self._note_answer(head.status, now_s)
        self._status = head.status
        self._ttft_s = self._progress_s = now_s
        self._is_tunnel = framing is Framing.TUNNEL
        keep_alive = self._request.head.keep_alive and not self._context.is_closing
        relay = Relay(self._request.head, head, framing, self._request.request_id, keep_alive)
        self._relay = relay
        self._client.write(relay.head + relay.body(data, is_done))
        if self._is_tunnel:
            self._client.tunnel_started()
        if is_done:
            self._complete(relay)

    def response_data(self, data: bytes, is_done: bool) -> None:
        """Pass part of the body on."""
        relay = self._relay
        if relay is None:
            return
        data = relay.body(data, is_done)
        if data:
            self._client.write(data)
        if is_done:
            self._upstream = None
            self._complete(relay)

    def response_lost(self, reason: str, is_stale: bool) -> None:
        """Try again if nothing has reached the client, else cut its stream."""
        now_s = self._context.now()
        self._upstream = None
        if self._relay is not None:
            self._note_failure(now_s)
            self._break("stream_broken")
        elif is_stale:
            self._fresh_only = True
            self._leave_replica()
            self.dispatch()
        elif self._may_retry():
            self._lost(now_s)
        else:
            self._note_failure(now_s)
            message = f"the replica failed before it answered ({reason})"
            self._refuse(error(502, message, "upstream_lost"))

    def upstream_write_paused(self, paused: bool) -> None:
        """Hold back a tunnel's client while the replica is slower than it."""
        if self._is_tunnel:
            self._client.tunnel_paused(paused)

    def _note_answer(self, status: int, now_s: float) -> None:
        replica = self._replica
        if replica is None:
            return
        replica.load.observe_latency((now_s - self._progress_s) * 1000.0)
        if status >= 500:
            self._note_failure(now_s)
        else:
            replica.health.succeeded(now_s)

    def _note_failure(self, now_s: float) -> None:
        if self._replica is not None:
            self._replica.failures += 1
            peers = [replica.health for replica in self._service.replicas.values()]
            self._replica.health.failed(now_s, peers)

    def _may_retry(self) -> bool:
        return self._num_lost < MAX_LOST and self._service.budget.allow(self._num_lost)

    def _may_go_elsewhere(self, now_s: float) -> bool:
        """Return whether a 503 is worth another replica: one that is ready and was not tried."""
        tried = [*self._tried, self._replica]
        other = self._service.pick(now_s, [replica for replica in tried if replica is not None])
        return other is not None and other not in tried and self._may_retry()

    def _lost(self, now_s: float) -> None:
        """Give up on this replica and go to another."""
        self._num_lost += 1
        self._note_failure(now_s)
        if self._replica is not None:
            self._tried.append(self._replica)
        self._abandon_upstream()
        self._leave_replica()
        self.dispatch()

    # -- the client's side

    def client_data(self, data: bytes) -> None:
        """Take bytes of a tunnel."""
        if self._is_tunnel and self._upstream is not None:
            self._upstream.write(data)

    @property
    def is_tunnel(self) -> bool:
        """Whether the connection was switched to another protocol."""
        return self._is_tunnel

    def pause(self) -> None:
        """Read no more from the replica: the client is slower."""
        self._is_paused = True
        if self._upstream is not None:
            self._upstream.pause()

    def resume(self) -> None:
        """Read on."""
        self._is_paused = False
        if self._upstream is not None:
            self._upstream.resume()

    def client_gone(self) -> None:
        """Stop the replica's work at once; nobody wants it. The normal end of a tunnel, too."""
        if self._is_tunnel and self._upstream is not None:
            self._upstream.hang_up()  # what the client sent last still goes through
            self._upstream = None
        self._end("ok" if self._is_tunnel else "client_closed")

    # -- the end

    def check(self, now_s: float) -> None:
        """Hold it to the time of its phase; called a few times a second."""
        limits = self._context.limits
        if self.is_queued:
            timeout_s = self._service.route.queue_timeout_s
            if self._queue_s + now_s - self._queued_at_s >= timeout_s:
                message = f"no replica of {self._service.name!r} was ready within {timeout_s:g} s"
                self._refuse(error(504, message, "queue_timeout", retry_after_s=5))
        elif self._relay is None:
            if self._upstream is not None and now_s - self._progress_s >= limits.first_byte_s:
                self._note_failure(now_s)
                message = f"the replica did not answer within {limits.first_byte_s:g} s"
                self._refuse(error(504, message, "timeout"))
        elif not self._is_tunnel:
            self._check_progress(self._relay, now_s)

    def shut_down(self) -> None:
        """End now: the router's time is over."""
        if self._relay is None:
            self._refuse(error(503, "the router is shutting down", "shutdown", retry_after_s=1))
        else:
            self._break("shutdown")

    def _check_progress(self, relay: Relay, now_s: float) -> None:
        if relay.body_bytes != self._progress_bytes:
            self._progress_bytes = relay.body_bytes
            self._progress_s = now_s
        elif now_s - self._progress_s >= self._context.limits.idle_s:
            if not self._is_paused:
                self._note_failure(now_s)
            self._break("client_stalled" if self._is_paused else "timeout")

    def _complete(self, relay: Relay) -> None:
        self._end("upstream_5xx" if self._status >= 500 else "ok")
        self._client.exchange_finished(relay.keep_alive and not self._context.is_closing)

    def _refuse(self, reply: Reply) -> None:
        """Answer for the replica that never did."""
        keep_alive = self._request.head.keep_alive and not self._context.is_closing
        self._status = reply.status
        self._client.write(reply.encode(keep_alive, self._request.request_id, self.method != b"HEAD"))
        self._end(reply.outcome)
        self._client.exchange_finished(keep_alive)

    def _break(self, outcome: str) -> None:
        is_framed = self._relay is not None and self._relay.is_framed
        self._end(outcome)
        self._client.exchange_broken(is_framed)

    def _end(self, outcome: str) -> None:
        """Settle the one outcome: give back what is held, count, log."""
        if self.is_done:
            return
        self.is_done = True
        self._service.leave_queue(self)
        self._abandon_upstream()
        self._leave_replica()  # a connect task under way ends by itself and finds is_done
        self._context.ended(self)
        self._record(outcome)

    def _abandon_upstream(self) -> None:
        if self._upstream is not None:
            self._upstream.abandon()
            self._upstream = None

    def _leave_replica(self) -> None:
        if self._replica is not None:
            self._service.release(self._replica)
            self._replica = None

    def _record(self, outcome: str) -> None:
        now_s = self._context.now()
        if self._queued_at_s:
            self._queue_s += now_s - self._queued_at_s
        duration_ms = (now_s - self._admitted_s) * 1000.0
        ttft_ms = None if self._ttft_s is None else (self._ttft_s - self._admitted_s) * 1000.0
        tokens_in, tokens_out = self._relay.usage() if self._relay is not None else (None, None)
        meter, request = self._service.meter, self._request
        retries = max(0, self._num_attempts - 1)
        meter.finished(outcome, now_s, ttft_ms, duration_ms)
        meter.retries_total += retries
        meter.tokens_in_total += tokens_in or 0
        meter.tokens_out_total += tokens_out or 0
        self._context.log.write(
            Line(
                time=round(time.time(), 6),
                id=request.request_id.decode("ascii"),
                service=self._service.name,
                model=request.model,
                endpoint=self._endpoint_id,
                method=request.head.method.decode("ascii"),
                path=request.head.target.partition(b"?")[0].decode("ascii"),
                status=self._status,
                stream=request.stream,
                ttft_ms=None if ttft_ms is None else round(ttft_ms, 3),
                duration_ms=round(duration_ms, 3),
                queue_ms=round(self._queue_s * 1000.0, 3),
                bytes_in=len(request.body),
                bytes_out=self._relay.body_bytes if self._relay is not None else 0,
                tokens_in=tokens_in,
                tokens_out=tokens_out,
                retries=retries,
                outcome=outcome,
            )
        )


def _pooled(replica: Replica) -> UpstreamConnection | None:
    """Return the connection that was used last: the one least likely to have been closed as idle."""
    while replica.idle:
        connection = replica.idle.pop()
        if isinstance(connection, UpstreamConnection) and connection.is_open:
            return connection
    return None
