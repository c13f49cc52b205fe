"""Where a prompt's beginning is cached already, unless that replica has too much to do. Pure.

A prompt is a chain of blocks, each known by a hash that covers all before it (``chain``). For each replica
it is noted which blocks it holds: learned from what was sent where, and corrected by what replicas report
(blocks stored, blocks evicted). A request goes to the replica that leaves least to do: blocks to compute
beside work that waits there, within a bound on load; a prompt that nobody knows goes to one of the two
replicas that its first block hashes to, so that several routers nearly agree without talking.

Sources: Mirrokni, Thorup, Zadimoghaddam, Consistent hashing with bounded loads, SODA 2018, for the bound
(no more than ``1 + load_slack`` times the mean); Srivatsa et al., Preble, ICLR 2025, for adding up what is to
be computed and what waits.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from zlib import adler32, crc32

from tidecell.structs.traffic import PrefixPolicy
from tidecell.traffic.balance import Load, Rng

_MASK = (1 << 64) - 1
RECENT_S = 30.0  # after so long, what a replica computed counts half
NUM_HOMES = 2


def chain(prompt: bytes, block_bytes: int, most: int = 256) -> list[int]:
    """Return the hashes of a prompt's whole blocks; each covers all that comes before it.

    Two checksums instead of a cryptographic hash, for a fifth of its time: a collision costs a cache miss.
    """
    hashes: list[int] = []
    view, crc, adler = memoryview(prompt), 0, 1
    for start in range(0, min(len(prompt) - block_bytes + 1, block_bytes * most), block_bytes):
        block = view[start : start + block_bytes]
        crc, adler = crc32(block, crc), adler32(block, adler)
        hashes.append(crc << 32 | adler)
    return hashes


class Held:
    """The blocks that one replica is thought to hold, oldest use first, at most ``capacity``."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, block: int) -> bool:
        return block in self._blocks

    def matched(self, blocks: Sequence[int]) -> int:
        """Return how many blocks from the first on are held."""
        # A later block is only held where the earlier are, so the border can be bisected.
        held, low, high = self._blocks, 0, len(blocks)
        if not blocks or blocks[0] not in held:
            return 0
        if blocks[-1] in held:
            return high
        while low < high:
            middle = (low + high + 1) // 2
            if blocks[middle - 1] in held:
                low = middle
            else:
                high = middle - 1
        return low

    def use(self, blocks: Iterable[int]) -> None:
        """Note that blocks were used; what is beyond the capacity is taken for evicted, oldest first."""
        held = self._blocks
        for block in reversed(list(blocks)):  # the last goes first: a chain is evicted from its end
            if block in held:
                held.move_to_end(block)
            else:
                held[block] = None
        while len(held) > self.capacity:
            held.popitem(last=False)

    def drop(self, blocks: Iterable[int]) -> None:
        """Note that blocks were evicted."""
        for block in blocks:
            self._blocks.pop(block, None)


class PrefixBalancer:
    """One service's.

    Args:
        policy: The parameters.
        rng: Breaks ties.
    """

    def __init__(self, policy: PrefixPolicy, rng: Rng) -> None:
        self.policy = policy
        self._rng = rng
        self._held: dict[str, Held] = {}
        self._recent: dict[str, float] = {}
        self._recent_s = 0.0

    def held(self, replica: str) -> Held:
        """Return what a replica is thought to hold."""
        found = self._held.get(replica)
        if found is None:
            found = self._held[replica] = Held(self.policy.capacity_blocks)
        return found

    def report(self, replica: str, stored: Iterable[int] = (), evicted: Iterable[int] = ()) -> None:
        """Take in what a replica says of its cache; it knows better."""
        held = self.held(replica)
        held.drop(evicted)
        held.use(stored)

    def keep(self, replicas: Iterable[str]) -> None:
        """Forget replicas that are gone."""
        self._held = {name: self._held[name] for name in replicas if name in self._held}
        self._recent = {name: self._recent[name] for name in self._held if name in self._recent}

    def choose(self, loads: Sequence[Load], blocks: Sequence[int], tokens: int) -> tuple[int, str, int]:
        """Return the replica's index, the reason, and how many blocks it is thought to hold.

        Reasons: ``prefix_hit``; ``prefix_moved`` (the one with the longest match has too much to do);
        ``prefix_new`` (nobody has it).

        Args:
            loads: The replicas; ``tokens`` of each is the work that waits there.
            blocks: The prompt's chain.
            tokens: Tokens of the prompt.
        """
        policy = self.policy
        per_block = tokens / len(blocks) if blocks else 0.0
        waiting = sum([load.tokens for load in loads]) + tokens
        bound = max(policy.load_floor_tokens, (1.0 + policy.load_slack) * waiting / len(loads))
        matches = [self._match(load.id, blocks) for load in loads] if blocks else [0] * len(loads)
        longest = max(matches)
        best, least = -1, float("inf")
        for i, load in enumerate(loads):
            cost = tokens - matches[i] * per_block
            if load.tokens + cost > bound:
                continue
            cost += policy.load_weight * load.tokens
            if cost < least:
                best, least = i, cost
        if best < 0:  # one prompt outweighs all: the emptiest
            best = min(range(len(loads)), key=lambda i: loads[i].tokens - matches[i] * per_block)
        elif matches[best] == 0:
            best = self._place(loads, blocks, tokens, least)
        if matches[best] == longest:
            return best, "prefix_hit" if longest else "prefix_new", longest
        return best, "prefix_moved", matches[best]

    def sent(self, replica: str, blocks: Sequence[int], tokens: float, now_s: float) -> None:
        """Note that a prompt went to a replica, which holds its blocks from now on.

        Args:
            replica: Where it went.
            blocks: The prompt's chain.
            tokens: What the replica has to compute of it.
            now_s: Time.
        """
        self.held(replica).use(blocks)
        age_s = now_s - self._recent_s
        if age_s >= RECENT_S:
            halves = 0.5 ** (age_s / RECENT_S)
            self._recent = {name: halves * value for name, value in self._recent.items()}
            self._recent_s = now_s
        self._recent[replica] = self._recent.get(replica, 0.0) + tokens

    def _match(self, replica: str, blocks: Sequence[int]) -> int:
        held = self._held.get(replica)
        return held.matched(blocks) if held is not None else 0

    def _place(self, loads: Sequence[Load], blocks: Sequence[int], tokens: int, least: float) -> int:
        """Return where a prompt goes that has to be computed anyway.

        Of the two replicas that its first block hashes to, the one that computed less lately, if it is as
        free as any; else, of those as free as any, the one that computed less lately.
        """
        weight, recent = self.policy.load_weight, self._recent
        free = [i for i, load in enumerate(loads) if tokens + weight * load.tokens <= least]
        if len(free) > 2 and blocks:
            free.sort(key=lambda i: mix(blocks[0], loads[i].id))
            del free[:-NUM_HOMES]
        return min(free, key=lambda i: recent.get(loads[i].id, 0.0))


def mix(block: int, name: str) -> int:
    """Return a number that depends on both, the same in every process."""
    value = (block ^ _seed(name)) * 0x9E3779B97F4A7C15 & _MASK
    value = (value ^ (value >> 29)) * 0xBF58476D1CE4E5B9 & _MASK
    return value ^ (value >> 32)


_SEEDS: dict[str, int] = {}


def _seed(name: str) -> int:
    seed = _SEEDS.get(name)
    if seed is None:
        if len(_SEEDS) > 65536:
            _SEEDS.clear()
        raw = hashlib.blake2b(name.encode(), digest_size=8).digest()
        seed = _SEEDS[name] = int.from_bytes(raw, "little")
    return seed
