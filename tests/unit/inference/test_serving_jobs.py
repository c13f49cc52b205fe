"""A served model as a job, and where models are found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tidecell.inference.jobs import model_directory, serve_job
from tidecell.structs.errors import NotFoundError
from tidecell.structs.job import Band, Kind, Preemption, Replicas, Scaling


def make_run(home: Path, name: str) -> Path:
    directory = home / "runs" / name / "model"
    directory.mkdir(parents=True)
    for file in ("config.json", "model.safetensors"):
        (directory / file).write_text("{}")
    return directory


def test_a_served_model_is_a_service_that_is_ready_when_it_is_healthy() -> None:
    spec = serve_job("chat", Path("/m"), model_id="toy", replicas=Replicas(1, 3), scaling=Scaling(target=4.0))
    assert spec.kind is Kind.SERVICE
    assert spec.argv[:7] == (
        sys.executable, "-m", "tidecell.inference.replica", "--model", "/m", "--name", "toy",
    )  # fmt: skip
    assert (spec.models, spec.probes.ready) == (("toy",), "/health")
    assert (spec.priority.band, spec.preemption) == (Band.PRODUCTION, Preemption.ABOVE_MIN)
    assert spec.scaling == Scaling(target=4.0)
    assert spec.env == {"OMP_NUM_THREADS": "1"}


def test_a_fixed_number_of_replicas_is_not_scaled() -> None:
    spec = serve_job("chat", Path("/m"), scaling=Scaling(target=4.0))
    assert spec.scaling is None
    assert spec.models == ("chat",)


def test_the_replica_understands_every_flag_of_its_job() -> None:
    from tidecell.inference.replica import _parse

    spec = serve_job("chat", Path("/m"), threads=2, max_batch=7, max_context=99, grace_period_s=1.5)
    args = _parse(spec.argv[3:])
    assert (args.model, args.name, args.threads, args.max_batch) == ("/m", "chat", 2, 7)
    assert (args.max_context, args.grace) == (99, 1.5)


def test_a_model_is_found_by_run_by_path_and_by_its_runs_path(tmp_path: Path) -> None:
    directory = make_run(tmp_path, "toy")
    assert model_directory("toy", tmp_path) == directory
    assert model_directory(str(directory), tmp_path) == directory
    assert model_directory(str(directory.parent), tmp_path) == directory


def test_a_task_finds_runs_from_its_own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = make_run(tmp_path, "toy")
    monkeypatch.setenv("TIDECELL_RUN_DIR", str(tmp_path / "jobs" / "chat.1"))
    assert model_directory("toy") == directory


def test_a_missing_model_is_named_with_those_there_are(tmp_path: Path) -> None:
    make_run(tmp_path, "toy")
    with pytest.raises(NotFoundError) as caught:
        model_directory("tyo", tmp_path)
    assert caught.value.render() == (
        "error: no model 'tyo'; runs with a model: toy\n\n"
        "hint: give a directory with config.json and model.safetensors, or train one: tide train DATASET"
    )
