"""Bringing members up to date: the one with the most committed steps sends its state to those behind.

Covers newcomers, and a member that missed a commit because a peer died in the last moment of an exchange.
A state is applied only after its sender has confirmed that it did not change while it was sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor

from tidecell.models.training_state import State
from tidecell.train.peers import Peers, receive_bytes, send_bytes

# Tensors are packed into messages of about this size: few messages, little extra memory.
BUCKET_BYTES = 32 << 20
ALIGNMENT = 16


class Progress(msgspec.Struct, frozen=True):
    """What a member is told besides tensors; ``loss`` is None before the first step."""

    committed: int
    loss: float | None
    extra: dict[str, Any]


def choose_source(steps: Sequence[int]) -> int:
    """Return the rank with the most committed steps; the lowest of several."""
    return steps.index(max(steps))


def send_state(peers: Peers, receivers: Iterable[int], state: State, progress: Progress) -> None:
    """Send a state to several members; it must not change until ``confirm``."""
    tensors = [(name, t.contiguous()) for name, t in sorted(state.tensors.items())]
    layout = [(name, str(t.dtype).removeprefix("torch."), list(t.shape)) for name, t in tensors]
    head = msgspec.json.encode({"progress": progress, "layout": layout})
    ranks = list(receivers)
    for rank in ranks:
        send_bytes(peers, rank, head)
    for bucket in _buckets(layout):
        packed = torch.zeros(sum(_padded(_num_bytes(layout[i])) for i in bucket), dtype=torch.uint8)
        for i, part in zip(bucket, _parts(packed, [layout[i] for i in bucket]), strict=True):
            part.copy_(tensors[i][1])
        peers.transfer([(rank, packed) for rank in ranks], [])


def receive_state(peers: Peers, source: int) -> tuple[State, Progress]:
    """Receive what ``send_state`` sent, in fresh memory; blocks until the sender has confirmed it."""
    head = msgspec.json.decode(receive_bytes(peers, source))
    layout = [(name, dtype, list(shape)) for name, dtype, shape in head["layout"]]
    tensors: dict[str, Tensor] = {}
    for bucket in _buckets(layout):
        packed = torch.empty(sum(_padded(_num_bytes(layout[i])) for i in bucket), dtype=torch.uint8)
        peers.transfer([], [(source, packed)])
        for i, part in zip(bucket, _parts(packed, [layout[i] for i in bucket]), strict=True):
            tensors[layout[i][0]] = part
    peers.wait_confirmed()
    progress = msgspec.convert(head["progress"], Progress)
    return State(tensors, progress.extra), progress


Layout = tuple[str, str, list[int]]


def _num_bytes(entry: Layout) -> int:
    _, dtype, shape = entry
    count = 1
    for size in shape:
        count *= size
    return count * getattr(torch, dtype).itemsize


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def _buckets(layout: Sequence[Layout]) -> list[list[int]]:
    """Return indices of tensors, grouped into messages, the same on both sides."""
    buckets: list[list[int]] = []
    room = 0
    for index, entry in enumerate(layout):
        size = _padded(_num_bytes(entry))
        if not buckets or size > room:
            buckets.append([])
            room = BUCKET_BYTES
        buckets[-1].append(index)
        room -= size
    return buckets


def _parts(packed: Tensor, layout: Sequence[Layout]) -> list[Tensor]:
    """Return views of a message, one per tensor."""
    parts, offset = [], 0
    for entry in layout:
        size = _num_bytes(entry)
        parts.append(packed[offset : offset + size].view(getattr(torch, entry[1])).view(entry[2]))
        offset += _padded(size)
    return parts
