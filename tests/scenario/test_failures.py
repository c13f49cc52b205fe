"""Stories of failures: each cause counted apart, machines avoided, replicas that no longer answer."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pytest
from testcell import StoryCell

from tidecell.cell.endings import pause_s
from tidecell.cell.snapshot import take_snapshot
from tidecell.engines.fake import Script
from tidecell.structs.job import Band, Cause, Kind, Preemption, Priority, Retry, RetryOn, TaskState
from tidecell.structs.lifecycle import TaskUnhealthy
from tidecell.structs.messages import JobSubmitted, TaskDown, TaskEnded, TaskNoticed

BOTH = (RetryOn.ERROR, RetryOn.INTERRUPTION)


def end(cell: StoryCell, name: str, exit_code: int, **how: bool) -> None:
    """The job's first task ends now, and starts again as soon as it may."""
    job = cell[name]
    task = job.tasks[0]
    ref = cell.runtime.state.ref(job, task)
    cell.engine.running.pop(ref, None)
    cell.tell(TaskDown(ref, task.machine, exit_code, **how))
    cell.pass_time(max(0.0, task.not_before_s - cell.now_s) + 65.0 if cell[name].live else 1.0)


def test_each_cause_of_failure_has_its_own_count() -> None:
    cell = StoryCell()
    cell.job("a", retry=Retry(BOTH, 2))
    cell.pass_time(1)
    for code in (1, -9, 1, -9):
        end(cell, "a", code)
    task = cell["a"].tasks[0]
    assert (cell["a"].state, task.tried) == (TaskState.RUNNING, {"error": 2, "interruption": 2})
    end(cell, "a", 1)
    assert cell["a"].state is TaskState.FAILED


@pytest.mark.parametrize(
    ("retry", "code", "how", "again"),
    [
        (Retry((RetryOn.OUT_OF_MEMORY,)), -9, {"out_of_memory": True}, True),
        (Retry((RetryOn.OUT_OF_MEMORY,)), 1, {}, False),
        (Retry((RetryOn.LOST_MACHINE,)), -1, {"lost": True}, True),
        (Retry((RetryOn.LOST_MACHINE,)), -9, {}, False),
        (Retry((), exit_codes=(75,)), 75, {}, True),
        (Retry((), exit_codes=(75,)), 74, {}, False),
        (Retry((RetryOn.INTERRUPTION,), exit_codes=(75,)), 75, {}, True),
    ],
)
def test_only_what_the_policy_names_is_tried_again(
    retry: Retry, code: int, how: dict[str, bool], again: bool
) -> None:
    cell = StoryCell()
    cell.job("a", retry=retry)
    cell.pass_time(1)
    end(cell, "a", code, **how)
    assert (cell["a"].state is TaskState.RUNNING) is again


def test_pauses_double_from_the_first_to_the_longest() -> None:
    cell = StoryCell()
    job = cell.job("a", retry=Retry(BOTH, 9, backoff_s=2.0, backoff_max_s=10.0))
    assert [pause_s(job, n) for n in (1, 2, 3, 4, 5000)] == [2.0, 4.0, 8.0, 10.0, 10.0]


def test_machines_on_which_a_task_failed_are_told_to_the_scheduler() -> None:
    cell = StoryCell(cores=1.0)
    cell.job("a", retry=Retry(BOTH, 9, backoff_s=30.0))
    cell.pass_time(1)
    job = cell["a"]
    cell.tell(TaskDown(cell.runtime.state.ref(job, job.tasks[0]), "m0", 1))
    (view,) = take_snapshot(cell.runtime.state, cell.now_s).jobs
    assert view.tasks[0].avoid == ("m0",)


def test_a_long_good_run_forgives_earlier_failures() -> None:
    cell = StoryCell()
    cell.job("a", retry=Retry(BOTH, 2))
    cell.pass_time(1)
    end(cell, "a", 1)
    end(cell, "a", 1)
    cell.pass_time(301)
    end(cell, "a", 1)
    assert cell["a"].tasks[0].tried == {"error": 1}


def test_a_replica_that_does_not_answer_is_started_again_and_counts_as_a_failure() -> None:
    cell = StoryCell()
    cell.service("web")
    cell.pass_time(2)
    job = cell["web"]
    cell.tell(TaskUnhealthy(cell.runtime.state.ref(job, job.tasks[0])))
    cell.pass_time(3)
    assert [e.cause for e in cell.happened(TaskNoticed)] == [Cause.UNHEALTHY]
    assert (cell.running("web"), job.tasks[0].attempt, job.tasks[0].tried) == (1, 2, {"error": 1})


def test_one_failed_replica_of_an_elastic_gang_is_replaced_and_the_others_run_on() -> None:
    cell = StoryCell(cores=4.0)
    cell.job("train", 1.0, (2, 3), script=Script(starts_after_s=1.0))
    cell.pass_time(5)
    first = next(iter(cell.engine.running))
    cell.engine.crash(first)
    cell.pass_time(10)
    assert cell.running("train") == 3
    assert [e.ref for e in cell.happened(TaskEnded)] == [first]
    assert not cell.happened(TaskNoticed)


def test_another_run_of_a_name_does_not_hold_up_those_that_wait_for_the_first() -> None:
    cell = StoryCell(cores=1.0)
    cell.job("first", 1.0, script=Script(runs_s=2.0))
    cell.job("blocker", 1.0, priority=Priority(Band.PRODUCTION), script=Script(runs_s=20.0))
    cell.job("second", 1.0, after=("first",))
    cell.pass_time(40)
    assert cell["first"].state is TaskState.SUCCEEDED
    cell.job("third", 1.0, after=("first",), script=Script(runs_s=5.0))
    spec = cell["first"].spec
    cell.scripts["first"] = Script(runs_s=500.0)
    cell.tell(JobSubmitted(spec))
    assert cell["first"].uid == "first.2"
    cell.stop("second")
    cell.pass_time(3)
    views = {v.name: v for v in take_snapshot(cell.runtime.state, cell.now_s).jobs}
    assert views["third"].blocked_by == ()


def test_a_service_is_kept_whatever_ends_its_replicas() -> None:
    cell = StoryCell()
    cell.job(
        "web",
        0.5,
        kind=Kind.SERVICE,
        preemption=Preemption.NEVER,
        retry=Retry((), 0),
        script=Script(runs_s=1.0, exit_code=3),
    )
    cell.pass_time(60)
    assert cell["web"].live
    assert cell["web"].tasks[0].attempt > 4
