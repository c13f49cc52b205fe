"""Typed client of the control plane. What the command line does, a program can do with this.

Example:
    client = Client.from_home()
    client.submit(JobSpec("hello", argv=("echo", "hi")))
    print(client.wait("hello").exit_code)
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from tidecell.client.account_views import UsageView
from tidecell.client.home import Home
from tidecell.client.listing_views import AllocStatus, Me, ScheduleStatus
from tidecell.client.quota_views import Change, QuotaStatus
from tidecell.client.routing_views import KeyStatus, NewKey, RouteWhy, RoutingView
from tidecell.client.views import (
    CellStatus,
    DrainBody,
    EventView,
    JobStatus,
    MachineStatus,
    NewUser,
    PlanView,
    Report,
    RollbackBody,
    Sample,
    UserView,
    VersionView,
    WhyView,
)
from tidecell.structs.errors import (
    CellUnreachable,
    ConflictError,
    ForbiddenError,
    InvariantError,
    JournalError,
    JournalFull,
    NotFoundError,
    RefusedError,
    TidecellError,
)
from tidecell.structs.job import JobSpec, Priority, Replicas
from tidecell.structs.tenant import Policy
from tidecell.structs.traffic import Routing

T = TypeVar("T")

_ERRORS: dict[str, type[TidecellError]] = {
    kind.__name__: kind
    for kind in (
        ConflictError,
        ForbiddenError,
        JournalError,
        JournalFull,
        NotFoundError,
        RefusedError,
        CellUnreachable,
    )
}


class LogLine(msgspec.Struct, frozen=True):
    """A piece of one stream of one attempt of one replica."""

    index: int
    attempt: int
    stream: str
    text: str


class Client:
    """Talks to one cell's control plane.

    Attributes:
        token: The cell's bearer token; the router accepts it too.
    """

    def __init__(self, url: str, token: str, timeout_s: float = 30.0) -> None:
        self.url = url
        self.token = token
        headers = {"Authorization": f"Bearer {token}"}
        # trust_env=False: a proxy from the environment must not see a loopback call, nor its token.
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s, trust_env=False)

    @classmethod
    def from_home(cls, home: str | Path | Home | None = None) -> Client:
        """Return a client of the cell that lives in a directory, or of the one that TIDECELL_URL names.

        With TIDECELL_URL, TIDECELL_TOKEN_FILE names the file that holds this user's token.

        Raises:
            CellUnreachable: No cell was ever started there.
        """
        remote = os.environ.get("TIDECELL_URL")
        if home is None and remote:
            return cls(remote.rstrip("/"), _token_from_file())
        home = home if isinstance(home, Home) else Home(home)
        config = home.config()
        if not config.control_port:
            raise CellUnreachable(f"no cell lives in {home.path}", "start one: tide up")
        return cls(f"http://{config.host}:{config.control_port}", home.token())

    def close(self) -> None:
        """Close connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -------------------------------------------------------------------------------- calls

    def _call(self, method: str, path: str, body: Any = None, **query: Any) -> bytes:
        content = msgspec.json.encode(body) if body is not None else None
        params = {k: v for k, v in query.items() if v is not None}
        timeout_s = 30.0 + float(params.get("wait", 0.0))
        try:
            answer = self._http.request(method, path, content=content, params=params, timeout=timeout_s)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if answer.is_error:
            raise _error_of(answer.status_code, answer.content)
        return answer.content

    def _unreachable(self, error: Exception) -> CellUnreachable:
        return CellUnreachable(
            f"the control plane at {self.url} does not answer ({type(error).__name__})",
            "tide up starts it again; tasks and the router go on meanwhile",
        )

    def _get(self, path: str, kind: type[T], /, **query: Any) -> T:
        return msgspec.json.decode(self._call("GET", path, **query), type=kind)

    def _list(self, path: str, kind: type[T], /, **query: Any) -> list[T]:
        raw = self._call("GET", path, **query)
        return msgspec.json.decode(raw, type=dict[str, list[kind]])["items"]  # type: ignore[valid-type]

    # --------------------------------------------------------------------------------- cell

    def cell(self) -> CellStatus:
        """Return the cell itself."""
        return self._get("/v1/cell", CellStatus)

    @property
    def router_url(self) -> str:
        """Where requests are served; an OpenAI client's base URL is this plus ``/v1``."""
        return self.cell().router_url

    def me(self) -> Me:
        """Return who asks: whose token this is, their role and team."""
        return self._get("/v1/me", Me)

    def machines(self) -> list[MachineStatus]:
        """Return all machines."""
        return self._list("/v1/machines", MachineStatus)

    def events(
        self,
        job: str = "",
        after: int | None = None,
        limit: int = 100,
        since_s: float | None = None,
        kind: str = "",
        team: str = "",
        from_s: float | None = None,
        until_s: float | None = None,
    ) -> list[EventView]:
        """Return the newest events that match, or with ``after`` the oldest that follow that number.

        Args:
            job: Only of this job.
            after: A number of an event.
            limit: At most so many.
            since_s: Only of the last so many seconds.
            kind: Only of this type, for example ``TaskNoticed``.
            team: Only of jobs of this team.
            from_s: Only from this moment on.
            until_s: Only before this moment.
        """
        query: dict[str, Any] = {"job": job or None, "kind": kind or None, "team": team or None}
        query |= {"after": after, "limit": limit, "since": since_s, "until": until_s, "from": from_s}
        return self._list("/v1/events", EventView, **query)

    def event_kinds(self) -> list[str]:
        """Return the types of events that there are."""
        return self._list("/v1/events/kinds", str)

    def series(self, since_s: float = 600.0, points: int = 600) -> list[Sample]:
        """Return samples of the last ``since_s`` seconds, thinned to ``points``."""
        return self._list("/v1/series", Sample, since=since_s, points=points)

    # -------------------------------------------------------------------------------- quota

    def quota(self, team: str = "") -> list[QuotaStatus]:
        """Return what teams may use and use, at every band; empty where no quota is set."""
        return self._list("/v1/quota", QuotaStatus, team=team or None)

    def policy(self) -> Policy | None:
        """Return teams, quotas and prices as they were set."""
        return msgspec.json.decode(self._call("GET", "/v1/quota/policy"), type=Policy | None)

    def set_policy(self, policy: Policy | None) -> Change:
        """Set teams, quotas and prices; None takes them away. Returns what that changed."""
        raw = self._call("PUT", "/v1/quota/policy", policy if policy is not None else msgspec.Raw(b"null"))
        return msgspec.json.decode(raw, type=Change)

    def usage(
        self, by: str = "team", since_s: float = 0.0, until_s: float | None = None, every_s: float = 0.0
    ) -> UsageView:
        """Return who held how much from one moment to another; ``by`` is of team, band, job, user."""
        query = {"by": by, "since": repr(since_s), "every": every_s or None}
        return self._get("/v1/usage", UsageView, until=None if until_s is None else repr(until_s), **query)

    # ------------------------------------------------------------------------------ routing

    def routing(self) -> RoutingView:
        """Return routes with their load, rules, and tenants with their limits, use and keys."""
        return self._get("/v1/routing", RoutingView)

    def routing_settings(self) -> Routing | None:
        """Return aliases, rules and tenants as they were set; keys without their hashes."""
        return msgspec.json.decode(self._call("GET", "/v1/routing/settings"), type=Routing | None)

    def set_routing(self, routing: Routing) -> Change:
        """Set aliases, rules and tenants; tenants that stay keep their keys. Returns what that changed."""
        return msgspec.json.decode(self._call("PUT", "/v1/routing/settings", routing), type=Change)

    def route_why(self, name: str) -> RouteWhy:
        """Return why a service's replicas are chosen or not, or what became of a request.

        Args:
            name: A service, one of its models, or a request's id.

        Raises:
            NotFoundError: The router knows none of that name.
        """
        return self._get(f"/v1/routing/why/{quote(name, '')}", RouteWhy)

    def create_key(self, new: NewKey) -> KeyStatus:
        """Give a tenant a key; the answer is the only one that holds its token."""
        return msgspec.json.decode(self._call("POST", "/v1/routing/keys", new), type=KeyStatus)

    def revoke_key(self, tenant: str, name: str) -> KeyStatus:
        """End a key."""
        raw = self._call("DELETE", f"/v1/routing/keys/{quote(tenant, '')}/{quote(name, '')}")
        return msgspec.json.decode(raw, type=KeyStatus)

    # --------------------------------------------------------------------------------- jobs

    def jobs(self, everything: bool = False, labels: Sequence[str] = ()) -> list[JobStatus]:
        """Return live jobs, or all that are remembered, that pass all tests of their labels.

        Args:
            everything: Finished ones too.
            labels: Tests such as ``owner=ana``, ``owner!=ana``, ``owner`` or ``!owner``.

        Raises:
            RefusedError: One of ``labels`` is no such test.
        """
        query = {"all": "1" if everything else None, "label": list(labels) or None}
        return self._list("/v1/jobs", JobStatus, **query)

    def job(self, name: str) -> JobStatus:
        """Return the newest run of that name, or the run of that uid.

        Raises:
            NotFoundError: There is none.
        """
        return self._get(f"/v1/jobs/{name}", JobStatus)

    def spec(self, name: str) -> JobSpec:
        """Return what was asked for."""
        return self._get(f"/v1/jobs/{name}/spec", JobSpec)

    def submit(self, spec: JobSpec) -> JobStatus:
        """Submit a job; returns once it is durable.

        Raises:
            RefusedError, ConflictError: The cell does not take it.
        """
        return msgspec.json.decode(self._call("POST", "/v1/jobs", spec), type=JobStatus)

    def plan(self, specs: Sequence[JobSpec]) -> PlanView:
        """Return what submitting would do; nothing is committed."""
        return msgspec.json.decode(self._call("POST", "/v1/plan", list(specs)), type=PlanView)

    def snapshot(self) -> bytes:
        """Return the cell as a document without secrets, for `tide sim --from` and offline questions."""
        return self._call("GET", "/v1/snapshot")

    def why(self, name: str) -> WhyView:
        """Return why a job waits, and what would make it start."""
        return self._get(f"/v1/jobs/{name}/why", WhyView)

    def change(
        self, name: str, replicas: Replicas | None = None, priority: Priority | None = None
    ) -> JobStatus:
        """Change a live job in place."""
        body = {"replicas": replicas, "priority": priority}
        raw = self._call("PATCH", f"/v1/jobs/{name}", {k: v for k, v in body.items() if v is not None})
        return msgspec.json.decode(raw, type=JobStatus)

    def resize(
        self,
        name: str,
        cpu_millis: int | None = None,
        memory_bytes: int | None = None,
        restart: bool = False,
    ) -> JobStatus:
        """Give each replica of a live job other cpu or memory while it runs; None leaves one as it is.

        Args:
            name: The job.
            cpu_millis: Thousandths of a core.
            memory_bytes: 0 takes the limit away.
            restart: Start replicas again where they cannot be resized as they run.

        Raises:
            ConflictError: They would have to be started again.
        """
        body = {"cpu_millis": cpu_millis, "memory_bytes": memory_bytes, "restart": restart}
        raw = self._call("PATCH", f"/v1/jobs/{name}", {k: v for k, v in body.items() if v is not None})
        return msgspec.json.decode(raw, type=JobStatus)

    def apply(self, spec: JobSpec) -> JobStatus:
        """Create a job, or give the live one of that name this spec: in place, or as a rolling update.

        Raises:
            RefusedError, ConflictError: The cell does not take it.
        """
        try:
            if self.job(spec.name).done:
                return self.submit(spec)
        except NotFoundError:
            return self.submit(spec)
        raw = self._call("PUT", f"/v1/jobs/{spec.name}", spec)
        return msgspec.json.decode(raw, type=JobStatus)

    def schedules(self) -> list[ScheduleStatus]:
        """Return live schedules: the firings to come, and the runs that were."""
        return self._list("/v1/schedules", ScheduleStatus)

    def allocs(self) -> list[AllocStatus]:
        """Return live allocs: their envelopes, who is in them, what is free."""
        return self._list("/v1/allocs", AllocStatus)

    def history(self, name: str) -> list[VersionView]:
        """Return a job's versions, oldest first."""
        return self._list(f"/v1/jobs/{name}/history", VersionView)

    def rollback(self, name: str, version: int = 0) -> JobStatus:
        """Bring an earlier version back; 0: the last healthy one before the newest."""
        raw = self._call("POST", f"/v1/jobs/{name}/rollback", RollbackBody(version))
        return msgspec.json.decode(raw, type=JobStatus)

    def promote(self, name: str) -> JobStatus:
        """Let an update go on from its canaries, or from where it halted."""
        return msgspec.json.decode(self._call("POST", f"/v1/jobs/{name}/promote"), type=JobStatus)

    def drain(
        self, machine: str, deadline_s: float = 600.0, start_s: float = 0.0, cancel: bool = False
    ) -> MachineStatus:
        """Empty a machine: no new work from ``start_s`` (0: now), empty ``deadline_s`` seconds later."""
        raw = self._call("POST", f"/v1/machines/{machine}/drain", DrainBody(deadline_s, start_s, cancel))
        return msgspec.json.decode(raw, type=MachineStatus)

    def scale(self, name: str, min_replicas: int, max_replicas: int | None = None) -> JobStatus:
        """Set a job's replicas."""
        top = min_replicas if max_replicas is None else max_replicas
        return self.change(name, Replicas(min_replicas, top))

    def stop(self, name: str, now: bool = False, force: bool = False) -> JobStatus:
        """Stop a job: notice, SIGTERM, and SIGKILL after its grace period (``now``: at once).

        An alloc with jobs in it is stopped only with ``force``, and they with it.
        """
        flags = {"now": "1" if now else None, "force": "1" if force else None}
        raw = self._call("DELETE", f"/v1/jobs/{name}", **flags)
        return msgspec.json.decode(raw, type=JobStatus)

    def hold(self, name: str) -> JobStatus:
        """Hold a job back: what waits of it does not start, a schedule does not fire."""
        return msgspec.json.decode(self._call("POST", f"/v1/jobs/{name}/hold"), type=JobStatus)

    def release(self, name: str) -> JobStatus:
        """Let a job start that was held back, or whose begin time has not come."""
        return msgspec.json.decode(self._call("POST", f"/v1/jobs/{name}/release"), type=JobStatus)

    def wait(self, name: str, until: str = "done", timeout_s: float | None = None) -> JobStatus:
        """Return when a job is ``done``, ``ready`` or ``started``, or when the time is up.

        A control plane that is away for a while is waited for.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = 30.0 if deadline_s is None else max(0.0, min(30.0, deadline_s - time.monotonic()))
            try:
                status = self._get(f"/v1/jobs/{name}", JobStatus, wait=left_s, until=until)
            except CellUnreachable:
                if deadline_s is not None and time.monotonic() >= deadline_s:
                    raise
                time.sleep(0.2)
                continue
            reached = status.done or (until == "ready" and status.ready >= max(1, status.replicas.min))
            reached = reached or (until == "started" and status.started_s > 0)
            if reached or (deadline_s is not None and time.monotonic() >= deadline_s):
                return status

    def users(self) -> list[UserView]:
        """Return the cell's users; for admins."""
        return self._list("/v1/users", UserView)

    def add_user(self, new: NewUser) -> UserView:
        """Add a user; the answer is the only one that holds their token."""
        return msgspec.json.decode(self._call("POST", "/v1/users", new), type=UserView)

    def rotate_user(self, name: str) -> UserView:
        """Give a user a new token, which the answer holds; the old one ends at once."""
        return msgspec.json.decode(self._call("POST", f"/v1/users/{name}/rotate"), type=UserView)

    def remove_user(self, name: str) -> UserView:
        """Forget a user; their token ends at once."""
        return msgspec.json.decode(self._call("DELETE", f"/v1/users/{name}"), type=UserView)

    def reports(self, name: str, after: int = 0) -> list[Report]:
        """Return the numbers that a job's replicas reported, oldest first."""
        return self._list(f"/v1/jobs/{name}/reports", Report, after=after)

    def logs(
        self,
        name: str,
        follow: bool = False,
        tail: int | None = None,
        since_s: float | None = None,
        replica: int | None = None,
        stream: str = "all",
    ) -> Iterator[LogLine]:
        """Yield a job's output as it is written; with ``follow`` until the job is over."""
        query = {"tail": tail, "since": since_s, "replica": replica, "stream": stream, "format": "ndjson"}
        params = {k: v for k, v in query.items() if v is not None}
        if follow:
            params["follow"] = 1
        decode = msgspec.json.Decoder(LogLine).decode
        timeout = httpx.Timeout(30.0, read=None)
        try:
            with self._http.stream("GET", f"/v1/jobs/{name}/logs", params=params, timeout=timeout) as answer:
                if answer.is_error:
                    raise _error_of(answer.status_code, answer.read())
                for line in answer.iter_lines():
                    if line:
                        yield decode(line)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error


def _token_from_file() -> str:
    path = os.environ.get("TIDECELL_TOKEN_FILE", "")
    try:
        return Path(path).expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise TidecellError(
            f"TIDECELL_URL is set, and no token can be read from TIDECELL_TOKEN_FILE={path!r}",
            "put your token in a file (chmod 600) and name it there; tide user add prints tokens",
        ) from error


class _ErrorBody(msgspec.Struct):
    type: str = ""
    message: str = ""
    hint: str = ""
    reason: str = ""


class _ErrorAnswer(msgspec.Struct):
    error: _ErrorBody


def _error_of(status: int, content: bytes) -> TidecellError:
    """Return the error that the control plane answered, as the type it was there."""
    try:
        body = msgspec.json.decode(content, type=_ErrorAnswer).error
    except msgspec.DecodeError:
        return TidecellError(f"the control plane answered {status}: {content[:200].decode(errors='replace')}")
    if body.type == "InvariantError":
        return InvariantError(body.message)
    if body.type == "RefusedError":
        return RefusedError(body.message, body.hint, body.reason)
    return _ERRORS.get(body.type, TidecellError)(body.message, body.hint)
