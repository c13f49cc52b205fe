"""Exact and near duplicates. Pure, over numpy arrays.

Near duplicates are found as FineWeb does (Penedo et al., 2024): word 5-grams, 112 MinHashes in 14 bands of 8
(a pair with Jaccard similarity 0.8 meets in a band with probability 0.92). Unlike there, every pair that
meets is then verified on its full shingle sets, so nothing is dropped that is less similar than the
threshold says. Of each connected component the first document stays.

A word is a run of ASCII letters, digits and underscores, or of bytes of other scripts; case is ignored.
Scripts without spaces thus make long words, and only near-identical text in them is found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
U32 = npt.NDArray[np.uint32]
Ints = npt.NDArray[np.int64]

_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# Shingles hashed at a time: small enough to stay in a core's second-level cache.
_BLOCK_SHINGLES = 1 << 15
# Members of one bucket that are compared with each other; a bucket beyond this is compared in a window.
_WINDOW = 32


class DedupParams(msgspec.Struct, frozen=True):
    """How near duplicates are found.

    Attributes:
        ngram: Words per shingle.
        bands: Bands of the signature; documents that agree in one are compared.
        rows: MinHashes per band.
        threshold: Least Jaccard similarity of near duplicates.
        seed: Chooses the hash functions.
    """

    ngram: int = 5
    bands: int = 14
    rows: int = 8
    threshold: float = 0.8
    seed: int = 1


def normal_digest(text: str) -> bytes:
    """Return 16 bytes that are equal for texts equal but for case and white space."""
    normal = " ".join(text.lower().split())
    return hashlib.blake2b(normal.encode("utf-8", "replace"), digest_size=16).digest()


def first_occurrences(digests: U64) -> Ints:
    """Return for each digest, a row of [num_documents, 2], the index of its first occurrence."""
    _, first, inverse = np.unique(digests, axis=0, return_index=True, return_inverse=True)
    return first.astype(np.int64)[inverse.ravel()]


def _mix(x: U64) -> U64:
    """Splitmix64's finaliser, element by element."""
    x = x ^ (x >> np.uint64(30))
    x *= _MIX_1
    x ^= x >> np.uint64(27)
    x *= _MIX_2
    return x ^ (x >> np.uint64(31))


def _word_table() -> tuple[U64, npt.NDArray[np.bool_]]:
    """Return a random value for each byte, upper case as lower, and whether it is part of a word."""
    fold = np.arange(256, dtype=np.uint64)
    fold[ord("A") : ord("Z") + 1] += np.uint64(32)
    is_word = np.array([chr(b).isalnum() or b == ord("_") or b >= 128 for b in range(256)])
    return _mix((fold + np.uint64(1)) * _GOLDEN), is_word


_BYTE_VALUE, _IS_WORD = _word_table()
# Position inside a word enters by an odd factor; beyond 64 bytes they recur, which is harmless in a hash.
_POSITION = _mix(np.arange(1, 65, dtype=np.uint64) * _GOLDEN) | np.uint64(1)


def shingles(texts: Sequence[str], ngram: int) -> tuple[U64, Ints]:
    """Return the hashes of all word n-grams of texts, and where each text's begin.

    A text with fewer than ``ngram`` words has one shingle, of all its words, and so has one
    without words.

    Returns:
        Hashes, [num_shingles], and begins, [len(texts) + 1].
    """
    words, word_begin = _word_hashes(texts)
    num_words = np.diff(word_begin)
    num_shingles = np.maximum(num_words - ngram + 1, 1)
    begin = np.concatenate(([0], np.cumsum(num_shingles))).astype(np.int64)
    document = np.repeat(np.arange(len(texts)), num_shingles)
    at = np.arange(document.size) - begin[document] + word_begin[document]
    limit = word_begin[document + 1]
    out = np.zeros(document.size, dtype=np.uint64)
    padded = np.append(words, np.zeros(ngram, dtype=np.uint64))
    for k in range(ngram):
        # Words past the end of a short text count as nothing, not as the next text's.
        word = np.where(at + k < limit, padded[np.minimum(at + k, words.size)], np.uint64(0))
        out = _mix(out + word * _POSITION[k])
    return out, begin


def _word_hashes(texts: Sequence[str]) -> tuple[U64, Ints]:
    """Return the hashes of all words of texts, and where each text's begin, [len(texts) + 1]."""
    encoded = [text.encode("utf-8", "replace") for text in texts]
    # A space after each text keeps its last word from running into the next.
    data = np.frombuffer(b" ".join([*encoded, b""]), dtype=np.uint8)
    ends = np.cumsum([len(e) + 1 for e in encoded], dtype=np.int64)
    if not data.size:
        return np.zeros(0, dtype=np.uint64), np.zeros(len(texts) + 1, dtype=np.int64)
    inside = _IS_WORD[data]
    before = np.concatenate(([False], inside[:-1]))
    starts = np.flatnonzero(inside & ~before)
    positions = np.flatnonzero(inside)
    word_of = np.cumsum((inside & ~before)[positions]) - 1
    offset = (positions - starts[word_of]) & 63 if starts.size else positions
    values = _BYTE_VALUE[data[positions]] * _POSITION[offset]
    begins = np.searchsorted(positions, starts)
    hashes = np.add.reduceat(values, begins) if starts.size else np.zeros(0, dtype=np.uint64)
    text_begin = np.concatenate(([0], np.searchsorted(starts, ends))).astype(np.int64)
    return _mix(hashes), text_begin


def signatures(texts: Sequence[str], params: DedupParams) -> U32:
    """Return the MinHash signatures of texts, uint32 [len(texts), bands * rows]."""
    hashes, begin = shingles(texts, params.ngram)
    num_hashes = params.bands * params.rows
    base = np.arange(1, 2 * num_hashes + 1, dtype=np.uint64) + np.uint64(params.seed << 20)
    random = _mix(base * _GOLDEN)
    factor, offset = random[:num_hashes] | np.uint64(1), random[num_hashes:]
    out = np.full((len(texts), num_hashes), np.uint64(2**64 - 1))
    for first, last in _blocks(begin):
        part = hashes[begin[first] : begin[last]]
        begins = begin[first:last] - begin[first]
        work = np.empty_like(part)
        for k in range(num_hashes):
            # Multiply-shift: the top 32 bits are universal (Dietzfelbinger et al., 1997). Shifted at the end.
            np.multiply(part, factor[k], out=work)
            work += offset[k]
            out[first:last, k] = np.minimum.reduceat(work, begins)
    return (out >> np.uint64(32)).astype(np.uint32)


def _blocks(begin: Ints) -> list[tuple[int, int]]:
    """Cut texts into runs of about ``_BLOCK_SHINGLES`` shingles, at least one text each."""
    blocks: list[tuple[int, int]] = []
    first, num_texts = 0, begin.size - 1
    while first < num_texts:
        last = int(np.searchsorted(begin, begin[first] + _BLOCK_SHINGLES, side="right")) - 1
        last = min(max(last, first + 1), num_texts)
        blocks.append((first, last))
        first = last
    return blocks


def candidate_pairs(signature: U32, params: DedupParams) -> Ints:
    """Return pairs (earlier, later) of documents that agree in at least one band, [num_pairs, 2], sorted.

    In a bucket of more than 32 documents each is paired with the first and with the 32 before it, so that a
    page copied a million times costs no trillion comparisons.
    """
    found: list[Ints] = []
    for band in range(params.bands):
        rows = signature[:, band * params.rows : (band + 1) * params.rows]
        key = np.zeros(len(rows), dtype=np.uint64)
        for column in range(params.rows):
            key = _mix(key + rows[:, column] + _GOLDEN)
        found.append(_bucket_pairs(key))
    if not found:
        return np.zeros((0, 2), dtype=np.int64)
    return np.unique(np.concatenate(found), axis=0)


def _bucket_pairs(key: U64) -> Ints:
    """Return pairs with equal keys: each document with up to ``_WINDOW`` before it, and with the first."""
    order = np.argsort(key, kind="stable").astype(np.int64)
    ordered = key[order]
    new = np.concatenate(([True], ordered[1:] != ordered[:-1])) if order.size else np.zeros(0, dtype=bool)
    bucket_start = np.flatnonzero(new)[np.cumsum(new) - 1] if order.size else order
    rank = np.arange(order.size) - bucket_start
    pairs: list[Ints] = [np.zeros((0, 2), dtype=np.int64)]
    far = np.flatnonzero(rank > _WINDOW)
    pairs.append(np.stack([order[bucket_start[far]], order[far]], axis=1))
    for back in range(1, _WINDOW + 1):
        later = np.flatnonzero(rank >= back)
        if not later.size:
            break
        pairs.append(np.stack([order[later - back], order[later]], axis=1))
    return np.concatenate(pairs)


def jaccard(a: U64, b: U64) -> float:
    """Return the Jaccard similarity of two sets, given as sorted arrays of distinct values."""
    if not a.size and not b.size:
        return 1.0
    shared = np.intersect1d(a, b, assume_unique=True).size
    return float(shared / (a.size + b.size - shared))


def near_duplicates(
    signature: U32, shingle_set: Callable[[int], U64], params: DedupParams
) -> dict[int, tuple[int, float]]:
    """Return the documents to drop: each with the document that is kept instead, and a similarity.

    Args:
        signature: MinHash signatures in document order.
        shingle_set: Gives the sorted distinct shingles of a document; asked only for candidates.
        params: How similar is too similar.

    Returns:
        Index of each dropped document to (index of the one kept, the highest similarity that linked it).
    """
    parent = list(range(len(signature)))
    best: dict[int, float] = {}
    for earlier, later in candidate_pairs(signature, params).tolist():
        a, b = find(parent, earlier), find(parent, later)
        if a == b:
            continue
        similarity = jaccard(shingle_set(earlier), shingle_set(later))
        if similarity >= params.threshold:
            # The smaller index is the root, so the first document of a component stays.
            parent[max(a, b)] = min(a, b)
            for member in (earlier, later):
                best[member] = max(best.get(member, 0.0), similarity)
    roots = ((member, find(parent, member)) for member in sorted(best))
    return {member: (root, best[member]) for member, root in roots if member != root}


def find(parent: list[int], node: int) -> int:
    """Return the root of a node, halving its path (Tarjan and van Leeuwen, 1984)."""
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node
