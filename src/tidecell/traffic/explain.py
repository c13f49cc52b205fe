"""Why a request went where it did, replica by replica: for ``tide why ROUTE`` and for one request id. Pure.

What is said is read from the very objects that decide, without changing them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from tidecell.traffic.balance import Load, share
from tidecell.traffic.balancers import ServiceBalancer
from tidecell.traffic.health import Health
from tidecell.traffic.prefix import chain
from tidecell.traffic.rules import Routed

MAX_KEPT = 1024


class Verdict(msgspec.Struct, frozen=True):
    """One replica.

    Attributes:
        id: The endpoint's.
        state: ``ready``, ``warming``, ``ejected``, ``unreachable``, ``draining`` or ``gone``.
        chosen: Whether the request went there.
        reason: Why, or why not, in a word: its state, or ``chosen``, ``not_probed``, ``hot``, ``slower``,
            ``busier``, ``shorter_prefix``, ``other_session``, ``not_drawn``.
        detail: The numbers behind it.
    """

    id: str
    state: str
    chosen: bool
    reason: str
    detail: str


class Explanation(msgspec.Struct, frozen=True):
    """One decision.

    Attributes:
        service: Where it went.
        route: How it got there: ``direct``, ``split``, ``canary``, ``fallback`` …
        rule: The rule that decided; empty: none.
        policy: How replicas are chosen.
        reason: The policy's word for the choice.
        replicas: Each of them.
    """

    service: str
    route: str
    rule: str
    policy: str
    reason: str
    replicas: tuple[Verdict, ...]

    def lines(self) -> list[str]:
        """Return it as text."""
        by = f" by rule {self.rule}" if self.rule else ""
        head = f"{self.service}  {self.route}{by}, {self.policy}: {self.reason or 'no choice yet'}"
        rows = [(v.id, v.state, v.reason, v.detail) for v in self.replicas]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
        return [head] + [
            ("  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=False))).rstrip()
            + (f"  {row[3]}" if row[3] else "")
            for row in rows
        ]


class Seen(msgspec.Struct, frozen=True):
    """One replica as the data plane sees it: its load, its health and its state in the table."""

    load: Load
    health: Health
    state: str = "ready"


def state_of(seen: Seen, now_s: float) -> str:
    """Return a replica's state in a word."""
    if seen.state != "ready":
        return seen.state
    if seen.health.is_unreachable(now_s):
        return "unreachable"
    if seen.health.is_ejected(now_s):
        return "ejected"
    return "warming" if share(seen.load, now_s) < 1.0 else "ready"


def explain(
    service: str,
    balancer: ServiceBalancer,
    replicas: Sequence[Seen],
    now_s: float,
    routed: Routed | None = None,
    chosen: str = "",
    body: bytes = b"",
) -> Explanation:
    """Return each replica's state and why it was, or would not be, chosen.

    Args:
        service: The service.
        balancer: What chooses for it.
        replicas: All of its replicas.
        now_s: Time.
        routed: What rules said of the request.
        chosen: Id of the replica that the request went to; empty: a route is explained, not a request.
        body: The request's body, where prompts are matched.
    """
    blocks = chain(body, balancer.policy.prefix.block_bytes) if body and balancer.prefix else []
    verdicts = []
    for seen in replicas:
        state = state_of(seen, now_s)
        usable = state in ("ready", "warming")
        reason, detail = _of_load(balancer, seen.load, blocks, now_s)
        if seen.load.id == chosen:
            reason = "chosen"
        elif not usable:
            reason, detail = state, _trouble(seen.health, state, now_s)
        verdicts.append(Verdict(seen.load.id, state, seen.load.id == chosen, reason, detail))
    routed = routed or Routed(service)
    return Explanation(
        service, routed.reason, routed.rule, balancer.policy.balance, balancer.reason, tuple(verdicts)
    )


class Decisions:
    """The explanations of the newest requests, by request id.

    Args:
        most: How many are kept.
    """

    def __init__(self, most: int = MAX_KEPT) -> None:
        self._most = most
        self._kept: OrderedDict[str, Explanation] = OrderedDict()

    def keep(self, request_id: str, explanation: Explanation) -> None:
        """Remember one."""
        self._kept[request_id] = explanation
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def find(self, request_id: str) -> Explanation | None:
        """Return a request's, None if it is not (any more) known."""
        return self._kept.get(request_id)


def _of_load(balancer: ServiceBalancer, load: Load, blocks: Sequence[int], now_s: float) -> tuple[str, str]:
    if balancer.prequal is not None:
        return _of_probe(balancer, load, now_s)
    if balancer.prefix is not None:
        matched = balancer.prefix.held(load.id).matched(blocks)
        held = len(balancer.prefix.held(load.id))
        of = f"{matched} of {len(blocks)} blocks, " if blocks else ""
        return "shorter_prefix", f"{of}{held} blocks held, {load.tokens} tokens to compute"
    if balancer.policy.affinity is not None and balancer.reason.startswith("session"):
        return "other_session", f"{load.in_flight} in flight"
    if balancer.policy.balance == "least-tokens":
        return "busier", f"{load.tokens} tokens, {load.in_flight} in flight"
    if balancer.policy.balance == "power-of-two":
        return "not_drawn", f"{load.in_flight} in flight, {load.latency_ewma_ms:.0f} ms"
    return "busier", f"{load.in_flight} in flight, weight {load.weight:g}"


def _of_probe(balancer: ServiceBalancer, load: Load, now_s: float) -> tuple[str, str]:
    prequal = balancer.prequal
    probe = prequal.probe_of(load) if prequal is not None else None
    if prequal is None or probe is None:
        return "not_probed", "no probe in the pool"
    age_ms = (now_s - probe.received_s) * 1000.0
    detail = f"rif {probe.rif:g} (hot above {prequal.hot_above():g}), {probe.latency_ms:.0f} ms"
    return ("hot" if probe.rif > prequal.hot_above() else "slower"), f"{detail}, {age_ms:.0f} ms old"


def _trouble(health: Health, state: str, now_s: float) -> str:
    if state == "ejected":
        return f"for {health.ejected_until_s - now_s:.1f} s more, ejection {health.num_ejections}"
    if state == "unreachable":
        return f"{health.num_refusals} refusals, tried again in {health.unreachable_until_s - now_s:.1f} s"
    return ""
