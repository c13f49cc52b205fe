"""The range of an expected start: from how long similar work took, and silent where nothing is known."""

from __future__ import annotations

import pytest
from cell_harness import Cell, job_spec, service_spec

from tidecell.cell.past import history_of
from tidecell.client.views import StartRange, WhyView
from tidecell.scheduler.durations import History, draw
from tidecell.scheduler.explain import explain_why, render_why
from tidecell.scheduler.startrange import start_range
from tidecell.structs.job import JobSpec, TaskState


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
    text = render_why(view, waiting.now_s)
    assert "a guess from 20 futures; too few waits to say how often it holds" in text
    assert explain_why(waiting.snapshot(), job.uid, waiting.now_s).start_range is None


@pytest.fixture
def queueing() -> Cell:
    """One machine; 40 jobs waited 60 to 100 s each for the one before them, and one more waits."""
    cell = Cell().machine("a", cpu=4)
    for number in range(41):
        cell.submit(job_spec(f"j{number}", cpu=3))
    for number in range(41):
        cell.up()
        cell.now_s += 60 + number
        if number < 40:
            cell.down(cell.ref(f"j{number}"))
    cell.submit(job_spec("next", cpu=2))
    return cell


def test_where_waits_are_remembered_the_range_states_its_rate(queueing: Cell):
    found = range_of(queueing, "next")
    assert found is not None
    assert found.rate == 0.85
    assert found.expected_s is not None
    assert queueing.now_s <= found.earliest_s <= found.expected_s
    assert found.latest_s is None or found.latest_s > found.expected_s
    text = render_why(
        explain_why(
            queueing.snapshot(),
            queueing.job("next").uid,
            queueing.now_s,
            history=history_of(queueing.state, queueing.now_s),
        ),
        queueing.now_s,
    )
    assert f"holds 85 % of the time, by {found.num_cases} past waits" in text


def test_a_range_without_an_end_says_so():
    for found, text in (
        (
            StartRange(60.0, 120.0, None, 0.9, 50),
            "in about 2m, not before 1m (holds 90 % of the time, by 50 past",
        ),
        (StartRange(60.0, None, None, 0.9, 50), "  otherwise not before 1m (holds 90 %"),
    ):
        shown = render_why(WhyView("a", "a.1", TaskState.PENDING, 0.0, start_range=found), 1e-9)
        assert text in shown
        assert "too many still wait to name an end" in shown


def test_a_job_that_was_held_or_came_after_others_is_no_example(queueing: Cell):
    queueing.submit(job_spec("later", cpu=1, after=("next",)))
    queueing.submit(job_spec("on-hold", cpu=1, hold=True))
    names = {w.spec.name for w in history_of(queueing.state, queueing.now_s).waits}
    assert "next" in names
    assert not names & {"later", "on-hold"}


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
