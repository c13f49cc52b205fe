"""Stories of drained machines and of disruption budgets that count every cause."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pytest
from testcell import StoryCell

from tidecell.cell.disruptions import is_available, spare_disruptions
from tidecell.cell.snapshot import take_snapshot
from tidecell.engines.fake import Script
from tidecell.structs.errors import ConflictError, NotFoundError, RefusedError
from tidecell.structs.job import (
    Amount,
    Band,
    Cause,
    Disruptions,
    Kind,
    Preemption,
    Priority,
    TaskState,
    Update,
)
from tidecell.structs.lifecycle import DrainRequested, MachineDrained
from tidecell.structs.messages import Claim, Placement, Plan, PlanProposed, Removal, TaskNoticed, TaskPlaced
from tidecell.structs.resources import Resources

ONE = Disruptions(Amount(1))


class DrainCell(StoryCell):
    """A story cell with drains."""

    def drain(self, machine: str, deadline_s: float = 600.0, start_s: float = 0.0) -> None:
        self.tell(DrainRequested(machine, start_s, (start_s or self.now_s) + deadline_s, who="ana"))

    def web(self, replicas: int = 2, **more: object) -> None:
        self.job(
            "web",
            1.0,
            (replicas, replicas),
            kind=Kind.SERVICE,
            priority=Priority(Band.PRODUCTION),
            preemption=Preemption.NEVER,
            update=Update(healthy_after_s=0.0),
            **more,
        )
        self.pass_time(3)

    def ready(self, name: str) -> int:
        return sum(1 for t in self[name].tasks if is_available(t))

    def on(self, machine: str) -> list[str]:
        state = self.runtime.state
        return sorted(
            f"{job.spec.name}/{t.index}"
            for job in state.live_jobs()
            for t in job.active_tasks()
            if t.machine == machine
        )

    def least_ready(self, name: str, seconds: float) -> int:
        least = self.ready(name)
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.pass_time(0.5)
            least = min(least, self.ready(name))
        return least


def test_a_service_starts_elsewhere_before_it_leaves_a_drained_machine() -> None:
    cell = DrainCell(cores=4.0, machines=2)
    cell.web(2)
    assert cell.on("m0") == ["web/0", "web/1"]
    cell.drain("m0")
    assert cell.least_ready("web", 20) == 2
    assert (cell.on("m0"), len(cell.on("m1"))) == ([], 2)
    assert [e.name for e in cell.happened(MachineDrained)] == ["m0"]
    assert len(cell.happened(TaskPlaced)) == 4, "each replica is started once more and no oftener"


def test_an_elastic_job_shrinks_off_a_drained_machine_and_grows_back_after_it() -> None:
    cell = DrainCell(cores=2.0, machines=2)
    cell.job("train", 1.0, (1, 4))
    cell.pass_time(3)
    assert cell.running("train") == 4
    cell.drain("m1")
    cell.pass_time(5)
    assert (cell.running("train"), cell.on("m1")) == (2, [])
    assert {e.cause for e in cell.happened(TaskNoticed)} == {Cause.DRAIN}
    waiting = cell.runtime.trace.waiting[cell["train"].uid]
    assert "m1: is being drained" in waiting.detail
    cell.tell(DrainRequested("m1", cancel=True))
    cell.pass_time(5)
    assert cell.running("train") == 4


def test_what_finds_no_room_elsewhere_stays_until_the_deadline_and_is_then_ended_with_its_grace() -> None:
    cell = DrainCell(cores=2.0)
    cell.web(1, grace_period_s=7.0)
    cell.drain("m0", deadline_s=60.0)
    cell.pass_time(59)
    assert cell.ready("web") == 1
    cell.pass_time(5)
    (notice,) = cell.happened(TaskNoticed)
    assert (notice.cause, notice.forced) == (Cause.DRAIN, True)
    assert notice.deadline_s == pytest.approx(1000 + 3 + 60 + 7, abs=1)
    assert (cell.on("m0"), cell["web"].state) == ([], TaskState.PENDING)


def test_a_drained_machine_takes_no_new_work() -> None:
    cell = DrainCell(cores=2.0, machines=2)
    cell.drain("m0")
    for i in range(4):
        cell.job(f"j{i}", 1.0)
    cell.pass_time(3)
    assert (cell.on("m0"), cell.on("m1")) == ([], ["j0/0", "j1/0"])
    plan = Plan((Placement("j2.1", 0, "m0", resources=Resources(1000)),))
    cell.tell(PlanProposed(plan))
    assert cell.on("m0") == []


def test_a_drain_takes_no_more_at_once_than_the_budget_leaves() -> None:
    cell = DrainCell(cores=3.0, machines=2)
    cell.job("gang", 1.0, (3, 3), disruptions=ONE, script=Script(starts_after_s=2.0))
    cell.pass_time(4)
    cell.drain("m0")
    assert cell.least_ready("gang", 30) == 2
    assert (cell.ready("gang"), cell.on("m0")) == (3, [])


def test_a_planned_drain_starts_when_it_is_due() -> None:
    cell = DrainCell(cores=2.0, machines=2)
    cell.drain("m0", start_s=cell.now_s + 30)
    cell.job("a", 1.0)
    cell.pass_time(25)
    assert cell.on("m0") == ["a/0"]
    cell.pass_time(10)
    assert (cell.on("m0"), cell.on("m1")) == ([], ["a/0"])


def test_a_cancelled_drain_leaves_no_stand_in_behind() -> None:
    cell = DrainCell(cores=4.0, machines=2)
    cell.script_for = lambda c: Script(ready_after_s=20.0 if c.machine == "m1" else 0.0)
    cell.web(2)
    cell.drain("m0")
    cell.pass_time(5)
    assert len(cell.on("m1")) == 2
    cell.tell(DrainRequested("m0", cancel=True))
    assert cell.least_ready("web", 30) == 2
    assert (len(cell.on("m0")), cell.on("m1")) == (2, [])


def test_a_drain_survives_a_restart_of_the_control_plane() -> None:
    cell = DrainCell(cores=2.0, machines=2)
    cell.drain("m0")
    cell.restart_control_plane()
    assert take_snapshot(cell.runtime.state, cell.now_s).closed == ("m0",)


def test_drains_of_nothing_and_before_their_start_are_refused() -> None:
    cell = DrainCell()
    with pytest.raises(NotFoundError, match="no machine named 'm7'; machines are: m0"):
        cell.drain("m7")
    with pytest.raises(ConflictError, match="machine 'm0' is not being drained"):
        cell.tell(DrainRequested("m0", cancel=True))
    with pytest.raises(RefusedError, match="would end 5 s before it starts"):
        cell.drain("m0", deadline_s=-5.0)


# ------------------------------------------------------------------------------------ budgets


def test_preemption_takes_no_more_than_the_budget_leaves() -> None:
    cell = DrainCell(cores=4.0)
    cell.job("train", 1.0, (1, 4), disruptions=ONE)
    cell.pass_time(3)
    cell.job("big", 2.0, priority=Priority(Band.PRODUCTION))
    cell.pass_time(5)
    assert (cell.running("train"), cell.running("big")) == (4, 0)
    cell.stop("big")
    cell.job("small", 1.0, priority=Priority(Band.PRODUCTION))
    cell.pass_time(5)
    assert (cell.running("train"), cell.running("small")) == (3, 1)


def test_a_crash_uses_the_budget_up() -> None:
    cell = DrainCell(cores=3.0)
    cell.job("batch", 1.0, (3, 3), disruptions=ONE, script=Script(starts_after_s=0.5))
    cell.pass_time(3)
    assert spare_disruptions(cell["batch"]) == 1
    cell.engine.crash(next(iter(cell.engine.running)))
    cell.pass_time(0.5)
    assert spare_disruptions(cell["batch"]) == 0
    cell.pass_time(5)
    assert spare_disruptions(cell["batch"]) == 1


def test_a_plan_beyond_the_budget_is_not_carried_out() -> None:
    cell = DrainCell(cores=4.0)
    cell.job("train", 1.0, (1, 4), disruptions=ONE)
    cell.pass_time(3)
    cell.job("big", 2.0, priority=Priority(Band.PRODUCTION))
    removals = tuple(Removal("train.1", i, "m0", "big.1", 2) for i in (2, 3))
    cell.tell(PlanProposed(Plan((), removals, (Claim("big.1", 0, "m0", Resources(2000)),))))
    assert not cell.happened(TaskNoticed)


def test_a_drain_and_a_preemption_share_one_budget() -> None:
    cell = DrainCell(cores=2.0, machines=2)
    cell.job("train", 1.0, (1, 4), disruptions=ONE, grace_period_s=20.0, script=Script(leaves_after_s=10.0))
    cell.pass_time(3)
    cell.drain("m1")
    cell.pass_time(1)
    cell.job("high", 1.0, priority=Priority(Band.PRODUCTION))
    cell.pass_time(5)
    assert [e.cause for e in cell.happened(TaskNoticed)] == [Cause.DRAIN]
    cell.pass_time(60)
    assert cell.running("high") == 1
    assert cell.on("m1") == []
