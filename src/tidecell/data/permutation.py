"""A shuffle that needs no memory: a keyed permutation of 0 .. n-1. Pure.

A Feistel network is a permutation of a power of two whatever its round function is; walking the cycle until
the value is below ``n`` makes it one of ``n`` (Black and Rogaway, "Ciphers with arbitrary finite domains",
CT-RSA 2002). So the k-th sample of an epoch costs the same at the start and after a trillion samples, and
resuming is arithmetic. The two halves may differ by a bit, so that a walk takes under two tries on average.

This is shuffling, not cryptography.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

NUM_ROUNDS = 6
_MASK64 = (1 << 64) - 1


def mix64(value: int) -> int:
    """Return splitmix64's finaliser of a 64-bit integer (Steele, Lea and Flood, OOPSLA 2014)."""
    value &= _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def round_keys(*key: int) -> list[int]:
    """Return the keys of the network's rounds for a key of integers, such as (seed, epoch)."""
    state = 0x9E3779B97F4A7C15
    for part in key:
        state = mix64(state ^ mix64(part + 0x632BE59BD9B4E019))
    return [mix64(state + (r + 1) * 0x9E3779B97F4A7C15) for r in range(NUM_ROUNDS)]


def permute(index: npt.NDArray[np.int64], n: int, *key: int) -> npt.NDArray[np.int64]:
    """Return where each index goes in the permutation of 0 .. n-1 that ``key`` names.

    Args:
        index: Values in 0 .. n-1, any shape.
        n: Size of the domain, at least 1.
        key: Integers that choose the permutation.

    Raises:
        ValueError: ``n`` is below 1, or an index lies outside.
    """
    flat = np.asarray(index, dtype=np.int64).ravel()
    if n < 1 or (flat.size and (int(flat.min()) < 0 or int(flat.max()) >= n)):
        raise ValueError(f"indices must lie in 0..{n - 1}, and n be at least 1; n is {n}")
    keys = round_keys(*key)
    bits = max(1, (n - 1).bit_length())
    out = _network(flat.astype(np.uint64), bits, keys)
    outside = np.flatnonzero(out >= np.uint64(n))
    while outside.size:
        out[outside] = _network(out[outside], bits, keys)
        outside = outside[out[outside] >= np.uint64(n)]
    return out.astype(np.int64).reshape(np.shape(index))


def _network(value: npt.NDArray[np.uint64], bits: int, keys: list[int]) -> npt.NDArray[np.uint64]:
    """Run the Feistel rounds over values of ``bits`` bits, split into two halves that take turns."""
    low_bits = np.uint64(bits - bits // 2)
    low_mask = np.uint64((1 << int(low_bits)) - 1)
    high_mask = np.uint64((1 << (bits // 2)) - 1)
    high, low = value >> low_bits, value & low_mask
    for number, key in enumerate(keys):
        if number % 2:
            high = high ^ (_round(low, key) & high_mask)
        else:
            low = low ^ (_round(high, key) & low_mask)
    return (high << low_bits) | low


def _round(half: npt.NDArray[np.uint64], key: int) -> npt.NDArray[np.uint64]:
    """The round function: half of splitmix64's finaliser, enough for a shuffle."""
    mixed = (half + np.uint64(key)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0x94D049BB133111EB)
    return mixed >> np.uint64(32)
