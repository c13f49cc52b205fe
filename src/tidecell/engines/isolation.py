"""How a task's limits are enforced: cgroup v2 where it may be written, else rlimits and measurement.

With v2 controllers: ``memory.max`` with the whole group killed at once, ``cpu.weight`` by request (cpu
is compressible: a task may use what nobody else wants). A v2 tree without controllers still gives
membership and ``cgroup.kill``, which reaches processes that left their session. Without either, the
agent measures memory and kills what exceeds its limit, and finds strays by their environment.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from tidecell.structs.job import Band
from tidecell.structs.resources import Resources

ROOTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
_GIB = 1 << 30


@dataclass(frozen=True)
class Isolation:
    """What this machine lets us enforce.

    Attributes:
        tree: Our own part of the v2 tree, or None.
        limits: Whether the v2 controllers for memory and cpu are ours to set.
    """

    tree: Path | None
    limits: bool

    @property
    def word(self) -> str:
        """What `tide status` and `tide machines` show."""
        if self.limits:
            return "cgroup-v2"
        return "rlimit+measure, cgroup kill" if self.tree else "rlimit+measure"

    def make_group(self, name: str, request: Resources) -> Path | None:
        """Make a cgroup for one task and set its limits; None without a tree."""
        if self.tree is None:
            return None
        group = self.tree / name
        try:
            group.mkdir(exist_ok=True)
            if self.limits:
                set_weight(group, request)
                if request.memory_bytes:
                    set_memory_limit(group, request)
        except OSError:
            return None
        return group


def set_weight(group: Path, request: Resources) -> None:
    """Set a group's share of busy cores; raise OSError if it cannot be written."""
    _write(group / "cpu.weight", str(min(10000, max(1, request.cpu_millis // 10))))


def set_memory_limit(group: Path, request: Resources) -> None:
    """Set what a group may use of memory, 0: anything; raise OSError if it cannot be written."""
    _write(group / "memory.max", str(request.memory_bytes or "max"))
    _write(group / "memory.oom.group", "1")


def detect(cell_tag: str) -> Isolation:
    """Try what may be written here; ``cell_tag`` names our part of the tree."""
    for root in ROOTS:
        if not (root / "cgroup.controllers").exists():
            continue
        tree = root / f"tidecell-{cell_tag}"
        try:
            tree.mkdir(exist_ok=True)
            if not (tree / "cgroup.kill").exists():
                tree.rmdir()
                continue
        except OSError:
            continue
        return Isolation(tree, _enable_controllers(root, tree))
    return Isolation(None, False)


def _enable_controllers(root: Path, tree: Path) -> bool:
    try:
        for parent in (root, tree):
            _write(parent / "cgroup.subtree_control", "+memory +cpu")
    except OSError:
        return False
    return True


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def join_group(group: Path) -> None:
    """Move the calling process into a cgroup; for use between fork and exec."""
    with contextlib.suppress(OSError):
        _write(group / "cgroup.procs", str(os.getpid()))


def kill_group(group: Path) -> None:
    """Kill every process in a cgroup, also those that left their session."""
    with contextlib.suppress(OSError):
        _write(group / "cgroup.kill", "1")


def remove_group(group: Path) -> bool:
    """Remove an empty cgroup; return whether it is gone."""
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def oom_killed(group: Path | None) -> bool:
    """Return whether the kernel killed this group for its memory limit."""
    if group is None:
        return False
    with contextlib.suppress(OSError, ValueError):
        for line in (group / "memory.events").read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == "oom_kill" and int(value) > 0:
                return True
    return False


# Who dies first when a machine runs out of memory (Borg, EuroSys 2015, §5.5: low bands go before high
# ones). The cell's own processes stay at 0, below all tasks.
OOM_SCORES = {Band.BEST_EFFORT: 900, Band.BATCH: 500, Band.PRODUCTION: 100, Band.MONITORING: 50}
OOM_UNRESERVED = 90  # added where no memory was asked for: whatever it uses is more than its share


def oom_score(band: Band, request: Resources) -> int:
    """Return the kernel's ``oom_score_adj`` of a task; over-limit tasks are killed before it matters."""
    return OOM_SCORES[band] + (0 if request.memory_bytes else OOM_UNRESERVED)


def set_oom_score(score: int) -> None:
    """Set it for the calling process; for use between fork and exec. Raising it needs no privilege."""
    with contextlib.suppress(OSError):
        _write(Path("/proc/self/oom_score_adj"), str(score))


def set_rlimits(request: Resources, measured: bool) -> None:
    """Set the limits a process inherits; for use between fork and exec.

    Where memory is only measured, RLIMIT_DATA fences off what grows faster than the measuring. Only the soft
    limit is set: a task may be given more memory later, and who lowered a hard limit cannot raise it again.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if measured and request.memory_bytes:
        move_fence(0, (), fence_of(request))


def fence_of(request: Resources) -> int:
    """Return the RLIMIT_DATA that goes with a request: twice the limit plus 1 GiB.

    Reserved but untouched memory counts there too.
    """
    return 2 * request.memory_bytes + _GIB if request.memory_bytes else resource.RLIM_INFINITY


def move_fence(pid: int, known: Container[int], fence: int) -> None:
    """Give a process (0: the calling one) another RLIMIT_DATA.

    Args:
        pid: Which process; gone is fine.
        known: Only where it has one of these now: others are its own; empty: whatever it has.
        fence: The new one.
    """
    with contextlib.suppress(ValueError, OSError):
        soft, hard = resource.prlimit(pid, resource.RLIMIT_DATA)
        if hard != resource.RLIM_INFINITY:
            fence = hard if fence == resource.RLIM_INFINITY else min(fence, hard)
        if not known or soft in known:
            resource.prlimit(pid, resource.RLIMIT_DATA, (fence, hard))
