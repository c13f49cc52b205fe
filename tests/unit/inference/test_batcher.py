"""Continuous batching, with a network that is a counter."""

from __future__ import annotations

import pytest

from tidecell.inference.batcher import Batcher, Chunk, RequestState
from tidecell.inference.kv_cache import KVCache


def make(num_blocks: int = 64, max_batch: int = 4, budget: int = 8, block_size: int = 4) -> Batcher:
    return Batcher(KVCache(num_blocks, block_size), max_batch, budget)


def step(batcher: Batcher, token: int = 7) -> list[Chunk]:
    """Compute one pass; every sample is ``token``."""
    chunks = batcher.plan()
    batcher.commit(chunks, {c.request_id: token for c in chunks if c.samples})
    batcher.cache.check()
    return chunks


def shape(chunks: list[Chunk]) -> list[tuple[int, int, int, bool]]:
    return [(c.request_id, c.start, len(c.tokens), c.samples) for c in chunks]


def test_a_long_prompt_is_computed_in_chunks_beside_decoding_requests() -> None:
    batcher = make()
    batcher.add(1, [1, 2], 10)
    assert shape(step(batcher)) == [(1, 0, 2, True)]
    batcher.add(2, list(range(20)), 10)
    assert shape(step(batcher)) == [(1, 2, 1, True), (2, 0, 8, False)]
    assert batcher.state(2) is RequestState.PREFILL
    assert shape(step(batcher)) == [(1, 3, 1, True), (2, 8, 8, False)]
    assert shape(step(batcher)) == [(1, 4, 1, True), (2, 16, 4, True)]
    assert shape(step(batcher)) == [(1, 5, 1, True), (2, 20, 1, True)]


def test_several_prompts_share_one_pass() -> None:
    batcher = make()
    for request_id in (1, 2, 3):
        batcher.add(request_id, [request_id] * 3, 5)
    assert shape(step(batcher)) == [(1, 0, 3, True), (2, 0, 3, True), (3, 0, 2, False)]


def test_no_more_than_max_batch_run_and_the_next_joins_when_one_leaves() -> None:
    batcher = make(max_batch=2)
    for request_id in (1, 2, 3):
        batcher.add(request_id, [1], 5)
    step(batcher)
    assert (batcher.num_running, batcher.num_waiting) == (2, 1)
    batcher.remove(1)
    assert shape(step(batcher)) == [(2, 1, 1, True), (3, 0, 1, True)]


def test_removing_a_request_frees_its_blocks_at_once_wherever_it_is() -> None:
    batcher = make(max_batch=1)
    batcher.add(1, list(range(20)), 5)
    batcher.add(2, [1], 5)
    step(batcher)
    assert batcher.cache.stats().used_blocks > 0
    batcher.remove(2)
    batcher.remove(1)
    assert batcher.cache.stats().used_blocks == 0
    assert batcher.plan() == []


def test_a_request_cancelled_during_a_pass_is_not_committed() -> None:
    batcher = make()
    batcher.add(1, [1, 2], 5)
    chunks = batcher.plan()
    batcher.remove(1)
    batcher.commit(chunks, {1: 7})
    assert batcher.state(1) is None


def test_where_blocks_run_out_the_last_admitted_goes_back_and_is_recomputed() -> None:
    batcher = make(num_blocks=4, budget=32)
    batcher.add(1, [1] * 6, 10)
    batcher.add(2, [2] * 6, 10)
    step(batcher)
    while batcher.num_preemptions == 0:
        step(batcher)
    assert batcher.state(2) is RequestState.WAITING
    assert batcher.state(1) is RequestState.DECODE
    batcher.remove(1)
    chunks = step(batcher)
    assert [c.request_id for c in chunks] == [2]
    # Prompt and what was generated before, but for what the cache still knows.
    assert chunks[0].start + len(chunks[0].tokens) > 6
    assert chunks[0].samples


def test_a_request_that_could_never_fit_is_refused() -> None:
    batcher = make(num_blocks=2)
    with pytest.raises(ValueError, match="3 KV blocks are needed; there are 2"):
        batcher.add(1, [1] * 6, 3)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="a request needs a token and room for one, not 0 and 3"):
        make().add(1, [], 3)


def test_a_shared_prompt_is_computed_once() -> None:
    batcher = make(budget=32)
    batcher.add(1, list(range(12)), 5)
    step(batcher)
    batcher.add(2, [*range(11), 99], 5)
    assert shape(step(batcher))[1] == (2, 8, 4, True)
