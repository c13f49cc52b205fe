"""Admission rules: what a cell's keeper wants of every spec, as a file of matches and actions. Pure.

    rules:
      - name: accelerators need a team
        match: {resources.gpu: any, team: none}
        refuse: set team, so that we know whose accelerators these are
      - match: {kind: job, priority: [batch, best-effort]}
        default: {max_duration: 2d, labels.tier: batch}
        cap: {max_duration: 7d, replicas.max: 64}

Keys are those of a spec, with dots for what is below. A match compares the text as one would write it; a list
means any of them, ``any`` that it is given, ``none`` that it is not; ``band`` is that of its priority.
``default`` gives what is not given, ``set`` overrides, ``cap`` lowers what is larger. The result is read as
any spec is, so a rule cannot make a wrong one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tidecell.client.document import read_text
from tidecell.client.schema import parse_data
from tidecell.client.specform import spec_to_dict
from tidecell.client.units import UnitError, parse_cpu, parse_duration, parse_size
from tidecell.structs.errors import Mistake, RefusedError, SpecError
from tidecell.structs.job import JobSpec, Reason

_KEYS = ("name", "match", "refuse", "default", "set", "cap")
Rule = dict[str, Any]


def parse_rules(text: str, source: str) -> list[Rule]:
    """Return the rules of a YAML text, checked.

    Raises:
        SpecError: It has mistakes; all are listed.
    """
    documents = read_text(text, source)
    pairs = documents[0].pairs if len(documents) == 1 else None
    node = documents[0].get("rules") if pairs is not None else None
    if node is None or node.items is None or [k for k, _, _ in pairs or ()] != ["rules"]:
        raise SpecError([Mistake("", "must have rules: and a list below it, and nothing else")], source)
    mistakes: list[Mistake] = []
    for number, item in enumerate(node.items, 1):
        keys = [key for key, _, _ in item.pairs or ()]
        where = f"rules #{number}"
        for key in keys:
            if key not in _KEYS:
                mistakes.append(
                    Mistake(where, f"unknown key {key!r}", f"allowed: {', '.join(_KEYS)}", item.line)
                )
        if not set(keys) & {"refuse", "default", "set", "cap"}:
            mistakes.append(Mistake(where, "does nothing", "give refuse, default, set or cap", item.line))
        for key in ("match", "default", "set", "cap"):
            value = item.get(key)
            if value is not None and value.pairs is None:
                mistakes.append(
                    Mistake(where, f"{key} must be a mapping", "for example {kind: job}", value.line)
                )
    if mistakes:
        raise SpecError(mistakes, source)
    return [dict(item.plain()) for item in node.items]  # type: ignore[call-overload]


def apply_rules(rules: list[Rule], spec: JobSpec) -> JobSpec:
    """Return the spec as the rules want it.

    Raises:
        RefusedError: A rule refuses it, or what the rules make of it is no spec.
    """
    form = spec_to_dict(spec)
    before = copy.deepcopy(form)
    for number, rule in enumerate(rules, 1):
        if not all(_matches(_value(form, spec, key), w) for key, w in rule.get("match", {}).items()):
            continue
        name = rule.get("name") or f"#{number}"
        if "refuse" in rule:
            text = f"job '{spec.name}' is refused by rule '{name}' of this cell"
            raise RefusedError(text, str(rule["refuse"]), Reason.MISCONFIGURED)
        for key, value in rule.get("default", {}).items():
            if _get(form, key) is None:
                _put(form, key, value)
        for key, value in rule.get("set", {}).items():
            _put(form, key, value)
        for key, most in rule.get("cap", {}).items():
            have = _value(form, spec, key)
            if have is not None and _is_more(key, have, most, name):
                if key.startswith("replicas."):
                    form["replicas"] = {"min": spec.replicas.min, "max": spec.replicas.max}
                _put(form, key, most)
    if form == before:
        return spec
    try:
        return parse_data(form, "the spec after this cell's rules", Path("/"))[0]
    except SpecError as error:
        first = error.mistakes[0]
        raise RefusedError(
            f"this cell's rules make no spec of job '{spec.name}': {first.where}: {first.message}",
            "ask whoever keeps the rules",
            Reason.MISCONFIGURED,
        ) from error


def _matches(have: Any, wanted: Any) -> bool:
    if wanted == "any":
        return have is not None
    if wanted in ("none", None):
        return have is None
    options = wanted if isinstance(wanted, list) else [wanted]
    return have is not None and str(have).lower() in [str(o).lower() for o in options]


def _value(form: Mapping[str, Any], spec: JobSpec, key: str) -> Any:
    """Return what a key says, or what holds where a spec says nothing."""
    given = _get(form, key)
    if given is not None:
        return given
    implied = {
        "band": spec.priority.band.word,
        "priority": str(spec.priority),
        "preemption": spec.preemption.value,
        "replicas.min": spec.replicas.min,
        "replicas.max": spec.replicas.max,
    }
    return implied.get(key)


def _get(form: Mapping[str, Any], path: str) -> Any:
    value: Any = form
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _put(form: dict[str, Any], path: str, value: Any) -> None:
    *above, last = path.split(".")
    for part in above:
        below = form.get(part)
        form[part] = dict(below) if isinstance(below, Mapping) else {}
        form = form[part]
    form[last] = value
    if last == "max" and isinstance(form.get("min"), int) and form["min"] > value:
        form["min"] = value


def _is_more(path: str, have: Any, most: Any, rule: str) -> bool:
    """Compare by what the values mean: durations, sizes, cores, or plain numbers."""
    for parse in (_number, parse_duration, parse_size, parse_cpu):
        try:
            return bool(parse(have) > parse(most))
        except (UnitError, ValueError, TypeError):
            continue
    raise RefusedError(
        f"rule '{rule}' of this cell caps {path}, and {have!r} cannot be compared with {most!r}",
        "ask whoever keeps the rules",
        Reason.MISCONFIGURED,
    )


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(value)
    return float(value)


__all__ = ["Rule", "apply_rules", "parse_rules"]
