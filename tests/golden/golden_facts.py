"""What a state says, in words that no version renames: what golden journals are compared by."""

from __future__ import annotations

from typing import Any

from tidecell.cell.state import CellState, Job, Task


def facts_of(state: CellState) -> dict[str, Any]:
    """Return everything that a replay must bring back, as plain JSON values."""
    return {
        "epoch": state.epoch,
        "seq": state.seq,
        "machines": {name: m.up for name, m in sorted(state.machines.items())},
        "gpus": {name: len(m.spec.accelerators) for name, m in sorted(state.machines.items())},
        "counters": dict(sorted(state.counters.items())),
        "live": list(state.live_uids),
        "claims": [[c.uid, c.index, c.machine, c.resources.cpu_millis] for c in state.claims.values()],
        "jobs": {uid: _job(job) for uid, job in sorted(state.jobs.items())},
    }


def _job(job: Job) -> dict[str, Any]:
    spec = job.spec
    return {
        "name": spec.name,
        "kind": spec.kind.value,
        "priority": str(spec.priority),
        "cpu_millis": spec.resources.cpu_millis,
        "memory_bytes": spec.resources.memory_bytes,
        "gpus": _gpus(spec),
        "replicas": [spec.replicas.min, spec.replicas.max],
        "desired": job.desired,
        "state": job.state.value,
        "exit_code": job.exit_code,
        "times": [job.submitted_s, job.started_s, job.finished_s],
        "tasks": [_task(task) for task in job.tasks],
    }


def _gpus(spec: Any) -> float:
    resources = spec.resources
    return resources.accelerators if hasattr(resources, "accelerators") else resources.gpu_millis / 1000


def _task(task: Task) -> dict[str, Any]:
    return {
        "state": task.state.value,
        "attempt": task.attempt,
        "epoch": task.epoch,
        "machine": task.machine,
        "accelerators": list(task.accelerators),
        "failures": task.failures,
        "cause": task.last_cause.value if task.last_cause is not None else "",
        "notice": task.notice.by if task.notice is not None else "",
    }
