"""What a spec's program is, and what single replicas have otherwise (``tasks``). Pure."""

from __future__ import annotations

import re

from msgspec.structs import replace

from tidecell.client.document import Node
from tidecell.client.schema_placement import shape_of
from tidecell.client.section import Section, filled, text_of
from tidecell.client.units import UnitError, check_env, show
from tidecell.structs.job import JobSpec, Override, Shape

_RANGE = re.compile(r"([0-9]{1,6})(?:-([0-9]{1,6}))?")
_HINT = "write tasks: {0: {resources: {cpu: 4}}, 1-3: {env: {ROLE: worker}}}"


def program(node: Node) -> tuple[str, tuple[str, ...]]:
    """A shell script, or a list: a program and its arguments."""
    if node.items is None:
        return filled(node), ()
    if not node.items or not filled(node.items[0]):
        raise UnitError("is empty", "give a program and its arguments")
    return "", tuple(text_of(n) for n in node.items)


def read_env(top: Section) -> dict[str, str]:
    """Read environment variables."""
    return read_mapping(top, "env", check=True)


def read_mapping(top: Section, key: str, check: bool = False) -> dict[str, str]:
    """Read a mapping of text to text, as it was written; ``check``: its keys are variables."""
    node = top.node.get(key)
    if node is None:
        return {}
    path = f"{top.path}.{key}" if top.path else key
    below = Section(node, path, top.mistakes, top.label)
    if node.pairs is None:
        below.note("", f"must be a mapping, not {show(node.plain())}", f"write {key}: {{NAME: value}}")
        return {}
    values = {}
    for name, line, value in node.pairs:
        try:
            values[name] = text_of(value)
            if check:
                check_env(name, values[name])
        except UnitError as error:
            hint = 'quote it; "" is the empty text' if value.is_empty else error.hint
            below.note(name, "has no value" if value.is_empty else error.message, hint, line)
    return values


def read_tasks(top: Section, base: Shape) -> tuple[Override, ...]:
    """Return what single replicas have otherwise; what is not said is as the job has it."""
    node = top.node.get("tasks")
    if node is None:
        return ()
    if not node.pairs:
        top.note("tasks", f"must be a mapping of replicas, not {show(node.plain())}", _HINT)
        return ()
    out: list[Override] = []
    for name, line, value in node.pairs:
        match = _RANGE.fullmatch(name)
        first = int(match[1]) if match else 0
        last = int(match[2] or match[1]) if match else 0
        if match is None or last < first:
            top.note("tasks", f"{show(name)} is no replica and no range of replicas", _HINT, line)
            continue
        other = next((o for o in out if first <= o.last and last >= o.first), None)
        if other is not None:
            twice = max(first, other.first)
            top.note("tasks", f"replica {twice} is named twice", "name each replica once", line)
            continue
        below = Section(value, f"tasks.{name}", top.mistakes, top.label, level="tasks")
        if below.check_keys():
            own = _override(below, base, first, last)
            if below.bad:
                top.bad.add("tasks")
            elif own == Override(first, last):
                top.note("tasks", f"{show(name)} changes nothing", "say what differs, or take it out", line)
            out.append(own)
        else:
            top.bad.add("tasks")
    return tuple(sorted(out, key=lambda o: o.first))


def _override(below: Section, base: Shape, first: int, last: int) -> Override:
    nothing: tuple[str, tuple[str, ...]] = ("", ())
    run, argv = below.take("run", program, nothing)
    own = Override(first, last, env=read_env(below), run=run, argv=argv)
    node = below.node.get("resources")
    if node is None:
        return own
    path = f"{below.path}.resources"
    section = Section(node, path, below.mistakes, below.label, level="any_of")  # as one alternative
    if not section.check_keys():
        below.bad.add("resources")
        return own
    shape = shape_of(section, base)
    if section.bad:
        below.bad.add("resources")
    elif shape.accelerator_type not in ("", base.accelerator_type):
        text = (
            f"asks for {shape.accelerator_type}; the job's accelerators are {base.accelerator_type or 'any'}"
        )
        below.note(
            "resources", text, "give the type under the job's own resources.gpu, or make it another job"
        )
    resources = shape.resources if shape.resources != base.resources else None
    return replace(own, resources=resources)


def task_rules(top: Section, spec: JobSpec) -> None:
    """Rules across keys for ``tasks``; silent about keys that are wrong by themselves."""
    if not spec.tasks or "tasks" in top.bad:
        return
    if spec.array is not None:
        top.note("tasks", "is for replicas; the items of an array are all alike", "use sweep, or take it out")
        return
    if spec.any_of and spec.sizes:
        top.note(
            "tasks", "cannot change resources where resources.any_of has alternatives", "use one of them"
        )
    last = max(o.last for o in spec.tasks)
    if "replicas" not in top.bad and last >= spec.replicas.max:
        most = spec.replicas.max - 1
        allowed = f"0 to {most}" if most else "0"
        top.note("tasks", f"there is no replica {last}; replicas are {allowed}", "set replicas higher")
    if top.has("model") and any(o.run or o.argv for o in spec.tasks):
        top.note("tasks", "cannot change the program of a served model", "take run out")


__all__ = ["program", "read_env", "read_mapping", "read_tasks", "task_rules"]
