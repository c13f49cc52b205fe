"""What the bits of a training depend on: the contract, the seeds, and layers that would break it."""

from __future__ import annotations

import hashlib
import os
import platform
import random
from typing import Any

import numpy as np
import torch
from torch import nn

from tidecell.structs.errors import TidecellError


def basic_contract(
    model: nn.Module, optimizer: torch.optim.Optimizer, num_vranks: int, seed: int, threads: int
) -> dict[str, Any]:
    """Return what the bits of a training depend on, as far as the runtime can see it."""
    first = next(model.parameters())
    shapes = [f"{name}{tuple(p.shape)}{p.requires_grad}" for name, p in model.named_parameters()]
    settings = [{k: v for k, v in g.items() if k not in ("params", "lr")} for g in optimizer.param_groups]
    return {
        "num_vranks": num_vranks,
        "seed": seed,
        "threads": threads,
        "dtype": str(first.dtype).removeprefix("torch."),
        "device": device_class(first.device),
        "torch": str(torch.__version__),
        "layout": hashlib.sha256("\n".join(shapes).encode()).hexdigest()[:16],
        "optimizer": f"{type(optimizer).__name__} {settings}",
    }


def device_class(device: torch.device) -> str:
    """Return the kind of device whose kernels compute: a GPU's model, or a CPU's instruction set."""
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    return f"{device.type} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def compute_exactly(device: torch.device) -> None:
    """Let a GPU compute the same bits each time: no atomic additions, no choice of kernel by timing, no TF32.

    cuBLAS reads its setting when its first handle is made, so this comes before anything is computed there.
    The CPU's kernels are exact at a given number of threads. An operation that has no exact kernel raises.

    Source: PyTorch's notes on reproducibility; cuBLAS, results reproducibility.
    """
    if device.type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.set_float32_matmul_precision("highest")


def seed_everything(seed: int, step: int, vrank: int) -> None:
    """Seed torch, numpy and Python for one micro-batch; there is no random state to migrate."""
    word = hashlib.blake2b(f"{seed}/{step}/{vrank}".encode(), digest_size=8).digest()
    number = int.from_bytes(word, "little")
    torch.manual_seed(number & (2**63 - 1))
    random.seed(number)
    np.random.seed(number & 0xFFFFFFFF)


def refuse_running_statistics(model: nn.Module) -> None:
    """Raise when a layer keeps statistics over batches: they would differ from worker to worker."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            raise TidecellError(
                f"layer '{name}' ({type(module).__name__}) keeps running statistics, which depend on the "
                "worker it ran on",
                "use LayerNorm, GroupNorm or RMSNorm, or BatchNorm with track_running_stats=False",
            )
