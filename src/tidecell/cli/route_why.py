"""What `tide why` says of a route and of a request."""

from __future__ import annotations

from tidecell.client.routing_views import RouteWhy


def render_route_why(why: RouteWhy) -> list[str]:
    """Return it as lines."""
    lines = list(why.text)
    if not why.request and why.service:
        lines.append(_load(why))
    if why.sheds:
        lines.append("shed: " + ", ".join(f"{count} {reason}" for reason, count in why.sheds.items()))
    if why.request:
        lines += _request(why)
    return lines


def _load(why: RouteWhy) -> str:
    limit = f" of at most {why.limit:g}" if why.limit else ""
    breaker = f", breaker {why.breaker}" if why.breaker else ""
    return f"now: {why.in_flight} in flight{limit}, {why.queued} queued{breaker}"


def _request(why: RouteWhy) -> list[str]:
    row = why.request
    where = f"{row['service']} at {row['endpoint'] or 'no replica'}" if row["service"] else "not admitted"
    how = [f"by {row['route']}"] if row.get("route") else []
    how += [f"chosen as {row['choice']}"] if row.get("choice") else []
    took = [f"{row['duration_ms']:.0f} ms in all, {row['queue_ms']:.0f} of them waiting"]
    took += [f"first byte after {row['ttft_ms']:.0f} ms"] if row["ttft_ms"] is not None else []
    took += [f"{row['retries']} retries"] if row["retries"] else []
    lines = [
        f"request {row['id']}: {row['outcome']}, status {row['status']}",
        f"  {', '.join([where, *how])}",
        f"  {', '.join(took)}",
    ]
    if not why.text:
        lines.append(
            "  the state of the replicas when it was sent was not kept; tide why of the service shows now"
        )
    return lines
