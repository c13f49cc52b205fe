"""When many machines are lost at once, their work is not placed anew at once. Pure.

The cell cannot tell a power failure from a network that is cut: in the second case everything still runs,
and starting it again elsewhere does the damage. "Because it cannot distinguish between large-scale machine
failure and a network partition, Borg rate-limits finding new places for tasks from machines that become
unreachable" (EuroSys 2015, section 4). A few machines lost in a while are given up at once. Beyond that each
is held: its tasks stay where they are, and live on if it comes back in time; then machines are given up one
after another.

Rates and the share above which a loss is taken for a partition are those of Kubernetes' node controller
(``--node-eviction-rate``, ``--secondary-node-eviction-rate``, ``--unhealthy-zone-threshold``). The window,
the share that is given up at once and the time to reconnect are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from tidecell.cell.endings import task_ended
from tidecell.cell.records import CellState, Job, Machine, Task
from tidecell.structs.lifecycle import MachineReleased
from tidecell.structs.message_base import Event
from tidecell.structs.messages import TaskDown

WINDOW_S = 300.0  # losses within this time of each other are counted together
# Machines fail one by one: 2 % of a cell within five minutes has one cause. One is never held.
AT_ONCE_SHARE = 0.02
RECONNECT_S = 60.0  # the least time for a held machine to come back: an agent's restart, a switch's reboot
RATE_PER_S = 0.1  # machines given up per second
PARTITION_SHARE = 0.55  # of the cell's machines
PARTITION_RATE_PER_S = 0.01


def release_at(machines: Iterable[Machine], now_s: float) -> float:
    """Return when the tasks of a machine that is lost now are given up; 0: at once.

    Args:
        machines: All machines of the cell, this one still up.
        now_s: When it was lost.
    """
    known = [m for m in machines if m.up or m.lost_s >= now_s - WINDOW_S]
    lost = [m for m in known if not m.up]
    count = len(lost) + 1
    if count <= max(1, math.floor(AT_ONCE_SHARE * len(known))):
        return 0.0
    rate_per_s = PARTITION_RATE_PER_S if count > PARTITION_SHARE * len(known) else RATE_PER_S
    last_s = max(m.release_s for m in lost) if lost else 0.0
    return max(now_s + RECONNECT_S, last_s + 1.0 / rate_per_s if last_s else 0.0)


def give_up_held(state: CellState, now_s: float) -> list[Event]:
    """Return the events that end what held machines ran, once their time is over."""
    due = [m.spec.name for m in state.machines.values() if m.held and now_s >= m.release_s]
    if not due:
        return []
    out: list[Event] = []
    for job, task in lost_tasks(state, due):
        down = TaskDown(state.ref(job, task), task.machine, exit_code=-1, lost=True)
        out.append(task_ended(job, task, down, now_s))
    return [*out, *(MachineReleased(name) for name in due)]


def lost_tasks(state: CellState, names: Iterable[str]) -> list[tuple[Job, Task]]:
    """Return what runs on these machines as far as the cell knows."""
    found = [pair for name in dict.fromkeys(names) for pair in state.tasks_on(name)]
    return sorted(found, key=lambda pair: (pair[0].submitted_s, pair[0].uid, pair[1].index))


__all__ = ["RECONNECT_S", "WINDOW_S", "give_up_held", "lost_tasks", "release_at"]
