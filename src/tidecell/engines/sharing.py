"""How shares of an accelerator are kept on this machine, and which devices a task sees.

NVIDIA's MPS bounds the compute and memory of each client where its control daemon runs; a MIG device is cut
into instances, each of which is an accelerator of its own. Where there is neither, a share is accounted for
and nothing holds a program to it; `tide machines` and `tide doctor` say so.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tidecell.structs.machine import Accelerator, MachineSpec
from tidecell.structs.resources import GPU, Resources

MPS, MIG, ACCOUNTED = "mps", "mig", "accounted only"


def mps_directory(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the pipe directory of a running MPS control daemon, or None."""
    path = Path(environ.get("CUDA_MPS_PIPE_DIRECTORY") or "/tmp/nvidia-mps")
    return path if (path / "control").exists() else None


def sharing_mode(accelerators: Sequence[Accelerator], mps: Path | None) -> str:
    """Return how shares are kept; empty on a machine without accelerators."""
    if not accelerators:
        return ""
    if any(is_mig(a) for a in accelerators):
        return f"{MIG}, {MPS}" if mps is not None else MIG
    return MPS if mps is not None else ACCOUNTED


def is_mig(accelerator: Accelerator) -> bool:
    """Return whether it is an instance of a device that is cut into several."""
    return accelerator.uuid.startswith("MIG-")


def device_env(
    machine: MachineSpec, devices: Sequence[int], granted: Resources, mps: Path | None
) -> dict[str, str]:
    """Return what tells a task its devices, and holds it to its share of one where that is possible."""
    known = {a.index: a for a in machine.accelerators}
    # CUDA counts whole devices only: where one is cut into instances, numbers would name others.
    by_uuid = any(is_mig(a) for a in machine.accelerators)
    names = [known[i].uuid if by_uuid and i in known else str(i) for i in devices]
    env = {"CUDA_VISIBLE_DEVICES": ",".join(names)}
    if 0 < granted.gpu_millis < GPU and mps is not None and devices:
        env["CUDA_MPS_PIPE_DIRECTORY"] = str(mps)
        env["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = f"{max(1.0, granted.gpu_millis / 10):g}"
        total = known[devices[0]].memory_bytes if devices[0] in known else 0
        if total:
            share_mib = max(1, total * granted.gpu_millis // GPU >> 20)
            env["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] = f"0={share_mib}M"
    return env
