"""What is found of a device, how its use is measured, and whether MPS holds a program to its share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tidecell.engines.gpu_use import gpu_percents
from tidecell.engines.sharing import MPS, device_env, sharing_mode
from tidecell.structs.machine import MachineSpec
from tidecell.structs.resources import Resources

MULTIPLY = """
import torch
a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
print("busy", flush=True)
while True:
    for _ in range(50):
        a = (a @ a).clamp(-1, 1)
    torch.cuda.synchronize()
"""
TAKE = """
import json, sys, torch
sms = torch.cuda.get_device_properties(0).multi_processor_count
found = {"devices": torch.cuda.device_count(), "sms": sms}
try:
    torch.empty(int(sys.argv[1]), dtype=torch.uint8, device="cuda")
    found["took"] = True
except torch.OutOfMemoryError:
    found["took"] = False
print(json.dumps(found))
"""


def take(env: dict[str, str], num_bytes: int) -> dict[str, int]:
    """Return what a program sees of its device, and whether it could take so much memory."""
    done = subprocess.run(
        [sys.executable, "-c", TAKE, str(num_bytes)],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


def test_devices_are_found_with_name_memory_and_uuid(machine: MachineSpec):
    for accelerator in machine.accelerators:
        assert "NVIDIA" in accelerator.type
        assert accelerator.memory_bytes > 1 << 30
        assert accelerator.uuid.startswith(("GPU-", "MIG-"))
    assert machine.capacity.gpu_millis == 1000 * len(machine.accelerators)


def test_measured_use_follows_the_work(until):
    worker = subprocess.Popen([sys.executable, "-c", MULTIPLY], stdout=subprocess.PIPE)
    try:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"busy\n"
        until(lambda: gpu_percents().get(0, 0) > 50, what="a busy device")
    finally:
        worker.kill()
        worker.wait()
        worker.stdout.close()
    until(lambda: gpu_percents()[0] < 5, what="an idle device")


def test_mps_holds_a_program_to_its_share_of_compute_and_memory(machine: MachineSpec, mps: Path):
    assert sharing_mode(machine.accelerators, mps) == MPS
    memory = machine.accelerators[0].memory_bytes
    whole = take({"CUDA_VISIBLE_DEVICES": "0"}, memory // 2)
    assert whole["took"]
    quarter = device_env(machine, (0,), Resources(1000, 0, 250), mps)
    small, large = take(quarter, memory // 8), take(quarter, memory // 2)
    assert (small["devices"], small["took"], large["took"]) == (1, True, False)
    assert 0.15 * whole["sms"] < small["sms"] < 0.35 * whole["sms"]


def test_a_task_without_an_accelerator_sees_none(machine: MachineSpec):
    env = device_env(machine, (), Resources(1000, 0, 0), None)
    script = "import torch; print(torch.cuda.device_count())"
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **env}, capture_output=True, text=True, timeout=100
    )
    assert done.stdout == "0\n", done.stderr


@pytest.mark.parametrize("share", [1, 999])
def test_extreme_shares_still_start(machine: MachineSpec, mps: Path, share: int):
    env = device_env(machine, (0,), Resources(1000, 0, share), mps)
    if share == 1:
        # A thousandth of a device is less than a CUDA context: the program fails by itself, not the cell.
        assert float(env["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"]) == 1.0
        return
    assert take(env, 1 << 20)["took"]
