"""What a task is told of its devices, and how its share of one is kept."""

from __future__ import annotations

from pathlib import Path

from tidecell.engines.sharing import device_env, mps_directory, sharing_mode
from tidecell.structs.machine import Accelerator, MachineSpec
from tidecell.structs.resources import Resources

WHOLE = (Accelerator(0, "T4", 16 << 30, "GPU-a"), Accelerator(1, "T4", 16 << 30, "GPU-b"))
CUT = (Accelerator(0, "A100", 40 << 30, "GPU-a"), Accelerator(1, "A100 MIG 1g.5gb", 5 << 30, "MIG-b"))


def machine(accelerators: tuple[Accelerator, ...]) -> MachineSpec:
    return MachineSpec("m", Resources(1000, 0, 1000 * len(accelerators)), accelerators)


def test_whole_devices_are_named_by_number(tmp_path: Path):
    env = device_env(machine(WHOLE), (0, 1), Resources(1000, 0, 2000), tmp_path)
    assert env == {"CUDA_VISIBLE_DEVICES": "0,1"}


def test_a_share_is_bounded_by_mps_in_threads_and_memory(tmp_path: Path):
    env = device_env(machine(WHOLE), (1,), Resources(1000, 0, 250), tmp_path)
    assert env == {
        "CUDA_VISIBLE_DEVICES": "1",
        "CUDA_MPS_PIPE_DIRECTORY": str(tmp_path),
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "25",
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=4096M",
    }


def test_without_a_daemon_a_share_is_accounted_only():
    env = device_env(machine(WHOLE), (1,), Resources(1000, 0, 250), None)
    assert env == {"CUDA_VISIBLE_DEVICES": "1"}
    assert sharing_mode(WHOLE, None) == "accounted only"


def test_where_a_device_is_cut_all_are_named_by_uuid():
    env = device_env(machine(CUT), (1,), Resources(1000, 0, 1000), None)
    assert env == {"CUDA_VISIBLE_DEVICES": "MIG-b"}


def test_the_mode_is_what_is_there(tmp_path: Path):
    assert mps_directory({"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)}) is None
    (tmp_path / "control").touch()
    pipe = mps_directory({"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)})
    assert pipe == tmp_path
    assert [sharing_mode(a, m) for a in ((), WHOLE, CUT) for m in (None, pipe)] == [
        *("", ""),
        *("accounted only", "mps"),
        *("mig", "mig, mps"),
    ]
