"""A cell that is all answers: the API as the console reads it, over a synthetic tide.

Training holds most of two cores; a burst of requests takes one of its workers, and the trough gives it
back. The views are the real ones, so what the page is tested with is what the server sends.
"""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tidecell.client import listing_views as lv
from tidecell.client import views as v
from tidecell.client.account_views import UsageRow, UsageView
from tidecell.client.quota_views import QuotaStatus
from tidecell.server.known import unless_known
from tidecell.structs.job import Reason, Replicas, TaskState
from tidecell.structs.resources import Resources
from tidecell.web.app import routes

TOKEN = "correct-horse"
GIB = 1 << 30
TEAMS = [
    QuotaStatus(
        "vision",
        "batch",
        cohort="lab",
        own={"cpu": 1000},
        used={"cpu": 1400},
        borrowed={"cpu": 400},
        waiting={"cpu": 2000, "memory": GIB},
    ),
    QuotaStatus("speech", "production", valid=False),
]


def burst(age_s: float) -> float:
    """Return how strong the burst is, 0 to 1, so many seconds before now."""
    return max(0.0, min(1.0, (92 - age_s) / 6, (age_s - 36) / 6))


def sample(now_s: float, age_s: float) -> v.Sample:
    """Return the cell as it was so long ago."""
    at_s, load = now_s - age_s, burst(age_s)
    wobble = math.sin(at_s * 0.9) + 0.5 * math.sin(at_s * 2.3)
    chats = 3 if 34 < age_s < 87 else 2 if 32 < age_s < 88 else 1
    workers = 1 if 30 < age_s < 88 else 2
    notes = 200 if 10 < age_s < 28 else 0
    step = max(0, round(400 - age_s * 1.3))
    reserved = {"production": 400 * chats, "batch": 700 * workers, "best-effort": notes}
    jobs = {
        "chat": v.JobSample(
            "service", "production", chats, 400 * chats, round(380 * chats * (0.2 + 0.75 * load))
        ),
        "pretrain": v.JobSample("job", "batch", workers, 700 * workers, round(690 * workers)),
    }
    rate = 1.5 + 40 * load + 1.2 * wobble * (0.4 + load)
    late = 1 + 2.2 * max(0.0, burst(age_s) - burst(age_s + 9))
    chat = v.ServiceSample(
        replicas=chats,
        ready=chats,
        desired=chats,
        ongoing=load * 11,
        queued=load * 3,
        rate_per_s=max(0.2, rate),
        requests_total=1834,
        latency_ms_p50=120 * late,
        latency_ms_p95=(210 + 30 * wobble) * late,
        ttft_ms_p95=60,
    )
    train = v.TrainSample(step, 500, 5.6 - 2.4 * step / 400, (2450 + 90 * wobble) * workers, workers)
    return v.Sample(
        at_s, 2000, {k: n for k, n in reserved.items() if n}, jobs, {"chat": chat}, {"pretrain": train}
    )


def job_views(now_s: float) -> list[v.JobStatus]:
    """Return a service, an elastic training, a job that waits and one that failed."""
    task = v.TaskStatus
    return [
        v.JobStatus(
            "chat.1",
            "chat",
            "service",
            TaskState.RUNNING,
            "production",
            "production",
            Replicas(1, 3),
            1,
            1,
            1,
            now_s - 200,
            Resources(400, GIB // 2),
            started_s=now_s - 199,
            models=("tide-chat",),
            endpoint="http://127.0.0.1:8080/v1",
            desired_why="0.4 ongoing requests per replica, target 4",
            version=2,
            update=v.UpdateStatus(2, "canary", 1, 2, "its canaries wait for tide promote"),
            disruptions=v.DisruptionStatus("1", 0, 1),
            tasks=(
                task(
                    0,
                    TaskState.RUNNING,
                    1,
                    machine="laptop",
                    pid=101,
                    ready=True,
                    cpu_millis=80,
                    memory_bytes=GIB // 3,
                ),
            ),
            command="tide serve runs/chat/latest",
        ),
        v.JobStatus(
            "pretrain.1",
            "pretrain",
            "job",
            TaskState.RUNNING,
            "batch",
            "batch",
            Replicas(1, 2),
            2,
            2,
            0,
            now_s - 320,
            Resources(700, GIB),
            started_s=now_s - 318,
            last_event="PREEMPTED by chat, grown back to 2",
            tasks=(
                task(
                    0, TaskState.RUNNING, 1, machine="laptop", pid=88, cpu_millis=690, memory_bytes=GIB // 2
                ),
                task(
                    1, TaskState.RUNNING, 2, machine="laptop", pid=131, cpu_millis=688, memory_bytes=GIB // 2
                ),
            ),
            command="python -m tidecell.train run.yaml",
        ),
        v.JobStatus(
            "eval-sweep.1",
            "eval-sweep",
            "job",
            TaskState.PENDING,
            "batch+2",
            "batch",
            Replicas(2, 2),
            2,
            0,
            0,
            now_s - 45,
            Resources(600, GIB),
            waiting=v.WaitingStatus(
                (Reason.WAITING_FOR_CAPACITY, Reason.PRIORITY), "needs 2 x 0.6 cpu; 0.2 cpu is free", 2
            ),
            team="vision",
            position=1,
            team_position=1,
            tasks=(task(0, TaskState.PENDING), task(1, TaskState.PENDING)),
            command="python eval.py --all",
        ),
        v.JobStatus(
            "prepare.1",
            "prepare",
            "job",
            TaskState.FAILED,
            "best-effort",
            "best-effort",
            Replicas(1, 1),
            1,
            0,
            0,
            now_s - 400,
            Resources(300, GIB),
            started_s=now_s - 399,
            finished_s=now_s - 360,
            exit_code=3,
            message="replica 0 exited with status 3",
        ),
    ]


def why_view(name: str, now_s: float) -> v.WhyView:
    """Return all that a reason can say, for the job that waits."""
    if name != "eval-sweep.1":
        return v.WhyView(name.partition(".")[0], name, TaskState.RUNNING, now_s - 300)
    return v.WhyView(
        "eval-sweep",
        name,
        TaskState.PENDING,
        now_s - 45,
        reasons=(Reason.WAITING_FOR_CAPACITY, Reason.PRIORITY),
        detail="0.2 cpu is free on laptop",
        needs="2 x 0.6 cpu, 1.0 GiB, together",
        free_now="laptop: 0.2 cpu, 1.1 GiB",
        holders=(v.Holder("pretrain", "batch", "laptop", 2, Resources(1400, 2 * GIB), 318.0),),
        fixes=(
            v.Fix(
                "priority batch+2 -> production", "tide prio eval-sweep production", "shrinks pretrain 2 -> 1"
            ),
            v.Fix("stop pretrain", "tide stop pretrain", "its checkpoint is 12 s old"),
        ),
        no_help=(v.Fix("replicas.min 2 -> 1", "", "0.6 cpu is more than the 0.2 that is free"),),
        expected_s=now_s + 80,
        expected_why="when pretrain has done its 500 steps",
        start_range=v.StartRange(now_s + 20, now_s + 60, now_s + 400, 0.9, 20),
        position=1,
        num_waiting=1,
        team="vision",
        team_position=1,
        seq=812,
    )


def schedule_views(now_s: float) -> list[lv.ScheduleStatus]:
    """Return a schedule that fires, and one that is held back."""
    run = lv.ScheduledRun(
        "nightly-1.s1", "nightly-1", TaskState.SUCCEEDED, now_s - 86400, now_s - 86400, now_s - 86340
    )
    return [
        lv.ScheduleStatus(
            "nightly.1",
            "nightly",
            "0 3 * * *",
            "Europe/Berlin",
            "skip",
            "last",
            "batch",
            team="vision",
            next=(now_s + 600, now_s + 87000),
            runs=(run,),
        ),
        lv.ScheduleStatus("weekly.1", "weekly", "0 4 * * 1", "UTC", "queue", "none", "batch", held=True),
    ]


def alloc_views(now_s: float) -> list[lv.AllocStatus]:
    """Return a reservation with two envelopes: one is used, one waits for room."""
    room = Resources(2000, 2 * GIB)
    inside = lv.Inside("probe.1", "probe", 0, TaskState.RUNNING, Resources(500, GIB))
    used = lv.EnvelopeStatus(
        "lab/0", TaskState.RUNNING, "laptop", room, Resources(1500, GIB), inside=(inside,)
    )
    waits = lv.EnvelopeStatus("lab/1", TaskState.PENDING, room=room)
    return [
        lv.AllocStatus(
            "lab.1", "lab", "batch", ends_by_s=now_s + 3600, envelopes=(used, waits), waiting=("next",)
        )
    ]


def usage_view(since_s: float, every_s: float, by: str) -> UsageView:
    """Return what two teams held in the last three steps."""
    rows = []
    for i in range(3):
        at_s = math.floor(time.time() / every_s - i) * every_s
        for team, hours in (("vision", 2.0 + i), ("speech", 1.0)):
            names = {"team": team} if "team" in by else {by: f"a-{team}"}
            rows.append(
                UsageRow(
                    **names,
                    at_s=at_s,
                    cpu_hours=hours,
                    requested_cpu_hours=hours + 1,
                    used_cpu_hours=hours / 2,
                    gpu_hours={"H100": 0.5},
                    cost=hours * 0.05,
                    starts=1,
                )
            )
    return UsageView(since_s, time.time(), tuple(rows), "EUR")


EVENTS = (
    ("CellOpened", "", "control plane took over, epoch 3"),
    ("MachineJoined", "", "machine laptop joined: 2 cpu, 4.0 GiB"),
    ("JobAccepted", "pretrain.1", "accepted: job, 1..2 replicas, batch"),
    ("TaskPlaced", "pretrain.1", "replica 1 placed on laptop, attempt 1"),
    ("JobDesired", "chat.1", "wants 3 replicas: 11 ongoing requests per replica, target 4"),
    ("TaskNoticed", "pretrain.1", "replica 1 PREEMPTED by chat; 1 remain"),
    ("JobDesired", "chat.1", "wants 1 replicas: 0.4 ongoing requests per replica, target 4"),
    ("TaskStarted", "pretrain.1", "replica 1 started, pid 131"),
)


@dataclass
class FakeCell:
    """The answers, and what the page asked for.

    Attributes:
        asked: Paths with queries, in order.
        idle: Whether nothing was ever submitted.
        me: Who the page is told that it is.
        token: What is accepted.
        refuse: With what every change is refused; empty: it is done.
        more_jobs: Jobs beside the usual ones.
        done: Changes that were asked for: method, path, body.
        seq: Number of the newest event.
        started_s: When the control plane started.
    """

    idle: bool = False
    agent_up: bool = True
    me: lv.Me = field(default_factory=lambda: lv.Me("owner", "admin"))
    token: str = TOKEN
    refuse: str = ""
    more_jobs: list[v.JobStatus] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    done: list[tuple[str, str, bytes]] = field(default_factory=list)
    seq: int = 812
    started_s: float = field(default_factory=lambda: time.time() - 400)

    def answer(self, request: Request) -> object:
        """Return what the API says at a path, or None: no such thing."""
        now_s = time.time()
        path, query = request.url.path, request.query_params
        jobs = [] if self.idle else [*job_views(now_s), *self.more_jobs]
        by_path: dict[str, object] = {
            "/v1/cell": v.CellStatus(
                "0.1.0",
                3,
                self.started_s,
                "/home/ana/.tidecell",
                "http://127.0.0.1:7070",
                "http://127.0.0.1:8080",
                True,
                self.agent_up,
                self.seq,
                "rlimit+measure",
                num_live=len(jobs),
                num_waiting=sum(1 for j in jobs if j.waiting),
            ),
            "/v1/me": self.me,
            "/v1/schedules": {"items": [] if self.idle else schedule_views(now_s)},
            "/v1/allocs": {"items": [] if self.idle else alloc_views(now_s)},
            "/v1/events/kinds": {"items": sorted({kind for kind, _, _ in EVENTS})},
            "/v1/machines": {"items": [self._machine()]},
            "/v1/jobs": self._page(jobs, query),
            "/v1/events": {"items": self._events(now_s, query)},
            "/v1/quota": {"items": [] if self.idle else TEAMS},
        }
        if path == "/v1/usage":
            view = usage_view(float(query["since"]), float(query["every"]), query["by"])
            return UsageView(view.since_s, view.until_s, ()) if self.idle else view
        if path == "/v1/series":
            return {
                "items": [] if self.idle else self._series(now_s, float(query["since"]), int(query["points"]))
            }
        for job in jobs:
            by_path[f"/v1/jobs/{job.uid}"] = job
            by_path[f"/v1/jobs/{job.uid}/why"] = why_view(job.uid, now_s)
            changes = [v.VersionView(1, now_s - 300, "ana", changes=("created",), stable=True)]
            changes += [v.VersionView(2, now_s - 60, "ben", changes=("env.R: 1 -> 2",), current=True)]
            by_path[f"/v1/jobs/{job.uid}/history"] = {"items": changes[: job.version]}
        return by_path.get(path)

    @staticmethod
    def _plan(spec: bytes) -> Response:
        if b"nmae" in spec:
            mistake = {
                "type": "SpecError",
                "message": "the spec has 1 mistake",
                "hint": "  line 2: nmae: unknown key",
            }
            return _json({"error": mistake}, 422)
        return _json(
            v.PlanView(
                ("create sweep",),
                True,
                (v.PlannedPlacement("sweep", 0, "laptop"),),
                (v.PlannedVictim("pretrain", 1, "laptop", "shrink", 1, "at most 20s of work"),),
                (v.PlannedWait("sweep", (Reason.WAITING_FOR_PREEMPTED,), "takes the place of 'pretrain'"),),
            )
        )

    @staticmethod
    def _machine() -> v.MachineStatus:
        return v.MachineStatus(
            "laptop",
            True,
            Resources(2000, 4 * GIB),
            Resources(1800, 5 * GIB // 2),
            Resources(200, 3 * GIB // 2),
            "rlimit+measure",
            3,
            1460,
            5 * GIB // 4,
        )

    @staticmethod
    def _series(now_s: float, since_s: float, points: int) -> list[v.Sample]:
        now_s, step_s = math.floor(now_s), max(1, math.ceil(since_s / points))
        ages = range(0, min(int(since_s), 1500), step_s)
        return [sample(now_s, age_s) for age_s in reversed(ages)]

    @staticmethod
    def _page(jobs: list[v.JobStatus], query: Mapping[str, str]) -> object:
        """Select as the server does, as far as the console asks."""
        if query.get("state") == "waiting":
            jobs = [j for j in jobs if j.waiting]
        jobs = [j for j in jobs if query.get("kind", j.kind) == j.kind and query.get("text", "") in j.uid]
        offset, limit = int(query.get("offset", 0)), int(query.get("limit", 0) or len(jobs))
        return {"items": jobs[offset : offset + limit], "total": len(jobs)}

    def _events(self, now_s: float, query: Mapping[str, str]) -> list[v.EventView]:
        known = EVENTS[:2] if self.idle else EVENTS
        return [
            v.EventView(i + 1, now_s - 300 + 30 * i, kind, uid, text)
            for i, (kind, uid, text) in enumerate(known)
            if query.get("kind", kind) == kind and query.get("job", uid) in uid
        ]

    async def handle(self, request: Request) -> Response:
        """Answer one request, as the server would."""
        self.asked.append(f"{request.url.path}?{request.url.query}")
        if request.headers.get("authorization") != f"Bearer {self.token}":
            return _json(
                {"error": {"type": "Unauthorized", "message": "the cell's token is missing or wrong"}}, 401
            )
        if request.url.path == "/v1/plan":
            return self._plan(await request.body())
        if request.method != "GET":
            return await self._change(request)
        if request.url.path.endswith("/logs"):
            return PlainTextResponse("step 399 loss 3.21\n<b>step 400</b> loss 3.20\n")
        found = self.answer(request)
        if found is None:
            return _json({"error": {"type": "NotFoundError", "message": "no job of that name"}}, 404)
        return unless_known(request, _json(found))

    async def _change(self, request: Request) -> Response:
        if self.refuse:
            return _json({"error": {"type": "ForbiddenError", "message": self.refuse}}, 403)
        self.done.append((request.method, f"{request.url.path}?{request.url.query}", await request.body()))
        self.seq += 1
        return _json({})


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


class FakeServer:
    """The fake cell on a port of its own, in a thread."""

    def __init__(self, cell: FakeCell, port: int = 0) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(("127.0.0.1", port))
        self.port = int(self.socket.getsockname()[1])
        app = Starlette(
            routes=[
                Route("/v1/{rest:path}", cell.handle, methods=["GET", "POST", "PATCH", "DELETE"]),
                *routes(),
            ]
        )
        config = uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self.socket]}, daemon=True
        )
        self._thread.start()
        deadline_s = time.monotonic() + 10
        while not self._server.started and time.monotonic() < deadline_s:
            time.sleep(0.01)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def stop(self) -> None:
        """Go away, as a control plane that was killed."""
        self._server.should_exit = True
        self._thread.join(10)
        self.socket.close()


@contextlib.contextmanager
def serve(cell: FakeCell) -> Iterator[FakeServer]:
    """Serve a cell for as long as the block lasts."""
    server = FakeServer(cell)
    try:
        yield server
    finally:
        server.stop()
