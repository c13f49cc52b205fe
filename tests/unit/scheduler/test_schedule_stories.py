"""Who starts, who waits and why, who gives way: the scheduler through a whole cell."""

from __future__ import annotations

from cell_harness import Cell, job_spec, machine_spec, service_spec

from tidecell.scheduler.schedule import schedule
from tidecell.scheduler.snapshot import Waiting
from tidecell.structs.job import Band, Preemption, Priority, Reason, Replicas, Retry, RetryOn, TaskState
from tidecell.structs.messages import (
    Claim,
    JobChanged,
    JobSubmitted,
    MachineSeen,
    Placement,
    Plan,
    PlanProposed,
    Removal,
    TaskNoticed,
)
from tidecell.structs.resources import Resources


def waiting(cell: Cell, name: str) -> Waiting:
    _, trace = schedule(cell.snapshot())
    return trace.waiting[cell.job(name).uid]


def noticed(cell: Cell) -> list[tuple[str, int, int]]:
    return [(e.ref.uid.split(".")[0], e.ref.index, e.new_size) for e in cell.story(TaskNoticed)]


# ------------------------------------------------------------------------------------------------ gangs


def test_a_gang_starts_whole_or_not_at_all():
    cell = Cell().machine("m", 3)
    cell.submit(job_spec("gang", replicas=4, retry=Retry((RetryOn.NO_CAPACITY,))))
    assert cell.staying("gang") == 0
    cell.machine("n", 1)
    assert cell.staying("gang") == 4


def test_growth_waits_for_its_gang_and_does_not_take_the_room_of_others():
    cell = Cell().machine("m", 1)
    cell.submit(job_spec("gang", replicas=(2, 4), retry=Retry((RetryOn.NO_CAPACITY,))))
    cell.submit(job_spec("small"))
    assert (cell.staying("gang"), cell.staying("small")) == (0, 1)


def test_gangs_start_before_others_grow():
    cell = Cell()
    cell.submit(job_spec("first", replicas=(1, 4)))
    cell.submit(job_spec("second", replicas=(2, 4)))
    cell.machine("m", 4)
    assert (cell.staying("first"), cell.staying("second")) == (2, 2)


def test_the_order_inside_a_band_and_then_age_decide():
    cell = Cell()
    for name, order in (("old", 0), ("young", 0), ("urgent", 5)):
        cell.after(1.0).submit(job_spec(name, order=order))
    cell.machine("m", 2)
    assert [cell.staying(n) for n in ("urgent", "old", "young")] == [1, 1, 0]


def test_an_impossible_gang_keeps_nobody_from_running():
    cell = Cell().machine("m", 2)
    cell.submit(job_spec("huge", replicas=8, order=9, retry=Retry((RetryOn.NO_CAPACITY,))))
    cell.submit(job_spec("small"))
    assert waiting(cell, "huge").reasons == (Reason.NO_MATCHING_MACHINE,)
    assert cell.staying("small") == 1


# ------------------------------------------------------------------------------------------- preemption


def test_what_is_above_min_goes_first_and_only_as_much_as_is_needed():
    cell = Cell().machine("m", 6)
    cell.submit(job_spec("rigid", replicas=2))
    cell.submit(job_spec("elastic", replicas=(1, 4)))
    cell.up().submit(service_spec("chat", cpu=2))
    assert noticed(cell) == [("elastic", 3, 2), ("elastic", 2, 2)]


def test_a_gang_is_evicted_whole_where_shrinking_is_not_enough():
    cell = Cell().machine("m", 4)
    cell.submit(job_spec("gang", replicas=(3, 4)))
    cell.up().submit(service_spec("chat", cpu=3))
    assert sorted(noticed(cell)) == [("gang", i, 0) for i in range(4)]


def test_the_lowest_band_gives_way_first():
    cell = Cell().machine("m", 2)
    cell.submit(job_spec("batch"))
    cell.submit(job_spec("spare", band=Band.BEST_EFFORT))
    cell.up().submit(service_spec("chat"))
    assert noticed(cell) == [("spare", 0, 0)]


def test_the_one_that_loses_least_work_gives_way():
    cell = Cell().machine("m", 2)
    cell.submit(job_spec("long"))
    cell.up().after(100.0).submit(job_spec("short"))
    cell.up().after(5.0).submit(service_spec("chat"))
    assert noticed(cell) == [("short", 0, 0)]


def test_who_was_cheaper_but_does_not_help_stays():
    cell = Cell().machine("m", 2).machine("n", 2)
    cell.submit(job_spec("big", cpu=2))
    cell.submit(job_spec("fixed", preemption=Preemption.NEVER))
    cell.submit(job_spec("cheap", band=Band.BEST_EFFORT))
    cell.up().submit(service_spec("chat", cpu=2))
    assert noticed(cell) == [("big", 0, 0)]


def test_nobody_shrinks_and_grows_in_one_plan():
    cell = Cell().machine("m", 4)
    cell.submit(job_spec("gang", replicas=3, band=Band.BEST_EFFORT, retry=Retry((RetryOn.ERROR,), 9)))
    cell.up().down(cell.ref("gang", 0), exit_code=1)
    cell.now_s += 1.0
    cell.engine.attached["n"] = machine_spec("n", 1)
    # In one tick: a machine where the missing replica would fit, and somebody who needs the others' room.
    cell.send(MachineSeen(machine_spec("n", 1)), JobSubmitted(service_spec("chat", cpu=4)))
    assert sorted(noticed(cell)) == [("gang", 1, 0), ("gang", 2, 0)]
    assert cell.staying("gang") == 0


def test_what_may_not_be_taken_is_not_taken():
    cell = Cell().machine("m", 3)
    cell.submit(job_spec("never", preemption=Preemption.NEVER))
    cell.submit(job_spec("keeps-min", preemption=Preemption.ABOVE_MIN))
    cell.submit(job_spec("young", min_runtime_s=60.0))
    cell.up().submit(service_spec("chat", cpu=1))
    assert noticed(cell) == []
    cell.after(61.0)
    assert noticed(cell) == [("young", 0, 0)]


def test_a_young_replica_above_min_is_not_taken_yet():
    cell = Cell().machine("m", 3)
    cell.submit(job_spec("train", replicas=(1, 3), min_runtime_s=60.0))
    cell.up().after(30.0).submit(service_spec("chat"))
    assert noticed(cell) == []
    cell.after(31.0)
    assert noticed(cell) == [("train", 2, 2)]


def test_production_does_not_give_way_to_production():
    cell = Cell().machine("m", 1)
    cell.submit(service_spec("one", preemption=Preemption.ANY))
    cell.up().submit(service_spec("two", order=50))
    assert noticed(cell) == []


def test_what_is_freed_is_held_for_whom_it_was_freed():
    cell = Cell().machine("m", 2)
    cell.submit(job_spec("a"))
    cell.submit(job_spec("b"))
    cell.up().submit(service_spec("chat", cpu=2))
    cell.leave("a")
    cell.submit(job_spec("thief", band=Band.PRODUCTION, order=99, cpu=1, preemption=Preemption.NEVER))
    assert (cell.staying("thief"), cell.staying("chat")) == (0, 0)
    cell.leave("b")
    assert cell.staying("chat") == 1


def test_room_that_is_being_vacated_anyway_takes_no_further_victim():
    cell = Cell().machine("m", 2)
    cell.submit(job_spec("leaving"))
    cell.submit(job_spec("other"))
    cell.up().stop("leaving")
    cell.submit(service_spec("chat"))
    assert noticed(cell) == [("leaving", 0, 0)]
    assert waiting(cell, "chat").reasons == (Reason.WAITING_FOR_PREEMPTED,)
    cell.leave()
    assert (cell.staying("chat"), cell.staying("other")) == (1, 1)


def test_a_claim_is_given_up_when_its_owner_no_longer_demands_it():
    cell = Cell().machine("m", 4)
    cell.submit(job_spec("low", replicas=4, band=Band.BEST_EFFORT))
    cell.up().submit(job_spec("gang", replicas=(3, 4)))
    assert sorted(cell.state.claims) == [("gang.1", 0), ("gang.1", 1), ("gang.1", 2)]
    cell.ask(JobChanged("gang", replicas=Replicas(1, 4)))
    assert sorted(cell.state.claims) == [("gang.1", 0)]


def test_a_shrunk_job_grows_back_when_the_peak_is_over():
    cell = Cell().machine("m", 4)
    cell.submit(job_spec("train", replicas=(1, 4)))
    cell.up().submit(service_spec("chat", cpu=3))
    cell.leave().up()
    assert (cell.staying("train"), cell.staying("chat")) == (1, 1)
    cell.stop("chat")
    cell.leave()
    assert cell.staying("train") == 4


# --------------------------------------------------------------------------------------------- backfill


def blocked_head(limit_s: float = 0.0) -> Cell:
    cell = Cell().machine("m", 4)
    cell.submit(job_spec("runs", cpu=2, max_duration_s=1000.0, preemption=Preemption.NEVER))
    cell.up().submit(job_spec("head", cpu=4, preemption=Preemption.NEVER))
    cell.submit(job_spec("small", cpu=1, max_duration_s=limit_s))
    return cell


def test_later_work_does_not_delay_the_blocked_head():
    cell = blocked_head()
    assert cell.staying("small") == 0
    assert waiting(cell, "small") == Waiting(
        (Reason.PRIORITY, Reason.WAITING_FOR_CAPACITY),
        "needs 1 cpu; what is free is held for 'head', which goes first",
        1,
        "head",
    )


def test_later_work_that_ends_before_the_head_can_start_runs_meanwhile():
    assert blocked_head(limit_s=500.0).staying("small") == 1
    assert blocked_head(limit_s=5000.0).staying("small") == 0


# ---------------------------------------------------------------------------------------- reasons, plans


def test_the_back_off_of_one_job_is_not_told_of_another():
    cell = Cell().machine("m", 2)
    cell.submit(job_spec("runs", cpu=1))
    cell.submit(job_spec("fails", replicas=(1, 3), retry=Retry((RetryOn.ERROR,), 9)))
    cell.submit(job_spec("waits"))
    cell.up().down(cell.ref("fails"), exit_code=1)
    assert waiting(cell, "fails").reasons[0] is Reason.BACKOFF
    assert all(
        "failure" not in w.detail
        for uid, w in schedule(cell.snapshot())[1].waiting.items()
        if uid != "fails.1"
    )


def test_a_gang_whose_members_are_still_leaving_says_so():
    cell = Cell().machine("m", 4)
    cell.submit(job_spec("gang", replicas=4))
    cell.up().submit(service_spec("chat", cpu=1))
    cell.down(cell.ref("gang", 0))
    assert waiting(cell, "gang") == Waiting(
        (Reason.WAITING_FOR_CAPACITY,), "its replicas that were told to leave have not left yet", 1
    )


def test_a_type_of_accelerator_is_matched_and_each_has_one_holder():
    cell = Cell().machine("a", gpus=["A100"]).machine("h", gpus=["H100", "H100"])
    cell.submit(job_spec("x", gpus=1, replicas=2, accelerator_type="h100"))
    assert [(t.machine, t.accelerators) for t in cell.job("x").tasks] == [("h", (0,)), ("h", (1,))]


# --------------------------------------------------------------------------------------- stale plans


def test_a_plan_that_no_longer_holds_is_dropped():
    cell = Cell().machine("m", 2)
    cell.submit(job_spec("a", replicas=2))
    cell.up()
    cell.submit(job_spec("b", band=Band.PRODUCTION, preemption=Preemption.NEVER))
    cell.leave().up()  # b took the place of a
    before = cell.state.seq
    one = Resources(1000)
    for plan in (
        Plan(placements=(Placement("a.1", 0, "m", (), one), Placement("a.1", 0, "m", (), one))),
        Plan(placements=(Placement("a.1", 0, "nowhere", (), one), Placement("a.1", 1, "m", (), one))),
        Plan(removals=(Removal("b.1", 0, "m", "a.1", 0),), claims=(Claim("a.1", 0, "m", one),)),
        Plan(claims=(Claim("a.1", 0, "m", Resources(2000)),)),
    ):
        cell.send(PlanProposed(plan))
    assert cell.state.seq == before


def test_a_plan_may_not_take_a_gang_below_its_minimum_nor_free_room_for_nobody():
    cell = Cell().machine("m", 2)
    cell.submit(job_spec("gang", replicas=2))
    cell.up()
    cell.send(MachineSeen(machine_spec("away", 0)))
    cell.submit(job_spec("by", cpu=1, band=Band.MONITORING, preemption=Preemption.NEVER))
    assert sorted(noticed(cell)) == [("gang", 0, 0), ("gang", 1, 0)]  # its own plan takes it whole
    cell = Cell().machine("m", 3)
    cell.submit(job_spec("gang", replicas=2, preemption=Preemption.ABOVE_MIN))
    cell.submit(job_spec("held", preemption=Preemption.NEVER))
    cell.up()
    cell.submit(job_spec("by", band=Band.MONITORING))
    claims = (Claim("by.1", 0, "m", Resources(1000)),)
    half = Plan(removals=(Removal("gang.1", 0, "m", "by.1", 1),), claims=claims)
    never = Plan(removals=(Removal("held.1", 0, "m", "by.1", 0),), claims=claims)
    in_vain = Plan(removals=(Removal("gang.1", 0, "m", "by.1", 0), Removal("gang.1", 1, "m", "by.1", 0)))
    for plan in (half, never, in_vain):
        cell.send(PlanProposed(plan))
    assert noticed(cell) == []
    assert [t.state for t in cell.job("gang").tasks] == [TaskState.RUNNING] * 2


def test_a_plan_that_names_a_task_twice_is_dropped():
    cell = Cell().machine("m", 4)
    cell.submit(job_spec("first"))
    cell.submit(job_spec("then", replicas=2, after=("first",)))  # waits, though there is room
    one = Resources(1000)
    cell.send(
        PlanProposed(
            Plan(placements=(Placement("then.1", 0, "m", (), one), Placement("then.1", 0, "m", (), one)))
        )
    )
    assert cell.staying("then") == 0


def test_nothing_is_held_that_will_not_be_there():
    cell = Cell().machine("m", 2)
    cell.submit(job_spec("runs", cpu=2, preemption=Preemption.NEVER))
    cell.up().submit(job_spec("by", band=Band.MONITORING))
    cell.send(PlanProposed(Plan(claims=(Claim("by.1", 0, "m", Resources(1000)),))))
    assert cell.state.claims == {}


def test_a_band_can_be_raised_in_place():
    cell = Cell().machine("m", 1)
    cell.submit(job_spec("runs"))
    cell.up().submit(job_spec("urgent"))
    assert cell.staying("urgent") == 0
    cell.prio("urgent", Priority(Band.PRODUCTION))
    cell.leave()
    assert cell.staying("urgent") == 1
