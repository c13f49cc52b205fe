"""Batches that a training is given: what it asks of a loader, and tensors made of its arrays.

The loader is named in the configuration and imported when a worker starts: training does not know how
data is kept. Any callable ``(directory, split, seq_len, seed)`` will do whose result has ``batch`` and
``rows``, and whose batch is a pure function of the step and the virtual rank.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from tidecell.models.files import read_json
from tidecell.structs.chat import Marker, render_chat
from tidecell.structs.errors import DataError, Mistake, SpecError


class Rows(Protocol):
    """One split of a dataset."""

    num_rows: int

    def batch(self, step: int, vrank: int, num_vranks: int, micro_batch: int) -> tuple[Any, Any]:
        """Return inputs and labels, int64 ``[micro_batch, seq_len]``; a label of -100 does not count."""
        ...

    def rows(self, indices: Any) -> tuple[Any, Any]:
        """Return inputs and labels of given rows."""
        ...


class DataFacts(msgspec.Struct, frozen=True):
    """What a training needs to know of its dataset.

    Attributes:
        chars_per_token: Of the validation split.
        tokenizer_dir: Where ``tokenizer.json`` lies.
    """

    version: str
    vocab_size: int
    end_of_text_id: int
    pad_id: int
    chars_per_token: float
    tokenizer_dir: Path


def open_rows(loader: str, directory: Path, split: str, seq_len: int, seed: int) -> Rows:
    """Open a split with the loader of that name, ``module:callable``.

    Raises:
        SpecError: There is no such loader.
    """
    module, _, name = loader.partition(":")
    try:
        factory: Callable[..., Rows] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SpecError([Mistake("loader", f"{loader!r} cannot be imported: {error}")], "config") from error
    return factory(directory, split, seq_len, seed)


def read_facts(directory: Path) -> DataFacts:
    """Return what the dataset's manifest says.

    Raises:
        DataError: It is missing or damaged.
    """
    path = directory / "manifest.json"
    try:
        manifest = read_json(path)
        tokenizer = manifest["tokenizer"]
        return DataFacts(
            version=manifest["version"],
            vocab_size=tokenizer["vocab_size"],
            end_of_text_id=tokenizer["end_of_text_id"],
            pad_id=tokenizer["pad_id"],
            chars_per_token=manifest["splits"]["validation"]["chars_per_token"],
            tokenizer_dir=directory / tokenizer["path"],
        )
    except (OSError, msgspec.DecodeError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be used: {error!r}", "prepare the dataset again") from error


def to_tensors(batch: tuple[Any, Any], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return a loader's arrays as tensors."""
    x, y = batch
    return torch.from_numpy(np.ascontiguousarray(x)).to(device), torch.from_numpy(y).to(device)


class Text:
    """The tokenizer, as far as samples of text need it."""

    def __init__(self, directory: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._tokenizer.encode_special_tokens = True  # text that spells a marker stays text

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def question(self, text: str) -> list[int]:
        """Return the ids of a user's message and the mark after which the assistant answers."""
        ids: list[int] = []
        for content, _ in render_chat([{"role": "user", "content": text}], add_generation_prompt=True):
            if isinstance(content, Marker):
                marker = self._tokenizer.token_to_id(content)
                ids += [] if marker is None else [marker]
            else:
                ids += self.encode(content)
        return ids
