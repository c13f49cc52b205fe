"""One mapping of a spec while it is read, and the kinds of values that its keys take. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from tidecell.client.document import Node
from tidecell.client.units import UnitError, parse_duration, show
from tidecell.client.vocabulary import KEYS, describe_unknown, example
from tidecell.structs.errors import Mistake
from tidecell.structs.job import NAME_HINT, RetryOn, is_name

T = TypeVar("T")


@dataclass
class Section:
    """One mapping while it is read: takes keys, and notes mistakes with line and path."""

    node: Node
    path: str
    mistakes: list[Mistake]
    label: str = ""
    bad: set[str] = field(default_factory=set)
    level: str = ""  # whose keys it has, where its path is not one of the vocabulary's

    def note(self, key: str, message: str, hint: str = "", line: int | None = None) -> None:
        """Note a mistake; without ``line`` that of the key, or else of the mapping."""
        self.bad.add(key)
        where = f"{self.path}.{key}" if self.path and key else self.path or key
        if line is None:
            line = next((at for name, at, _ in self.node.pairs or () if name == key), self.node.line)
        if self.label and line is None:
            where = f"{self.label} {where}".rstrip()
        self.mistakes.append(Mistake(where, message, hint, line))

    def has(self, key: str) -> bool:
        """Whether the key is given."""
        return self.node.get(key) is not None

    def take(self, key: str, parse: Callable[[Node], T], default: T) -> T:
        """Return a key's value, or the default if it is missing or wrong (then noted)."""
        node = self.node.get(key)
        if node is None:
            return default
        if node.is_empty:
            self.note(key, "has no value", "give one, or take the key out")
            return default
        try:
            return parse(node)
        except UnitError as error:
            self.note(key, error.message, error.hint)
            return default

    def check_keys(self) -> bool:
        """Note unknown keys; False if this is no mapping at all."""
        if self.node.pairs is None:
            self.note(
                "", f"must be a mapping, not {show(self.node.plain())}", example(self.level or self.path)
            )
            return False
        for key, line, _ in self.node.pairs:
            if key not in KEYS[self.level or self.path]:
                message, hint = describe_unknown(key, self.level or self.path)
                self.note(key, message, hint, line)
        return True

    def section(self, key: str) -> Section | None:
        """Return the mapping below a key, or None if it is missing or no mapping."""
        node = self.node.get(key)
        if node is None:
            return None
        if node.is_empty:
            self.note(key, "has no value", "give one, or take the key out")
            return None
        below = Section(node, key, self.mistakes, self.label)
        return below if below.check_keys() else None


# ---------------------------------------------------------------------------------- kinds of values


def plainly(parse: Callable[[object], T]) -> Callable[[Node], T]:
    """Return a parser of plain data as one of nodes."""
    return lambda node: parse(node.plain())


duration = plainly(parse_duration)


def text_of(node: Node) -> str:
    """Any scalar as it was written; not a mapping or list."""
    if node.items is not None or node.pairs is not None or node.value is None:
        raise UnitError(f"must be text, not {show(node.plain())}", "quote it")
    if "\0" in node.text:
        raise UnitError("has a NUL character", "take it out")
    return node.text


def filled(node: Node) -> str:
    """Text that is not blank."""
    text = text_of(node)
    if not text.strip():
        raise UnitError("is empty", "give a value, or take the key out")
    return text


def name_of(node: Node) -> str:
    """The name of a job or team."""
    text = text_of(node)
    if not is_name(text):
        raise UnitError(f"{show(text)} is no name", NAME_HINT)
    return text


def list_of(node: Node, of: Callable[[Node], T]) -> tuple[T, ...]:
    """A list of different values."""
    if node.items is None:
        raise UnitError(f"must be a list, not {show(node.plain())}", "write [a, b]")
    values = tuple(of(n) for n in node.items)
    if len(set(values)) < len(values):
        twice = next(v for v in values if values.count(v) > 1)
        raise UnitError(f"{show(str(twice))} is listed twice", "list it once")
    return values


def names(node: Node) -> tuple[str, ...]:
    """A list of names."""
    return list_of(node, name_of)


def models(node: Node) -> tuple[str, ...]:
    """A list of model names, which may be anything that is not blank."""
    return list_of(node, filled)


def choice(allowed: Sequence[str]) -> Callable[[Node], str]:
    """Return a parser for one of these words."""

    def parse(node: Node) -> str:
        text = text_of(node)
        if text not in allowed:
            near = difflib.get_close_matches(text, allowed, 1)
            hint = f"did you mean '{near[0]}'?" if near else ""
            raise UnitError(f"{show(text)} is not one of {', '.join(allowed)}", hint)
        return text

    return parse


def whole_number(low: int, high: int) -> Callable[[Node], int]:
    """Return a parser for whole numbers in a range, both ends included."""

    def parse(node: Node) -> int:
        value = node.value
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise UnitError(f"{show(node.plain())} is not a whole number from {low} to {high}")
        return value

    return parse


def positive(node: Node) -> float:
    """A number above 0."""
    value = node.value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1e9:
        raise UnitError(f"{show(node.plain())} is not a number above 0")
    return float(value)


def positive_duration(node: Node) -> float:
    """Seconds above 0."""
    seconds = duration(node)
    if seconds <= 0:
        raise UnitError(f"{show(node.plain())} is not above 0")
    return seconds


def yes_or_no(node: Node) -> bool:
    """``true`` or ``false``."""
    if not isinstance(node.value, bool):
        raise UnitError(f"{show(node.plain())} is not true or false")
    return node.value


def retry_on(node: Node) -> tuple[RetryOn, ...]:
    """A list of causes of failure."""
    words = choice([r.value for r in RetryOn])
    return tuple(RetryOn(w) for w in list_of(node, words))


def http_path(node: Node) -> str:
    """The path of an HTTP request."""
    text = text_of(node)
    if not text.startswith("/") or any(c.isspace() for c in text):
        raise UnitError(f"{show(text)} is no path of an HTTP request", "start it with a slash: /health")
    return text
