"""Specs that ask for less about where replicas go: what ``why`` tries. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from tidecell.structs.job import JobSpec, Replicas


def without_one_condition(spec: JobSpec) -> Iterator[tuple[str, JobSpec]]:
    """Yield a change and the changed spec for each constraint that could be left out."""
    for condition in spec.constraints:
        rest = tuple(c for c in spec.constraints if c != condition)
        yield f"constraints: without '{condition}'", replace(spec, constraints=rest)


def without_conditions(spec: JobSpec) -> tuple[str, JobSpec]:
    """Return the spec without any constraint."""
    listed = ", ".join(f"'{c}'" for c in spec.constraints)
    return f"constraints: without {listed}", replace(spec, constraints=())


def with_looser_domains(spec: JobSpec) -> Iterator[tuple[str, JobSpec]]:
    """Yield the spec with a preferred topology for a required one, and with an unbounded spread."""
    if spec.topology is not None and spec.topology.required:
        loose = replace(spec, topology=replace(spec.topology, required=False))
        yield "topology required -> preferred", loose
    if spec.spread is not None and spec.spread.max_skew:
        loose = replace(spec, spread=replace(spec.spread, max_skew=0))
        yield f"spread.max_skew {spec.spread.max_skew} -> none", loose


def with_min(spec: JobSpec, least: int) -> JobSpec:
    """Return the spec with a smaller gang."""
    return replace(spec, replicas=Replicas(least, spec.replicas.max))
