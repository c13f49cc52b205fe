"""Accounts are exact: the same sums from the journal again, and from an independent reckoning."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

from cell_harness import Cell, job_spec
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tidecell.cell.accounting import Account, usage_rows
from tidecell.structs.job import Band, Cause, JobSpec, Priority
from tidecell.structs.messages import (
    JobAccepted,
    JobChanged,
    JobFinished,
    JobReprioritized,
    JobStopRequested,
    JobSubmitted,
    MachineJoined,
    TaskEnded,
    TaskNoticed,
    TaskPlaced,
    Tick,
)
from tidecell.structs.tenant import Prices

PRICES = Prices(0.5, 0.1, {"H100": 3.0, "": 1.0})


@st.composite
def walks(draw: st.DrawFn) -> Cell:
    cell = Cell()
    cell.machine("a", cpu=4, gpus=["H100", "H100"]).machine("b", cpu=3, gpus=["A100"])
    for step in range(draw(st.integers(3, 12))):
        verb = draw(st.sampled_from(["submit", "submit", "prio", "stop", "end", "leave", "lose"]))
        name = f"j{draw(st.integers(0, 4))}"
        if verb == "submit":
            low = draw(st.integers(1, 2))
            cell.send(
                JobSubmitted(
                    job_spec(
                        name,
                        cpu=draw(st.sampled_from([0.5, 1, 2])),
                        memory_gib=draw(st.sampled_from([0, 1])),
                        gpus=draw(st.sampled_from([0, 0, 1])),
                        replicas=(low, low + draw(st.integers(0, 2))),
                        band=draw(st.sampled_from([Band.BEST_EFFORT, Band.BATCH, Band.PRODUCTION])),
                        team=draw(st.sampled_from(["", "red", "blue"])),
                        labels={"user": draw(st.sampled_from(["ana", "ben"]))},
                    )
                )
            )
        elif verb == "prio":
            cell.send(JobChanged(name, priority=Priority(draw(st.sampled_from(Band)))))
        elif verb == "stop":
            cell.send(JobStopRequested(name))
        elif verb == "end" and cell.engine.processes:
            cell.down(min(cell.engine.processes), draw(st.sampled_from([0, 1])))
        elif verb == "leave":
            cell.leave()
        elif verb == "lose" and step == 5:
            cell.lose("b")
        cell.up()
        cell.now_s += draw(st.sampled_from([0.0, 1.5, 60.0, 3600.0]))
        cell.send(Tick())
    return cell


def account(cell: Cell, since_s: float, until_s: float, every_s: float = 0.0) -> Account:
    made = Account(since_s, until_s, every_s)
    for record in cell.journal.records():
        made.take(record.event, record.at_s)
    made.close(min(until_s, cell.now_s))
    return made


def by_hand(cell: Cell, since_s: float, until_s: float) -> dict[tuple[str, str, str], list[float]]:
    """Cpu-, memory-, gpu-hours and the gpus' cost by team, band and job: from pairs of events alone."""
    specs: dict[str, JobSpec] = {}
    bands: dict[str, list[tuple[float, Band]]] = {}
    devices: dict[tuple[str, int], str] = {}
    begun: dict[object, tuple[float, TaskPlaced]] = {}
    stays: list[tuple[float, float, TaskPlaced]] = []
    for at_s, e in cell.events:
        if isinstance(e, MachineJoined):
            devices |= {(e.spec.name, a.index): a.type for a in e.spec.accelerators}
        elif isinstance(e, JobAccepted):
            specs[e.uid], bands[e.uid] = e.spec, [(at_s, e.spec.priority.band)]
        elif isinstance(e, JobReprioritized):
            bands[e.uid].append((at_s, e.priority.band))
        elif isinstance(e, TaskPlaced):
            begun[e.ref] = (at_s, e)
        elif isinstance(e, TaskEnded):
            first_s, placed = begun.pop(e.ref)
            stays.append((first_s, at_s, placed))
    stays += [(first_s, cell.now_s, placed) for first_s, placed in begun.values()]
    hours: dict[tuple[str, str, str], list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
    for first_s, last_s, placed in stays:
        spec = specs[placed.ref.uid]
        changes = [*bands[placed.ref.uid], (math.inf, Band.BATCH)]
        for (from_s, band), (to_s, _) in itertools.pairwise(changes):
            low, high = max(first_s, from_s, since_s), min(last_s, to_s, until_s)
            if low >= high:
                continue
            row, length = hours[spec.team, band.word, spec.name], (high - low) / 3600
            row[0] += placed.resources.cpu_millis / 1000 * length
            row[1] += placed.resources.memory_bytes / (1 << 30) * length
            row[2] += placed.resources.gpu_millis / 1000 * length
            types = [devices[placed.machine, i] for i in placed.accelerators]
            row[3] += sum(3.0 if t == "H100" else 1.0 for t in types) * length
    return hours


MANY = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@MANY
@given(walks(), st.sampled_from([0.0, 1000.0, 1061.5, 4000.0]), st.sampled_from([math.inf, 5000.0, 9000.0]))
def test_hours_and_cost_are_those_of_an_independent_reckoning(cell: Cell, since_s: float, until_s: float):
    rows = usage_rows(account(cell, since_s, until_s).sums, ("team", "band", "job"), PRICES, {})
    expected = by_hand(cell, since_s, until_s)
    event("something was held" if expected else "nothing was held")
    held = {(r.team, r.band, r.job): r for r in rows if r.cpu_hours or r.all_gpu_hours}
    assert set(held) == set(expected)
    for key, (cpu, memory, gpu, gpu_cost) in expected.items():
        row = held[key]
        assert math.isclose(row.cpu_hours, cpu, rel_tol=1e-9)
        assert math.isclose(row.memory_gib_hours, memory, rel_tol=1e-9, abs_tol=1e-12)
        assert math.isclose(row.all_gpu_hours, gpu, rel_tol=1e-9, abs_tol=1e-12)
        assert math.isclose(row.cost, 0.5 * cpu + 0.1 * memory + gpu_cost, rel_tol=1e-9)
    noticed = [e for at_s, e in cell.events if isinstance(e, TaskNoticed) and since_s <= at_s < until_s]
    assert sum(r.preemptions for r in rows) == sum(e.cause is Cause.PREEMPT for e in noticed)
    placed = [e for at_s, e in cell.events if isinstance(e, TaskPlaced) and since_s <= at_s < until_s]
    assert sum(r.starts for r in rows) == len(placed)


@MANY
@given(walks())
def test_the_same_events_give_the_same_sums_to_the_bit(cell: Cell):
    assert account(cell, 0.0, math.inf).sums == account(cell, 0.0, math.inf).sums


@MANY
@given(walks(), st.sampled_from([600.0, 3600.0]))
def test_steps_and_groups_add_up_to_the_whole(cell: Cell, every_s: float):
    whole = usage_rows(account(cell, 0.0, math.inf).sums, (), PRICES, {})
    for by in (("team",), ("band", "user"), ("job",)):
        parts = usage_rows(account(cell, 0.0, math.inf, every_s).sums, by, PRICES, {})
        for field in ("cpu_hours", "all_gpu_hours", "cost", "waited_hours", "requested_cpu_hours"):
            total = math.fsum(getattr(r, field) for r in parts)
            assert math.isclose(
                total, math.fsum(getattr(r, field) for r in whole), rel_tol=1e-9, abs_tol=1e-12
            )


@MANY
@given(walks())
def test_what_was_asked_for_is_what_was_held_and_what_waited(cell: Cell):
    """Of jobs whose request never changed, requested less reserved is what waited."""
    rows = usage_rows(account(cell, 0.0, math.inf).sums, ("job",), PRICES, {})
    finished = {e.uid for _, e in cell.events if isinstance(e, JobFinished)}
    for row in rows:
        assert row.requested_cpu_hours >= row.cpu_hours - 1e-9
        if not row.waited_hours and not finished:
            assert math.isclose(row.requested_cpu_hours, row.cpu_hours, rel_tol=1e-9, abs_tol=1e-12)
