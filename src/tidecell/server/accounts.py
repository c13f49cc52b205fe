"""The part of the API about quota, usage and events: what was allowed, held, and what happened."""

from __future__ import annotations

import asyncio
import difflib
import math
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tidecell.cell.accounting import GROUPS, Account, usage_rows
from tidecell.cell.describe import describe_event, event_kinds
from tidecell.cell.journal import Record, reading
from tidecell.client.account_views import UsageView
from tidecell.client.policy_diff import describe_change
from tidecell.client.quota_views import Change as PolicyChange
from tidecell.client.quota_views import QuotaStatus
from tidecell.client.views import EventView, Sample
from tidecell.server.control import ControlPlane
from tidecell.server.openapi import Operation
from tidecell.server.quota import quota_status
from tidecell.structs.errors import NotFoundError, RefusedError
from tidecell.structs.messages import JobAccepted, PolicyProposed
from tidecell.structs.tenant import Policy, Prices

MAX_EVENTS = 10_000
KINDS = {kind.lower(): kind for kind in event_kinds()}
MAX_BODY_BYTES = 4 << 20
MAX_STEPS = 10_000
MAX_SAMPLES = 100_000  # a day at one a second; a longer time is thinned
_Key = tuple[str, str, str, str, float]


class AccountsApi:
    """The handlers, over one control plane."""

    def __init__(self, control: ControlPlane) -> None:
        self._control = control

    # ------------------------------------------------------------------------------- quota

    async def quota(self, request: Request) -> Response:
        """What teams may use and use; a team that is not known is an error."""
        team = request.query_params.get("team", "")
        policy = self._control.state.policy
        if team and (policy is None or policy.team(team) is None):
            names = ", ".join(t.name for t in policy.teams) if policy is not None else ""
            hint = f"teams are {names}" if names else "no quota is set"
            raise NotFoundError(f"no team named '{team}'", hint)
        return _items(quota_status(self._control.state, time.time(), team))

    async def policy(self, request: Request) -> Response:
        """Teams, quotas and prices as they were set."""
        return _json(self._control.state.policy)

    async def set_policy(self, request: Request) -> Response:
        """Set teams, quotas and prices, or take them away."""
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise RefusedError(f"the request's body is larger than {MAX_BODY_BYTES} bytes")
        try:
            policy = msgspec.json.decode(body, type=Policy | None)
        except msgspec.DecodeError as error:
            raise RefusedError(f"the request's body is not as it should be: {error}") from error
        before = self._control.state.policy
        await self._control.ask(PolicyProposed(policy))
        return _json(PolicyChange(describe_change(before, self._control.state.policy)))

    # ------------------------------------------------------------------------------- usage

    async def usage(self, request: Request) -> Response:
        """Who held how much: read from the journal in a thread, so that the cell goes on meanwhile."""
        now_s = time.time()
        by = [part for part in request.query_params.get("by", "team").split(",") if part]
        unknown = [part for part in by if part not in GROUPS]
        if unknown:
            raise RefusedError(f"by={unknown[0]!r} is not known", f"use {', '.join(GROUPS)}")
        until_s = min(_number(request, "until", now_s), now_s)
        since_s = _number(request, "since", 0.0)
        every_s = _number(request, "every", 0.0)
        if every_s and (until_s - since_s if since_s else 0.0) / every_s > MAX_STEPS:
            raise RefusedError(f"every={every_s:g} gives more than {MAX_STEPS} steps", "take longer steps")
        policy = self._control.state.policy
        path = self._control.home / "journal.db"
        account, folded_s = await asyncio.to_thread(_fold, path, since_s, until_s, every_s)
        samples = self._control.measurements.store.range(since_s, until_s, MAX_SAMPLES)
        used = await asyncio.to_thread(_measure, account, samples, every_s)
        prices = policy.prices if policy is not None else Prices()
        rows = usage_rows(account.sums, by, prices, used)
        by_day_until_s = folded_s if since_s < folded_s else 0.0
        return _json(UsageView(since_s, until_s, rows, prices.currency, by_day_until_s))

    # ------------------------------------------------------------------------------ events

    async def events(self, request: Request) -> Response:
        """What happened: the newest that match, or the oldest after a number."""
        query = request.query_params
        limit = int(min(_number(request, "limit", 100), MAX_EVENTS))
        if limit < 1:
            raise RefusedError(f"limit={limit} is not above 0", f"write a number from 1 to {MAX_EVENTS}")
        after = int(_number(request, "after", -1))
        before = int(min(_number(request, "before", math.inf), 1 << 62))
        back_s = _number(request, "since", 0.0)
        since_s = time.time() - back_s if back_s else _number(request, "from", 0.0)
        until_s = _number(request, "until", math.inf)
        name, kind, team = query.get("job", ""), query.get("kind", ""), query.get("team", "")
        if kind and kind.lower() not in KINDS:
            near = difflib.get_close_matches(kind.lower(), KINDS, 1, 0.6)
            known = f"did you mean {KINDS[near[0]]}?" if near else f"types are {', '.join(KINDS.values())}"
            raise RefusedError(f"no event is of type {kind!r}", known)
        if kind or team or until_s < math.inf:
            path = self._control.home / "journal.db"
            wanted = _Wanted(name, kind, team, since_s, until_s, before)
            return _items(await asyncio.to_thread(_search, path, wanted, max(after, 0), limit, after >= 0))
        return _items(self._find_events(name, after, before, limit, since_s))

    def _find_events(self, name: str, after: int, before: int, limit: int, since_s: float) -> list[EventView]:
        """Return the newest ``limit`` events, or the oldest after a number, oldest first."""
        if after >= 0:
            found = (_event_view(r) for r in self._control.journal.records(after=after))
            matching = (v for v in found if v.seq < before and _matches(v, name, since_s))
            return [v for v, _ in zip(matching, range(limit), strict=False)]
        views: list[EventView] = []
        end = min(self._control.journal.last_seq, before - 1)
        first = self._control.journal.first_seq - 1
        while end > first and len(views) < limit:
            start = max(first, end - 1000)
            block = [_event_view(r) for r in self._control.journal.records(start, end - start)]
            views = [v for v in block if _matches(v, name, since_s)] + views
            if since_s and block and block[0].at_s < since_s:
                break
            end = start
        return views[-limit:]


# ------------------------------------------------------------------------------ in a thread of their own


def _fold(path: Path, since_s: float, until_s: float, every_s: float) -> tuple[Account, float]:
    """Return the account of a time, and until when it knows whole days only."""
    with reading(path) as (base, records):
        account = Account(since_s, until_s, every_s, base.kept() if base is not None else None)
        for record, _ in records:
            if record.at_s >= until_s:
                break
            account.take(record.event, record.at_s)
    account.close(until_s)
    return account, base.at_s if base is not None else 0.0


def _measure(
    account: Account, samples: Iterable[tuple[float, bytes]], every_s: float
) -> dict[_Key, tuple[float, float]]:
    """Return what was measured: each sample holds until the next, for at most a minute."""
    used: dict[_Key, tuple[float, float]] = {}
    last: tuple[float, Sample] | None = None
    for at_s, body in samples:
        sample = msgspec.json.decode(body, type=Sample)
        seconds = min(at_s - last[0], 60.0) if last is not None else 0.0
        for name, entry in last[1].jobs.items() if last is not None else ():
            team, _, user = account.team_and_band(name)
            step_s = math.floor(last[0] / every_s) * every_s if every_s and last is not None else 0.0
            key = (team, entry.band, name, user, step_s)
            cpu, memory = used.get(key, (0.0, 0.0))
            used[key] = (cpu + entry.used_cpu_millis * seconds, memory + entry.memory_bytes * seconds)
        last = (at_s, sample)
    return used


class _Wanted(msgspec.Struct, frozen=True):
    """Which events are asked for."""

    name: str
    kind: str
    team: str
    since_s: float
    until_s: float
    before: int

    def holds(self, view: EventView, team: str) -> bool:
        """Whether an event is one of them."""
        right = view.type.lower() == self.kind.lower() if self.kind else True
        right = (
            right
            and (not self.team or team == self.team)
            and view.at_s < self.until_s
            and view.seq < self.before
        )
        return right and _matches(view, self.name, self.since_s)


def _search(path: Path, wanted: _Wanted, after: int, limit: int, oldest: bool) -> list[EventView]:
    found: deque[EventView] = deque(maxlen=None if oldest else limit)
    with reading(path) as (base, records):
        jobs = base.cell().jobs if base is not None else {}
        teams = {uid: job.spec.team for uid, job in jobs.items()}
        for record, _ in records:
            if isinstance(record.event, JobAccepted):
                teams[record.event.uid] = record.event.spec.team
            view = _event_view(record)
            if record.seq > after and wanted.holds(view, teams.get(view.job, "")):
                found.append(view)
                if oldest and len(found) >= limit:
                    break
    return list(found)


def _event_view(record: Record) -> EventView:
    uid, text = describe_event(record.event)
    body = msgspec.to_builtins(record.event)
    return EventView(record.seq, record.at_s, type(record.event).__name__, uid, text, body)


def _matches(view: EventView, name: str, since_s: float) -> bool:
    mine = not name or view.job == name or view.job.rpartition(".")[0] == name
    return mine and view.at_s >= since_s


def _number(request: Request, name: str, default: float) -> float:
    text = request.query_params.get(name, "")
    try:
        number = float(text) if text else default
    except ValueError:
        raise RefusedError(f"{name}={text!r} is not a number") from None
    if math.isnan(number):
        raise RefusedError(f"{name}={text!r} is not a number")
    return number


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


def _items(values: Iterable[object]) -> Response:
    return _json({"items": list(values)})


_EVENT_QUERY = (
    ("job", "string", "only of this job"),
    ("kind", "string", "only of this type, for example TaskNoticed"),
    ("team", "string", "only of jobs of this team"),
    ("after", "integer", "only with a higher number, oldest first"),
    ("before", "integer", "only with a lower number"),
    ("limit", "integer", "at most so many; the newest unless `after` is given"),
    ("since", "number", "only of the last so many seconds"),
    ("from", "number", "only from this moment on, seconds since the epoch"),
    ("until", "number", "only before this moment, seconds since the epoch"),
)
OPERATIONS = (
    Operation(
        "GET",
        "/v1/quota",
        "What teams may use, use, borrow and wait for",
        QuotaStatus,
        many=True,
        parameters=(("team", "string", "only of this team"),),
    ),
    Operation("GET", "/v1/quota/policy", "Teams, quotas and prices as they were set, or null", Policy | None),
    Operation(
        "PUT",
        "/v1/quota/policy",
        "Set teams, quotas and prices; null takes them away",
        PolicyChange,
        body=Policy | None,
    ),
    Operation(
        "GET",
        "/v1/usage",
        "Who held how much, for how long, and what that costs",
        UsageView,
        parameters=(
            ("by", "string", "groups to keep apart: team, band, job, user, with commas"),
            ("since", "number", "from this moment on, seconds since the epoch"),
            ("until", "number", "before this moment"),
            ("every", "number", "in steps of so many seconds"),
        ),
    ),
    Operation(
        "GET", "/v1/events", "Journaled events in words", EventView, many=True, parameters=_EVENT_QUERY
    ),
)
