"""A simulated cell does what the live one would: the figures of small worlds can be worked out by hand."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from tidecell.sim.recorder import Recorder
from tidecell.sim.report import Figures, figures_of, jain, spread
from tidecell.sim.simple import make_machine
from tidecell.sim.workload import Behaviour, LoadPoint, MachineChange, SimJob, Workload
from tidecell.sim.world import World
from tidecell.structs.job import (
    Band,
    Checkpoint,
    JobSpec,
    Kind,
    Preemption,
    Priority,
    Replicas,
    Retry,
    RetryOn,
    Scaling,
    TaskState,
)
from tidecell.structs.resources import Resources
from tidecell.structs.work import Array

INSTANT = Behaviour(starts_after_s=0.0, leaves_after_s=1.0)
AGAIN = Retry((RetryOn.INTERRUPTION,), 100)


def job(name: str, submit_s: float, work_s: float | None, cpu: int = 1, **rest: object) -> SimJob:
    own = {k: rest.pop(k) for k in ("stop_s", "exit_code") if k in rest}
    spec = JobSpec(name, run="x", resources=Resources(cpu * 1000), **{"retry": AGAIN, **rest})
    return SimJob(spec, submit_s, work_s, **own)


def simulate(
    *jobs: SimJob, machines: int = 1, cpu: int = 4, **more: object
) -> tuple[World, Recorder, Figures]:
    behaviour = more.pop("behaviour", INSTANT)
    fleet = tuple(make_machine(f"m{i}", cpu * 1000, 0) for i in range(machines))
    world = World(Workload(fleet, jobs, **more), behaviour=behaviour, debug=True)
    recorder = Recorder()
    world.observers.append(recorder)
    world.open()
    world.run()
    return world, recorder, figures_of(world, recorder)


def finished(recorder: Recorder) -> dict[str, float | None]:
    return {r.spec.name: r.finished_s for r in recorder.jobs.values()}


def test_jobs_that_fit_run_at_once_and_others_wait_their_turn():
    _, recorder, figures = simulate(job("a", 0, 100, cpu=3), job("b", 10, 50, cpu=3))
    assert finished(recorder) == {"a": 100.0, "b": 150.0}
    assert figures.wait_s == spread([0.0, 90.0])
    assert figures.utilisation.cpu == 75.0
    assert figures.utilisation.memory is None
    assert figures.span_s == 150.0


def test_starting_takes_its_time():
    _, recorder, _ = simulate(job("a", 0, 100), behaviour=Behaviour(starts_after_s=7.0))
    assert finished(recorder) == {"a": 107.0}


def test_an_elastic_job_is_faster_with_more_replicas():
    _, recorder, _ = simulate(job("wide", 0, 100, replicas=Replicas(1, 8)))
    assert finished(recorder) == {"wide": 200.0}  # 4 of 8 replicas have room


def test_an_evicted_job_does_its_work_again_from_its_last_checkpoint():
    urgent = job("urgent", 50, 10, cpu=4, priority=Priority(Band.PRODUCTION))
    for checkpoint, lost_s in ((None, 51.0), (Checkpoint("c", 20.0), 11.0)):
        slow = job("slow", 0, 100, cpu=4, checkpoint=checkpoint)
        _, recorder, figures = simulate(slow, urgent)
        assert figures.work_lost_s == lost_s
        assert figures.evictions_by_band == {"batch": 1}
        assert finished(recorder)["slow"] == 100 + 10 + lost_s


def test_a_shrunk_job_loses_nothing():
    urgent = job("urgent", 50, 50, cpu=2, priority=Priority(Band.PRODUCTION))
    elastic = job("elastic", 0, 100, replicas=Replicas(2, 4), preemption=Preemption.ABOVE_MIN)
    _, recorder, figures = simulate(elastic, urgent)
    assert figures.work_lost_s == 0
    assert finished(recorder)["elastic"] == pytest.approx(126.0, abs=2.0)


def test_a_lost_machine_breaks_a_gang_and_its_return_mends_it():
    gang = job("gang", 0, 100, cpu=4, replicas=Replicas(2, 2))
    spec = make_machine("m1", 4000, 0)
    changes = (MachineChange(30.0, spec, False), MachineChange(40.0, spec, True))
    _, recorder, figures = simulate(gang, machines=2, changes=changes)
    assert figures.tasks_lost_with_machines == 1
    assert figures.work_lost_s == 30.0
    assert finished(recorder) == {"gang": 140.0}


def test_a_service_follows_its_load_by_the_live_autoscaler():
    service = job(
        "chat",
        0,
        None,
        kind=Kind.SERVICE,
        priority=Priority(Band.PRODUCTION),
        preemption=Preemption.NEVER,
        replicas=Replicas(1, 4),
        scaling=Scaling(target=8.0),
        stop_s=2000.0,
    )
    load = (LoadPoint(100.0, "chat", 30.0), LoadPoint(600.0, "chat", 2.0))
    world, recorder, _ = simulate(service, load=load)
    starts = [at_s for at_s, _, _, _ in recorder.starts]
    assert len(starts) == 4
    assert all(100.0 <= at_s < 200.0 for at_s in starts[1:])
    assert recorder.jobs["chat.1"].outcome is TaskState.CANCELLED
    assert not world.state.live_uids


def test_jobs_that_no_machine_could_hold_are_refused_as_live():
    world, _, figures = simulate(job("small", 0, 10), job("huge", 0, 10, cpu=64))
    assert figures.num_refused == 1
    assert world.refusals[0].error.message.startswith("job 'huge' asks for 64 cpu per replica")


def test_a_job_that_fails_again_and_again_ends_as_failed():
    flaky = job("flaky", 0, 10, exit_code=3, retry=Retry((RetryOn.ERROR,), 2))
    _, recorder, _ = simulate(flaky)
    assert recorder.jobs["flaky.1"].outcome is TaskState.FAILED
    assert len(recorder.starts) == 3


def test_a_time_limit_ends_a_job_to_the_second():
    _, recorder, _ = simulate(job("long", 0, 1000, max_duration_s=60.0))
    assert recorder.jobs["long.1"].outcome is TaskState.TIMEOUT
    assert finished(recorder)["long"] == 61.0  # a second to leave


def test_the_same_seed_gives_the_same_figures():
    jobs = [job(f"j{i}", i % 7, 20 + i % 5, cpu=1 + i % 3, team="ab"[i % 2]) for i in range(60)]
    assert simulate(*jobs, machines=3)[2] == simulate(*jobs, machines=3)[2]


def test_batched_inputs_shift_starts_by_no_more_than_the_batch():
    jobs = [job(f"j{i}", 13.0 * i, 30) for i in range(20)]
    _, exact, _ = simulate(*jobs)
    _, batched, _ = simulate(*jobs, behaviour=replace_behaviour(batch_s=10.0))
    for uid, record in exact.jobs.items():
        other = batched.jobs[uid]
        assert 0 <= other.placed_s - record.placed_s <= 30.0


def replace_behaviour(**changes: float) -> Behaviour:
    return Behaviour(**{"starts_after_s": 0.0, "leaves_after_s": 1.0, **changes})


def test_jains_index_is_one_when_all_are_equal_and_one_nth_when_one_has_all():
    assert jain([3.0, 3.0, 3.0]) == pytest.approx(1.0)
    assert jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)


def test_a_spread_takes_the_nearest_rank():
    found = spread(range(1, 101))
    assert found is not None
    assert (found.p50, found.p90, found.p99, found.max) == (50.0, 90.0, 99.0, 100.0)
    assert spread([]) is None


def test_specs_are_submitted_as_they_are():
    one = job("a", 5, 10, labels={"k": "v"})
    _, recorder, _ = simulate(one)
    assert recorder.jobs["a.1"].spec == replace(one.spec)


def test_items_of_an_array_each_take_their_time_and_so_many_run_at_once():
    items = job("sweep", 0, 100, array=Array(5), replicas=Replicas(0, 2))
    _, recorder, figures = simulate(items)
    assert finished(recorder) == {"sweep": 300.0}
    assert figures.work_lost_s == 0
    ratio = figures.fairness.finish_time_ratio
    assert ratio is not None
    assert ratio.max == 1.0
    assert [at_s for at_s, _, _, _ in recorder.starts] == [0.0, 0.0, 100.0, 100.0, 200.0]


def test_an_item_that_gave_way_begins_again():
    items = job("sweep", 0, 100, array=Array(2), replicas=Replicas(0, 1))
    urgent = job("urgent", 150, 10, cpu=4, priority=Priority(Band.PRODUCTION))
    _, recorder, figures = simulate(items, urgent)
    assert finished(recorder) == {"urgent": 161.0, "sweep": 261.0}
    assert figures.work_lost_s == 51.0  # it leaves a second after it is told
