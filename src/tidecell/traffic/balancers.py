"""One service's way of choosing replicas, as its route says: what is behind the data plane's calls. Pure.

The data plane asks ``pick`` and tells what became of it (``policy.Balancer``); tasks beside the router send
probes (``take_targets``, ``on_report``) and pass on what replicas say of their caches (``on_cache_report``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tidecell.structs.traffic import TrafficPolicy
from tidecell.traffic.balance import (
    Load,
    Rng,
    RoundRobin,
    WeightedRoundRobin,
    least_outstanding,
    least_tokens,
    power_of_two,
)
from tidecell.traffic.concurrency import Limit, make_limit
from tidecell.traffic.latency_at_rif import LatencyAtRif
from tidecell.traffic.limits import BYTES_PER_TOKEN, estimate_tokens
from tidecell.traffic.policy import End, Facts
from tidecell.traffic.prefix import PrefixBalancer, chain
from tidecell.traffic.prequal import Prequal
from tidecell.traffic.rules import by_affinity

MAX_TARGETS = 64
PATIENCE_S = 1.0  # a client that leaves earlier says nothing about the service


class Attempt:
    """What is kept of one attempt while it lasts."""

    __slots__ = ("began_s", "rif", "tokens", "ttft_ms")

    def __init__(self, tokens: int, began_s: float) -> None:
        self.tokens = tokens
        self.began_s = began_s
        self.rif = 0
        self.ttft_ms: float | None = None


class ServiceBalancer:
    """Chooses replicas for one service.

    Args:
        policy: What its route says.
        rng: Source of its choices.

    Attributes:
        reason: Why the last choice was made: a word for logs and metrics.
        reasons: How often each was.
        prequal: Its pool, where that is the policy.
        probes_are_remote: Whether replicas are asked (``take_targets``, ``on_report``). If not, this router's
            own counts answer in their place: the same numbers while it is the only router.
        prefix: What replicas hold, where that is the policy.
        learns: Whether calls other than ``pick`` matter to it; the simple rules go by what the router counts.
    """

    def __init__(self, policy: TrafficPolicy, rng: Rng) -> None:
        self.policy = policy
        self.reason = ""
        self.reasons: dict[str, int] = {}
        self.probes_are_remote = False
        self.prequal = Prequal(policy.prequal, rng) if policy.balance == "prequal" else None
        self.prefix = PrefixBalancer(policy.prefix, rng) if policy.balance == "prefix" else None
        self._rng = rng
        self._loads: Sequence[Load] = ()
        self._targets: list[Load] = []
        self._open: dict[tuple[int, str], Attempt] = {}
        self._records: dict[str, LatencyAtRif] = {}
        overload = policy.overload
        self.limit = None if overload is None else make_limit(overload.concurrency)
        self.in_flight = 0
        self._chains: dict[int, tuple[list[int], int]] = {}
        weighted = policy.balance == "weighted-round-robin"
        self._turns = WeightedRoundRobin() if weighted else RoundRobin()
        self.learns = overload is not None or policy.balance in ("prequal", "prefix", "least-tokens")
        self._is_plain = policy.affinity is None and policy.balance == "power-of-two"

    # -- the data plane's calls

    def pick(self, loads: Sequence[Load], facts: Facts, now_s: float) -> int:
        """Return the index of the replica."""
        self._loads = loads
        if self._is_plain:
            self.reason = "power-of-two"
            self.reasons["power-of-two"] = self.reasons.get("power-of-two", 0) + 1
            return power_of_two(loads, self._rng, now_s)
        affinity = self.policy.affinity
        session = ""
        if affinity is not None:
            session = facts.head.get(affinity.header.lower().encode()).decode("latin-1")
            session = session or (facts.user if affinity.by_user else "")
        if session and affinity is not None:
            index, self.reason = by_affinity(loads, session, affinity.slack)
        else:
            index, self.reason = self._choose(loads, facts, now_s)
        self.reasons[self.reason] = self.reasons.get(self.reason, 0) + 1
        return index

    def on_start(self, load: Load, facts: Facts, now_s: float) -> None:
        """Count the work that the replica has now, and see who is to be probed."""
        tokens = estimate_tokens(facts.body_bytes, facts.max_tokens)
        if self.prefix is not None:
            blocks, _ = self._chains.get(id(facts), ([], 0))
            prompt = facts.body_bytes // BYTES_PER_TOKEN
            matched = self.prefix.held(load.id).matched(blocks)
            tokens = max(1, prompt - (matched * prompt // len(blocks) if blocks else 0))
            self.prefix.sent(load.id, blocks, tokens, now_s)
        load.tokens += tokens
        attempt = self._open[id(facts), load.id] = Attempt(tokens, now_s)
        self.in_flight += 1
        if self.prequal is not None:
            attempt.rif = self._record(load).arrive()
            targets = self.prequal.targets(self._loads)
            if self.probes_are_remote:
                self._targets += targets
                del self._targets[:-MAX_TARGETS]
            else:
                for target in targets:
                    record = self._record(target)
                    self.on_report(target, record.rif, record.estimate_ms(now_s), now_s)

    def on_first_byte(self, load: Load, facts: Facts, ttft_ms: float, now_s: float) -> None:
        """Learn the limit; where prompts are what is balanced, that work is over."""
        if self.limit is not None:
            self.limit.observe(ttft_ms / 1000.0, self.in_flight, True, now_s)
        attempt = self._open.get((id(facts), load.id))
        if attempt is None:
            return
        attempt.ttft_ms = ttft_ms
        if self.prefix is not None:
            load.tokens -= attempt.tokens
            attempt.tokens = 0

    def on_end(self, load: Load, facts: Facts, end: End, now_s: float) -> None:
        """Take the attempt's work off its replica."""
        attempt = self._open.pop((id(facts), load.id), None)
        if attempt is None:
            return
        load.tokens -= attempt.tokens
        self.in_flight -= 1
        if self.limit is not None:
            self._learn_from_failure(self.limit, end, now_s - attempt.began_s, now_s)
        if self.prequal is not None:
            record = self._record(load)
            if attempt.ttft_ms is None:
                record.abandon()
            else:
                record.finish(attempt.rif, attempt.ttft_ms, now_s)
        if self.prefix is not None and end.outcome != "retried":
            self._chains.pop(id(facts), None)
        if self.prequal is not None and end.outcome not in ("ok", "client_closed"):
            self.prequal.forget(load)

    def has_room(self) -> bool:
        """Return whether one more attempt may start under the learned limit."""
        return self.limit is None or self.in_flight < self.limit.limit

    # -- what tasks beside the router do

    def take_targets(self) -> list[Load]:
        """Return the replicas that are to be probed, once."""
        targets, self._targets = self._targets, []
        return targets

    def on_report(self, load: Load, rif: int, latency_ms: float, now_s: float) -> None:
        """Take in what a replica says of its load, in answer to a probe or beside an ordinary answer."""
        if self.prequal is not None:
            self.prequal.observe(load, rif, latency_ms, max(1, len(self._loads)), now_s)

    def on_cache_report(self, replica: str, stored: Iterable[int], evicted: Iterable[int]) -> None:
        """Take in what a replica says of its cache, in the hashes of ``prefix.chain``."""
        if self.prefix is not None:
            self.prefix.report(replica, stored, evicted)

    def keep(self, replicas: Sequence[str]) -> None:
        """Forget replicas that are gone."""
        if self.prefix is not None:
            self.prefix.keep(replicas)
        self._records = {name: self._records[name] for name in replicas if name in self._records}

    def _record(self, load: Load) -> LatencyAtRif:
        record = self._records.get(load.id)
        if record is None:
            record = self._records[load.id] = LatencyAtRif()
        return record

    def _choose(self, loads: Sequence[Load], facts: Facts, now_s: float) -> tuple[int, str]:
        balance = self.policy.balance
        if balance == "power-of-two":
            return power_of_two(loads, self._rng, now_s), balance
        if self.prequal is not None:
            return self.prequal.choose(loads, now_s)
        if self.prefix is not None:
            return self._by_prefix(self.prefix, loads, facts, now_s)
        if balance == "least-tokens":
            return least_tokens(loads, self._rng, now_s), balance
        if balance == "least-outstanding":
            return least_outstanding(loads, self._rng, now_s), balance
        return self._turns.choose(loads, self._rng, now_s), balance

    def _by_prefix(
        self, prefix: PrefixBalancer, loads: Sequence[Load], facts: Facts, now_s: float
    ) -> tuple[int, str]:
        blocks = chain(facts.body, self.policy.prefix.block_bytes)
        if not blocks:
            return least_tokens(loads, self._rng, now_s), "prefix_short"
        index, reason, matched = prefix.choose(loads, blocks, facts.body_bytes // BYTES_PER_TOKEN)
        self._chains[id(facts)] = (blocks, matched)
        return index, reason

    def _learn_from_failure(self, limit: Limit, end: End, took_s: float, now_s: float) -> None:
        if end.status in (429, 503) and end.outcome != "retried":
            limit.observe(took_s, self.in_flight + 1, False, now_s)
        elif end.outcome == "client_closed" and end.ttft_ms is None and took_s > PATIENCE_S:
            limit.observe(took_s, self.in_flight + 1, True, now_s)  # it would have taken longer still
