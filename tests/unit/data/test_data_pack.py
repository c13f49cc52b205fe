"""Documents into rows."""

from __future__ import annotations

import numpy as np
import pytest

from tidecell.data.pack import Plan, plan_rows


def rows_of(plan: Plan) -> list[list[tuple[int, int]]]:
    pieces = list(zip(plan.start.tolist(), plan.length.tolist(), strict=True))
    return [pieces[a:b] for a, b in zip(plan.row_begin[:-1], plan.row_begin[1:], strict=True)]


def test_short_documents_share_a_row_and_none_is_cut() -> None:
    plan = plan_rows(np.array([3, 4, 2]), seq_len=8)
    assert rows_of(plan) == [[(0, 3), (3, 4), (7, 2)]]
    assert plan.stats.num_documents_cut == 0
    assert plan.stats.padding_tokens == 0


def test_a_long_document_is_cut_into_windows_that_overlap_by_one() -> None:
    plan = plan_rows(np.array([10]), seq_len=4)
    assert rows_of(plan) == [[(0, 5)], [(4, 5)], [(8, 2)]]
    assert plan.continues.tolist() == [False, True, True]
    assert plan.stats.num_documents_cut == 1
    assert plan.stats.padding_tokens == 3


def test_best_fit_takes_the_fullest_row_with_room() -> None:
    # Longest first: 6, 5, then 3 fits beside 5 exactly and 2 beside 6 exactly; first fit would waste both.
    plan = plan_rows(np.array([6, 5, 3, 2]), seq_len=7)
    assert rows_of(plan) == [[(0, 6), (14, 2)], [(6, 5), (11, 3)]]
    assert plan.stats.padding_tokens == 0
    assert plan.stats.padding_share == 0.0


def test_packing_nothing_gives_no_rows() -> None:
    plan = plan_rows(np.zeros(0, dtype=np.int64), seq_len=8)
    assert plan.stats.num_rows == 0
    assert plan.row_begin.tolist() == [0]


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="seq_len is 0, at least 1 is allowed"):
        plan_rows(np.array([1]), seq_len=0)
    with pytest.raises(ValueError, match="a document has 0 tokens"):
        plan_rows(np.array([3, 0]), seq_len=4)
