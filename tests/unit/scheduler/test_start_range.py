"""The range of an expected start: from how long similar work took, and silent where nothing is known."""

from __future__ import annotations

import pytest
from cell_harness import Cell, job_spec, service_spec

from tidecell.cell.past import history_of
from tidecell.client.views import StartRange
from tidecell.scheduler.durations import History, draw
from tidecell.scheduler.explain import explain_why, render_why
from tidecell.scheduler.startrange import start_range
from tidecell.structs.job import JobSpec


def finished(cell: Cell, name: str, *took_s: float, cpu: float = 3) -> None:
    for seconds in took_s:
        cell.submit(job_spec(name, cpu=cpu))
        cell.up()
        cell.now_s += seconds
        cell.down(cell.ref(name))


@pytest.fixture
def waiting() -> Cell:
    """`nightly` has run for 100 s of its usual 200 to 400; `next` waits for its room."""
    cell = Cell().machine("a", cpu=4)
    finished(cell, "nightly", *range(200, 401, 10))
    cell.submit(job_spec("nightly", cpu=3))
    cell.up()
    cell.now_s += 100
    cell.submit(job_spec("next", cpu=2))
    return cell


def range_of(cell: Cell, name: str) -> StartRange | None:
    return start_range(cell.snapshot(), cell.job(name).uid, history_of(cell.state, cell.now_s))


def test_the_range_spans_what_similar_work_still_took(waiting: Cell):
    found = range_of(waiting, "next")
    assert found is not None
    assert waiting.now_s + 100 <= found.earliest_s <= waiting.now_s + 140
    assert waiting.now_s + 150 <= found.expected_s <= waiting.now_s + 250
    assert waiting.now_s + 260 <= found.latest_s <= waiting.now_s + 500  # one may last longer than all did


def test_the_same_question_has_the_same_answer(waiting: Cell):
    assert range_of(waiting, "next") == range_of(waiting, "next")


def test_who_waits_behind_another_starts_after_it_in_every_future(waiting: Cell):
    waiting.submit(job_spec("behind", cpu=4))
    first, second = range_of(waiting, "next"), range_of(waiting, "behind")
    assert first is not None
    assert second is not None
    assert second.earliest_s > first.earliest_s
    assert second.latest_s > first.latest_s


def test_without_any_history_there_is_no_range():
    cell = Cell().machine("a", cpu=4)
    cell.submit(job_spec("first", cpu=3))
    cell.up()
    cell.submit(job_spec("next", cpu=2))
    assert range_of(cell, "next") is None


def test_a_service_that_never_ends_gives_no_range():
    cell = Cell().machine("a", cpu=4)
    finished(cell, "old", 10, 20, 30, 40, 50)
    cell.submit(service_spec("chat", cpu=3))
    cell.up()
    cell.submit(job_spec("next", cpu=2))
    assert range_of(cell, "next") is None


def test_why_shows_the_range(waiting: Cell):
    job = waiting.job("next")
    view = explain_why(
        waiting.snapshot(), job.uid, waiting.now_s, history=history_of(waiting.state, waiting.now_s)
    )
    assert view.start_range is not None
    assert "in 20 futures drawn from how long similar work took" in render_why(view, waiting.now_s)
    assert explain_why(waiting.snapshot(), job.uid, waiting.now_s).start_range is None


def test_similar_means_name_then_team_and_size_then_size():
    def spec(name: str, team: str) -> JobSpec:
        return JobSpec(name, run="x", team=team)

    past = [(spec("a", "red"), float(t)) for t in (10, 11, 12, 13, 14)]
    past += [(spec("b", "blue"), float(t)) for t in (100, 101, 102, 103, 104)]
    history = History(past)
    assert history.remaining_s(spec("a", "x"), 0.0, 0.5) == 12
    assert history.remaining_s(spec("new", "blue"), 0.0, 0.5) == 102
    assert history.remaining_s(spec("new", "x"), 0.0, 0.4) == 14  # all ten


def test_work_that_outlived_all_examples_may_go_on_as_long_again():
    history = History((JobSpec("a", run="x"), float(t)) for t in range(1, 8))
    assert history.remaining_s(JobSpec("a", run="x"), 1000.0, 0.5) == pytest.approx(1000.0)


def test_a_time_limit_bounds_what_remains():
    history = History((JobSpec("a", run="x"), 500.0) for _ in range(6))
    assert history.remaining_s(JobSpec("a", run="x", max_duration_s=60.0), 10.0, 0.5) == 50.0


def test_draws_are_even_and_depend_on_their_arguments_alone():
    numbers = [draw("job.1", 7, n) for n in range(1000)]
    assert numbers == [draw("job.1", 7, n) for n in range(1000)]
    assert 0.4 < sum(numbers) / 1000 < 0.6
    assert min(numbers) > 0
    assert max(numbers) < 1
