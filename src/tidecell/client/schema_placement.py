"""The keys of a spec that say where replicas go: resources, conditions on machines, domains. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tidecell.client.document import Node
from tidecell.client.section import Section, filled, list_of, plainly, text_of, whole_number
from tidecell.client.units import UnitError, parse_cpu, parse_gpu, parse_memory, show
from tidecell.structs.job import JobSpec, Shape
from tidecell.structs.placement import (
    MAX_WEIGHT,
    Condition,
    Preference,
    Spread,
    Topology,
    is_key,
    parse_condition,
)
from tidecell.structs.resources import Resources

T = TypeVar("T")

CONDITION_HINT = (
    "write it like rack in (r1, r2), zone != a, cpu_model ~ EPYC, gpu_memory >= 40GB or ssd exists"
)
MAX_ALTERNATIVES = 8


# ---------------------------------------------------------------------------------------- resources


def read_shapes(top: Section) -> tuple[Shape, ...]:
    """Return the sets of resources that a replica can run with, the first choice first."""
    section = top.section("resources")
    if section is None:
        return (Shape(Resources(cpu_millis=1000)),)
    base = shape_of(section, Shape(Resources(cpu_millis=1000)))
    node = section.node.get("any_of")
    if node is None:
        return (base,)
    if not node.items:
        section.note(
            "any_of", f"must be a list, not {show(node.plain())}", "write [{gpu: H100:1}, {gpu: A100:2}]"
        )
        return (base,)
    if len(node.items) > MAX_ALTERNATIVES:
        text = f"has {len(node.items)} alternatives; at most {MAX_ALTERNATIVES} are allowed"
        section.note("any_of", text, "leave out the last ones")
    shapes = []
    for item in node.items:
        below = Section(item, "any_of", top.mistakes, top.label)
        shapes.append(shape_of(below, base) if below.check_keys() else base)
    for at, shape in enumerate(shapes):
        if shape in shapes[:at]:
            section.note("any_of", f"alternative {at + 1} is the same as an earlier one", "take it out")
    return tuple(shapes)


def shape_of(section: Section, base: Shape) -> Shape:
    """Read one set of resources; what it does not say is as in ``base``."""
    have = base.resources
    kind, gpu_millis = section.take("gpu", plainly(parse_gpu), (base.accelerator_type, have.gpu_millis))
    cpu_millis = section.take("cpu", plainly(parse_cpu), have.cpu_millis)
    memory_bytes = section.take("memory", plainly(parse_memory), have.memory_bytes)
    return Shape(Resources(cpu_millis, memory_bytes, gpu_millis), kind)


# --------------------------------------------------------------------------------------- conditions


def read_constraints(top: Section) -> tuple[Condition, ...]:
    """Return what every machine must meet: a list of conditions, or one."""
    return top.take("constraints", _one_or_many(condition), ())


def condition(node: Node) -> Condition:
    """A condition on an attribute of machines."""
    text = filled(node)
    try:
        return parse_condition(text)
    except ValueError as error:
        what = str(error)
        raise UnitError(f"{show(text)} {what}" if what.startswith("is") else what, CONDITION_HINT) from error


def _one_or_many(of: Callable[[Node], T]) -> Callable[[Node], tuple[T, ...]]:
    return lambda node: list_of(node, of) if node.items is not None else (of(node),)


def read_prefer(top: Section) -> tuple[Preference, ...]:
    """Return what machines should meet: conditions, or mappings of ``when`` and ``weight``."""
    node = top.node.get("prefer")
    if node is None:
        return ()
    if node.is_empty:
        top.note("prefer", "has no value", "give one, or take the key out")
        return ()
    found = [_preference(top, item) for item in (node.items if node.items is not None else (node,))]
    return tuple(p for p in found if p is not None)


def _preference(top: Section, node: Node) -> Preference | None:
    if node.pairs is None:
        try:
            return Preference(condition(node))
        except UnitError as error:
            top.note("prefer", error.message, error.hint)
            return None
    section = Section(node, "prefer", top.mistakes, top.label)
    known = section.check_keys()
    if not section.has("when"):
        section.note("when", "is missing", "write {when: rack = r1, weight: 5}")
    nothing: Condition | None = None
    when = section.take("when", condition, nothing)
    weight = section.take("weight", _weight, 1)
    return Preference(when, weight) if when is not None and known else None


def _weight(node: Node) -> int:
    """A whole number, not 0: below 0 the condition is one to avoid."""
    weight = whole_number(-MAX_WEIGHT, MAX_WEIGHT)(node)
    if not weight:
        raise UnitError("a weight of 0 has no effect", "give 1 to 100, or below 0 to avoid such machines")
    return weight


# ------------------------------------------------------------------------------------------ domains


def read_topology(top: Section) -> Topology | None:
    """Return in which kind of domain all replicas go: ``{required: rack}`` (or ``rack``) or ``preferred``."""
    if _is_word(top.node.get("topology")):
        level = top.take("topology", attribute, "")
        return Topology(level) if level else None
    section = top.section("topology")
    if section is None:
        return None
    given = [key for key in ("required", "preferred") if section.has(key)]
    if len(given) != 1:
        text = "says both required and preferred" if given else "says neither required nor preferred"
        section.note("", text, "write topology: {required: rack}")
        return None
    level = section.take(given[0], attribute, "")
    return Topology(level, given[0] == "required") if level else None


def read_spread(top: Section) -> Spread | None:
    """Return over which domains replicas are spread: ``{by: rack, max_skew: 1}``, or just ``rack``."""
    if _is_word(top.node.get("spread")):
        by = top.take("spread", attribute, "")
        return Spread(by) if by else None
    section = top.section("spread")
    if section is None:
        return None
    if not section.has("by"):
        section.note("by", "is missing", "write spread: {by: rack}")
    by = section.take("by", attribute, "")
    max_skew = section.take("max_skew", whole_number(1, 1000), 0)
    return Spread(by, max_skew) if by else None


def _is_word(node: Node | None) -> bool:
    """Whether a value is the short form: a word instead of a mapping."""
    return node is not None and isinstance(node.value, str) and bool(node.text.strip())


def attribute(node: Node) -> str:
    """The name of an attribute of machines."""
    text = text_of(node)
    if not is_key(text):
        raise UnitError(f"{show(text)} is no name of an attribute", "use letters, digits, dot, dash: rack")
    return text


def read_data(top: Section) -> tuple[str, ...]:
    """Return names of datasets and packages."""
    return top.take("data", _one_or_many(filled), ())


def placement_rules(top: Section, spec: JobSpec) -> None:
    """Note what does not go together."""
    topology, spread = spec.topology, spec.spread
    if topology is not None and spread is not None and topology.level == spread.by:
        text = f"one {topology.level} for all (topology) and many of them (spread)"
        top.note("spread", text, "take one of the two out, or name another kind of domain")
