"""Readers of Pollux's workloads, the profiles measured for them, and the published completion times.

Files: ``pollux_workloads.parquet``, ``sia_throughput_profiles.parquet``, ``sia_validation_profiles.parquet``,
``pollux_published_jcts.parquet`` (see petuum/adaptdl, branch osdi21-artifact, folder ``simulator``, and
siasosp23/artifacts, whose ``placements`` and ``scalability`` profiles are the same measurements).
The table below holds constants of the published simulator, not measurements of ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tidecell.sim.training_job import TrainingJob
from tidecell.sim.training_profile import EpochStatistics, StepTimes, TrainingProfile
from tidecell.structs.errors import DataError

SOURCE = "Pollux's workloads and profiles come with petuum/adaptdl (branch osdi21-artifact, folder simulator)"


class PublishedConstants(msgspec.Struct, frozen=True):
    """What the published simulator fixes for an application."""

    num_epochs: int
    max_local_batch_size: int | None = None
    fixed_batch_size: int | None = None
    max_replicas: int | None = None


# Applications whose agents choose the batch keep NCF at 32768 on one replica.
CONSTANTS: Mapping[str, PublishedConstants] = {
    "bert": PublishedConstants(2),
    "cifar10": PublishedConstants(100),
    "ncf": PublishedConstants(10, fixed_batch_size=32768, max_replicas=1),
    "imagenet": PublishedConstants(90),
    "deepspeech2": PublishedConstants(80),
    "yolov3": PublishedConstants(50, max_local_batch_size=8),
}

WORKLOAD_COLUMNS = ("set", "name", "time", "application", "num_replicas", "batch_size")
STEP_COLUMNS = (
    "application",
    "profile",
    "placement",
    "local_bsz",
    "step_time",
    "sync_time",
    "num_nodes",
    "num_replicas",
)
EPOCH_COLUMNS = ("application", "batch_size", "progress", "iteration", "grad_sqr", "grad_var")


def read_workloads(path: Path, sets: str) -> dict[str, tuple[TrainingJob, ...]]:
    """Return the workloads of a set by name, jobs by arrival.

    Args:
        path: ``pollux_workloads.parquet``.
        sets: The folder they come from, such as ``simulator/workloads-2.0``.

    Raises:
        DataError: The file is missing or is no such table, or holds no such set.
    """
    found: dict[str, list[TrainingJob]] = {}
    known = set()
    for row in _rows(path, WORKLOAD_COLUMNS):
        folder, _, name = row["set"].rpartition("/")
        known.add(folder)
        if folder == sets:
            job = TrainingJob(
                row["name"],
                row["application"],
                float(row["time"]),
                int(row["num_replicas"]),
                int(row["batch_size"]),
            )
            found.setdefault(name, []).append(job)
    if not found:
        raise DataError(f"{path.name} has no workloads {sets!r}", hint=f"it has {', '.join(sorted(known))}")
    return {name: tuple(sorted(jobs, key=lambda j: j.submitted_s)) for name, jobs in sorted(found.items())}


def read_profiles(steps_path: Path, epochs_path: Path) -> dict[str, TrainingProfile]:
    """Return the profile of each application of the published simulator.

    Raises:
        DataError: A file is missing or is no such table, or an application lacks measurements.
    """
    steps = _rows(steps_path, STEP_COLUMNS)
    epochs = _rows(epochs_path, EPOCH_COLUMNS)
    return {
        name: _profile(
            name,
            constants,
            [r for r in steps if r["application"] == name],
            [r for r in epochs if r["application"] == name],
        )
        for name, constants in CONSTANTS.items()
    }


def read_published(path: Path, config: str) -> dict[str, dict[str, float]]:
    """Return published completion times in seconds, by workload and job.

    Args:
        path: ``pollux_published_jcts.parquet``.
        config: Policy and load, such as ``pollux-1.0`` or ``tiresias-2.0``.

    Raises:
        DataError: The file is missing or is no such table, or holds no such configuration.
    """
    found: dict[str, dict[str, float]] = {}
    known = set()
    for row in _rows(path, ("experiment", "config", "workload", "job", "jct_s")):
        known.add(row["config"])
        if row["experiment"] == "results-jobload" and row["config"] == config:
            found.setdefault(row["workload"], {})[row["job"]] = float(row["jct_s"])
    if not found:
        raise DataError(
            f"{path.name} has no results of {config!r}", hint=f"it has {', '.join(sorted(known))}"
        )
    return dict(sorted(found.items()))


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of a Parquet file that must have these columns."""
    try:
        from pyarrow import ArrowInvalid, parquet
    except ModuleNotFoundError:
        raise DataError(
            "reading Parquet needs pyarrow, which is not installed", hint="pip install 'tidecell[scale]'"
        ) from None
    if not path.is_file():
        raise DataError(f"there is no file {path}", hint=SOURCE)
    try:
        table = parquet.read_table(path)
    except (ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}", hint=SOURCE) from None
    missing = [c for c in columns if c not in table.column_names]
    if missing:
        raise DataError(
            f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(table.column_names)}",
            hint=SOURCE,
        )
    rows: list[dict[str, Any]] = table.select(list(columns)).to_pylist()
    return rows


def _profile(
    name: str,
    constants: PublishedConstants,
    steps: Sequence[Mapping[str, Any]],
    epochs: Sequence[Mapping[str, Any]],
) -> TrainingProfile:
    if not steps or not epochs:
        raise DataError(f"the profiles hold no measurements of {name!r}", hint=SOURCE)
    by_batch: dict[int, list[Mapping[str, Any]]] = {}
    for row in epochs:
        by_batch.setdefault(int(row["batch_size"]), []).append(row)
    statistics = {}
    for batch, rows in by_batch.items():
        if len(rows) < constants.num_epochs:
            raise DataError(
                f"{name!r} at batch {batch} has {len(rows)} measured epochs, not {constants.num_epochs}",
                hint=SOURCE,
            )
        ordered = sorted(rows, key=lambda r: float(r["progress"]))
        statistics[batch] = EpochStatistics(
            tuple(float(r["progress"]) for r in ordered),
            tuple(int(r["iteration"]) for r in ordered),
            tuple(float(r["grad_sqr"]) for r in ordered),
            tuple(float(r["grad_var"]) for r in ordered),
        )
    local = [float(r["local_bsz"]) for r in steps if r["profile"] == "placements"]
    return TrainingProfile(
        name,
        _step_times(steps),
        statistics,
        num_epochs=constants.num_epochs,
        min_local_batch_size=int(min(local)),
        max_local_batch_size=constants.max_local_batch_size or int(max(local)),
        fixed_batch_size=constants.fixed_batch_size,
        max_replicas=constants.max_replicas,
    )


def _step_times(rows: Sequence[Mapping[str, Any]]) -> StepTimes:
    """Return step times from the rows of the two profiles that belong to Pollux's cluster."""
    placements: dict[tuple[int, ...], list[tuple[float, float, float]]] = {}
    sizes = []
    for row in rows:
        times = (float(row["local_bsz"]), float(row["step_time"]), float(row["sync_time"]))
        if row["profile"] == "placements":
            ring = tuple(int(digit) for digit in str(row["placement"]))
            placements.setdefault(ring, []).append(times)
        elif row["profile"] == "scalability":
            sizes.append((float(row["num_nodes"]), float(row["num_replicas"]), *times))
    return StepTimes({k: np.array(v) for k, v in placements.items()}, np.array(sizes).reshape(-1, 5))
