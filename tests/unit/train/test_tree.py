"""The fixed tree: one order of additions, whoever computes what."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tidecell.train.peers import Peers
from tidecell.train.reduce import add_in_tree_order, exchange, merge_local
from tidecell.train.tree import (
    Node,
    assign_leaves,
    children,
    choose_kept,
    final_nodes,
    inner_nodes,
    merged,
    shard_bounds,
)


def reference_sum(leaves: list[Tensor], node: Node) -> Tensor:
    """The definition: a node is its left half plus its right half."""
    if node[1] - node[0] == 1:
        return leaves[node[0]]
    left, right = children(node)
    return reference_sum(leaves, left) + reference_sum(leaves, right)


def some_leaves(count: int, size: int = 37) -> list[Tensor]:
    """Values of very different sizes, so that another order of additions shows."""
    generator = torch.Generator().manual_seed(count)
    return [
        torch.randn(size, generator=generator) * 10 ** random.Random(i).uniform(-4, 4) for i in range(count)
    ]


def test_four_leaves_are_added_in_pairs() -> None:
    assert inner_nodes(4) == [(0, 2), (2, 4), (0, 4)]


def test_the_left_half_holds_a_power_of_two() -> None:
    assert children((0, 7)) == ((0, 4), (4, 7))
    assert children((4, 7)) == ((4, 6), (6, 7))
    with pytest.raises(ValueError, match="leaf 3 has no children"):
        children((3, 4))


def test_contiguous_shares_merge_into_few_nodes() -> None:
    shares = assign_leaves(8, [[], []])
    assert shares == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert final_nodes(8, [[], []], shares) == [[(0, 4)], [(4, 8)]]
    assert final_nodes(4, [[], [], []], assign_leaves(4, [[], [], []])) == [[(0, 1)], [(1, 2)], [(2, 4)]]


@given(st.integers(1, 24), st.data())
@settings(deadline=None)
def test_kept_sums_and_new_leaves_cover_each_leaf_once(num_leaves: int, data: st.DataObject) -> None:
    """Whatever workers claim to hold, overlaps included."""
    size = data.draw(st.integers(1, 5))
    everything = [*inner_nodes(num_leaves), *((i, i + 1) for i in range(num_leaves))]
    held = [data.draw(st.lists(st.sampled_from(everything), max_size=4)) for _ in range(size)]
    kept = choose_kept(held)
    nodes = final_nodes(num_leaves, kept, assign_leaves(num_leaves, kept))
    covered = sorted(leaf for rank in nodes for node in rank for leaf in range(*node))
    assert covered == list(range(num_leaves))
    assert merged([node for rank in nodes for node in rank], num_leaves) == [(0, num_leaves)]
    assert all(set(k) <= set(h) for k, h in zip(kept, held, strict=True))


@given(st.integers(1, 13), st.integers(1, 6), st.integers(0, 10_000))
@settings(deadline=None)
def test_any_distribution_of_nodes_gives_the_bits_of_the_reference(
    num_leaves: int, size: int, seed: int
) -> None:
    """Leaves are handed out at random, merged where they lie, and added shard by shard."""
    leaves = some_leaves(num_leaves)
    rng = random.Random(seed)
    owners = [rng.randrange(size) for _ in range(num_leaves)]
    sums: list[dict[Node, Tensor]] = [{} for _ in range(size)]
    for leaf in rng.sample(range(num_leaves), num_leaves):
        own = sums[owners[leaf]]
        own[leaf, leaf + 1] = leaves[leaf].clone()
        merge_local(own, num_leaves)
    result = torch.empty_like(leaves[0])
    for rank, (low, high) in enumerate(shard_bounds(result.numel(), size)):
        own = {node: t[low:high] for node, t in sums[rank].items()}
        before = {node: t.clone() for node, t in own.items()}
        foreign = {n: t[low:high].clone() for r, s in enumerate(sums) if r != rank for n, t in s.items()}
        result[low:high] = add_in_tree_order(own, foreign, num_leaves)
        assert all(torch.equal(own[node], before[node]) for node in own)
    assert torch.equal(result, reference_sum(leaves, (0, num_leaves)))


def test_the_order_matters_for_these_values() -> None:
    """Guards the test above: a plain left-to-right sum has other bits."""
    leaves = some_leaves(8)
    plain = leaves[0].clone()
    for leaf in leaves[1:]:
        plain += leaf
    assert not torch.equal(plain, reference_sum(leaves, (0, 8)))


def test_one_worker_exchanges_with_itself() -> None:
    leaves = some_leaves(4)
    sums: dict[Node, Tensor] = {(i, i + 1): leaf.clone() for i, leaf in enumerate(leaves)}
    merge_local(sums, 4)
    total = torch.empty_like(leaves[0])
    words = exchange(Peers.alone(), sums, [[(0, 4)]], 4, total, torch.tensor([5.0], dtype=torch.float64))
    assert torch.equal(total, reference_sum(leaves, (0, 4)))
    assert words.tolist() == [[5.0]]


def test_missing_leaves_are_noticed() -> None:
    with pytest.raises(ValueError, match=r"add up to \(0, 2\), not to all 4 leaves"):
        add_in_tree_order({(0, 1): torch.ones(3), (1, 2): torch.ones(3)}, {}, 4)


@given(st.integers(0, 1000), st.integers(1, 40))
@settings(deadline=None)
def test_shards_cover_the_vector_evenly(num_elements: int, num_shards: int) -> None:
    bounds = shard_bounds(num_elements, num_shards)
    assert [b for low, high in bounds for b in range(low, high)] == list(range(num_elements))
    sizes = [high - low for low, high in bounds]
    assert max(sizes) - min(sizes) <= 1
