"""Block table of a paged KV cache, with prefix caching.

A sequence's keys and values lie in blocks of ``block_size`` tokens. This module decides which block
holds what; it owns no tensor and knows no model. Full blocks are known by a chain of hashes (a block's
hash covers all tokens before it), so a later sequence that begins alike shares them. A block whose last
user left keeps its content until it is needed: least recently used goes first.

Paging is that of vLLM (Kwon et al., SOSP 2023), as is freeing a sequence's last blocks first.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from tidecell.structs.errors import InvariantError

_ROOT = b""


class CacheStats(msgspec.Struct, frozen=True):
    """Counts of a cache.

    Attributes:
        num_blocks: Blocks in all.
        used_blocks: Blocks that some sequence uses.
        cached_blocks: Blocks that hold a known prefix, used or not.
        prefix_queries: Tokens that were looked up in the prefix cache.
        prefix_hits: Tokens of those that were found, and need no computation.
    """

    num_blocks: int
    used_blocks: int
    cached_blocks: int
    prefix_queries: int
    prefix_hits: int


class _Sequence:
    """Blocks of one sequence, and the hash after each full block that was computed."""

    __slots__ = ("blocks", "hashes")

    def __init__(self, blocks: list[int], hashes: list[bytes]) -> None:
        self.blocks = blocks
        self.hashes = hashes


class KVCache:
    """Which blocks belong to which sequence.

    Not safe for use from several threads.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(
                f"num_blocks and block_size must be at least 1, not {num_blocks} and {block_size}"
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._refs = [0] * num_blocks
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        # Unused blocks, next to be taken first. Those with a hash may still be revived.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._sequences: dict[int, _Sequence] = {}
        self._prefix_queries = 0
        self._prefix_hits = 0

    @property
    def num_free(self) -> int:
        """Blocks that may be taken now, those with a cached prefix included."""
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks hold ``num_tokens``."""
        return -(-num_tokens // self.block_size)

    def blocks(self, sequence_id: int) -> Sequence[int]:
        """Return the blocks of a sequence in the order of its tokens."""
        return self._sequences[sequence_id].blocks

    def open(self, sequence_id: int, tokens: Sequence[int]) -> int:
        """Begin a sequence with whatever prefix of ``tokens`` is cached.

        The last token is never taken from the cache: computing it gives the first logits.

        Returns:
            Number of tokens whose keys and values are there already, a multiple of the block size.
        """
        if sequence_id in self._sequences:
            raise InvariantError(f"sequence {sequence_id} is open already")
        blocks: list[int] = []
        hashes: list[bytes] = []
        parent = _ROOT
        for start in range(0, len(tokens) - self.block_size, self.block_size):
            parent = _chain(parent, tokens[start : start + self.block_size])
            block = self._block_of.get(parent)
            if block is None:
                break
            blocks.append(block)
            hashes.append(parent)
        for block in blocks:
            self._use(block)
        self._sequences[sequence_id] = _Sequence(blocks, hashes)
        self._prefix_queries += len(tokens)
        self._prefix_hits += len(blocks) * self.block_size
        return len(blocks) * self.block_size

    def grow(self, sequence_id: int, num_tokens: int) -> bool:
        """Give a sequence room for ``num_tokens`` in all; False, and no change, if too few are free."""
        owned = self._sequences[sequence_id].blocks
        missing = self.blocks_for(num_tokens) - len(owned)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            block, _none = self._free.popitem(last=False)
            self._forget(block)
            self._refs[block] = 1
            owned.append(block)
        return True

    def commit(self, sequence_id: int, tokens: Sequence[int], num_computed: int) -> None:
        """Make full blocks sharable.

        Args:
            sequence_id: The sequence.
            tokens: All of its tokens.
            num_computed: How many of them have their keys and values in the blocks.
        """
        sequence = self._sequences[sequence_id]
        hashes = sequence.hashes
        for index in range(len(hashes), num_computed // self.block_size):
            start = index * self.block_size
            digest = _chain(hashes[-1] if hashes else _ROOT, tokens[start : start + self.block_size])
            hashes.append(digest)
            # Two sequences may compute the same block side by side: the first one is kept.
            if digest not in self._block_of:
                self._block_of[digest] = sequence.blocks[index]
                self._hash_of[sequence.blocks[index]] = digest

    def close(self, sequence_id: int) -> None:
        """Give back the blocks of a sequence; what they hold may be shared until they are needed."""
        sequence = self._sequences.pop(sequence_id)
        for block in reversed(sequence.blocks):
            self._refs[block] -= 1
            if self._refs[block] == 0:
                self._free[block] = None
                if block not in self._hash_of:
                    self._free.move_to_end(block, last=False)

    def stats(self) -> CacheStats:
        """Return the counts as of now."""
        return CacheStats(
            num_blocks=self.num_blocks,
            used_blocks=self.num_blocks - len(self._free),
            cached_blocks=len(self._hash_of),
            prefix_queries=self._prefix_queries,
            prefix_hits=self._prefix_hits,
        )

    def check(self) -> None:
        """Raise ``InvariantError`` unless every block is free or used as often as it is referred to."""
        counts = [0] * self.num_blocks
        for sequence in self._sequences.values():
            for block in sequence.blocks:
                counts[block] += 1
        if counts != self._refs:
            raise InvariantError(f"blocks are referred to {counts} times, but count {self._refs}")
        unused = {block for block, count in enumerate(counts) if count == 0}
        if unused != set(self._free):
            raise InvariantError(
                f"unused blocks are {sorted(unused)}, but the free list has {sorted(self._free)}"
            )
        if {digest: block for block, digest in self._hash_of.items()} != self._block_of:
            raise InvariantError("blocks and hashes do not map to each other one to one")

    def _use(self, block: int) -> None:
        if self._refs[block] == 0:
            del self._free[block]
        self._refs[block] += 1

    def _forget(self, block: int) -> None:
        digest = self._hash_of.pop(block, None)
        if digest is not None:
            del self._block_of[digest]


def _chain(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Return the hash of a block that follows the block with hash ``parent``."""
    return hashlib.blake2b(parent + array("q", tokens).tobytes(), digest_size=16).digest()
