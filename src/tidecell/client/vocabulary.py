"""The words of a spec: what each level allows, and what to say about a word that it does not. Pure."""

from __future__ import annotations

import difflib

# Every key of every level; the empty path is the top.
KEYS: dict[str, tuple[str, ...]] = {
    "": (
        *("kind", "name", "workdir", "setup", "run", "env", "resources", "replicas", "priority"),
        *("preemption", "grace_period", "min_runtime", "checkpoint", "retry", "max_duration", "after"),
        *("port", "probes", "scaling", "model", "models", "labels", "team", "array"),
        *("update", "disruptions", "begin", "hold", "schedule"),
        *("constraints", "prefer", "topology", "spread", "data", "tasks"),
        "idle_timeout",
        "alloc",
        "idle_gpu",
        "traffic",
    ),
    "tasks": ("resources", "env", "run"),
    "resources": ("gpu", "cpu", "memory", "any_of"),
    "any_of": ("gpu", "cpu", "memory"),
    "replicas": ("min", "max"),
    "schedule": ("cron", "timezone", "overlap", "catch_up", "history"),
    "array": ("count", "parallel", "sweep", "samples", "seed"),
    "checkpoint": ("path", "every"),
    "retry": ("on", "max", "exit_codes", "backoff", "backoff_max"),
    "probes": ("ready", "alive", "every", "failures"),
    "scaling": ("metric", "target", "up_delay", "down_delay"),
    "update": (
        *("max_unavailable", "max_surge", "canary", "auto_revert", "healthy_after", "deadline"),
        "max_disruptions",
    ),
    "disruptions": ("max_unavailable",),
    "idle_gpu": ("below", "for"),
    "prefer": ("when", "weight"),
    "topology": ("required", "preferred"),
    "spread": ("by", "max_skew"),
}

# Words of the design that this version does not have, and what to do meanwhile.
NOT_YET = {
    "secrets": "let the program read them from a file that is yours alone",
}

# What other tools call our keys.
ELSEWHERE = {
    "command": "run",
    "commands": "run",
    "cmd": "run",
    "args": "run",
    "entrypoint": "run",
    "envs": "env",
    "environment": "env",
    "num_nodes": "replicas",
    "nodes": "replicas",
    "num_workers": "replicas",
    "workers": "replicas",
    "minMember": "replicas.min",
    "type": "kind",
    "working_dir": "workdir",
    "priorityClassName": "priority",
    "terminationGracePeriodSeconds": "grace_period",
    "timeout": "max_duration",
    "depends_on": "after",
    "dependencies": "after",
    "gpus": "resources.gpu",
    "gpu": "resources.gpu",
    "cpu": "resources.cpu",
    "cpus": "resources.cpu",
    "memory": "resources.memory",
    "mem": "resources.memory",
    "accelerators": "resources.gpu",
    "nodeSelector": "constraints",
    "node_selector": "constraints",
    "affinity": "prefer",
    "constraint": "constraints",
    "anti_affinity": "spread",
    "topologySpreadConstraints": "spread",
}


def example(path: str) -> str:
    """Return what a mapping at this level looks like."""
    if not path:
        return "write name: and run: below it"
    return f"write {path}: {{{', '.join(f'{key}: ...' for key in KEYS[path])}}}"


def describe_unknown(key: str, path: str) -> tuple[str, str]:
    """Return message and hint for a key that the level ``path`` does not have."""
    allowed = f"allowed: {', '.join(KEYS[path])}"
    if key in NOT_YET:
        return "not supported in this version", NOT_YET[key]
    if key == "<<":
        return "merge keys are not supported", "write the keys out"
    if path == "" and key in ELSEWHERE:
        return "unknown key", f"here it is called {ELSEWHERE[key]}"
    if path and key in KEYS[""]:
        return f"unknown key; {allowed}", f"'{key}' belongs at the top level"
    levels = [level for level, keys in KEYS.items() if key in keys]
    if levels:
        return "unknown key", f"did you mean {levels[0]}.{key}?"
    near = difflib.get_close_matches(key.lower(), KEYS[path], 1, 0.6)
    return "unknown key", f"did you mean '{near[0]}'?" if near else allowed
