"""Loaders over a prepared dataset."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tidecell.data.executor import Prepared
from tidecell.data.loader import IGNORED, Loader, SftLoader
from tidecell.data.tokenizer import TextTokenizer
from tidecell.structs.errors import DataError


def epoch_of_rows(
    loader: Loader | SftLoader, num_vranks: int, micro_batch: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    num_steps = -(-loader.num_rows // (num_vranks * micro_batch))
    rows = []
    for step in range(num_steps):
        for vrank in range(num_vranks):
            rows += list(zip(*loader.batch(step, vrank, num_vranks, micro_batch), strict=True))
    return rows[: loader.num_rows]


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("seq_len", [16, 64, 500])
def test_one_epoch_has_every_document_of_the_split_word_for_word(
    prepared: Prepared, corpus_dir: Path, split: str, seq_len: int
) -> None:
    loader = Loader(prepared.directory, split, seq_len, seed=3)
    tokenizer = TextTokenizer.load(prepared.directory / "tokenizer")
    targets = np.concatenate([y[y != IGNORED] for _, y in epoch_of_rows(loader, 2, 3)])
    listed = [json.loads(line) for line in (prepared.directory / "documents.jsonl").read_text().splitlines()]
    texts = [(corpus_dir.parent / d["id"]).read_text() for d in listed if d["split"] == split]
    wanted = np.concatenate([[*tokenizer.encode(t), 0] for t in texts])
    # A document's first token is a target only where another document stands before it in the row.
    info = prepared.manifest.splits[split]
    assert wanted.size == info.num_tokens == loader.num_tokens
    missing = np.bincount(wanted, minlength=400) - np.bincount(targets, minlength=400)
    assert missing.min() >= 0
    assert missing.sum() <= info.num_documents
    assert sum(len(t) for t in texts) == info.num_chars
    assert info.chars_per_token == pytest.approx(info.num_chars / info.num_tokens, abs=1e-6)


def test_labels_are_the_next_inputs(prepared: Prepared) -> None:
    loader = Loader(prepared.directory, "train", 64, seed=0)
    x, y = loader.batch(5, 1, 2, 4)
    assert x.shape == y.shape == (4, 64)
    assert x.dtype == y.dtype == np.int64
    learned = y[:, :-1] != IGNORED
    assert learned.mean() > 0.8
    assert np.array_equal(y[:, :-1][learned], x[:, 1:][learned])
    assert 0 <= x.min() <= x.max() < loader.vocab_size


def test_batches_are_a_function_of_seed_and_step_alone(prepared: Prepared) -> None:
    one, two = (Loader(prepared.directory, "train", 64, seed=7) for _ in range(2))
    one.batch(0, 0, 4, 2)
    for step in (10**9, 3):
        for a, b in zip(one.batch(step, 2, 4, 2), two.batch(step, 2, 4, 2), strict=True):
            assert np.array_equal(a, b)
    other = Loader(prepared.directory, "train", 64, seed=8)
    assert not np.array_equal(one.batch(0, 0, 1, 8)[0], other.batch(0, 0, 1, 8)[0])


def test_virtual_ranks_divide_what_one_rank_would_read(prepared: Prepared) -> None:
    loader = Loader(prepared.directory, "train", 64, seed=1)
    whole = loader.batch(4, 0, 1, 8)[0]
    parts = [loader.batch(4, v, 4, 2)[0] for v in range(4)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_epochs_differ_in_order(prepared: Prepared) -> None:
    loader = Loader(prepared.directory, "train", 64, seed=1)
    first, second = (loader.batch(epoch, 0, 1, loader.num_rows)[0] for epoch in (0, 1))
    assert not np.array_equal(first, second)
    assert sorted(map(bytes, first)) == sorted(map(bytes, second))
    assert loader.epoch_of(3, 1, loader.num_rows) == 3.0


def test_sft_rows_teach_only_the_answer(prepared: Prepared) -> None:
    loader = SftLoader(prepared.directory, "train", 256, seed=0)
    tokenizer = TextTokenizer.load(prepared.directory / "tokenizer")
    lines = (prepared.directory / "sft.train.jsonl").read_text().splitlines()
    answers = {json.loads(line)["messages"][1]["content"] + "<|endoftext|>" for line in lines}
    rows = epoch_of_rows(loader, 1, 4)
    taught = [tokenizer.decode(y[y != IGNORED], skip_special=False) for _, y in rows]
    assert loader.num_skipped == 0
    assert len(taught) == len(lines) == prepared.manifest.splits["train"].num_sft_pairs
    assert set(taught) == answers
    x, y = rows[0]
    assert tokenizer.decode(x, skip_special=False).startswith("<|user|>Write this Python function.")
    learned = y[:-1] != IGNORED
    assert np.array_equal(y[:-1][learned], x[1:][learned])


def test_pairs_that_do_not_fit_are_skipped_whole(prepared: Prepared) -> None:
    lengths = np.load(prepared.directory / "sft.train.lengths.npy")
    seq_len = int(np.median(lengths))
    loader = SftLoader(prepared.directory, "train", seq_len, seed=0)
    assert loader.num_skipped == int((lengths > seq_len + 1).sum()) > 0
    assert loader.num_rows + loader.num_skipped == lengths.size
    with pytest.raises(DataError, match="pairs fits 3 tokens"):
        SftLoader(prepared.directory, "train", 3, seed=0)


def test_wrong_splits_and_numbers_are_refused(prepared: Prepared) -> None:
    with pytest.raises(DataError, match="no split 'test'; there are: train, validation"):
        Loader(prepared.directory, "test", 64, 0)
    loader = Loader(prepared.directory, "train", 64, 0)
    with pytest.raises(ValueError, match="vrank 2 of 2"):
        loader.batch(0, 2, 2, 1)


def test_a_shard_cut_short_is_an_error_not_fewer_samples(prepared: Prepared, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(prepared.directory, copy)
    shard = copy / "train-00001.npy"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"train-00001\.npy cannot be read"):
        Loader(copy, "train", 64, 0)
    shutil.copy(copy / "train-00000.npy", shard)
    with pytest.raises(DataError, match="were written"):
        Loader(copy, "train", 64, 0)
