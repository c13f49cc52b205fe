"""Stories of one cell in virtual time, told with the verbs of ``StoryCell``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pytest
from testcell import StoryCell

from tidecell.engines.fake import Script
from tidecell.structs.errors import ConflictError, RefusedError
from tidecell.structs.job import Band, Cause, Priority, Retry, RetryOn, TaskState
from tidecell.structs.messages import JobFinished, StartTask, StopTask, TaskNoticed, TaskStarted


def test_the_tide_takes_one_worker_and_gives_it_back() -> None:
    cell = StoryCell(cores=2.0)
    cell.service("chat", 0.5, (1, 2))
    cell.job("train", 0.75, (1, 2))
    cell.pass_time(5)
    assert (cell.running("chat"), cell.running("train")) == (1, 2)
    cell.want("chat", 2)
    cell.pass_time(5)
    assert (cell.running("chat"), cell.running("train")) == (2, 1)
    cell.want("chat", 1)
    cell.pass_time(5)
    assert (cell.running("chat"), cell.running("train")) == (1, 2)
    causes = [e.cause for e in cell.happened(TaskNoticed)]
    assert causes == [Cause.PREEMPT, Cause.RESIZE]


def test_capacity_is_handed_over_only_after_the_victim_is_gone() -> None:
    cell = StoryCell(cores=2.0)
    cell.job("train", 1.0, (1, 2), script=Script(leaves_after_s=4.0))
    cell.pass_time(2)
    cell.service("chat", 1.0)
    cell.pass_time(3)
    assert cell.running("chat") == 0
    cell.job("greedy", 1.0)  # it may not take what is held for chat
    cell.pass_time(4)
    assert (cell.running("chat"), cell.running("greedy")) == (1, 0)


def test_victim_that_ignores_its_notice_is_gone_after_its_grace_period() -> None:
    cell = StoryCell(cores=1.0)
    cell.job("deaf", 1.0, grace_period_s=3.0, script=Script(leaves_after_s=None))
    cell.pass_time(1)
    cell.service("chat", 1.0)
    cell.pass_time(2)
    assert cell.running("chat") == 0
    cell.pass_time(3)
    assert cell.running("chat") == 1
    assert cell["deaf"].state is TaskState.PENDING


def test_gang_starts_together_or_not_at_all() -> None:
    cell = StoryCell(cores=2.0, machines=2)
    cell.job("holder", 2.0)
    cell.pass_time(1)
    cell.job("gang", 1.0, (4, 4))
    cell.pass_time(3)
    assert cell.running("gang") == 0
    cell.stop("holder")
    cell.pass_time(3)
    assert cell.running("gang") == 4


def test_control_plane_restart_changes_nothing_for_what_runs() -> None:
    cell = StoryCell()
    cell.job("long", 1.0, script=Script(runs_s=30.0))
    cell.pass_time(2)
    starts = len(cell.happened(TaskStarted))
    cell.restart_control_plane()
    cell.pass_time(40)
    assert cell["long"].state is TaskState.SUCCEEDED
    assert len(cell.happened(TaskStarted)) == starts
    assert len(cell.happened(JobFinished)) == 1


def test_start_that_was_decided_and_not_sent_is_sent_by_the_next_control_plane() -> None:
    cell = StoryCell()
    cell.job("late", 1.0)
    cell.engine.running.clear()  # the command never arrived
    cell.restart_control_plane()
    starts = [c for c in cell.engine.sent if isinstance(c, StartTask)]
    assert [s.ref for s in starts] == [starts[0].ref] * 2
    cell.pass_time(2)
    assert cell.running("late") == 1


def test_process_that_the_cell_does_not_know_is_ended() -> None:
    cell = StoryCell()
    cell.job("ghost", 1.0)
    cell.pass_time(1)
    ref = next(iter(cell.engine.running))
    stranger = cell.engine.running[ref].__class__(type(ref)("other.1", 0, 999), "m0", Script(), 0)
    cell.engine.running[stranger.ref] = stranger
    cell.restart_control_plane()
    stops = [c for c in cell.engine.sent if isinstance(c, StopTask)]
    assert [s.ref for s in stops] == [stranger.ref]


def test_failure_is_retried_with_back_off_and_then_given_up() -> None:
    cell = StoryCell()
    retry = Retry((RetryOn.ERROR,), 2)
    cell.job("flaky", 1.0, retry=retry, script=Script(runs_s=0.1, exit_code=9))
    cell.pass_time(20)
    assert cell["flaky"].state is TaskState.FAILED
    assert cell["flaky"].tasks[0].attempt == 3
    assert cell["flaky"].exit_code == 9


def test_dependent_job_waits_and_is_cancelled_when_what_it_needs_fails() -> None:
    cell = StoryCell()
    cell.job("first", 1.0, script=Script(runs_s=5.0, exit_code=1))
    cell.job("second", 1.0, after=("first",))
    cell.pass_time(3)
    assert cell["second"].state is TaskState.PENDING
    cell.pass_time(5)
    assert cell["second"].state is TaskState.CANCELLED
    assert "first" in cell["second"].message


def test_later_small_job_does_not_delay_the_blocked_one_before_it() -> None:
    cell = StoryCell(cores=2.0)
    cell.job("half", 1.0, max_duration_s=20.0)
    cell.pass_time(1)
    cell.job("whole", 2.0)
    cell.job("endless", 1.0)
    cell.job("short", 1.0, max_duration_s=5.0)  # over before `half` must end: it may go first
    cell.pass_time(2)
    assert (cell.running("endless"), cell.running("short")) == (0, 1)
    cell.pass_time(60)
    assert cell.running("whole") == 1


def test_production_is_not_preempted_by_production() -> None:
    cell = StoryCell(cores=1.0)
    cell.job("one", 1.0, priority=Priority(Band.PRODUCTION))
    cell.pass_time(1)
    cell.job("two", 1.0, priority=Priority(Band.PRODUCTION, 9))
    cell.pass_time(5)
    assert (cell.running("one"), cell.running("two")) == (1, 0)
    assert not cell.happened(TaskNoticed)


def test_crashed_member_of_an_elastic_job_comes_back() -> None:
    cell = StoryCell()
    cell.job("train", 1.0, (1, 2))
    cell.pass_time(1)
    cell.engine.crash(next(iter(cell.engine.running)))
    cell.pass_time(5)
    assert cell.running("train") == 2
    assert cell["train"].tasks[0].attempt == 2


def test_two_live_jobs_of_one_name_and_what_no_machine_has_are_refused() -> None:
    cell = StoryCell()
    cell.job("one")
    with pytest.raises(ConflictError, match="a job named 'one' is"):
        cell.job("one")
    with pytest.raises(RefusedError, match="has 2 cpu"):
        cell.job("huge", 99.0)
