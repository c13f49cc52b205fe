"""Stories of allocs: envelopes that jobs enter and leave."""

from __future__ import annotations

import pytest
from testcell import StoryCell

from tidecell.engines.fake import Script
from tidecell.scheduler.explain import explain_plan, explain_why
from tidecell.structs.errors import ConflictError, RefusedError
from tidecell.structs.job import Band, JobSpec, Kind, Preemption, Priority, Replicas, TaskState
from tidecell.structs.lifecycle import DrainRequested
from tidecell.structs.messages import JobChanged, JobStopRequested, JobSubmitted, MachineLost, PolicyProposed
from tidecell.structs.resources import Resources
from tidecell.structs.tenant import Policy, Quota, Team


def alloc(cell: StoryCell, name: str = "lab", cores: float = 2.0, replicas: int = 1, **more: object) -> None:
    size = Resources(int(1000 * cores))
    more.setdefault("grace_period_s", 4.0)
    cell.tell(
        JobSubmitted(JobSpec(name, Kind.ALLOC, resources=size, replicas=Replicas(replicas, replicas), **more))
    )


def test_the_room_stays_reserved_between_jobs_and_belongs_to_the_allocs_jobs_alone() -> None:
    cell = StoryCell(cores=4)
    alloc(cell, cores=3)
    assert cell["lab"].state is TaskState.RUNNING
    cell.job("other", cores=2)
    assert cell["other"].state is TaskState.PENDING, "3 of 4 cores are reserved"
    cell.job("one", cores=2, alloc="lab", script=Script(runs_s=2.0))
    cell.job("two", cores=2, alloc="lab", script=Script(runs_s=2.0))
    cell.pass_time(0.5)
    assert cell["one"].tasks[0].envelope == "lab/0"
    assert cell["one"].tasks[0].machine == "m0"
    assert cell["two"].state is TaskState.PENDING, "an envelope is never over-committed"
    cell.pass_time(3.0)
    assert cell["one"].state is TaskState.SUCCEEDED
    cell.pass_time(3.0)
    assert cell["two"].state is TaskState.SUCCEEDED
    assert cell["other"].state is TaskState.PENDING
    cell.stop("lab")
    cell.pass_time(1.0)
    assert cell["lab"].state is TaskState.CANCELLED
    assert cell["other"].state is TaskState.RUNNING


def test_a_set_of_envelopes_takes_a_gang() -> None:
    cell = StoryCell(cores=2, machines=3)
    alloc(cell, cores=2, replicas=2)
    cell.job("gang", cores=1, replicas=(4, 4), alloc="lab")
    assert sorted(t.envelope for t in cell["gang"].tasks) == ["lab/0", "lab/0", "lab/1", "lab/1"]
    assert {t.machine for t in cell["gang"].tasks} == {t.machine for t in cell["lab"].tasks}
    with pytest.raises(RefusedError, match="the empty cell holds 4"):
        cell.job("large", cores=1, replicas=(5, 5), alloc="lab")


def test_an_alloc_with_jobs_in_it_is_stopped_only_by_force_and_they_with_it() -> None:
    cell = StoryCell(cores=4)
    alloc(cell)
    cell.job("one", alloc="lab")
    with pytest.raises(ConflictError, match="1 job is in alloc 'lab': one"):
        cell.stop("lab")
    cell.tell(JobStopRequested("lab", force=True))
    cell.pass_time(10.0)
    assert cell["one"].state is TaskState.CANCELLED
    assert "its alloc 'lab' ended" in cell["one"].message
    assert cell["lab"].state is TaskState.CANCELLED


def test_a_preempted_alloc_takes_its_tasks_along_and_both_come_back() -> None:
    cell = StoryCell(cores=2)
    alloc(cell)
    cell.job("one", cores=1, alloc="lab", script=Script(leaves_after_s=1.0))
    cell.job("high", cores=2, priority=Priority(Band.PRODUCTION), script=Script(runs_s=5.0))
    assert cell["one"].tasks[0].notice is not None, "its envelope has to leave"
    cell.pass_time(2.0)
    assert cell["high"].state is TaskState.RUNNING
    assert cell["one"].state is cell["lab"].state is TaskState.PENDING
    found = explain_why(cell.snapshot(), cell["one"].uid, cell.now_s)
    assert "its alloc 'lab' has no machine yet" in found.detail
    cell.pass_time(10.0)
    assert cell["lab"].tasks[0].state is TaskState.RUNNING
    assert cell["one"].tasks[0].envelope == "lab/0"


def test_an_envelope_leaves_only_when_the_last_task_in_it_has_gone() -> None:
    cell = StoryCell(cores=2, machines=2)
    alloc(cell)
    cell.job("one", cores=1, alloc="lab", grace_period_s=30.0, script=Script(leaves_after_s=3.0))
    here = cell["lab"].tasks[0].machine
    cell.tell(DrainRequested(here))
    cell.pass_time(1.0)
    assert cell["one"].tasks[0].notice is not None
    assert cell["lab"].tasks[0].machine == here, "still reserved while something runs in it"
    cell.pass_time(6.0)
    assert cell["lab"].tasks[0].machine != here
    assert cell["one"].tasks[0].envelope == "lab/0"
    assert cell["one"].tasks[0].machine == cell["lab"].tasks[0].machine


def test_a_lost_machine_loses_envelope_and_tasks_and_a_restart_keeps_them() -> None:
    cell = StoryCell(cores=2, machines=2)
    alloc(cell)
    cell.job("one", cores=1, alloc="lab")
    cell.restart_control_plane()
    assert cell["lab"].state is TaskState.RUNNING
    assert cell["one"].tasks[0].envelope == "lab/0"
    lost = cell["lab"].tasks[0].machine
    cell.tell(MachineLost(lost))
    cell.pass_time(5.0)
    assert cell["lab"].tasks[0].machine not in ("", lost)
    assert cell["one"].tasks[0].machine == cell["lab"].tasks[0].machine


def test_quota_is_charged_once_for_the_alloc() -> None:
    cell = StoryCell(cores=4)
    policy = Policy((Team("vision", {"batch": Quota({"cpu": 2000})}),))
    cell.tell(PolicyProposed(policy))
    alloc(cell, team="vision")
    cell.job("one", cores=1, alloc="lab", team="vision")
    cell.job("two", cores=1, alloc="lab", team="vision")
    cell.pass_time(0.5)
    assert cell.running("one") == cell.running("two") == 1
    cell.job("three", cores=1, team="vision")
    assert cell["three"].state is TaskState.PENDING


def test_priority_orders_inside_an_alloc_too() -> None:
    cell = StoryCell(cores=2)
    alloc(cell, priority=Priority(Band.PRODUCTION), preemption=Preemption.NEVER)
    cell.job("low", cores=2, alloc="lab", priority=Priority(Band.BATCH), script=Script(leaves_after_s=1.0))
    cell.job("high", cores=2, alloc="lab", priority=Priority(Band.PRODUCTION))
    cell.pass_time(3.0)
    assert cell["high"].state is TaskState.RUNNING
    assert cell["low"].state is TaskState.PENDING


def test_who_may_not_enter_is_told_why() -> None:
    cell = StoryCell(cores=2)
    cell.job("plain", cores=0.5)
    with pytest.raises(RefusedError, match="alloc 'lab', which is not there; allocs are: none"):
        cell.job("one", alloc="lab")
    with pytest.raises(RefusedError, match="alloc 'plain', which is a job, no alloc"):
        cell.job("one", alloc="plain")
    alloc(cell, cores=1)
    with pytest.raises(RefusedError, match="would be production in alloc 'lab', which is batch"):
        cell.job("one", alloc="lab", priority=Priority(Band.PRODUCTION))
    with pytest.raises(RefusedError, match="'lab/0', which comes closest, has"):
        cell.job("one", cores=2, alloc="lab")
    with pytest.raises(RefusedError, match="cannot be inside another alloc"):
        alloc(cell, "inner", alloc="lab")
    cell.job("one", cores=1, alloc="lab")
    with pytest.raises(RefusedError, match="would be batch in alloc 'lab', which is best-effort"):
        cell.tell(JobChanged("lab", priority=Priority(Band.BEST_EFFORT)))


def test_a_smaller_set_moves_who_is_in_what_goes() -> None:
    cell = StoryCell(cores=2, machines=2)
    alloc(cell, cores=2, replicas=2)
    cell.job("one", cores=1, alloc="lab")
    cell.job("two", cores=2, alloc="lab")
    envelope = cell["one"].tasks[0].envelope
    cell.scale("lab", 1, 1)
    cell.pass_time(6.0)
    assert [t.state for t in cell["lab"].tasks].count(TaskState.RUNNING) == 1
    assert {cell["one"].tasks[0].envelope, cell["two"].tasks[0].envelope} in ({"lab/0", ""}, {"lab/0"})
    assert envelope in ("lab/0", "lab/1")


def test_a_plan_and_its_victims_know_of_envelopes() -> None:
    cell = StoryCell(cores=2)
    new = JobSpec("lab", Kind.ALLOC, resources=Resources(2000))
    inner = JobSpec("one", argv=("x",), resources=Resources(1000), alloc="lab")
    plan = explain_plan(cell.snapshot(), [new, inner], ())
    assert plan.starts
    assert [(p.job, p.machine) for p in plan.placements] == [("lab", "m0"), ("one", "lab/0")]
    cell.tell(JobSubmitted(new), JobSubmitted(inner))
    cell.pass_time(1.0)
    high = JobSpec("high", argv=("x",), resources=Resources(1000), priority=Priority(Band.PRODUCTION))
    plan = explain_plan(cell.snapshot(), [high], ())
    (victim,) = plan.victims
    assert victim.job == "lab"
    assert victim.loses.startswith("one with it: at most ")


def test_what_is_suggested_can_be_done() -> None:
    cell = StoryCell(cores=2)
    alloc(cell)
    cell.job("one", cores=2, alloc="lab")
    cell.job("next", cores=2, alloc="lab")
    cell.job("outside", cores=1)
    inside = explain_why(cell.snapshot(), cell["next"].uid, cell.now_s)
    assert {f.command for f in inside.fixes} == {"tide stop one"}, "a higher band than the alloc's is refused"
    assert [h.job for h in inside.holders] == ["one"]
    outside = explain_why(cell.snapshot(), cell["outside"].uid, cell.now_s)
    assert "tide stop lab --force" in {f.command for f in outside.fixes}
    assert [h.job for h in outside.holders] == ["lab"]
