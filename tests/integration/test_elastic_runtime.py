"""Elastic training with real processes: whatever happens to the workers, the weights are the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from scripted_agent import ScriptedAgent

WORKER = str(Path(__file__).parent / "elastic_worker.py")
STEPS = 24
VRANKS = 4


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of a run of one worker without any cell."""
    directory = tmp_path_factory.mktemp("reference")
    env = {k: v for k, v in os.environ.items() if not k.startswith("TIDECELL")} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, WORKER, str(directory), str(STEPS), str(VRANKS)]
    subprocess.run(command, env=env, check=True, timeout=60)
    return (directory / "digest").read_text()


def job(directory: Path, micro_batch_s: float = 0.0, min_members: int = 1) -> ScriptedAgent:
    return ScriptedAgent([WORKER, str(directory), str(STEPS), str(VRANKS), str(micro_batch_s)], min_members)


@contextmanager
def slowly(directory: Path) -> Iterator[None]:
    """Let micro-batches take long, so that the training does not end before the story does."""
    (directory / "slow").touch()
    try:
        yield
    finally:
        (directory / "slow").unlink()


def until_world(agent: ScriptedAgent, size: int) -> None:
    """Wait until a step was committed by this many workers after now."""
    seen = len(agent.reports)
    agent.until(lambda: any(r.get("world_size") == size for r in agent.reports[seen:]), f"world of {size}")


def digest_when_done(agent: ScriptedAgent, directory: Path) -> str:
    agent.until(lambda: any(r.get("done") for r in agent.reports), "end of the training")
    return (directory / "digest").read_text()


def committed_steps(agent: ScriptedAgent) -> list[int]:
    return [r["step"] for r in agent.reports if "loss" in r]


@pytest.mark.parametrize("size", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_any_number_of_workers_gives_the_weights_of_one(tmp_path: Path, reference: str, size: int) -> None:
    with job(tmp_path, min_members=size) as agent:
        for index in range(size):
            agent.start(index)
        assert digest_when_done(agent, tmp_path) == reference
        assert [agent.exit_status(i) for i in range(size)] == [0] * size
        assert {r["world_size"] for r in agent.reports if "loss" in r} == {size}


def test_shrinking_and_growing_in_the_middle_of_steps_changes_no_bit(tmp_path: Path, reference: str) -> None:
    with job(tmp_path, micro_batch_s=0.03, min_members=2) as agent:
        agent.start(0)
        agent.start(1)
        agent.until_step(2)
        agent.group.min_members = 1
        agent.tell_to_leave(1, new_size=1)
        agent.until(lambda: any(w == "released" for _, w, _ in agent.log), "release")
        with slowly(tmp_path):
            until_world(agent, 1)
            assert agent.exit_status(1) == 0
            agent.start(1)
            until_world(agent, 2)
        assert digest_when_done(agent, tmp_path) == reference
        assert committed_steps(agent) == list(range(STEPS))


@pytest.mark.slow
def test_the_leader_leaves_and_another_leads_on(tmp_path: Path, reference: str) -> None:
    with job(tmp_path, micro_batch_s=0.02, min_members=2) as agent:
        agent.start(0)
        agent.start(1)
        agent.until_step(2)
        agent.group.min_members = 1
        agent.tell_to_leave(0, new_size=1)
        with slowly(tmp_path):
            until_world(agent, 1)
            agent.start(0)
            until_world(agent, 2)
        assert digest_when_done(agent, tmp_path) == reference


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_killed_worker_costs_no_step(tmp_path: Path, reference: str, victim: int) -> None:
    with job(tmp_path, micro_batch_s=0.03, min_members=2) as agent:
        agent.start(0)
        agent.start(1)
        agent.until_step(3)
        agent.group.min_members = 1
        agent.kill(victim)
        until_world(agent, 1)
        assert digest_when_done(agent, tmp_path) == reference
        assert sorted(set(committed_steps(agent))) == list(range(STEPS))


@pytest.mark.slow
def test_a_bare_sigterm_takes_one_worker_out(tmp_path: Path, reference: str) -> None:
    with job(tmp_path, micro_batch_s=0.03, min_members=2) as agent:
        agent.start(0)
        agent.start(1)
        agent.until_step(2)
        agent.group.min_members = 1
        agent.kill(1, signal.SIGTERM)
        # The agent did not tell it, so its exit must not look like success of the job.
        agent._told.add(1)
        until_world(agent, 1)
        assert digest_when_done(agent, tmp_path) == reference


@pytest.mark.slow
def test_a_lost_host_is_left_behind_although_it_hangs(tmp_path: Path, reference: str) -> None:
    with job(tmp_path, micro_batch_s=0.02, min_members=2) as agent:
        agent.start(0)
        agent.start(1)
        agent.until_step(2)
        agent.group.min_members = 1
        agent.kill(1, signal.SIGSTOP)
        agent.forget(1)
        until_world(agent, 1)
        assert digest_when_done(agent, tmp_path) == reference


@pytest.mark.slow
def test_a_stopped_job_goes_on_from_the_step_it_had_reached(tmp_path: Path, reference: str) -> None:
    with job(tmp_path, micro_batch_s=0.02, min_members=2) as agent:
        agent.start(0)
        agent.start(1)
        agent.until_step(5)
        agent.stop_job()
        assert [agent.exit_status(i) for i in (0, 1)] == [0, 0]
        last = max(committed_steps(agent))
    with job(tmp_path) as agent:
        agent.start(0)
        assert digest_when_done(agent, tmp_path) == reference
        assert min(committed_steps(agent)) >= last
        assert min(committed_steps(agent)) <= last + 1


@pytest.mark.slow
def test_an_agent_that_comes_back_finds_the_group_again(tmp_path: Path, reference: str) -> None:
    with job(tmp_path, micro_batch_s=0.02, min_members=2) as agent:
        agent.start(0)
        agent.start(1)
        agent.until_step(2)
        agent.drop_connections()
        agent.until(lambda: sum(w == "ready" for _, w, _ in agent.log) >= 4, "second ready of both")
        assert digest_when_done(agent, tmp_path) == reference


@pytest.mark.slow
def test_three_to_one_to_three_changes_no_bit(tmp_path: Path, reference: str) -> None:
    with job(tmp_path, micro_batch_s=0.05, min_members=3) as agent:
        for index in range(3):
            agent.start(index)
        agent.until_step(1)
        agent.group.min_members = 1
        agent.tell_to_leave(1, new_size=2)
        agent.tell_to_leave(2, new_size=1)
        with slowly(tmp_path):
            until_world(agent, 1)
            agent.start(1)
            agent.start(2)
            until_world(agent, 3)
        assert digest_when_done(agent, tmp_path) == reference


@pytest.mark.slow
def test_two_of_three_killed_at_once_cost_no_step(tmp_path: Path, reference: str) -> None:
    with job(tmp_path, micro_batch_s=0.03, min_members=3) as agent:
        for index in range(3):
            agent.start(index)
        agent.until_step(3)
        agent.group.min_members = 1
        agent.kill(0)
        agent.kill(1)
        until_world(agent, 1)
        assert digest_when_done(agent, tmp_path) == reference
        assert sorted(set(committed_steps(agent))) == list(range(STEPS))
