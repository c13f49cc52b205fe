"""The network: shapes, causality, cache, names."""

from __future__ import annotations

import pytest
import torch

from tidecell.models.transformer import KVCache, ModelConfig, Transformer, apply_rope, rope_table
from tidecell.structs.errors import SpecError

SMALL = ModelConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, SMALL.vocab_size, shape, generator=torch.Generator().manual_seed(1))


def test_logits_do_not_depend_on_later_tokens() -> None:
    model = Transformer(SMALL, seed=1)
    tokens = ids(2, 20)
    changed = tokens.clone()
    changed[:, 12:] = 0
    torch.testing.assert_close(model(tokens)[:, :12], model(changed)[:, :12])


@pytest.mark.parametrize("qk_norm", [False, True])
def test_cache_gives_the_logits_of_one_pass(qk_norm: bool) -> None:
    config = ModelConfig.from_hf({**SMALL.to_hf(), "model_type": "qwen3" if qk_norm else "llama"})
    model = Transformer(config, seed=1)
    tokens = ids(1, 30)
    cache = KVCache(config.num_hidden_layers)
    parts = [model(tokens[:, a:b], cache) for a, b in ((0, 9), (9, 21), (21, 22), (22, 30))]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), atol=2e-5, rtol=1e-4)


def test_rope_scores_depend_on_distance_only() -> None:
    cos, sin = rope_table(SMALL, 40)
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, SMALL.head_width, generator=generator) for _ in range(2))

    def score(i: int, j: int) -> float:
        return float((apply_rope(q, cos[i], sin[i]) * apply_rope(k, cos[j], sin[j])).sum())

    assert score(7, 3) == pytest.approx(score(34, 30), abs=1e-4)
    assert score(7, 3) != pytest.approx(score(7, 4), abs=1e-4)


def test_initial_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    first = Transformer(SMALL, seed=3).state_dict()
    torch.manual_seed(6)
    second = Transformer(SMALL, seed=3).state_dict()
    other = Transformer(SMALL, seed=4).state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_parameter_names_are_those_of_llama() -> None:
    names = set(Transformer(SMALL).state_dict())
    assert {
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.k_proj.weight",
        "model.layers.0.self_attn.v_proj.weight",
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.norm.weight",
        "lm_head.weight",
    } <= names
    assert len(names) == 3 + 9 * SMALL.num_hidden_layers


def test_ignored_targets_do_not_move_the_loss() -> None:
    model = Transformer(SMALL, seed=1)
    tokens, targets = ids(2, 10), ids(2, 10)
    masked = targets.clone()
    masked[:, 5:] = -100
    torch.testing.assert_close(model.loss(tokens, masked), model.loss(tokens[:, :5], targets[:, :5]))


def test_greedy_continuation_is_the_argmax_of_full_passes() -> None:
    model = Transformer(SMALL, seed=2)
    prompt = ids(1, 6)[0].tolist()
    expected = list(prompt)
    for _ in range(8):
        expected.append(int(model(torch.tensor([expected]))[0, -1].argmax()))
    assert model.generate(prompt, 8) == expected[6:]


def test_shape_that_does_not_fit_is_refused_with_every_mistake() -> None:
    bad = ModelConfig(vocab_size=8, hidden_size=30, num_attention_heads=4, num_key_value_heads=3)
    with pytest.raises(SpecError) as caught:
        Transformer(bad)
    assert [m.where for m in caught.value.mistakes] == ["num_key_value_heads", "hidden_size", "head_dim"]


def test_too_many_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="65 tokens; the model knows 64 positions"):
        Transformer(SMALL)(ids(1, 65))
