"""Which replicas one router talks to, where there are more than it should hold connections to. Pure.

Deterministic subsetting: the routers of one round see the replicas in the same shuffled order and take
consecutive pieces of it, so that every replica is in equally many subsets, give or take one.

Source: Site Reliability Engineering (Google), chapter 20, "Deterministic subsetting".
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def subset(ids: Sequence[str], client: int, size: int) -> list[str]:
    """Return the replicas of one client.

    Args:
        ids: All replicas.
        client: Number of the client, counted from 0; every client has its own.
        size: How many each gets; 0, or as many as there are: all.
    """
    ordered = sorted(ids)
    if size <= 0 or size >= len(ordered):
        return ordered
    per_round = len(ordered) // size
    shuffled = sorted(ordered, key=lambda name: _key(client // per_round, name))
    # What does not divide evenly goes to the first pieces, so that nobody is left out of a round.
    piece = client % per_round
    base, extra = divmod(len(ordered), per_round)
    start = piece * base + min(piece, extra)
    return shuffled[start : start + base + (piece < extra)]


def _key(round_number: int, name: str) -> bytes:
    return hashlib.blake2b(f"{round_number}/{name}".encode(), digest_size=8).digest()
