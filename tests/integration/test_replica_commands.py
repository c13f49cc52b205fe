"""tide serve, generate and chat against a real cell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from tidecell.models.checkpoint import save_model
from tidecell.models.transformer import ModelConfig, Transformer
from tidecell.structs.chat import SPECIAL_TOKENS


class Cell:
    """A cell in a directory of its own, used through the command line."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def tide(self, *arguments: str, stdin: str = "", status: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "tidecell.cli.main", *arguments],
            env={**os.environ, "TIDECELL_HOME": str(self.home), "OMP_NUM_THREADS": "1"},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done


def make_run(directory: Path) -> None:
    """Write a random model as a run's, with a tokenizer of its own."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(["the tide comes and goes"] * 3, trainer)
    tokenizer = directory / "tokenizer"
    tokenizer.mkdir(parents=True)
    (tokenizer / "tokenizer.json").write_text(inner.to_str())
    config = ModelConfig(
        vocab_size=inner.get_vocab_size(), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    save_model(directory / "model", Transformer(config, seed=2), tokenizer_dir=tokenizer)


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cell]:
    made = Cell(tmp_path_factory.mktemp("cell"))
    make_run(made.home / "runs" / "toy")
    made.tide("up")
    try:
        made.tide("serve", "toy", "--replicas", "1..2", "--memory", "512MB")
        yield made
    finally:
        made.tide("down")


def test_a_served_run_is_ready_and_has_an_endpoint(cell: Cell) -> None:
    job = json.loads(cell.tide("status", "toy", "--json").stdout)
    job = job.get("job", job)
    assert (job["kind"], job["state"], job["ready"]) == ("service", "RUNNING", 1)
    assert job["models"] == ["toy"]


def test_served_and_local_text_are_the_same(cell: Cell) -> None:
    arguments = ("generate", "toy", "the tide", "--max-tokens", "20", "--seed", "4")
    served = cell.tide(*arguments).stdout
    assert served == cell.tide(*arguments, "--local").stdout
    assert len(served) > 5
    assert served == cell.tide("generate", "toy", "-", *arguments[3:], stdin="the tide").stdout


def test_a_chat_answers_and_goes_on_when_its_context_is_full(cell: Cell) -> None:
    lines = [f"message number {number}" for number in range(6)]
    done = cell.tide("chat", "--max-tokens", "6", "--seed", "1", stdin="\n".join([*lines, "/exit"]) + "\n")
    assert "the oldest messages no longer fit and are left out" in done.stderr
    assert "error" not in done.stderr


def test_a_model_that_is_not_there_is_refused_with_those_that_are(cell: Cell) -> None:
    done = cell.tide("serve", "tyo", status=1)
    assert done.stderr.startswith("error: no model 'tyo'; runs with a model: toy\n\nhint: give a directory")
    done = cell.tide("chat", "tyo", status=1)
    assert done.stderr.startswith("error: model 'tyo' is not served; served are: toy\n\nhint: serve one")


@pytest.mark.slow
def test_replicas_that_cannot_start_are_reported_with_the_reason(cell: Cell) -> None:
    done = cell.tide("serve", "toy", "-n", "broken", "--max-context", "9999", status=1)
    assert done.stderr.splitlines()[-3:] == [
        "error: replicas of 'broken' end before they are ready: a context of 9999 tokens is asked for; "
        "the model knows 64 positions",
        "",
        "hint: their output: tide logs broken; the cell goes on trying until you say: tide stop broken",
    ]
    cell.tide("stop", "broken")
