"""What this machine has: cores, memory, accelerators."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import socket
from pathlib import Path

from tidecell.structs.machine import Accelerator, MachineSpec
from tidecell.structs.resources import GPU, Resources


def discover_machine(name: str = "", cpu_millis: int = 0, memory_bytes: int = 0) -> MachineSpec:
    """Describe this machine; what is given overrides what was found."""
    accelerators = _nvidia_accelerators()
    capacity = Resources(
        cpu_millis=cpu_millis or _cpu_millis(),
        memory_bytes=memory_bytes or _memory_bytes(),
        gpu_millis=len(accelerators) * GPU,
    )
    attributes = {"os": platform.system().lower(), "arch": platform.machine()}
    return MachineSpec(name or default_name(), capacity, accelerators, attributes)


def default_name() -> str:
    """Return the host's name as a machine name."""
    return re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().split(".")[0].lower()).strip("-") or "machine"


def _cpu_millis() -> int:
    """Return cores that this process may use: affinity, and the quota of its cgroup."""
    cores = 1000 * len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, 1000 * int(quota) // int(period))
    return max(cores, 100)


def _memory_bytes() -> int:
    """Return memory of the machine, or the limit of its cgroup where that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(Path(path).read_text()))
    return total


def _nvidia_accelerators() -> tuple[Accelerator, ...]:
    """Return NVIDIA GPUs through NVML; none where there is no driver or no binding."""
    if not Path("/dev/nvidiactl").exists():
        return ()
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # the binding raises its own types, which are absent with it
        return ()
    found = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        name, uuid = (_text(f(handle)) for f in (pynvml.nvmlDeviceGetName, pynvml.nvmlDeviceGetUUID))
        memory = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
        found.append(Accelerator(index, name, memory, uuid))
    return tuple(found)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
