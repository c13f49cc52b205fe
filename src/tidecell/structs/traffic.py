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


class PrequalPolicy(msgspec.Struct, frozen=True, omit_defaults=True):
    """Parameters of Prequal; the defaults are the paper's, as we know them, but for ``hot_quantile``.

    Attributes:
        pool_size: Probe answers that are kept.
        probe_rate: Probes per request.
        remove_rate: Answers removed per request.
        hot_quantile: A replica is hot above this quantile of requests in flight. The paper runs 0.84 and says
            0.6 to 0.9 work; at 0.9 load in our testbed p99 is 298 ms with 0.84 and 283 ms with 0.6.
        delta: Net growth of the pool per request that the reuse limit aims at.
        max_age_s: An answer older than this is not used.
    """

    pool_size: int = 16
    probe_rate: float = 3.0
    remove_rate: float = 1.0
    hot_quantile: float = 0.6
    delta: float = 1.0
    max_age_s: float = 1.0


class BreakerPolicy(msgspec.Struct, frozen=True, omit_defaults=True):
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


class OutlierPolicy(msgspec.Struct, frozen=True, omit_defaults=True):
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


class PrefixPolicy(msgspec.Struct, frozen=True, omit_defaults=True):
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


class ConcurrencyPolicy(msgspec.Struct, frozen=True, omit_defaults=True):
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


class HedgePolicy(msgspec.Struct, frozen=True, omit_defaults=True):
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


class OverloadPolicy(msgspec.Struct, frozen=True, omit_defaults=True):
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


class Limits(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a tenant or a key may use; 0: no limit of that kind.

    Attributes:
        requests_per_minute: In any 60 s.
        tokens_per_minute: Prompt and completion, in any 60 s.
        tokens_per_day: From midnight to midnight in ``time_zone``.
        concurrency: Requests under way at once.
        time_zone: IANA name; a key's days are its tenant's.
    """

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    tokens_per_day: int = 0
    concurrency: int = 0
    time_zone: str = "UTC"


class Key(msgspec.Struct, frozen=True, omit_defaults=True):
    """One bearer token of a tenant.

    Attributes:
        name: For people; unique within the tenant.
        hash: SHA-256 (hex) of the token.
        limits: Of this key, beside those of its tenant.
        created_s: When it was made, seconds since the epoch.
    """

    name: str
    hash: str
    limits: Limits = Limits()
    created_s: float = 0.0


class Tenant(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who sends requests.

    Attributes:
        name: Unique.
        keys: Its bearer tokens.
        limits: Of all of them together.
        weight: Its share beside other tenants', where they queue.
        ceiling: The most critical level that its requests may ask for.
    """

    name: str
    keys: tuple[Key, ...] = ()
    limits: Limits = Limits()
    weight: float = 1.0
    ceiling: Literal["critical-plus", "critical", "sheddable-plus", "sheddable"] = "critical-plus"


class Match(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which requests a rule is about: all that it names must hold; what is empty does not matter.

    Attributes:
        service: Where model, host or path lead.
        model: Named in the body, with or without its adapter.
        adapter: What follows the colon in the model's name.
        host: Without the port.
        path: What it begins with.
        tenant: Whose key it has.
        headers: Exact values by name.
    """

    service: str = ""
    model: str = ""
    adapter: str = ""
    host: str = ""
    path: str = ""
    tenant: str = ""
    headers: dict[str, str] = {}


class Split(msgspec.Struct, frozen=True, omit_defaults=True):
    """One of several services that share requests by weight."""

    service: str
    weight: float = 1.0


class Canary(msgspec.Struct, frozen=True, omit_defaults=True):
    """A service that gets a share.

    Attributes:
        service: Which.
        share: 0.0 to 1.0.
        by: ``user``: the same users stay in it; ``request``: each request anew.
    """

    service: str
    share: float
    by: Literal["user", "request"] = "user"


class Shadow(msgspec.Struct, frozen=True, omit_defaults=True):
    """A service that gets copies whose answers nobody sees; ``share`` is 0.0 to 1.0."""

    service: str
    share: float = 1.0


class Rule(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where requests go that match.

    Attributes:
        name: Unique; what is hashed depends on it.
        match: Which requests.
        splits: By weight; none: where they would go anyway.
        canary: A share of them goes there instead.
        shadow: Copies go there as well.
        fallback: Tried in order where the chosen service has nothing ready.
    """

    name: str
    match: Match = Match()
    splits: tuple[Split, ...] = ()
    canary: Canary | None = None
    shadow: Shadow | None = None
    fallback: tuple[str, ...] = ()

    def services(self) -> list[str]:
        """Return the services that it sends to, in the order of the fields."""
        parts = [part.service for part in (self.canary, self.shadow) if part is not None]
        return [split.service for split in self.splits] + parts + list(self.fallback)


class Routing(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is set for a cell's requests beside the services' own policies.

    Attributes:
        aliases: Other names of models.
        rules: Where requests go otherwise than model, host or path say; the first that matches.
        tenants: Who sends requests, with keys and limits.
    """

    aliases: dict[str, str] = {}
    rules: tuple[Rule, ...] = ()
    tenants: tuple[Tenant, ...] = ()

    def services(self) -> set[str]:
        """Return the services that rules send to."""
        return {name for rule in self.rules for name in rule.services()}


class Affinity(msgspec.Struct, frozen=True, omit_defaults=True):
    """What keeps a session at one replica.

    Attributes:
        header: Header that names the session.
        by_user: Else the body's ``user`` does.
        slack: A replica with more than 1 + this times the mean in flight passes sessions on.
    """

    header: str = "x-session-id"
    by_user: bool = False
    slack: float = 0.5


class TrafficPolicy(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one service's requests are treated.

    Attributes:
        balance: How a replica is chosen.
        slow_start_s: A new replica's load grows to its fair share over so long.
        prequal: Parameters of that policy.
        prefix: Likewise.
        affinity: Sessions that stay at one replica; None: there are none.
        outlier: When a replica is left out.
        breaker: When the service is left alone; None: never.
        overload: Limits, queue and criticality; None: no limit but the queue's.
        hedge: When a slow request is sent to a second replica as well; None: never.
    """

    balance: Balance = "power-of-two"
    slow_start_s: float = 5.0
    prequal: PrequalPolicy = PrequalPolicy()
    prefix: PrefixPolicy = PrefixPolicy()
    affinity: Affinity | None = None
    outlier: OutlierPolicy = OutlierPolicy()
    breaker: BreakerPolicy | None = None
    overload: OverloadPolicy | None = None
    hedge: HedgePolicy | None = None
