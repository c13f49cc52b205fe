"""Services behind the router: ready, scaled, preempting, drained without loss."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tidecell.client.client import Client
from tidecell.structs.job import (
    Band,
    JobSpec,
    Kind,
    Preemption,
    Priority,
    Probes,
    Replicas,
    Scaling,
    TaskState,
)
from tidecell.structs.resources import Resources

SERVER = """
import os, time, http.server, socketserver
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        time.sleep(float(os.environ.get("SLOW", "0")) if self.path != "/health" else 0)
        body = os.environ["TIDECELL_INDEX"].encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *a): pass
class S(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 128
S(("127.0.0.1", int(os.environ["PORT"])), H).serve_forever()
"""

# A program that leaves when it is told to, and says what it was told.
ELASTIC = """
import json, os, socket, time
s = socket.socket(socket.AF_UNIX); s.connect(os.environ["TIDECELL_SOCKET"])
f = s.makefile("rw")
hello = {"type": "hello", "uid": os.environ["TIDECELL_UID"], "index": int(os.environ["TIDECELL_INDEX"]),
         "attempt": int(os.environ["TIDECELL_ATTEMPT"]), "epoch": int(os.environ["TIDECELL_EPOCH"])}
f.write(json.dumps(hello) + "\\n"); f.flush()
print("listening", flush=True)
for line in f:
    told = json.loads(line)
    if told["type"] == "notice":
        print("notice", told["cause"], told["new_size"], told["by"], flush=True)
        f.write(json.dumps({"type": "released"}) + "\\n"); f.flush()
        break
"""


def _service(name: str, replicas: Replicas, slow_s: float = 0.0, **more: object) -> JobSpec:
    return JobSpec(
        name,
        kind=Kind.SERVICE,
        argv=(sys.executable, "-c", SERVER),
        env={"SLOW": str(slow_s)},
        resources=Resources(500),
        replicas=replicas,
        priority=Priority(Band.PRODUCTION),
        preemption=Preemption.NEVER,
        probes=Probes("/health"),
        grace_period_s=10.0,
        **more,
    )


def _elastic(name: str, cpu_millis: int = 750) -> JobSpec:
    return JobSpec(
        name,
        argv=(sys.executable, "-c", ELASTIC),
        resources=Resources(cpu_millis),
        replicas=Replicas(1, 2),
        grace_period_s=20.0,
    )


def _get(client: Client, name: str, timeout_s: float = 20.0) -> httpx.Response:
    url = f"{client.router_url}/services/{name}/"
    headers = {"Authorization": f"Bearer {client.token}"}
    return httpx.get(url, headers=headers, timeout=timeout_s, trust_env=False)


class Load:
    """Requests in a closed loop from several threads; the ledger says how each ended."""

    def __init__(self, client: Client, name: str, threads: int) -> None:
        self.url = f"{client.router_url}/services/{name}/"
        self.headers = {"Authorization": f"Bearer {client.token}"}
        self.statuses: list[object] = []
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self._loop) for _ in range(threads)]

    def _loop(self) -> None:
        with httpx.Client(headers=self.headers, timeout=30.0, trust_env=False) as http:
            while not self.stop.is_set():
                try:
                    self.statuses.append(http.get(self.url).status_code)
                except httpx.HTTPError as error:
                    self.statuses.append(repr(error))

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()


def test_ready_service_is_reached_through_the_router_with_the_token_only(client: Client) -> None:
    client.submit(_service("web", Replicas(1, 1)))
    assert client.wait("web", "ready", timeout_s=20).ready == 1
    answer = _get(client, "web")
    assert (answer.status_code, answer.text) == (200, "0")
    assert httpx.get(f"{client.router_url}/services/web/", trust_env=False).status_code == 401


def test_scaling_down_under_load_fails_no_request(client: Client, wait_until: Callable[..., None]) -> None:
    client.submit(_service("web", Replicas(3, 3), slow_s=0.05))
    client.wait("web", "ready", timeout_s=20)
    with Load(client, "web", 8) as load:
        wait_until(lambda: len(load.statuses) > 50)
        client.scale("web", 1, 1)
        wait_until(lambda: client.job("web").running == 1 and len(client.job("web").tasks) == 1)
        seen = len(load.statuses)
        wait_until(lambda: len(load.statuses) > seen + 50)
    assert set(load.statuses) == {200}


def test_router_and_replicas_serve_while_the_control_plane_is_away(cell, client: Client) -> None:
    client.submit(_service("web", Replicas(1, 1)))
    client.wait("web", "ready", timeout_s=20)
    url, token = f"{client.router_url}/services/web/", client.token
    os.kill(cell.control_pid(), signal.SIGSTOP)
    try:
        answer = httpx.get(url, headers={"Authorization": f"Bearer {token}"}, trust_env=False)
        assert answer.status_code == 200
    finally:
        os.kill(cell.control_pid(), signal.SIGCONT)


def test_crashed_replica_is_replaced_and_requests_wait_for_it(
    client: Client, wait_until: Callable[..., None]
) -> None:
    client.submit(_service("web", Replicas(1, 1)))
    pid = client.wait("web", "ready", timeout_s=20).tasks[0].pid
    os.kill(pid, signal.SIGKILL)
    assert _get(client, "web").status_code == 200
    wait_until(lambda: client.job("web").tasks[0].attempt == 2)


def test_production_shrinks_elastic_batch_with_notice_and_gives_back(
    client: Client, wait_until: Callable[..., None]
) -> None:
    client.submit(_elastic("train"))
    wait_until(lambda: sum("listening" in line.text for line in client.logs("train")) == 2)
    client.submit(_service("web", Replicas(1, 2)))
    client.wait("web", "ready", timeout_s=20)
    client.scale("web", 2, 2)
    wait_until(lambda: client.job("web").ready == 2)
    train = client.job("train")
    assert train.running == 1
    assert train.state is TaskState.RUNNING
    assert "notice preempt 1 web\n" in "".join(line.text for line in client.logs("train"))
    assert client.why("train").shrunk
    client.scale("web", 1, 1)
    wait_until(lambda: client.job("train").running == 2)
    preempted = [e for e in client.events("train", limit=500) if "PREEMPTED by web" in e.text]
    assert len(preempted) == 1
    client.stop("train", now=True)


def test_autoscaler_adds_replicas_under_load_and_takes_them_back(
    client: Client, wait_until: Callable[..., None]
) -> None:
    scaling = Scaling("ongoing_requests", target=2.0, up_delay_s=0.5, down_delay_s=2.0)
    client.submit(_service("web", Replicas(1, 3), slow_s=0.1, scaling=scaling))
    client.wait("web", "ready", timeout_s=20)
    with Load(client, "web", 6) as load:
        wait_until(lambda: client.job("web").ready >= 2)
    wait_until(lambda: client.job("web").running == 1, timeout_s=30)
    assert set(load.statuses) == {200}


def test_task_waits_with_reason_holder_and_a_fix_that_works(
    cell, client: Client, wait_until: Callable[..., None]
) -> None:
    client.submit(JobSpec("holder", argv=("sleep", "600"), resources=Resources(2000)))
    client.wait("holder", "started")
    client.submit(JobSpec("waiter", argv=("sleep", "600"), resources=Resources(1000)))
    view = client.why("waiter")
    assert view.reasons[0].value == "WaitingForCapacity"
    assert [h.job for h in view.holders] == ["holder"]
    assert any(f.command == "tide stop holder" for f in view.fixes)
    assert "held by" in cell.tide("why", "waiter").stdout
    cell.tide("stop", "holder")
    wait_until(lambda: client.job("waiter").state is TaskState.RUNNING)
    client.stop("waiter", now=True)


@pytest.mark.parametrize("name", ["/openapi.json", "/health"])
def test_description_and_health_need_no_token(client: Client, name: str) -> None:
    assert httpx.get(client.url + name, trust_env=False).status_code == 200
    assert httpx.get(client.url + "/v1/jobs", trust_env=False).status_code == 401


def test_a_killed_router_refuses_no_connection_while_the_agent_starts_it_again(
    cell, client: Client, wait_until: Callable[..., None]
) -> None:
    router_port = int(client.router_url.rpartition(":")[2])
    pid = _router_pid(router_port)
    os.kill(pid, signal.SIGKILL)
    for _ in range(20):  # connections are taken at once, and answered by the next router
        answer = httpx.get(f"{client.router_url}/health", trust_env=False, timeout=20)
        assert answer.status_code == 200
    wait_until(lambda: _router_pid(router_port) not in (0, pid))


def _router_pid(port: int) -> int:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            argv = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"tidecell.traffic.router" in argv and b"%d" % port in argv:
            return int(path.parent.name)
    return 0
