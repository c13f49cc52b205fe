"""Stories of changed specs: in place, rolled out, promoted, reverted, rolled back."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pytest
from msgspec.structs import replace
from testcell import StoryCell

from tidecell.cell.disruptions import is_available
from tidecell.cell.rollout import waits_for
from tidecell.engines.fake import Script
from tidecell.structs.errors import ConflictError, NotFoundError
from tidecell.structs.job import (
    Amount,
    Band,
    Cause,
    Disruptions,
    Kind,
    Preemption,
    Priority,
    TaskState,
    Update,
)
from tidecell.structs.lifecycle import (
    JobRevised,
    PromoteRequested,
    RollbackRequested,
    RolloutFinished,
    RolloutHalted,
    SpecChanged,
)
from tidecell.structs.messages import StartTask, TaskNoticed, TaskPlaced
from tidecell.structs.work import Array

QUICK = Update(healthy_after_s=1.0, deadline_s=20.0)


class UpdateCell(StoryCell):
    """A story cell that keeps count of ready replicas while time passes."""

    def web(self, replicas: int = 3, update: Update = QUICK, **more: object) -> None:
        """A service that is up."""
        self.job(
            "web",
            0.5,
            (replicas, replicas),
            kind=Kind.SERVICE,
            priority=Priority(Band.PRODUCTION),
            preemption=Preemption.NEVER,
            update=update,
            **more,
        )
        self.pass_time(3)
        assert self.ready("web") == replicas

    def ready(self, name: str) -> int:
        return sum(1 for t in self[name].tasks if is_available(t))

    def apply(self, name: str, **fields: object) -> None:
        self.tell(SpecChanged(replace(self[name].spec, **fields), "ana"))

    def least_ready(self, name: str, seconds: float) -> int:
        """Pass time; return the smallest number of ready replicas seen."""
        least = self.ready(name)
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.pass_time(0.5)
            least = min(least, self.ready(name))
        return least

    def programs(self, name: str) -> list[int]:
        return sorted(t.program for t in self[name].tasks if t.active)


def test_a_rolling_update_never_has_fewer_ready_replicas_than_wanted() -> None:
    cell = UpdateCell(cores=8.0)
    cell.web(3)
    cell.apply("web", argv=("y",))
    assert cell.least_ready("web", 40) == 3
    assert cell.programs("web") == [2, 2, 2]
    assert cell["web"].rollout is None
    assert cell.ready("web") == 3
    assert [e.cause for e in cell.happened(TaskNoticed)] == [Cause.UPDATE] * 3
    assert len(cell.happened(TaskPlaced)) == 6, "each replica is started once, none for the surge alone"


def test_old_replicas_go_first_where_some_may_be_missing() -> None:
    cell = UpdateCell(cores=1.5)  # room for three replicas and no more
    cell.web(3, replace(QUICK, max_unavailable=Amount(1)))
    cell.apply("web", argv=("y",))
    assert cell.least_ready("web", 40) == 2
    assert cell.programs("web") == [2, 2, 2]
    assert not cell["web"].extra


def test_an_update_takes_no_more_at_once_than_the_disruption_budget_leaves() -> None:
    cell = UpdateCell(cores=4.0)
    budget = Disruptions(Amount(1))
    cell.web(4, replace(QUICK, max_unavailable=Amount(3)), disruptions=budget)
    cell.apply("web", argv=("y",))
    assert cell.least_ready("web", 60) == 3
    assert cell.programs("web") == [2] * 4


def test_canaries_run_beside_the_old_replicas_until_they_are_promoted() -> None:
    cell = UpdateCell(cores=8.0)
    cell.web(3, replace(QUICK, canary=1))
    cell.apply("web", argv=("y",))
    cell.pass_time(60)
    assert cell.programs("web") == [1, 1, 1, 2]
    assert "its canaries wait for tide promote" in waits_for(cell["web"], cell.now_s)
    cell.tell(PromoteRequested("web"))
    assert cell.least_ready("web", 40) == 3
    assert cell.programs("web") == [2, 2, 2]


def test_a_version_that_does_not_become_healthy_reverts_by_itself() -> None:
    cell = UpdateCell(cores=8.0)
    cell.web(3)
    cell.script_for = lambda c: Script(ready_after_s=None) if c.spec.argv == ("bad",) else Script()
    cell.apply("web", argv=("bad",))
    assert cell.least_ready("web", 40) == 3
    assert cell["web"].spec.argv == ("x",)
    assert cell["web"].version == 3
    assert cell.programs("web") == [1, 1, 1]
    assert cell.happened(JobRevised)[-1].why.startswith("back to version 1; version 2: no replica")


def test_a_program_that_cannot_start_reverts_before_its_deadline() -> None:
    cell = UpdateCell(cores=8.0)
    cell.web(2, replace(QUICK, deadline_s=1000.0))
    cell.script_for = lambda c: Script(error="no such program") if c.spec.argv == ("bad",) else Script()
    cell.apply("web", argv=("bad",))
    assert cell.least_ready("web", 30) == 2
    assert (cell["web"].spec.argv, cell["web"].live) == (("x",), True)


def test_without_auto_revert_a_bad_version_halts_and_a_newer_one_goes_on() -> None:
    cell = UpdateCell(cores=8.0)
    cell.web(3, replace(QUICK, auto_revert=False))
    cell.script_for = lambda c: Script(ready_after_s=None) if c.spec.argv == ("bad",) else Script()
    cell.apply("web", argv=("bad",))
    assert cell.least_ready("web", 60) == 3
    assert len(cell.happened(RolloutHalted)) == 1
    cell.apply("web", argv=("good",))
    assert cell.least_ready("web", 40) == 3
    assert cell.programs("web") == [3, 3, 3]


def test_a_newer_apply_supersedes_a_running_update() -> None:
    cell = UpdateCell(cores=8.0)
    cell.web(3)
    cell.apply("web", argv=("y",))
    cell.pass_time(3)
    cell.apply("web", argv=("z",))
    assert cell.least_ready("web", 60) == 3
    assert cell.programs("web") == [3, 3, 3]
    assert [e.version for e in cell.happened(RolloutFinished)] == [3]


def test_rollback_brings_the_last_healthy_version_back_and_history_says_who() -> None:
    cell = UpdateCell(cores=8.0)
    cell.web(2)
    cell.apply("web", argv=("y",))
    cell.pass_time(30)
    cell.tell(RollbackRequested("web", who="bob"))
    assert cell.least_ready("web", 30) == 2
    job = cell["web"]
    assert job.spec.argv == ("x",)
    assert [(v.number, v.program, v.who) for v in job.history] == [(1, 1, ""), (2, 2, "ana"), (3, 1, "bob")]
    with pytest.raises(NotFoundError, match="has no version 9; it has 1, 2, 3"):
        cell.tell(RollbackRequested("web", 9))


def test_rollback_keeps_replicas_that_were_scaled_by_hand_since() -> None:
    cell = UpdateCell(cores=8.0)
    cell.web(2)
    cell.apply("web", argv=("y",))
    cell.pass_time(30)
    cell.scale("web", 4, 4)
    cell.tell(RollbackRequested("web"))
    cell.pass_time(60)
    assert (cell["web"].spec.argv, cell.ready("web")) == (("x",), 4)


def test_what_needs_no_restart_changes_in_place() -> None:
    cell = UpdateCell(cores=8.0)
    cell.web(2)
    cell.apply("web", labels={"owner": "ana"}, grace_period_s=7.0, priority=Priority(Band.PRODUCTION, 3))
    cell.pass_time(10)
    job = cell["web"]
    assert (job.version, job.program, job.rollout) == (2, 1, None)
    assert job.spec.labels == {"owner": "ana"}
    assert not cell.happened(TaskNoticed)


def test_kind_and_team_of_a_live_job_do_not_change() -> None:
    cell = UpdateCell()
    cell.web(1)
    with pytest.raises(ConflictError, match="its team cannot change while it does"):
        cell.apply("web", team="search")


def test_changes_beyond_the_maximum_of_disruptions_are_skipped() -> None:
    cell = UpdateCell(cores=8.0)
    cell.web(4, replace(QUICK, max_disruptions=2))
    cell.apply("web", argv=("y",))
    cell.pass_time(60)
    assert cell.programs("web") == [1, 1, 2, 2]
    assert [e.skipped for e in cell.happened(RolloutFinished)] == [2]
    assert cell.ready("web") == 4


def test_an_elastic_job_is_updated_replica_by_replica_and_keeps_its_gang() -> None:
    cell = UpdateCell(cores=4.0)
    cell.job("train", 1.0, (2, 4), update=QUICK)
    cell.pass_time(3)
    cell.apply("train", argv=("y",))
    assert cell.least_ready("train", 60) == 3
    assert cell.programs("train") == [2, 2, 2, 2]


def test_a_fixed_gang_is_updated_as_a_whole() -> None:
    cell = UpdateCell(cores=4.0)
    cell.job("gang", 1.0, (3, 3), update=QUICK)
    cell.pass_time(3)
    cell.apply("gang", argv=("y",))
    cell.pass_time(20)
    assert [e.new_size for e in cell.happened(TaskNoticed)] == [0, 0, 0]
    assert cell.programs("gang") == [2, 2, 2]


def test_a_job_whose_new_program_fails_goes_back_to_what_ran() -> None:
    cell = UpdateCell(cores=4.0)
    cell.job("train", 1.0, (2, 3), update=QUICK)
    cell.pass_time(3)
    cell.script_for = lambda c: Script(runs_s=0.2, exit_code=1) if c.spec.argv == ("bad",) else Script()
    cell.apply("train", argv=("bad",))
    cell.pass_time(20)
    assert cell["train"].state is TaskState.RUNNING
    assert cell.programs("train") == [1, 1, 1]


def test_a_replica_that_restarts_on_its_own_comes_back_with_the_new_version_only_in_an_update() -> None:
    cell = UpdateCell(cores=8.0)
    cell.web(2)
    cell.apply("web", argv=("y",))
    cell.pass_time(30)
    starts = [c.spec.argv for c in cell.engine.sent if isinstance(c, StartTask)]
    assert starts == [("x",), ("x",), ("y",), ("y",)]


def test_a_start_of_the_old_version_that_was_not_sent_is_sent_as_that_version() -> None:
    cell = UpdateCell(cores=8.0)
    cell.script_for = lambda c: Script(starts_after_s=100.0)
    cell.job("train", 1.0, (1, 2), update=QUICK)
    cell.apply("train", argv=("y",))  # index 1 is told to leave first
    cell.engine.running.clear()
    before = len(cell.engine.sent)
    cell.restart_control_plane()
    again = [c for c in cell.engine.sent[before:] if isinstance(c, StartTask)]
    # Also the one that is to leave: its first order may be on its way, and its end must be told, not guessed.
    expected = [(0, ("x",)), (1, ("x",))]
    assert [(c.ref.index, c.spec.argv) for c in again if c.attempt == 1] == expected


def test_scaling_in_the_middle_of_an_update_ends_with_the_wanted_number() -> None:
    cell = UpdateCell(cores=8.0)
    cell.web(3)
    cell.apply("web", argv=("y",))
    cell.pass_time(4)
    cell.scale("web", 5, 5)
    cell.pass_time(60)
    assert cell.programs("web") == [2] * 5
    cell.scale("web", 1, 1)
    cell.pass_time(10)
    assert cell.programs("web") == [2]


def test_attempt_numbers_go_on_when_a_replica_is_scaled_away_and_back() -> None:
    cell = UpdateCell(cores=8.0)
    cell.web(2)
    cell.scale("web", 1, 1)
    cell.pass_time(5)
    cell.restart_control_plane()
    cell.scale("web", 2, 2)
    cell.pass_time(5)
    assert [t.attempt for t in cell["web"].tasks] == [1, 2]


def test_a_changed_array_keeps_its_items_and_later_ones_start_as_the_new_version() -> None:
    cell = UpdateCell(cores=2.0)
    cell.job("many", 1.0, (0, 2), array=Array(5), script=Script(runs_s=4.0))
    cell.pass_time(1)
    cell.apply("many", argv=("y",))
    cell.pass_time(60)
    assert (cell["many"].state, len(cell["many"].tasks)) == (TaskState.SUCCEEDED, 5)
    starts = sorted((c.ref.index, c.spec.argv) for c in cell.engine.sent if isinstance(c, StartTask))
    assert starts == [(i, ("x",) if i < 2 else ("y",)) for i in range(5)]
