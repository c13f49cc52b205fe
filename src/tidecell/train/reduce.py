"""The exchange: subtree sums of all workers become one gradient, the same bits on each.

Each worker brings the nodes of the tree that it holds. The flat vector is cut into one shard per
worker; shard j of every node goes to worker j, which adds them in tree order and sends the result to
all. With aligned subtrees that is ``2 (W-1)/W`` of the gradient in and out per worker, the bytes of a
ring all-reduce. Additions are elementwise: where the cuts lie does not alter a bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tidecell.train.peers import Peers
from tidecell.train.tree import Node, merges, shard_bounds


def merge_local(sums: dict[Node, Tensor], num_leaves: int) -> list[Tensor]:
    """Add up siblings in place, left += right; return the buffers that became free."""
    free = []
    for left, right, node in merges(list(sums), num_leaves):
        total = sums.pop(left)
        other = sums.pop(right)
        total.add_(other)
        sums[node] = total
        free.append(other)
    return free


def exchange(
    peers: Peers,
    sums: Mapping[Node, Tensor],
    nodes_by_rank: Sequence[Sequence[Node]],
    num_leaves: int,
    total: Tensor,
    words: Tensor,
) -> Tensor:
    """Fill ``total`` with the sum over all leaves, and return all members' ``words``.

    Args:
        sums: This worker's nodes, flat float32 on the CPU; only read.
        nodes_by_rank: What every worker brings; together they cover each leaf once.
        total: Flat float32 output.
        words: A few float64 numbers of this member (losses, the newest generation it has seen).

    Returns:
        ``[W, len(words)]``.

    Raises:
        RuntimeError: A peer went away; ``sums`` is as it was.
    """
    bounds = shard_bounds(total.numel(), peers.size)
    low, high = bounds[peers.rank]
    others = [rank for rank in range(peers.size) if rank != peers.rank]
    all_words = words.repeat(peers.size, 1)
    parts = {node: tensor[low:high] for node, tensor in sums.items()}
    foreign = {node: torch.empty(high - low) for rank in others for node in nodes_by_rank[rank]}
    sends = [(rank, words) for rank in others]
    sends += [
        (rank, sums[node][slice(*bounds[rank])]) for rank in others for node in nodes_by_rank[peers.rank]
    ]
    receives = [(rank, all_words[rank]) for rank in others]
    receives += [(rank, foreign[node]) for rank in others for node in nodes_by_rank[rank]]
    peers.transfer(sends, receives)
    total[low:high] = add_in_tree_order(parts, foreign, num_leaves)
    peers.transfer(
        [(rank, total[low:high]) for rank in others], [(rank, total[slice(*bounds[rank])]) for rank in others]
    )
    return all_words


def add_in_tree_order(own: Mapping[Node, Tensor], foreign: Mapping[Node, Tensor], num_leaves: int) -> Tensor:
    """Return the root's sum; ``own`` is only read, ``foreign`` is used up."""
    parts = {**own, **foreign}
    writable = set(foreign)
    for left, right, node in merges(list(parts), num_leaves):
        a, b = parts.pop(left), parts.pop(right)
        if left in writable:
            parts[node] = a.add_(b)
        elif right in writable:
            parts[node] = torch.add(a, b, out=b)
        else:
            parts[node] = a + b
        writable.add(node)
    (root,) = parts
    if root != (0, num_leaves):
        raise ValueError(f"the nodes add up to {root}, not to all {num_leaves} leaves")
    return parts[root]
