"""The language model: a compact Llama-style decoder.

RMSNorm, rotary positions, grouped-query attention, SwiGLU; optionally tied embeddings and QK-norm.
The configuration carries the field names of Hugging Face's ``LlamaConfig`` and parameters carry the
names of ``LlamaForCausalLM`` (``Qwen3ForCausalLM`` with QK-norm), so that a saved model opens in
transformers, vLLM and llama.cpp's converter without a mapping.

Tensor suffixes: B batch, T tokens of this call, S tokens seen so far (cache included), D hidden,
H query heads, K key-value heads, E width of a head, V vocabulary.

Sources: Touvron et al., Llama (2023); Su et al., RoFormer (2021); Ainslie et al., GQA (2023);
Shazeer, GLU variants (2020).
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tidecell.structs.errors import Mistake, SpecError


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Shape of the network, in the field names of ``LlamaConfig``.

    Attributes:
        head_dim: Width of one head; 0: ``hidden_size / num_attention_heads``.
        qk_norm: Normalise queries and keys per head (then the architecture is Qwen3's).
    """

    vocab_size: int
    hidden_size: int = 192
    intermediate_size: int = 512
    num_hidden_layers: int = 4
    num_attention_heads: int = 6
    num_key_value_heads: int = 3
    head_dim: int = 0
    max_position_embeddings: int = 512
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    qk_norm: bool = False

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def architecture(self) -> str:
        """The class that transformers opens this with."""
        return "Qwen3ForCausalLM" if self.qk_norm else "LlamaForCausalLM"

    def check(self) -> None:
        """Raise ``SpecError`` with every mistake in the shape."""
        mistakes = []
        if self.num_attention_heads % self.num_key_value_heads:
            mistakes.append(
                Mistake(
                    "num_key_value_heads",
                    f"{self.num_key_value_heads} does not divide {self.num_attention_heads} attention heads",
                    "choose a divisor of num_attention_heads",
                )
            )
        if not self.head_dim and self.hidden_size % self.num_attention_heads:
            mistakes.append(
                Mistake(
                    "hidden_size",
                    f"{self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}",
                    "choose a multiple, or set head_dim",
                )
            )
        if self.head_width % 2:
            mistakes.append(Mistake("head_dim", f"{self.head_width} is odd; rotary positions need pairs"))
        if mistakes:
            raise SpecError(mistakes, "the model's shape")

    def to_hf(self) -> dict[str, Any]:
        """Return the content of ``config.json``."""
        return {
            "architectures": [self.architecture],
            "model_type": "qwen3" if self.qk_norm else "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_width,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            # transformers 5 reads this one, older readers the one above.
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "tie_word_embeddings": self.tie_word_embeddings,
            "initializer_range": self.initializer_range,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "pad_token_id": self.pad_token_id,
            "use_cache": True,
        }

    @classmethod
    def from_hf(cls, data: dict[str, Any]) -> ModelConfig:
        """Return the shape that a ``config.json`` describes.

        Raises:
            SpecError: The file describes a network that this module is not.
        """
        mistakes = [
            Mistake(key, f"{data[key]!r} is not supported", f"only {allowed} is")
            for key, allowed in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False))
            if data.get(key, allowed) != allowed
        ]
        model_type = data.get("model_type", "llama")
        if model_type not in ("llama", "qwen3"):
            mistakes.append(Mistake("model_type", f"{model_type!r} is not supported", "llama and qwen3 are"))
        rope = data.get("rope_parameters") or {}
        scaling = data.get("rope_scaling") or {}
        rope_type = rope.get("rope_type") or scaling.get("rope_type") or "default"
        if rope_type != "default":
            mistakes.append(Mistake("rope_parameters", f"rope_type {rope_type!r} is not supported"))
        if mistakes:
            raise SpecError(mistakes, "config.json")
        fields = {f.name for f in msgspec.structs.fields(cls)}
        values = {k: v for k, v in data.items() if k in fields and v is not None}
        values.setdefault("num_key_value_heads", values.get("num_attention_heads", 6))
        values["rope_theta"] = float(rope.get("rope_theta", data.get("rope_theta", 10000.0)))
        # A list of end tokens is legal in config.json; the first one ends a training document.
        if isinstance(values.get("eos_token_id"), list):
            values["eos_token_id"] = values["eos_token_id"][0]
        values["qk_norm"] = model_type == "qwen3"
        return msgspec.convert(values, cls, strict=False)


class KVCache:
    """Keys and values of the tokens seen so far, one pair per layer; grows by concatenation."""

    def __init__(self, num_layers: int) -> None:
        self.layers: list[tuple[Tensor, Tensor] | None] = [None] * num_layers

    @property
    def num_tokens(self) -> int:
        """Tokens seen so far."""
        first = self.layers[0]
        return 0 if first is None else first[0].shape[2]

    def extend(self, layer: int, k_BKTE: Tensor, v_BKTE: Tensor) -> tuple[Tensor, Tensor]:
        """Append this call's keys and values and return all of them."""
        held = self.layers[layer]
        if held is not None:
            k_BKTE = torch.cat((held[0], k_BKTE), dim=2)
            v_BKTE = torch.cat((held[1], v_BKTE), dim=2)
        self.layers[layer] = (k_BKTE, v_BKTE)
        return k_BKTE, v_BKTE


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 (Zhang and Sennrich, 2019)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, None, self.eps).to(x.dtype) * self.weight


def rope_table(
    config: ModelConfig, num_tokens: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Return cos and sin, each ``[num_tokens, head_width]`` in float32."""
    exponent = torch.arange(0, config.head_width, 2, dtype=torch.float32, device=device) / config.head_width
    positions = torch.arange(num_tokens, dtype=torch.float32, device=device)
    angles = torch.outer(positions, 1.0 / (config.rope_theta**exponent))
    both_halves = torch.cat((angles, angles), dim=-1)
    return both_halves.cos(), both_halves.sin()


def apply_rope(x_BHTE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
    """Rotate pairs (i, i + E/2) by their position's angle: the layout Llama's weights are trained in."""
    first, second = x_BHTE.chunk(2, dim=-1)
    return x_BHTE * cos_TE + torch.cat((-second, first), dim=-1) * sin_TE


class Attention(nn.Module):
    """Causal self-attention with grouped key-value heads."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.head_width = config.head_width
        width = config.hidden_size
        self.q_proj = nn.Linear(width, self.num_heads * self.head_width, bias=False)
        self.k_proj = nn.Linear(width, self.num_kv_heads * self.head_width, bias=False)
        self.v_proj = nn.Linear(width, self.num_kv_heads * self.head_width, bias=False)
        self.o_proj = nn.Linear(self.num_heads * self.head_width, width, bias=False)
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        if config.qk_norm:
            self.q_norm = RMSNorm(self.head_width, config.rms_norm_eps)
            self.k_norm = RMSNorm(self.head_width, config.rms_norm_eps)

    def forward(self, x_BTD: Tensor, cos_TE: Tensor, sin_TE: Tensor, cache: KVCache | None) -> Tensor:
        num_rows, num_tokens, _ = x_BTD.shape
        split = (num_rows, num_tokens, -1, self.head_width)
        q_BHTE = self.q_norm(self.q_proj(x_BTD).view(split)).transpose(1, 2)
        k_BKTE = self.k_norm(self.k_proj(x_BTD).view(split)).transpose(1, 2)
        v_BKTE = self.v_proj(x_BTD).view(split).transpose(1, 2)
        q_BHTE, k_BKTE = apply_rope(q_BHTE, cos_TE, sin_TE), apply_rope(k_BKTE, cos_TE, sin_TE)
        if cache is not None:
            k_BKTE, v_BKTE = cache.extend(self.layer, k_BKTE, v_BKTE)
        mask = None
        num_seen = k_BKTE.shape[2]
        if 1 < num_tokens < num_seen:  # more tokens onto a filled cache: causal from an offset
            mask = torch.ones(num_tokens, num_seen, dtype=torch.bool, device=x_BTD.device)
            mask = mask.tril(diagonal=num_seen - num_tokens)
        repeats = self.num_heads // self.num_kv_heads
        if repeats > 1:
            k_BKTE = k_BKTE.repeat_interleave(repeats, dim=1)
            v_BKTE = v_BKTE.repeat_interleave(repeats, dim=1)
        out_BHTE = F.scaled_dot_product_attention(
            q_BHTE, k_BKTE, v_BKTE, attn_mask=mask, is_causal=num_tokens == num_seen and num_tokens > 1
        )
        return self.o_proj(out_BHTE.transpose(1, 2).reshape(num_rows, num_tokens, -1))


class MLP(nn.Module):
    """SwiGLU feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


class Block(nn.Module):
    """One layer: attention and feed-forward, each with a norm before it."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x_BTD: Tensor, cos_TE: Tensor, sin_TE: Tensor, cache: KVCache | None) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), cos_TE, sin_TE, cache)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class Decoder(nn.Module):
    """Embeddings, layers and the final norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Transformer(nn.Module):
    """The decoder with its output head.

    Args:
        config: Shape; checked here.
        seed: Seed of the initial weights; they do not depend on the global random state.

    Raises:
        SpecError: The shape does not fit together.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        config.check()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        cos, sin = rope_table(config, config.max_position_embeddings)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._initialise(seed)

    def _initialise(self, seed: int) -> None:
        """Normal weights; those that write to the residual stream shrink with depth (GPT-2's rule)."""
        generator = torch.Generator().manual_seed(seed)
        std = self.config.initializer_range
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue
            into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            scale = std / math.sqrt(2 * self.config.num_hidden_layers) if into_residual else std
            with torch.no_grad():
                parameter.normal_(0.0, scale, generator=generator)

    def forward(self, ids_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return logits ``[B, T, V]``; with a cache, ``ids_BT`` are the tokens after those in it.

        Raises:
            ValueError: More tokens than ``max_position_embeddings``.
        """
        start = cache.num_tokens if cache is not None else 0
        end = start + ids_BT.shape[1]
        if end > self.config.max_position_embeddings:
            raise ValueError(f"{end} tokens; the model knows {self.config.max_position_embeddings} positions")
        x_BTD = self.model.embed_tokens(ids_BT)
        cos_TE = self.cos[start:end].to(x_BTD.dtype)
        sin_TE = self.sin[start:end].to(x_BTD.dtype)
        for block in self.model.layers:
            x_BTD = block(x_BTD, cos_TE, sin_TE, cache)
        return self.lm_head(self.model.norm(x_BTD))

    def loss(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats over targets that are not -100."""
        logits_BTV = self(ids_BT).float()
        return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=-100)

    def num_parameters(self) -> int:
        """Return the number of distinct parameters."""
        return sum(p.numel() for p in self.parameters())

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def generate(
        self,
        ids: list[int],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        stop_ids: frozenset[int] = frozenset(),
    ) -> list[int]:
        """Return the continuation of one prompt; for samples in training and for tests.

        Serving has an engine of its own. The global random state is neither read nor changed.

        Args:
            ids: Prompt, at least one token.
            temperature: 0: the most likely token.
        """
        generator = torch.Generator(device=self.cos.device).manual_seed(seed)
        cache = KVCache(self.config.num_hidden_layers)
        room = self.config.max_position_embeddings - len(ids)
        new: list[int] = []
        feed = ids
        for _ in range(min(max_new_tokens, room)):
            logits_V = self(torch.tensor([feed], device=self.cos.device), cache)[0, -1].float()
            if temperature > 0:
                token = int(torch.multinomial((logits_V / temperature).softmax(-1), 1, generator=generator))
            else:
                token = int(logits_V.argmax())
            if token in stop_ids:
                break
            new.append(token)
            feed = [token]
        return new
