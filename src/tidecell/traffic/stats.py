"""What the router says about itself when asked: counts since its start, and the last seconds' latencies.

Pure values; ``meters`` fills them, ``control`` carries them. Durations are in milliseconds, rates per second.
"""

from __future__ import annotations

import msgspec


class Quantiles(msgspec.Struct, frozen=True):
    """Quantiles of the samples of the last 10 s; all 0 when there were none.

    Attributes:
        num_samples: How many samples they rest on (at most 4096, the newest).
    """

    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    num_samples: int = 0


# Upper bounds of the histograms.
BOUNDS_MS = (
    *(1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0),
    *(1e3, 2.5e3, 5e3, 10e3, 30e3, 60e3, 120e3, 300e3, 600e3),
)


class HistogramStats(msgspec.Struct, frozen=True):
    """How many values there were since the start.

    Attributes:
        counts: At most the bound of ``BOUNDS_MS`` and above the one before; the last: above all.
        sum_ms: Of all values.
    """

    counts: tuple[int, ...] = ()
    sum_ms: float = 0.0


class EndpointStats(msgspec.Struct, frozen=True):
    """One replica as the router sees it.

    Attributes:
        in_flight: Requests sent and not finished; a replica has drained when it is 0 and gets no new ones.
        requests: Attempts sent to it.
        failures: Attempts that it failed: not reached, lost, timed out or answered 5xx.
        latency_ewma_ms: Moving average of the time to the first byte.
        ejected: Left out for now, for failing.
        unreachable: Its port refused; tried again soon.
        state: ``ready``, ``draining``, or ``gone`` (left the table with requests in flight).
        ttft: Time to the first byte, of every attempt that was answered.
    """

    in_flight: int = 0
    requests: int = 0
    failures: int = 0
    latency_ewma_ms: float = 0.0
    ejected: bool = False
    unreachable: bool = False
    state: str = "ready"
    ttft: HistogramStats = HistogramStats()


class ServiceStats(msgspec.Struct, frozen=True):
    """One service as the router sees it.

    Attributes:
        ongoing: In flight and queued together: the load that the autoscaler follows.
        in_flight: Requests at a replica.
        queued: Requests waiting for a replica.
        requests_total: Requests admitted.
        ok_total: Requests that a replica answered in full with a status under 500.
        failed_total: Others, by outcome (see ``access_log``); ``client_closed`` is the client's doing.
        retries_total: Attempts beyond the first.
        rate_1s: Requests admitted per second over the last second.
        rate_10s: The same over the last 10 s.
        ttft_ms: From admission to the first byte of the answer.
        duration_ms: From admission to the last byte of the answer.
        tokens_in_total: Prompt tokens, from the ``usage`` that replicas reported.
        tokens_out_total: Completion tokens, likewise.
        choices_total: Choices of a replica, by the policy's word for the reason (docs/router-policies.md).
        hedges_total: Requests that were sent a second time for being slow.
        hedges_won_total: Of those, answered first by the second replica.
        tokens_cached_total: Prompt tokens that replicas reported as cached.
        refused_total: Requests for it that were not admitted (limits, breaker, deadline), by reason.
        duration: From admission to the last byte, of answers that arrived in full.
        ttft: Likewise, to the first byte.
        token_gap: The mean time between a stream's tokens, one value for each stream.
        endpoints: By endpoint id; those that left the table stay until nothing is in flight.
    """

    ongoing: int = 0
    in_flight: int = 0
    queued: int = 0
    requests_total: int = 0
    ok_total: int = 0
    failed_total: dict[str, int] = {}
    retries_total: int = 0
    rate_1s: float = 0.0
    rate_10s: float = 0.0
    ttft_ms: Quantiles = Quantiles()
    duration_ms: Quantiles = Quantiles()
    tokens_in_total: int = 0
    tokens_out_total: int = 0
    choices_total: dict[str, int] = {}
    hedges_total: int = 0
    hedges_won_total: int = 0
    tokens_cached_total: int = 0
    refused_total: dict[str, int] = {}
    duration: HistogramStats = HistogramStats()
    ttft: HistogramStats = HistogramStats()
    token_gap: HistogramStats = HistogramStats()
    endpoints: dict[str, EndpointStats] = {}


class AccountUse(msgspec.Struct, frozen=True):
    """What one tenant or key uses.

    Attributes:
        in_flight: Requests under way.
        used: By limit (``tokens_per_day`` …), in the window of now; only limits that it has.
    """

    in_flight: int = 0
    used: dict[str, int] = {}


SHED = ("shed", "late", "queue_full", "queue_timeout")  # outcomes that mean: there was too much


class RouterStats(msgspec.Struct, frozen=True):
    """The whole router.

    Attributes:
        version: Version of the table that is served.
        epoch: Its epoch.
        pid: Process id of the router.
        port: Port it listens on.
        uptime_s: Seconds since it started.
        connections: Client connections that are open.
        refused_total: Requests that were not admitted, by outcome.
        services: By name.
        accounts: What tenants and keys use: ``tenant acme``, ``key laptop of acme``.
    """

    version: int = 0
    epoch: int = 0
    pid: int = 0
    port: int = 0
    uptime_s: float = 0.0
    connections: int = 0
    refused_total: dict[str, int] = {}
    services: dict[str, ServiceStats] = {}
    accounts: dict[str, AccountUse] = {}

    def sheds(self, service: str) -> dict[str, int]:
        """Return how many requests of a service were shed, refused or came too late, by reason."""
        known = self.services.get(service, ServiceStats())
        shed = {outcome: count for outcome, count in known.failed_total.items() if outcome in SHED}
        both = shed.keys() | known.refused_total.keys()
        return {why: shed.get(why, 0) + known.refused_total.get(why, 0) for why in sorted(both)}

    def in_flight(self, endpoint_id: str) -> int:
        """Return the requests in flight at an endpoint, 0 when the router does not know it (any more)."""
        return sum(
            service.endpoints[endpoint_id].in_flight
            for service in self.services.values()
            if endpoint_id in service.endpoints
        )
