"""The local half of a preparation: one shard of files to documents, facts and pairs. I/O.

A shard is a run of files whose text is worked on together. Its results lie in a directory of its own that
appears under its name complete or not at all, so a shard that is there never has to be made again. Shards do
not know of each other: they can be made by any process in any order.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import numpy.typing as npt

from tidecell.data.document import Document, Drop
from tidecell.data.instructions import Pair, pairs_of
from tidecell.data.pipeline import InstructionParams, Recipe, global_steps, local_steps, run_local
from tidecell.data.shards import sync_file, write_array
from tidecell.data.sources import SourceFile, read_file

# Texts observed at a time: bounds the memory of arrays over their bytes.
_BATCH_CHARS = 1 << 20


class Entry(msgspec.Struct, frozen=True):
    """Where a document of a shard lies, and its size.

    Attributes:
        id: Its id; not yet unique over shards.
        source: Its source.
        num_chars: Unicode characters of its text.
        num_bytes: The same in UTF-8.
        offset: Byte in ``documents.jsonl`` at which its line begins.
        length: Bytes of that line.
    """

    id: str
    source: str
    num_chars: int
    num_bytes: int
    offset: int
    length: int


class ShardFacts(msgspec.Struct, frozen=True):
    """What a shard holds, in small.

    Attributes:
        num_read: Documents, and parts that could not be read.
        entries: Documents that are left.
        drops: The others.
        skipped_functions: Functions without a pair, by reason.
    """

    num_read: int
    entries: tuple[Entry, ...]
    drops: tuple[Drop, ...]
    skipped_functions: dict[str, int]


class ShardPair(msgspec.Struct, frozen=True):
    """A pair, and which of its shard's documents it is from."""

    position: int
    pair: Pair


def group_files(files: Sequence[SourceFile], shard_bytes: int) -> list[list[SourceFile]]:
    """Return runs of files of about ``shard_bytes`` each, at least one file a run."""
    shards: list[list[SourceFile]] = []
    room = 0
    for file in files:
        if not shards or file.num_bytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(file)
        room -= file.num_bytes
    return shards


def read_shard(files: Sequence[SourceFile], recipe: Recipe, directory: Path) -> None:
    """Read files, run the local steps, observe what the global steps need, make the pairs; write it all.

    Raises:
        DataError: A file has changed since it was found.
    """
    # With the process in the name, a worker that outlives its killed parent by a moment disturbs nobody.
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    with (
        open(temporary / "documents.jsonl", "wb") as documents,
        open(temporary / "pairs.jsonl", "wb") as pairs,
    ):
        shard = _ShardWriter(documents, pairs, recipe)
        for item in run_local_on_files(files, recipe):
            shard.add(item)
    shard.finish(temporary)
    for path in temporary.iterdir():
        sync_file(path)
    try:
        os.rename(temporary, directory)
    except OSError:
        if not directory.is_dir():
            raise
        shutil.rmtree(temporary, ignore_errors=True)  # that worker was faster; its bytes are the same


def run_local_on_files(files: Sequence[SourceFile], recipe: Recipe) -> Iterator[Document | Drop]:
    """Yield what becomes of every document of files after the local steps."""
    steps = local_steps(recipe)
    for file in files:
        for item in read_file(file):
            if isinstance(item, Drop):
                yield item
            else:
                yield from run_local([item], steps)


class _ShardWriter:
    """Writes what is known of documents as they come; holds a batch of texts, never a shard."""

    def __init__(self, documents: BinaryIO, pairs: BinaryIO, recipe: Recipe) -> None:
        self._documents = documents
        self._pairs = pairs
        self._recipe = recipe
        self._steps = global_steps(recipe)
        self._entries: list[Entry] = []
        self._drops: list[Drop] = []
        self._skipped: Counter[str] = Counter()
        self._batch: list[str] = []
        self._batch_chars = 0
        self._observed: dict[str, list[npt.NDArray[Any]]] = {step.name: [] for step in self._steps}

    def add(self, item: Document | Drop) -> None:
        if isinstance(item, Drop):
            self._drops.append(item)
            return
        if item.is_python and self._recipe.instructions is not None:
            self._add_pairs(item, self._recipe.instructions)
        line = msgspec.json.encode(item) + b"\n"
        num_bytes = len(item.text.encode())
        entry = Entry(item.id, item.source, len(item.text), num_bytes, self._documents.tell(), len(line))
        self._entries.append(entry)
        self._documents.write(line)
        self._batch.append(item.text)
        self._batch_chars += len(item.text)
        if self._batch_chars >= _BATCH_CHARS:
            self._observe()

    def _add_pairs(self, document: Document, params: InstructionParams) -> None:
        for outcome in pairs_of(document, params):
            if isinstance(outcome, Pair):
                self._pairs.write(msgspec.json.encode(ShardPair(len(self._entries), outcome)) + b"\n")
            else:
                self._skipped[outcome.reason] += 1

    def _observe(self) -> None:
        for step in self._steps:
            self._observed[step.name].append(step.observe(self._batch))
        self._batch, self._batch_chars = [], 0

    def finish(self, directory: Path) -> None:
        """Write what was observed, in arrays of the right width even for no document, and the facts."""
        self._observe()
        for name, parts in self._observed.items():
            write_array(directory / f"{name}.npy", np.concatenate(parts))
        num_read = len(self._entries) + len(self._drops)
        facts = ShardFacts(
            num_read, tuple(self._entries), tuple(self._drops), dict(sorted(self._skipped.items()))
        )
        (directory / "facts.json").write_bytes(msgspec.json.encode(facts))


_DOCUMENT = msgspec.json.Decoder(Document)
_PAIR = msgspec.json.Decoder(ShardPair)


def load_facts(directory: Path) -> ShardFacts:
    """Read what a shard holds."""
    return msgspec.json.decode((directory / "facts.json").read_bytes(), type=ShardFacts)


def load_document(directory: Path, entry: Entry) -> Document:
    """Read one document of a shard."""
    with open(directory / "documents.jsonl", "rb") as file:
        file.seek(entry.offset)
        return _DOCUMENT.decode(file.read(entry.length))


def load_documents(directory: Path) -> Iterator[Document]:
    """Yield the documents of a shard in order."""
    with open(directory / "documents.jsonl", "rb") as file:
        for line in file:
            yield _DOCUMENT.decode(line)


def load_pairs(directory: Path) -> Iterator[ShardPair]:
    """Yield the pairs of a shard in order."""
    with open(directory / "pairs.jsonl", "rb") as file:
        for line in file:
            yield _PAIR.decode(line)
