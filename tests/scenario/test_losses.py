"""Stories of machines that are lost: one by one, and many at once."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from testcell import StoryCell

from tidecell.cell.losses import RECONNECT_S, release_at
from tidecell.cell.records import Machine
from tidecell.structs.job import TaskState
from tidecell.structs.machine import MachineSpec
from tidecell.structs.messages import MachineLost, MachineSeen, TaskEnded, TaskPlaced
from tidecell.structs.resources import Resources


class LossCell(StoryCell):
    """Ten machines; nine run a task each, one is spare and large enough for all."""

    def __init__(self) -> None:
        super().__init__(cores=1.0, machines=9)
        self.engine.machines.append(MachineSpec("spare", Resources(20_000, 8 << 30)))
        for i in range(9):
            self.job(f"j{i}", 1.0)
        self.pass_time(1)
        self.tell(MachineSeen(self.engine.machines[-1]))
        assert self.machines_used() == {f"m{i}" for i in range(9)}

    def machines_used(self) -> set[str]:
        state = self.runtime.state
        return {t.machine for j in state.live_jobs() for t in j.active_tasks()}

    def lose(self, *names: str) -> None:
        for name in names:
            self.tell(MachineLost(name))

    def come_back(self, name: str) -> None:
        (spec,) = [m for m in self.engine.machines if m.name == name]
        running = tuple(sorted(r for r, p in self.engine.running.items() if p.machine == name))
        self.tell(MachineSeen(spec, running))

    def on_spare(self) -> int:
        state = self.runtime.state
        return sum(t.machine == "spare" for j in state.live_jobs() for t in j.active_tasks())


def test_one_lost_machine_is_given_up_at_once() -> None:
    cell = LossCell()
    cell.lose("m0")
    cell.pass_time(2)
    assert cell.on_spare() == 1


def test_when_most_machines_are_lost_at_once_their_tasks_wait_for_them() -> None:
    cell = LossCell()
    cell.lose("m0", "m1", "m2", "m3", "m4", "m5", "m6")
    cell.pass_time(RECONNECT_S - 5)
    assert cell.on_spare() == 1
    for i in range(1, 7):
        cell.come_back(f"m{i}")
    cell.pass_time(600)
    assert cell.on_spare() == 1
    assert len(cell.happened(TaskEnded)) == 1, "what came back in time has run on"
    assert len(cell.happened(TaskPlaced)) == 10


def test_machines_that_do_not_come_back_are_given_up_one_after_another() -> None:
    cell = LossCell()
    cell.lose("m0", "m1", "m2", "m3")  # four of ten: many, but no partition
    moved = []
    for _ in range(12):
        moved.append(cell.on_spare())
        cell.pass_time(10)
    assert moved == [0, 1, 1, 1, 1, 1, 1, 2, 3, 4, 4, 4]


def test_held_machines_survive_a_restart_of_the_control_plane() -> None:
    cell = LossCell()
    cell.lose("m0", "m1", "m2")
    cell.engine.machines = [m for m in cell.engine.machines if m.name not in ("m0", "m1", "m2")]
    cell.restart_control_plane()
    cell.pass_time(RECONNECT_S + 20)
    assert cell.on_spare() == 3


def test_a_job_on_a_held_machine_can_be_stopped() -> None:
    cell = LossCell()
    cell.lose("m0", "m1")
    cell.stop("j1")
    cell.pass_time(RECONNECT_S + 5)
    assert cell["j1"].state is TaskState.CANCELLED


def test_losses_far_apart_are_never_held() -> None:
    machines = [Machine(MachineSpec(f"m{i}", Resources(1000))) for i in range(20)]
    for i in range(10):
        now_s = 1000.0 + 400.0 * i
        assert release_at(machines, now_s) == 0.0
        machines[i].up, machines[i].lost_s = False, now_s


def test_of_a_large_cell_two_percent_are_given_up_at_once_and_then_one_each_ten_seconds() -> None:
    machines = [Machine(MachineSpec(f"m{i}", Resources(1000))) for i in range(500)]
    released = []
    for machine in machines[:14]:
        released.append(release_at(machines, 1000.0))
        machine.up, machine.lost_s, machine.release_s = False, 1000.0, released[-1]
    assert released == [0.0] * 10 + [1060.0, 1070.0, 1080.0, 1090.0]


def test_what_looks_like_a_partition_is_given_up_ten_times_more_slowly() -> None:
    machines = [Machine(MachineSpec(f"m{i}", Resources(1000))) for i in range(10)]
    released = []
    for machine in machines[:8]:
        released.append(release_at(machines, 0.0))
        machine.up, machine.release_s = False, released[-1]
    assert released == [0.0, 60.0, 70.0, 80.0, 90.0, 190.0, 290.0, 390.0]
