"""Resource vectors: what a task asks for and what a machine has."""

from __future__ import annotations

import msgspec

GPU = 1000  # thousandths of one accelerator


class Resources(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A vector of cpu, memory and accelerators.

    Attributes:
        cpu_millis: Thousandths of a core.
        memory_bytes: Bytes of memory; 0 in a request means neither reserved nor limited.
        gpu_millis: Thousandths of an accelerator. Below 1000 it is a share of one device; a larger request
            asks for whole devices, so it is a multiple of 1000.
    """

    cpu_millis: int = 0
    memory_bytes: int = 0
    gpu_millis: int = 0

    def __add__(self, other: Resources) -> Resources:
        return Resources(
            self.cpu_millis + other.cpu_millis,
            self.memory_bytes + other.memory_bytes,
            self.gpu_millis + other.gpu_millis,
        )

    def __sub__(self, other: Resources) -> Resources:
        return Resources(
            self.cpu_millis - other.cpu_millis,
            self.memory_bytes - other.memory_bytes,
            self.gpu_millis - other.gpu_millis,
        )

    def times(self, count: int) -> Resources:
        """Return this vector ``count`` times over."""
        return Resources(self.cpu_millis * count, self.memory_bytes * count, self.gpu_millis * count)

    @property
    def num_accelerators(self) -> int:
        """How many devices a request touches: a share counts as one."""
        return -(-self.gpu_millis // GPU)

    def fits(self, capacity: Resources) -> bool:
        """Return whether this request fits in ``capacity``."""
        return (
            self.cpu_millis <= capacity.cpu_millis
            and self.memory_bytes <= capacity.memory_bytes
            and self.gpu_millis <= capacity.gpu_millis
        )

    def copies_in(self, capacity: Resources) -> int:
        """Return how many copies of this request fit in ``capacity`` (a large number if it asks nothing).

        Accelerators of ``capacity`` count as whole, free devices: a share never straddles two of them.
        """
        counts = [
            have // want
            for want, have in (
                (self.cpu_millis, capacity.cpu_millis),
                (self.memory_bytes, capacity.memory_bytes),
            )
            if want > 0
        ]
        if self.gpu_millis >= GPU:
            counts.append(capacity.gpu_millis // self.gpu_millis)
        elif self.gpu_millis:
            counts.append(capacity.gpu_millis // GPU * (GPU // self.gpu_millis))
        return max(0, min(counts)) if counts else 1 << 30

    def is_zero(self) -> bool:
        """Return whether nothing is asked for."""
        return self.cpu_millis == 0 and self.memory_bytes == 0 and self.gpu_millis == 0

    def has_negative(self) -> bool:
        """Return whether any component is below zero."""
        return self.cpu_millis < 0 or self.memory_bytes < 0 or self.gpu_millis < 0

    def describe(self) -> str:
        """Return the vector in words, for example ``2 cpu, 4.0 GiB``."""
        parts = []
        if self.gpu_millis:
            parts.append(f"{format_cpu(self.gpu_millis)} gpu")
        if self.cpu_millis or not (self.gpu_millis or self.memory_bytes):
            parts.append(f"{format_cpu(self.cpu_millis)} cpu")
        if self.memory_bytes:
            parts.append(format_bytes(self.memory_bytes))
        return ", ".join(parts)


def format_cpu(cpu_millis: int) -> str:
    """Return cores with at most three decimals: 1500 gives ``1.5``."""
    return f"{cpu_millis / 1000:.3f}".rstrip("0").rstrip(".")


def format_bytes(num_bytes: int) -> str:
    """Return bytes in binary units: 4294967296 gives ``4.0 GiB``."""
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
