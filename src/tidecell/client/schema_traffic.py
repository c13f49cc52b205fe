"""How a spec says what the router does with a service's requests: ``traffic``. Pure.

Its keys are the fields of ``structs.traffic.TrafficPolicy``, by the same names, times in seconds.
"""

from __future__ import annotations

import difflib
from typing import Any, get_args, get_type_hints

import msgspec

from tidecell.client.document import Node
from tidecell.client.section import Section
from tidecell.structs.errors import Mistake, RefusedError
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
    unknown = unknown_keys(node, TrafficPolicy, "traffic")
    for mistake in unknown:
        top.note(
            "traffic", f"{mistake.where.rpartition('.')[0]} {mistake.message}", mistake.hint, mistake.line
        )
    if unknown:
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


def unknown_keys(node: Node, kind: Any, path: str) -> list[Mistake]:
    """Return the keys of a document, at every level, that are no fields of the struct they are written for.

    Args:
        node: What was written.
        kind: What it is to become; there is something to check if that is or holds a struct.
        path: Where the node is.
    """
    struct = _struct_of(kind)
    if struct is None:
        return []
    if node.items is not None:
        rows = enumerate(node.items)
        return [m for i, below in rows for m in unknown_keys(below, struct, f"{path}[{i}]")]
    fields, found = get_type_hints(struct), []
    for key, line, below in node.pairs or ():
        if key in fields:
            found += unknown_keys(below, fields[key], f"{path}.{key}")
            continue
        near = difflib.get_close_matches(key, fields, 1)
        hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(sorted(fields))}"
        found.append(Mistake(f"{path}.{key}", f"has no key '{key}'", hint, line))
    return found


def _struct_of(hint: Any) -> type[msgspec.Struct] | None:
    """Return the struct that a field holds, also where it may be None or holds several."""
    options = get_args(hint) or (hint,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, msgspec.Struct)), None)
