"""How a spec says what the router does with a service's requests: ``traffic``. Pure.

Its keys are the fields of ``structs.traffic.TrafficPolicy``, by the same names, times in seconds.
"""

from __future__ import annotations

import difflib
from types import UnionType
from typing import Any, get_args, get_type_hints

import msgspec

from tidecell.client.document import Node
from tidecell.client.section import Section
from tidecell.structs.errors import RefusedError
from tidecell.structs.traffic import TrafficPolicy
from tidecell.structs.traffic_check import check_traffic

_HINT = "see docs/router-policies.md"


def read_traffic(top: Section) -> TrafficPolicy | None:
    """Return a service's traffic policy, None where the spec has none or a wrong one (then noted)."""
    node = top.node.get("traffic")
    if node is None:
        return None
    if node.is_empty or node.pairs is None:
        top.note("traffic", "must be a mapping", "write traffic: {balance: prequal}")
        return None
    if not _knows_keys(top, node, TrafficPolicy, "traffic"):
        return None
    try:
        policy = msgspec.convert(node.plain(), TrafficPolicy, strict=False)
        check_traffic("", policy)
    except msgspec.ValidationError as error:
        message, _, at = str(error).partition(" - at `$.")
        where = f"traffic.{at.rstrip('`')}" if at else "traffic"
        top.note("traffic", f"{where}: {message[:1].lower()}{message[1:]}", _HINT)
        return None
    except RefusedError as error:
        top.note("traffic", error.message.partition(" has ")[2], _HINT)
        return None
    return policy


def _knows_keys(top: Section, node: Node, kind: type[msgspec.Struct], path: str) -> bool:
    """Return whether all keys are fields, at every level; others are noted."""
    fields = get_type_hints(kind)
    is_known = True
    for key, line, below in node.pairs or ():
        part = _struct_of(fields.get(key))
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(sorted(fields))}"
            top.note("traffic", f"{path} has no key '{key}'", hint, line)
            is_known = False
        elif part is not None and below.pairs is not None:
            is_known = _knows_keys(top, below, part, f"{path}.{key}") and is_known
    return is_known


def _struct_of(hint: Any) -> type[msgspec.Struct] | None:
    """Return the struct that a field holds, also where it may be None."""
    options = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, msgspec.Struct)), None)
