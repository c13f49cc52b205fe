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
    """Draw a token per row by inverting the cumulative distribution of what is kept."""
    column = [[row.params.temperature] for row in rows]
    logits_RV = logits_RV / torch.tensor(column, dtype=torch.float32, device=logits_RV.device)
    # Stable, so that equal logits keep the order of their tokens on every device and batch.
    sorted_RK, tokens_RK = logits_RV.sort(dim=-1, descending=True, stable=True)
    probs_RK = torch.softmax(sorted_RK.double(), dim=-1)
    probs_RK = probs_RK.masked_fill(~_kept(probs_RK, rows), 0.0)
    ends_RK = probs_RK.cumsum(dim=-1)
    luck = [[uniform(row.params.seed, len(row.output))] for row in rows]
    marks_R1 = torch.tensor(luck, dtype=torch.float64, device=ends_RK.device) * ends_RK[:, -1:]
    picks_R1 = torch.searchsorted(ends_RK, marks_R1, right=True)
    # Rounding may put a mark past the last kept token, whose end equals all ends after it.
    last_R1 = (probs_RK > 0).sum(dim=-1, keepdim=True) - 1
    return tokens_RK.gather(-1, torch.minimum(picks_R1, last_R1)).squeeze(-1).tolist()


def _kept(probs_RK: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Return which tokens, likeliest first, pass top-k, top-p and min-p; the likeliest always does."""
    device = probs_RK.device
    size = probs_RK.shape[-1]
    top_k = torch.tensor([[row.params.top_k or size] for row in rows], device=device)
    top_p = torch.tensor([[row.params.top_p] for row in rows], dtype=torch.float64, device=device)
    min_p = torch.tensor([[row.params.min_p] for row in rows], dtype=torch.float64, device=device)
    before_RK = probs_RK.cumsum(dim=-1) - probs_RK
    kept_RK = (torch.arange(size, device=device) < top_k) & (probs_RK >= min_p * probs_RK[:, :1])
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
