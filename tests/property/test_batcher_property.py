"""Random requests, cancelled at random: nothing leaks, nothing starves, nothing is computed wrongly."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tidecell.inference.batcher import Batcher
from tidecell.inference.kv_cache import KVCache

BLOCK_SIZE = 3

requests = st.tuples(
    st.lists(st.integers(0, 2), min_size=1, max_size=14),  # few tokens: prefixes are often alike
    st.integers(1, 9),  # tokens to generate
    st.integers(0, 6),  # arrives after so many passes
    st.one_of(st.none(), st.integers(0, 12)),  # cancelled after so many passes
)


class Machine:
    """A pool of blocks that remembers which tokens were written where."""

    def __init__(self, num_blocks: int) -> None:
        self.plans: list[list[tuple[int, tuple[int, ...], int, tuple[int, ...]]]] = []
        self.cells: dict[tuple[int, int], tuple[int, ...]] = {}
        self.batcher = Batcher(KVCache(num_blocks, BLOCK_SIZE), max_batch=3, prefill_budget=5)

    def compute(self, tokens: dict[int, list[int]]) -> dict[int, int]:
        """Run a pass: each position holds its whole past, and must find it in the blocks it reads."""
        chunks = self.batcher.plan()
        self.plans.append([(c.request_id, tuple(c.tokens), c.start, tuple(c.blocks)) for c in chunks])
        chosen = {}
        for chunk in chunks:
            sequence = tokens[chunk.request_id]
            for offset, token in enumerate(chunk.tokens):
                position = chunk.start + offset
                assert token == sequence[position]
                for past in range(position):
                    cell = (chunk.blocks[past // BLOCK_SIZE], past % BLOCK_SIZE)
                    assert self.cells[cell] == tuple(sequence[: past + 1])
                cell = (chunk.blocks[position // BLOCK_SIZE], position % BLOCK_SIZE)
                self.cells[cell] = tuple(sequence[: position + 1])
            if chunk.samples:
                chosen[chunk.request_id] = sum(sequence) % 3
        assert len({c.request_id for c in chunks}) == len(chunks) <= self.batcher.max_batch
        self.batcher.commit(chunks, chosen)
        self.batcher.cache.check()
        return chosen


def run(asked: list[tuple[list[int], int, int, int | None]], num_blocks: int) -> tuple[Machine, set[int]]:
    """Return the machine after all requests, and which of them ended."""
    machine = Machine(num_blocks)
    tokens: dict[int, list[int]] = {}
    done: set[int] = set()
    for now in range(1000):
        for request_id, (prompt, max_tokens, arrival, cancelled) in enumerate(asked):
            if arrival == now:
                tokens[request_id] = list(prompt)
                machine.batcher.add(request_id, prompt, max_tokens)
            if cancelled is not None and now == arrival + cancelled and request_id not in done:
                machine.batcher.remove(request_id)
                done.add(request_id)
        for request_id, token in machine.compute(tokens).items():
            tokens[request_id].append(token)
            prompt, max_tokens, _, _ = asked[request_id]
            if len(tokens[request_id]) == len(prompt) + max_tokens:
                machine.batcher.remove(request_id)
                done.add(request_id)
        if len(done) == len(asked):
            break
    return machine, done


@settings(max_examples=150, deadline=None)
@given(st.lists(requests, max_size=10), st.integers(8, 20))
def test_every_request_ends_reads_only_its_own_past_and_leaves_no_block(
    asked: list[tuple[list[int], int, int, int | None]], num_blocks: int
) -> None:
    machine, done = run(asked, num_blocks)
    assert done == set(range(len(asked)))
    assert machine.batcher.cache.stats().used_blocks == 0
    assert machine.batcher.cache.num_free == num_blocks


@settings(max_examples=50, deadline=None)
@given(st.lists(requests, max_size=8), st.integers(8, 20))
def test_the_same_requests_give_the_same_plans(
    asked: list[tuple[list[int], int, int, int | None]], num_blocks: int
) -> None:
    assert run(asked, num_blocks)[0].plans == run(asked, num_blocks)[0].plans
