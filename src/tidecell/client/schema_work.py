"""The keys of a spec that say what kind of work it is: arrays, sweeps, begin times, schedules."""

from __future__ import annotations

import time

from tidecell.client.document import Node
from tidecell.client.section import Section, choice, plainly, text_of, whole_number
from tidecell.client.units import (
    MAX_ITEMS,
    MAX_REPLICAS,
    UnitError,
    check_env,
    parse_array,
    parse_moment,
    show,
)
from tidecell.structs.cron import Schedule, check_cron, zone
from tidecell.structs.job import JobSpec
from tidecell.structs.work import Array, grid_size

MAX_SEED = 1 << 31
MAX_SCHEDULE_NAME = 48  # the names of its runs have the time behind it
OVERLAPS = ("skip", "queue", "replace")
CATCH_UPS = ("none", "last", "all")


# ------------------------------------------------------------------------------------------- arrays


def read_array(top: Section) -> tuple[Array, int] | None:
    """Return an array and how many of its items run at once, or None if the job is none."""
    node = top.node.get("array")
    if node is None:
        return None
    if node.pairs is None:
        count, parallel = top.take("array", plainly(parse_array), (1, 1))
        return Array(count), parallel
    section = top.section("array")
    if section is None:
        top.bad.add("array")
        return Array(1), 1
    array = _sweep(section) if section.has("sweep") else _plain(section)
    parallel = section.take("parallel", whole_number(1, MAX_REPLICAS), min(array.count, MAX_REPLICAS))
    top.bad.update({"array"} if section.bad else ())
    return array, min(parallel, array.count)


def _plain(section: Section) -> Array:
    if not section.has("count"):
        section.note("count", "is missing", "give count: N, or sweep: {name: [values]}")
    for key in ("samples", "seed"):
        if section.has(key):
            section.note(key, "is for sweeps only", "take it out, or give sweep: {name: [values]}")
    return Array(section.take("count", whole_number(1, MAX_ITEMS), 1))


def _sweep(section: Section) -> Array:
    if section.has("count"):
        section.note(
            "count", "a sweep has as many items as its grid has points", "take it out, or give samples"
        )
    nothing: dict[str, tuple[str, ...]] = {}
    sweep = section.take("sweep", _parameters, nothing)
    size = grid_size(sweep)
    if "sweep" in section.bad:
        return Array(1)
    samples = section.take("samples", whole_number(1, MAX_ITEMS), 0)
    seed = section.take("seed", whole_number(0, MAX_SEED), 0)
    if section.has("seed") and not section.has("samples"):
        section.note("seed", "chooses samples, and there are none", "give samples: N, or take it out")
    if samples > size:
        section.note("samples", f"{samples} of a grid of {size} points", f"give {size} or fewer")
    if size > MAX_ITEMS and not samples:
        section.note("sweep", f"has {size} points; at most {MAX_ITEMS} are allowed", "give samples: N")
    return Array(samples or size, sweep, samples, seed)


def _parameters(node: Node) -> dict[str, tuple[str, ...]]:
    """Names and the values of each, as they were written."""
    if not node.pairs:
        raise UnitError(f"must be a mapping, not {show(node.plain())}", "write sweep: {lr: [0.1, 0.01]}")
    sweep = {}
    for name, _, values in node.pairs:
        if not values.items:
            raise UnitError(f"{name} has no list of values", f"write {name}: [a, b]")
        sweep[name] = tuple(text_of(value) for value in values.items)
        for value in sweep[name]:
            check_env(name, value)
    return sweep


# ----------------------------------------------------------------------------- begin time, schedules


def read_begin(top: Section) -> float:
    """Return when the job may begin at the earliest, in seconds since the epoch; 0: at once."""
    return top.take("begin", plainly(lambda value: parse_moment(value, time.time())), 0.0)


def read_schedule(top: Section) -> Schedule | None:
    """Return when the job runs again and again, or None."""
    node = top.node.get("schedule")
    if node is not None and node.pairs is None and node.items is None and not node.is_empty:
        return top.take("schedule", lambda n: Schedule(_cron(n)), None)
    section = top.section("schedule")
    if section is None:
        return None
    if not section.has("cron"):
        section.note("cron", "is missing", 'write cron: "0 3 * * *": minute, hour, day, month, day of week')
    default = Schedule("")
    return Schedule(
        section.take("cron", _cron, ""),
        section.take("timezone", _timezone, default.timezone),
        section.take("overlap", choice(OVERLAPS), default.overlap),
        section.take("catch_up", choice(CATCH_UPS), default.catch_up),
        section.take("history", whole_number(1, 1000), default.history),
    )


def _cron(node: Node) -> str:
    text = " ".join(text_of(node).split())
    wrong = check_cron(text)
    if wrong:
        raise UnitError(f"{show(text)}: {wrong}", 'minute, hour, day, month, day of week: "0 3 * * *"')
    return text


def _timezone(node: Node) -> str:
    text = text_of(node)
    try:
        zone(text)
    except ValueError as error:
        raise UnitError(str(error), "write it as in the tz database: Europe/Berlin, UTC") from error
    return text


# -------------------------------------------------------------------------------------------- rules


def work_rules(top: Section, spec: JobSpec) -> None:
    """Note what does not go together."""
    if spec.schedule is not None:
        _schedule_rules(top, spec)
    if spec.array is None:
        return
    if top.has("replicas"):
        top.note("replicas", "an array's items are its replicas", "say array: {parallel: N}")
    if spec.is_service and "kind" not in top.bad:
        top.note("array", "is for jobs that end", "take it out, or give the service replicas")
    for name in spec.array.sweep:
        if name in spec.env:
            top.note("env", f"{name} is a parameter of the sweep", "take it out of one of the two")


def _schedule_rules(top: Section, spec: JobSpec) -> None:
    if spec.is_service and "kind" not in top.bad:
        top.note("schedule", "is for jobs that end", "take it out, or take kind: service out")
    for key in ("begin", "after"):
        if top.has(key):
            top.note(key, "says when to start, and so does schedule", "take one of them out")
    if len(spec.name) > MAX_SCHEDULE_NAME:
        hint = f"use at most {MAX_SCHEDULE_NAME} characters: each run's name has the time behind it"
        top.note("name", f"has {len(spec.name)} characters", hint)
