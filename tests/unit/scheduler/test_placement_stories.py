"""Where replicas go: conditions, preferences, domains, alternatives, shares of accelerators."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from cell_harness import Cell, job_spec, service_spec
from msgspec.structs import replace

from tidecell.scheduler.board import Board
from tidecell.scheduler.options import Options
from tidecell.scheduler.schedule import schedule
from tidecell.scheduler.snapshot import TaskView, Waiting
from tidecell.structs.job import Band, Reason, Retry, RetryOn, Shape
from tidecell.structs.placement import Preference, Spread, Topology, parse_condition
from tidecell.structs.resources import Resources

WAITS = Retry((RetryOn.NO_CAPACITY,))  # accepted though nothing could hold it yet


def when(*lines: str) -> dict[str, Any]:
    return {"constraints": tuple(parse_condition(line) for line in lines)}


def preferring(**weights: int) -> dict[str, Any]:
    return {"prefer": tuple(Preference(parse_condition(f"rack = {rack}"), w) for rack, w in weights.items())}


def racks(sizes: dict[str, list[float]]) -> Cell:
    """A cell of racks with machines of so many cores: machine r1-0 is the first of rack r1."""
    cell = Cell()
    for rack, cores in sizes.items():
        for i, cpu in enumerate(cores):
            cell.machine(f"{rack}-{i}", cpu, rack=rack)
    return cell


def machines_of(cell: Cell, name: str) -> list[str]:
    return [t.machine for t in cell.job(name).tasks if t.machine]


def racks_of(cell: Cell, name: str) -> dict[str, int]:
    return dict(Counter(m.split("-")[0] for m in machines_of(cell, name)))


def waiting(cell: Cell, name: str) -> Waiting:
    return schedule(cell.snapshot())[1].waiting[cell.job(name).uid]


# ------------------------------------------------------------------------------------------- conditions


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ("rack = r2", {"r2"}),
        ("rack in (r1, r3)", {"r1", "r3"}),
        ("rack != r1", {"r2", "r3"}),
        ("rack not in (r1, r2)", {"r3"}),
        ("name ~ R3", {"r3"}),
        ("name !~ r3", {"r1", "r2"}),
        ("cpu >= 3", {"r3"}),
        ("cpu < 3", {"r1", "r2"}),
        ("memory > 15GiB", {"r1", "r2", "r3"}),
    ],
)
def test_only_machines_that_meet_the_conditions_are_used(line: str, where: set[str]):
    cell = racks({"r1": [2], "r2": [2], "r3": [3]})
    cell.submit(job_spec("a", replicas=(1, 9), **when(line)))
    assert set(racks_of(cell, "a")) == where


def test_a_machine_without_the_attribute_meets_only_negated_conditions():
    cell = Cell().machine("plain").machine("racked", rack="r1")
    cell.submit(job_spec("in", **when("rack = r1")))
    cell.submit(job_spec("out", **when("rack != r1")))
    cell.submit(job_spec("large", retry=WAITS, **when("ssd >= 1TB")))
    assert [machines_of(cell, n) for n in ("in", "out", "large")] == [["racked"], ["plain"], []]


def test_a_job_may_ask_that_an_attribute_is_there_or_not():
    cell = Cell().machine("plain").machine("racked", rack="r1")
    cell.submit(job_spec("there", **when("rack exists")))
    cell.submit(job_spec("not-there", **when("rack absent")))
    cell.submit(job_spec("neither", retry=WAITS, **when("rack exists", "rack absent")))
    assert [machines_of(cell, n) for n in ("there", "not-there", "neither")] == [["racked"], ["plain"], []]
    assert "rack exists excludes 1 of 2 machines" in waiting(cell, "neither").detail


def test_all_conditions_hold_together():
    cell = Cell().machine("a", rack="r1", zone="z1").machine("b", rack="r1", zone="z2")
    cell.submit(job_spec("x", replicas=2, **when("rack = r1", "zone = z2")))
    assert machines_of(cell, "x") == ["b", "b"]


def test_what_is_preferred_comes_first_and_room_decides_after_that():
    cell = racks({"r1": [2], "r2": [2], "r3": [2]})
    cell.submit(job_spec("x", replicas=5, **preferring(r3=1, r2=5)))
    assert racks_of(cell, "x") == {"r2": 2, "r3": 2, "r1": 1}


def test_a_negative_weight_keeps_away_while_there_is_other_room():
    cell = racks({"r1": [2], "r2": [2]})
    cell.submit(job_spec("x", replicas=3, **preferring(r1=-1)))
    assert racks_of(cell, "x") == {"r2": 2, "r1": 1}


def test_machines_that_hold_the_data_come_first():
    cell = Cell().machine("a").machine("b", holds=["c4", "vocab"]).machine("c", holds=["c4"])
    cell.submit(job_spec("tokenize", cpu=3, replicas=3, data=("c4", "vocab")))
    assert machines_of(cell, "tokenize") == ["b", "c", "a"]


def test_a_machine_on_which_it_failed_is_used_last():
    cell = Cell().machine("a", 1)
    cell.submit(job_spec("x", retry=Retry((RetryOn.ERROR,), 9, backoff_s=1.0)))
    cell.machine("b", 4).machine("c", 2)
    cell.up().down(cell.ref("x"), exit_code=1)
    cell.after(5.0)
    assert machines_of(cell, "x") == ["c"]


# --------------------------------------------------------------------------------------------- topology


def test_a_gang_goes_into_one_rack_the_tightest_that_holds_it():
    cell = racks({"r1": [4, 4], "r2": [3, 2], "r3": [4]})
    cell.submit(job_spec("gang", replicas=5, topology=Topology("rack")))
    assert racks_of(cell, "gang") == {"r2": 5}


def test_a_gang_that_no_rack_holds_now_waits_and_says_so():
    cell = racks({"r1": [4], "r2": [4]})
    cell.submit(job_spec("other", cpu=2, **when("rack = r1")))
    cell.submit(job_spec("another", cpu=2, **when("rack = r2")))
    cell.submit(job_spec("gang", replicas=4, topology=Topology("rack")))
    assert waiting(cell, "gang") == Waiting(
        (Reason.WAITING_FOR_CAPACITY, Reason.TOPOLOGY_PLACEMENT_FAILED),
        "needs 4 x 1 cpu together in one rack; room now: r1: 2, r2: 2",
        4,
    )


def test_growth_and_repair_stay_in_the_gangs_rack():
    cell = racks({"r1": [2], "r2": [4]})
    cell.submit(job_spec("filler", cpu=2, **when("rack = r2")))
    cell.submit(job_spec("gang", replicas=(2, 4), topology=Topology("rack")))
    assert racks_of(cell, "gang") == {"r1": 2}
    cell.stop("filler", immediately=True)
    cell.leave()
    assert racks_of(cell, "gang") == {"r1": 2}


def test_a_preferred_rack_gives_way_to_the_fewest():
    cell = racks({"r1": [2], "r2": [2], "r3": [1]})
    cell.submit(job_spec("gang", replicas=3, topology=Topology("rack", required=False)))
    assert racks_of(cell, "gang") == {"r1": 2, "r2": 1}


def test_production_clears_one_rack_not_a_part_of_each():
    cell = racks({"r1": [2, 2], "r2": [2, 2]})
    for i in range(4):
        cell.after(1.0).submit(job_spec(f"low{i}", cpu=2))
    cell.up().after(10.0).submit(service_spec("chat", cpu=2, replicas=2, topology=Topology("rack")))
    cell.leave()
    assert list(racks_of(cell, "chat").values()) == [2]
    assert sum(cell.staying(f"low{i}") for i in range(4)) == 2


# ----------------------------------------------------------------------------------------------- spread


def test_spread_is_as_even_as_room_allows():
    cell = racks({"r1": [8], "r2": [8], "r3": [1]})
    cell.submit(job_spec("x", replicas=7, spread=Spread("rack")))
    assert racks_of(cell, "x") == {"r1": 3, "r2": 3, "r3": 1}


def test_a_bounded_skew_keeps_replicas_waiting():
    cell = racks({"r1": [8], "r2": [8], "r3": [1]})
    cell.submit(job_spec("x", replicas=(1, 9), spread=Spread("rack", 1)))
    assert racks_of(cell, "x") == {"r1": 2, "r2": 2, "r3": 1}
    assert waiting(cell, "x").reasons == (Reason.WAITING_FOR_CAPACITY, Reason.TOPOLOGY_PLACEMENT_FAILED)


def test_spread_counts_what_runs_already():
    cell = racks({"r1": [2]})
    cell.submit(service_spec("chat", replicas=(1, 2), spread=Spread("rack", 1)))
    cell.machine("r2-0", 2, rack="r2")
    cell.scale("chat", 1, 3)
    assert racks_of(cell, "chat") == {"r1": 2, "r2": 1}


# -------------------------------------------------------------------------- alternatives, accelerators


def any_of(*shapes: tuple[float, str]) -> dict[str, Any]:
    first, *rest = [Shape(Resources(1000, 0, round(n * 1000)), kind) for n, kind in shapes]
    return {
        "gpus": first.resources.gpu_millis / 1000,
        "accelerator_type": first.accelerator_type,
        "any_of": tuple(rest),
    }


def test_the_first_alternative_that_starts_now_is_taken_by_the_whole_gang():
    cell = Cell().machine("h", 8, gpus=["H100"]).machine("a", 8, gpus=["A100"] * 4)
    cell.submit(job_spec("one", replicas=1, **any_of((1, "H100"), (2, "A100"))))
    cell.submit(job_spec("two", replicas=2, **any_of((1, "H100"), (2, "A100"))))
    assert [(t.machine, t.accelerators, t.shape) for t in cell.job("one").tasks] == [("h", (0,), 0)]
    assert [(t.machine, t.accelerators, t.shape) for t in cell.job("two").tasks] == [
        ("a", (0, 1), 1),
        ("a", (2, 3), 1),
    ]


def test_shares_fill_one_device_and_whole_requests_take_free_ones():
    cell = Cell().machine("m", 8, gpus=["T4", "T4"])
    for name, share in (("a", 0.5), ("b", 0.3), ("whole", 1), ("d", 0.2), ("c", 0.3)):
        cell.submit(job_spec(name, gpus=share, cpu=0.5))
    used = {
        n: [t.accelerators for t in cell.job(n).tasks if t.machine] for n in ("a", "b", "whole", "d", "c")
    }
    assert used == {"a": [(0,)], "b": [(0,)], "whole": [(1,)], "c": [], "d": [(0,)]}


def test_on_a_machine_of_mixed_types_the_asked_type_is_given():
    cell = Cell().machine("m", 8, gpus=["A100", "H100", "A100", "H100"])
    cell.submit(job_spec("h", gpus=2, accelerator_type="H100"))
    cell.submit(job_spec("half", gpus=0.5, accelerator_type="A100"))
    assert cell.task("h").accelerators == (1, 3)
    assert cell.task("half").accelerators == (0,)


def test_memory_of_devices_can_be_asked_for():
    cell = Cell().machine("m", 8, gpus=["T4"])
    cell.submit(job_spec("x", gpus=1, retry=WAITS, **when("gpu_memory >= 40GB")))
    assert waiting(cell, "x").reasons == (Reason.NO_MATCHING_MACHINE,)


def test_what_is_kept_for_a_head_is_of_the_type_that_it_asked_for():
    cell = Cell().machine("m", 16, gpus=["T4", "T4", "H100", "H100"])
    for name in ("one", "other"):
        cell.submit(job_spec(name, gpus=1, accelerator_type="H100"))
    cell.submit(job_spec("head", gpus=2, accelerator_type="H100"))
    assert waiting(cell, "head").detail.endswith("free now: m: 14 cpu, 16.0 GiB")  # no H100
    cell.submit(job_spec("tee", gpus=2, accelerator_type="T4"))
    assert cell.task("tee").accelerators == (0, 1)  # nothing of that is kept for the head
    cell.up().stop("one")
    cell.leave()
    cell.submit(job_spec("late", gpus=1, accelerator_type="H100"))
    assert machines_of(cell, "late") == []  # it would starve the head
    cell.stop("other")
    cell.leave()
    assert cell.task("head").accelerators == (2, 3)


def test_a_claim_that_names_no_devices_holds_some_of_the_right_type():
    cell = Cell().machine("m", 8, gpus=["T4", "H100"])
    cell.submit(job_spec("h", gpus=1, accelerator_type="H100"))
    cell.submit(job_spec("urgent", gpus=1, accelerator_type="H100", band=Band.PRODUCTION))
    snapshot = cell.snapshot()
    (claim,) = snapshot.claims
    assert claim.accelerators == (1,)
    board = Board(replace(snapshot, claims=(replace(claim, accelerators=()),)))
    assert board.room().gpu_NG[0].tolist() == [1000, -1000]


@pytest.mark.parametrize("asked", ["T4", "H100", "A100"])
@pytest.mark.parametrize("share", [0.5, 1, 2])
@pytest.mark.parametrize("cached", [False, True])
def test_no_device_of_another_type_is_ever_given(asked: str, share: float, cached: bool):
    kinds = ["A100", "T4", "H100", "T4", "A100", "H100"]
    cell = Cell().machine("m", 64, gpus=kinds).machine("n", 64, gpus=kinds[::-1])
    cell.machine("closed", 1)
    spec = job_spec("x", cpu=0.1, replicas=(1, 12), gpus=share, accelerator_type=asked)
    cell.submit(job_spec("filler", cpu=0.1, replicas=(1, 3), gpus=0.5))
    uid = cell.submit(spec).uid
    snapshot = cell.snapshot()
    bare = replace(
        snapshot,
        jobs=tuple(
            replace(j, tasks=tuple(TaskView(i, pending=True) for i in range(12))) if j.uid == uid else j
            for j in snapshot.jobs
        ),
    )
    plan, _ = schedule(bare, options=Options(cached=cached))
    types = {m.name: [a.type for a in m.accelerators] for m in bare.machines}
    given = [types[p.machine][device] for p in plan.placements for device in p.accelerators]
    assert given
    assert set(given) == {asked}
