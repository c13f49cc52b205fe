"""Each firing of a schedule starts one run, in its window, whatever happens meanwhile.

The checker is that of Jepsen's analysis of Chronos: from the expression alone it works out what should have
run, and compares that with what did. Time passes in uneven steps, the control plane restarts or is away,
the clock jumps ahead or is set back, runs take their time.
"""

from __future__ import annotations

from cell_harness import Cell, job_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from tidecell.structs.cron import LATE_S, Schedule, next_target_s
from tidecell.structs.messages import JobAccepted, ScheduleDecided

CRONS = ["* * * * *", "*/3 * * * *", "7 * * * *", "0 */2 * * *"]
steps = st.lists(
    st.tuples(
        st.sampled_from(["wait", "wait", "wait", "away", "restart", "end", "back"]),
        st.sampled_from([1.0, 20.0, 59.0, 61.0, 200.0, 3700.0]),
    ),
    min_size=1,
    max_size=30,
)


def targets(schedule: Schedule, after_s: float, until_s: float) -> list[float]:
    found = []
    while (after_s := next_target_s(schedule.cron, schedule.timezone, after_s)) <= until_s:
        found.append(after_s)
    return found


def end_runs(cell: Cell) -> None:
    for ref, process in sorted(cell.engine.processes.items()):
        if not process.up:
            cell.up(process.command.spec.name)
        cell.down(ref)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(CRONS),
    st.sampled_from(["skip", "queue", "replace"]),
    st.sampled_from(["none", "last", "all"]),
    steps,
)
def test_every_firing_is_run_once_or_let_go(cron: str, overlap: str, catch_up: str, moves) -> None:
    schedule = Schedule(cron, overlap=overlap, catch_up=catch_up, history=1000)
    cell = Cell()
    cell.now_s = 1_000_000.0  # far from zero, so that a clock that is set back still shows a time
    cell.machine("m")
    cell.submit(job_spec("tick", schedule=schedule))
    begin_s = highest_s = cell.now_s
    punctual = True  # the cell was never away so long that a firing was missed
    for move, seconds in moves:
        if move == "wait":
            for _ in range(int(seconds // 20)):
                cell.after(20.0)
            cell.after(seconds % 20)
        elif move == "away":
            punctual = punctual and seconds < LATE_S
            cell.restart()
            cell.after(seconds)
        elif move == "restart":
            cell.restart()
            cell.after(0.0)
        elif move == "end":
            end_runs(cell)
        else:
            cell.restart()
            cell.now_s -= seconds
            cell.after(0.0)
        highest_s = max(highest_s, cell.now_s)
    for _ in range(2000):
        if not cell.job("tick").due:
            break
        end_runs(cell)
        cell.after(0.0)
    assert not cell.job("tick").due, "runs do not get their turn"
    started = [e.target_s for e in cell.story(JobAccepted) if e.parent]
    expected = targets(schedule, begin_s, highest_s)
    assert len(set(started)) == len(started), "a firing ran twice"
    assert set(started) <= set(expected), "a run for a firing that never was"
    assert started == sorted(started)
    skipped = sum(e.skipped for e in cell.story(ScheduleDecided))
    if skipped < 900:  # what is skipped is counted up to a limit
        assert len(started) + skipped == len(expected), "a firing is neither run nor let go"
    if overlap == "queue" and (catch_up == "all" or punctual) and len(expected) < 900:
        assert started == expected, "nothing may be lost"
    for at_s, event in cell.events:
        if isinstance(event, JobAccepted) and event.parent:
            assert at_s >= event.target_s or at_s < highest_s, "a run before its time"
            if catch_up == "none" and overlap == "skip":
                assert at_s <= event.target_s + LATE_S, "a run after its window"
