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
                _write(group / "cpu.weight", str(min(10000, max(1, request.cpu_millis // 10))))
                if request.memory_bytes:
                    _write(group / "memory.max", str(request.memory_bytes))
                    _write(group / "memory.oom.group", "1")
        except OSError:
            return None
        return group


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

    Where memory is only measured, RLIMIT_DATA fences off what grows faster than the measuring: twice
    the limit plus 1 GiB, since reserved but untouched memory counts there too.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if measured and request.memory_bytes:
        fence = 2 * request.memory_bytes + _GIB
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_DATA, (fence, fence))
