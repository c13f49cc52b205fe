"""What happens to jobs and tasks: starts, ends, retries, stops, drains, restarts."""

from __future__ import annotations

import pytest
from cell_harness import Cell, job_spec, machine_spec, refusal, service_spec

from tidecell.cell.invariants import check_event
from tidecell.cell.reconcile import GANG_REPAIR_S
from tidecell.cell.state import encode_state
from tidecell.structs.errors import ConflictError, InvariantError, NotFoundError, RefusedError
from tidecell.structs.job import Band, Cause, Priority, Replicas, Retry, RetryOn, Scaling, TaskState
from tidecell.structs.messages import (
    ControlStarted,
    DesiredProposed,
    JobChanged,
    JobFinished,
    JobStopRequested,
    JobSubmitted,
    MachineSeen,
    ReplicaDrained,
    StartTask,
    StopTask,
    TaskDown,
    TaskNoticed,
    TaskProbed,
    TaskRef,
    TaskUp,
)


def cell_of(cpu: float = 4) -> Cell:
    return Cell().machine("m", cpu)


def stops(cell: Cell, name: str) -> list[StopTask]:
    uid = cell.job(name).uid
    return [c for c in cell.commands if isinstance(c, StopTask) and c.ref.uid == uid]


# ------------------------------------------------------------------------------------- the end of jobs


def test_a_job_whose_task_exits_with_0_has_succeeded_once():
    cell = cell_of()
    cell.submit(job_spec("a"))
    cell.up().down(cell.ref("a"))
    assert cell.job("a").state is TaskState.SUCCEEDED
    assert [(e.uid, e.state) for e in cell.story(JobFinished)] == [("a.1", TaskState.SUCCEEDED)]


def test_a_fixed_job_needs_all_its_replicas_to_succeed():
    cell = cell_of()
    cell.submit(job_spec("a", replicas=3))
    cell.up().down(cell.ref("a", 0))
    cell.down(cell.ref("a", 1))
    assert cell.job("a").live
    cell.down(cell.ref("a", 2))
    assert cell.job("a").state is TaskState.SUCCEEDED


def test_the_first_success_of_an_elastic_job_completes_it_for_all():
    cell = cell_of()
    cell.submit(job_spec("a", replicas=(1, 3)))
    cell.up().down(cell.ref("a", 1))
    assert [c.cause for c in stops(cell, "a")] == [Cause.COMPLETED, Cause.COMPLETED]
    cell.leave()
    assert cell.job("a").state is TaskState.SUCCEEDED


def test_a_retried_replica_of_a_fixed_job_starts_though_others_have_finished():
    cell = cell_of()
    cell.submit(job_spec("a", replicas=3, retry=Retry((RetryOn.ERROR,), 3)))
    cell.up().down(cell.ref("a", 0))
    cell.down(cell.ref("a", 1), exit_code=1)
    cell.after(1.0)
    assert cell.task("a", 1).state is TaskState.STARTING
    assert cell.task("a", 1).attempt == 2


def test_failures_back_off_for_longer_each_time_and_then_end_the_job():
    cell = cell_of()
    cell.submit(job_spec("a", retry=Retry((RetryOn.ERROR,), 2)))
    waits = []
    for _ in range(2):
        cell.up().down(cell.ref("a"), exit_code=3)
        waits.append(cell.task("a").not_before_s - cell.now_s)
        cell.after(waits[-1])
    cell.up().down(cell.ref("a"), exit_code=3)
    assert waits == [0.5, 1.0]
    job = cell.job("a")
    assert (job.state, job.exit_code, job.message) == (TaskState.FAILED, 3, "exit code 3")


@pytest.mark.parametrize(
    ("on", "down", "state"),
    [
        ((RetryOn.INTERRUPTION,), {"exit_code": -9}, TaskState.PENDING),
        ((RetryOn.INTERRUPTION,), {"exit_code": 1}, TaskState.FAILED),
        ((RetryOn.INTERRUPTION,), {"exit_code": -9, "out_of_memory": True}, TaskState.FAILED),
        ((RetryOn.ERROR,), {"exit_code": -9, "out_of_memory": True}, TaskState.PENDING),
        ((RetryOn.ERROR,), {"exit_code": -1, "lost": True}, TaskState.FAILED),
        ((RetryOn.ERROR,), {"error": "no such program"}, TaskState.PENDING),
    ],
)
def test_what_is_retried_depends_on_the_cause(on: tuple[RetryOn, ...], down: dict, state: TaskState):
    cell = cell_of()
    cell.submit(job_spec("a", retry=Retry(on, 3)))
    cell.up().down(cell.ref("a"), **down)
    assert cell.job("a").state is state


def test_a_failed_replica_ends_its_gang():
    cell = cell_of()
    cell.submit(job_spec("a", replicas=3))
    cell.up().down(cell.ref("a", 1), exit_code=2)
    assert [c.cause for c in stops(cell, "a")] == [Cause.FAILED, Cause.FAILED]
    cell.leave()
    job = cell.job("a")
    assert (job.state, job.message) == (TaskState.FAILED, "replica 1: exit code 2")
    assert [t.state for t in job.tasks] == [TaskState.CANCELLED, TaskState.FAILED, TaskState.CANCELLED]


def test_a_killed_process_shows_the_exit_code_of_a_shell():
    cell = cell_of()
    cell.submit(job_spec("a"))
    cell.up().down(cell.ref("a"), exit_code=-15)
    assert (cell.job("a").exit_code, cell.job("a").message) == (143, "killed by signal 15")


def test_max_duration_counts_from_the_first_start_and_ends_in_timeout():
    cell = cell_of()
    cell.submit(job_spec("a", max_duration_s=100.0, grace_period_s=7.0))
    cell.after(50.0).up().after(99.0)
    assert cell.staying("a") == 1
    cell.after(1.0)
    assert [(c.cause, c.grace_s) for c in stops(cell, "a")] == [(Cause.TIMEOUT, 7.0)]
    cell.leave()
    assert (cell.job("a").state, cell.job("a").exit_code) == (TaskState.TIMEOUT, 124)


# ------------------------------------------------------------------------------------- what users do


def test_stop_gives_the_grace_period_and_stop_now_takes_what_is_left_of_it():
    cell = cell_of()
    cell.submit(job_spec("a", grace_period_s=20.0))
    cell.up().stop("a")
    cell.stop("a", immediately=True)
    assert [c.grace_s for c in stops(cell, "a")] == [20.0, 0.0]
    cell.leave()
    assert cell.job("a").state is TaskState.CANCELLED


def test_stop_of_a_waiting_job_is_over_at_once():
    cell = Cell()
    cell.submit(job_spec("a"))
    cell.stop("a")
    assert cell.job("a").state is TaskState.CANCELLED
    assert cell.job("a").message == "stopped on request"


def test_requests_about_what_is_not_there_or_over_are_refused_in_words():
    cell = cell_of()
    cell.submit(job_spec("a"))
    cell.stop("a", immediately=True)
    assert refusal(cell, JobChanged("a", replicas=Replicas(1, 2))).message == "job 'a' is stopping (cancel)"
    cell.leave()
    over = refusal(cell, JobStopRequested("a"))
    assert isinstance(over, ConflictError)
    assert over.message == "job 'a' is CANCELLED and cannot be changed"
    missing = refusal(cell, JobStopRequested("b"))
    assert isinstance(missing, NotFoundError)
    assert missing.render() == "error: no job named 'b'\n\nhint: tide ps -a lists all jobs"


def test_a_name_is_free_again_once_its_job_is_over():
    cell = cell_of()
    cell.submit(job_spec("a"))
    again = refusal(cell, JobSubmitted(job_spec("a")))
    assert again.message == "a job named 'a' is STARTING"
    cell.up().down(cell.ref("a"))
    assert cell.submit(job_spec("a")).uid == "a.2"


def test_a_job_that_no_machine_can_hold_is_refused_with_what_would_fit():
    cell = cell_of(cpu=4)
    error = refusal(cell, JobSubmitted(job_spec("a", cpu=8, memory_gib=32)))
    assert isinstance(error, RefusedError)
    assert error.render() == (
        "error: job 'a' asks for 8 cpu and 32.0 GiB memory per replica; "
        "machine 'm', which comes closest, has 4 cpu and 16384MiB memory\n\n"
        "hint: set resources.cpu to 4 and resources.memory to 16384MiB"
    )


def test_scaling_down_tells_the_highest_replicas_to_leave():
    cell = cell_of()
    cell.submit(job_spec("a", replicas=(1, 4)))
    cell.up().scale("a", 1, 2)
    assert [(e.ref.index, e.cause, e.new_size) for e in cell.story(TaskNoticed)] == [
        (2, Cause.RESIZE, 2),
        (3, Cause.RESIZE, 2),
    ]
    cell.leave()
    assert [t.state for t in cell.job("a").tasks] == [TaskState.RUNNING, TaskState.RUNNING]


def test_scaling_up_starts_more():
    cell = cell_of()
    cell.submit(job_spec("a", replicas=1))
    cell.up().scale("a", 1, 3)
    assert cell.staying("a") == 3


def test_only_an_autoscaled_service_follows_proposals():
    cell = cell_of()
    cell.submit(service_spec("s", replicas=(1, 3), scaling=Scaling()))
    cell.submit(job_spec("j", replicas=(1, 2)))
    assert (cell.staying("s"), cell.staying("j")) == (1, 2)
    cell.send(DesiredProposed("s.1", 9, "load"), DesiredProposed("j.1", 1, "load"))
    assert (cell.job("s").desired, cell.job("j").desired) == (3, 2)


# --------------------------------------------------------------------------------------- dependencies


def test_what_comes_after_starts_when_the_first_has_succeeded():
    cell = cell_of()
    cell.submit(job_spec("a"))
    cell.submit(job_spec("b", after=("a",)))
    assert cell.staying("b") == 0
    cell.up().down(cell.ref("a"))
    assert cell.staying("b") == 1


def test_what_comes_after_a_failure_is_cancelled_and_so_is_what_comes_after_that():
    cell = cell_of()
    cell.submit(job_spec("a"))
    cell.submit(job_spec("b", after=("a",)))
    cell.submit(job_spec("c", after=("b",)))
    cell.up().down(cell.ref("a"), exit_code=1)
    assert (cell.job("b").state, cell.job("b").message) == (
        TaskState.CANCELLED,
        "comes after 'a', which is FAILED",
    )
    assert cell.job("c").message == "comes after 'b', which is CANCELLED"


# ------------------------------------------------------------------------------------ serving replicas


def ready_service(cell: Cell, replicas: int = 2) -> None:
    cell.submit(service_spec("s", replicas=(1, replicas), grace_period_s=30.0))
    cell.up()
    for index in range(replicas):
        cell.send(TaskProbed(cell.ref("s", index), True))


def test_a_ready_replica_is_drained_before_its_process_is_asked_to_end():
    cell = cell_of()
    ready_service(cell)
    cell.scale("s", 1, 1)
    assert cell.task("s", 1).state is TaskState.RESIZING
    assert stops(cell, "s") == []
    cell.after(3.0).send(ReplicaDrained(cell.ref("s", 1)))
    assert [(c.ref.index, c.grace_s) for c in stops(cell, "s")] == [(1, 27.0)]


def test_a_replica_that_does_not_drain_is_ended_when_its_time_is_up():
    cell = cell_of()
    ready_service(cell)
    cell.scale("s", 1, 1)
    cell.after(29.0)
    assert stops(cell, "s") == []
    cell.after(1.0)
    assert [(c.ref.index, c.grace_s) for c in stops(cell, "s")] == [(1, 5.0)]


def test_a_replica_that_never_was_ready_has_nothing_to_drain():
    cell = cell_of()
    cell.submit(service_spec("s", replicas=(1, 2)))
    cell.up().scale("s", 1, 1)
    assert [c.ref.index for c in stops(cell, "s")] == [1]


def test_stop_now_does_not_wait_for_requests():
    cell = cell_of()
    ready_service(cell)
    cell.stop("s", immediately=True)
    assert [c.grace_s for c in stops(cell, "s")] == [0.0, 0.0]


def test_a_service_whose_replica_exits_starts_it_again():
    cell = cell_of()
    ready_service(cell)
    cell.down(cell.ref("s", 0), exit_code=0)
    assert cell.task("s", 0).state is TaskState.PENDING
    assert not cell.task("s", 0).ready
    cell.after(1.0)
    assert cell.task("s", 0).state is TaskState.STARTING


# ------------------------------------------------------------------- machines, agents, control planes


def test_a_lost_machine_ends_its_tasks_and_they_start_elsewhere():
    cell = Cell().machine("m", 1).machine("n", 1)
    cell.submit(job_spec("a"))
    cell.up().lose("m")
    assert cell.task("a").message == "its machine or agent went away"
    cell.after(1.0)
    assert (cell.task("a").machine, cell.task("a").attempt) == ("n", 2)


def test_a_process_that_outlived_its_machine_is_ended_when_it_is_seen_again():
    cell = Cell().machine("m", 1)
    cell.submit(job_spec("a"))
    cell.up()
    old = cell.ref("a")
    cell.lose("m", processes_die=False)
    cell.machine("m", 1)
    assert [c.ref for c in cell.commands if isinstance(c, StopTask)] == [old]
    assert cell.task("a").state is TaskState.PENDING


def test_news_of_a_start_that_is_over_stops_the_process_and_changes_nothing():
    cell = Cell().machine("m", 1)
    cell.submit(job_spec("a"))
    before = encode_state(cell.state)
    outcome = cell.send(TaskUp(TaskRef("a.1", 0, 99), "m"), TaskDown(TaskRef("b.1", 0, 1), "m"))
    assert [type(c) for c in outcome.commands] == [StopTask]
    assert encode_state(cell.state) == before


def test_a_new_control_plane_reissues_what_the_old_one_had_decided():
    cell = Cell().machine("m", 2)
    cell.submit(job_spec("started"))
    cell.up()
    cell.submit(job_spec("placed"))
    cell.stop("started")
    running = tuple(ref for ref in cell.engine.processes if ref.uid == "started.1")
    cell.restart()
    cell.send(ControlStarted())
    outcome = cell.send(MachineSeen(machine_spec("m", 2), running))
    kinds = [(type(c), c.ref.uid) for c in outcome.commands]
    assert kinds == [(StopTask, "started.1"), (StartTask, "placed.1")]
    assert cell.state.epoch == 1


def test_a_task_that_vanished_while_nobody_looked_is_lost():
    cell = Cell().machine("m", 1)
    cell.submit(job_spec("a", retry=Retry((), 0)))
    cell.up()
    cell.send(MachineSeen(machine_spec("m", 1), ()))
    assert (cell.job("a").state, cell.job("a").message) == (
        TaskState.FAILED,
        "its machine or agent went away",
    )


def test_a_broken_gang_starts_again_as_a_whole_when_it_cannot_be_mended():
    cell = Cell().machine("m", 2).machine("n", 2)
    cell.submit(job_spec("gang", cpu=2, replicas=2))
    cell.up().lose("n")
    cell.after(GANG_REPAIR_S - 1)
    assert cell.staying("gang") == 1
    cell.after(2.0)
    assert [(e.cause, e.new_size) for e in cell.story(TaskNoticed)] == [(Cause.RESIZE, 0)]
    cell.leave()
    assert (cell.staying("gang"), cell.job("gang").state) == (0, TaskState.PENDING)
    cell.machine("n", 2)
    assert cell.staying("gang") == 2


def test_a_gang_that_is_asked_to_be_larger_keeps_running_while_there_is_no_room():
    cell = Cell().machine("m", 4)
    cell.submit(job_spec("other", cpu=2))
    cell.submit(job_spec("gang", replicas=(2, 2)))
    cell.up().scale("gang", 4, 4)
    cell.after(10 * GANG_REPAIR_S)
    assert cell.staying("gang") == 2


def test_a_service_keeps_serving_with_fewer_than_its_minimum():
    cell = Cell().machine("m", 2).machine("n", 2)
    cell.submit(service_spec("s", cpu=2, replicas=2))
    cell.up().lose("n")
    cell.after(10 * GANG_REPAIR_S)
    assert cell.staying("s") == 1


# ------------------------------------------------------------------------------------------- invariants


def test_giving_way_to_the_same_band_is_noticed_when_it_is_decided():
    cell = cell_of()
    cell.submit(job_spec("a"))
    cell.submit(job_spec("b"))
    event = TaskNoticed(cell.ref("a"), Cause.PREEMPT, cell.now_s, 0, "b")
    with pytest.raises(InvariantError, match=r"'a\.1' \(batch\) gives way to 'b\.1' \(batch\)"):
        check_event(cell.state, event)


def test_a_band_that_changes_while_a_victim_leaves_is_no_broken_invariant():
    cell = cell_of(cpu=1)
    cell.submit(job_spec("victim"))
    cell.up().submit(service_spec("s"))
    assert cell.task("victim").state is TaskState.RESIZING
    cell.prio("victim", Priority(Band.PRODUCTION))
    assert cell.task("victim").state is TaskState.RESIZING
