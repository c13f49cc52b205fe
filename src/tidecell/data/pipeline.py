"""What is done to documents, step by step, and how many each step leaves. Pure.

There are two shapes of step. A local step looks at one document and can run over any part of the corpus
anywhere. A global step looks at all of them in three moves: ``observe`` a part (anywhere), ``decide`` once
over all observations, and the executor then leaves out what was decided against. Only observations, a few
hundred bytes per document, ever come together.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from tidecell.data import dedup
from tidecell.data.dedup import DedupParams
from tidecell.data.document import Document, Drop, DropReason, Rejection, digest64, drop
from tidecell.data.filters import FilterParams, clean, judge
from tidecell.structs.errors import DataError

DEFAULT_SEQ_LEN = 256
# A model of about 2 M parameters with a width of 128 to 256 would spend half of them on 4096 embeddings.
DEFAULT_VOCAB_SIZE = 2048
TRAIN, VALIDATION = "train", "validation"
SPLITS = (TRAIN, VALIDATION)


class InstructionParams(msgspec.Struct, frozen=True):
    """Which functions become instruction pairs.

    Attributes:
        min_lines: Fewest lines of a function.
        max_lines: Most lines.
        max_chars: Most characters of a function.
        min_doc_chars: Fewest characters of a docstring's first paragraph.
        max_doc_chars: Most characters of it.
    """

    min_lines: int = 3
    max_lines: int = 40
    max_chars: int = 1500
    min_doc_chars: int = 15
    max_doc_chars: int = 400


class Recipe(msgspec.Struct, frozen=True):
    """Everything that turns sources into a dataset; with the sources it decides every byte.

    Attributes:
        seed: Chooses which documents are read under ``max_bytes``, and the validation split.
        max_bytes: Most bytes of text to read, or None for all.
        shard_bytes: Bytes of text that are worked on, and stored, together.
        filters: Bounds of the quality rules.
        dedup: How near duplicates are found; None leaves them in.
        validation_share: Share of documents for validation, 0.0 to 0.5 exclusive.
        vocab_size: Size of the vocabulary.
        tokenizer_bytes: Most bytes of text that the tokenizer is trained on.
        seq_len: Inputs per row that packing is reported for.
        instructions: Which functions become instruction pairs; None makes none.
    """

    seed: int = 0
    max_bytes: int | None = None
    shard_bytes: int = 4 << 20
    filters: FilterParams = FilterParams()
    dedup: DedupParams | None = DedupParams()
    validation_share: float = 0.05
    vocab_size: int = DEFAULT_VOCAB_SIZE
    tokenizer_bytes: int = 32 << 20
    seq_len: int = DEFAULT_SEQ_LEN
    instructions: InstructionParams | None = InstructionParams()


def check_recipe(recipe: Recipe) -> None:
    """Refuse a recipe that cannot work.

    Raises:
        DataError: A number is out of range.
    """
    if recipe.seq_len < 1:
        raise DataError(f"seq_len is {recipe.seq_len}, at least 1 is allowed", "256 suits a small model")
    if recipe.max_bytes is not None and recipe.max_bytes < 1:
        raise DataError(f"max_bytes is {recipe.max_bytes}, at least 1 is allowed", "leave it out to read all")
    if not 0.0 < recipe.validation_share < 0.5:
        raise DataError(
            f"the validation share is {recipe.validation_share}; above 0 and below 0.5 is allowed",
            "0.05 is usual",
        )


class StepCount(msgspec.Struct, frozen=True):
    """Documents before and after a step.

    Attributes:
        step: Name of the step.
        num_in: Documents that it saw.
        num_out: Documents that it left.
    """

    step: str
    num_in: int
    num_out: int


class LocalStep(Protocol):
    """A step that needs one document at a time."""

    name: str

    def __call__(self, document: Document) -> Document | Rejection:
        """Return the document, changed or not, or why it is dropped."""
        ...


class GlobalStep(Protocol):
    """A step that needs to know all documents."""

    name: str

    def observe(self, texts: Sequence[str]) -> npt.NDArray[Any]:
        """Return one row of facts per text."""
        ...

    def decide(
        self, observed: npt.NDArray[Any], text_of: Callable[[int], str], id_of: Callable[[int], str]
    ) -> dict[int, Rejection]:
        """Return the documents to drop, by index, given the rows of all documents in order."""
        ...


class CleanStep:
    """Normalises a text; see ``filters.clean``."""

    name = "clean"

    def __call__(self, document: Document) -> Document | Rejection:
        text = clean(document.text)
        if not text:
            return Rejection(DropReason.EMPTY, "0 characters after cleaning")
        return msgspec.structs.replace(document, text=text)


class QualityStep:
    """Drops what the rules refuse; see ``filters.judge``."""

    name = "quality"

    def __init__(self, params: FilterParams) -> None:
        self._params = params

    def __call__(self, document: Document) -> Document | Rejection:
        return judge(document, self._params) or document


class ExactStep:
    """Keeps the first of texts that are equal but for case and spacing."""

    name = "exact-dedup"

    def observe(self, texts: Sequence[str]) -> npt.NDArray[Any]:
        """Return a digest per text, uint64 [len(texts), 2]."""
        joined = b"".join(map(dedup.normal_digest, texts))
        return np.frombuffer(joined, dtype="<u8").reshape(-1, 2)

    def decide(
        self, observed: npt.NDArray[Any], text_of: Callable[[int], str], id_of: Callable[[int], str]
    ) -> dict[int, Rejection]:
        """Drop all but the first of each digest."""
        first = dedup.first_occurrences(observed)
        copies = np.flatnonzero(first != np.arange(first.size)).tolist()
        return {i: Rejection(DropReason.EXACT_DUPLICATE, f"same as {id_of(int(first[i]))}") for i in copies}


class NearStep:
    """Keeps the first of texts that are nearly the same; see ``dedup``."""

    name = "near-dedup"

    def __init__(self, params: DedupParams) -> None:
        self._params = params

    def observe(self, texts: Sequence[str]) -> npt.NDArray[Any]:
        """Return a MinHash signature per text."""
        return dedup.signatures(texts, self._params)

    def decide(
        self, observed: npt.NDArray[Any], text_of: Callable[[int], str], id_of: Callable[[int], str]
    ) -> dict[int, Rejection]:
        """Drop all but the first of each group of near duplicates."""

        # Pairs come sorted, so a document that many are compared with stays cached.
        @functools.lru_cache(maxsize=256)
        def shingle_set(index: int) -> dedup.U64:
            return np.unique(dedup.shingles([text_of(index)], self._params.ngram)[0])

        found = dedup.near_duplicates(observed, shingle_set, self._params)
        return {
            index: Rejection(
                DropReason.NEAR_DUPLICATE,
                f"{similarity:.2f} of {self._params.ngram}-grams shared, group of {id_of(kept)}",
            )
            for index, (kept, similarity) in found.items()
        }


def local_steps(recipe: Recipe) -> list[LocalStep]:
    """Return the steps that look at one document at a time, in order."""
    return [CleanStep(), QualityStep(recipe.filters)]


def global_steps(recipe: Recipe) -> list[GlobalStep]:
    """Return the steps that look at all documents, in order."""
    return [ExactStep(), *([NearStep(recipe.dedup)] if recipe.dedup else [])]


def run_local(documents: Iterable[Document], steps: Sequence[LocalStep]) -> Iterator[Document | Drop]:
    """Yield what becomes of each document: itself after all steps, or the record of its drop."""
    for document in documents:
        outcome: Document | Drop = document
        for step in steps:
            result = step(document)
            if isinstance(result, Rejection):
                outcome = drop(document, step.name, result)
                break
            outcome = document = result
        yield outcome


def count_steps(names: Sequence[str], num_seen: int, dropped_by: dict[str, int]) -> tuple[StepCount, ...]:
    """Return what each step saw and left, given how many each dropped."""
    counts: list[StepCount] = []
    for name in names:
        left = num_seen - dropped_by.get(name, 0)
        counts.append(StepCount(name, num_seen, left))
        num_seen = left
    return tuple(counts)


def split_of(document_id: str, recipe: Recipe) -> str:
    """Return the split of a document: a function of its id and the seed, not of its neighbours."""
    share = digest64("split", str(recipe.seed), document_id) / 2**64
    return VALIDATION if share < recipe.validation_share else TRAIN


def assign_splits(document_ids: Sequence[str], recipe: Recipe) -> list[str]:
    """Return the split of each document; each split gets at least one of two or more.

    Raises:
        DataError: There are fewer than two documents.
    """
    if len(document_ids) < 2:
        raise DataError(
            f"{len(document_ids)} document is left, and training and validation need one each",
            "add text, or see why documents were dropped",
        )
    splits = [split_of(i, recipe) for i in document_ids]
    for wanted in SPLITS:
        if wanted not in splits:
            # Too few documents for the share: the one whose hash comes first changes sides.
            hashes = [digest64("split", str(recipe.seed), i) for i in document_ids]
            splits[hashes.index(min(hashes) if wanted == VALIDATION else max(hashes))] = wanted
    return splits


def hash_of(*parts: bytes) -> str:
    """Return the SHA-256 of parts, each preceded by its length, as hexadecimal digits."""
    state = hashlib.sha256()
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.hexdigest()
