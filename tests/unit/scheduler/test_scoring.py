"""The packing score: what a placement destroys, and that its three forms agree."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tidecell.scheduler.board import Board
from tidecell.scheduler.mix import gap_values, mix_of
from tidecell.scheduler.schedule import schedule
from tidecell.scheduler.scoring import GAPS, NUM_FACTS, note_facts, score_N, score_row
from tidecell.scheduler.snapshot import JobView, Snapshot, TaskView
from tidecell.structs.job import JobSpec
from tidecell.structs.machine import Accelerator, MachineSpec
from tidecell.structs.resources import Resources

GB = 1 << 30


def _machine(name: str, cpu: int, gpus: int) -> MachineSpec:
    devices = tuple(Accelerator(i, "T4") for i in range(gpus))
    return MachineSpec(name, Resources(cpu * 1000, 64 * GB, gpus * 1000), devices)


def _waiting(name: str, resources: Resources, at_s: float = 0.0) -> JobView:
    return JobView(f"{name}.1", JobSpec(name, resources=resources), at_s, 1, (TaskView(0, pending=True),))


def _running(name: str, resources: Resources, machine: str, devices: tuple[int, ...]) -> JobView:
    task = TaskView(0, machine=machine, accelerators=devices, resources=resources)
    return JobView(f"{name}.1", JobSpec(name, resources=resources), 0.0, 1, (task,))


def test_cpu_beside_idle_accelerators_is_kept_for_those_who_usually_come() -> None:
    # Both machines can hold it; b would be fuller (best fit), but a's accelerators do not miss the cores.
    usual = tuple(_running(f"u{i}", Resources(8000, 4 * GB, 1000), "c", (i,)) for i in range(4))
    machines = (_machine("a", 48, 2), _machine("b", 16, 2), _machine("c", 32, 4))
    plan, _ = schedule(Snapshot(0.0, machines, (*usual, _waiting("cpu", Resources(8000, 4 * GB, 0)))))
    assert [p.machine for p in plan.placements] == ["a"]


def test_a_fraction_goes_where_its_gap_will_be_used() -> None:
    # 400 beside 600 leaves nothing; beside 500 it leaves 100, which nobody asks for.
    held = (
        _running("x", Resources(1000, GB, 600), "a", (0,)),
        _running("y", Resources(1000, GB, 500), "b", (0,)),
        _running("z", Resources(1000, GB, 500), "b", (1,)),
    )
    machines = (_machine("b", 32, 2), _machine("a", 32, 1))
    plan, _ = schedule(Snapshot(0.0, machines, (*held, _waiting("w", Resources(1000, GB, 400)))))
    assert [p.machine for p in plan.placements] == ["a"]


def test_where_nothing_is_known_tasks_fill_one_machine_after_the_other() -> None:
    machines = tuple(_machine(name, 8, 0) for name in "abc")
    jobs = tuple(_waiting(f"j{i}", Resources(2000, 0, 0), float(i)) for i in range(5))
    plan, _ = schedule(Snapshot(0.0, machines, jobs))
    assert [p.machine for p in plan.placements] == ["a", "a", "a", "a", "b"]


def test_tasks_without_accelerators_leave_machines_with_them_free() -> None:
    machines = (_machine("a", 8, 1), _machine("b", 32, 0))
    plan, _ = schedule(Snapshot(0.0, machines, (_waiting("cpu", Resources(4000, GB, 0)),)))
    assert [p.machine for p in plan.placements] == ["b"]


def test_what_runs_and_what_waits_counts_the_same() -> None:
    asked = Resources(3000, 2 * GB, 250)
    machines = (_machine("a", 16, 2),)
    waits = Board(Snapshot(0.0, machines, (_waiting("w", asked), _waiting("v", asked))))
    runs = Board(Snapshot(0.0, machines, (_waiting("w", asked), _running("v", asked, "a", (0,)))))
    assert np.array_equal(waits.mix_XP, runs.mix_XP)
    assert not np.array_equal(waits.mix_XP, mix_of({}))


def test_the_order_of_counting_does_not_matter() -> None:
    counts = {(1000 * i, i * GB, g): i for i in range(1, 6) for g in (200, 350, 1000, 2000)}
    shuffled = list(counts.items())
    random.Random(3).shuffle(shuffled)
    assert np.array_equal(mix_of(counts), mix_of(dict(shuffled)))


def test_a_gap_is_worth_what_fits_into_it() -> None:
    values = gap_values(np.array([400, 600]), np.array([1.0, 1.0]))
    assert values[1000] == pytest.approx(1000.0)
    assert values[399] == 0.0
    assert values[400] + values[600] == pytest.approx(1000.0)
    assert mix_of({(1000, GB, 1000): 3})[GAPS, 190] == 190.0  # no fractions: its size


@pytest.mark.parametrize("seed", range(40))
def test_rows_and_columns_give_the_same_numbers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num, devices = 30, int(rng.integers(0, 5))
    mix_XP = mix_of(
        {
            (int(rng.integers(0, 9)) * 1000, int(rng.integers(0, 9)) * GB, int(g)): int(rng.integers(1, 50))
            for g in rng.choice([100, 250, 330, 500, 810, 1000, 2000, 4000], int(rng.integers(0, 8)))
        }
    )
    full_NR = np.column_stack([rng.integers(0, 3, num) * 16000, rng.integers(0, 3, num) * 64 * GB])
    full_NR = np.column_stack([full_NR, np.full(num, devices * 1000)])
    free_NR = (full_NR[:, :2] * rng.uniform(-0.1, 1.0, (num, 2))).astype(np.int64)
    gpu_NG = rng.choice([-200, 0, 190, 500, 750, 1000, 1000], (num, devices)).astype(np.int64)
    able_NG = rng.random((num, devices)) < 0.8
    for ask in ([500, GB, 0], [0, 0, 0], [1000, 0, 250], [0, GB, 500], [2000, GB, 1000], [0, 0, 2000]):
        ask_R = np.array(ask, np.int64)
        columns_N = score_N(free_NR, gpu_NG, able_NG, full_NR, ask_R, mix_XP)
        for n in range(num):
            facts_F = np.zeros(NUM_FACTS)
            note_facts(free_NR[n, 0], free_NR[n, 1], gpu_NG[n], mix_XP, facts_F)
            row = score_row(
                free_NR[n, 0], free_NR[n, 1], gpu_NG[n], able_NG[n], full_NR[n], ask_R, facts_F, mix_XP
            )
            assert row == np.inf or row == columns_N[n]
