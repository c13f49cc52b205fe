"""Logits to tokens, for a batch whose requests all want something else.

Every row is treated on its own: what a request gets depends on its logits, its parameters, its tokens
and its seed, never on its neighbours. Shapes: R rows, V tokens of the vocabulary, K kept tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec
import torch

from tidecell.inference.params import Choice, SamplingParams, uniform


class Row(msgspec.Struct, frozen=True):
    """What the sampler knows of the request behind a row of logits.

    Attributes:
        params: What was asked for.
        prompt: Tokens of the prompt.
        output: Tokens generated so far.
    """

    params: SamplingParams
    prompt: Sequence[int]
    output: Sequence[int]


def sample(logits_RV: torch.Tensor, rows: Sequence[Row]) -> list[Choice]:
    """Choose a token for every row.

    Args:
        logits_RV: Logits, float; not changed.
        rows: One per row of ``logits_RV``.
    """
    raw_RV = logits_RV.float()
    logits_RV = _adjusted(raw_RV, rows)
    tokens = logits_RV.argmax(dim=-1).tolist()
    drawing = [r for r, row in enumerate(rows) if not row.params.is_greedy]
    if drawing:
        drawn = _draw(logits_RV[drawing], [rows[r] for r in drawing])
        for r, token in zip(drawing, drawn, strict=True):
            tokens[r] = token
    return _with_logprobs(raw_RV, rows, tokens)


def _adjusted(logits_RV: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Return logits with penalties and biases applied; the same tensor where there are none."""
    if not any(row.params.changes_logits for row in rows):
        return logits_RV
    adjusted_RV = logits_RV.clone()
    for logits_V, row in zip(adjusted_RV, rows, strict=True):
        if row.params.changes_logits:
            _adjust(logits_V, row)
    return adjusted_RV


def _adjust(logits_V: torch.Tensor, row: Row) -> None:
    params = row.params
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*row.prompt, *row.output}), dtype=torch.long, device=logits_V.device)
        values = logits_V[seen]
        penalty = params.repetition_penalty
        logits_V[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if row.output and (params.presence_penalty or params.frequency_penalty):
        counts = Counter(row.output)
        costs = [params.presence_penalty + params.frequency_penalty * n for n in counts.values()]
        logits_V[list(counts)] -= torch.tensor(costs, dtype=torch.float32, device=logits_V.device)
    for token, bias in params.logit_bias:
        logits_V[token] += bias


def _draw(logits_RV: torch.Tensor, rows: Sequence[Row]) -> list[int]:
    """Draw a token per row. Sorting a vocabulary is dear: only rows that cut its tail are sorted."""
    column = [[row.params.temperature] for row in rows]
    logits_RV = logits_RV / torch.tensor(column, dtype=torch.float32, device=logits_RV.device)
    cutting = [r for r, row in enumerate(rows) if row.params.cuts_tail]
    whole = [r for r, row in enumerate(rows) if not row.params.cuts_tail]
    tokens = [0] * len(rows)
    if whole:
        chosen = [rows[r] for r in whole]
        probs_RV = torch.softmax(logits_RV[whole].double(), dim=-1)
        floor_R1 = _column([row.params.min_p for row in chosen], probs_RV) * probs_RV.amax(-1, keepdim=True)
        picks_R1 = _invert(probs_RV.masked_fill(probs_RV < floor_R1, 0.0), chosen)
        _place(tokens, whole, picks_R1)
    if cutting:
        chosen = [rows[r] for r in cutting]
        # Stable, so that equal logits keep the order of their tokens on every device and batch.
        sorted_RK, tokens_RK = logits_RV[cutting].sort(dim=-1, descending=True, stable=True)
        probs_RK = torch.softmax(sorted_RK.double(), dim=-1)
        picks_R1 = _invert(probs_RK.masked_fill(~_kept(probs_RK, chosen), 0.0), chosen)
        _place(tokens, cutting, tokens_RK.gather(-1, picks_R1))
    return tokens


def _place(tokens: list[int], where: Sequence[int], values_R1: torch.Tensor) -> None:
    for r, token in zip(where, values_R1.flatten().tolist(), strict=True):
        tokens[r] = token


def _invert(weights_RK: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Return per row the first index whose cumulated weight exceeds the row's luck."""
    ends_RK = weights_RK.cumsum(dim=-1)
    luck = [uniform(row.params.seed, len(row.output)) for row in rows]
    marks_R1 = _column(luck, ends_RK) * ends_RK[:, -1:]
    # The mark is below the last end, so what is found has a weight; rounding may only bring it level.
    picks_R1 = torch.searchsorted(ends_RK, marks_R1, right=True)
    size = weights_RK.shape[-1]
    last_R1 = size - 1 - (weights_RK > 0).flip(-1).int().argmax(dim=-1, keepdim=True)
    return torch.minimum(picks_R1, last_R1)


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)


def _kept(probs_RK: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Return which tokens, likeliest first, pass top-k, top-p and min-p; the likeliest always does."""
    size = probs_RK.shape[-1]
    top_k = _column([row.params.top_k or size for row in rows], probs_RK)
    top_p = _column([row.params.top_p for row in rows], probs_RK)
    min_p = _column([row.params.min_p for row in rows], probs_RK)
    before_RK = probs_RK.cumsum(dim=-1) - probs_RK
    kept_RK = torch.arange(size, device=probs_RK.device) < top_k
    kept_RK &= probs_RK >= min_p * probs_RK[:, :1]
    kept_RK &= (before_RK < top_p) | (top_p >= 1.0)
    kept_RK[:, 0] = True
    return kept_RK


def _with_logprobs(raw_RV: torch.Tensor, rows: Sequence[Row], tokens: list[int]) -> list[Choice]:
    choices = [Choice(token) for token in tokens]
    for r, row in enumerate(rows):
        wanted = row.params.logprobs
        if wanted is None:
            continue
        logprobs_V = torch.log_softmax(raw_RV[r], dim=-1)
        values, ids = logprobs_V.topk(min(wanted, logprobs_V.shape[0]))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        choices[r] = Choice(tokens[r], logprobs_V[tokens[r]].item(), top)
    return choices
