"""A real cell on a machine with a device: shares, waiting, idle devices, and the commands that use them."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
from test_devices import MULTIPLY
from test_train_cli import SMALL, TEXT

from tidecell.structs.job import TaskState

SHOW = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
HOLD = "import os, signal; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); signal.pause()"


def half(name: str, script: str) -> tuple[str, ...]:
    return ("run", "-d", "--gpus", "0.5", "--cpu", "0.1", "-n", name, "--", sys.executable, "-c", script)


def test_shares_of_one_device_run_beside_each_other_and_a_third_says_why_it_waits(cell, client, until):
    count = sum(m.capacity.gpu_millis for m in client.machines()) // 1000
    assert count >= 1
    assert "accounted only" in cell.tide("machines").stdout or "mps" in cell.tide("machines").stdout
    for at in range(2 * count):
        cell.tide(*half(f"half{at}", HOLD))
    names = [f"half{at}" for at in range(2 * count)]
    until(lambda: all(client.job(n).state is TaskState.RUNNING for n in names), what="both halves")
    cell.tide(*half("third", SHOW))
    until(lambda: "free now" in client.job("third").message, what="a reason")
    why = cell.tide("why", "third").stdout
    assert "WaitingForCapacity" in why
    assert "half0" in why
    cell.tide("stop", "half0", "--now")
    assert client.wait("third").state is TaskState.SUCCEEDED


def test_a_job_that_leaves_its_device_idle_ends_and_one_that_uses_it_does_not(
    cell, client, until, tmp_path: Path
):
    (tmp_path / "work.py").write_text(MULTIPLY)
    spec = tmp_path / "idle.yaml"
    spec.write_text(
        "kind: job\nname: sleeper\nrun: sleep 1000\n"
        "resources: {gpu: 0.5, cpu: 0.1}\nidle_gpu: {below: 5%, for: 10s}\n"
    )
    cell.tide("apply", "-y", "-f", str(spec))
    done = client.wait("sleeper", timeout_s=100)
    assert done.done
    assert done.message == "its accelerators were below 5 % for 10 s"
    spec.write_text(
        f"kind: job\nname: worker\nrun: {sys.executable} {tmp_path}/work.py\n"
        "resources: {gpu: 1, cpu: 1}\nidle_gpu: {below: 5%, for: 10s}\n"
    )
    cell.tide("apply", "-y", "-f", str(spec))
    until(lambda: client.job("worker").state is TaskState.RUNNING, what="the worker")
    assert not client.wait("worker", timeout_s=30).done


def test_train_and_serve_take_a_device_where_the_cell_has_one(cell, client, tmp_path: Path):
    for n in range(40):
        (tmp_path / f"m{n}.py").write_text(TEXT.format(n=n) + f"\n\nNUMBER = {n * n}\n")
    prepare = ("data", "prepare", str(tmp_path), "--out", "code", "--vocab-size", "300")
    cell.tide(*prepare, "--validation", "0.2", "--no-near-dedup")
    cell.tide("train", "code", "-n", "tiny", "--steps", "20", "--workers", "1", *SMALL, timeout_s=110)
    card = msgspec.json.decode((cell.home / "runs" / "tiny" / "model" / "card.json").read_bytes())
    assert card["contract"]["device"].startswith("cuda ")
    cell.tide("serve", "tiny", "--name", "tiny-chat", timeout_s=110)
    assert client.job("tiny-chat").resources.gpu_millis == 1000
    assert cell.tide("generate", "tiny-chat", "def add", "--max-tokens", "4").stdout
