"""The router's stats as Prometheus text (exposition format 0.0.4). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tidecell.traffic.stats import BOUNDS_MS, HistogramStats, Quantiles, RouterStats, ServiceStats

Labels = dict[str, str]
Sample = tuple[Labels, float]


def render(stats: RouterStats) -> str:
    """Return the text that a Prometheus server scrapes."""
    lines: list[str] = []
    for name, what, rows in _histograms(stats):
        lines += [f"# HELP tidecell_router_{name} {what}", f"# TYPE tidecell_router_{name} histogram"]
        for labels, histogram in rows:
            lines += _buckets(f"tidecell_router_{name}", labels, histogram)
    for name, kind, what, samples in _families(stats):
        lines += [f"# HELP tidecell_router_{name} {what}", f"# TYPE tidecell_router_{name} {kind}"]
        lines += [f"tidecell_router_{name}{_labels(labels)} {value:g}" for labels, value in samples]
    return "\n".join(lines) + "\n"


def _families(stats: RouterStats) -> Iterator[tuple[str, str, str, Iterable[Sample]]]:
    services = stats.services.items()
    yield "table_version", "gauge", "Version of the table that is served.", [({}, stats.version)]
    yield "connections", "gauge", "Open client connections.", [({}, stats.connections)]
    yield "requests_total", "counter", "Finished requests by outcome.", _by_outcome(stats)
    yield "choices_total", "counter", "Choices of a replica by reason.", _choices(stats)
    yield "retries_total", "counter", "Attempts beyond the first.", _each(stats, "retries_total")
    yield "hedges_total", "counter", "Second attempts for slowness.", _each(stats, "hedges_total")
    yield "hedges_won_total", "counter", "Of those, answered first.", _each(stats, "hedges_won_total")
    yield "in_flight", "gauge", "Requests at a replica.", _each(stats, "in_flight")
    yield "queued", "gauge", "Requests waiting for a replica.", _each(stats, "queued")
    yield "tokens_in_total", "counter", "Prompt tokens as reported.", _each(stats, "tokens_in_total")
    yield "tokens_out_total", "counter", "Completion tokens as reported.", _each(stats, "tokens_out_total")
    yield "tokens_cached_total", "counter", "Prompt tokens found cached.", _each(stats, "tokens_cached_total")
    yield "sheds_total", "counter", "Requests shed or refused by reason.", _sheds(stats)
    yield "ttft_ms", "gauge", "Time to first byte over 10 s.", _quantiles((n, s.ttft_ms) for n, s in services)
    yield "duration_ms", "gauge", "Duration over 10 s.", _quantiles((n, s.duration_ms) for n, s in services)
    yield "endpoint_in_flight", "gauge", "Requests at one replica.", _endpoints(stats, "in_flight")
    yield "endpoint_requests_total", "counter", "Attempts sent to one replica.", _endpoints(stats, "requests")
    yield "endpoint_failures_total", "counter", "Attempts it failed.", _endpoints(stats, "failures")
    yield "endpoint_ejected", "gauge", "1 while left out for failing.", _endpoints(stats, "ejected")


def _histograms(stats: RouterStats) -> Iterator[tuple[str, str, list[tuple[Labels, HistogramStats]]]]:
    services = stats.services.items()
    yield (
        "duration_seconds",
        "From admission to the last byte.",
        [({"service": name}, service.duration) for name, service in services],
    )
    yield (
        "ttft_seconds",
        "From admission to the first byte.",
        [({"service": name}, service.ttft) for name, service in services],
    )
    yield (
        "token_gap_seconds",
        "Mean time between a stream's tokens.",
        [({"service": name}, service.token_gap) for name, service in services],
    )
    rows = [
        ({"service": name, "endpoint": endpoint}, one.ttft)
        for name, service in services
        for endpoint, one in service.endpoints.items()
    ]
    yield "endpoint_ttft_seconds", "From an attempt to its first byte, by replica.", rows


def _buckets(name: str, labels: Labels, histogram: HistogramStats) -> Iterator[str]:
    total = 0
    bounds = [f"{bound / 1000.0:g}" for bound in BOUNDS_MS] + ["+Inf"]
    for bound, count in zip(bounds, histogram.counts or (0,) * len(bounds), strict=True):
        total += count
        yield f"{name}_bucket{_labels({**labels, 'le': bound})} {total}"
    yield f"{name}_sum{_labels(labels)} {histogram.sum_ms / 1000.0:.6g}"
    yield f"{name}_count{_labels(labels)} {total}"


def _sheds(stats: RouterStats) -> Iterator[Sample]:
    for name in stats.services:
        for reason, count in stats.sheds(name).items():
            yield {"service": name, "reason": reason}, count


def _by_outcome(stats: RouterStats) -> Iterator[Sample]:
    for name, service in stats.services.items():
        yield {"service": name, "outcome": "ok"}, service.ok_total
        for outcome, count in service.failed_total.items():
            yield {"service": name, "outcome": outcome}, count
    for outcome, count in stats.refused_total.items():
        yield {"service": "", "outcome": outcome}, count


def _choices(stats: RouterStats) -> Iterator[Sample]:
    for name, service in stats.services.items():
        for reason, count in service.choices_total.items():
            yield {"service": name, "reason": reason}, count


def _each(stats: RouterStats, field: str) -> Iterator[Sample]:
    for name, service in stats.services.items():
        yield {"service": name}, float(getattr(service, field))


def _quantiles(rows: Iterable[tuple[str, Quantiles]]) -> Iterator[Sample]:
    for name, quantiles in rows:
        for q, value in (("0.5", quantiles.p50), ("0.95", quantiles.p95), ("0.99", quantiles.p99)):
            yield {"service": name, "quantile": q}, value


def _endpoints(stats: RouterStats, field: str) -> Iterator[Sample]:
    for name, service in stats.services.items():
        yield from _of_service(name, service, field)


def _of_service(name: str, service: ServiceStats, field: str) -> Iterator[Sample]:
    for endpoint_id, endpoint in service.endpoints.items():
        yield {"service": name, "endpoint": endpoint_id}, float(getattr(endpoint, field))


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{key}="{_escaped(value)}"' for key, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
