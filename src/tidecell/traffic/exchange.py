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
from collections.abc import Callable
from typing import Protocol, cast

from tidecell.traffic import waiting
from tidecell.traffic.access_log import AccessLog
from tidecell.traffic.fleet import Replica, Service
from tidecell.traffic.hedging import Hedge, may_repeat
from tidecell.traffic.http1 import ResponseHead
from tidecell.traffic.policy import ADMIT, Decision, End, Policies
from tidecell.traffic.relay import Relay
from tidecell.traffic.replies import Reply, error
from tidecell.traffic.request import Limits, Request
from tidecell.traffic.upload import Upload
from tidecell.traffic.upstream import Framing, UpstreamConnection
from tidecell.traffic.usage import NO_USAGE, Usage, read_usage

MAX_LOST = 3
SHADOW = Decision()  # of a copy whose answer is dropped: admission was asked for the original only


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

    def hold(self, paused: bool) -> None:
        """Read no more from the client for now, or do so again."""


class Context(Protocol):
    """What an exchange needs of the router."""

    loop: asyncio.AbstractEventLoop
    limits: Limits
    now: Callable[[], float]  # finer than the loop's clock, which stands still within one of its turns
    log: AccessLog
    policies: Policies
    is_closing: bool
    exchanges: set[Exchange]  # whose deadlines are watched

    def watch(self) -> None:
        """Look at the deadlines from now on; called when ``exchanges`` gets its first."""

    def explain(self, service: Service, request: Request, chosen: str, now_s: float) -> None:
        """Keep why this replica was chosen, before the request counts as its load."""


class Exchange:
    """See the module. All methods are called on the loop's thread; none of them awaits but ``_open``."""

    # What most requests never change stands here once; setting forty attributes for each would cost more than
    # anything else in this file.
    is_queued = False
    is_done = False
    _replica: Replica | None = None
    _endpoint_id = ""
    _choice = ""
    _whole_bytes = 0
    _upstream: UpstreamConnection | None = None
    _connect: asyncio.Task[None] | None = None
    _relay: Relay | None = None
    _upload: Upload | None = None
    _tried: tuple[Replica, ...] = ()
    _num_attempts = 0
    _num_lost = 0
    _fresh_only = False
    _hedge: Hedge | None = None
    _has_begun = False  # the client has the head of a stream already, see ``waiting``
    _said_s = 0.0
    _is_paused = False
    _is_tunnel = False
    _status = 499
    _queued_at_s = 0.0
    _queue_s = 0.0
    _progress_bytes = 0
    _ttft_s = 0.0
    _attempt_s = 0.0
    _progress_s = 0.0

    def __init__(
        self,
        context: Context,
        client: Client,
        service: Service,
        request: Request,
        sequence: int,
        decision: Decision = ADMIT,
    ) -> None:
        self._context = context
        self._client = client
        self._service = service
        self._request = request
        self._decision = decision
        self.sequence = sequence
        self._admitted_s = request.arrived_s
        self.method = request.head.method
        self.wants_payload = request.head.is_http10
        if request.streams_body:
            self._progress_s = request.arrived_s
            self._upload = Upload(request.body_bytes < 0)
            self._fresh_only = True  # a pooled connection that had ended would take the body with it

    # -- finding a replica

    def start(self) -> None:
        """Admit the request."""
        now_s, service, exchanges = self._admitted_s, self._service, self._context.exchanges
        service.meter.admitted(now_s)
        service.budget.deposit()
        if service.hedger is not None:
            service.hedger.admitted()
        if not exchanges:
            self._context.watch()
        exchanges.add(self)
        self._go(now_s)

    def dispatch(self) -> None:
        """Go to a replica, or wait for one."""
        now_s = self._context.now()
        if self._queued_at_s:
            self._queue_s += now_s - self._queued_at_s
            self._queued_at_s = 0.0
        self._go(now_s)

    def _go(self, now_s: float) -> None:
        if now_s >= self._decision.deadline_s:
            self._refuse(error(504, "the request's deadline passed before a replica took it", "late"))
            return
        service = self._service
        replica = service.pick(self._request, now_s, self._tried)
        if replica is None:
            self._wait(now_s)
            return
        self._replica = replica
        self._endpoint_id = replica.id
        self._choice = "retry" if self._tried else service.balancer.reason
        if now_s >= service.explain_after_s and not self._tried and self._decision is not SHADOW:
            self._context.explain(service, self._request, replica.id, now_s)
        self._attempt_s = now_s
        self._num_attempts += 1
        load = replica.load
        load.in_flight += 1
        replica.requests += 1
        if service.is_told:
            service.balancer.on_start(load, self._request, now_s)
        # The connection that was used last is the one least likely to have been closed as idle. Should it be
        # ending just now, it says so when it has.
        if replica.idle and not self._fresh_only:
            self._send(cast(UpstreamConnection, replica.idle.pop()), now_s)
        else:
            self._connect = self._context.loop.create_task(self._open(replica))

    def service_removed(self) -> None:
        """End: the service has left the table while the request waited for it."""
        message = f"the service {self._service.name!r} was stopped while the request waited for it"
        self._refuse(error(503, message, "removed", retry_after_s=5))

    @property
    def decision(self) -> Decision:
        """What the policies said of it."""
        return self._decision

    def shed(self) -> None:
        """End: its place in a full queue went to a more critical request."""
        message = f"{self._service.name!r} is overloaded and serves more critical requests first"
        self._refuse(error(503, message, "shed", retry_after_s=1))

    def _wait(self, now_s: float) -> None:
        if self._service.is_removed:
            self.service_removed()
            return
        if not self._service.enqueue(self):
            message = f"{self._service.num_queued} requests wait for {self._service.name!r} already"
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
            self._send(connection, self._context.now())
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
            self._service.note_trouble(replica)
            self._context.loop.call_later(pause_s, self._try_one, replica)
        if not self.is_done:
            self._leave_replica("retried")
            self.dispatch()

    def _try_one(self, replica: Replica) -> None:
        """Let one waiting request find out whether the replica is back; its success wakes the others."""
        replica.health.pause_over()
        self._service.flush(self._context.now(), most=1)

    def _send(self, connection: UpstreamConnection, now_s: float) -> None:
        self._upstream = connection
        self._progress_s = now_s
        request = self._request
        connection.send(self, request.wire_head(), request.body)
        if self._is_paused:
            connection.pause()
        if self._service.hedger is not None and self._decision is not SHADOW:
            delay_s = self._service.hedger.delay_s()
            if delay_s is not None and may_repeat(self._request):
                self._context.loop.call_later(delay_s, self._hedge_now, self._num_attempts)
        if self._upload is not None:
            connection.is_single_use = True
            self._client.hold(False)
            connection.write(self._upload.begin())

    # -- a second attempt beside a slow one

    def _hedge_now(self, num_attempts: int) -> None:
        """Ask another replica as well, if this attempt is not answered yet and the budget allows it."""
        service, hedger = self._service, self._service.hedger
        if self.is_done or self._upstream is None or self._ttft_s or num_attempts != self._num_attempts:
            return
        other = service.pick_other(self._replica, self._context.now())
        if hedger is None or other is None or self._hedge is not None or not hedger.may_hedge(2):
            return
        self._hedge = Hedge(self, service, self._request, other, self._context.now)
        self._connect = self._context.loop.create_task(self._hedge.run(self._context.limits.connect_s))

    def take_over(self, hedge: Hedge, connection: UpstreamConnection | None) -> None:
        """Drop the first attempt: the hedge has begun to be answered."""
        self._hedge = None
        self._abandon_upstream()
        self._leave_replica("retried")
        self._replica, self._upstream = hedge.replica, connection
        self._endpoint_id, self._choice = hedge.replica.id, "hedge"
        if self._service.hedger is not None:
            self._service.hedger.won()
        if connection is not None:
            connection.hand_to(self)
            if self._is_paused:
                connection.pause()

    def hedge_failed(self) -> None:
        """Go on with the first attempt alone."""
        self._hedge = None

    def _drop_hedge(self) -> None:
        hedge, self._hedge = self._hedge, None
        if hedge is not None:
            hedge.cancel()

    # -- a body that is passed through

    def body_data(self, data: bytes, is_last: bool) -> None:
        """Pass on part of a body that is not held whole; before a replica is connected it waits here."""
        upload = self._upload
        if upload is None:
            return
        self._progress_s = self._context.now()
        framed = upload.take(data, is_last)
        if self._upstream is None:
            self._client.hold(True)
        elif framed:
            self._upstream.write(framed)

    # -- the answer

    def response_informational(self, head: ResponseHead) -> None:
        """Pass a 1xx on to clients that know them."""
        if not self._request.head.is_http10:
            self._client.write(b"%b\r\n%b\r\n" % (head.status_line, head.forward))

    def response_start(self, head: ResponseHead, framing: Framing, data: bytes, is_done: bool) -> None:
        """Pass the head on, unless the replica is to be replaced."""
        now_s = self._context.now()
        request, status = self._request, head.status
        if is_done:
            self._upstream = None
        if status == 503 and self._may_go_elsewhere(now_s):
            self._lost(now_s)
            return
        self._note_answer(status, now_s)
        self._status = status
        self._ttft_s = self._progress_s = now_s
        keep_alive = request.head.keep_alive and not self._context.is_closing
        if self._upload is not None and not self._upload.is_done:
            keep_alive = False  # the rest of the body is of no use to anybody
        relay = Relay(request.head, head, framing, request.request_id, keep_alive, self._has_begun)
        self._relay = relay
        self._client.write(relay.head + relay.body(data, is_done))
        if framing is Framing.TUNNEL:
            self._is_tunnel = True
            self._client.tunnel_started()
        if is_done:
            self._complete(relay)

    def response_whole(self, head: ResponseHead, data: bytes) -> None:
        """Pass an answer on that came at once, unless the replica is to be replaced."""
        self._upstream = None
        request, status, body = self._request, head.status, data[head.size :]
        is_common = status < 500 and not self.wants_payload and self._upload is None
        if not is_common or not request.head.keep_alive or self._context.is_closing:
            self.response_start(head, Framing.LENGTH, body, True)
            return
        client, now_s = self._client, self._context.now()
        self._note_answer(status, now_s)
        self._status = status
        self._ttft_s = now_s
        self._whole_bytes = len(body)
        if head.has_request_id:
            client.write(b"%b\r\n%b\r\n%b" % (head.status_line, head.forward, body))
        else:
            parts = (head.status_line, head.forward, request.request_id, body)
            client.write(b"%b\r\n%bx-request-id: %b\r\n\r\n%b" % parts)
        self._end("ok", read_usage(data))
        client.exchange_finished(True)

    def response_data(self, data: bytes, is_done: bool) -> None:
        """Pass part of the body on."""
        relay = self._relay
        if relay is None:
            return
        if relay.is_plain and not is_done:  # what most tokens are
            relay.frames += 1
            relay.body_bytes += len(data)
            relay.tail.append(data)
            self._client.write(data)
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
            self._leave_replica("retried")
            self.dispatch()
        elif self._may_retry():
            self._lost(now_s)
        else:
            self._note_failure(now_s)
            message = f"the replica failed before it answered ({reason})"
            self._refuse(error(502, message, "upstream_lost"))

    def upstream_write_paused(self, paused: bool) -> None:
        """Hold back the client while the replica is slower than it."""
        if self._is_tunnel or self._upload is not None:
            self._client.hold(paused)

    def _note_answer(self, status: int, now_s: float) -> None:
        replica = self._replica
        if replica is None:
            return
        ttft_ms = (now_s - self._progress_s) * 1000.0
        self._drop_hedge()
        if self._service.hedger is not None:
            self._service.hedger.observe(now_s - self._attempt_s)
        load, health = replica.load, replica.health
        load.observe_latency(ttft_ms)
        replica.ttft.add(ttft_ms)
        if self._service.is_told:
            self._service.balancer.on_first_byte(load, self._request, ttft_ms, now_s)
        if status >= 500:
            self._note_failure(now_s)
        elif health.consecutive_failures or health.num_ejections:
            health.succeeded(now_s)

    def _note_failure(self, now_s: float) -> None:
        if self._replica is not None:
            self._replica.failures += 1
            peers = [replica.health for replica in self._service.replicas.values()]
            outlier = self._service.route.traffic.outlier
            if self._replica.health.failed(now_s, peers, outlier):
                self._service.note_trouble(self._replica)

    def _may_retry(self) -> bool:
        if self._upload is not None:
            return False  # what was passed through cannot be sent again
        return self._num_lost < MAX_LOST and self._service.budget.allow(self._num_lost)

    def _may_go_elsewhere(self, now_s: float) -> bool:
        tried = (*self._tried, self._replica)
        return self._service.has_other(tried, now_s) and self._may_retry()

    def _lost(self, now_s: float) -> None:
        """Give up on this replica and try another."""
        self._note_failure(now_s)
        self._num_lost += 1
        if self._replica is not None:
            self._tried += (self._replica,)
        self._abandon_upstream()
        self._leave_replica("retried")
        self.dispatch()

    # -- what the client does

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
            self._check_queued(now_s)
        elif self._is_tunnel:
            pass
        elif now_s - self._admitted_s >= limits.total_s:
            self._time_out(f"the request was not answered in full within {limits.total_s:g} s")
        elif self._relay is not None:
            self._check_progress(self._relay, now_s)
        elif self._upstream is not None and now_s - self._progress_s >= limits.first_byte_s:
            self._note_failure(now_s)
            self._time_out(f"the replica did not answer within {limits.first_byte_s:g} s")

    def _check_queued(self, now_s: float) -> None:
        timeout_s = self._service.route.queue_timeout_s
        if now_s >= self._decision.deadline_s:
            self._refuse(error(504, "the request's deadline passed while it waited", "late"))
        elif self._queue_s + now_s - self._queued_at_s >= timeout_s:
            message = f"no replica of {self._service.name!r} was ready within {timeout_s:g} s"
            self._refuse(error(504, message, "queue_timeout", retry_after_s=5))
        elif self._request.stream and not self._request.head.is_http10 and not self._is_paused:
            self._say_that_it_waits(now_s)

    def _say_that_it_waits(self, now_s: float) -> None:
        """Begin the stream with comments while there is nothing else to say."""
        waited_s = now_s - self._admitted_s
        if waited_s < waiting.AFTER_S or now_s - self._said_s < waiting.EVERY_S:
            return
        if not self._has_begun:
            self._has_begun = self.wants_payload = True
            self._client.write(waiting.begin(self._request.request_id))
        self._said_s = now_s
        self._client.write(waiting.comment(self._service.name, self._service.num_queued, waited_s))

    def _time_out(self, message: str) -> None:
        if self._relay is None:
            self._refuse(error(504, message, "timeout"))
        else:
            self._break("timeout")

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
        self._client.exchange_finished(relay.keep_alive)

    def _refuse(self, reply: Reply) -> None:
        """Answer for the replica that never did."""
        request = self._request
        keep_alive = request.head.keep_alive and not self._context.is_closing and not request.streams_body
        self._status = reply.status
        if self._has_begun:
            self._client.write(waiting.chunk(waiting.event(reply.body)) + waiting.END)
        else:
            self._client.write(reply.encode(keep_alive, request.request_id, self.method != b"HEAD"))
        self._end(reply.outcome)
        self._client.exchange_finished(keep_alive)

    def _break(self, outcome: str) -> None:
        is_framed = self._relay is not None and self._relay.is_framed
        self._end(outcome)
        self._client.exchange_broken(is_framed)

    def _end(self, outcome: str, usage: Usage | None = None) -> None:
        """Settle the one outcome: give back what is held, count, log."""
        if self.is_done:
            return
        self.is_done = True
        if self.is_queued:
            self._service.leave_queue(self)
        if self._upstream is not None:
            self._abandon_upstream()
        self._drop_hedge()
        context, request = self._context, self._request
        context.exchanges.discard(self)
        now_s, relay, service, replica = context.now(), self._relay, self._service, self._replica
        if usage is None:
            usage = NO_USAGE if relay is None else relay.usage()
        end = End(
            outcome,
            self._status,
            usage[0],
            usage[1],
            1 if relay is None else relay.frames,
            (self._ttft_s - self._admitted_s) * 1000.0 if self._ttft_s else None,
            (now_s - self._admitted_s) * 1000.0,
            usage[2],
        )
        if replica is not None:  # a connect task under way ends by itself and finds is_done
            if service.is_told:
                service.balancer.on_end(replica.load, request, end, now_s)
            service.release(replica)
        if self._decision is not SHADOW:
            context.policies.admission.settle(request, end, now_s)
        if self._queued_at_s:
            self._queue_s += now_s - self._queued_at_s
        retries = self._num_attempts - 1 if self._num_attempts > 1 else 0
        service.meter.finished(end, retries, now_s)
        context.log.write(
            (
                now_s,
                request.request_id,
                service.name,
                request.model,
                self._endpoint_id,
                self.method,
                request.head.target,
                end.status,
                request.stream,
                end.ttft_ms,
                end.duration_ms,
                self._queue_s * 1000.0,
                len(request.body) if self._upload is None else self._upload.body_bytes,
                self._whole_bytes if relay is None else relay.body_bytes,
                end.tokens_in,
                end.tokens_out,
                retries,
                end.outcome,
                self._choice,
                self._decision.why,
                self._decision.tenant,
                end.tokens_cached,
            )
        )

    def _abandon_upstream(self) -> None:
        if self._upstream is not None:
            self._upstream.abandon()
            self._upstream = None

    def _leave_replica(self, outcome: str) -> None:
        self._drop_hedge()
        replica = self._replica
        if replica is None:
            return
        now_s = self._context.now()
        duration_ms = (now_s - self._attempt_s) * 1000.0
        end = End(outcome, self._status, None, None, 0, None, duration_ms)
        if self._service.is_told:
            self._service.balancer.on_end(replica.load, self._request, end, now_s)
        self._service.release(replica)
        self._replica = None
