"""The order of samples: truths for any seed, size and number of virtual ranks."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tidecell.data.loader import sample_positions, sample_rows
from tidecell.data.permutation import permute

SEEDS = st.integers(0, 2**63)


@given(st.integers(1, 3000), SEEDS, st.integers(0, 1000))
def test_an_epoch_is_a_permutation(num_rows: int, seed: int, epoch: int) -> None:
    out = permute(np.arange(num_rows), num_rows, seed, epoch)
    assert np.array_equal(np.sort(out), np.arange(num_rows))


@given(st.integers(1, 300), SEEDS, st.integers(1, 7), st.integers(1, 5), st.integers(0, 10**12))
def test_every_row_comes_once_an_epoch_whatever_the_batch(
    num_rows: int, seed: int, num_vranks: int, micro_batch: int, epoch: int
) -> None:
    batch = num_vranks * micro_batch
    first, last = epoch * num_rows, (epoch + 1) * num_rows
    steps = range(first // batch, -(-last // batch))
    positions = np.concatenate(
        [sample_positions(s, v, num_vranks, micro_batch) for s in steps for v in range(num_vranks)]
    )
    rows = sample_rows(positions, num_rows, seed)
    inside = (positions >= first) & (positions < last)
    assert np.array_equal(np.sort(rows[inside]), np.arange(num_rows))


@given(st.integers(1, 10**9), SEEDS, st.integers(0, 10**9), st.integers(1, 4), st.integers(1, 8))
def test_splitting_a_step_among_virtual_ranks_leaves_its_samples_in_order(
    num_rows: int, seed: int, step: int, micro_batch: int, num_vranks: int
) -> None:
    parts = [sample_positions(step, v, num_vranks, micro_batch) for v in range(num_vranks)]
    whole = sample_positions(step, 0, 1, micro_batch * num_vranks)
    assert np.array_equal(np.concatenate(parts), whole)
    together = sample_rows(whole, num_rows, seed)
    assert np.array_equal(np.concatenate([sample_rows(p, num_rows, seed) for p in parts]), together)
