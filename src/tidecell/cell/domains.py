"""Whether placements keep to what a job says of domains: all in one, or evenly over many. Pure.

The same rules as those of ``scheduler/topology.py``, asked again of the state as it is when a plan is carried
out: a machine may have gone, or a replica ended, since the scheduler looked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set

from tidecell.cell.records import CellState, Job
from tidecell.scheduler.attributes import unmet
from tidecell.structs.job import JobSpec, Shape
from tidecell.structs.machine import MachineSpec
from tidecell.structs.messages import Placement
from tidecell.structs.placement import attributes_of

Domain = tuple[str, ...]


def in_one_domain(state: CellState, job: Job, group: Sequence[Placement], homes: Sequence[str]) -> bool:
    """Return whether all replicas are in one rack, or whatever the job requires.

    Args:
        state: The cell as it is.
        job: Whose placements they are.
        group: What is to be placed.
        homes: Machines of its other replicas, one for each.
    """
    topology = job.spec.topology
    if topology is None or not topology.required:
        return True
    domains = {_domain(state, name, topology.level) for name in {*homes, *(p.machine for p in group)}}
    return len(domains) == 1 and () not in domains


def is_even(
    state: CellState, job: Job, group: Sequence[Placement], homes: Sequence[str], closed: Set[str]
) -> bool:
    """Return whether each placement, one after the other, keeps the job's ``max_skew``.

    Args:
        state: The cell as it is.
        job: Whose placements they are.
        group: What is to be placed, in the order of the plan.
        homes: Machines of its other replicas, one for each; those that are away do not count.
        closed: Machines that take no new work: their domains need not be filled.
    """
    spread = job.spec.spread
    if spread is None or not spread.max_skew:
        return True
    counts = Counter(_domain(state, name, spread.by) for name in homes if _is_up(state, name))
    eligible: dict[int, set[Domain]] = {}
    for placement in group:
        if placement.shape >= len(job.spec.shapes):
            return False
        if placement.shape not in eligible:
            eligible[placement.shape] = _eligible(state, job.spec, placement.shape, spread.by, closed)
        domain = _domain(state, placement.machine, spread.by)
        least = min((counts[d] for d in eligible[placement.shape]), default=None)
        if least is None or not domain or counts[domain] >= least + spread.max_skew:
            return False
        counts[domain] += 1
    return True


def _eligible(state: CellState, spec: JobSpec, shape: int, by: str, closed: Set[str]) -> set[Domain]:
    """Return the domains that replicas in this shape may go to at all, machines taken as empty."""
    machines = (m.spec for name, m in state.machines.items() if m.up and name not in closed)
    found = {attributes_of(m, by) for m in machines if _takes(m, spec, spec.shapes[shape])}
    return found - {()}


def _takes(machine: MachineSpec, spec: JobSpec, shape: Shape) -> bool:
    needs_device = shape.accelerator_type or shape.resources.gpu_millis
    if needs_device and not (machine.accelerators and machine.has_type(shape.accelerator_type)):
        return False
    return unmet(spec, machine) is None


def _domain(state: CellState, name: str, by: str) -> Domain:
    machine = state.machines.get(name)
    return attributes_of(machine.spec, by) if machine is not None else ()


def _is_up(state: CellState, name: str) -> bool:
    machine = state.machines.get(name)
    return machine is not None and machine.up
