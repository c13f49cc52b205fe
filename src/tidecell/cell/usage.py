"""What is used on each machine, and what is held there for whom. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from tidecell.cell.state import CellState
from tidecell.structs.resources import Resources


@dataclass
class MachineUse:
    """Reservations of one machine.

    Attributes:
        used: Sum of the requests of active tasks, leaving ones included.
        accelerators: Indices in use.
    """

    capacity: Resources
    used: Resources = field(default_factory=Resources)
    accelerators: set[int] = field(default_factory=set)


def machine_use(state: CellState) -> dict[str, MachineUse]:
    """Return the use of every machine that is up or still holds tasks."""
    use = {name: MachineUse(m.spec.capacity) for name, m in state.machines.items()}
    for job in state.live_jobs():
        for task in job.open_tasks():
            if task.active and task.machine in use:
                entry = use[task.machine]
                entry.used = entry.used + task.resources
                entry.accelerators.update(task.accelerators)
    return use


def held_for_others(state: CellState, machine: str, uid: str, index: int) -> Resources:
    """Return what claims of other tasks hold on a machine."""
    held = Resources()
    for (claim_uid, claim_index), claim in state.claims.items():
        if claim.machine == machine and (claim_uid, claim_index) != (uid, index):
            held = held + claim.resources
    return held
