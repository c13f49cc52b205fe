"""What this machine has: cores, memory, accelerators."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tidecell.engines.sharing import mps_directory, sharing_mode
from tidecell.structs.machine import Accelerator, MachineSpec
from tidecell.structs.resources import GPU, Resources


def discover_machine(
    name: str = "",
    cpu_millis: int = 0,
    memory_bytes: int = 0,
    attributes: Mapping[str, str] | None = None,
    holds: Sequence[str] = (),
) -> MachineSpec:
    """Describe this machine; what is given overrides what was found."""
    accelerators = _nvidia_accelerators()
    capacity = Resources(
        cpu_millis=cpu_millis or _cpu_millis(),
        memory_bytes=memory_bytes or _memory_bytes(),
        gpu_millis=len(accelerators) * GPU,
    )
    found = {"os": platform.system().lower(), "arch": platform.machine(), "cpu_model": _cpu_model()}
    return MachineSpec(
        name or default_name(),
        capacity,
        accelerators,
        {key: value for key, value in {**found, **(attributes or {})}.items() if value},
        holds=tuple(holds),
        sharing=sharing_mode(accelerators, mps_directory()),
    )


def _cpu_model() -> str:
    """Return the processor's name; empty where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return ""


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
    devices = [
        part
        for index in range(pynvml.nvmlDeviceGetCount())
        for part in _parts(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index))
    ]
    return tuple(Accelerator(at, *device) for at, device in enumerate(devices))


def _parts(pynvml: Any, handle: Any) -> list[tuple[str, int, str]]:
    """Return name, memory and uuid of a device, or of each MIG instance that it is cut into."""
    handles = [handle]
    with contextlib.suppress(pynvml.NVMLError):
        if pynvml.nvmlDeviceGetMigMode(handle)[0]:
            handles = []
            for at in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
                with contextlib.suppress(pynvml.NVMLError):  # there is no instance in this place
                    handles.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, at))
    return [
        (
            _text(pynvml.nvmlDeviceGetName(h)),
            int(pynvml.nvmlDeviceGetMemoryInfo(h).total),
            _text(pynvml.nvmlDeviceGetUUID(h)),
        )
        for h in handles
    ]


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
