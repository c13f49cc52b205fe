"""Packing: truths for any documents and any row."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tidecell.data.pack import plan_rows

LENGTHS = st.lists(st.integers(1, 60), max_size=60)


@given(LENGTHS, st.integers(1, 20))
def test_every_token_but_a_documents_first_is_one_documents_target_once(
    lengths: list[int], seq_len: int
) -> None:
    plan = plan_rows(np.array(lengths, dtype=np.int64), seq_len)
    targets: Counter[int] = Counter()
    for start, length in zip(plan.start.tolist(), plan.length.tolist(), strict=True):
        targets.update(range(start + 1, start + length))
    firsts = set((np.cumsum(lengths) - lengths).tolist()) if lengths else set()
    assert targets == Counter(set(range(sum(lengths))) - firsts)


@given(LENGTHS, st.integers(1, 20))
def test_no_row_overflows_and_none_is_empty(lengths: list[int], seq_len: int) -> None:
    plan = plan_rows(np.array(lengths, dtype=np.int64), seq_len)
    filled = [
        int(plan.length[a:b].sum()) for a, b in zip(plan.row_begin[:-1], plan.row_begin[1:], strict=True)
    ]
    assert all(0 < f <= seq_len + 1 for f in filled)
    assert plan.stats.padding_tokens == sum(seq_len + 1 - f for f in filled)
    assert plan.stats.num_pieces == plan.length.size


@given(LENGTHS, st.integers(1, 20))
def test_at_most_one_row_is_half_empty(lengths: list[int], seq_len: int) -> None:
    """Two rows that are at most half full would have been one under best fit."""
    plan = plan_rows(np.array(lengths, dtype=np.int64), seq_len)
    filled = [
        int(plan.length[a:b].sum()) for a, b in zip(plan.row_begin[:-1], plan.row_begin[1:], strict=True)
    ]
    assert sum(2 * f <= seq_len + 1 for f in filled) <= 1
