"""Rules of allocs, and of jobs that enter one. Pure."""

from __future__ import annotations

from tidecell.client.section import Section
from tidecell.structs.job import JobSpec

# What says how a program runs: an alloc has none.
_PROGRAM = (
    "run", "setup", "workdir", "env", "checkpoint", "array", "schedule", "after", "retry", "tasks", "update"
)  # fmt: skip
# What says which machines: those of the alloc are chosen already.
_MACHINES = ("constraints", "prefer", "topology", "spread", "data")


def alloc_rules(top: Section, spec: JobSpec) -> None:
    """Rules across keys; silent about keys that are wrong by themselves."""
    if spec.is_alloc:
        for key in (*_PROGRAM, "alloc"):
            if top.has(key):
                nested = "cannot be inside another alloc"
                text = nested if key == "alloc" else "is not for allocs, which run nothing"
                top.note(key, text, "take it out; submit a job with alloc: NAME to run in it")
        if spec.any_of and "resources" not in top.bad:
            top.note("resources", "of an alloc has no alternatives", "take any_of out")
    elif top.has("alloc"):
        for key in _MACHINES:
            if top.has(key):
                top.note(key, "is not for jobs in an alloc", "give it to the alloc, or take it out")


__all__ = ["alloc_rules"]
