"""Tests on a real NVIDIA device; skipped, with a message, where there is none."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tidecell.engines.discover import discover_machine
from tidecell.structs.machine import MachineSpec

HERE = Path(__file__).parent
for folder in ("integration", "unit/train"):
    sys.path.append(str(HERE.parent / folder))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip everything here without a device."""
    if discover_machine("probe").accelerators:
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="no NVIDIA device, or no NVML binding, on this machine"))


@pytest.fixture
def until(wait_until: Callable[..., None]) -> Callable[..., None]:
    """Poll with patience: a worker may import torch and start CUDA before it says anything."""
    return functools.partial(wait_until, timeout_s=90.0)


@pytest.fixture
def machine() -> MachineSpec:
    return discover_machine("m")


@pytest.fixture
def mps(short_tmp: Path, until: Callable[..., None]) -> Iterator[Path]:
    """A control daemon of NVIDIA's MPS with a pipe directory of its own."""
    if shutil.which("nvidia-cuda-mps-control") is None:
        pytest.skip("nvidia-cuda-mps-control is not on the path")
    pipe, log = short_tmp / "pipe", short_tmp / "log"
    pipe.mkdir()
    log.mkdir()
    env = {**os.environ, "CUDA_MPS_PIPE_DIRECTORY": str(pipe), "CUDA_MPS_LOG_DIRECTORY": str(log)}
    subprocess.run(["nvidia-cuda-mps-control", "-d"], env=env, check=True, timeout=30)
    until(lambda: (pipe / "control").exists(), what="the daemon's pipe")
    yield pipe
    subprocess.run(["nvidia-cuda-mps-control"], env=env, input=b"quit -t 5\n", timeout=60, check=False)
