"""Batches in an order that no number of workers can change.

The order of samples is a pure function of (seed, position), position of (step, virtual rank). A training
counts in virtual ranks, whose number is fixed for the run; real workers each take some of them, so a run
that shrinks, grows or resumes sees the same samples in the same steps. The whole state of a loader is the
step, and a seek costs the same wherever it goes.

An epoch is one keyed permutation of the rows (``permutation.permute``); positions run on from one epoch into
the next, so that a batch may hold the end of one and the start of the next, and no row is left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tidecell.data.dataset import Manifest, SplitInfo, load_manifest
from tidecell.data.pack import Plan, plan_rows
from tidecell.data.permutation import permute
from tidecell.data.shards import TokenStream, read_array
from tidecell.structs.errors import DataError

IGNORED = -100
"""Label of a target that does not count, as in torch's cross_entropy."""

Ints = npt.NDArray[np.int64]


def sample_positions(step: int, vrank: int, num_vranks: int, micro_batch: int) -> Ints:
    """Return the positions in the endless sequence of samples that one virtual rank has at a step.

    Raises:
        ValueError: A number is out of range.
    """
    if step < 0 or micro_batch < 1 or not 0 <= vrank < num_vranks:
        raise ValueError(
            f"step {step}, vrank {vrank} of {num_vranks}, micro_batch {micro_batch}: "
            "needs step >= 0, 0 <= vrank < num_vranks, micro_batch >= 1"
        )
    first = (step * num_vranks + vrank) * micro_batch
    return np.arange(first, first + micro_batch, dtype=np.int64)


def sample_rows(positions: Ints, num_rows: int, seed: int) -> Ints:
    """Return the row at each position: every row once in an epoch, in an order of its own."""
    epoch, within = np.divmod(positions, num_rows)
    rows = np.empty_like(positions)
    for number in np.unique(epoch).tolist():
        here = epoch == number
        rows[here] = permute(within[here], num_rows, seed, number)
    return rows


class _Rows:
    """What both loaders share: rows of tokens and labels, drawn in shuffled order."""

    def __init__(self, seq_len: int, seed: int, num_rows: int) -> None:
        self.seq_len = seq_len
        self.seed = seed
        self.num_rows = num_rows

    def batch(self, step: int, vrank: int, num_vranks: int, micro_batch: int) -> tuple[Ints, Ints]:
        """Return the inputs and labels of a virtual rank at a step.

        Args:
            step: Number of the optimiser step, from 0.
            vrank: Virtual rank, from 0.
            num_vranks: Virtual ranks of the run; the global batch is ``num_vranks * micro_batch``.
            micro_batch: Rows per virtual rank and step.

        Returns:
            ``x`` and ``y``, int64, [micro_batch, seq_len] each. ``y`` is -100 where nothing is to be learned.
        """
        positions = sample_positions(step, vrank, num_vranks, micro_batch)
        return self.rows(sample_rows(positions, self.num_rows, self.seed))

    def epoch_of(self, step: int, num_vranks: int, micro_batch: int) -> float:
        """Return how many times the split has been read once ``step`` steps are done."""
        return step * num_vranks * micro_batch / self.num_rows

    def rows(self, indices: Ints) -> tuple[Ints, Ints]:
        """Return inputs and labels of given rows, in the given order."""
        raise NotImplementedError


class Loader(_Rows):
    """Packed rows of a prepared dataset.

    Attributes:
        num_rows: Rows in the split, one epoch.
        num_tokens: Tokens in the split.
        vocab_size: All ids lie below it.
        plan: Which tokens each row holds.
        manifest: The dataset's.
    """

    def __init__(self, directory: Path, split: str, seq_len: int, seed: int) -> None:
        """Open a split.

        Args:
            directory: A version's directory, see ``dataset.resolve``.
            split: "train" or "validation".
            seq_len: Inputs per row; any, the files do not depend on it.
            seed: Names the order.

        Raises:
            DataError: The dataset is damaged, or the split has no rows.
        """
        self.manifest: Manifest = load_manifest(directory)
        info = split_info(self.manifest, split)
        if seq_len < 1:
            raise DataError(f"seq_len is {seq_len}", "a row needs at least 1 input token")
        self._stream = TokenStream([directory / name for name in info.shards])
        lengths = np.concatenate([read_array(directory / name) for name in info.lengths])
        if self._stream.num_tokens != int(lengths.sum()):
            raise DataError(
                f"the {split} files hold {self._stream.num_tokens} tokens, {int(lengths.sum())} were written",
                f"check {directory} with `tide data verify`",
            )
        self.plan: Plan = plan_rows(lengths, seq_len)
        self.num_tokens = self._stream.num_tokens
        self.vocab_size = self.manifest.tokenizer.vocab_size
        self._pad_id = self.manifest.tokenizer.pad_id
        self._start: list[int] = self.plan.start.tolist()
        self._length: list[int] = self.plan.length.tolist()
        self._continues: list[bool] = self.plan.continues.tolist()
        self._row_begin: list[int] = self.plan.row_begin.tolist()
        super().__init__(seq_len, seed, _some_rows(self.plan.stats.num_rows, split))

    def rows(self, indices: Ints) -> tuple[Ints, Ints]:
        """Return inputs and labels of given rows; padding and starts inside a document are not learned."""
        tokens = np.full((len(indices), self.seq_len + 1), self._pad_id, dtype=np.int64)
        labels = np.full((len(indices), self.seq_len + 1), IGNORED, dtype=np.int64)
        for out, row in enumerate(np.asarray(indices).tolist()):
            column = 0
            for piece in range(self._row_begin[row], self._row_begin[row + 1]):
                end = column + self._length[piece]
                self._stream.read_into(tokens[out, column:end], self._start[piece], end - column)
                labels[out, column:end] = tokens[out, column:end]
                if self._continues[piece]:
                    labels[out, column] = IGNORED
                column = end
        return np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(labels[:, 1:])


class SftLoader(_Rows):
    """Instruction pairs of a prepared dataset, one a row; only what an assistant says is learned.

    Pairs of more than ``seq_len + 1`` tokens are skipped, as half an answer teaches a bad end.

    Attributes:
        num_rows: Pairs that fit.
        num_skipped: Pairs that do not.
        vocab_size: All ids lie below it.
        manifest: The dataset's.
    """

    def __init__(self, directory: Path, split: str, seq_len: int, seed: int) -> None:
        """Open the pairs of a split.

        Raises:
            DataError: The dataset has no pairs, or none that fits ``seq_len``.
        """
        self.manifest: Manifest = load_manifest(directory)
        info = split_info(self.manifest, split)
        if not info.num_sft_pairs:
            raise DataError(
                f"the {split} split has no instruction pairs",
                "prepare a Python source with instructions, or a larger share for validation",
            )
        if seq_len < 1:
            raise DataError(f"seq_len is {seq_len}", "a row needs at least 1 input token")
        self._tokens = read_array(directory / f"sft.{split}.tokens.npy")
        self._spoken = read_array(directory / f"sft.{split}.spoken.npy")
        lengths: npt.NDArray[Any] = read_array(directory / f"sft.{split}.lengths.npy")
        fits = np.flatnonzero(lengths <= seq_len + 1)
        if not fits.size:
            shortest = int(lengths.min())
            raise DataError(
                f"none of {lengths.size} instruction pairs fits {seq_len} tokens; the least is {shortest}",
                "use a longer seq_len",
            )
        self._begin: list[int] = (np.cumsum(lengths) - lengths)[fits].tolist()
        self._length: list[int] = lengths[fits].tolist()
        self.num_skipped = int(lengths.size - fits.size)
        self.vocab_size = self.manifest.tokenizer.vocab_size
        self._pad_id = self.manifest.tokenizer.pad_id
        super().__init__(seq_len, seed, int(fits.size))

    def rows(self, indices: Ints) -> tuple[Ints, Ints]:
        """Return inputs and labels of given pairs, padded to ``seq_len``."""
        tokens = np.full((len(indices), self.seq_len + 1), self._pad_id, dtype=np.int64)
        labels = np.full((len(indices), self.seq_len + 1), IGNORED, dtype=np.int64)
        for out, row in enumerate(np.asarray(indices).tolist()):
            begin, length = self._begin[row], self._length[row]
            tokens[out, :length] = self._tokens[begin : begin + length]
            spoken = self._spoken[begin : begin + length].astype(bool)
            labels[out, :length][spoken] = tokens[out, :length][spoken]
        return np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(labels[:, 1:])


def split_info(manifest: Manifest, split: str) -> SplitInfo:
    """Return what a manifest says of a split.

    Raises:
        DataError: There is no such split.
    """
    if split not in manifest.splits:
        raise DataError(f"no split {split!r}; there are: {', '.join(manifest.splits)}")
    return manifest.splits[split]


def _some_rows(num_rows: int, split: str) -> int:
    if not num_rows:
        raise DataError(
            f"the {split} split has no rows", "prepare more text, or another share for validation"
        )
    return num_rows
