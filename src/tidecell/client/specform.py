"""``JobSpec`` back to the form that people write, and the difference of two. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from tidecell.client.units import format_duration, format_gpu, format_moment, format_size
from tidecell.structs.job import (
    DEV_IDLE_TIMEOUT_S,
    Amount,
    Band,
    JobSpec,
    Kind,
    Override,
    Preemption,
    Priority,
    Probes,
    Replicas,
    Retry,
    Scaling,
    Shape,
    Update,
)
from tidecell.structs.work import Array


def spec_to_dict(spec: JobSpec) -> dict[str, Any]:
    """Return the spec as a user would write it, without what is default; reads back to the same spec."""
    full = _full(spec)
    default = _full(_defaults(spec))
    out: dict[str, Any] = {"kind": full["kind"], "name": full["name"]}
    for key, value in full.items():
        if key in out or value == default.get(key):
            continue
        if isinstance(value, dict) and isinstance(default.get(key), dict) and key != "replicas":
            value = {k: v for k, v in value.items() if v != default[key].get(k)}
        out[key] = _SHORT[key](value) if key in _SHORT else value
    return out


def _lone(value: Any, key: str) -> Any:
    """Return what is at ``key`` where a mapping says nothing else: ``{by: rack}`` is ``rack``."""
    return value[key] if list(value) == [key] else value


_SHORT = {"topology": lambda v: _lone(v, "required"), "spread": lambda v: _lone(v, "by")}


def spec_diff(old: JobSpec, new: JobSpec) -> list[str]:
    """Return one line for each value that differs, for example ``priority: batch -> batch+5``."""
    before, after = _flat(_full(old)), _flat(_full(new))
    keys = [*after, *(k for k in before if k not in after)]
    return [
        f"{key}: {_show(before.get(key))} -> {_show(after.get(key))}"
        for key in keys
        if before.get(key) != after.get(key)
    ]


def _defaults(spec: JobSpec) -> JobSpec:
    if spec.kind is Kind.SERVICE:
        priority, preemption = Priority(Band.PRODUCTION), Preemption.NEVER
        return JobSpec(spec.name, spec.kind, priority=priority, preemption=preemption)
    return JobSpec(spec.name, spec.kind, idle_timeout_s=DEV_IDLE_TIMEOUT_S if spec.kind is Kind.DEV else 0.0)


def _full(spec: JobSpec) -> dict[str, Any]:
    """Return every key that applies, defaults included, in the order of docs/spec.md."""
    out: dict[str, Any] = {
        "kind": spec.kind.value,
        "name": spec.name,
        "workdir": spec.workdir,
        "setup": spec.setup,
        "run": list(spec.argv) if spec.argv else spec.run,
        "env": dict(spec.env),
        "resources": _resources(spec),
        **({"replicas": _replicas(spec.replicas)} if spec.array is None else {}),
        "priority": str(spec.priority),
        "preemption": spec.preemption.value,
        "grace_period": format_duration(spec.grace_period_s),
        "min_runtime": format_duration(spec.min_runtime_s),
    }
    if spec.kind is Kind.DEV:
        out["idle_timeout"] = format_duration(spec.idle_timeout_s)
    if spec.alloc:
        out["alloc"] = spec.alloc
    if spec.idle_gpu is not None:
        rule = spec.idle_gpu
        out["idle_gpu"] = {"below": f"{rule.below_percent}%", "for": format_duration(rule.for_s)}
    if spec.checkpoint is not None:
        out["checkpoint"] = {"path": spec.checkpoint.path, "every": format_duration(spec.checkpoint.every_s)}
    out["retry"] = _retry(spec.retry)
    if spec.max_duration_s:
        out["max_duration"] = format_duration(spec.max_duration_s)
    out["after"] = list(spec.after)
    if spec.port:
        out["port"] = spec.port
    if spec.is_service:
        out["probes"] = _probes(spec.probes)
    if spec.scaling is not None:
        out["scaling"] = _scaling(spec.scaling)
    if spec.traffic is not None:
        out["traffic"] = msgspec.to_builtins(spec.traffic)
    if spec.begin_s:
        out["begin"] = format_moment(spec.begin_s)
    out["hold"] = spec.hold
    if spec.schedule is not None:
        out["schedule"] = msgspec.structs.asdict(spec.schedule)
    if spec.array is not None:
        out |= {"array": _array(spec.array, spec.replicas.max)}
    out["update"] = _update(spec.update)
    if spec.disruptions is not None:
        out["disruptions"] = {"max_unavailable": _amount(spec.disruptions.max_unavailable)}
    out |= _where(spec)
    if spec.tasks:
        out["tasks"] = {_span(o): _override(o, spec) for o in spec.tasks}
    return {**out, "models": list(spec.models), "labels": dict(spec.labels), "team": spec.team}


def _span(own: Override) -> str:
    return str(own.first) if own.first == own.last else f"{own.first}-{own.last}"


def _override(own: Override, spec: JobSpec) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if own.resources is not None:
        mine = _shape(Shape(own.resources, spec.accelerator_type if own.resources.gpu_millis else ""))
        base = _shape(spec.shapes[0])
        out["resources"] = {k: v for k, v in mine.items() if v != base[k]}
    if own.env:
        out["env"] = dict(own.env)
    if own.run or own.argv:
        out["run"] = list(own.argv) if own.argv else own.run
    return out


def _resources(spec: JobSpec) -> dict[str, Any]:
    shapes = [_shape(shape) for shape in spec.shapes]
    return {**shapes[0], "any_of": shapes} if len(shapes) > 1 else shapes[0]


def _shape(shape: Shape) -> dict[str, Any]:
    cpu = shape.resources.cpu_millis / 1000
    return {
        "gpu": format_gpu(shape.accelerator_type, shape.resources.gpu_millis),
        "cpu": int(cpu) if cpu.is_integer() else cpu,
        "memory": format_size(shape.resources.memory_bytes),
    }


def _where(spec: JobSpec) -> dict[str, Any]:
    """What says where replicas go, besides resources."""
    out: dict[str, Any] = {
        "constraints": [str(c) for c in spec.constraints],
        "prefer": [{"when": str(p.when), "weight": p.weight} for p in spec.prefer],
    }
    if spec.topology is not None:
        out["topology"] = {"required" if spec.topology.required else "preferred": spec.topology.level}
    if spec.spread is not None:
        skew = spec.spread.max_skew
        out["spread"] = {"by": spec.spread.by, **({"max_skew": skew} if skew else {})}
    return {**out, "data": list(spec.data)}


def _replicas(replicas: Replicas) -> int | dict[str, int]:
    if replicas.min == replicas.max:
        return replicas.min
    return {"min": replicas.min, "max": replicas.max}


def _array(array: Array, parallel: int) -> dict[str, Any]:
    out: dict[str, Any] = {} if array.sweep else {"count": array.count}
    if array.sweep:
        out["sweep"] = {name: list(values) for name, values in array.sweep.items()}
    if array.samples:
        out |= {"samples": array.samples, "seed": array.seed}
    return {**out, "parallel": parallel}


def _retry(retry: Retry) -> dict[str, Any]:
    return {
        "on": [r.value for r in retry.on],
        "max": retry.max,
        "exit_codes": list(retry.exit_codes),
        "backoff": format_duration(retry.backoff_s),
        "backoff_max": format_duration(retry.backoff_max_s),
    }


def _probes(probes: Probes) -> dict[str, Any]:
    paths = {word: path for word, path in (("ready", probes.ready), ("alive", probes.alive)) if path}
    return {**paths, "every": format_duration(probes.every_s), "failures": probes.failures}


def _scaling(scaling: Scaling) -> dict[str, Any]:
    target = scaling.target
    return {
        "metric": scaling.metric,
        "target": int(target) if target.is_integer() else target,
        "up_delay": format_duration(scaling.up_delay_s),
        "down_delay": format_duration(scaling.down_delay_s),
    }


def _update(update: Update) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if update.max_unavailable is not None:
        out["max_unavailable"] = _amount(update.max_unavailable)
    if update.max_surge is not None:
        out["max_surge"] = _amount(update.max_surge)
    return {
        **out,
        "canary": update.canary,
        "auto_revert": update.auto_revert,
        "healthy_after": format_duration(update.healthy_after_s),
        "deadline": format_duration(update.deadline_s),
        "max_disruptions": update.max_disruptions,
    }


def _amount(amount: Amount) -> int | str:
    return str(amount) if amount.percent else amount.value


def _flat(full: dict[str, Any]) -> dict[str, Any]:
    """Return nested mappings as dotted keys; replicas stay one value."""
    out: dict[str, Any] = {}
    for key, value in full.items():
        if key == "replicas":
            out[key] = f"{value['min']}..{value['max']}" if isinstance(value, dict) else value
        elif isinstance(value, dict):
            out |= {f"{key}.{k}": v for k, v in value.items()}
        else:
            out[key] = value
    return out


def _show(value: object) -> str:
    if value is None or value in ("", []):
        return "(none)"
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    text = str(value)
    return (
        text if "\n" not in text and len(text) <= 80 else repr(text if len(text) <= 80 else f"{text[:77]}...")
    )
