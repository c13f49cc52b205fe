"""`tide train` and `tide tune` in this process, without a cell."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

TEXT = '''"""Module {n}."""


def add_{n}(first, second):
    """Return the sum of both numbers, {n} times over."""
    total = first + second
    for _ in range({n}):
        total += first
    return total


def name_{n}(value):
    """Return the value as text with {n} dots behind it."""
    text = str(value)
    dots = "." * {n}
    return text + dots
'''


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cell's home with a small dataset of Python files."""
    home = tmp_path_factory.mktemp("home")
    source = tmp_path_factory.mktemp("source")
    for n in range(40):
        (source / f"m{n}.py").write_text(TEXT.format(n=n) + f"\n\nNUMBER = {n * n}\n")
    flags = ["--vocab-size", "300", "--validation", "0.2", "--no-near-dedup"]
    done = tide(home, "data", "prepare", str(source), "--out", "code", *flags)
    assert done.returncode == 0, done.stderr
    return home


def environment(home: Path) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("TIDECELL")}
    return {**env, "TIDECELL_HOME": str(home), "OMP_NUM_THREADS": "1"}


def tide(home: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tidecell.cli.main", *args]
    return subprocess.run(command, env=environment(home), capture_output=True, text=True, timeout=110)


SMALL = ("--layers", "1", "--dim", "32", "--heads", "2", "--seq-len", "32", "--checkpoint-every", "4")


def train(home: Path, name: str, *args: str) -> dict[str, Any]:
    done = tide(home, "train", "code", "--name", name, "--local", "--json", *SMALL, *args)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.slow
def test_a_run_cut_in_two_ends_with_the_digest_of_one(home: Path) -> None:
    whole = train(home, "whole", "--steps", "10")
    first = train(home, "cut", "--steps", "10", "--stop-at-step", "6")
    again = train(home, "cut", "--steps", "10")
    assert (whole["steps"], first["steps"], again["steps"]) == (10, 6, 10)
    assert whole["digest"] == again["digest"] != first["digest"]
    assert (home / "runs/whole/model/model.safetensors").is_file()


def test_another_seed_under_the_same_name_is_refused_in_words(home: Path) -> None:
    train(home, "seeded", "--steps", "4")
    done = tide(home, "train", "code", "--name", "seeded", "--local", *SMALL, "--steps", "4", "--seed", "1")
    assert done.returncode == 1
    assert done.stderr == (
        "error: run 'seeded' exists with other settings: seed 0 -> 1\n\n"
        "hint: use its settings to go on with it, another --name for a new run, or --ignore-contract to go "
        "on without bitwise equality\n"
    )


def test_tuning_takes_a_runs_name_and_says_what_to_do_next(home: Path) -> None:
    train(home, "base", "--steps", "4")
    done = tide(
        home, "tune", "base", "code", "--name", "helper", "--local", "--steps", "3", "--seq-len", "256"
    )
    assert done.returncode == 0, done.stderr
    assert "helper   3 steps" in done.stdout
    assert "validation   loss" in done.stdout
    assert (home / "runs/helper/adapter/adapter_model.safetensors").is_file()
    assert done.stdout.rstrip().splitlines()[-1].startswith("next: tide serve ")


def test_what_does_not_exist_is_said_with_what_does(home: Path) -> None:
    done = tide(home, "tune", "nothing", "code", "--local")
    assert done.returncode == 1
    assert "error: no model 'nothing'; runs with a model: " in done.stderr
    done = tide(home, "train", "nowhere", "--local")
    assert done.returncode == 1
    assert "no dataset 'nowhere'" in done.stderr


def test_more_workers_than_virtual_ranks_are_refused(home: Path) -> None:
    done = tide(home, "train", "code", "--name", "wide", *SMALL, "--workers", "1..8")
    assert done.returncode == 2
    assert "8 workers cannot share 4 virtual ranks" in done.stderr


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_to_go_on_from(home: Path) -> None:
    command = [sys.executable, "-m", "tidecell.cli.main", "train", "code", "--name", "broken", "--local"]
    command += [*SMALL, "--steps", "100000"]
    process = subprocess.Popen(
        command, env=environment(home), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    metrics = home / "runs/broken/metrics.jsonl"
    deadline = time.monotonic() + 60
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    last = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert f"stopped after step {last}; the same command goes on from there" in said
    assert (home / f"runs/broken/checkpoints/step-{last:08d}").is_dir()
