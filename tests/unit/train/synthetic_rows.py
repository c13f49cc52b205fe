"""A loader for tests of the training loop: rows of a small language, and a dataset's directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models

VOCAB = 40
LOADER = "synthetic_rows:Rows"


class Rows:
    """Counting sequences with a random start: the next token is the last plus two."""

    def __init__(self, directory: Path, split: str, seq_len: int, seed: int) -> None:
        self.num_rows = 64 if split == "train" else 12
        self._seq_len = seq_len
        self._seed = seed
        self._labels = (directory / "labels").read_text() if (directory / "labels").exists() else "all"

    def batch(self, step: int, vrank: int, num_vranks: int, micro_batch: int) -> tuple[Any, Any]:
        """Return rows that depend on the position alone."""
        first = (step * num_vranks + vrank) * micro_batch
        return self.rows(np.arange(first, first + micro_batch))

    def rows(self, indices: Any) -> tuple[Any, Any]:
        """Return given rows."""
        starts = (np.asarray(indices, dtype=np.int64) * 7 + self._seed) % (VOCAB - 5)
        tokens = 5 + (starts[:, None] + 2 * np.arange(self._seq_len + 1)) % (VOCAB - 5)
        y = tokens[:, 1:].copy()
        if self._labels == "none":
            y[:] = -100
        return tokens[:, :-1].copy(), y


def make_dataset(directory: Path, version: str = "v1") -> Path:
    """Write what a training reads of a dataset's directory."""
    (directory / "tokenizer").mkdir(parents=True)
    special = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|pad|>"]
    words = special + [chr(ord("A") + i) for i in range(VOCAB - len(special))]
    tokenizer = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[]))
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(directory / "tokenizer" / "tokenizer.json"))
    manifest = {
        "version": version,
        "tokenizer": {"path": "tokenizer", "vocab_size": VOCAB, "end_of_text_id": 0, "pad_id": 4},
        "splits": {"validation": {"chars_per_token": 2.0}},
    }
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory
