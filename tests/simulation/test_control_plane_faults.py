"""The whole control plane under seeded faults: safe after every tick, live once the faults stop.

A failure prints the one command that replays it.
"""

from __future__ import annotations

import pytest

from tidecell.sim.chaos import BrokenRun, Chaos, run_seed
from tidecell.sim.faults import CRASH_POINTS, MIXES, crash_at
from tidecell.structs.messages import Command, StartTask, StopTask

SEEDS = range(7)


@pytest.mark.parametrize("mix", sorted(MIXES))
@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_is_safe_and_live(seed: int, mix: str):
    verdict = run_seed(seed, mix)
    assert verdict.num_starts
    assert all(outcome != "None" for outcome in verdict.outcomes.values())


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mix", sorted(MIXES))
def test_five_hundred_more_seeds_of_each_mix(mix: str):
    crashes = sum(run_seed(seed, mix).num_crashes for seed in range(100, 600))
    assert crashes > 500 or not MIXES[mix].crash


@pytest.mark.parametrize("point", CRASH_POINTS)
def test_a_crash_at_every_tenth_write_of_a_run_does_no_harm(point: str):
    for number in range(1, num_writes() + 1, 10):
        assert crashed_at(number, point).num_crashes == 1


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("point", CRASH_POINTS)
def test_a_crash_at_every_write_of_a_run_does_no_harm(point: str):
    for number in range(1, num_writes() + 1):
        crashed_at(number, point)


def num_writes() -> int:
    run = Chaos(3, MIXES["calm"])
    run.run()
    return run.log.num_writes - 20  # the last ones come when faults have stopped


def crashed_at(number: int, point: str):
    return Chaos(3, MIXES["calm"], crash_when=crash_at(number, point)).run()


def test_the_same_seed_gives_the_same_run():
    assert run_seed(5, "all") == run_seed(5, "all")


# ------------------------------------------------------------------- would defects be seen? (mutants)


def broken_seed(mix: str, **mutation: object) -> str:
    """Return how the first of some seeds breaks under a seeded defect."""
    for seed in range(12):
        try:
            Chaos(seed, MIXES[mix], **mutation).run()  # type: ignore[arg-type]
        except BrokenRun as broken:
            return str(broken)
    return ""


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is sound is over after some minutes; one that never ends need not be watched for an hour."""
    monkeypatch.setattr("tidecell.sim.chaos.END_S", 900.0)


@pytest.mark.usefixtures("short_patience")
def test_a_lost_stop_order_is_seen():
    def without_stops(command: Command) -> Command | None:
        return None if isinstance(command, StopTask) else command

    assert "not live" in broken_seed("calm", filter_command=without_stops)


@pytest.mark.usefixtures("short_patience")
def test_starts_that_nobody_sends_again_are_seen(monkeypatch: pytest.MonkeyPatch):
    sent: set[object] = set()

    def only_every_fifth(command: Command) -> Command | None:
        if isinstance(command, StartTask):
            sent.add(command.ref)
            return None if len(sent) % 5 == 0 else command
        return command

    assert "not live" in broken_seed("calm", filter_command=only_every_fifth)


def test_a_state_machine_that_forgets_to_compare_epochs_is_seen(monkeypatch: pytest.MonkeyPatch):
    from tidecell.cell.state import CellState

    def any_start(self: CellState, ref):
        job = self.jobs.get(ref.uid)
        known = job is not None and 0 <= ref.index < len(job.tasks)
        return job.tasks[ref.index] if known else None

    monkeypatch.setattr(CellState, "task", any_start)
    assert broken_seed("network")


def test_a_restart_that_takes_starting_tasks_for_lost_is_seen(monkeypatch: pytest.MonkeyPatch):
    """The defect that these runs found: an order on its way when the machine was heard of."""
    from tidecell.cell import step as steps

    real = steps._machine_seen

    def guessing(state, message, now_s):
        for job in state.live_jobs():
            for task in job.active_tasks():
                if task.notice is not None and not task.started_s:
                    task.started_s = now_s  # taken for one that ran, hence for lost
        return real(state, message, now_s)

    monkeypatch.setitem(steps._STEP, type(_machine_seen()), guessing)
    assert broken_seed("all")


def _machine_seen():
    from tidecell.sim.simple import make_machine
    from tidecell.structs.messages import MachineSeen

    return MachineSeen(make_machine("m", 1000, 0))


def test_capacity_given_away_too_early_is_seen(monkeypatch: pytest.MonkeyPatch):
    """A cell that counts a task's room as free once it is told to leave over-commits its machines."""
    from tidecell.cell import invariants
    from tidecell.cell.state import Task

    monkeypatch.setattr(invariants, "check_state", lambda state: None)
    monkeypatch.setattr("tidecell.cell.runtime.check_state", lambda state: None)
    monkeypatch.setattr(Task, "active", property(lambda t: t.state in invariants.ACTIVE and t.notice is None))
    assert broken_seed("calm")
