"""The last half of a preparation: kept documents to a tokenizer, token files, pairs and lists. I/O."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from tidecell.data.corpus import Corpus
from tidecell.data.dataset import SplitInfo
from tidecell.data.document import Drop, digest64
from tidecell.data.instructions import Pair, answer_digest
from tidecell.data.pack import plan_rows
from tidecell.data.pipeline import SPLITS, TRAIN, Recipe
from tidecell.data.shards import read_array, replacing, token_dtype, write_array
from tidecell.data.tokenizer import TextTokenizer

# Texts encoded at a time: enough for all cores, little memory.
_BATCH_CHARS = 1 << 20


def train_tokenizer(corpus: Corpus, recipe: Recipe) -> TextTokenizer:
    """Train on documents of the training split, up to the recipe's ``tokenizer_bytes`` of them.

    Which ones is decided by hashes of their ids, so that a part of a large corpus stands for all of it.
    """
    indices = [index for index in corpus.kept if corpus.splits[index] == TRAIN]
    indices.sort(key=lambda i: digest64("tokenizer", str(recipe.seed), corpus.entries[i].id))
    return TextTokenizer.train(_texts(corpus, indices, recipe.tokenizer_bytes), recipe.vocab_size)


def _texts(corpus: Corpus, indices: Sequence[int], num_bytes: int) -> Iterator[str]:
    for index in indices:
        yield corpus.document(index).text
        num_bytes -= corpus.entries[index].num_bytes
        if num_bytes <= 0:
            return


def write_tokens(
    corpus: Corpus, tokenizer: TextTokenizer, recipe: Recipe, out: Path, advance: Callable[[int], None]
) -> dict[str, SplitInfo]:
    """Write token files, one per shard and split, and return what each split holds.

    Shards whose files are there are not encoded again.
    """
    for shard in range(len(corpus.shards)):
        if not _shard_path(out, SPLITS[-1], shard, "lengths").exists():
            _write_shard(corpus, tokenizer, shard, out)
        advance(sum(corpus.entries[i].num_bytes for i in corpus.kept_of(shard)))
    return {split: _join_split(corpus, recipe, split, out) for split in SPLITS}


def _shard_path(out: Path, split: str, shard: int, what: str = "") -> Path:
    return out / f"{split}-{shard:05d}{'.' + what if what else ''}.npy"


def _write_shard(corpus: Corpus, tokenizer: TextTokenizer, shard: int, out: Path) -> None:
    tokens: dict[str, list[npt.NDArray[Any]]] = {split: [] for split in SPLITS}
    lengths: dict[str, list[int]] = {split: [] for split in SPLITS}
    dtype = token_dtype(tokenizer.vocab_size)
    for batch in _batches(corpus, shard):
        for (index, _), ids in zip(batch, tokenizer.encode_batch([text for _, text in batch]), strict=True):
            ids.append(tokenizer.end_of_text_id)
            tokens[corpus.splits[index]].append(np.array(ids, dtype=dtype))
            lengths[corpus.splits[index]].append(len(ids))
    for split in SPLITS:
        flat = np.concatenate([np.zeros(0, dtype=dtype), *tokens[split]])
        write_array(_shard_path(out, split, shard), flat.astype(dtype))
        # Lengths come last, so that they say that the tokens are there.
        write_array(_shard_path(out, split, shard, "lengths"), np.array(lengths[split], dtype=np.int64))


def _batches(corpus: Corpus, shard: int) -> Iterator[list[tuple[int, str]]]:
    batch: list[tuple[int, str]] = []
    num_chars = 0
    for index, document in corpus.documents(shard):
        batch.append((index, document.text))
        num_chars += len(document.text)
        if num_chars >= _BATCH_CHARS:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch


def _join_split(corpus: Corpus, recipe: Recipe, split: str, out: Path) -> SplitInfo:
    """Return what a split holds, from its files."""
    numbers = range(len(corpus.shards))
    parts = [np.asarray(read_array(_shard_path(out, split, n, "lengths")), dtype=np.int64) for n in numbers]
    lengths = np.concatenate([np.zeros(0, dtype=np.int64), *parts])
    entries = [corpus.entries[i] for i in corpus.kept if corpus.splits[i] == split]
    num_chars, num_tokens = sum(e.num_chars for e in entries), int(lengths.sum())
    return SplitInfo(
        num_documents=len(entries),
        num_chars=num_chars,
        num_bytes=sum(e.num_bytes for e in entries),
        num_tokens=num_tokens,
        chars_per_token=round(num_chars / num_tokens, 6) if num_tokens else math.nan,
        shards=tuple(_shard_path(out, split, n).name for n in numbers),
        lengths=tuple(_shard_path(out, split, n, "lengths").name for n in numbers),
        packing=plan_rows(lengths, recipe.seq_len).stats,
    )


def write_pairs(
    corpus: Corpus, tokenizer: TextTokenizer, splits: dict[str, SplitInfo], out: Path
) -> tuple[dict[str, SplitInfo], dict[str, int]]:
    """Write the instruction pairs of each split, as JSONL and as tokens.

    A pair is in the split of its document. An answer that occurred before is left out, so none is in both.

    Returns:
        The splits with their pairs, and functions that gave none, by reason.
    """
    found: dict[str, list[Pair]] = {split: [] for split in SPLITS}
    skipped = Counter(corpus.skipped_functions)
    seen: set[bytes] = set()
    for shard in range(len(corpus.shards)):
        for index, shard_pair in corpus.pairs(shard):
            if (digest := answer_digest(shard_pair.pair)) in seen:
                skipped["DuplicateAnswer"] += 1
                continue
            seen.add(digest)
            pair = msgspec.structs.replace(shard_pair.pair, document_id=corpus.entries[index].id)
            found[corpus.splits[index]].append(pair)
    with_pairs: dict[str, SplitInfo] = {}
    for split in SPLITS:
        _write_split_pairs(found[split], split, tokenizer, out)
        name = f"sft.{split}.jsonl" if found[split] else ""
        with_pairs[split] = msgspec.structs.replace(
            splits[split], num_sft_pairs=len(found[split]), sft_pairs=name
        )
    return with_pairs, dict(sorted(skipped.items()))


def _write_split_pairs(pairs: list[Pair], split: str, tokenizer: TextTokenizer, out: Path) -> None:
    if not pairs:
        return
    with replacing(out / f"sft.{split}.jsonl") as file:
        for pair in pairs:
            file.write(msgspec.json.encode(pair) + b"\n")
    chats = tokenizer.encode_chats([[msgspec.to_builtins(m) for m in pair.messages] for pair in pairs])
    tokens = np.concatenate([ids for ids, _ in chats]).astype(token_dtype(tokenizer.vocab_size))
    write_array(out / f"sft.{split}.tokens.npy", tokens)
    write_array(out / f"sft.{split}.spoken.npy", np.concatenate([spoken for _, spoken in chats]))
    write_array(out / f"sft.{split}.lengths.npy", np.array([ids.size for ids, _ in chats], dtype=np.int64))


class KeptDocument(msgspec.Struct, frozen=True):
    """A line of ``documents.jsonl``, in the order of the stream of its split."""

    id: str
    source: str
    split: str
    num_chars: int
    num_bytes: int


def write_documents(corpus: Corpus, drops: Sequence[Drop], out: Path) -> None:
    """Write the lists of documents that were kept and that were not."""
    with replacing(out / "documents.jsonl") as file:
        for index in corpus.kept:
            e = corpus.entries[index]
            line = KeptDocument(e.id, e.source, corpus.splits[index], e.num_chars, e.num_bytes)
            file.write(msgspec.json.encode(line) + b"\n")
    with replacing(out / "dropped.jsonl") as file:
        for record in drops:
            file.write(msgspec.json.encode(record) + b"\n")
