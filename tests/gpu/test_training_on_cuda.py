"""Elastic training on a device: the same bits at any number of workers, and after a tide."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from scripted_agent import ScriptedAgent
from synthetic_rows import LOADER, make_dataset

from tidecell.train.config import Schedule, Shape, TrainConfig
from tidecell.train.history import count_steps, read_digests
from tidecell.train.jobs import store_config

ROWS = Path(__file__).parents[1] / "unit" / "train"
PATH = os.pathsep.join([str(ROWS), os.environ.get("PYTHONPATH", "")])
SHAPE = Shape(
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=3,
    num_attention_heads=8,
    num_key_value_heads=4,
    max_position_embeddings=64,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("trainings") / "data")


def stored(dataset: Path, name: str) -> Path:
    config = TrainConfig(
        name=name,
        run_dir=str(dataset.parent / name),
        dataset=str(dataset),
        loader=LOADER,
        shape=SHAPE,
        num_steps=60,
        seq_len=48,
        schedule=Schedule(lr=1e-3, warmup_steps=5),
        validate_every=20,
        validate_rows=12,
        checkpoint_every=15,
        keep_last=10,
        sample_prompt="AC",
        sample_tokens=4,
        device="cuda",
    )
    return store_config(config)


def run_alone(path: Path) -> Path:
    command = [sys.executable, "-m", "tidecell.train.worker", "--config", str(path)]
    env = {k: v for k, v in os.environ.items() if k != "TIDECELL_SOCKET"}
    done = subprocess.run(
        command, env={**env, "PYTHONPATH": PATH}, timeout=110, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return path.parent


def test_two_runs_alone_give_the_same_bits(dataset: Path):
    first, second = run_alone(stored(dataset, "first")), run_alone(stored(dataset, "second"))
    assert set(read_digests(first)) == {15, 30, 45, 60}
    assert read_digests(first) == read_digests(second)
    card = msgspec.json.decode((first / "model" / "card.json").read_bytes())
    assert card["contract"]["device"].startswith("cuda ")


def test_a_tide_on_a_device_changes_no_weight_and_loses_no_step(dataset: Path):
    alone, path = run_alone(stored(dataset, "alone")), stored(dataset, "tide")
    with ScriptedAgent(
        ["-m", "tidecell.train.worker", "--config", str(path)], 2, {"PYTHONPATH": PATH}
    ) as agent:
        agent.start(0)
        agent.start(1)
        agent.until_step(8, 100)
        agent.group.min_members = 1
        agent.tell_to_leave(1, new_size=1, cause="preempt")
        agent.until(lambda: any(r.get("world_size") == 1 for r in agent.reports), "world of one")
        agent.start(1)
        agent.until(lambda: any(r.get("kind") == "train-end" for r in agent.reports), "end", 110)
        assert agent.exit_status(0) == 0
        agent.exit_status(1)
    assert read_digests(path.parent) == read_digests(alone)
    assert count_steps(path.parent) == (60, 0)
