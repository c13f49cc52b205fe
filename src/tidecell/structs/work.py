"""Kinds of work besides a gang of replicas: arrays and sweeps.

What a spec says about them, checked and in our units, and the pure functions that follow from it.
"""

from __future__ import annotations

import functools
import hashlib

import msgspec


class Array(msgspec.Struct, frozen=True, omit_defaults=True):
    """Independent tasks of one program: each item runs once, and fails alone.

    How many run at once is the job's ``replicas.max``.

    Attributes:
        count: Number of items; for a sweep that of its points.
        sweep: Values of each parameter; an item is one point of the grid, the last parameter varies fastest.
        samples: Take so many points of the grid, drawn without repetition; 0: all of them.
        seed: Chooses the points that ``samples`` draws.
    """

    count: int
    sweep: dict[str, tuple[str, ...]] = {}
    samples: int = 0
    seed: int = 0

    def parameters(self, index: int) -> dict[str, str]:
        """Return the sweep's parameters of one item, by name; nothing for a plain array.

        Raises:
            IndexError: There is no such item.
        """
        if not 0 <= index < self.count:
            raise IndexError(f"item {index} of an array of {self.count}")
        point = index
        if self.samples:
            point = _draw(self.seed, self.samples, grid_size(self.sweep))[index]
        chosen: dict[str, str] = {}
        for name, values in reversed(self.sweep.items()):
            point, place = divmod(point, len(values))
            chosen[name] = values[place]
        return dict(reversed(chosen.items()))


def grid_size(sweep: dict[str, tuple[str, ...]]) -> int:
    """Return the number of points of a grid; 0 for no parameters."""
    size = 1 if sweep else 0
    for values in sweep.values():
        size *= len(values)
    return size


@functools.lru_cache(maxsize=64)
def _draw(seed: int, samples: int, size: int) -> tuple[int, ...]:
    """Return ``samples`` different points of a grid: a shuffle by Fisher and Yates, seeded by a hash.

    Only the places that were swapped are kept, so that a few points of a huge grid cost little.
    """
    moved: dict[int, int] = {}
    drawn = []
    for i in range(samples):
        digest = hashlib.sha256(f"{seed}:{i}".encode()).digest()
        j = i + int.from_bytes(digest[:16], "big") % (size - i)
        drawn.append(moved.get(j, j))
        moved[j] = moved.get(i, i)
    return tuple(drawn)
