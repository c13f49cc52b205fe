"""How a service's requests are treated: the values that specs, tables and policies share. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

Balance = Literal[
    "power-of-two",
    "prequal",
    "least-outstanding",
    "least-tokens",
    "round-robin",
    "weighted-round-robin",
    "prefix",
]


class PrequalPolicy(msgspec.Struct, frozen=True):
    """Parameters of Prequal; the defaults are the paper's.

    Attributes:
        pool_size: Probe answers that are kept.
        probe_rate: Probes per request.
        remove_rate: Answers removed per request.
        hot_quantile: A replica is hot above this quantile of requests in flight.
        delta: Net growth of the pool per request that the reuse limit aims at.
        max_age_s: An answer older than this is not used.
        slow_start_s: A new replica is passed over now and then for so long.
    """

    pool_size: int = 16
    probe_rate: float = 3.0
    remove_rate: float = 1.0
    hot_quantile: float = 0.84
    delta: float = 1.0
    max_age_s: float = 1.0
    slow_start_s: float = 5.0


class BreakerPolicy(msgspec.Struct, frozen=True):
    """When a whole service is left alone.

    Attributes:
        failure_share: Opens when this share of what ended lately failed; above 1 turns it off.
        min_requests: And at least so many ended.
        window_s: What counts as lately: older ends count half, and half again.
        open_s: It refuses for so long at first, twice as long after each failed trial.
        max_open_s: At most.
        trials: Requests that are let through to see, and must all pass.
        max_in_flight: Requests that may be under way at once; 0: no bound.
    """

    failure_share: float = 0.5
    min_requests: int = 20
    window_s: float = 10.0
    open_s: float = 5.0
    max_open_s: float = 60.0
    trials: int = 3
    max_in_flight: int = 0


class OutlierPolicy(msgspec.Struct, frozen=True):
    """When one replica is left out for failing.

    Attributes:
        after: Failures in a row.
        base_s: For so long the first time, twice as long each further time.
        max_s: At most.
        max_share: Never more than this share of the replicas is left out.
    """

    after: int = 5
    base_s: float = 5.0
    max_s: float = 120.0
    max_share: float = 0.5


class PrefixPolicy(msgspec.Struct, frozen=True):
    """Where prompts go that share a beginning.

    Attributes:
        block_bytes: Bytes of a prompt that make one block, where replicas do not say their own.
        capacity_blocks: Blocks that a replica is thought to hold, until its reports say otherwise.
        load_slack: A replica gets no more than this above the mean of the outstanding tokens.
        load_floor_tokens: Below so many outstanding tokens the bound does not matter.
        load_weight: What a token that waits counts beside one that is to be computed.
    """

    block_bytes: int = 2048
    capacity_blocks: int = 32768
    load_slack: float = 0.25
    load_floor_tokens: int = 131072
    load_weight: float = 0.25


class ConcurrencyPolicy(msgspec.Struct, frozen=True):
    """How many requests a service takes at once.

    Attributes:
        kind: ``gradient`` and ``aimd`` learn it from latency, ``fixed`` is ``initial``.
        initial: Where it begins.
        least: It never goes below.
        most: It never goes above.
        tolerance: Latency may be this many times that at rest (gradient).
        look_s: After so long, latency at rest is measured anew (gradient).
        target_s: Slower than this is too slow (aimd).
        backoff: What is left of the limit after a drop.
    """

    kind: Literal["gradient", "aimd", "fixed"] = "gradient"
    initial: int = 32
    least: int = 1
    most: int = 4096
    tolerance: float = 1.25
    look_s: float = 30.0
    target_s: float = 1.0
    backoff: float = 0.9


class HedgePolicy(msgspec.Struct, frozen=True):
    """When a slow request is sent a second time.

    Attributes:
        quantile: Once it took longer than this share of the requests before it.
        share: At most this share of the requests is sent twice.
        burst: So many may be at once.
        least_s: Never earlier than this.
        min_samples: Not before so many answers were seen.
    """

    quantile: float = 0.95
    share: float = 0.05
    burst: float = 5.0
    least_s: float = 0.01
    min_samples: int = 50


class OverloadPolicy(msgspec.Struct, frozen=True):
    """What happens when more comes than can be served.

    Attributes:
        concurrency: The limit on what is under way.
        max_queue: Requests that may wait.
        criticality: Level of requests that name none.
        deadline_s: A request without a deadline of its own is not sent after so long; 0: however long.
        tenant_weights: Shares of tenants beside others', which have 1.
    """

    concurrency: ConcurrencyPolicy = ConcurrencyPolicy()
    max_queue: int = 1024
    criticality: Literal["critical-plus", "critical", "sheddable-plus", "sheddable"] = "critical"
    deadline_s: float = 0.0
    tenant_weights: dict[str, float] = {}
