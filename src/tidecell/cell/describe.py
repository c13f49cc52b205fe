"""Events in words, for `tide events` and the console. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tidecell.structs.lifecycle import (
    DrainCancelled,
    JobRevised,
    MachineDrained,
    MachineDraining,
    MachineReleased,
    RolloutAdvanced,
    RolloutFinished,
    RolloutHalted,
    RolloutPromoted,
    SlotClosed,
    SlotOpened,
)
from tidecell.structs.messages import (
    CellOpened,
    ClaimDropped,
    Claimed,
    Event,
    JobAccepted,
    JobDesired,
    JobFinished,
    JobHeld,
    JobReleased,
    JobReprioritized,
    JobRescaled,
    JobStopping,
    MachineGone,
    MachineJoined,
    PolicySet,
    ScheduleDecided,
    TaskEnded,
    TaskNoticed,
    TaskPlaced,
    TaskReadiness,
    TaskStarted,
    TaskStopping,
)
from tidecell.structs.routing_messages import KeyCreated, KeyRevoked, RoutingSet


def describe_event(event: Event) -> tuple[str, str]:
    """Return the uid of the job that an event is about (empty: the cell) and what happened."""
    return _uid(event), _WORDS[type(event)](event)


def event_kinds() -> tuple[str, ...]:
    """Return the names of all types of events, sorted."""
    return tuple(sorted(kind.__name__ for kind in _WORDS))


def _uid(event: Event) -> str:
    ref = getattr(event, "ref", None)
    if ref is not None:
        return str(ref.uid)
    if isinstance(event, Claimed):
        return event.claim.uid
    return str(getattr(event, "uid", ""))


def _noticed(e: TaskNoticed) -> str:
    verb = "PREEMPTED" if e.by else "told to leave"
    by = f" by {e.by}" if e.by else f": {e.cause.value}"
    rest = f"{e.new_size} remain" if e.new_size else "none remain"
    return f"replica {e.ref.index} {verb}{by}; {rest}"


def _policy(e: PolicySet) -> str:
    if e.policy is None:
        return "quota taken away: everything is allowed"
    names = ", ".join(t.name for t in e.policy.teams)
    return f"quota of {len(e.policy.teams)} teams set: {names}" if names else "quota set, without teams"


def _routing(e: RoutingSet) -> str:
    if e.routing is None:
        return "routing taken back to defaults"
    counts = ((len(getattr(e.routing, noun)), noun) for noun in ("aliases", "rules", "tenants"))
    return f"routing set: {', '.join(f'{count} {noun}' for count, noun in counts)}"


def _accepted(e: JobAccepted) -> str:
    if e.spec.schedule is not None:
        return f"accepted: runs at '{e.spec.schedule.cron}' ({e.spec.schedule.timezone})"
    size = f"{e.spec.replicas} replicas"
    if e.spec.array is not None:
        size = f"{e.spec.array.count} items, {e.spec.replicas.max} at once"
    owner = f", a run of {e.parent}" if e.parent else ""
    return f"accepted: {e.spec.kind.value}, {size}, {e.spec.priority}{owner}"


def _schedule_decided(e: ScheduleDecided) -> str:
    owed = f"{len(e.due)} due" if e.due else "nothing due"
    skipped = f"; {e.skipped} skipped" if e.skipped else ""
    return owed + skipped + (f": {e.why}" if e.why else "")


def _ended(e: TaskEnded) -> str:
    why = f", {e.message}" if e.message else ""
    cause = f" ({e.cause.value})" if e.cause is not None else ""
    return f"replica {e.ref.index} ended{cause}{why} -> {e.then.value}"


_WORDS: dict[type[Event], Callable[[Any], str]] = {
    CellOpened: lambda e: f"control plane took over, epoch {e.epoch}",
    MachineJoined: lambda e: f"machine {e.spec.name} joined: {e.spec.capacity.describe()}",
    MachineGone: lambda e: (
        f"machine {e.name} is gone" + (", as many others; its tasks wait for it" if e.release_s else "")
    ),
    PolicySet: lambda e: _policy(e),
    RoutingSet: lambda e: _routing(e),
    KeyCreated: lambda e: f"key {e.key.name} of tenant {e.tenant} created",
    KeyRevoked: lambda e: f"key {e.name} of tenant {e.tenant} revoked",
    JobAccepted: _accepted,
    JobHeld: lambda e: "held back",
    JobReleased: lambda e: "released",
    ScheduleDecided: _schedule_decided,
    JobRescaled: lambda e: f"replicas set to {e.replicas}",
    JobReprioritized: lambda e: f"priority set to {e.priority}",
    JobDesired: lambda e: f"wants {e.desired} replicas" + (f": {e.why}" if e.why else ""),
    JobStopping: lambda e: f"stopping: {e.cause.value}" + (f", {e.message}" if e.message else ""),
    JobFinished: lambda e: f"{e.state.value}" + (f": {e.message}" if e.message else ""),
    TaskPlaced: lambda e: f"replica {e.ref.index} placed on {e.machine}, attempt {e.attempt}",
    TaskStarted: lambda e: f"replica {e.ref.index} started" + (f", pid {e.pid}" if e.pid else ""),
    TaskReadiness: lambda e: f"replica {e.ref.index} is {'ready' if e.ready else 'not ready'}",
    TaskNoticed: _noticed,
    TaskStopping: lambda e: f"replica {e.ref.index} asked to end",
    TaskEnded: _ended,
    Claimed: lambda e: (
        f"{e.claim.resources.describe()} on {e.claim.machine} held for replica {e.claim.index}"
    ),
    ClaimDropped: lambda e: f"capacity for replica {e.index} no longer held",
    JobRevised: lambda e: _version(e),
    RolloutPromoted: lambda e: "update promoted" + _by(e.who),
    RolloutAdvanced: lambda e: f"{e.healthy} replicas of the new version are healthy",
    RolloutHalted: lambda e: f"update halted: {e.message}",
    RolloutFinished: lambda e: (
        f"version {e.version} is everywhere" + (f" but for {e.skipped} skipped replicas" if e.skipped else "")
    ),
    SlotOpened: lambda e: f"one more replica is wanted for a while, at index {e.index}: {e.why}",
    SlotClosed: lambda e: f"another replica stands in for the one at index {e.index}",
    MachineDraining: lambda e: f"machine {e.name} is drained" + _by(e.who),
    MachineDrained: lambda e: f"machine {e.name} holds no task any more",
    MachineReleased: lambda e: f"machine {e.name} did not come back; its tasks are given up",
    DrainCancelled: lambda e: f"machine {e.name} takes work again" + _by(e.who),
}


def _by(who: str) -> str:
    return f" by {who}" if who else ""


def _version(e: JobRevised) -> str:
    why = f": {e.why}" if e.why else ""
    sizes: dict[str, list[str]] = {}
    for grant in e.resized:
        sizes.setdefault(grant.resources.describe(), []).append(str(grant.index))
    held = [f"{_replicas(who)} now with {what}" for what, who in sizes.items()]
    return f"version {e.version}{_by(e.who)}{why}" + (f"; {', '.join(held)}, in place" if held else "")


def _replicas(indices: list[str]) -> str:
    if len(indices) > 8:
        return f"{len(indices)} replicas"
    return f"replica{'s' if len(indices) > 1 else ''} {' '.join(indices)}"
