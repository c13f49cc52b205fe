"""YAML, JSON or plain Python data as a tree whose every value knows its line. Pure.

YAML is read by its 1.2 rules: ``on``, ``yes``, ``no`` and ``12:30`` are text, so ``retry: {on: [...]}``
means what it says. Aliases are shared, not expanded, so a small file stays a small tree.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from tidecell.structs.errors import Mistake, SpecError

MAX_CHARS = 1 << 20


@dataclass(frozen=True)
class Node:
    """One value of a document.

    Attributes:
        value: The scalar; None for a mapping, a list, and where nothing was written.
        text: The scalar as it was written.
        line: From 1; None for data that came without text.
        items: Elements of a list, else None.
        pairs: Keys (with their lines) and values of a mapping, else None.
    """

    value: str | int | float | bool | None = None
    text: str = ""
    line: int | None = None
    items: tuple[Node, ...] | None = None
    pairs: tuple[tuple[str, int | None, Node], ...] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was written."""
        return self.value is None and self.items is None and self.pairs is None

    def plain(self) -> object:
        """Return the value as plain Python data."""
        if self.pairs is not None:
            return {key: node.plain() for key, _, node in self.pairs}
        if self.items is not None:
            return [node.plain() for node in self.items]
        return self.value

    def get(self, key: str) -> Node | None:
        """Return the value of a mapping's key."""
        return next((node for name, _, node in self.pairs or () if name == key), None)


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


def _resolve(tag: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"(?:{pattern})$"), list(first))


_resolve("bool", r"true|True|TRUE|false|False|FALSE", "tTfF")
_resolve("null", r"~|null|Null|NULL|", "~nN")
_Loader.yaml_implicit_resolvers.setdefault("", []).append(("tag:yaml.org,2002:null", re.compile("$")))
_resolve("int", r"[-+]?\d+", "-+0123456789")
_resolve("float", r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?", "-+.0123456789")


def read_text(text: str, source: str) -> list[Node]:
    """Return the documents of a YAML or JSON text; empty ones are left out.

    Raises:
        SpecError: The text is not YAML.
    """
    if len(text) > MAX_CHARS:
        raise SpecError([Mistake("", f"{len(text)} characters; a spec has at most {MAX_CHARS}")], source)
    reader = _TreeReader()
    try:
        nodes = [reader.node(n) for n in yaml.compose_all(text, _Loader) if n is not None]
    except yaml.MarkedYAMLError as error:
        raise SpecError([_syntax_mistake(error)], source) from error
    except yaml.YAMLError as error:
        raise SpecError([Mistake("", f"not readable as YAML: {error}".splitlines()[0])], source) from error
    except RecursionError as error:
        raise SpecError(
            [Mistake("", "values are nested too deeply", "a spec has two levels")], source
        ) from error
    if reader.mistakes:
        raise SpecError(reader.mistakes, source)
    return [n for n in nodes if not n.is_empty]


def _syntax_mistake(error: yaml.MarkedYAMLError) -> Mistake:
    mark = error.problem_mark or error.context_mark
    problem = error.problem or error.context or "it cannot be parsed"
    hint = ""
    if "'\\t'" in problem:
        hint = "indent with spaces, not tabs"
    elif "mapping values are not allowed" in problem or "could not find expected ':'" in problem:
        hint = "check the indentation, and quote a text that contains ': '"
    return Mistake("", f"not YAML: {problem}", hint, mark.line + 1 if mark is not None else None)


class _TreeReader:
    """Turns PyYAML's nodes into ours; notes keys that are given twice."""

    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []
        self._done: dict[int, Node | None] = {}
        self._keep: list[Any] = []  # nodes whose id() is in use must stay alive

    def node(self, raw: yaml.Node) -> Node:
        if id(raw) in self._done:
            known = self._done[id(raw)]
            if known is None:
                line = raw.start_mark.line + 1
                self.mistakes.append(Mistake("", "an alias contains itself", "write the value out", line))
                return Node(line=line)
            return known
        self._done[id(raw)] = None
        self._keep.append(raw)
        node = self._convert(raw, raw.start_mark.line + 1)
        self._done[id(raw)] = node
        return node

    def _convert(self, raw: yaml.Node, line: int) -> Node:
        if isinstance(raw, yaml.SequenceNode):
            return Node(line=line, items=tuple(self.node(n) for n in raw.value))
        if isinstance(raw, yaml.MappingNode):
            return Node(line=line, pairs=self._pairs(raw))
        return _scalar(raw, line)

    def _pairs(self, raw: yaml.MappingNode) -> tuple[tuple[str, int | None, Node], ...]:
        pairs: dict[str, tuple[str, int | None, Node]] = {}
        for key, value in raw.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                self.mistakes.append(
                    Mistake("", "a key is not a word", "quote it, or check the brackets", line)
                )
                continue
            if key.value in pairs:
                first = pairs[key.value][1]
                self.mistakes.append(
                    Mistake(key.value, f"given twice, first on line {first}", "keep one", line)
                )
                continue
            pairs[key.value] = (key.value, line, self.node(value))
        return tuple(pairs.values())


def _scalar(raw: yaml.Node, line: int) -> Node:
    text, tag = _join_surrogates(str(raw.value)), raw.tag.rpartition(":")[2]
    value: str | int | float | bool | None = text
    if tag == "null":
        value = None
    elif tag == "bool":
        value = text.lower() == "true"
    elif tag in ("int", "float") and len(text) <= 40:
        with contextlib.suppress(ValueError):  # a tag that does not fit its text: then it is text
            value = int(text) if tag == "int" else float(text)
    return Node(value, text, line)


def _join_surrogates(text: str) -> str:
    """JSON writes characters above U+FFFF as two escapes, which PyYAML leaves apart."""
    if text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_data(data: object) -> Node:
    """Return plain Python data (from JSON, or a caller) as a tree without lines."""
    if isinstance(data, Mapping):
        return Node(pairs=tuple((str(k), None, read_data(v)) for k, v in data.items()))
    if isinstance(data, list | tuple):
        return Node(items=tuple(read_data(v) for v in data))
    if data is None:
        return Node()
    if isinstance(data, bool):
        return Node(data, "true" if data else "false")
    if isinstance(data, int | float | str):
        return Node(data, str(data))
    return Node(str(data), str(data))
