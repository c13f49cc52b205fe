"""The fixed tree over virtual ranks: who adds what to what, whatever machine it happens on.

A leaf is the gradient of one virtual rank's micro-batch. A node ``(low, high)`` is the sum over the
leaves ``low..high-1``. Floating-point addition is not associative, so the order of additions is fixed
by this tree alone: any assignment of leaves to workers, changed at any moment, gives the same bits.

Pure; it does not know tensors. The dyadic shape is that of pairwise summation (Higham, 1993), used
for reproducible reductions by Demmel and Nguyen (2013) and, across tensor-parallel sizes, by TBIK (2025).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence

Node = tuple[int, int]


def children(node: Node) -> tuple[Node, Node]:
    """Return the two halves of an inner node; the left one holds a power of two of leaves."""
    low, high = node
    size = high - low
    if size < 2:
        raise ValueError(f"leaf {low} has no children")
    left = 1 << ((size - 1).bit_length() - 1)
    return (low, low + left), (low + left, high)


def inner_nodes(num_leaves: int) -> list[Node]:
    """Return all inner nodes of the tree, children before their parents."""
    nodes: list[Node] = []

    def visit(node: Node) -> None:
        if node[1] - node[0] > 1:
            left, right = children(node)
            visit(left)
            visit(right)
            nodes.append(node)

    visit((0, num_leaves))
    return nodes


def merges(held: Collection[Node], num_leaves: int) -> list[tuple[Node, Node, Node]]:
    """Return the additions ``(left, right, sum)`` that are possible among held nodes, in order."""
    have = set(held)
    steps = []
    for node in inner_nodes(num_leaves):
        left, right = children(node)
        if left in have and right in have:
            have -= {left, right}
            have.add(node)
            steps.append((left, right, node))
    return steps


def merged(held: Collection[Node], num_leaves: int) -> list[Node]:
    """Return what remains of held nodes after all possible additions, lowest leaf first."""
    have = set(held)
    for left, right, node in merges(held, num_leaves):
        have -= {left, right}
        have.add(node)
    return sorted(have)


def choose_kept(held_by_rank: Sequence[Iterable[Node]]) -> list[list[Node]]:
    """Return which finished sums each rank keeps so that no leaf counts twice; the largest win."""
    offers = [(node[0] - node[1], node, rank) for rank, nodes in enumerate(held_by_rank) for node in nodes]
    kept: list[list[Node]] = [[] for _ in held_by_rank]
    covered: set[int] = set()
    for _, node, rank in sorted(offers):
        leaves = range(*node)
        if covered.isdisjoint(leaves):
            covered.update(leaves)
            kept[rank].append(node)
    return [sorted(nodes) for nodes in kept]


def assign_leaves(num_leaves: int, kept_by_rank: Sequence[Iterable[Node]]) -> list[list[int]]:
    """Return the leaves each rank is to compute: those nobody has, in contiguous and even shares."""
    have = {leaf for nodes in kept_by_rank for node in nodes for leaf in range(*node)}
    missing = [leaf for leaf in range(num_leaves) if leaf not in have]
    size = len(kept_by_rank)
    cuts = [len(missing) * rank // size for rank in range(size + 1)]
    return [missing[cuts[rank] : cuts[rank + 1]] for rank in range(size)]


def final_nodes(
    num_leaves: int, kept_by_rank: Sequence[Iterable[Node]], leaves_by_rank: Sequence[Iterable[int]]
) -> list[list[Node]]:
    """Return the nodes that each rank brings to the exchange once its leaves are computed."""
    return [
        merged([*kept, *((leaf, leaf + 1) for leaf in leaves)], num_leaves)
        for kept, leaves in zip(kept_by_rank, leaves_by_rank, strict=True)
    ]


def shard_bounds(num_elements: int, num_shards: int) -> list[tuple[int, int]]:
    """Return contiguous shards of a flat vector, sizes differing by at most one."""
    cuts = [num_elements * shard // num_shards for shard in range(num_shards + 1)]
    return list(itertools.pairwise(cuts))
