"""Stories of arrays: each item runs once, so many at a time, and fails alone."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import msgspec
import pytest
from testcell import StoryCell

from tidecell.cell.state import LOOKAHEAD
from tidecell.engines.fake import Script
from tidecell.structs.job import Band, Cause, Priority, Replicas, Retry, RetryOn, TaskState
from tidecell.structs.messages import JobChanged, JobFinished, StartTask, TaskNoticed, TaskPlaced
from tidecell.structs.work import Array


def array(cell: StoryCell, name: str, count: int, parallel: int, cores: float = 1.0, **more: object) -> None:
    cell.job(name, cores, (0, parallel), array=Array(count), **more)


def test_every_item_runs_once_and_no_more_than_parallel_at_a_time() -> None:
    cell = StoryCell(cores=8.0)
    array(cell, "many", 10, 3, script=Script(runs_s=2.0))
    most = 0
    for _ in range(30):
        cell.pass_time(0.5)
        most = max(most, cell.running("many"))
    assert most == 3
    assert cell["many"].state is TaskState.SUCCEEDED
    assert sorted(e.ref.index for e in cell.happened(TaskPlaced)) == list(range(10))
    assert len(cell.happened(JobFinished)) == 1


def test_items_start_one_by_one_where_a_gang_would_wait() -> None:
    cell = StoryCell(cores=2.0)
    cell.job("holder", 1.0)
    cell.pass_time(1)
    array(cell, "many", 4, 4)
    cell.pass_time(1)
    assert cell.running("many") == 1


def test_a_failed_item_does_not_stop_the_others_and_is_named_at_the_end() -> None:
    cell = StoryCell(cores=2.0)
    script = {1: Script(runs_s=1.0, exit_code=3), 3: Script(runs_s=1.0, exit_code=4)}
    cell.engine.script_of = lambda command: script.get(command.ref.index, Script(runs_s=1.0))
    array(cell, "many", 5, 2)
    cell.pass_time(20)
    job = cell["many"]
    assert (job.state, job.exit_code) == (TaskState.FAILED, 3)
    assert job.message == "2 of 5 items failed: 1, 3"
    assert job.ended == {TaskState.SUCCEEDED: 3, TaskState.FAILED: 2}


def test_an_item_is_tried_again_as_the_retry_policy_says() -> None:
    cell = StoryCell(cores=1.0)
    attempts: list[int] = []

    def script(command: StartTask) -> Script:
        attempts.append(command.attempt)
        return Script(runs_s=0.5, exit_code=0 if command.attempt == 2 or command.ref.index else 1)

    cell.engine.script_of = script
    array(cell, "many", 2, 1, retry=Retry((RetryOn.ERROR,), 2))
    cell.pass_time(10)
    assert cell["many"].state is TaskState.SUCCEEDED
    assert sorted(attempts) == [1, 1, 2]


def test_production_takes_items_and_they_run_again_afterwards() -> None:
    cell = StoryCell(cores=2.0)
    array(cell, "many", 4, 4, script=Script(runs_s=6.0))
    cell.pass_time(1)
    cell.job("urgent", 1.0, priority=Priority(Band.PRODUCTION), script=Script(runs_s=3.0))
    cell.pass_time(1.5)
    assert (cell.running("urgent"), cell.running("many")) == (1, 1)
    assert [e.cause for e in cell.happened(TaskNoticed)] == [Cause.PREEMPT]
    cell.pass_time(40)
    assert cell["many"].state is TaskState.SUCCEEDED
    assert cell["many"].ended == {TaskState.SUCCEEDED: 4}


def test_an_array_of_a_higher_band_preempts_item_by_item() -> None:
    cell = StoryCell(cores=2.0)
    cell.job("low", 1.0, (1, 2), priority=Priority(Band.BEST_EFFORT))
    cell.pass_time(1)
    array(cell, "many", 2, 1, script=Script(runs_s=2.0))
    cell.pass_time(1.5)
    assert (cell.running("low"), cell.running("many")) == (1, 1)
    cell.pass_time(8)
    assert cell["many"].state is TaskState.SUCCEEDED
    assert cell.running("low") == 2


def test_scaling_changes_how_many_run_at_once_and_stops_nothing() -> None:
    cell = StoryCell(cores=8.0)
    array(cell, "many", 20, 4, script=Script(runs_s=4.0))
    cell.pass_time(1)
    cell.tell(JobChanged("many", replicas=Replicas(1, 1)))
    cell.pass_time(1)
    assert cell.running("many") == 4
    cell.pass_time(4)
    assert cell.running("many") == 1
    cell.tell(JobChanged("many", replicas=Replicas(8, 8)))
    cell.pass_time(1)
    assert cell.running("many") == 8
    assert cell.happened(TaskNoticed) == []


def test_stopping_ends_what_runs_and_starts_nothing_more() -> None:
    cell = StoryCell(cores=2.0)
    array(cell, "many", 1000, 2)
    cell.pass_time(1)
    cell.stop("many")
    cell.pass_time(1)
    assert cell["many"].state is TaskState.CANCELLED
    assert len(cell.happened(TaskPlaced)) == 2


def test_an_array_goes_on_after_a_control_plane_restart() -> None:
    cell = StoryCell(cores=2.0)
    array(cell, "many", 6, 2, script=Script(runs_s=2.0))
    cell.pass_time(3)
    cell.restart_control_plane()
    cell.pass_time(10)
    assert cell["many"].state is TaskState.SUCCEEDED
    assert sorted(e.ref.index for e in cell.happened(TaskPlaced)) == list(range(6))


def test_few_items_of_a_large_array_wait_openly() -> None:
    cell = StoryCell(cores=2.0)
    array(cell, "many", 10_000, 10_000)
    cell.pass_time(1)
    job = cell["many"]
    assert len(job.tasks) == 2 + LOOKAHEAD
    view = next(j for j in msgspec.to_builtins(cell.snapshot().jobs) if j["uid"] == job.uid)
    assert len(view["tasks"]) == 2 + LOOKAHEAD


@pytest.mark.slow
def test_the_last_items_of_a_large_array_cost_no_more_than_the_first() -> None:
    cell = StoryCell(cores=64.0)
    cell.runtime._debug = False
    array(cell, "many", 10_000, 64, script=Script(runs_s=0.2))
    spans = []
    while cell["many"].live:
        began_s, before = time.process_time(), cell["many"].num_succeeded
        cell.tick_without_checks(20)
        spans.append((time.process_time() - began_s) / max(1, cell["many"].num_succeeded - before))
    first, last = sum(spans[:10]), sum(spans[-11:-1])
    assert last < 3 * first, (first, last)
    assert cell["many"].num_succeeded == 10_000
