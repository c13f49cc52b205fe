"""A training as a job of the cell: the spec that runs its workers, and its directory.

Imports no torch: the command line uses it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

from tidecell.structs.errors import ConflictError, Mistake, SpecError
from tidecell.structs.job import Checkpoint, JobSpec, Priority, Replicas, Retry, RetryOn
from tidecell.structs.resources import Resources
from tidecell.train.config import TrainConfig

CONFIG_NAME = "config.json"
# Fields that do not decide the weights: they may change from one start of a run to the next.
FREE_FIELDS = frozenset(
    {
        "stop_at_step",
        "validate_every",
        "validate_rows",
        "checkpoint_every",
        "keep_last",
        "keep_every",
        "sample_every",
        "sample_prompt",
        "sample_tokens",
        "sample_temperature",
        "digest_at",
        "ignore_contract",
    }
)
# A checkpoint's age is part of a victim's cost. Told to stop, a training writes one first, so little is lost.
CHECKPOINT_EVERY_S = 60.0
# Tides come often; each taking of a worker may count as one interruption.
MAX_INTERRUPTIONS = 1000


def train_job(
    config: TrainConfig,
    config_path: Path,
    *,
    replicas: Replicas | None = None,
    priority: Priority | None = None,
    cpu_millis: int | None = None,
    memory_bytes: int = 0,
    grace_period_s: float = 30.0,
    after: tuple[str, ...] = (),
) -> JobSpec:
    """Return the job that runs a stored configuration with a changing number of workers.

    Args:
        config_path: Where the configuration lies, see ``store_config``.
        replicas: Fewest and most workers; by default 1 to ``num_vranks``.
        cpu_millis: Reserved per worker; by default its threads.
        memory_bytes: Reserved per worker; 0: none.

    Raises:
        SpecError: More workers than there are virtual ranks.
    """
    replicas = replicas or Replicas(1, config.num_vranks)
    if replicas.max > config.num_vranks:
        raise SpecError(
            [
                Mistake(
                    "workers",
                    f"{replicas.max} workers cannot share {config.num_vranks} virtual ranks",
                    f"at most {config.num_vranks}, or more --vranks",
                )
            ],
            f"training '{config.name}'",
        )
    return JobSpec(
        name=config.name,
        argv=(sys.executable, "-m", "tidecell.train.worker", "--config", str(config_path)),
        workdir=config.run_dir,
        env={"OMP_NUM_THREADS": str(config.threads)},
        resources=Resources(cpu_millis or 1000 * config.threads, memory_bytes),
        replicas=replicas,
        priority=priority or Priority(),
        grace_period_s=grace_period_s,
        checkpoint=Checkpoint(path=str(Path(config.run_dir) / "checkpoints"), every_s=CHECKPOINT_EVERY_S),
        retry=Retry(on=(RetryOn.INTERRUPTION,), max=MAX_INTERRUPTIONS),
        after=after,
        labels={"kind": config.kind},
    )


def tune_job(config: TrainConfig, config_path: Path, **options: Any) -> JobSpec:
    """Return the job that runs a fine-tuning; the options are those of ``train_job``.

    Raises:
        SpecError: The configuration is not that of a tuning.
    """
    if config.kind != "tune":
        raise SpecError([Mistake("kind", f"{config.kind!r} is not 'tune'")], f"tuning '{config.name}'")
    return train_job(config, config_path, **options)


def store_config(config: TrainConfig) -> Path:
    """Write a run's configuration into its directory; return the file.

    Raises:
        SpecError: The configuration has mistakes.
        ConflictError: The run exists with settings that decide its weights.
    """
    config.check()
    path = Path(config.run_dir) / CONFIG_NAME
    if path.exists() and not config.ignore_contract:
        changed = changed_fields(msgspec.json.decode(path.read_bytes(), type=TrainConfig), config)
        if changed and any((path.parent / "checkpoints").glob("step-*")):
            raise ConflictError(
                f"run '{config.name}' exists with other settings: {'; '.join(changed)}",
                "use its settings to go on with it, another --name for a new run, or --ignore-contract to "
                "go on without bitwise equality",
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{CONFIG_NAME}.tmp")
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n")
    draft.replace(path)
    return path


def changed_fields(before: TrainConfig, now: TrainConfig) -> list[str]:
    """Return the settings that decide the weights and differ, as ``seed 0 -> 1``."""
    old, new = (_flat(msgspec.to_builtins(c)) for c in (before, now))
    return [
        f"{key} {old.get(key)} -> {new.get(key)}"
        for key in sorted({*old, *new})
        if key.partition(".")[0] not in FREE_FIELDS and old.get(key) != new.get(key)
    ]


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, dict):
            flat |= _flat(inner, f"{prefix}{key}.")
        elif inner is not None:
            flat[f"{prefix}{key}"] = inner
    return flat
