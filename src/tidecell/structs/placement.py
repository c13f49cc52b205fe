"""Where a job's replicas may go, and where they should: conditions on machines' attributes.

The grammar is one line a condition: ``rack in (r1, r2)``, ``zone != a``, ``cpu_model ~ EPYC``,
``gpu_memory >= 40GB``, ``ssd exists``, ``spot absent``. A key names an attribute; what a machine says of
itself is in ``attributes_of``. An attribute may have several values (the types of a machine's
accelerators): a condition holds where one of them meets it, a negated one where none does. A machine that
lacks the attribute meets only negated ones and ``absent``.
"""

from __future__ import annotations

import enum
import operator
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from tidecell.structs.resources import format_cpu

if TYPE_CHECKING:
    from tidecell.structs.machine import MachineSpec

MAX_WEIGHT = 100
QUANTITIES = frozenset({"cpu", "memory", "gpus", "gpu_memory"})  # what machines say of themselves in numbers
ALIASES = {"gpu.memory": "gpu_memory", "gpu.type": "gpu"}

_KEY = r"[A-Za-z_][A-Za-z0-9_.-]*"
_CONDITION = re.compile(rf"\s*({_KEY})\s*(not\s+in\b|in\b|!=|!~|>=|<=|==|=|>|<|~)\s*(.*?)\s*", re.DOTALL)
_PRESENCE = re.compile(rf"\s*({_KEY})\s+(exists|absent)\s*")
_QUANTITY = re.compile(r"(-?\d+(?:\.\d+)?)\s*([kmgtp]?i?b?)", re.IGNORECASE)
_FACTORS = {"": 1, "b": 1} | {
    f"{p}{i}b": (1024 if i else 1000) ** n for n, p in enumerate("kmgtp", 1) for i in ("", "i")
}


class Op(enum.StrEnum):
    """How an attribute is compared."""

    EQUAL = "="
    UNEQUAL = "!="
    IN = "in"
    NOT_IN = "not in"
    HAS = "~"
    LACKS = "!~"
    AT_LEAST = ">="
    AT_MOST = "<="
    ABOVE = ">"
    BELOW = "<"
    EXISTS = "exists"
    ABSENT = "absent"


_COMPARE: dict[Op, Callable[[float, float], bool]] = {
    Op.AT_LEAST: operator.ge,
    Op.AT_MOST: operator.le,
    Op.ABOVE: operator.gt,
    Op.BELOW: operator.lt,
}
_PRESENCES = (Op.EXISTS, Op.ABSENT)  # these compare nothing
_NEGATED = {Op.UNEQUAL: Op.EQUAL, Op.NOT_IN: Op.IN, Op.LACKS: Op.HAS}


class Condition(msgspec.Struct, frozen=True, omit_defaults=True):
    """One condition on a machine, for example ``rack in (r1, r2)``; ``ssd exists`` has no values."""

    key: str
    op: Op
    values: tuple[str, ...]

    def __str__(self) -> str:
        if self.op in _PRESENCES:
            return f"{self.key} {self.op.value}"
        listed = self.op in (Op.IN, Op.NOT_IN)
        value = f"({', '.join(self.values)})" if listed else self.values[0]
        return f"{self.key} {self.op.value} {value}"

    def holds(self, values: Sequence[str]) -> bool:
        """Return whether an attribute with these values meets the condition; no values: it is not there."""
        if self.op in _PRESENCES:
            return bool(values) is (self.op is Op.EXISTS)
        positive = _NEGATED.get(self.op)
        if positive is not None:
            return not any(self._meets(positive, value) for value in values)
        return any(self._meets(self.op, value) for value in values)

    def _meets(self, op: Op, value: str) -> bool:
        if op is Op.HAS:
            return self.values[0].lower() in value.lower()
        if op in _COMPARE:
            have, want = quantity(value), quantity(self.values[0])
            return have is not None and want is not None and _COMPARE[op](have, want)
        sizes = self.key in QUANTITIES  # elsewhere ``1`` and ``1b`` are two names
        return any(value == wanted or (sizes and _same_quantity(value, wanted)) for wanted in self.values)


class Preference(msgspec.Struct, frozen=True, omit_defaults=True):
    """A condition that a machine should meet: machines with the larger sum of weights come first."""

    when: Condition
    weight: int = 1


class Topology(msgspec.Struct, frozen=True):
    """All replicas in one domain: machines with the same value of the attribute ``level``."""

    level: str
    required: bool = True


class Spread(msgspec.Struct, frozen=True, omit_defaults=True):
    """Replicas over many domains: none has more than the least and ``max_skew``; 0: as even as possible."""

    by: str
    max_skew: int = 0


def parse_condition(text: str) -> Condition:
    """Return the condition that a line of text says.

    Raises:
        ValueError: It says none; the text tells what is wrong.
    """
    presence = _PRESENCE.fullmatch(text)
    if presence is not None:
        return Condition(_named(presence[1]), Op(presence[2]), ())
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise ValueError("is no condition")
    key, word, rest = match.groups()
    op = Op(" ".join(word.split()) if word != "==" else "=")
    if op in (Op.IN, Op.NOT_IN):
        if not (rest.startswith("(") and rest.endswith(")")):
            raise ValueError(f"'{op.value}' takes a list in parentheses")
        values = tuple(dict.fromkeys(part.strip() for part in rest[1:-1].split(",")))
    else:
        values = (rest,)
    for value in values:
        if not value or any(c in value for c in "(),\n"):
            raise ValueError(f"'{value}' is no value" if value else "a value is missing")
    if op in _COMPARE and quantity(values[0]) is None:
        raise ValueError(f"'{values[0]}' is no number or size, and '{op.value}' compares those")
    return Condition(_named(key), op, values)


def _named(key: str) -> str:
    """Return an attribute's own name."""
    return ALIASES.get(key, key)


def is_key(text: str) -> bool:
    """Return whether this can be the name of an attribute."""
    return re.fullmatch(_KEY, text) is not None


def quantity(text: str) -> float | None:
    """Return a number, or a size in bytes; None if it is neither."""
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        return None
    factor = _FACTORS.get(match[2].lower())
    return float(match[1]) * factor if factor is not None else None


def _same_quantity(one: str, other: str) -> bool:
    have = quantity(one)
    return have is not None and have == quantity(other)


def attributes_of(machine: MachineSpec, key: str) -> tuple[str, ...]:
    """Return the values of a machine's attribute; what it was given comes before what it has by itself."""
    given = machine.attributes.get(key)
    if given is not None:
        return (given,)
    if key == "name":
        return (machine.name,)
    if key == "cpu":
        return (format_cpu(machine.capacity.cpu_millis),)
    if key == "memory":
        return (str(machine.capacity.memory_bytes),)
    if key == "gpus":
        return (str(len(machine.accelerators)),)
    if key == "gpu":
        return tuple(dict.fromkeys(a.type for a in machine.accelerators))
    if key == "gpu_memory":
        return tuple(dict.fromkeys(str(a.memory_bytes) for a in machine.accelerators if a.memory_bytes))
    return ()


BUILT_IN = ("name", "cpu", "memory", "gpus", "gpu", "gpu_memory")
