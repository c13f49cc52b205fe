"""A plan made on an older picture of the cell does not break what a job says of domains."""

from __future__ import annotations

from typing import Any

from cell_harness import Cell, job_spec

from tidecell.cell.domains import is_even
from tidecell.cell.verify import verify_plan
from tidecell.structs.job import JobSpec, Retry, RetryOn, TaskState
from tidecell.structs.messages import JobHoldRequested, Placement, Plan
from tidecell.structs.placement import Spread, Topology, parse_condition
from tidecell.structs.work import Array


def racks(**cores: float) -> Cell:
    """One machine a rack."""
    cell = Cell()
    for rack, cpu in cores.items():
        cell.machine(f"{rack}-0", cpu, rack=rack)
    return cell


def spreading(name: str, max_skew: int = 1, replicas: tuple[int, int] = (1, 4), **more: Any) -> JobSpec:
    return job_spec(name, replicas=replicas, spread=Spread("rack", max_skew), **more)


def placed(cell: Cell, name: str, *machines: str) -> list[str]:
    """Propose these machines for the waiting replicas; return what is left of it."""
    job = cell.job(name)
    waits = [t.index for t in job.tasks if t.state is TaskState.PENDING]
    plan = Plan(
        tuple(
            Placement(job.uid, i, m, (), job.spec.request(i)) for i, m in zip(waits, machines, strict=False)
        )
    )
    return [p.machine for p in verify_plan(cell.state, plan, cell.now_s).placed]


def test_a_replica_that_would_exceed_the_skew_is_left_out() -> None:
    cell = racks(r1=4, r2=1)
    cell.submit(spreading("even"))
    assert cell.staying("even") == 3  # two and one: a fourth in r1 would be two more than r2 has
    assert placed(cell, "even", "r1-0") == []
    cell.submit(job_spec("free", replicas=(1, 1)))  # there is room: it was the skew that forbade it
    assert cell.staying("free") == 1


def test_a_plan_made_while_a_rack_was_away_is_dropped_when_it_is_back() -> None:
    cell = racks(r1=4, r2=1)
    cell.submit(spreading("even", replicas=(1, 3)))
    cell.lose("r2-0")
    cell.after(3600)
    assert [t.machine for t in cell.job("even").staying_tasks()] == ["r1-0"] * 3
    wants_r2 = (parse_condition("rack = r2"),)
    cell.submit(job_spec("squatter", constraints=wants_r2, retry=Retry((RetryOn.NO_CAPACITY,))))
    cell.machine("r2-0", 1, rack="r2")
    cell.scale("even", 1, 4)
    assert cell.staying("squatter") == 1
    assert placed(cell, "even", "r1-0") == []  # a fourth there, and r2 has none


def test_domains_that_take_nothing_new_need_not_be_filled() -> None:
    cell = racks(r1=4, r2=1)
    cell.submit(spreading("even"))
    cell.lose("r2-0")
    cell.after(3600)
    assert cell.staying("even") == 4  # r1 is the only rack there is


def test_replicas_of_one_plan_are_counted_one_after_the_other() -> None:
    cell = racks(r1=4, r2=4)
    job = cell.submit(spreading("even", hold=True, cpu=0.1))

    def even(*machines: str) -> bool:
        request = job.spec.request(0)
        group = [Placement(job.uid, i, m, (), request) for i, m in enumerate(machines)]
        return is_even(cell.state, job, group, (), frozenset())

    assert even("r1-0", "r2-0", "r1-0", "r2-0")
    assert even("r2-0", "r1-0", "r1-0")
    assert not even("r1-0", "r1-0", "r2-0", "r2-0")
    assert not even("r1-0", "nowhere")


def test_the_items_of_an_array_are_spread_though_each_is_placed_by_itself() -> None:
    cell = racks(r1=4, r2=4)
    cell.submit(job_spec("sweep", replicas=(1, 4), array=Array(4), spread=Spread("rack", 1)))
    assert sorted(t.machine for t in cell.job("sweep").staying_tasks()) == ["r1-0", "r1-0", "r2-0", "r2-0"]


def test_the_items_of_an_array_that_must_be_in_one_rack_are() -> None:
    cell = racks(r1=2, r2=2)
    cell.submit(job_spec("sweep", replicas=(1, 4), array=Array(4), topology=Topology("rack")))
    homes = {t.machine for t in cell.job("sweep").staying_tasks()}
    assert len(homes) == 1
    other = ({"r1-0", "r2-0"} - homes).pop()
    assert placed(cell, "sweep", other) == []


def test_items_that_one_plan_starts_count_for_those_after_them() -> None:
    cell = racks(r1=4, r2=4)
    three = {
        "replicas": (1, 3),
        "array": Array(3),
        "begin_s": 1e12,
    }  # nothing is placed but by the plans below
    cell.submit(job_spec("even", spread=Spread("rack", 1), **three))
    cell.submit(job_spec("near", topology=Topology("rack"), **three))
    assert placed(cell, "even", "r1-0", "r1-0", "r2-0") == ["r1-0", "r2-0"]
    assert placed(cell, "near", "r1-0", "r2-0", "r1-0") == ["r1-0", "r1-0"]


def test_a_job_that_was_held_since_the_plan_was_made_does_not_start() -> None:
    cell = racks(r1=4)
    cell.submit(job_spec("later", hold=True))
    assert placed(cell, "later", "r1-0") == []
    cell.ask(JobHoldRequested("later", False))
    assert cell.staying("later") == 1
