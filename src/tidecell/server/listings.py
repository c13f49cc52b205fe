"""The part of the API for lists that people look through: pages of jobs, schedules, allocs, who asks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tidecell.cell.allocs import jobs_in
from tidecell.cell.describe import event_kinds
from tidecell.cell.snapshot import waits
from tidecell.cell.state import CellState, Job, Task
from tidecell.client.listing_views import (
    AllocStatus,
    EnvelopeStatus,
    Inside,
    Me,
    ScheduledRun,
    ScheduleStatus,
)
from tidecell.scheduler.snapshot import PlanTrace
from tidecell.server.control import ControlPlane
from tidecell.server.openapi import Operation
from tidecell.server.users import asker
from tidecell.structs.access import OWNER, Role
from tidecell.structs.cron import Schedule, targets_after
from tidecell.structs.errors import RefusedError
from tidecell.structs.job import BAND_WORDS, Kind

NUM_NEXT = 5  # firings of a schedule that are told
MAX_PAGE = 1000
STATES = ("live", "waiting", "running", "over", "any")
_WORDS: dict[str, tuple[str, ...]] = {
    "state": STATES,
    "kind": tuple(k.value for k in Kind),
    "band": tuple(BAND_WORDS.values()),
}

Places = Mapping[str, tuple[int, int]]


class Selection(msgspec.Struct, frozen=True):
    """Which jobs are asked for; what is empty is not asked about.

    Attributes:
        state: One of ``STATES``.
        text: Part of a name or uid.
        limit: At most so many, after the first ``offset``; 0: all.
    """

    state: str = ""
    kind: str = ""
    team: str = ""
    band: str = ""
    text: str = ""
    limit: int = 0
    offset: int = 0

    @classmethod
    def of(cls, request: Request) -> Selection:
        """Return what a call asks for.

        Raises:
            RefusedError: A value is none of those that are known.
        """
        query = request.query_params
        words = {name: query.get(name, "") for name in _WORDS}
        for name, word in words.items():
            if word and word not in _WORDS[name]:
                raise RefusedError(f"{name}={word!r} is not known", f"use {', '.join(_WORDS[name])}")
        limit, offset = _count(request, "limit"), _count(request, "offset")
        if limit > MAX_PAGE:
            raise RefusedError(
                f"limit={limit} is too large a page", f"at most {MAX_PAGE}; the rest by offset"
            )
        return cls(
            **words, team=query.get("team", ""), text=query.get("text", ""), limit=limit, offset=offset
        )

    def page(
        self, state: CellState, jobs: Iterable[Job], trace: PlanTrace, places: Places
    ) -> tuple[list[Job], int]:
        """Return the jobs of this page, and how many there are on all pages.

        What waits is in scheduling order. Of a page that is cut off the newest come first, live ones before
        those that are over; all jobs at once come as the cell keeps them, oldest first.
        """
        found = [job for job in jobs if self._holds(job, trace)]
        if self.state == "waiting":
            found.sort(key=lambda j: (places.get(j.uid, (1 << 30, 0))[0], j.submitted_s, j.uid))
        elif self.limit:
            found.sort(key=lambda j: (not j.live, -(j.finished_s or j.submitted_s)))
        end = self.offset + self.limit if self.limit else None
        return found[self.offset : end], len(found)

    def _holds(self, job: Job, trace: PlanTrace) -> bool:
        spec = job.spec
        return (
            self._is_in_state(job, trace)
            and (not self.kind or spec.kind.value == self.kind)
            and (not self.team or spec.team == self.team)
            and (not self.band or spec.priority.band.word == self.band)
            and (not self.text or self.text in job.uid)
        )

    def _is_in_state(self, job: Job, trace: PlanTrace) -> bool:
        if self.state == "waiting":
            return _waits(job, trace)
        if self.state == "running":
            return job.live and job.num_active > 0
        if self.state in ("live", "over"):
            return job.live is (self.state == "live")
        return True


def num_waiting(state: CellState, trace: PlanTrace) -> int:
    """Return of how many jobs something waits."""
    known = (state.jobs.get(uid) for uid in trace.waiting)
    return sum(1 for job in known if job is not None and _waits(job, trace))


def _waits(job: Job, trace: PlanTrace) -> bool:
    return job.live and job.stopping is None and job.uid in trace.waiting


def _count(request: Request, name: str) -> int:
    text = request.query_params.get(name, "")
    if text and not text.isdecimal():
        raise RefusedError(f"{name}={text!r} is no number of jobs", "write 0 or more")
    return int(text or 0)


# ------------------------------------------------------------------------------------- schedules


def schedules(state: CellState) -> Iterator[ScheduleStatus]:
    """Yield the schedules that are live, by name."""
    for job in sorted(state.live_jobs(), key=lambda j: j.spec.name):
        if job.spec.schedule is not None:
            yield _schedule(state, job, job.spec.schedule)


def _schedule(state: CellState, job: Job, schedule: Schedule) -> ScheduleStatus:
    spec = job.spec
    rests = job.held or job.stopping is not None
    targets = targets_after(schedule, job.through_s)
    return ScheduleStatus(
        uid=job.uid,
        name=spec.name,
        cron=schedule.cron,
        timezone=schedule.timezone,
        overlap=schedule.overlap,
        catch_up=schedule.catch_up,
        priority=str(spec.priority),
        team=spec.team,
        user=spec.labels.get("user", ""),
        held=job.held,
        stopping=job.stopping is not None,
        next=() if rests else tuple(itertools.islice(targets, NUM_NEXT)),
        due=job.due,
        runs=tuple(_run(state.jobs[uid]) for uid in reversed(job.runs)),
    )


def _run(job: Job) -> ScheduledRun:
    return ScheduledRun(
        job.uid, job.spec.name, job.state, job.target_s, job.started_s, job.finished_s, job.message
    )


# ---------------------------------------------------------------------------------------- allocs


def allocs(state: CellState, trace: PlanTrace) -> Iterator[AllocStatus]:
    """Yield the allocs that are live, by name."""
    found = (state.jobs[uid] for uid in state.index.allocs)
    return (_alloc(state, job, trace) for job in sorted(found, key=lambda j: j.spec.name))


def _alloc(state: CellState, job: Job, trace: PlanTrace) -> AllocStatus:
    spec, own = job.spec, trace.waiting.get(job.uid)
    shown = [t for t in job.open_tasks() if t.active or waits(job, t)]
    ends = job.started_s + spec.max_duration_s if spec.max_duration_s and job.started_s else 0.0
    members = jobs_in(state, spec.name)
    return AllocStatus(
        uid=job.uid,
        name=spec.name,
        priority=str(spec.priority),
        team=spec.team,
        user=spec.labels.get("user", ""),
        stopping=job.stopping is not None,
        ends_by_s=ends,
        envelopes=tuple(_envelope(state, job, t) for t in shown),
        waiting=tuple(m.spec.name for m in members if m.uid in trace.waiting),
        detail=own.detail if own is not None else "",
    )


def _envelope(state: CellState, job: Job, task: Task) -> EnvelopeStatus:
    name = job.spec.envelope_name(task.index)
    if not task.active:
        return EnvelopeStatus(name, task.state, room=job.spec.request(task.index))
    load = state.index.load(name)
    return EnvelopeStatus(
        name,
        task.state,
        task.machine,
        room=task.resources,
        free=task.resources - load.used.resources,
        leaving=task.notice is not None,
        inside=tuple(_inside(state.jobs[uid], index) for uid, index in sorted(load.tasks)),
    )


def _inside(job: Job, index: int) -> Inside:
    task = job.tasks[index]
    return Inside(job.uid, job.spec.name, index, task.state, task.resources, task.notice is not None)


# --------------------------------------------------------------------------------------- handlers


class ListingsApi:
    """The handlers, over one control plane."""

    def __init__(self, control: ControlPlane) -> None:
        self._control = control

    async def me(self, request: Request) -> Response:
        """Return whose token came with the call."""
        user = asker(request)
        if user is None:  # no gate in front: nothing is refused
            return _json(Me(OWNER, Role.ADMIN.word))
        return _json(Me(user.name, user.role, user.team, user.expires_s))

    async def schedules(self, request: Request) -> Response:
        """List schedules: the firings to come, and the runs that were."""
        return _items(schedules(self._control.state))

    async def allocs(self, request: Request) -> Response:
        """List allocs: their envelopes, who is in them, and what is free."""
        return _items(allocs(self._control.state, self._control.runtime.trace))

    async def event_kinds(self, request: Request) -> Response:
        """List the types of events, for ``kind`` of ``/v1/events``."""
        return _items(event_kinds())


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


def _items(values: Iterable[object]) -> Response:
    return _json({"items": list(values)})


SELECTION_QUERY = (
    ("state", "string", f"only {', '.join(STATES)}; what waits comes in scheduling order"),
    ("kind", "string", "only of this kind: job, service, dev, alloc"),
    ("team", "string", "only of this team"),
    ("band", "string", "only of this band"),
    ("text", "string", "only with this in the name"),
    ("limit", "integer", f"a page of at most {MAX_PAGE}, live ones first, then the newest; with ``total``"),
    ("offset", "integer", "the page begins after so many"),
    ("brief", "boolean", "without their tasks"),
)
OPERATIONS = (
    Operation("GET", "/v1/me", "Who asks: name, role and team", Me),
    Operation(
        "GET", "/v1/schedules", "Schedules: firings to come, runs that were", ScheduleStatus, many=True
    ),
    Operation("GET", "/v1/allocs", "Allocs: envelopes, who is in them, free room", AllocStatus, many=True),
    Operation("GET", "/v1/events/kinds", "The types of events", str, many=True),
)
