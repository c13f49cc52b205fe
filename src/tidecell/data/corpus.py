"""All shards of a preparation seen as one list of documents. I/O.

Only entries, a hundred bytes a document, are in memory; texts are read where they are needed. A document is
known by its index: its place in the order of reading.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from tidecell.data.document import Document, Drop, Rejection, drop
from tidecell.data.pipeline import GlobalStep, Recipe, assign_splits
from tidecell.data.reading import Entry, ShardPair, load_document, load_documents, load_facts, load_pairs
from tidecell.data.shards import read_array


class Decision(msgspec.Struct, frozen=True):
    """A global step's refusal of a document."""

    index: int
    step: str
    rejection: Rejection


class Corpus:
    """Documents after the local steps.

    Attributes:
        shards: Directories of the shards, in order.
        entries: Every document, in order; ids are unique.
        shard_begin: Index of each shard's first document, and the number of documents last.
        num_read: Documents that were seen before any step, those that could not be read included.
        drops: Documents that were dropped so far.
        kept: Indices of those that were not.
        splits: Split of each kept document, by index, once ``assign_splits`` has run.
        skipped_functions: Functions without a pair, by reason.
    """

    def __init__(self) -> None:
        self.shards: list[Path] = []
        self.entries: list[Entry] = []
        self.shard_begin: list[int] = [0]
        self.num_read = 0
        self.drops: list[Drop] = []
        self.kept: list[int] = []
        self.splits: dict[int, str] = {}
        self.skipped_functions: Counter[str] = Counter()

    @classmethod
    def load(cls, shards: Sequence[Path]) -> Corpus:
        """Read what every shard holds; an id that recurs is numbered."""
        corpus = cls()
        seen: set[str] = set()
        for directory in shards:
            facts = load_facts(directory)
            corpus.shards.append(directory)
            for entry in facts.entries:
                corpus.entries.append(msgspec.structs.replace(entry, id=_unique(entry.id, seen)))
            corpus.shard_begin.append(len(corpus.entries))
            corpus.num_read += facts.num_read
            corpus.drops += facts.drops
            corpus.skipped_functions.update(facts.skipped_functions)
        corpus.kept = list(range(len(corpus.entries)))
        return corpus

    def document(self, index: int) -> Document:
        """Read one document."""
        at = int(np.searchsorted(self.shard_begin, index, side="right")) - 1
        return self._renamed(index, load_document(self.shards[at], self.entries[index]))

    def documents(self, shard: int) -> Iterator[tuple[int, Document]]:
        """Yield the kept documents of a shard with their indices."""
        kept = set(self.kept_of(shard))
        for index, document in enumerate(load_documents(self.shards[shard]), self.shard_begin[shard]):
            if index in kept:
                yield index, self._renamed(index, document)

    def pairs(self, shard: int) -> Iterator[tuple[int, ShardPair]]:
        """Yield the pairs of a shard's kept documents with the documents' indices."""
        kept = set(self.kept_of(shard))
        for pair in load_pairs(self.shards[shard]):
            index = self.shard_begin[shard] + pair.position
            if index in kept:
                yield index, pair

    def kept_of(self, shard: int) -> list[int]:
        """Return the indices of a shard's kept documents."""
        low, high = np.searchsorted(self.kept, self.shard_begin[shard : shard + 2])
        return self.kept[low:high]

    def kept_entries(self) -> Iterator[Entry]:
        """Yield the entries of kept documents."""
        return (self.entries[index] for index in self.kept)

    def leave_out(self, decisions: bytes) -> None:
        """Drop what global steps decided against, given as JSON of a list of ``Decision``."""
        decided = msgspec.json.decode(decisions, type=list[Decision])
        for decision in decided:
            self.drops.append(drop(self.document(decision.index), decision.step, decision.rejection))
        dropped = {decision.index for decision in decided}
        self.kept = [index for index in self.kept if index not in dropped]

    def assign_splits(self, recipe: Recipe) -> None:
        """Decide the split of every kept document.

        Raises:
            DataError: There are too few.
        """
        ids = [self.entries[index].id for index in self.kept]
        self.splits = dict(zip(self.kept, assign_splits(ids, recipe), strict=True))

    def _renamed(self, index: int, document: Document) -> Document:
        return msgspec.structs.replace(document, id=self.entries[index].id)


def _unique(name: str, seen: set[str]) -> str:
    """Return ``name``, numbered if an earlier document has it."""
    fresh, number = name, 2
    while fresh in seen:
        fresh, number = f"{name}~{number}", number + 1
    seen.add(fresh)
    return fresh


def decide(corpus: Corpus, steps: Sequence[GlobalStep]) -> list[Decision]:
    """Run global steps, each over what those before it left, and return what they drop."""
    decisions: list[Decision] = []
    kept = np.array(corpus.kept, dtype=np.int64)
    for step in steps:
        observed = np.concatenate([read_array(shard / f"{step.name}.npy") for shard in corpus.shards])
        left = kept
        found = step.decide(
            observed[left],
            lambda i, left=left: corpus.document(int(left[i])).text,  # type: ignore[misc]
            lambda i, left=left: corpus.entries[int(left[i])].id,  # type: ignore[misc]
        )
        decisions += [Decision(int(left[i]), step.name, found[i]) for i in sorted(found)]
        kept = np.delete(left, list(found))
    return decisions
