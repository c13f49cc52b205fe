"""The part of the API that answers questions by asking the scheduler: why does it wait, what would happen.

Each question is put to one immutable snapshot of the live state; ``seq`` in the answer says which. The
command line, Python and the console ask here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

import msgspec
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

from tidecell.cell.past import history_of
from tidecell.cell.resizing import plan_resize
from tidecell.cell.rollout import rollout_text
from tidecell.cell.snapshot import take_snapshot
from tidecell.cell.state import Job
from tidecell.cell.versions import restart_fields
from tidecell.client.schema import parse_specs
from tidecell.client.specform import spec_diff
from tidecell.client.views import PlanView, WhyView
from tidecell.scheduler.explain import explain_plan, explain_why
from tidecell.server.bodies import find_job, read_body, read_bytes
from tidecell.server.control import ControlPlane
from tidecell.server.lifecycle_api import continued, in_use
from tidecell.server.openapi import Operation
from tidecell.server.views import schedule_why
from tidecell.structs.errors import RefusedError
from tidecell.structs.job import JobSpec

View = TypeVar("View", WhyView, PlanView)


class QuestionsApi:
    """The handlers, over one control plane."""

    def __init__(self, control: ControlPlane) -> None:
        self._control = control
        self._one_at_a_time = asyncio.Lock()

    async def _ask(self, question: Callable[[], View]) -> View:
        """Put a question to the scheduler in a thread, so that the cell goes on; one after another."""
        async with self._one_at_a_time:
            return await asyncio.to_thread(question)

    async def why(self, request: Request) -> Response:
        job = find_job(self._control, request)
        now_s, seq = time.time(), self._control.state.seq
        if job.live and job.spec.schedule is not None:
            view = schedule_why(job, now_s)
        elif job.live:
            state = self._control.state
            snapshot, history = take_snapshot(state, now_s), history_of(state, now_s)
            view = await self._ask(lambda: explain_why(snapshot, job.uid, now_s, history=history))
        else:
            view = WhyView(
                job.spec.name, job.uid, job.state, job.finished_s, message=job.message or "it is over"
            )
        return _json(replace(view, seq=seq))

    async def plan(self, request: Request) -> Response:
        specs = await self._planned_specs(request)
        changes, fresh = [], []
        for spec in specs:
            known = self._control.find(spec.name)
            if known is not None and known.live:
                changes.append(self._change_text(known, continued(known, spec)))
            else:
                changes.append(f"create {spec.name}")
                fresh.append(spec)
        snapshot, seq = take_snapshot(self._control.state, time.time()), self._control.state.seq
        view = await self._ask(lambda: explain_plan(snapshot, fresh, tuple(changes)))
        return _json(replace(view, seq=seq))

    def _change_text(self, job: Job, spec: JobSpec) -> str:
        """Say what applying a spec changes on a live job, and what that takes."""
        diff = spec_diff(job.spec, spec)
        if not diff:
            return f"unchanged {spec.name}"
        use = in_use(job, self._control.measurements.use)
        resizing = plan_resize(self._control.state, job, spec, time.time(), use)
        restarts = restart_fields(job.spec, spec) and bool(job.staying_tasks()) and spec.array is None
        how = rollout_text(job, spec) if restarts and resizing.resized is None else "in place"
        why = f", since {resizing.obstacle}" if resizing.obstacle else ""
        return f"change {spec.name}, {how}{why}: {'; '.join(diff)}"

    async def _planned_specs(self, request: Request) -> list[JobSpec]:
        """Specs as the client checked them, or a YAML text as a person wrote it."""
        if request.headers.get("content-type", "").partition(";")[0] != "application/yaml":
            return await read_body(request, list[JobSpec])
        try:
            text = (await read_bytes(request)).decode()
        except UnicodeDecodeError as error:
            raise RefusedError(f"the spec is not UTF-8 text (byte {error.start})") from error
        return parse_specs(text, "the spec", self._control.home.path)


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


OPERATIONS = (
    Operation(
        "POST",
        "/v1/plan",
        "Show what submitting would do; specs, or YAML as application/yaml",
        PlanView,
        body=list[JobSpec],
    ),
    Operation("GET", "/v1/jobs/{name}/why", "Why it waits, and what would make it start", WhyView),
)
