"""A served model as a job of the cell, and where models are found. Imports no torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tidecell.client.home import Home
from tidecell.structs.errors import NotFoundError
from tidecell.structs.job import Band, JobSpec, Kind, Preemption, Priority, Probes, Replicas, Scaling
from tidecell.structs.resources import Resources


def serve_job(
    name: str,
    model: Path,
    *,
    model_id: str = "",
    replicas: Replicas | None = None,
    scaling: Scaling | None = None,
    resources: Resources | None = None,
    accelerator_type: str = "",
    priority: Priority | None = None,
    grace_period_s: float = 30.0,
    threads: int = 1,
    max_batch: int = 32,
    max_context: int = 0,
) -> JobSpec:
    """Return the service that serves a model.

    Args:
        name: Of the service.
        model: Directory of the model.
        model_id: What requests ask for; empty: ``name``.
        replicas: Fewest and most, by default 1.
        scaling: How they follow the load; used where ``replicas`` leaves room.
        resources: Of one replica, by default half a core.
        grace_period_s: Time for a replica that leaves to finish its requests.
        threads: Threads of one forward pass.
        max_batch: Requests that a replica computes together at most.
        max_context: Tokens of prompt and answer at most; 0: what the model knows.
    """
    model_id = model_id or name
    argv = [sys.executable, "-m", "tidecell.inference.replica"]
    argv += ["--model", str(model), "--name", model_id, "--max-batch", str(max_batch)]
    argv += ["--threads", str(threads), "--grace", f"{grace_period_s:g}"]
    if max_context:
        argv += ["--max-context", str(max_context)]
    replicas = replicas or Replicas()
    return JobSpec(
        name=name,
        kind=Kind.SERVICE,
        argv=tuple(argv),
        # One replica must not take the cores that the scheduler gave to others.
        env={"OMP_NUM_THREADS": str(threads)},
        resources=resources or Resources(cpu_millis=500),
        accelerator_type=accelerator_type,
        replicas=replicas,
        priority=priority or Priority(Band.PRODUCTION),
        preemption=Preemption.ABOVE_MIN,
        grace_period_s=grace_period_s,
        probes=Probes(ready="/health", every_s=0.25),
        scaling=(scaling or Scaling()) if replicas.max > replicas.min else None,
        models=(model_id,),
    )


def model_directory(reference: str, home: Path | None = None) -> Path:
    """Return the model directory of a path or of a run's name.

    Args:
        home: The cell's directory; by default that of the task this runs in, or the user's.

    Raises:
        NotFoundError: There is none.
    """
    runs = (home or _home()) / "runs"
    path = Path(reference).expanduser()
    for candidate in (path, path / "model", runs / reference / "model"):
        if (candidate / "config.json").is_file() and (candidate / "model.safetensors").is_file():
            return candidate.absolute()
    have = sorted(p.parent.name for p in runs.glob("*/model")) if runs.is_dir() else []
    raise NotFoundError(
        f"no model '{reference}'; runs with a model: {', '.join(have) or 'none yet'}",
        "give a directory with config.json and model.safetensors, or train one: tide train DATASET",
    )


def _home() -> Path:
    """Return the cell's directory; a task finds it from its own, which is jobs/UID there."""
    run_dir = os.environ.get("TIDECELL_RUN_DIR")
    return Path(run_dir).parents[1] if run_dir else Home().path
