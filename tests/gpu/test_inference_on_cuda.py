"""The inference runner on a device against the plain network on the CPU."""

from __future__ import annotations

import copy
import random

import pytest

torch = pytest.importorskip("torch")

from tidecell.inference.batcher import Chunk  # noqa: E402
from tidecell.inference.runner import Runner  # noqa: E402
from tidecell.models.transformer import ModelConfig, Transformer  # noqa: E402

CONFIG = ModelConfig(
    vocab_size=211,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=4,
    max_position_embeddings=128,
    initializer_range=0.3,
)


def served(model: Transformer, device: str, prompts: list[list[int]]) -> list[torch.Tensor]:
    """Return the logits after each prompt, by the runner."""
    runner, out, first = Runner(model.state_dict(), CONFIG, 100, 8, device), [], 0
    for number, prompt in enumerate(prompts):
        blocks = list(range(first, first + -(-len(prompt) // 8)))
        first += len(blocks)
        rows, _ = runner.forward([Chunk(number, prompt, 0, blocks, True)])
        out.append(rows[0].float().cpu())
    return out


def test_a_device_is_as_near_to_the_plain_network_as_half_precision_allows():
    rng = random.Random(3)
    prompts = [[rng.randrange(211) for _ in range(rng.randrange(2, 60))] for _ in range(6)]
    model = Transformer(CONFIG, seed=5)
    on_cuda = served(model, "cuda", prompts)
    half = copy.deepcopy(model).to(torch.bfloat16)
    for prompt, mine in zip(prompts, on_cuda, strict=True):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            exact, rounded = model(ids)[0, -1], half(ids)[0, -1].float()
        error, allowed = (mine - exact).norm(), (rounded - exact).norm()
        assert error < 2.0 * allowed, (float(error), float(allowed))
        assert torch.cosine_similarity(mine, exact, dim=0) > 0.99
