"""The second attempt of a request that is slow to be answered; ``hedge`` decides when there is one.

It takes part in the answer until one of the two has begun: if it is this one, the exchange takes over replica
and connection and drops its own; if not, this one is dropped. Whichever is dropped, its connection is closed
at once, so that the replica stops working on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from tidecell.traffic.fleet import Replica, Service
from tidecell.traffic.http1 import ResponseHead
from tidecell.traffic.policy import End
from tidecell.traffic.request import Request
from tidecell.traffic.upstream import Framing, UpstreamConnection

_SAFE = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"})


class Raced(Protocol):
    """The exchange, as its hedge sees it."""

    def take_over(self, hedge: Hedge, connection: UpstreamConnection | None) -> None:
        """Drop the first attempt: this one is being answered, or (no connection) is answered in full."""

    def hedge_failed(self) -> None:
        """Go on with the first attempt alone."""

    def response_informational(self, head: ResponseHead) -> None:
        """Pass a 1xx on."""

    def response_start(self, head: ResponseHead, framing: Framing, data: bytes, is_done: bool) -> None:
        """Begin the answer."""

    def response_whole(self, head: ResponseHead, data: bytes) -> None:
        """Give the whole answer."""


def may_repeat(request: Request) -> bool:
    """Return whether a request may reach two replicas: completions may, and what changes nothing."""
    is_plain = not request.streams_body and not request.head.upgrade
    return is_plain and (bool(request.model) or request.head.method in _SAFE)


class Hedge:
    """One such attempt; a consumer of its replica's answer.

    Args:
        exchange: Whose it is.
        service: Where.
        request: What is asked.
        replica: Who is asked.
        now: The clock.
    """

    def __init__(
        self,
        exchange: Raced,
        service: Service,
        request: Request,
        replica: Replica,
        now: Callable[[], float],
    ) -> None:
        self.method = request.head.method
        self.wants_payload = request.head.is_http10
        self.replica = replica
        self._exchange = exchange
        self._service = service
        self._request = request
        self._now = now
        self._began_s = now()
        self._connection: UpstreamConnection | None = None
        self._is_over = False
        replica.load.in_flight += 1
        replica.requests += 1
        service.balancer.on_start(replica.load, request, self._began_s)

    async def run(self, connect_s: float) -> None:
        """Connect and send, on a connection of its own; what cannot be connected to is no loss."""
        try:
            async with asyncio.timeout(connect_s):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: UpstreamConnection(self.replica, self._now), self.replica.host, self.replica.port
                )
        except OSError:
            self._fail()
            return
        if self._is_over:
            connection.close()
            return
        self._connection = connection
        connection.send(self, self._request.wire_head(), self._request.body)

    def cancel(self) -> None:
        """Drop it: the other attempt has begun, or nobody wants an answer any more."""
        if self._is_over:
            return
        self._is_over = True
        if self._connection is not None:
            self._connection.abandon()
            self._connection = None
        now_s = self._now()
        end = End("retried", 499, None, None, 0, None, (now_s - self._began_s) * 1000.0)
        self._service.balancer.on_end(self.replica.load, self._request, end, now_s)
        self._service.release(self.replica)

    def _fail(self) -> None:
        if not self._is_over:
            self.cancel()
            self._exchange.hedge_failed()

    # -- the answer

    def response_informational(self, head: ResponseHead) -> None:
        """Ignore it: the first attempt's count."""

    def response_start(self, head: ResponseHead, framing: Framing, data: bytes, is_done: bool) -> None:
        """Win, unless it is a failure: then the first attempt may still do better."""
        connection = None if is_done else self._connection
        if is_done:
            self._connection = None
        if self._is_over or head.status >= 500:
            self._fail()
            return
        self._is_over = True
        self._exchange.take_over(self, connection)
        self._exchange.response_start(head, framing, data, is_done)

    def response_whole(self, head: ResponseHead, data: bytes) -> None:
        """Win or fail likewise, with an answer that came at once."""
        self._connection = None
        if self._is_over or head.status >= 500:
            self._fail()
            return
        self._is_over = True
        self._exchange.take_over(self, None)
        self._exchange.response_whole(head, data)

    def response_data(self, data: bytes, is_done: bool) -> None:
        """Does not happen: whoever has begun to be answered belongs to the exchange."""

    def response_lost(self, reason: str, is_stale: bool) -> None:
        """Go on without it."""
        self._connection = None
        self._fail()

    def upstream_write_paused(self, paused: bool) -> None:
        """The body is held whole, so the client need not wait."""
