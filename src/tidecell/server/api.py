"""The HTTP API, version 1. Every answer is JSON but logs; every error has type, message and hint.

Lists are ``{"items": [...]}``. All calls but ``/health``, the console's files and the API's description
need ``Authorization: Bearer`` with a token; what its user may do is in ``structs/access.py``.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from tidecell import __version__
from tidecell.cell.admission import check_sound
from tidecell.cell.state import Job
from tidecell.client.schema import parse_priority
from tidecell.client.units import UnitError
from tidecell.client.views import (
    CellStatus,
    JobStatus,
    MachineStatus,
    Report,
    Sample,
)
from tidecell.server.access import AccessGate
from tidecell.server.accounts import OPERATIONS as ACCOUNT_OPERATIONS
from tidecell.server.accounts import AccountsApi
from tidecell.server.bodies import find_job, read_body
from tidecell.server.control import ControlPlane
from tidecell.server.known import unless_known
from tidecell.server.lifecycle_api import OPERATIONS as LIFECYCLE_OPERATIONS
from tidecell.server.lifecycle_api import LifecycleApi, in_use, resized, who
from tidecell.server.listings import OPERATIONS as LISTING_OPERATIONS
from tidecell.server.listings import SELECTION_QUERY, ListingsApi, Selection, num_waiting
from tidecell.server.logs import LogChunk, LogReader
from tidecell.server.openapi import ErrorAnswer, ErrorBody, Operation, openapi_document
from tidecell.server.questions import QuestionsApi
from tidecell.server.routing_api import OPERATIONS as ROUTING_OPERATIONS
from tidecell.server.routing_api import RoutingApi
from tidecell.server.snapshot import OPERATIONS as SNAPSHOT_OPERATIONS
from tidecell.server.snapshot import SnapshotApi
from tidecell.server.users import OPERATIONS as USER_OPERATIONS
from tidecell.server.users import UsersApi, asker, owned_by_asker
from tidecell.server.views import job_status, machine_status, queue_places
from tidecell.structs.errors import (
    ConflictError,
    ForbiddenError,
    JournalError,
    JournalFull,
    NotFoundError,
    RefusedError,
    SpecError,
    TidecellError,
)
from tidecell.structs.job import JobSpec, Priority, Replicas
from tidecell.structs.labels import LABEL_HINT, parse_labels, passes
from tidecell.structs.lifecycle import SpecChanged
from tidecell.structs.messages import JobChanged, JobHoldRequested, JobStopRequested, JobSubmitted
from tidecell.web.app import routes as console_routes

MAX_WAIT_S = 60.0

_encode = msgspec.json.Encoder().encode
T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]


class Change(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What may be changed on a live job.

    Attributes:
        priority: Also as people type it: ``batch+5``.
        cpu_millis: Of each replica, as ``memory_bytes`` (0: no limit).
        restart: Replicas may be started again where they cannot be resized as they run.
    """

    replicas: Replicas | None = None
    priority: Priority | str | None = None
    cpu_millis: int | None = None
    memory_bytes: int | None = None
    restart: bool = False


def _json(value: Any, status: int = 200) -> Response:
    return Response(_encode(value), status, media_type="application/json")


def _items(values: Any) -> Response:
    return _json({"items": list(values)})


def _flag(request: Request, name: str) -> bool:
    return request.query_params.get(name, "") not in ("", "0", "false")


_STATUS: tuple[tuple[type[TidecellError], int], ...] = (
    (SpecError, 422),
    (RefusedError, 422),
    (ForbiddenError, 403),
    (NotFoundError, 404),
    (ConflictError, 409),
    (JournalFull, 507),
    (JournalError, 503),
)


def error_response(error: TidecellError) -> Response:
    """Return an error as the API answers it."""
    status = next((code for kind, code in _STATUS if isinstance(error, kind)), 500)
    reason = str(getattr(error, "reason", ""))
    hint = error.describe() if isinstance(error, SpecError) else error.hint
    body = ErrorBody(type(error).__name__, error.message, hint, reason)
    return _json(ErrorAnswer(body), status)


class Api:
    """The handlers, over one control plane."""

    def __init__(self, control: ControlPlane) -> None:
        self._control = control
        host = control.config.host
        self._router_url = f"http://{host}:{control.config.router_port}"
        self._control_url = f"http://{host}:{control.config.control_port}"

    # ------------------------------------------------------------------------------- helpers

    def _job(self, request: Request) -> Job:
        return find_job(self._control, request)

    def status(
        self, job: Job, places: dict[str, tuple[int, int]] | None = None, brief: bool = False
    ) -> JobStatus:
        """Return one run as the API shows it; ``places`` in the queue, where many are asked for."""
        runtime, measured = self._control.runtime, self._control.measurements
        state, now_s = self._control.state, time.time()
        use, used = measured.use, measured.last_used
        return job_status(state, job, runtime.trace, use, self._router_url, now_s, places, used, brief)

    @staticmethod
    def _number(request: Request, name: str, default: float) -> float:
        text = request.query_params.get(name, "")
        try:
            return float(text) if text else default
        except ValueError:
            raise RefusedError(f"{name}={text!r} is not a number") from None

    # ------------------------------------------------------------------------------ the cell

    async def cell(self, request: Request) -> Response:
        control = self._control
        machines = [m for m in control.state.machines.values() if m.up]
        repair = control.journal.repair
        return _json(
            CellStatus(
                version=__version__,
                epoch=control.state.epoch,
                started_s=control.started_s,
                home=str(control.home.path),
                control_url=self._control_url,
                router_url=self._router_url,
                router_up=control.serving.stats is not None,
                agent_up=control.engine.attached.is_set(),
                journal_seq=control.journal.last_seq,
                isolation=", ".join(sorted({m.spec.isolation for m in machines})),
                repair=f"{repair.why}; kept at {repair.kept_at}" if repair is not None else "",
                pid=control.pid,
                num_live=len(control.state.live_uids),
                num_waiting=num_waiting(control.state, control.runtime.trace),
                journal_bytes=control.journal.size_bytes,
                journal_since_s=control.journal.first_at_s(),
                keep_events_s=control.config.keep_events_s,
            )
        )

    async def machines(self, request: Request) -> Response:
        state, use = self._control.state, self._control.measurements.use
        return _items(machine_status(state, m, use, time.time()) for _, m in sorted(state.machines.items()))

    async def series(self, request: Request) -> Response:
        now_s = time.time()
        since_s = now_s - self._number(request, "since", 600.0)
        points = int(self._number(request, "points", 600))
        return _items(self._control.measurements.series(since_s, now_s, max(2, min(points, 5000))))

    # ------------------------------------------------------------------------------ the jobs

    async def jobs(self, request: Request) -> Response:
        state, trace = self._control.state, self._control.runtime.trace
        wanted = Selection.of(request)
        everything = _flag(request, "all") or wanted.state in ("any", "over")
        jobs = state.jobs.values() if everything else state.live_jobs()
        tests = parse_labels(request.query_params.getlist("label"))
        places, brief = queue_places(state, trace), _flag(request, "brief")
        passing = (job for job in jobs if passes(job.spec.labels, tests))
        found, total = wanted.page(state, passing, trace, places)
        shown = [self.status(job, places, brief) for job in found]
        return _json({"items": shown, "total": total} if wanted.limit else {"items": shown})

    async def submit(self, request: Request) -> Response:
        spec = await read_body(request, JobSpec)
        check_sound(spec)
        spec = owned_by_asker(spec, asker(request))
        spec = await self._control.admission.admit(spec, self._control.state)
        await self._control.ask(JobSubmitted(spec, who(request)))
        job = self._control.find(spec.name)
        if job is None:
            raise NotFoundError(f"job '{spec.name}' was accepted and is gone already")
        return _json(self.status(job), 201)

    async def job(self, request: Request) -> Response:
        """One job; with ``wait``, once it is ``done`` or ``ready``, or the time is up."""
        job = self._job(request)
        wait_s = min(self._number(request, "wait", 0.0), MAX_WAIT_S)
        until = request.query_params.get("until", "done")
        deadline_s = time.monotonic() + wait_s
        while not _reached(job, until) and (left_s := deadline_s - time.monotonic()) > 0:
            try:
                await asyncio.wait_for(self._control.changed.wait(), left_s)
            except TimeoutError:
                break
            job = self._control.state.jobs.get(job.uid, job)
        return _json(self.status(job))

    async def change(self, request: Request) -> Response:
        job = self._job(request)
        change = await read_body(request, Change)
        if change.replicas is not None or change.priority is not None:
            priority = _priority(change.priority)
            await self._control.ask(JobChanged(job.spec.name, change.replicas, priority))
        if change.cpu_millis is not None or change.memory_bytes is not None:
            spec = resized(job.spec, change.cpu_millis, change.memory_bytes)
            use = in_use(job, self._control.measurements.use)
            await self._control.ask(SpecChanged(spec, who(request), use, change.restart))
        return _json(self.status(self._job(request)))

    async def stop(self, request: Request) -> Response:
        now, force = _flag(request, "now"), _flag(request, "force")
        job = self._job(request)
        await self._control.ask(JobStopRequested(job.uid, now, force))
        return _json(self.status(self._job(request)))

    async def hold(self, request: Request) -> Response:
        return await self._hold(request, True)

    async def release(self, request: Request) -> Response:
        return await self._hold(request, False)

    async def _hold(self, request: Request, hold: bool) -> Response:
        await self._control.ask(JobHoldRequested(self._job(request).spec.name, hold))
        return _json(self.status(self._job(request)))

    async def spec(self, request: Request) -> Response:
        return _json(self._job(request).spec)

    async def reports(self, request: Request) -> Response:
        job = self._job(request)
        after = int(self._number(request, "after", 0))
        return _items(self._control.measurements.reports(job.uid, after))

    async def logs(self, request: Request) -> Response:
        """Logs as text, or with ``format=ndjson`` as lines of (index, attempt, stream, text)."""
        job = self._job(request)
        query = request.query_params
        replica = int(self._number(request, "replica", -1))
        tail = int(self._number(request, "tail", -1))
        since_s = self._number(request, "since", 0.0)
        stream = query.get("stream", "all")
        reader = LogReader(
            self._control.home.run_dir(job.uid) / "logs",
            replica if replica >= 0 else None,
            ("out", "err") if stream == "all" else (stream,),
            time.time() - since_s if since_s else 0.0,
            tail if tail >= 0 else None,
        )
        follow = _flag(request, "follow")
        as_json = query.get("format") == "ndjson"
        media_type = "application/x-ndjson" if as_json else "text/plain; charset=utf-8"
        return StreamingResponse(self._stream(reader, job, follow, as_json), media_type=media_type)

    async def _stream(self, reader: LogReader, job: Job, follow: bool, as_json: bool) -> AsyncIterator[bytes]:
        def done() -> bool:
            return not follow or not self._control.state.jobs.get(job.uid, job).live

        async for chunk in reader.follow(done, lambda: self._control.changed):
            yield _log_line(chunk) if as_json else chunk.text.encode()

    # ---------------------------------------------------------------------------- the others

    async def health(self, request: Request) -> Response:
        error = self._control.journal_error
        if error is not None:
            return error_response(error)
        return _json({"ok": True, "version": __version__})

    async def metrics(self, request: Request) -> Response:
        text = await self._control.serving.metrics()
        return Response(text, media_type="text/plain; version=0.0.4")

    async def openapi(self, request: Request) -> Response:
        every = (
            *OPERATIONS,
            *ACCOUNT_OPERATIONS,
            *LIFECYCLE_OPERATIONS,
            *SNAPSHOT_OPERATIONS,
            *LISTING_OPERATIONS,
            *ROUTING_OPERATIONS,
        )
        return _json(openapi_document((*every, *USER_OPERATIONS)))


def _priority(asked: Priority | str | None) -> Priority | None:
    try:
        return parse_priority(asked) if isinstance(asked, str) else asked
    except UnitError as error:
        raise RefusedError(error.message, "write a band, or a band and a number: batch+5") from error


def _log_line(chunk: LogChunk) -> bytes:
    return _encode(chunk) + b"\n"


def _reached(job: Job, until: str) -> bool:
    if not job.live:
        return True
    staying = job.staying_tasks()
    if until == "ready":
        return sum(1 for t in staying if t.ready) >= max(1, job.spec.replicas.min)
    return until == "started" and job.started_s > 0


_LOG_QUERY = (
    ("follow", "boolean", "go on until the job is over"),
    ("tail", "integer", "begin with the last so many lines"),
    ("since", "number", "only of the last so many seconds"),
    ("replica", "integer", "only of this replica"),
    ("stream", "string", "out, err or all"),
    ("format", "string", "text, or ndjson for lines with index, attempt, stream, text"),
)
_WAIT_QUERY = (
    ("wait", "number", "answer only when `until` is reached, or after so many seconds (at most 60)"),
    ("until", "string", "done, ready or started"),
)

OPERATIONS = (
    Operation("GET", "/v1/cell", "The cell itself", CellStatus),
    Operation("GET", "/v1/machines", "Machines: capacity, reserved, used", MachineStatus, many=True),
    Operation(
        "GET",
        "/v1/jobs",
        "Jobs",
        JobStatus,
        many=True,
        parameters=(
            ("all", "boolean", "finished ones too"),
            ("label", "string", f"{LABEL_HINT}; may be repeated"),
            *SELECTION_QUERY,
        ),
    ),
    Operation("POST", "/v1/jobs", "Submit a job", JobStatus, body=JobSpec, status=201),
    Operation(
        "GET", "/v1/jobs/{name}", "One job, at once or when it is done", JobStatus, parameters=_WAIT_QUERY
    ),
    Operation(
        "PATCH", "/v1/jobs/{name}", "Change replicas, priority or size of a live job", JobStatus, body=Change
    ),
    Operation(
        "DELETE",
        "/v1/jobs/{name}",
        "Stop a job",
        JobStatus,
        parameters=(
            ("now", "boolean", "skip the grace period"),
            ("force", "boolean", "stop an alloc with all jobs in it"),
        ),
    ),
    Operation("POST", "/v1/jobs/{name}/hold", "Hold it back: what waits does not start", JobStatus),
    Operation("POST", "/v1/jobs/{name}/release", "Let it start, held back or before its time", JobStatus),
    Operation("GET", "/v1/jobs/{name}/spec", "What was asked for", JobSpec),
    Operation("GET", "/v1/jobs/{name}/logs", "Its output", parameters=_LOG_QUERY),
    Operation(
        "GET",
        "/v1/jobs/{name}/reports",
        "Numbers that its replicas reported",
        Report,
        many=True,
        parameters=(("after", "integer", "only with a higher number"),),
    ),
    Operation(
        "GET",
        "/v1/series",
        "Samples of the cell, one a second: the tide chart",
        Sample,
        many=True,
        parameters=(
            ("since", "number", "seconds back from now"),
            ("points", "integer", "thin out to so many"),
        ),
    ),
    Operation("GET", "/v1/metrics", "The router's metrics, Prometheus text"),
)


def _guarded(handler: Handler) -> Handler:
    async def handle(request: Request) -> Response:
        try:
            return unless_known(request, await handler(request))
        except TidecellError as error:
            return error_response(error)
        except Exception as error:
            traceback.print_exc()
            return error_response(
                TidecellError(f"the control plane failed: {error!r}", "its log: log/control.log")
            )

    return handle


def make_app(control: ControlPlane) -> ASGIApp:
    """Return the API and the console as one application behind the gate."""
    api, users = Api(control), UsersApi(control.access, control.serving.follow)
    lifecycle, accounts = LifecycleApi(control, api.status), AccountsApi(control)
    listings, questions, routing = ListingsApi(control), QuestionsApi(control), RoutingApi(control)
    handlers: dict[tuple[str, str], Handler] = {
        ("GET", "/v1/cell"): api.cell,
        ("GET", "/v1/machines"): api.machines,
        ("GET", "/v1/snapshot"): SnapshotApi(control).snapshot,
        ("GET", "/v1/jobs"): api.jobs,
        ("POST", "/v1/jobs"): api.submit,
        ("POST", "/v1/plan"): questions.plan,
        ("GET", "/v1/jobs/{name}"): api.job,
        ("PATCH", "/v1/jobs/{name}"): api.change,
        ("DELETE", "/v1/jobs/{name}"): api.stop,
        ("PUT", "/v1/jobs/{name}"): lifecycle.apply,
        ("GET", "/v1/jobs/{name}/history"): lifecycle.history,
        ("POST", "/v1/jobs/{name}/rollback"): lifecycle.rollback,
        ("POST", "/v1/jobs/{name}/promote"): lifecycle.promote,
        ("POST", "/v1/machines/{name}/drain"): lifecycle.drain,
        ("POST", "/v1/jobs/{name}/hold"): api.hold,
        ("POST", "/v1/jobs/{name}/release"): api.release,
        ("GET", "/v1/jobs/{name}/spec"): api.spec,
        ("GET", "/v1/jobs/{name}/why"): questions.why,
        ("GET", "/v1/jobs/{name}/logs"): api.logs,
        ("GET", "/v1/jobs/{name}/reports"): api.reports,
        ("GET", "/v1/quota"): accounts.quota,
        ("GET", "/v1/quota/policy"): accounts.policy,
        ("PUT", "/v1/quota/policy"): accounts.set_policy,
        ("GET", "/v1/routing"): routing.view,
        ("GET", "/v1/routing/settings"): routing.settings,
        ("PUT", "/v1/routing/settings"): routing.set,
        ("GET", "/v1/routing/why/{name}"): routing.why,
        ("POST", "/v1/routing/keys"): routing.create_key,
        ("DELETE", "/v1/routing/keys/{tenant}/{name}"): routing.revoke_key,
        ("GET", "/v1/usage"): accounts.usage,
        ("GET", "/v1/events"): accounts.events,
        ("GET", "/v1/events/kinds"): listings.event_kinds,
        ("GET", "/v1/me"): listings.me,
        ("GET", "/v1/schedules"): listings.schedules,
        ("GET", "/v1/allocs"): listings.allocs,
        ("GET", "/v1/series"): api.series,
        ("GET", "/v1/metrics"): api.metrics,
        ("GET", "/v1/users"): users.list,
        ("POST", "/v1/users"): users.add,
        ("POST", "/v1/users/{name}/rotate"): users.rotate,
        ("DELETE", "/v1/users/{name}"): users.remove,
        ("GET", "/health"): api.health,
        ("GET", "/openapi.json"): api.openapi,
    }
    routes = [Route(path, _guarded(h), methods=[method]) for (method, path), h in handlers.items()]
    app = Starlette(routes=[*routes, *console_routes()])

    def team_of(name: str) -> str | None:
        job = control.find(name)
        return job.spec.team if job is not None else None

    def refuse(status: int, kind: str, message: str, hint: str) -> ASGIApp:
        return _json(ErrorAnswer(ErrorBody(kind, message, hint)), status)

    return AccessGate(app, control.access, team_of, refuse)
