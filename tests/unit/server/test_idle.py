"""Jobs that leave their accelerators idle: who is watched, and when a job's time is over."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from cell_harness import Cell, machine_spec

from tidecell.cell.journal import Journal
from tidecell.engines.gpu_use import gpu_percents
from tidecell.server.idle import IdleWatch
from tidecell.structs.job import IdleGpu, JobSpec, Replicas, TaskState
from tidecell.structs.lifecycle import JobIdle
from tidecell.structs.messages import ControlStarted, JobSubmitted, MachineSeen, TaskUp
from tidecell.structs.resources import Resources

RULE = IdleGpu(5, 60.0)


@pytest.fixture
def cell(tmp_path) -> Cell:
    cell = Cell(Journal(tmp_path / "journal.db"))
    spec = machine_spec("a", cpu=8, gpus=["H100"] * 4)
    cell.engine.attached["a"] = spec
    cell.send(ControlStarted())
    cell.send(MachineSeen(spec))
    return cell


def train(cell: Cell, replicas: int = 2, rule: IdleGpu | None = RULE) -> str:
    size = Resources(1000, 0, 1000)
    spec = JobSpec("t", run="x", resources=size, replicas=Replicas(replicas, replicas), idle_gpu=rule)
    cell.send(JobSubmitted(spec))
    for ref in list(cell.engine.processes):
        cell.send(TaskUp(ref, "a"))
    return "t.1"


def test_a_job_is_over_once_all_its_replicas_were_idle_for_long_enough(cell: Cell) -> None:
    uid, watch = train(cell), IdleWatch()
    watch.take(cell.state, "a", {0: 0, 1: 90, 2: 0, 3: 0}, 100.0)
    assert list(watch.over(cell.state, 1000.0)) == [], "one of two works"
    watch.take(cell.state, "a", {0: 0, 1: 4}, 1000.0)
    assert list(watch.over(cell.state, 1059.0)) == []
    watch.take(cell.state, "a", {0: 5, 1: 4}, 1060.0)
    assert list(watch.over(cell.state, 1061.0)) == [], "5 % is not below 5 %"
    watch.take(cell.state, "a", {0: 0, 1: 0}, 1100.0)
    assert list(watch.over(cell.state, 1160.0)) == [JobIdle(uid)]


def test_what_is_not_measured_counts_as_use(cell: Cell) -> None:
    train(cell)
    watch = IdleWatch()
    watch.take(cell.state, "a", {0: 0, 1: 0}, 0.0)
    watch.take(cell.state, "a", {0: 0}, 50.0)
    assert list(watch.over(cell.state, 100.0)) == []


def test_jobs_without_the_rule_are_left_alone(cell: Cell) -> None:
    train(cell, rule=None)
    watch = IdleWatch()
    watch.take(cell.state, "a", {0: 0, 1: 0}, 0.0)
    assert list(watch.over(cell.state, 1e6)) == []


def test_its_end_says_why(cell: Cell) -> None:
    uid = train(cell)
    cell.send(JobIdle(uid))
    job = cell.state.jobs[uid]
    assert job.stopping is not None
    assert job.stopping.then is TaskState.TIMEOUT
    assert job.stopping.message == "its accelerators were below 5 % for 60 s"
    assert all(t.notice is not None for t in job.tasks)


def test_use_is_read_by_nvml_and_missing_where_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {0: 7, 1: 93}
    fake = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 3,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=rates[handle]),  # 2: KeyError
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    assert gpu_percents() == {0: 7, 1: 93}
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_percents() == {}
