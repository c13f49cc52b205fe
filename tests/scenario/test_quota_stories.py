"""Stories of teams that share a cell: quota, lending, taking back, fair share."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pytest
from testcell import StoryCell

from tidecell.cell.snapshot import take_snapshot
from tidecell.client.policy import parse_policy
from tidecell.client.views import WhyView
from tidecell.engines.fake import Script
from tidecell.scheduler.explain import explain_why, render_why
from tidecell.server.views import queue_places
from tidecell.structs.errors import RefusedError
from tidecell.structs.job import Band, Preemption, Priority, Reason, Replicas, Retry, RetryOn, TaskState
from tidecell.structs.lifecycle import DrainRequested
from tidecell.structs.messages import JobChanged, MachineSeen, PolicyProposed, TaskNoticed, TaskPlaced
from tidecell.structs.resources import Resources
from tidecell.structs.tenant import Policy, Quota, Team

TWO_TEAMS = """
teams:
  red: {cohort: sea, quota: {batch: {cpu: 2}, production: {cpu: 1}}}
  blue: {cohort: sea, quota: {batch: {cpu: 2}}}
"""


def cell_with(policy: str, cores: float = 16.0) -> StoryCell:
    cell = StoryCell(cores=cores)
    cell.tell(PolicyProposed(parse_policy(policy, "quota.yaml")))
    return cell


def why(cell: StoryCell, name: str) -> WhyView:
    return explain_why(take_snapshot(cell.runtime.state, cell.now_s), cell[name].uid, cell.now_s)


def reasons(cell: StoryCell, name: str) -> tuple[Reason, ...]:
    return cell.runtime.trace.waiting[cell[name].uid].reasons


def detail(cell: StoryCell, name: str) -> str:
    return cell.runtime.trace.waiting[cell[name].uid].detail


def test_without_a_policy_everything_is_allowed() -> None:
    cell = StoryCell(cores=4.0)
    cell.job("any", 4.0, team="nobody-knows")
    cell.pass_time(1)
    assert cell.running("any") == 1


def test_what_quota_can_never_cover_is_refused_at_once_with_numbers_and_a_fix() -> None:
    cell = cell_with(TWO_TEAMS)
    with pytest.raises(RefusedError) as caught:
        cell.job("big", 1.0, (5, 5), team="red")
    assert caught.value.reason == Reason.EXCEEDS_MAX_QUOTA
    assert caught.value.message == (
        "job 'big' asks for 5 cpu (5 replicas together); "
        "team 'red' may use at most 4 cpu at batch (2 cpu of its own)"
    )
    assert caught.value.hint == (
        "set replicas.min to 4 or fewer, or priority: best-effort (over-sold, no quota needed)"
    )
    cell.job("big", 1.0, (4, 5), team="red")  # the fix works
    cell.pass_time(1)
    assert cell.running("big") == 4


def test_a_band_without_quota_is_refused_and_the_one_with_quota_is_named() -> None:
    cell = cell_with(TWO_TEAMS)
    with pytest.raises(RefusedError) as caught:
        cell.job("urgent", 1.0, team="blue", priority=Priority(Band.PRODUCTION))
    assert "team 'blue' has no quota at production; it has quota at batch" in caught.value.message
    assert caught.value.hint.startswith("set priority: batch")


def test_an_unknown_team_is_refused_with_the_nearest_name() -> None:
    cell = cell_with(TWO_TEAMS)
    with pytest.raises(RefusedError) as caught:
        cell.job("typo", 1.0, team="bleu")
    assert caught.value.hint == "did you mean 'blue'?"


def test_best_effort_needs_no_quota() -> None:
    cell = cell_with(TWO_TEAMS)
    cell.job("spare", 10.0, team="blue", priority=Priority(Band.BEST_EFFORT))
    cell.pass_time(1)
    assert cell.running("spare") == 1


def test_the_rest_waits_for_quota_and_starts_when_there_is_some() -> None:
    cell = cell_with("teams: {solo: {quota: {batch: {cpu: 2}}}}")
    cell.job("first", 2.0, team="solo", script=Script(runs_s=5.0))
    cell.job("second", 1.0, team="solo")
    assert reasons(cell, "second") == (Reason.WAITING_FOR_QUOTA,)
    assert detail(cell, "second") == "needs 1 cpu; team 'solo' uses 2 cpu of its 2 cpu at batch"
    cell.pass_time(7)
    assert cell.running("second") == 1


def test_a_team_borrows_what_its_cohort_does_not_use_and_growth_does_too() -> None:
    cell = cell_with(TWO_TEAMS)
    cell.job("wide", 1.0, (1, 8), team="blue")
    cell.pass_time(1)
    assert cell.running("wide") == 4
    assert reasons(cell, "wide") == (Reason.WAITING_FOR_QUOTA,)


def test_an_owner_takes_its_quota_back_from_replicas_above_the_borrowers_own() -> None:
    cell = cell_with(TWO_TEAMS)
    cell.job("wide", 1.0, (1, 8), team="blue", priority=Priority(Band.BATCH, 9))
    cell.pass_time(1)
    cell.job("mine", 1.0, (2, 2), team="red")
    cell.pass_time(2)
    assert (cell.running("mine"), cell.running("wide")) == (2, 2)
    assert [e.by for e in cell.happened(TaskNoticed)] == ["mine", "mine"]
    cell.pass_time(20)
    assert len(cell.happened(TaskNoticed)) == 2  # the system rests


def test_quota_is_free_only_when_the_victim_has_stopped() -> None:
    cell = cell_with(TWO_TEAMS)
    cell.job("wide", 1.0, (1, 8), team="blue", script=Script(leaves_after_s=6.0))
    cell.pass_time(1)
    cell.job("mine", 2.0, team="red")
    cell.pass_time(4)
    assert cell.running("mine") == 0  # there is room in the cell, but blue's replicas still hold the quota
    assert reasons(cell, "mine") == (Reason.WAITING_FOR_PREEMPTED,)
    cell.pass_time(4)
    assert cell.running("mine") == 1


def test_integers_never_evict_and_a_team_within_its_own_is_left_alone() -> None:
    cell = cell_with(TWO_TEAMS)
    cell.job("theirs", 1.0, (2, 2), team="blue")
    cell.job("ours", 1.0, (2, 2), team="red")
    cell.pass_time(1)
    cell.job("greedy", 1.0, (2, 2), team="red", priority=Priority(Band.BATCH, 100))
    cell.pass_time(5)
    assert cell.happened(TaskNoticed) == []
    assert reasons(cell, "greedy") == (Reason.WAITING_FOR_QUOTA,)


def test_a_lending_limit_keeps_a_part_at_home() -> None:
    cell = cell_with("""
teams:
  red: {cohort: sea, quota: {batch: {cpu: 4, lend: {cpu: 1}}}}
  blue: {cohort: sea, quota: {batch: {cpu: 1}}}
""")
    cell.job("wide", 1.0, (1, 8), team="blue")
    cell.pass_time(1)
    assert cell.running("wide") == 2


def test_a_borrowing_limit_holds() -> None:
    cell = cell_with("""
teams:
  red: {cohort: sea, quota: {batch: {cpu: 6}}}
  blue: {cohort: sea, quota: {batch: {cpu: 1, borrow: {cpu: 2}}}}
""")
    cell.job("wide", 1.0, (1, 8), team="blue")
    cell.pass_time(1)
    assert cell.running("wide") == 3
    assert "3 cpu with all it may borrow" in detail(cell, "wide")


def test_what_cannot_be_taken_back_may_not_borrow() -> None:
    cell = cell_with(TWO_TEAMS)
    with pytest.raises(RefusedError, match="what cannot be taken back may not be borrowed"):
        cell.job("stuck", 3.0, team="blue", preemption=Preemption.NEVER)
    with pytest.raises(RefusedError, match="at most 1 cpu at production"):
        cell.job("serve", 2.0, team="red", priority=Priority(Band.PRODUCTION))
    cell.job("half", 1.0, (2, 6), team="blue", preemption=Preemption.ABOVE_MIN)
    cell.pass_time(1)
    assert cell.running("half") == 4  # what is above min may borrow: it can be taken
    cell.job("mine", 2.0, team="red")
    cell.pass_time(3)
    assert (cell.running("half"), cell.running("mine")) == (2, 1)


def test_quota_that_ends_admits_nothing_more_and_what_runs_goes_on() -> None:
    cell = StoryCell(cores=8.0)
    text = "teams: {solo: {quota: {batch: {cpu: 4, period: 60s, renew: false}}}}"
    policy = parse_policy(text, "q")
    cell.tell(PolicyProposed(policy))
    cell.job("early", 2.0, team="solo")
    cell.job("next", 4.0, team="solo")
    cell.pass_time(61)
    cell.stop("early")
    cell.pass_time(3)
    assert cell.running("next") == 0
    assert "has no quota at batch any more: it has ended" in detail(cell, "next")
    cell.tell(PolicyProposed(policy))  # to apply it again is to renew it
    cell.pass_time(1)
    assert cell.running("next") == 1


def test_a_period_renews_by_itself() -> None:
    cell = cell_with("teams: {solo: {quota: {batch: {cpu: 4, period: 60s}}}}")
    cell.pass_time(200)
    cell.job("late", 2.0, team="solo")
    cell.pass_time(1)
    assert cell.running("late") == 1


def test_a_running_job_changes_its_band_only_if_quota_there_covers_it() -> None:
    cell = cell_with(TWO_TEAMS)
    cell.job("up", 1.0, (1, 1), team="red")
    cell.job("too", 1.0, (1, 1), team="red")
    cell.pass_time(1)
    cell.tell(JobChanged("up", priority=Priority(Band.PRODUCTION)))
    with pytest.raises(RefusedError, match="cannot become production while it runs"):
        cell.tell(JobChanged("too", priority=Priority(Band.PRODUCTION)))


def test_scaling_up_beyond_all_quota_is_refused() -> None:
    cell = cell_with(TWO_TEAMS)
    cell.job("grow", 1.0, (1, 1), team="red")
    with pytest.raises(RefusedError, match="at most 4 cpu"):
        cell.tell(JobChanged("grow", replicas=Replicas(5, 5)))


def test_a_job_without_a_team_is_of_the_default_team() -> None:
    cell = cell_with("teams: {default: {quota: {batch: {cpu: 1}}}}")
    cell.job("one", 1.0)
    cell.job("two", 1.0)
    cell.pass_time(1)
    assert (cell.running("one"), cell.running("two")) == (1, 0)


FAIR = """
teams:
  red: {quota: {batch: {}}, weight: 1}
  blue: {quota: {batch: {}}, weight: 2}
"""


def test_the_team_with_the_least_dominant_share_goes_first_by_weight() -> None:
    cell = cell_with(FAIR, cores=6.0)
    cell.job("holder", 6.0, team="red", script=Script(runs_s=3.0))
    cell.pass_time(1)
    for number in range(6):
        cell.job(f"red-{number}", 1.0, team="red")
    for number in range(6):
        cell.job(f"blue-{number}", 1.0, team="blue")
    cell.pass_time(5)
    assert sum(cell.running(f"blue-{n}") for n in range(6)) == 4
    assert sum(cell.running(f"red-{n}") for n in range(6)) == 2


def test_one_team_keeps_first_come_first_served() -> None:
    cell = cell_with("teams: {solo: {quota: {batch: {}}}}", cores=1.0)
    for name in ("c", "a", "b"):
        cell.job(name, 1.0, team="solo", script=Script(runs_s=1.0))
    cell.pass_time(8)
    placed = [e.ref.uid for e in cell.happened(TaskPlaced)]
    assert placed == ["c.1", "a.1", "b.1"]


def test_dominant_share_counts_the_scarcest_component() -> None:
    """Ghodsi et al., NSDI 2011, figure 1: 9 cpu and 18 GB; <1, 4> against <3, 1> end at 3 and 2 tasks."""
    cell = cell_with(FAIR.replace("weight: 2", "weight: 1"), cores=1.0)
    spec = cell.engine.machines[0]
    big = type(spec)("m0", Resources(9000, 18 << 30))
    cell.engine.machines[0] = big
    cell.tell(MachineSeen(big))
    for n in range(5):
        cell.job(f"a{n}", team="red", resources=Resources(1000, 4 << 30))
        cell.job(f"b{n}", team="blue", resources=Resources(3000, 1 << 30))
    running = [n for n in cell.runtime.state.jobs.values() if n.state is not TaskState.PENDING]
    assert sum(j.spec.team == "red" for j in running) == 3
    assert sum(j.spec.team == "blue" for j in running) == 2


def test_why_names_who_borrows_own_use_and_fixes_that_are_true() -> None:
    cell = cell_with(TWO_TEAMS)
    cell.job("mine", 2.0, team="red")
    cell.job("wide", 1.0, (1, 2), team="blue")
    cell.pass_time(1)
    cell.job("late", 2.0, team="red")
    view = why(cell, "late")
    assert view.reasons == (Reason.WAITING_FOR_QUOTA,)
    assert view.detail == (
        "needs 2 cpu; team 'red' uses 2 cpu of its 2 cpu at batch; cohort 'sea' has no more to lend"
    )
    assert [(h.job, h.team) for h in view.holders] == [("mine", "red")]
    assert (view.position, view.num_waiting, view.team_position) == (1, 1, 1)
    commands = {f.command for f in view.fixes}
    assert "tide prio late best-effort" in commands
    assert "tide stop mine" in commands
    text = render_why(view)
    assert "position  1 of 1 that wait, 1 of team red" in text
    assert "mine (batch, team red" in text


def test_why_says_when_a_quota_begins() -> None:
    cell = StoryCell(cores=8.0)
    quota = Quota({"cpu": 4000}, from_s=cell.now_s + 600)
    cell.tell(PolicyProposed(Policy((Team("solo", {"batch": quota}),))))
    cell.job("early", 2.0, team="solo")
    view = why(cell, "early")
    assert "has no quota at batch yet: it has not begun" in view.detail
    assert view.expected_s == cell.now_s + 600
    cell.pass_time(601)
    assert cell.running("early") == 1


def test_the_queue_counts_places_among_all_and_in_the_team() -> None:
    cell = cell_with(TWO_TEAMS)
    cell.job("full-red", 2.0, team="red")
    cell.job("full-blue", 2.0, team="blue")
    for name, team in (("r1", "red"), ("b1", "blue"), ("r2", "red")):
        cell.job(name, 1.0, team=team)
    state = cell.runtime.state
    places = queue_places(state, cell.runtime.trace)
    assert sorted(p for p, _ in places.values()) == [1, 2, 3]
    assert [places[cell[n].uid][1] for n in ("r1", "b1", "r2")] == [1, 1, 2]


def test_a_priority_that_quota_blocks_is_refused_by_quota_first() -> None:
    cell = cell_with("teams: {solo: {quota: {batch: {cpu: 9}}}}", cores=2.0)
    cell.tell(DrainRequested("m0", 0.0, cell.now_s + 60, who="ana"))
    cell.job("small", 1.0, team="solo")
    assert reasons(cell, "small") == (Reason.NO_MATCHING_MACHINE,)
    refused = {f.change: f.effect for f in why(cell, "small").no_help}
    assert refused["priority batch -> production"] == "needs 1 cpu; team 'solo' has no quota at production"
    assert refused["priority batch -> batch+10"] == "no machine that takes new work is large enough"


def test_quota_is_the_reason_even_where_no_machine_could_hold_the_job() -> None:
    cell = cell_with("teams: {solo: {quota: {batch: {cpu: 9}}}}", cores=4.0)
    cell.job("first", 1.0, (3, 3), team="solo")
    waits = Retry((RetryOn.NO_CAPACITY,))
    cell.job("huge", 8.0, team="solo", retry=waits)
    assert reasons(cell, "huge") == (Reason.WAITING_FOR_QUOTA,)
    view = why(cell, "huge")
    assert view.reasons[0] is Reason.WAITING_FOR_QUOTA
    assert "no machine is large enough" not in {f.effect for f in view.no_help}
