"""Forward passes of the serving engine: tokens of many requests in, logits out.

The network is that of ``tidecell.models.transformer``; here its weights work on a flat list of tokens
from any number of requests, with keys and values in the blocks of a paged pool. Projections see all
tokens of a pass at once, so nothing is padded but attention.

On the CPU a token's logits are bit for bit the same whatever is computed beside it, however its prompt
was cut into chunks, and whether its past was computed, shared or recomputed: every product has at least
``MIN_ROWS`` rows, and a token attends over a width that its position alone decides. So a seed repeats an
answer under any load. (The idea: He et al., Defeating nondeterminism in LLM inference, 2025.)

Tensor suffixes: T tokens of the pass, B requests with one token, C cached positions, N blocks,
S tokens in a block, D hidden, K key-value heads, G query heads per key-value head, H = K x G, E width
of a head, V vocabulary, R rows that want logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby, pairwise
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

# Below this many rows the CPU's matrix product takes another path, whose sums round differently. From
# here on a row's result does not depend on the rows around it (tests/unit/inference holds us to it).
MIN_ROWS = 4

# Tokens attend over whole tiles of positions, up to the end of their own. Smaller tiles waste less on
# masked positions, larger ones make fewer and larger products.
TILE = 64

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


class _Singles(NamedTuple):
    """Requests with one token each, whose attention has the same width."""

    part: slice
    pool_rows: Tensor
    mask_B1C: Tensor


class _Piece(NamedTuple):
    """The tokens of a chunk that lie in one tile."""

    part: slice
    width: int
    mask_TC: Tensor


class _Prefill(NamedTuple):
    """A chunk of several tokens of one request."""

    pool_rows: Tensor
    pieces: list[_Piece]


class _Pass(NamedTuple):
    """Index tensors that all layers of one forward pass share."""

    cos_T1E: Tensor
    sin_T1E: Tensor
    slots_T: Tensor
    singles: list[_Singles]
    prefills: list[_Prefill]


class Runner:
    """The network's weights and the pool of KV blocks.

    Not safe for use from several threads.

    Args:
        weights: Parameters by their Hugging Face names.
        config: Shape of the network.
        num_blocks: KV blocks in the pool.
        block_size: Tokens per block; divides ``TILE``.
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
        order = sorted(range(len(chunks)), key=lambda i: self._rank(chunks[i]))
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
        for singles in batch.singles:
            out_THE[singles.part] = self._attend_singles(q_THE[singles.part], pool, singles)
        for prefill in batch.prefills:
            kv = self._gathered(pool, prefill.pool_rows, 1)
            for piece in prefill.pieces:
                out_THE[piece.part] = self._attend_piece(q_THE[piece.part], kv, piece)
        return out_THE.reshape(out_THE.shape[0], -1)

    def _gathered(self, pool: Tensor, pool_rows: Tensor, num_rows: int) -> Tensor:
        """Return keys and values ``[2, K * B, C, E]`` of the blocks of some requests, side by side."""
        kv = pool.view(-1, self.block_size * self._width).index_select(0, pool_rows)
        return kv.view(2, self._num_kv_heads * num_rows, -1, self._width)

    def _attend_singles(self, q_BHE: Tensor, pool: Tensor, singles: _Singles) -> Tensor:
        """Attend from the one token of each of some requests."""
        num_rows = q_BHE.shape[0]
        kv = self._gathered(pool, singles.pool_rows, num_rows)
        q_KBGE = q_BHE.view(num_rows, self._num_kv_heads, self._groups, self._width).transpose(0, 1)
        if self._groups < MIN_ROWS:
            q_KBGE = F.pad(q_KBGE, (0, 0, 0, MIN_ROWS - self._groups))
        out_KBGE = self._softmax_attention(q_KBGE, kv, singles.mask_B1C)[:, :, : self._groups]
        return out_KBGE.transpose(0, 1).reshape(num_rows, -1, self._width)

    def _attend_piece(self, q_THE: Tensor, kv: Tensor, piece: _Piece) -> Tensor:
        """Attend from the tokens of one request in one tile to all before them."""
        num_tokens, num_rows = q_THE.shape[0], piece.mask_TC.shape[0]
        q_KGTE = q_THE.view(num_tokens, self._num_kv_heads, self._groups, self._width).permute(1, 2, 0, 3)
        if num_rows > num_tokens:
            q_KGTE = F.pad(q_KGTE, (0, 0, 0, num_rows - num_tokens))
        out_KGTE = self._softmax_attention(q_KGTE, kv[:, :, : piece.width], piece.mask_TC)[:, :, :num_tokens]
        return out_KGTE.permute(2, 0, 1, 3).reshape(num_tokens, -1, self._width)

    def _softmax_attention(self, q: Tensor, kv: Tensor, mask: Tensor) -> Tensor:
        """Return what queries ``[K, B, G, E]`` (or ``[K, G, T, E]``) take from ``kv``, in their shape."""
        k_XCE, v_XCE = kv
        scores_XMC = torch.bmm(q.reshape(k_XCE.shape[0], -1, self._width), k_XCE.transpose(1, 2))
        scores = scores_XMC.view(*q.shape[:3], -1).mul_(self._width**-0.5)
        probs = scores.masked_fill_(mask, float("-inf")).softmax(dim=-1)
        return torch.bmm(probs.view(scores_XMC.shape), v_XCE).view(q.shape)

    def _prepare(self, chunks: Sequence[Chunk]) -> _Pass:
        """Build the index tensors of a pass; chunks of one token come first."""
        positions = [c.start + i for c in chunks for i in range(len(c.tokens))]
        size = self.block_size
        slots = [
            c.blocks[position // size] * size + position % size
            for c in chunks
            for position in range(c.start, c.start + len(c.tokens))
        ]
        where = self._index(_padded(positions, 0))
        num_singles = sum(len(c.tokens) == 1 for c in chunks)
        return _Pass(
            cos_T1E=self._cos[where].unsqueeze(1),
            sin_T1E=self._sin[where].unsqueeze(1),
            slots_T=self._index(slots),
            singles=self._single_index(chunks[:num_singles]),
            prefills=self._prefill_index(chunks[num_singles:], num_singles),
        )

    def _rank(self, chunk: Chunk) -> tuple[int, int]:
        """Order chunks of a pass: those of one token first, by the width they attend over."""
        return (0, self._width_at(chunk.start)) if len(chunk.tokens) == 1 else (1, 0)

    def _width_at(self, position: int) -> int:
        """Return how many cached positions a token attends over: to the end of its tile."""
        return (position // TILE + 1) * TILE

    def _single_index(self, singles: Sequence[Chunk]) -> list[_Singles]:
        groups = []
        first = 0
        for width, group in groupby(singles, key=lambda chunk: self._width_at(chunk.start)):
            members = list(group)
            starts = self._index([chunk.start for chunk in members])
            mask_BC = torch.arange(width, device=self.device) > starts.unsqueeze(1)
            part = slice(first, first + len(members))
            groups.append(_Singles(part, self._pool_rows(members, width), mask_BC.unsqueeze(1)))
            first += len(members)
        return groups

    def _prefill_index(self, chunks: Sequence[Chunk], first: int) -> list[_Prefill]:
        prefills = []
        for chunk in chunks:
            end = chunk.start + len(chunk.tokens)
            bounds = [chunk.start, *range(self._width_at(chunk.start), end, TILE), end]
            pieces = []
            for start, stop in pairwise(bounds):
                part = slice(first + start - chunk.start, first + stop - chunk.start)
                pieces.append(_Piece(part, self._width_at(start), self._piece_mask(start, stop)))
            prefills.append(_Prefill(self._pool_rows([chunk], self._width_at(end - 1)), pieces))
            first += len(chunk.tokens)
        return prefills

    def _piece_mask(self, start: int, stop: int) -> Tensor:
        """Return what tokens ``start`` to ``stop`` may not see, with rows up to ``MIN_ROWS`` queries."""
        num_rows = max(stop - start, -(-MIN_ROWS // self._groups))
        columns = torch.arange(self._width_at(start), device=self.device)
        return columns > torch.arange(start, start + num_rows, device=self.device).unsqueeze(1)

    def _pool_rows(self, chunks: Sequence[Chunk], width: int) -> Tensor:
        """Return which rows of a layer's pool ``[2 * K * N, S * E]`` hold the chunks' blocks.

        Heads are outermost. Blocks that a request does not have (yet) lie behind its mask: any will do.
        """
        num_blocks = width // self.block_size
        table = [[*chunk.blocks[:num_blocks], *[0] * (num_blocks - len(chunk.blocks))] for chunk in chunks]
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
