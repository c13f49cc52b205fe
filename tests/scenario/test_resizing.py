"""Stories of other sizes for what runs: in place where there is room, else as any other change."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pytest
from msgspec.structs import replace
from testcell import StoryCell

from tidecell.cell.accounting import Account
from tidecell.cell.resizing import plan_resize
from tidecell.structs.errors import ConflictError, RefusedError
from tidecell.structs.job import Band, Kind, Override, Preemption, Priority, Update
from tidecell.structs.lifecycle import JobRevised, ResizeTask, RollbackRequested, SpecChanged
from tidecell.structs.messages import PolicyProposed, StartTask, TaskEnded, TaskNoticed, TaskPlaced
from tidecell.structs.resources import Resources
from tidecell.structs.tenant import Policy, Quota, Team
from tidecell.structs.work import Array

GIB = 1 << 30


class SizeCell(StoryCell):
    """A story cell in which sizes change."""

    def resize(
        self,
        name: str,
        cores: float = 1.0,
        memory_gib: float = 0,
        in_use: dict[int, int] | None = None,
        restart: bool = True,
        **more: object,
    ) -> None:
        size = Resources(int(1000 * cores), int(memory_gib * GIB))
        spec = replace(self[name].spec, resources=size, **more)
        self.tell(SpecChanged(spec, "ana", in_use or {}, restart))

    def told(self) -> list[tuple[str, int, Resources]]:
        """Who was told to hold itself to what, in order."""
        commands = [c for c in self.engine.sent if isinstance(c, ResizeTask)]
        return [(c.ref.uid, c.ref.index, c.resources) for c in commands]

    def holds(self, name: str) -> list[Resources]:
        return [t.resources for t in self[name].active_tasks()]


def test_what_runs_gets_more_where_its_machine_has_room() -> None:
    cell = SizeCell(cores=4.0)
    cell.job("train", 1.0, (2, 2))
    cell.pass_time(2)
    before = [(t.epoch, t.machine) for t in cell["train"].tasks]
    cell.resize("train", 2.0, 1)
    cell.pass_time(60)
    size = Resources(2000, GIB)
    assert cell.told() == [("train.1", 0, size), ("train.1", 1, size)]
    assert cell.holds("train") == [size, size]
    assert [(t.epoch, t.machine) for t in cell["train"].tasks] == before, "nobody was started again"
    assert not cell.happened(TaskNoticed)
    assert (cell["train"].version, cell["train"].program, cell["train"].rollout) == (2, 1, None)
    assert cell.runtime.state.index.load("m0").used.resources == Resources(4000, 2 * GIB)


def test_where_a_machine_has_no_room_it_is_rolled_out() -> None:
    cell = SizeCell(cores=2.0, machines=2)
    kind = {"kind": Kind.SERVICE, "update": Update(healthy_after_s=0.0, deadline_s=60.0)}
    cell.job("web", 1.0, (1, 1), priority=Priority(Band.PRODUCTION), preemption=Preemption.NEVER, **kind)
    cell.job("beside", 1.0)
    cell.pass_time(2)
    assert cell["web"].tasks[0].machine == cell["beside"].tasks[0].machine == "m0"
    spec = replace(cell["web"].spec, resources=Resources(1500))
    plan = plan_resize(cell.runtime.state, cell["web"], spec, cell.now_s)
    assert (plan.resized, plan.obstacle) == (None, "m0 has 0 cpu free, and 0.5 more are asked for")
    with pytest.raises(ConflictError, match=r"cannot be resized while it runs: m0 has 0 cpu free, and 0\.5"):
        cell.resize("web", 1.5, restart=False)
    cell.resize("web", 1.5)
    cell.pass_time(30)
    assert not cell.told()
    assert cell.holds("web") == [Resources(1500)]
    assert cell["web"].active_tasks()[0].machine == "m1"
    assert cell["web"].program == 2


def test_all_replicas_or_none_are_resized() -> None:
    cell = SizeCell(cores=2.0, machines=2)
    cell.job("holder", 0.5)
    cell.job("train", 1.0, (2, 2))
    cell.pass_time(2)
    cell.job("filler", 0.5, (1, 1))
    cell.pass_time(2)
    with pytest.raises(ConflictError):
        cell.resize("train", 2.0, restart=False)
    assert cell.holds("train") == [Resources(1000)] * 2
    assert cell["train"].version == 1


def test_memory_does_not_shrink_below_what_is_used() -> None:
    cell = SizeCell()
    cell.job("train", resources=Resources(1000, 4 * GIB))
    cell.pass_time(2)
    with pytest.raises(ConflictError) as caught:
        cell.resize("train", 1.0, 1, in_use={0: 3 * GIB}, restart=False)
    assert caught.value.render() == (
        "error: job 'train' cannot be resized while it runs: "
        "replica 0 uses 3.0 GiB of memory, more than 1.0 GiB\n\n"
        "hint: ask for less, make room, or let it start again: tide resize train ... --restart"
    )
    cell.resize("train", 1.0, 3.5, in_use={0: 3 * GIB}, restart=False)
    assert cell.holds("train") == [Resources(1000, int(3.5 * GIB))]


def test_what_shrinks_makes_room_at_once() -> None:
    cell = SizeCell(cores=2.0)
    cell.job("big", 2.0)
    cell.job("waits", 1.0)
    cell.pass_time(2)
    assert cell.running("waits") == 0
    cell.resize("big", 1.0)
    cell.pass_time(2)
    assert (cell.running("big"), cell.running("waits")) == (1, 1)


def test_quota_holds_for_what_runs_and_grows() -> None:
    cell = SizeCell(cores=8.0)
    cell.tell(PolicyProposed(Policy((Team("red", {"batch": Quota({"cpu": 3000})}),))))
    cell.job("train", 1.0, team="red")
    cell.job("other", 1.0, team="red")
    cell.pass_time(2)
    cell.resize("train", 2.0, restart=False)
    with pytest.raises(ConflictError, match="needs 3 cpu; "):
        cell.resize("train", 3.0, restart=False)
    with pytest.raises(RefusedError, match="may use at most 3 cpu at batch"):
        cell.resize("train", 4.0)
    cell.job("third", 1.0, team="red")
    cell.pass_time(2)
    assert cell.running("third") == 0, "its quota is with what grew"
    cell.resize("train", 1.0)
    cell.pass_time(2)
    assert cell.running("third") == 1


def test_a_resize_survives_a_control_plane_and_its_agent_is_told_again() -> None:
    cell = SizeCell(cores=4.0)
    cell.job("train", 1.0)
    cell.pass_time(2)
    cell.resize("train", 3.0)
    cell.restart_control_plane()
    assert cell.told() == [("train.1", 0, Resources(3000))] * 2
    assert cell.holds("train") == [Resources(3000)]
    cell.restart_control_plane()
    assert len(cell.told()) == 3
    cell.stop("train")
    cell.pass_time(60)
    assert cell.runtime.state.index.load("m0").used.resources == Resources()


def test_a_later_start_has_the_new_size_and_need_not_be_told() -> None:
    cell = SizeCell(cores=4.0)
    cell.job("train", 1.0)
    cell.pass_time(2)
    cell.resize("train", 3.0)
    cell.engine.crash(cell.runtime.state.ref(cell["train"], cell["train"].tasks[0]), -9)
    cell.tell(SpecChanged(cell["train"].spec))
    cell.pass_time(0.5)
    starts = [c.resources for c in cell.engine.sent if isinstance(c, StartTask)]
    assert starts[0] == Resources(1000)
    assert all(size == Resources(3000) for size in starts[1:])


def test_a_rollback_of_a_size_is_in_place_too_and_programs_keep_their_sizes_apart() -> None:
    cell = SizeCell(cores=4.0)
    cell.job("train", 1.0)
    cell.pass_time(2)
    cell.resize("train", 2.0)
    cell.tell(RollbackRequested("train"))
    cell.pass_time(20)
    assert cell.holds("train") == [Resources(1000)]
    assert (cell["train"].version, cell["train"].program) == (3, 1)
    assert len(cell.happened(TaskPlaced)) == 1
    cell.job("filler", 3.0)
    cell.pass_time(2)
    cell.resize("train", 2.0)  # like version 2, but there is no room: it is started again, and waits
    cell.pass_time(40)
    assert cell["train"].program == 4
    assert cell.holds("train") == []


def test_another_program_at_the_same_time_is_rolled_out_with_its_size() -> None:
    cell = SizeCell(cores=4.0)
    cell.job("train", 1.0)
    cell.pass_time(2)
    with pytest.raises(ConflictError, match="its program changes too"):
        cell.resize("train", 2.0, restart=False, argv=("y",))
    cell.resize("train", 2.0, argv=("y",))
    cell.pass_time(40)
    assert cell.holds("train") == [Resources(2000)]
    assert len(cell.happened(TaskPlaced)) == 2
    assert not cell.told()


def test_an_alloc_grows_in_place_and_never_shrinks_below_what_is_inside() -> None:
    cell = SizeCell(cores=4.0)
    cell.job("lab", 2.0, kind=Kind.ALLOC)
    cell.job("inside", 1.5, alloc="lab")
    cell.pass_time(2)
    assert cell.running("inside") == 1
    cell.resize("lab", 3.0, restart=False)
    cell.resize("inside", 3.0, restart=False)
    with pytest.raises(ConflictError, match="the jobs in lab/0 hold 3 cpu"):
        cell.resize("lab", 2.0, restart=False)
    assert cell.told() == [("inside.1", 0, Resources(3000))]


def test_single_replicas_keep_the_sizes_that_are_their_own() -> None:
    cell = SizeCell(cores=8.0)
    cell.job("train", 1.0, (3, 3), tasks=(Override(0, 0, Resources(2000)),))
    cell.pass_time(2)
    cell.resize("train", 1.5)
    assert cell.holds("train") == [Resources(2000), Resources(1500), Resources(1500)]
    assert [index for _, index, _ in cell.told()] == [1, 2]


def test_items_of_an_array_that_run_are_resized_and_later_ones_start_so() -> None:
    cell = SizeCell(cores=4.0)
    cell.job("many", 1.0, (0, 2), array=Array(4))
    cell.pass_time(2)
    cell.resize("many", 2.0)
    assert cell.holds("many") == [Resources(2000)] * 2
    assert not cell.happened(TaskEnded)


def test_usage_counts_each_size_for_its_time() -> None:
    cell = SizeCell(cores=4.0)
    cell.job("train", 1.0)
    placed_s = cell.now_s
    cell.pass_time(10)
    cell.resize("train", 3.0)
    cell.pass_time(20)
    account = Account()
    for record in cell.runtime.journal.records():
        account.take(record.event, record.at_s)
    sums = account.close(cell.now_s)
    held = sum(s.cpu_milli_s for s in sums.values())
    assert held == 1000 * 10 + 3000 * 20
    assert placed_s == cell.now_s - 30
    told = cell.happened(JobRevised)[-1]
    assert [g.resources for g in told.resized] == [Resources(3000)]
