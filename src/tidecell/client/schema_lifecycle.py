"""The keys ``update``, ``disruptions`` and ``retry`` of a spec. Pure."""

from __future__ import annotations

import re

from tidecell.client.document import Node
from tidecell.client.section import Section, duration, list_of, positive_duration, retry_on, whole_number
from tidecell.client.units import UnitError, show
from tidecell.structs.job import Amount, Disruptions, IdleGpu, Kind, Retry, Update

_PERCENT = re.compile(r"(\d{1,3})\s*%")
_SERVICE_ONLY = ("max_surge", "canary")


def amount(node: Node) -> Amount:
    """A number of replicas, or a percentage of them: ``2`` or ``25%``."""
    value = node.value
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 100_000:
        return Amount(value)
    match = _PERCENT.fullmatch(node.text) if isinstance(value, str) else None
    if match is not None and int(match[1]) <= 100:
        return Amount(int(match[1]), percent=True)
    raise UnitError(
        f"{show(node.plain())} is neither a number of replicas nor a percentage", "write 1 or 25%"
    )


def boolean(node: Node) -> bool:
    """true or false."""
    if not isinstance(node.value, bool):
        raise UnitError(f"{show(node.plain())} is neither true nor false")
    return node.value


def read_update(top: Section, service: bool) -> Update:
    """Return how a new version takes the place of the old one."""
    section = top.section("update")
    if section is None:
        return Update()
    default = Update()
    update = Update(
        max_unavailable=section.take("max_unavailable", amount, None),
        max_surge=section.take("max_surge", amount, None),
        canary=section.take("canary", whole_number(0, 1000), 0),
        auto_revert=section.take("auto_revert", boolean, default.auto_revert),
        healthy_after_s=section.take("healthy_after", duration, default.healthy_after_s),
        deadline_s=section.take("deadline", positive_duration, default.deadline_s),
        max_disruptions=section.take("max_disruptions", whole_number(0, 100_000), 0),
    )
    for key in _SERVICE_ONLY if not service else ():
        if section.has(key):
            section.note(key, "is for services only: the index of a job's replica is its rank", "take it out")
    none = Amount(0)
    if update.max_unavailable in (none, Amount(0, True)) and update.max_surge in (none, Amount(0, True)):
        section.note(
            "max_surge", "no replica may be missing and none may be added", "set one of the two to 1"
        )
    if update.deadline_s <= update.healthy_after_s:
        section.note("deadline", "is not after healthy_after", "give replicas time to become healthy")
    return update


def percent(node: Node) -> int:
    """A percentage above 0: ``5%``."""
    match = _PERCENT.fullmatch(node.text) if isinstance(node.value, str) else None
    if match is None or not 1 <= int(match[1]) <= 100:
        raise UnitError(f"{show(node.plain())} is no percentage from 1% to 100%", "write 5%")
    return int(match[1])


def read_idle_gpu(top: Section, kind: Kind, gpu_millis: int) -> IdleGpu | None:
    """Return after how long of doing nothing with its accelerators a job ends; None: never for that."""
    section = top.section("idle_gpu")
    if section is None:
        return None
    if kind not in (Kind.JOB, Kind.DEV):
        top.note("idle_gpu", f"is not for a {kind.value}", "use scaling, or take it out")
    elif not gpu_millis and "resources" not in top.bad:
        top.note("idle_gpu", "needs accelerators", "ask for them: resources: {gpu: 1}, or take it out")
    default = IdleGpu()
    return IdleGpu(
        section.take("below", percent, default.below_percent),
        section.take("for", positive_duration, default.for_s),
    )


def exit_codes(node: Node) -> tuple[int, ...]:
    """A list of exit statuses of a program that failed."""
    return list_of(node, whole_number(1, 255))


def read_retry(top: Section) -> Retry:
    """Return which failures start a task again."""
    section = top.section("retry")
    if section is None:
        return Retry()
    default = Retry()
    retry = Retry(
        on=section.take("on", retry_on, default.on),
        max=section.take("max", whole_number(0, 1000), default.max),
        exit_codes=section.take("exit_codes", exit_codes, ()),
        backoff_s=section.take("backoff", positive_duration, default.backoff_s),
        backoff_max_s=section.take("backoff_max", positive_duration, default.backoff_max_s),
    )
    if retry.backoff_s > retry.backoff_max_s and "backoff" not in section.bad:
        section.note("backoff", "is longer than backoff_max", "make the first pause the shorter one")
    return retry


def read_disruptions(top: Section) -> Disruptions | None:
    """Return how many replicas may be away at once; None: nothing is said."""
    section = top.section("disruptions")
    if section is None:
        return None
    return Disruptions(section.take("max_unavailable", amount, Disruptions().max_unavailable))
