"""The block table: sharing by content, eviction by age."""

from __future__ import annotations

import pytest

from tidecell.inference.kv_cache import KVCache
from tidecell.structs.errors import InvariantError


def filled(cache: KVCache, sequence_id: int, tokens: list[int]) -> int:
    """Open a sequence, compute all of its tokens, and return what the cache had of them."""
    known = cache.open(sequence_id, tokens)
    assert cache.grow(sequence_id, len(tokens))
    cache.commit(sequence_id, tokens, len(tokens))
    return known


def test_a_sequence_that_begins_alike_shares_its_full_blocks() -> None:
    cache = KVCache(8, 4)
    assert filled(cache, 1, [1, 2, 3, 4, 5, 6, 7, 8, 9]) == 0
    assert filled(cache, 2, [1, 2, 3, 4, 5, 6, 7, 8, 10]) == 8
    assert list(cache.blocks(2))[:2] == list(cache.blocks(1))[:2]
    assert cache.blocks(2)[2] != cache.blocks(1)[2]
    assert cache.stats().used_blocks == 4
    cache.check()


def test_the_last_token_is_always_computed() -> None:
    cache = KVCache(8, 4)
    filled(cache, 1, [1, 2, 3, 4])
    assert filled(cache, 2, [1, 2, 3, 4]) == 0
    assert filled(cache, 3, [1, 2, 3, 4, 5]) == 4


def test_equal_blocks_after_different_beginnings_are_not_shared() -> None:
    cache = KVCache(8, 2)
    filled(cache, 1, [1, 1, 5, 5, 9])
    assert filled(cache, 2, [2, 2, 5, 5, 9]) == 0


def test_what_is_not_computed_is_not_shared() -> None:
    cache = KVCache(8, 2)
    cache.open(1, [1, 1, 2, 2, 3])
    cache.grow(1, 5)
    cache.commit(1, [1, 1, 2, 2, 3], 3)
    assert cache.open(2, [1, 1, 2, 2, 3]) == 2


def test_a_closed_sequence_stays_known_until_its_blocks_are_needed() -> None:
    cache = KVCache(4, 2)
    filled(cache, 1, [1, 1, 2, 2, 3])
    cache.close(1)
    assert cache.num_free == 4
    assert filled(cache, 2, [1, 1, 2, 2, 4]) == 4
    cache.close(2)
    filled(cache, 3, [7] * 8)
    cache.close(3)
    assert filled(cache, 4, [1, 1, 2, 2, 4]) == 0


def test_the_least_recently_used_block_goes_first_and_an_end_before_its_beginning() -> None:
    cache = KVCache(4, 2)
    filled(cache, 1, [1, 1, 2, 2])
    filled(cache, 2, [3, 3, 4, 4])
    cache.close(1)
    cache.close(2)
    assert filled(cache, 3, [9]) == 0  # takes the block that was [2, 2]
    assert cache.open(4, [1, 1, 2, 2, 0]) == 2
    assert cache.open(5, [3, 3, 4, 4, 0]) == 4
    cache.check()


def test_growing_past_the_pool_changes_nothing() -> None:
    cache = KVCache(2, 2)
    cache.open(1, [1])
    assert cache.grow(1, 2)
    assert not cache.grow(1, 5)
    assert cache.num_free == 1
    cache.check()


def test_opening_a_sequence_twice_is_a_defect() -> None:
    cache = KVCache(2, 2)
    cache.open(1, [1])
    with pytest.raises(InvariantError, match="sequence 1 is open already"):
        cache.open(1, [1])


def test_a_leak_is_found_by_the_check() -> None:
    cache = KVCache(2, 2)
    cache.open(1, [1])
    cache.grow(1, 2)
    cache._refs[cache.blocks(1)[0]] = 2
    with pytest.raises(InvariantError, match="are referred to"):
        cache.check()
