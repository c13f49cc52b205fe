"""The training worker with real processes: a tide in the middle of a run; the example of the docs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from scripted_agent import ScriptedAgent

from tidecell.models.training_state import newest_checkpoint
from tidecell.train.config import Lora, Schedule, Shape, TrainConfig
from tidecell.train.history import count_steps, read_by_step, read_digests
from tidecell.train.jobs import store_config

UNIT = Path(__file__).parents[1] / "unit" / "train"
ROOT = Path(__file__).parents[2]
sys.path.append(str(UNIT))

from synthetic_rows import LOADER, make_dataset  # noqa: E402

SHAPE = Shape(
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(UNIT)}
ENV.pop("TIDECELL_SOCKET", None)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("trainings") / "data")


def stored(dataset: Path, name: str, **changes: object) -> Path:
    """Store a configuration; return its file."""
    config = TrainConfig(
        name=name,
        run_dir=str(dataset.parent / name),
        dataset=str(dataset),
        loader=LOADER,
        shape=SHAPE,
        num_steps=60,
        seq_len=48,
        schedule=Schedule(lr=3e-3, warmup_steps=5),
        validate_every=10,
        validate_rows=12,
        checkpoint_every=15,
        keep_last=10,
        sample_prompt="AC",
        sample_tokens=4,
    )
    return store_config(msgspec.structs.replace(config, **changes))


def run_alone(path: Path) -> Path:
    """Run a worker without a cell; return its run's directory."""
    command = [sys.executable, "-m", "tidecell.train.worker", "--config", str(path)]
    subprocess.run(command, env=ENV, check=True, timeout=100, capture_output=True)
    return path.parent


def validations(run_dir: Path) -> list[float]:
    """Return the validation losses along a run."""
    return [r["val_loss"] for r in read_by_step(run_dir / "metrics.jsonl") if "val_loss" in r]


def agent_for(path: Path, min_members: int) -> ScriptedAgent:
    argv = ["-m", "tidecell.train.worker", "--config", str(path)]
    return ScriptedAgent(argv, min_members, {"PYTHONPATH": str(UNIT)})


def run_with_a_tide(path: Path) -> ScriptedAgent:
    """Two workers; one is taken away after some steps and comes back."""
    with agent_for(path, 2) as agent:
        agent.start(0)
        agent.start(1)
        agent.until_step(8)
        agent.group.min_members = 1
        agent.tell_to_leave(1, new_size=1, cause="preempt")
        agent.until(lambda: any(r.get("world_size") == 1 for r in agent.reports), "world of one")
        agent.start(1)
        agent.until(lambda: any(r.get("kind") == "train-end" for r in agent.reports), "end", 100)
        assert agent.exit_status(0) == 0
        agent.exit_status(1)
    return agent


def test_a_tide_changes_no_weight_and_loses_no_step(dataset: Path) -> None:
    alone = run_alone(stored(dataset, "alone"))
    path = stored(dataset, "tide")
    run_with_a_tide(path)
    assert read_digests(path.parent) == read_digests(alone)
    assert set(read_digests(alone)) == {15, 30, 45, 60}
    assert count_steps(path.parent) == (60, 0)
    sizes = {r["world_size"] for r in read_by_step(path.parent / "metrics.jsonl")}
    assert sizes == {1, 2}
    values = [
        [r["val_loss"] for r in read_by_step(d / "metrics.jsonl") if "val_loss" in r]
        for d in (alone, path.parent)
    ]
    assert values[0] == values[1]
    assert len(values[0]) == 5


@pytest.mark.slow
def test_a_job_stopped_as_a_whole_resumes_at_another_size_without_losing_a_step(dataset: Path) -> None:
    alone = run_alone(stored(dataset, "alone"))
    path = stored(dataset, "stopped")
    with agent_for(path, 2) as agent:
        agent.start(0)
        agent.start(1)
        agent.until_step(7)
        agent.stop_job("preempt")
        assert [agent.exit_status(i) for i in (0, 1)] == [0, 0]
    saved = newest_checkpoint(path.parent / "checkpoints")
    assert saved is not None
    assert saved.step == read_by_step(path.parent / "metrics.jsonl")[-1]["step"]
    run_alone(path)
    assert read_digests(path.parent)[60] == read_digests(alone)[60]
    assert count_steps(path.parent) == (60, 0)


@pytest.mark.slow
def test_a_tuning_with_adapters_is_elastic_and_bitwise_too(dataset: Path) -> None:
    base = run_alone(stored(dataset, "alone"))
    changes = {"kind": "tune", "base_model": str(base / "model"), "lora": Lora(rank=4)}
    alone = run_alone(stored(dataset, "tune-alone", **changes))
    path = stored(dataset, "tune-tide", **changes)
    run_with_a_tide(path)
    assert read_digests(path.parent) == read_digests(alone)


def test_a_mistake_is_said_in_words_with_its_exit_status(dataset: Path) -> None:
    path = stored(dataset, "broken")
    text = path.read_text().replace(str(dataset), str(dataset / "nowhere"))
    path.write_text(text)
    command = [sys.executable, "-m", "tidecell.train.worker", "--config", str(path)]
    done = subprocess.run(command, env=ENV, timeout=60, capture_output=True, text=True)
    assert done.returncode == 1
    assert "manifest.json cannot be used" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_example_gives_one_digest_by_hand_and_in_a_group() -> None:
    script = str(ROOT / "examples" / "elastic_loop.py")
    env = {**ENV, "NUM_STEPS": "40"}
    by_hand = subprocess.run(
        [sys.executable, script], env=env, check=True, timeout=60, capture_output=True, text=True
    ).stdout
    found = re.fullmatch(r"loss 0\.\d{4}, digest ([0-9a-f]{16})\n", by_hand)
    assert found
    argv = ["-c", f"import runpy, sys; sys.stdout = open(sys.argv[1], 'w'); runpy.run_path({script!r})"]
    with ScriptedAgent([*argv, os.devnull], 2, {"NUM_STEPS": "40"}) as agent:
        agent.start(0)
        agent.start(1)
        agent.until(lambda: any(r.get("step") == 40 for r in agent.reports), "last step")
        in_group = next(r["loss"] for r in agent.reports if r.get("step") == 40)
    assert by_hand.startswith(f"loss {in_group:.4f}")
