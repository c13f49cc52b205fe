"""Stories of begin times, holding, and schedules, in virtual time."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pytest
from testcell import StoryCell

from tidecell.engines.fake import Script
from tidecell.scheduler.explain import explain_why
from tidecell.structs.cron import Schedule
from tidecell.structs.errors import ConflictError
from tidecell.structs.job import Reason, TaskState
from tidecell.structs.messages import (
    Event,
    JobAccepted,
    JobFinished,
    JobHoldRequested,
    JobSubmitted,
    ScheduleDecided,
)


def reasons(cell: StoryCell, name: str) -> tuple[Reason, ...]:
    return cell.runtime.trace.waiting[cell[name].uid].reasons


def runs(cell: StoryCell) -> list[str]:
    found: list[Event] = cell.happened(JobAccepted)
    return [e.spec.name for e in found if isinstance(e, JobAccepted) and e.parent]


def skipped(cell: StoryCell) -> int:
    return sum(e.skipped for e in cell.happened(ScheduleDecided) if isinstance(e, ScheduleDecided))


def jump(cell: StoryCell, seconds: float) -> None:
    """The control plane is away, or the clock jumps."""
    cell.now_s += seconds
    cell.pass_time(1)


# ------------------------------------------------------------------------------- begin time and hold


def test_a_job_does_not_start_before_its_time() -> None:
    cell = StoryCell()
    cell.job("later", begin_s=1020.0)
    cell.pass_time(10)
    assert (cell.running("later"), reasons(cell, "later")) == (0, (Reason.BEGIN_TIME,))
    why = explain_why(cell.snapshot(), cell["later"].uid, cell.now_s)
    assert [f.command for f in why.fixes] == ["tide release later"]
    assert why.expected_s == 1020.0
    cell.pass_time(11)
    assert cell.running("later") == 1


def test_releasing_starts_it_before_its_time() -> None:
    cell = StoryCell()
    cell.job("later", begin_s=1_000_000.0)
    cell.pass_time(1)
    cell.tell(JobHoldRequested("later", hold=False))
    cell.pass_time(1)
    assert cell.running("later") == 1


def test_a_held_job_waits_until_it_is_released() -> None:
    cell = StoryCell()
    cell.job("kept", hold=True)
    cell.pass_time(100)
    assert (cell.running("kept"), reasons(cell, "kept")) == (0, (Reason.ON_HOLD,))
    why = explain_why(cell.snapshot(), cell["kept"].uid, cell.now_s)
    assert [f.command for f in why.fixes] == ["tide release kept"]
    assert why.expected_why == "unknown: when somebody releases it"
    cell.tell(JobHoldRequested("kept", hold=False))
    cell.pass_time(1)
    assert cell.running("kept") == 1


def test_all_that_bars_a_job_is_named() -> None:
    cell = StoryCell()
    cell.job("first")
    cell.job("kept", hold=True, begin_s=2000.0, after=("first",))
    cell.pass_time(1)
    assert reasons(cell, "kept") == (Reason.ON_HOLD, Reason.BEGIN_TIME, Reason.DEPENDENCY)


def test_holding_stops_nothing_that_runs_but_what_ends_does_not_start_again() -> None:
    cell = StoryCell(cores=1.0)
    cell.job("soft", script=Script())
    cell.pass_time(1)
    cell.tell(JobHoldRequested("soft"))
    cell.pass_time(5)
    assert cell.running("soft") == 1
    cell.service("chat", 1.0)
    cell.pass_time(3)
    cell.stop("chat")
    cell.pass_time(5)
    assert (cell.running("soft"), reasons(cell, "soft")) == (0, (Reason.ON_HOLD,))


def test_a_finished_job_cannot_be_held() -> None:
    cell = StoryCell()
    cell.job("short", script=Script(runs_s=1.0))
    cell.pass_time(3)
    with pytest.raises(ConflictError, match="is SUCCEEDED"):
        cell.tell(JobHoldRequested("short"))


def test_a_held_job_stays_held_after_a_restart() -> None:
    cell = StoryCell()
    cell.job("kept", hold=True)
    cell.restart_control_plane()
    cell.pass_time(3)
    assert cell.running("kept") == 0


# ----------------------------------------------------------------------------------------- schedules
# The story begins at 1000 s: 1970-01-01 00:16:40. Every five minutes: at 1200, 1500, 1800, ...

FIVE = "*/5 * * * *"


def scheduled(cell: StoryCell, runs_s: float = 10.0, **how: str | int) -> None:
    cell.engine.script_of = lambda command: Script(runs_s=runs_s)
    cell.job("tick", schedule=Schedule(FIVE, **how))


def test_a_schedule_starts_a_run_at_each_firing() -> None:
    cell = StoryCell()
    scheduled(cell)
    cell.pass_time(820)
    assert runs(cell) == ["tick-19700101T0020", "tick-19700101T0025", "tick-19700101T0030"]
    assert all(cell[name].state is TaskState.SUCCEEDED for name in runs(cell))
    assert cell["tick"].live
    assert [j.target_s for j in map(cell.__getitem__, runs(cell))] == [1200.0, 1500.0, 1800.0]


def test_a_firing_during_a_restart_is_not_lost_and_not_done_twice() -> None:
    cell = StoryCell()
    scheduled(cell)
    cell.pass_time(199.5)
    cell.now_s += 10.0
    cell.restart_control_plane()
    cell.pass_time(1)
    cell.restart_control_plane()
    cell.pass_time(30)
    assert runs(cell) == ["tick-19700101T0020"]


def test_a_clock_that_stands_still_fires_nothing_again() -> None:
    cell = StoryCell()
    scheduled(cell)
    cell.pass_time(210)
    cell.restart_control_plane()
    cell.now_s -= 100.0  # the machine's clock was set back while the control plane was away
    cell.engine.now_s = cell.now_s
    cell.pass_time(150)
    assert runs(cell) == ["tick-19700101T0020"]


@pytest.mark.parametrize(
    ("catch_up", "names", "let_go"),
    [
        ("none", [], 4),
        ("last", ["tick-19700101T0035"], 3),
        ("all", [f"tick-19700101T00{m}" for m in (20, 25, 30, 35)], 0),
    ],
)
def test_what_was_missed_is_caught_up_as_asked(catch_up: str, names: list[str], let_go: int) -> None:
    cell = StoryCell()
    scheduled(cell, catch_up=catch_up)
    jump(cell, 1250)
    cell.pass_time(100)
    assert (runs(cell), skipped(cell)) == (names, let_go)


def test_overlap_skip_lets_a_firing_go_while_a_run_is_going() -> None:
    cell = StoryCell()
    scheduled(cell, runs_s=400.0)
    cell.pass_time(1000)
    assert runs(cell) == ["tick-19700101T0020", "tick-19700101T0030"]
    assert skipped(cell) == 1


def test_overlap_queue_runs_one_after_another() -> None:
    cell = StoryCell()
    scheduled(cell, runs_s=400.0, overlap="queue")
    cell.pass_time(1150)
    assert runs(cell) == ["tick-19700101T0020", "tick-19700101T0025", "tick-19700101T0030"]
    live = [j for j in cell.runtime.state.live_jobs() if j.parent]
    assert len(live) == 1


def test_overlap_replace_stops_the_run_before() -> None:
    cell = StoryCell()
    scheduled(cell, runs_s=10_000.0, overlap="replace")
    cell.pass_time(510)
    assert runs(cell) == ["tick-19700101T0020", "tick-19700101T0025"]
    assert cell["tick-19700101T0020"].state is TaskState.CANCELLED
    assert cell["tick-19700101T0020"].message == "replaced by the next run"
    assert cell.running("tick-19700101T0025") == 1


def test_a_held_schedule_does_not_fire_and_goes_on_when_it_is_released() -> None:
    cell = StoryCell()
    scheduled(cell)
    cell.tell(JobHoldRequested("tick"))
    cell.pass_time(450)
    assert runs(cell) == []
    cell.tell(JobHoldRequested("tick", hold=False))
    cell.pass_time(100)
    assert runs(cell) == ["tick-19700101T0025"]
    assert skipped(cell) == 1


def test_only_so_many_finished_runs_are_remembered() -> None:
    cell = StoryCell()
    scheduled(cell, history=2)
    for _ in range(6):
        cell.pass_time(30)
        cell.now_s = (cell.now_s // 300 + 1) * 300 - 1.0
    cell.pass_time(30)
    assert len(runs(cell)) >= 5
    assert len(cell["tick"].runs) == 2
    remembered = [j for j in cell.runtime.state.jobs.values() if j.parent]
    assert len(remembered) == 2
    cell.restart_control_plane()


def test_stopping_a_schedule_leaves_its_run_going() -> None:
    cell = StoryCell()
    scheduled(cell, runs_s=100.0)
    cell.pass_time(210)
    cell.stop("tick")
    assert cell["tick"].state is TaskState.CANCELLED
    cell.pass_time(400)
    assert len(runs(cell)) == 1
    assert cell[runs(cell)[0]].state is TaskState.SUCCEEDED


def test_a_run_that_cannot_be_accepted_is_let_go_with_the_reason() -> None:
    cell = StoryCell()
    scheduled(cell)
    cell.engine.script_of = lambda command: Script(runs_s=250.0)
    cell.job("tick-19700101T0020")
    cell.pass_time(600)
    assert runs(cell)[0] == "tick-19700101T0025"
    assert any("already" in e.why or "RUNNING" in e.why for e in cell.happened(ScheduleDecided))  # type: ignore[attr-defined]


def test_a_failed_run_does_not_end_the_schedule() -> None:
    cell = StoryCell()
    cell.engine.script_of = lambda command: Script(runs_s=1.0, exit_code=1)
    cell.job("tick", schedule=Schedule(FIVE))
    cell.pass_time(520)
    outcomes = [e.state for e in cell.happened(JobFinished)]  # type: ignore[attr-defined]
    assert outcomes == [TaskState.FAILED, TaskState.FAILED]


def test_the_same_name_cannot_be_scheduled_twice() -> None:
    cell = StoryCell()
    scheduled(cell)
    with pytest.raises(ConflictError):
        cell.tell(JobSubmitted(cell["tick"].spec))
