"""A small corpus on disk, and a dataset made of it once."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tidecell.data.executor import Prepared, prepare
from tidecell.data.pipeline import Recipe

WORDS = [
    "tide",
    "water",
    "harbour",
    "vessel",
    "current",
    "signal",
    "anchor",
    "beacon",
    "shore",
    "depth",
    "pilot",
]


def prose(seed: int, num_lines: int = 40) -> str:
    rng = random.Random(seed)
    return "".join(
        " ".join(rng.choices(WORDS, k=12)) + f" {rng.randint(0, 10**6)}.\n" for _ in range(num_lines)
    )


def module(seed: int, num_functions: int = 6) -> str:
    """Return Python source with functions that make instruction pairs."""
    rng = random.Random(seed)
    parts = [f'"""Module {seed}."""\n']
    for i in range(num_functions):
        word = rng.choice(WORDS)
        parts.append(
            f"def {word}_{seed}_{i}(level: int, rate: float = {rng.random():.4f}) -> float:\n"
            f'    """Return the {word} of {rng.choice(WORDS)} number {seed * 100 + i} at a level."""\n'
            f"    total = level * rate + {rng.randint(0, 10**6)}\n"
            f"    return total / {rng.randint(1, 10**6)}\n"
        )
    return "\n\n".join(parts)


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus") / "harbour"
    (root / "notes").mkdir(parents=True)
    for i in range(24):
        (root / f"mod_{i:02d}.py").write_text(module(i))
        (root / "notes" / f"log_{i:02d}.txt").write_text(prose(i))
    return root


SMALL = Recipe(vocab_size=400, seq_len=64, shard_bytes=20_000, validation_share=0.15)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TIDECELL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="session")
def prepared(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIDECELL_HOME", str(tmp_path_factory.mktemp("prepared-home")))
        return prepare([str(corpus_dir)], "harbour", SMALL, num_processes=1)
