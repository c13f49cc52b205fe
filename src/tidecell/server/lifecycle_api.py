"""The part of the API about changed specs, versions, updates and drains."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

from tidecell.cell.admission import check_sound
from tidecell.cell.state import Job
from tidecell.client.views import DrainBody, JobStatus, MachineStatus, RollbackBody, VersionView
from tidecell.server.control import ControlPlane
from tidecell.server.openapi import Operation
from tidecell.server.users import asker
from tidecell.server.views import machine_status, version_views
from tidecell.structs.errors import NotFoundError, RefusedError
from tidecell.structs.job import JobSpec
from tidecell.structs.lifecycle import DrainRequested, PromoteRequested, RollbackRequested, SpecChanged
from tidecell.structs.message_base import TaskRef
from tidecell.structs.resources import Resources

T = TypeVar("T")
MAX_BODY_BYTES = 4 << 20


def who(request: Request) -> str:
    """Return the name of who asks."""
    user = asker(request)
    return user.name if user is not None else ""


def continued(job: Job, spec: JobSpec) -> JobSpec:
    """Return a spec as a change of a live job: a team and a user that it does not name stay the job's."""
    labels = spec.labels
    if "user" in job.spec.labels and "user" not in labels:
        labels = {**labels, "user": job.spec.labels["user"]}
    return replace(spec, team=spec.team or job.spec.team, labels=labels)


def in_use(job: Job, use: Mapping[TaskRef, tuple[int, int]]) -> dict[int, int]:
    """Return the bytes of memory that a job's replicas were last seen to use, by index."""
    refs = {t.index: TaskRef(job.uid, t.index, t.epoch) for t in job.active_tasks()}
    return {index: use[ref][1] for index, ref in refs.items() if ref in use}


def resized(spec: JobSpec, cpu_millis: int | None, memory_bytes: int | None) -> JobSpec:
    """Return a spec with other cpu or memory per replica; None leaves one as it is.

    Raises:
        RefusedError: There is no such size.
    """
    cpu = spec.resources.cpu_millis if cpu_millis is None else cpu_millis
    memory = spec.resources.memory_bytes if memory_bytes is None else memory_bytes
    if cpu < 0 or memory < 0 or not (cpu or memory or spec.resources.gpu_millis):
        raise RefusedError(
            f"job '{spec.name}': {cpu / 1000:g} cpu and {memory} bytes of memory are no size",
            "give numbers above 0; --memory 0 takes the limit away",
        )
    return replace(spec, resources=Resources(cpu, memory, spec.resources.gpu_millis))


class LifecycleApi:
    """The handlers, over one control plane.

    Args:
        control: The control plane.
        status: Returns a job as the API shows it.
    """

    def __init__(self, control: ControlPlane, status: Callable[[Job], JobStatus]) -> None:
        self._control = control
        self._status = status

    def _job(self, request: Request) -> Job:
        name = request.path_params["name"]
        job = self._control.find(name)
        if job is None:
            raise NotFoundError(f"no job named '{name}'", "tide ps -a lists all jobs")
        return job

    async def apply(self, request: Request) -> Response:
        """Give a live job another spec."""
        job, spec = self._job(request), await _read(request, JobSpec)
        if spec.name != job.spec.name:
            raise RefusedError(
                f"the spec is of '{spec.name}', not of '{job.spec.name}'", "send it to its own name"
            )
        check_sound(spec)
        changed = continued(job, spec)
        use = in_use(job, self._control.measurements.use)
        await self._control.ask(SpecChanged(changed, who(request), use))
        return _json(self._status(self._job(request)))

    async def history(self, request: Request) -> Response:
        """List a job's versions, oldest first."""
        return _json({"items": version_views(self._job(request))})

    async def rollback(self, request: Request) -> Response:
        """Bring an earlier version back."""
        body = await _read(request, RollbackBody)
        job = self._job(request)
        use = in_use(job, self._control.measurements.use)
        await self._control.ask(RollbackRequested(job.spec.name, body.version, who(request), use))
        return _json(self._status(self._job(request)))

    async def promote(self, request: Request) -> Response:
        """Let an update go on."""
        await self._control.ask(PromoteRequested(self._job(request).spec.name, who(request)))
        return _json(self._status(self._job(request)))

    async def drain(self, request: Request) -> Response:
        """Empty a machine for maintenance, or take that back."""
        body, name = await _read(request, DrainBody), request.path_params["name"]
        start_s = body.start_s or time.time()
        wanted = DrainRequested(name, start_s, start_s + body.deadline_s, body.cancel, who(request))
        await self._control.ask(wanted)
        state, use = self._control.state, self._control.measurements.use
        return _json(machine_status(state, state.machines[name], use, time.time()))


async def _read(request: Request, kind: type[T]) -> T:
    body = await request.body()
    if len(body) > MAX_BODY_BYTES:
        raise RefusedError(f"the request's body is larger than {MAX_BODY_BYTES} bytes")
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except msgspec.DecodeError as error:
        raise RefusedError(f"the request's body is not as it should be: {error}") from error


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


OPERATIONS = (
    Operation("PUT", "/v1/jobs/{name}", "Give a live job another spec", JobStatus, body=JobSpec),
    Operation("GET", "/v1/jobs/{name}/history", "Its versions, oldest first", VersionView, many=True),
    Operation(
        "POST", "/v1/jobs/{name}/rollback", "Bring an earlier version back", JobStatus, body=RollbackBody
    ),
    Operation("POST", "/v1/jobs/{name}/promote", "Let its update go on", JobStatus),
    Operation(
        "POST",
        "/v1/machines/{name}/drain",
        "Empty a machine for maintenance, or take that back",
        MachineStatus,
        body=DrainBody,
    ),
)
