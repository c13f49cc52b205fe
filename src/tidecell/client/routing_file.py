"""A routing file as people write it to ``Routing``: aliases, rules, tenants. Parsed once, checked as a whole.

Its keys are the fields of ``structs.traffic``, by the same names; tenants are a mapping by name, and their
keys are not in it: ``tide key`` makes them. The format is documented in docs/router-policies.md.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tidecell.client.document import Node, read_text
from tidecell.client.schema_traffic import unknown_keys
from tidecell.client.section import name_of
from tidecell.client.units import UnitError
from tidecell.structs.errors import Mistake, RefusedError, SpecError
from tidecell.structs.job import NAME_HINT
from tidecell.structs.traffic import Routing, Rule, Tenant
from tidecell.structs.traffic_check import check_routing

_HINT = "see docs/router-policies.md"
_TOP = ("aliases", "rules", "tenants")


def parse_routing(text: str, source: str) -> Routing:
    """Return the settings that a YAML or JSON text says.

    Args:
        text: One document.
        source: What messages call it, for example the file's name.

    Raises:
        SpecError: It has mistakes; those of keys are all listed, and else the first.
    """
    documents = read_text(text, source)
    if len(documents) != 1 or documents[0].pairs is None:
        hint = f"a routing file is one mapping with {', '.join(_TOP)}"
        raise SpecError([Mistake("", "it is not one mapping", hint)], source)
    mistakes = _wrong_keys(documents[0])
    if not mistakes:
        try:
            routing = msgspec.convert(_plain(documents[0]), Routing)
            check_routing(routing)
            return routing
        except msgspec.ValidationError as error:
            message, _, at = str(error).partition(" - at `$.")
            mistakes = [Mistake(at.rstrip("`"), f"{message[:1].lower()}{message[1:]}", _HINT)]
        except RefusedError as error:
            mistakes = [Mistake("", error.message, error.hint)]
    raise SpecError(mistakes, source)


def _wrong_keys(top: Node) -> list[Mistake]:
    mistakes = []
    for key, line, node in top.pairs or ():
        if key not in _TOP:
            mistakes.append(Mistake(key, f"has no key '{key}'", f"allowed: {', '.join(_TOP)}", line))
        elif key == "rules":
            mistakes += unknown_keys(node, tuple[Rule, ...], "rules")
        elif key == "tenants":
            mistakes += _wrong_tenants(node, line)
    return mistakes


def _wrong_tenants(node: Node, line: int | None) -> list[Mistake]:
    if node.pairs is None:
        return [Mistake("tenants", "must be a mapping", "write tenants: {acme: {limits: {…}}}", line)]
    mistakes = []
    for name, at, below in node.pairs:
        path = f"tenants.{name}"
        try:
            name_of(Node(name, name))
        except UnitError as error:
            mistakes.append(Mistake(path, error.message, NAME_HINT, at))
        for key in ("name", "keys"):
            if below.get(key) is not None:
                hint = "tide key create makes keys" if key == "keys" else "its name is the key of the mapping"
                mistakes.append(Mistake(f"{path}.{key}", "does not belong here", hint, at))
        mistakes += unknown_keys(below, Tenant, path)
    return mistakes


def _plain(top: Node) -> dict[str, Any]:
    """Return the document as ``Routing`` has it: what has no value is left out, tenants know their names."""
    out = {key: node.plain() for key, _, node in top.pairs or () if not node.is_empty}
    tenants = out.get("tenants")
    if isinstance(tenants, dict):
        out["tenants"] = [{**(value or {}), "name": name} for name, value in tenants.items()]
    return out
