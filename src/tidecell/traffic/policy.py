"""What the data plane asks policies, and what it tells them. Pure; the rules are in docs/adr/0006.

A policy never sees a connection. It is asked once whether a request is admitted and once per attempt which
replica takes it, and is told how each attempt and each request ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Protocol

import msgspec

from tidecell.traffic.balance import Load, Rng, power_of_two
from tidecell.traffic.http1 import RequestHead
from tidecell.traffic.replies import Reply
from tidecell.traffic.table import Table


class Facts(msgspec.Struct, gc=False):
    """What is known of one request before it is admitted.

    Attributes:
        service: Where its path, host or model leads.
        model: Model it names, empty if none.
        key: SHA-256 (hex) of its bearer token; empty where the table asks for none.
        stream: Whether it asks for a stream.
        max_tokens: Most tokens it asks for; 0: not said.
        user: The end user it names, empty if none.
        body_bytes: Size of its body.
        head: Its head.
        body: Its whole body, empty where it is streamed through; not to be kept.
        arrived_s: When it was complete.
    """

    service: str
    model: str
    key: str
    stream: bool
    max_tokens: int
    user: str
    body_bytes: int
    head: RequestHead
    body: bytes
    arrived_s: float


class Decision(msgspec.Struct, frozen=True):
    """What becomes of a request.

    Attributes:
        refusal: Answer with this instead of asking a replica.
        service: Serve by this service instead; empty: as asked.
        shadow: Send a copy to this service and drop the answer; empty: none.
        rank: Place in the queue while nothing is ready: lower first, then first come.
        deadline_s: Not sent to a replica after this time.
        tenant: Whose it is; tenants of one rank share by turns.
        cost: What it takes of its tenant's share.
        weight: Its tenant's share beside others'.
        why: How it got to its service, for the access log: ``canary beta``; empty: directly.
        model: The replica is asked for this model instead; empty: for the one that the body names.
        criticality: The replica is told this level; empty: what the client said, if anything.
    """

    refusal: Reply | None = None
    service: str = ""
    shadow: str = ""
    rank: int = 0
    deadline_s: float = inf
    tenant: str = ""
    cost: float = 1.0
    weight: float = 1.0
    why: str = ""
    model: str = ""
    criticality: str = ""


ADMIT = Decision()


class End(msgspec.Struct, frozen=True, gc=False):
    """How one attempt, or a whole request, ended.

    Attributes:
        outcome: A word of ``access_log``; ``retried`` for an attempt that another one replaced.
        status: What the client got; 499 if nothing.
        tokens_in: Prompt tokens from ``usage``, None where none came.
        tokens_out: Completion tokens, likewise.
        frames: Pieces of the answer's body that were passed on: about its tokens, where usage is missing.
        ttft_ms: Time to the first byte, None without one.
        duration_ms: Time to the end.
        tokens_cached: Prompt tokens that the replica had in its cache, where ``usage`` says so.
    """

    outcome: str
    status: int
    tokens_in: int | None
    tokens_out: int | None
    frames: int
    ttft_ms: float | None
    duration_ms: float
    tokens_cached: int | None = None


class Admission(Protocol):
    """Whether a request is served; one for the whole router."""

    def admit(self, facts: Facts, now_s: float) -> Decision:
        """Return what becomes of the request."""

    def settle(self, facts: Facts, end: End, now_s: float) -> None:
        """Note the end of an admitted request; exactly once for each."""


class Balancer(Protocol):
    """Which replica takes an attempt; one per service, kept when a new table comes.

    Attributes:
        reason: Why the last choice was made, in a word.
        reasons: How often each was.
        learns: Whether it wants to be told of attempts, or may have no room; if not, it only has to pick.
    """

    reason: str
    reasons: dict[str, int]
    learns: bool

    def pick(self, loads: Sequence[Load], facts: Facts, now_s: float) -> int:
        """Return the index of the replica; ``loads`` is not empty."""

    def on_start(self, load: Load, facts: Facts, now_s: float) -> None:
        """Note that an attempt goes to this replica."""

    def on_first_byte(self, load: Load, facts: Facts, ttft_ms: float, now_s: float) -> None:
        """Note that its answer began."""

    def on_end(self, load: Load, facts: Facts, end: End, now_s: float) -> None:
        """Note that the attempt is over; exactly once for each that started."""

    def has_room(self) -> bool:
        """Return whether one more attempt may start; while not, requests wait in the service's queue."""


class AdmitAll:
    """Admits everything."""

    def admit(self, facts: Facts, now_s: float) -> Decision:
        """Return ``ADMIT``."""
        return ADMIT

    def settle(self, facts: Facts, end: End, now_s: float) -> None:
        """Keep nothing."""


class PowerOfTwo:
    """Two at random, the better one; see ``balance``."""

    def __init__(self, rng: Rng) -> None:
        self.reason = "power-of-two"
        self.reasons: dict[str, int] = {}
        self.learns = False
        self._rng = rng

    def pick(self, loads: Sequence[Load], facts: Facts, now_s: float) -> int:
        """Return the better of two chosen at random."""
        return power_of_two(loads, self._rng, now_s)

    def on_start(self, load: Load, facts: Facts, now_s: float) -> None:
        """Keep nothing: the data plane counts what is in flight."""

    def on_first_byte(self, load: Load, facts: Facts, ttft_ms: float, now_s: float) -> None:
        """Keep nothing: the data plane averages it."""

    def on_end(self, load: Load, facts: Facts, end: End, now_s: float) -> None:
        """Keep nothing."""

    def has_room(self) -> bool:
        """Return True: there is no limit."""
        return True


class Policies:
    """The policies of one table.

    Args:
        table: The table.
        rng: Source of the balancers' choices.
        previous: What was in force before; what it has learned is kept.
    """

    def __init__(self, table: Table, rng: Rng, previous: Policies | None = None) -> None:
        self.admission: Admission = AdmitAll()
        known = previous.balancers if previous is not None else {}
        self.balancers: dict[str, Balancer] = {
            route.service: known.get(route.service) or PowerOfTwo(rng) for route in table.routes
        }
