"""Trainings as jobs, and runs that must not be mixed up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tidecell.structs.errors import ConflictError, SpecError
from tidecell.structs.job import Priority, Replicas, RetryOn
from tidecell.train.config import Lora, Schedule, TrainConfig
from tidecell.train.jobs import changed_fields, store_config, train_job, tune_job


def config(tmp_path: Path, **changes: object) -> TrainConfig:
    base = TrainConfig(name="base", run_dir=str(tmp_path / "base"), dataset="/d", threads=2)
    return msgspec.structs.replace(base, **changes)


def test_a_training_is_a_job_that_shrinks_and_is_retried(tmp_path: Path) -> None:
    spec = train_job(config(tmp_path), tmp_path / "c.json", replicas=Replicas(1, 2))
    assert spec.argv == (sys.executable, "-m", "tidecell.train.worker", "--config", str(tmp_path / "c.json"))
    assert spec.env == {"OMP_NUM_THREADS": "2"}
    assert spec.resources.cpu_millis == 2000
    assert (spec.replicas, spec.priority, spec.is_elastic) == (Replicas(1, 2), Priority(), True)
    assert spec.retry.on == (RetryOn.INTERRUPTION,)
    assert spec.checkpoint is not None
    assert spec.checkpoint.path == str(tmp_path / "base/checkpoints")


def test_more_workers_than_virtual_ranks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        train_job(config(tmp_path), tmp_path / "c.json", replicas=Replicas(1, 5))
    assert caught.value.mistakes[0].message == "5 workers cannot share 4 virtual ranks"
    assert train_job(config(tmp_path), tmp_path / "c.json").replicas == Replicas(1, 4)


def test_a_tuning_job_needs_a_tuning(tmp_path: Path) -> None:
    with pytest.raises(SpecError):
        tune_job(config(tmp_path), tmp_path / "c.json")
    tuning = config(tmp_path, kind="tune", base_model="/m", lora=Lora())
    assert tune_job(tuning, tmp_path / "c.json").labels == {"kind": "tune"}


def test_a_run_with_checkpoints_keeps_its_settings(tmp_path: Path) -> None:
    store_config(config(tmp_path))
    store_config(config(tmp_path, seed=4))
    (tmp_path / "base/checkpoints/step-00000010").mkdir(parents=True)
    changed = config(tmp_path, seed=5, schedule=Schedule(lr=0.1))
    with pytest.raises(ConflictError) as caught:
        store_config(changed)
    assert caught.value.message == (
        "run 'base' exists with other settings: schedule.lr 0.002 -> 0.1; seed 4 -> 5"
    )
    store_config(config(tmp_path, seed=4, stop_at_step=7, validate_every=3))
    store_config(msgspec.structs.replace(changed, ignore_contract=True))


def test_a_setting_that_appears_or_goes_is_a_change(tmp_path: Path) -> None:
    before, now = config(tmp_path), config(tmp_path, lora=Lora(rank=2, targets=("q_proj",)))
    assert changed_fields(before, now) == [
        "lora.alpha None -> 16.0",
        "lora.rank None -> 2",
        "lora.targets None -> ('q_proj',)",
    ]
    assert changed_fields(before, before) == []


def test_the_command_line_does_not_need_torch() -> None:
    code = "import sys, tidecell.train.jobs, tidecell.cli.train; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
