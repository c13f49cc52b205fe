"""Which service a request goes to: rules, splits, canaries, shadows, fallbacks, other cells. Pure.

The directory has found the service that model, host or path name; rules may send the request elsewhere. The
first rule that matches decides. A user who is hashed into a canary stays in it while its share grows, and a
retried request stays where it was, since the choice depends on what is hashed and on nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import msgspec

from tidecell.structs.traffic import Match, Rule
from tidecell.traffic.balance import Load, Rng
from tidecell.traffic.prefix import mix

HASH_SPACE = float(1 << 64)


class Asked(msgspec.Struct, frozen=True, gc=False):
    """What rules look at.

    Attributes:
        service: Where model, host or path led.
        model: Named in the body; what follows a colon is the adapter.
        path: Without the query.
        host: Without the port, lower case.
        tenant: Whose key it has.
        user: Whom a canary by user hashes; empty: the request's id is hashed instead.
        request_id: Its id.
        header: Returns a header's value, empty if there is none.
    """

    service: str
    model: str
    path: str
    host: str
    tenant: str
    user: str
    request_id: str
    header: Callable[[str], str]


class Routed(msgspec.Struct, frozen=True):
    """Where a request goes.

    Attributes:
        service: Where.
        reason: ``direct`` (no rule), ``rule``, ``split``, ``canary``, ``fallback`` or ``no_fallback_ready``.
        rule: Name of the rule that decided; empty if none did.
        shadow: Service that gets a copy; empty: none.
    """

    service: str
    reason: str = "direct"
    rule: str = ""
    shadow: str = ""


class Rules:
    """The rules of one table, in order."""

    def __init__(self, rules: Sequence[Rule], aliases: Mapping[str, str]) -> None:
        self._rules = rules
        self._aliases = aliases

    def model_of(self, name: str) -> str:
        """Return the model that an alias stands for, or the name itself; an adapter is kept."""
        return model_of(self._aliases, name)

    def route(self, asked: Asked, is_ready: Callable[[str], bool]) -> Routed:
        """Return where a request goes.

        Args:
            asked: The request.
            is_ready: Whether a service has a replica to try, and its breaker is not open.
        """
        for rule in self._rules:
            if matches(rule.match, asked):
                return self._apply(rule, asked, is_ready)
        return Routed(asked.service)

    def _apply(self, rule: Rule, asked: Asked, is_ready: Callable[[str], bool]) -> Routed:
        service, reason = asked.service, "rule"
        if rule.splits:
            point = fraction(asked.request_id, f"{rule.name}/split")
            service, reason = _split(rule, point), "split" if len(rule.splits) > 1 else "rule"
        canary = rule.canary
        if canary is not None:
            hashed = asked.user if canary.by == "user" and asked.user else asked.request_id
            if fraction(hashed, f"{rule.name}/canary") < canary.share:
                service, reason = canary.service, "canary"
        shadow = ""
        if rule.shadow is not None and (
            fraction(asked.request_id, f"{rule.name}/shadow") < rule.shadow.share
        ):
            shadow = rule.shadow.service
        if rule.fallback and not is_ready(service):
            service, reason = _fall_back(service, rule.fallback, is_ready)
        return Routed(service, reason, rule.name, shadow)


def model_of(aliases: Mapping[str, str], name: str) -> str:
    """Return the model that an alias stands for, or the name itself; an adapter is kept."""
    base, colon, adapter = name.partition(":")
    if name in aliases:
        return aliases[name]
    return aliases.get(base, base) + colon + adapter


def model_at(models: Sequence[str], name: str) -> str:
    """Return what a service that serves ``models`` is to be asked for, where ``name`` was."""
    if not models or name in models or name.partition(":")[0] in models:
        return name
    return models[0]


def matches(match: Match, asked: Asked) -> bool:
    """Return whether a request is meant: everything that the match names must hold."""
    if match.service and match.service != asked.service:
        return False
    base, _, adapter = asked.model.partition(":")
    if match.model and match.model not in (asked.model, base):
        return False
    if match.adapter and match.adapter != adapter:
        return False
    if match.host and match.host != asked.host:
        return False
    if match.path and not asked.path.startswith(match.path):
        return False
    if match.tenant and match.tenant != asked.tenant:
        return False
    return all(asked.header(name) == value for name, value in match.headers.items())


def fraction(text: str, salt: str) -> float:
    """Return a number from 0.0 up to 1.0 that depends on the two and on nothing else."""
    raw = hashlib.blake2b(text.encode(), digest_size=8, key=salt.encode()[:64]).digest()
    return int.from_bytes(raw, "little") / HASH_SPACE


def _split(rule: Rule, point: float) -> str:
    total = sum(split.weight for split in rule.splits)
    for split in rule.splits:
        point -= split.weight / total
        if point < 0.0:
            return split.service
    return rule.splits[-1].service


def _fall_back(service: str, chain: Sequence[str], is_ready: Callable[[str], bool]) -> tuple[str, str]:
    for other in chain:
        if is_ready(other):
            return other, "fallback"
    return service, "no_fallback_ready"


def by_affinity(loads: Sequence[Load], session: str, slack: float = 0.5) -> tuple[int, str]:
    """Return the replica of a session, by rendezvous hashing, and ``session`` or ``session_moved``.

    When a replica comes or goes only the sessions that hash to it move. One that has more than ``1 + slack``
    times the mean in flight passes its sessions on to their next.
    """
    key = int.from_bytes(hashlib.blake2b(session.encode(), digest_size=8).digest(), "little")
    values = [mix(key, load.id) for load in loads]
    first = values.index(max(values))
    bound = (1.0 + slack) * (sum([load.in_flight for load in loads]) + 1) / len(loads)
    if loads[first].in_flight < max(1.0, bound):
        return first, "session"
    for index in sorted(range(len(loads)), key=values.__getitem__, reverse=True):
        if loads[index].in_flight < max(1.0, bound):
            return index, "session_moved"
    return first, "session"


class Cell(msgspec.Struct, frozen=True):
    """One cell that serves the same service.

    Attributes:
        name: Its name.
        capacity: What it can serve, in whatever the load is counted in.
        load: What it serves now.
        is_up: Whether it can be reached.
    """

    name: str
    capacity: float
    load: float
    is_up: bool = True


def waterfall(cells: Sequence[Cell], rng: Rng, full: float = 0.8) -> tuple[str, str]:
    """Return the cell for a request, and ``local``, ``spilled`` or ``all_full``.

    Cells come nearest first. Each is filled to ``full`` of its capacity; only what is above that flows on, to
    the next that has room. Where all are full the load is spread by capacity.

    Raises:
        ValueError: No cell is up.
    """
    up = [cell for cell in cells if cell.is_up and cell.capacity > 0.0]
    if not up:
        raise ValueError("no cell to choose from")
    for cell in up:
        excess = cell.load - full * cell.capacity
        if excess <= 0.0:
            return cell.name, "local" if cell is cells[0] else "spilled"
        # As much stays as fits: a cell at its mark keeps its share instead of losing all at once.
        if rng.random() * cell.load >= excess and cell.load < cell.capacity:
            return cell.name, "local" if cell is cells[0] else "spilled"
    point = rng.random() * sum(cell.capacity for cell in up)
    for cell in up:
        point -= cell.capacity
        if point < 0.0:
            return cell.name, "all_full"
    return up[-1].name, "all_full"
