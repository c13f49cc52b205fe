"""Counts and times of an engine, and their Prometheus text.

Written by the engine's thread alone and read by others at any time: a reader may see one number newer
than another, never a broken one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence

# Seconds; from a fast accelerator's step to a long queue on a small CPU.
_LATENCIES_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Histogram:
    """Times in buckets, as Prometheus counts them.

    Attributes:
        bounds: Upper ends of the buckets in seconds; one more bucket holds the rest.
        counts: Observations per bucket.
        total: Sum of all observations.
    """

    def __init__(self, bounds: Sequence[float] = _LATENCIES_S) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Observe a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str, labels: str) -> list[str]:
        """Return the samples of a Prometheus histogram."""
        lines = []
        running = 0
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            running += count
            lines.append(f'{name}_bucket{{{labels},le="{bound}"}} {running}')
        return [*lines, f"{name}_sum{{{labels}}} {self.total:.6f}", f"{name}_count{{{labels}}} {running}"]


class Meters:
    """What an engine counts.

    Attributes:
        first_token: Time from submission to a request's first token.
        between_tokens: Time between two tokens of a request.
        finished: Requests by how they ended.
        steps, step_seconds: Forward passes and the time in them.
        computed_tokens: Tokens that went through the network.
        prompt_tokens, generated_tokens: Tokens of requests that had a first token.
    """

    def __init__(self) -> None:
        self.first_token = Histogram()
        self.between_tokens = Histogram()
        self.finished: Counter[str] = Counter()
        self.steps = 0
        self.step_seconds = 0.0
        self.computed_tokens = 0
        self.prompt_tokens = 0
        self.generated_tokens = 0


def render(
    meters: Meters,
    gauges: Mapping[str, tuple[str, float]],
    counters: Mapping[str, tuple[str, float]],
    model: str,
) -> str:
    """Return everything in Prometheus' text format.

    Args:
        meters: The engine's.
        gauges: By name, without the common prefix: help text and value.
        counters: Likewise, for what only grows.
        model: Value of the label ``model``.
    """
    labels = f'model="{_escaped(model)}"'
    own = {
        "prompt_tokens_total": ("Prompt tokens of requests that had a first token.", meters.prompt_tokens),
        "generated_tokens_total": ("Tokens generated.", meters.generated_tokens),
        "computed_tokens_total": ("Tokens that went through the network.", meters.computed_tokens),
        "steps_total": ("Forward passes.", meters.steps),
        "step_seconds_total": ("Time in forward passes.", meters.step_seconds),
    }
    lines: list[str] = []
    for kind, table in (("gauge", gauges), ("counter", {**own, **counters})):
        for name, (text, value) in table.items():
            lines += [*_head(name, text, kind), f"tidecell_{name}{{{labels}}} {value:g}"]
    lines += _head("requests_finished_total", "Requests by how they ended.", "counter")
    for finish, count in sorted(meters.finished.items()):
        lines.append(f'tidecell_requests_finished_total{{{labels},finish="{finish}"}} {count}')
    for name, text, histogram in (
        ("time_to_first_token_seconds", "From submission to the first token.", meters.first_token),
        ("inter_token_seconds", "Between two tokens of a request.", meters.between_tokens),
    ):
        lines += [*_head(name, text, "histogram"), *histogram.lines(f"tidecell_{name}", labels)]
    return "\n".join(lines) + "\n"


def _head(name: str, text: str, kind: str) -> list[str]:
    return [f"# HELP tidecell_{name} {text}", f"# TYPE tidecell_{name} {kind}"]


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
