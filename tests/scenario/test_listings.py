"""Pages of jobs, schedules and allocs, as the API and the console list them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from starlette.datastructures import QueryParams
from testcell import StoryCell

from tidecell.engines.fake import Script
from tidecell.server.listings import Selection, allocs, num_waiting, schedules
from tidecell.server.views import job_status, queue_places
from tidecell.structs.cron import Schedule
from tidecell.structs.errors import RefusedError
from tidecell.structs.job import Amount, Band, Disruptions, JobSpec, Kind, Priority, Replicas
from tidecell.structs.messages import JobHoldRequested, JobSubmitted
from tidecell.structs.resources import Resources


def names(cell: StoryCell, **wanted: Any) -> list[str]:
    """Return the names on a page of jobs."""
    trace = cell.runtime.trace
    places = queue_places(cell.runtime.state, trace)
    found, _ = Selection(**wanted).page(cell.runtime.state, cell.runtime.state.jobs.values(), trace, places)
    return [job.spec.name for job in found]


@pytest.fixture
def cell() -> StoryCell:
    """Two jobs run, three wait (one of them first, by its integer), one is over."""
    cell = StoryCell(cores=2)
    cell.job("over", cores=1, script=Script(runs_s=1.0))
    cell.pass_time(3.0)
    for name in ("a", "b"):
        cell.job(name, cores=1)
    for name, order in (("last", 0), ("first", 5), ("middle", 2)):
        cell.job(name, cores=1, priority=Priority(Band.BATCH, order))
        cell.pass_time(1.0)
    return cell


def test_what_waits_comes_in_scheduling_order(cell: StoryCell) -> None:
    assert names(cell, state="waiting") == ["first", "middle", "last"]
    assert num_waiting(cell.runtime.state, cell.runtime.trace) == 3


def test_each_state_has_its_jobs(cell: StoryCell) -> None:
    assert sorted(names(cell, state="running")) == ["a", "b"]
    assert names(cell, state="over") == ["over"]
    assert sorted(names(cell, state="live")) == ["a", "b", "first", "last", "middle"]


def test_pages_follow_each_other_without_gap_or_overlap_and_live_jobs_come_first(cell: StoryCell) -> None:
    pages = [names(cell, limit=2, offset=offset) for offset in (0, 2, 4, 6)]
    assert [len(page) for page in pages] == [2, 2, 2, 0]
    flat = [name for page in pages for name in page]
    assert sorted(flat) == sorted(job.spec.name for job in cell.runtime.state.jobs.values())
    assert flat[-1] == "over"


def test_a_part_of_the_name_is_enough(cell: StoryCell) -> None:
    assert names(cell, text="irs") == ["first"]
    assert names(cell, text="irs", state="over") == []


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("state=odd", "state='odd' is not known"),
        ("band=urgent", "band='urgent' is not known"),
        ("kind=cron", "kind='cron' is not known"),
        ("limit=-1", "limit='-1' is no number of jobs"),
        ("offset=many", "offset='many' is no number of jobs"),
        ("limit=1001", "limit=1001 is too large a page"),
    ],
)
def test_a_selection_that_means_nothing_is_refused(query: str, message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        Selection.of(SimpleNamespace(query_params=QueryParams(query)))  # type: ignore[arg-type]


def test_a_brief_status_has_all_but_the_tasks(cell: StoryCell) -> None:
    job, trace = cell["a"], cell.runtime.trace
    full = job_status(cell.runtime.state, job, trace, {})
    brief = job_status(cell.runtime.state, job, trace, {}, brief=True)
    assert len(full.tasks) == 1
    assert brief.tasks == ()
    assert brief.running == full.running == 1


# --------------------------------------------------------------------------------- schedules


def minutely(cell: StoryCell, name: str = "tick", **schedule: Any) -> None:
    spec = JobSpec(name, run="true", resources=Resources(100), schedule=Schedule("* * * * *", **schedule))
    cell.tell(JobSubmitted(spec))


def test_a_schedule_tells_its_next_firings_a_minute_apart_and_its_runs() -> None:
    cell = StoryCell(cores=2)
    minutely(cell)
    (status,) = schedules(cell.runtime.state)
    assert [round(b - a) for a, b in zip(status.next, status.next[1:], strict=False)] == [60] * 4
    assert status.next[0] > cell.now_s
    assert status.runs == ()
    cell.pass_time(61.0)
    (status,) = schedules(cell.runtime.state)
    assert len(status.runs) == 1
    assert status.runs[0].name.startswith("tick-")
    assert status.runs[0].target_s % 60 == 0
    assert status.next[0] > cell.now_s


def test_a_held_schedule_has_no_next_firing() -> None:
    cell = StoryCell(cores=2)
    minutely(cell)
    cell.tell(JobHoldRequested("tick", True))
    (status,) = schedules(cell.runtime.state)
    assert status.held
    assert status.next == ()


def test_what_is_queued_behind_a_run_is_told() -> None:
    cell = StoryCell(cores=1)
    cell.job("all", cores=1)  # no run finds room
    minutely(cell, overlap="queue")
    cell.pass_time(190.0)
    (status,) = schedules(cell.runtime.state)
    assert len(status.runs) == 1
    assert len(status.due) == 2


# ------------------------------------------------------------------------------------ allocs


def test_an_alloc_tells_who_is_in_which_envelope_and_what_is_free() -> None:
    cell = StoryCell(cores=4)
    size = Resources(2000)
    cell.tell(JobSubmitted(JobSpec("lab", Kind.ALLOC, resources=size, replicas=Replicas(1, 1))))
    cell.job("one", cores=1.5, alloc="lab")
    cell.job("two", cores=1, alloc="lab")
    (status,) = allocs(cell.runtime.state, cell.runtime.trace)
    (envelope,) = status.envelopes
    assert (envelope.name, envelope.machine) == ("lab/0", "m0")
    assert [(t.job, t.resources.cpu_millis) for t in envelope.inside] == [("one", 1500)]
    assert envelope.free == Resources(500)
    assert envelope.room == size
    assert status.waiting == ("two",)


def test_an_envelope_that_waits_for_room_asks_for_it_and_has_no_machine() -> None:
    cell = StoryCell(cores=4)
    cell.job("other", cores=3)
    cell.tell(JobSubmitted(JobSpec("lab", Kind.ALLOC, resources=Resources(2000))))
    (status,) = allocs(cell.runtime.state, cell.runtime.trace)
    assert [(e.machine, e.room.cpu_millis) for e in status.envelopes] == [("", 2000)]
    assert "2 cpu" in status.detail


# ----------------------------------------------------------------------------------- budgets


def test_a_budget_tells_what_is_away_and_what_may_still_go() -> None:
    cell = StoryCell(cores=4)
    cell.job("gang", cores=1, replicas=(3, 3), disruptions=Disruptions(Amount(2)))
    status = job_status(cell.runtime.state, cell["gang"], cell.runtime.trace, {}).disruptions
    assert status is not None
    assert (status.max_unavailable, status.down + status.spare) == ("2", 2)
    cell.job("free", cores=1)
    assert job_status(cell.runtime.state, cell["free"], cell.runtime.trace, {}).disruptions is None
