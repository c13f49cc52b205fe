"""Readers of Pollux's files, on files of the same form with made-up numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tidecell.sim.pollux import CONSTANTS, read_profiles, read_published, read_workloads
from tidecell.structs.errors import DataError

pyarrow = pytest.importorskip("pyarrow")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def workload_row(**changes: Any) -> dict[str, Any]:
    row = {"set": "simulator/workloads/workload-1", "name": "bert-0", "time": 7, "application": "bert"}
    return {**row, "num_replicas": 2, "batch_size": 24, **changes}


def profile_files(folder: Path, epochs: int = 100) -> tuple[Path, Path]:
    steps, statistics = [], []
    for application in CONSTANTS:
        times = {"application": application, "step_time": 1.0, "sync_time": 0.5}
        times |= {"num_nodes": None, "num_replicas": None}
        for local in (4.0, 16.0):
            steps.append({**times, "profile": "placements", "placement": 13, "local_bsz": local})
            steps.append({**times, "profile": "placements-aws", "placement": 1, "local_bsz": local * 9})
        steps.append(
            {**times, "profile": "scalability", "num_nodes": 8.0, "num_replicas": 16.0, "local_bsz": 4.0}
        )
        statistics += [
            {"application": application, "batch_size": 8, "progress": 5.0 * (e + 1), "iteration": 5 * (e + 1)}
            | {"grad_sqr": 1.0, "grad_var": 2.0}
            for e in range(epochs)
        ]
    return write(folder / "steps.parquet", steps), write(folder / "epochs.parquet", statistics)


def test_a_workload_is_read_by_set_and_sorted_by_arrival(tmp_path: Path) -> None:
    rows = [
        workload_row(),
        workload_row(name="ncf-1", time=3),
        workload_row(set="benchmark/workloads/workload-1"),
    ]
    workloads = read_workloads(write(tmp_path / "w.parquet", rows), "simulator/workloads")
    assert [j.name for j in workloads["workload-1"]] == ["ncf-1", "bert-0"]
    assert workloads["workload-1"][1].num_replicas == 2


def test_an_unknown_set_names_those_there_are(tmp_path: Path) -> None:
    path = write(tmp_path / "w.parquet", [workload_row()])
    with pytest.raises(DataError) as caught:
        read_workloads(path, "simulator/workloads-9")
    assert caught.value.render() == (
        "error: w.parquet has no workloads 'simulator/workloads-9'\n\nhint: it has simulator/workloads"
    )


def test_profiles_take_the_cluster_that_pollux_measured(tmp_path: Path) -> None:
    profiles = read_profiles(*profile_files(tmp_path))
    assert set(profiles) == set(CONSTANTS)
    assert profiles["bert"].max_local_batch_size == 16
    assert profiles["yolov3"].max_local_batch_size == 8
    assert profiles["ncf"].max_replicas == 1
    assert profiles["cifar10"].step_times.at((3, 1), 10) == (1.0, 0.5)


def test_too_few_measured_epochs_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'cifar10' at batch 8 has 50 measured epochs, not 100"):
        read_profiles(*profile_files(tmp_path, epochs=50))


def test_published_times_are_read_by_configuration(tmp_path: Path) -> None:
    row = {"experiment": "results-jobload", "config": "pollux-1.0", "workload": "workload-2", "job": "a"}
    path = write(tmp_path / "p.parquet", [{**row, "jct_s": 90}, {**row, "experiment": "other", "jct_s": 1}])
    assert read_published(path, "pollux-1.0") == {"workload-2": {"a": 90.0}}
    with pytest.raises(DataError, match="no results of 'pollux-7'"):
        read_published(path, "pollux-7")


def test_a_missing_file_says_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file") as caught:
        read_workloads(tmp_path / "none.parquet", "x")
    assert "osdi21-artifact" in caught.value.hint


def test_a_file_of_another_kind_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_workloads(tmp_path / "text.parquet", "x")
    with pytest.raises(DataError, match="lacks the columns set, time"):
        read_workloads(
            write(
                tmp_path / "w.parquet", [{"name": 1, "application": 2, "num_replicas": 1, "batch_size": 1}]
            ),
            "x",
        )
