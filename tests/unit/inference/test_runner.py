"""Forward passes over the paged pool, against the plain network."""

from __future__ import annotations

import random

import pytest
import torch

from tidecell.inference.batcher import Batcher, Chunk
from tidecell.inference.kv_cache import KVCache
from tidecell.inference.runner import Runner
from tidecell.models.transformer import ModelConfig, Transformer

SHAPES = {
    "grouped heads, tied": ModelConfig(
        vocab_size=211, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=3, max_position_embeddings=128, initializer_range=0.3,
    ),
    "one head each, untied": ModelConfig(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=128, initializer_range=0.3, tie_word_embeddings=False,
    ),
    "normalised, wide heads": ModelConfig(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=128, initializer_range=0.3, qk_norm=True,
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=list(SHAPES))
def model(request: pytest.FixtureRequest) -> Transformer:
    return Transformer(SHAPES[request.param], seed=5)


def requests_of(vocab_size: int, count: int, seed: int = 0) -> list[tuple[list[int], int]]:
    """Return ragged prompts with the numbers of tokens to generate after them."""
    rng = random.Random(seed)
    return [
        ([rng.randrange(vocab_size) for _ in range(rng.randrange(1, 90))], rng.randrange(1, 30))
        for _ in range(count)
    ]


def generate(
    model: Transformer,
    asked: list[tuple[list[int], int]],
    max_batch: int,
    num_blocks: int = 200,
    budget: int = 40,
) -> tuple[list[list[int]], list[list[torch.Tensor]], Batcher]:
    """Return greedy tokens and their logits for all requests."""
    runner = Runner(model.state_dict(), model.config, num_blocks, 8)
    batcher = Batcher(KVCache(num_blocks, 8), max_batch, budget)
    for request_id, (prompt, count) in enumerate(asked):
        batcher.add(request_id, prompt, count)
    outputs: list[list[int]] = [[] for _ in asked]
    logits: list[list[torch.Tensor]] = [[] for _ in asked]
    while chunks := batcher.plan():
        logits_RV, indices = runner.forward(chunks)
        chosen = {}
        for logits_V, index in zip(logits_RV, indices, strict=True):
            request_id = chunks[index].request_id
            chosen[request_id] = int(logits_V.argmax())
            outputs[request_id].append(chosen[request_id])
            logits[request_id].append(logits_V)
        batcher.commit(chunks, chosen)
        for request_id in chosen:
            if len(outputs[request_id]) == asked[request_id][1]:
                batcher.remove(request_id)
    return outputs, logits, batcher


@torch.no_grad()
def recompute(model: Transformer, prompt: list[int], count: int) -> tuple[list[int], list[torch.Tensor]]:
    """Return greedy tokens and logits by running the whole text through the network for each."""
    ids, logits = list(prompt), []
    for _ in range(count):
        logits.append(model(torch.tensor([ids]))[0, -1])
        ids.append(int(logits[-1].argmax()))
    return ids[len(prompt) :], logits


def test_one_request_equals_a_full_recomputation(model: Transformer) -> None:
    asked = requests_of(model.config.vocab_size, 3)
    outputs, logits, _ = generate(model, asked, max_batch=1)
    for (prompt, count), output, rows in zip(asked, outputs, logits, strict=True):
        expected, expected_rows = recompute(model, prompt, count)
        assert output == expected
        torch.testing.assert_close(torch.stack(rows), torch.stack(expected_rows), atol=1e-3, rtol=1e-4)


def alike(first: list[list[torch.Tensor]], second: list[list[torch.Tensor]]) -> bool:
    """Return whether all logits are equal bit for bit."""
    return all(torch.equal(torch.stack(a), torch.stack(b)) for a, b in zip(first, second, strict=True))


def test_a_batch_of_ragged_requests_equals_single_ones_bit_for_bit(model: Transformer) -> None:
    asked = requests_of(model.config.vocab_size, 20)
    single, rows, _ = generate(model, asked, max_batch=1)
    for max_batch in (4, 20):
        outputs, batched_rows, _ = generate(model, asked, max_batch)
        assert outputs == single
        assert alike(rows, batched_rows)


def test_shared_prefixes_change_no_bit(model: Transformer) -> None:
    stem = [token % model.config.vocab_size for token in range(70)]
    asked = [([*stem, tail], 10) for tail in range(8)]
    single = [generate(model, [one], 1) for one in asked]
    outputs, rows, batcher = generate(model, asked, max_batch=2)
    assert batcher.cache.stats().prefix_hits >= 64 * 6
    assert outputs == [output for (output,), _, _ in single]
    assert alike(rows, [row for _, (row,), _ in single])


def test_a_request_that_was_put_back_goes_on_as_if_it_had_not(model: Transformer) -> None:
    asked = requests_of(model.config.vocab_size, 12)
    single, rows, _ = generate(model, asked, max_batch=1)
    outputs, batched_rows, batcher = generate(model, asked, max_batch=6, num_blocks=18)
    assert batcher.num_preemptions > 0
    assert outputs == single
    assert alike(rows, batched_rows)


@pytest.mark.parametrize("budget", [1, 7, 33])
def test_chunks_of_a_prompt_give_what_the_whole_gives(model: Transformer, budget: int) -> None:
    rng = random.Random(3)
    asked = [([rng.randrange(97) for _ in range(length)], 3) for length in (100, 64, 65, 3)]
    whole, rows, _ = generate(model, asked, max_batch=1, budget=1000)
    outputs, chunked_rows, _ = generate(model, asked, max_batch=3, budget=budget)
    assert outputs == whole
    assert alike(rows, chunked_rows)


def test_rows_come_back_in_the_order_of_their_chunks(model: Transformer) -> None:
    runner = Runner(model.state_dict(), model.config, 64, 8)
    chunks = [
        Chunk(request_id=0, tokens=[1, 2, 3], start=0, blocks=[0], samples=True),
        Chunk(request_id=1, tokens=[4], start=0, blocks=[1], samples=True),
        Chunk(request_id=2, tokens=[5, 6], start=0, blocks=[2], samples=False),
    ]
    logits_RV, indices = runner.forward(chunks)
    alone = [runner.forward([chunk])[0] for chunk in chunks[:2]]
    for row, index in enumerate(indices):
        torch.testing.assert_close(logits_RV[row], alone[index][0])
    assert sorted(indices) == [0, 1]
