"""Forward passes of the serving engine: tokens of many requests in, logits out.

The network is that of ``tidecell.models.transformer``; here its weights work on a flat list of tokens
from any number of requests, with keys and values in the blocks of a paged pool. Projections see all
tokens of a pass at once, so nothing is padded but attention, and that only to whole blocks.

Tensor suffixes: T tokens of the pass, B requests with one token, C cached positions, N blocks,
S tokens in a block, D hidden, K key-value heads, G query heads per key-value head, H = K x G, E width
of a head, V vocabulary, R rows that want logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tidecell.inference.batcher import Chunk
from tidecell.models.checkpoint import load_model
from tidecell.models.transformer import ModelConfig, rope_table
from tidecell.structs.errors import CheckpointError

# Below this many rows the CPU's matrix product takes another path, whose sums round differently. With at
# least this many, a row's result does not depend on the rows around it (tests/unit/inference holds it).
MIN_ROWS = 4

BLOCK_SIZE = 16


class _Layer(NamedTuple):
    norm1: Tensor
    qkv: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Tensor
    norm2: Tensor
    gate_up: Tensor
    down: Tensor


class _Prefill(NamedTuple):
    """A chunk of several tokens: where it lies in the pass, and what it attends to."""

    first: int
    last: int
    end: int
    rows: Tensor
    mask: Tensor | None


class _Pass(NamedTuple):
    """Index tensors that all layers of one forward pass share."""

    cos_T1E: Tensor
    sin_T1E: Tensor
    slots_T: Tensor
    num_single: int
    single_rows: Tensor
    single_mask_B1C: Tensor
    prefills: list[_Prefill]


class Runner:
    """The network's weights and the pool of KV blocks.

    Not safe for use from several threads.

    Args:
        weights: Parameters by their Hugging Face names.
        config: Shape of the network.
        num_blocks: KV blocks in the pool.
        block_size: Tokens per block.
        device: Where to compute; float32 on the CPU, bfloat16 elsewhere.
        max_context: Tokens of one sequence at most; 0: what the model knows.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        device: str = "cpu",
        max_context: int = 0,
    ) -> None:
        self.config = config
        self.max_context = max_context or config.max_position_embeddings
        self.device = torch.device(device)
        self.dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._num_kv_heads = config.num_key_value_heads
        self._groups = config.num_attention_heads // config.num_key_value_heads
        self._width = config.head_width
        self._layers = [self._load_layer(weights, i) for i in range(config.num_hidden_layers)]
        self._embed = self._take([weights["model.embed_tokens.weight"]])
        self._norm = self._take([weights["model.norm.weight"]])
        head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
        self._head = self._embed if config.tie_word_embeddings else self._take([weights[head]])
        cos, sin = rope_table(config, config.max_position_embeddings)
        self._cos, self._sin = cos.to(self.device, self.dtype), sin.to(self.device, self.dtype)
        self._pool = self._make_pool()

    @property
    def vocab_size(self) -> int:
        """Width of a row of logits."""
        return self._head.shape[0]

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def forward(self, chunks: Sequence[Chunk]) -> tuple[Tensor, list[int]]:
        """Compute the chunks, leave their keys and values in the pool.

        Returns:
            Logits ``[R, V]`` after the last token of each chunk that ``samples``, and the indices in
            ``chunks`` that the rows belong to.
        """
        order = sorted(range(len(chunks)), key=lambda i: len(chunks[i].tokens) > 1)
        ordered = [chunks[i] for i in order]
        batch = self._prepare(ordered)
        ids = [token for chunk in ordered for token in chunk.tokens]
        x_TD = F.embedding(self._index(_padded(ids, 0)), self._embed)
        for number, layer in enumerate(self._layers):
            heads = self._attend(self._norm_of(x_TD, layer.norm1), layer, number, batch)
            x_TD = x_TD + F.linear(heads, layer.out)
            gate_up = F.linear(self._norm_of(x_TD, layer.norm2), layer.gate_up)
            gate, up = gate_up.chunk(2, dim=-1)
            x_TD = x_TD + F.linear(F.silu(gate) * up, layer.down)
        ends = np.cumsum([len(chunk.tokens) for chunk in ordered]) - 1
        wanted = [i for i, chunk in enumerate(ordered) if chunk.samples]
        rows = [int(ends[i]) for i in wanted]
        x_RD = self._norm_of(x_TD[self._index(_padded(rows, 0))], self._norm)
        logits_RV = F.linear(x_RD, self._head)[: len(rows)]
        return logits_RV.float(), [order[i] for i in wanted]

    def _attend(self, x_TD: Tensor, layer: _Layer, number: int, batch: _Pass) -> Tensor:
        """Return the heads' outputs ``[T, H * E]``."""
        qkv = F.linear(x_TD, layer.qkv).view(x_TD.shape[0], -1, self._width)
        num_heads = self._num_kv_heads * self._groups
        q_THE, k_TKE, v_TKE = qkv.split((num_heads, self._num_kv_heads, self._num_kv_heads), dim=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q_THE, k_TKE = self._norm_of(q_THE, layer.q_norm), self._norm_of(k_TKE, layer.k_norm)
        q_THE, k_TKE = _rotate(q_THE, batch), _rotate(k_TKE, batch)
        kv = torch.cat((k_TKE, v_TKE), dim=1)[: batch.slots_T.shape[0]]
        pool = self._pool[number]
        pool.view(2 * self._num_kv_heads, -1, self._width).index_copy_(1, batch.slots_T, kv.transpose(0, 1))
        out_THE = torch.zeros_like(q_THE)
        if batch.num_single:
            out_THE[: batch.num_single] = self._attend_single(q_THE[: batch.num_single], pool, batch)
        for prefill in batch.prefills:
            part = slice(prefill.first, prefill.last)
            out_THE[part] = self._attend_prefill(q_THE[part], pool, prefill)
        return out_THE.reshape(out_THE.shape[0], -1)

    def _attend_single(self, q_BHE: Tensor, pool: Tensor, batch: _Pass) -> Tensor:
        """Attend from the one token of each request, all of them at once over gathered blocks."""
        num_rows = q_BHE.shape[0]
        kv = pool.view(-1, self.block_size * self._width).index_select(0, batch.single_rows)
        k_XCE, v_XCE = kv.view(2, self._num_kv_heads * num_rows, -1, self._width)
        q_KBGE = q_BHE.view(num_rows, self._num_kv_heads, self._groups, self._width).transpose(0, 1)
        scores = torch.bmm(q_KBGE.reshape(-1, self._groups, self._width), k_XCE.transpose(1, 2))
        scores = scores.view(self._num_kv_heads, num_rows, self._groups, -1).mul_(self._width**-0.5)
        probs = scores.masked_fill_(batch.single_mask_B1C, float("-inf")).softmax(dim=-1)
        out = torch.bmm(probs.view(-1, self._groups, k_XCE.shape[1]), v_XCE)
        out_KBGE = out.view(self._num_kv_heads, num_rows, self._groups, self._width)
        return out_KBGE.transpose(0, 1).reshape(num_rows, -1, self._width)

    def _attend_prefill(self, q_THE: Tensor, pool: Tensor, prefill: _Prefill) -> Tensor:
        """Attend from a chunk of one request to all of its tokens so far."""
        num_tokens = q_THE.shape[0]
        kv = pool.view(-1, self.block_size * self._width).index_select(0, prefill.rows)
        kv = kv.view(2, self._num_kv_heads, -1, self._width)[:, :, : prefill.end]
        shape = (self._num_kv_heads, self._groups, prefill.end, self._width)
        k_KGCE, v_KGCE = kv[0].unsqueeze(1).expand(shape), kv[1].unsqueeze(1).expand(shape)
        q_KGTE = q_THE.view(num_tokens, self._num_kv_heads, self._groups, self._width).permute(1, 2, 0, 3)
        out_KGTE = F.scaled_dot_product_attention(
            q_KGTE, k_KGCE, v_KGCE, attn_mask=prefill.mask, is_causal=prefill.mask is None
        )
        return out_KGTE.permute(2, 0, 1, 3).reshape(num_tokens, -1, self._width)

    def _prepare(self, chunks: Sequence[Chunk]) -> _Pass:
        """Build the index tensors of a pass; chunks of one token come first."""
        positions = [c.start + i for c in chunks for i in range(len(c.tokens))]
        size = self.block_size
        slots = [
            c.blocks[position // size] * size + position % size
            for c in chunks
            for position in range(c.start, c.start + len(c.tokens))
        ]
        singles = [c for c in chunks if len(c.tokens) == 1]
        rows, mask = self._single_index(singles)
        where = self._index(_padded(positions, 0))
        return _Pass(
            cos_T1E=self._cos[where].unsqueeze(1),
            sin_T1E=self._sin[where].unsqueeze(1),
            slots_T=self._index(slots),
            num_single=len(singles),
            single_rows=rows,
            single_mask_B1C=mask,
            prefills=self._prefill_index(chunks[len(singles) :], len(singles)),
        )

    def _single_index(self, singles: Sequence[Chunk]) -> tuple[Tensor, Tensor]:
        """Return the pool rows that hold the singles' blocks, padded to the longest, and what to mask."""
        if not singles:
            return self._index([]), self._index([])
        counts = [chunk.start // self.block_size + 1 for chunk in singles]
        longest = max(counts)
        table = [
            [*chunk.blocks[:count], *[0] * (longest - count)]
            for chunk, count in zip(singles, counts, strict=True)
        ]
        starts = self._index([chunk.start for chunk in singles])
        columns = torch.arange(longest * self.block_size, device=self.device)
        mask_BC = columns > starts.unsqueeze(1)
        return self._pool_rows(table), mask_BC.unsqueeze(1)

    def _prefill_index(self, chunks: Sequence[Chunk], first: int) -> list[_Prefill]:
        prefills = []
        for chunk in chunks:
            num_tokens = len(chunk.tokens)
            end = chunk.start + num_tokens
            mask = None
            if chunk.start:
                mask = torch.ones(num_tokens, end, dtype=torch.bool, device=self.device).tril(chunk.start)
            rows = self._pool_rows([list(chunk.blocks[: -(-end // self.block_size)])])
            prefills.append(_Prefill(first, first + num_tokens, end, rows, mask))
            first += num_tokens
        return prefills

    def _pool_rows(self, table: list[list[int]]) -> Tensor:
        """Return rows of a layer's pool ``[2 * K * N, S * E]`` for a table of blocks, heads outermost."""
        blocks = self._index(table).unsqueeze(0)
        heads = torch.arange(2 * self._num_kv_heads, device=self.device).view(-1, 1, 1)
        return (heads * self.num_blocks + blocks).flatten()

    def _norm_of(self, x: Tensor, weight: Tensor) -> Tensor:
        normed = F.rms_norm(x.float(), (x.shape[-1],), None, self.config.rms_norm_eps)
        return normed.to(self.dtype) * weight

    def _index(self, values: Iterable[object]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)

    def _take(self, parts: Sequence[Tensor]) -> Tensor:
        """Return weights of one product, stacked, in this device's number format."""
        joined = parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=0)
        return joined.detach().to(self.device, self.dtype).contiguous()

    def _load_layer(self, weights: Mapping[str, Tensor], number: int) -> _Layer:
        def take(*names: str) -> Tensor:
            return self._take([weights[f"model.layers.{number}.{name}.weight"] for name in names])

        return _Layer(
            norm1=take("input_layernorm"),
            qkv=take("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            q_norm=take("self_attn.q_norm") if self.config.qk_norm else None,
            k_norm=take("self_attn.k_norm") if self.config.qk_norm else None,
            out=take("self_attn.o_proj"),
            norm2=take("post_attention_layernorm"),
            gate_up=take("mlp.gate_proj", "mlp.up_proj"),
            down=take("mlp.down_proj"),
        )

    def _make_pool(self) -> list[Tensor]:
        shape = (2, self._num_kv_heads, self.num_blocks, self.block_size, self._width)
        if self.device.type == "cpu":
            # The system hands out numpy's zeros page by page: blocks never used take no memory.
            return [torch.from_numpy(np.zeros(shape, dtype=np.float32)) for _ in self._layers]
        return [torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in self._layers]


def load_runner(
    directory: Path, max_context: int, max_batch: int, device: str = "cpu", pool_bytes: int = 0
) -> Runner:
    """Return a runner for the model in a directory.

    Args:
        directory: Where ``config.json`` and ``model.safetensors`` are.
        max_context: Tokens of one sequence at most; 0: what the model knows.
        max_batch: Sequences that the KV pool should hold.
        device: ``cpu`` or ``cuda``.
        pool_bytes: Upper bound of the pool, 0: none. One sequence of full length always fits.

    Raises:
        CheckpointError: The directory holds no model that can be read, or one of fewer positions.
    """
    model, config = load_model(directory)
    known = config.max_position_embeddings
    if max_context > known:
        raise CheckpointError(
            f"a context of {max_context} tokens is asked for; the model knows {known} positions",
            f"set --max-context to {known} or less",
        )
    context = max_context or known
    itemsize = 4 if device == "cpu" else 2
    token_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_width * itemsize
    per_sequence = -(-context // BLOCK_SIZE)
    num_blocks = per_sequence * max_batch
    if pool_bytes:
        num_blocks = max(per_sequence, min(num_blocks, pool_bytes // (token_bytes * BLOCK_SIZE)))
    return Runner(model.state_dict(), config, num_blocks, BLOCK_SIZE, device, context)


def _rotate(x_TXE: Tensor, batch: _Pass) -> Tensor:
    """Apply rotary positions, in the layout of ``tidecell.models.transformer.apply_rope``."""
    first, second = x_TXE.chunk(2, dim=-1)
    return x_TXE * batch.cos_T1E + torch.cat((-second, first), dim=-1) * batch.sin_T1E


def _padded(values: list[int], filler: int) -> list[int]:
    return values + [filler] * (MIN_ROWS - len(values))
