"""Which conditions exclude how many machines, and how much room each domain has, in words. Pure."""

from __future__ import annotations

import numpy as np

from tidecell.scheduler.attributes import column, meets_N, of_alloc_N
from tidecell.scheduler.board import Board
from tidecell.scheduler.feasibility import Room, copies_N, devices_of_type
from tidecell.scheduler.fleet import Fleet
from tidecell.scheduler.snapshot import JobView
from tidecell.structs.job import JobSpec

MAX_DOMAINS = 6


def describe_excluded(fleet: Fleet, spec: JobSpec) -> str:
    """Return which condition excludes how many machines: ``rack = r1 excludes 3 of 4 machines``."""
    here_N = of_alloc_N(fleet, spec.alloc)
    total, parts = int(here_N.sum()), []
    if spec.accelerator_type:
        lacking = total - int((devices_of_type(fleet, spec.accelerator_type)[1] & here_N).sum())
        parts += [f"gpu {spec.accelerator_type} excludes {lacking} of {total} machines"] if lacking else []
    for condition in spec.constraints:
        excluded = total - int((meets_N(fleet, condition) & here_N).sum())
        parts += [f"{condition} excludes {excluded} of {total} machines"] if excluded else []
    return ", ".join(parts)


def describe_domains(board: Board, job: JobView, room: Room) -> str:
    """Return how many replicas each domain has room for: ``r1: 3, r2: 2``."""
    spec = job.spec
    level = spec.topology.level if spec.topology is not None else spec.spread.by if spec.spread else "name"
    kind, found = board.placement_class(spec), column(board.fleet, level)
    count_N = np.where(kind.allowed_N, copies_N(room, kind.request, kind.typed_NG), 0)
    parts = [
        f"{found.name(code)}: {int(count_N[found.codes_N == code].sum())}"
        for code in sorted(range(len(found.values)), key=lambda c: found.values[c])
        if found.values[code] and kind.allowed_N[found.codes_N == code].any()
    ]
    return ", ".join(parts[:MAX_DOMAINS]) + (", ..." if len(parts) > MAX_DOMAINS else "")
