"""`tide route` and `tide key`: what is set reaches the router, and stays in force without a control plane."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from tidecell.cell.journal import Journal
from tidecell.cell.state import encode_state
from tidecell.client.client import Client
from tidecell.client.routing_views import NewKey, RoutingView
from tidecell.sim.requests import load_of, read_requests
from tidecell.structs.errors import NotFoundError, RefusedError
from tidecell.structs.job import JobSpec, Kind, Probes, Replicas
from tidecell.structs.resources import Resources
from tidecell.structs.traffic import Key, Limits, Routing, Rule, Split, Tenant

SERVER = """
import http.server, json, os
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self): self.say({})
    def do_POST(self): self.say(json.loads(self.rfile.read(int(self.headers["content-length"]))))
    def say(self, asked):
        usage = {"prompt_tokens": 3, "completion_tokens": asked.get("max_tokens", 0)}
        said = {"name": os.environ["TIDECELL_JOB"], "model": asked.get("model"), "usage": usage}
        body = json.dumps(said).encode()
        self.send_response(200); self.send_header("content-length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), H).serve_forever()
"""
FILE = """
aliases: {fast: m}
rules:
  - {name: beta, match: {headers: {x-beta: "yes"}}, splits: [{service: next}]}
tenants:
  acme: {limits: {tokens_per_minute: 200}, weight: 2}
  other: {}
"""


def _service(name: str, *models: str) -> JobSpec:
    return JobSpec(
        name,
        kind=Kind.SERVICE,
        argv=(sys.executable, "-c", SERVER),
        resources=Resources(250),
        replicas=Replicas(1, 1),
        probes=Probes("/health"),
        models=models,
    )


class Asker:
    """Asks the cell's router."""

    def __init__(self, client: Client) -> None:
        self.url = f"{client.router_url}/v1/completions"
        self.http = httpx.Client(trust_env=False, timeout=20.0)

    def __call__(self, token: str, model: str = "m", max_tokens: int = 40, **headers: str) -> httpx.Response:
        headers = {"authorization": f"Bearer {token}", **{k.replace("_", "-"): v for k, v in headers.items()}}
        return self.http.post(self.url, json={"model": model, "max_tokens": max_tokens}, headers=headers)


@pytest.fixture
def asker(cell, client: Client) -> Iterator[Asker]:
    client.submit(_service("chat", "m"))
    client.submit(_service("next"))
    for name in ("chat", "next"):
        client.wait(name, "ready", timeout_s=20)
    one = Asker(client)
    yield one
    one.http.close()


def _apply(cell, path: Path, text: str = FILE) -> str:
    path.write_text(text)
    return cell.tide("route", "apply", "-f", str(path), "-y").stdout


def test_a_file_is_shown_asked_about_and_set(cell, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "routes.yaml"
    path.write_text(FILE)
    asked = cell.tide("route", "apply", "-f", str(path), check=False)  # nobody answers
    assert asked.returncode != 0
    assert client.routing_settings() is None
    assert "tenant acme: new; limits.tokens_per_minute 200; weight 2" in asked.stdout
    assert "alias fast (none) -> m" in _apply(cell, path)
    assert cell.tide("route", "apply", "-f", str(path)).stdout.strip() == "unchanged"
    shown = cell.tide("route").stdout
    assert "x-beta: yes" in shown
    assert "not there now: next" in shown
    assert "0 of 200 tokens per minute" in shown
    wrong = cell.tide("route", "nothing", check=False)
    assert "no service, model, rule or tenant named 'nothing'" in wrong.stderr


def test_keys_let_in_within_their_tenants_limits_and_end(
    cell, client: Client, asker: Asker, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    _apply(cell, tmp_path / "routes.yaml")
    made = cell.tide("key", "create", "acme", "--name", "laptop")
    token = made.stdout.strip()
    wait_until(lambda: asker(token).status_code == 200, timeout_s=1.0)
    assert asker(token, "fast").json()["name"] == "chat"
    assert asker(token, x_beta="yes").json()["name"] == "next"
    refused = asker(token, max_tokens=100)
    assert refused.status_code == 429
    assert "tenant acme has used 129 of 200 tokens per minute" in refused.json()["error"]["message"]
    wait_until(lambda: client.routing().tenants[0].used == {"tokens_per_minute": 129})
    view = msgspec.json.decode(cell.tide("route", "acme", "--json").stdout, type=RoutingView)
    assert [t.name for t in view.tenants] == ["acme"]
    listed = cell.tide("key", "ls", "--json").stdout + cell.tide("route", "--json").stdout
    assert token not in listed + cell.tide("events").stdout
    assert token.encode() not in b"".join(p.read_bytes() for p in cell.home.path.rglob("*") if p.is_file())
    cell.tide("key", "revoke", "acme", "laptop", "-y")
    wait_until(lambda: asker(token).status_code == 401, timeout_s=1.0)
    assert asker(client.token).status_code == 200  # the owner's is no tenant's


def test_keys_stay_as_they_are_while_no_control_plane_is_there(
    cell, client: Client, asker: Asker, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    _apply(cell, tmp_path / "routes.yaml")
    good, ended = (client.create_key(NewKey("acme", name)).token for name in ("good", "ended"))
    client.revoke_key("acme", "ended")
    wait_until(lambda: (asker(good).status_code, asker(ended).status_code) == (200, 401))
    os.kill(cell.control_pid(), signal.SIGSTOP)  # away, and not restarted by the agent
    try:
        assert (asker(good).status_code, asker(ended).status_code) == (200, 401)
        assert asker(good, max_tokens=190).status_code == 429
        _restart_router(cell, wait_until)
        assert (asker(good).status_code, asker(ended).status_code) == (200, 401)
        assert asker("no-such-key").status_code == 401
    finally:
        os.kill(cell.control_pid(), signal.SIGCONT)


def test_a_service_that_goes_stops_no_rule_and_no_key(
    cell, client: Client, asker: Asker, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    _apply(cell, tmp_path / "routes.yaml")
    cell.tide("stop", "next")
    token = client.create_key(NewKey("other", "k")).token
    wait_until(lambda: asker(token).status_code == 200)
    assert asker(token, x_beta="yes").json()["name"] == "chat"
    assert client.routing().rules[0].missing == ("next",)


def test_why_says_where_requests_go_and_what_was_shed(
    cell, client: Client, asker: Asker, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    _apply(cell, tmp_path / "routes.yaml")
    token = client.create_key(NewKey("acme", "k")).token
    wait_until(lambda: asker(token).status_code == 200)
    assert asker(token, max_tokens=900).status_code == 429
    assert asker(token, x_beta="yes", x_request_id="mine").status_code == 200
    route = cell.tide("why", "fast").stdout  # the alias of a model
    assert re.search(r"^chat  direct, power-of-two: power-of-two$", route, re.M)
    assert re.search(r"chat.1/0@\d+ +\w+ +not_drawn +0 in flight", route)
    assert "now: 0 in flight, 0 queued" in route
    assert "shed: 1 limit_tokens_per_minute" in route
    assert "chat  direct" in cell.tide("why", "chat").stdout  # after what it says of the job
    said = cell.tide("why", "mine").stdout
    assert re.search(r"^next  rule by rule beta, power-of-two: power-of-two$", said, re.M)
    assert re.search(r"next.1/0@\d+ +\w+ +chosen", said)
    assert "request mine: ok, status 200\n  next at next.1/0@" in said
    row = msgspec.json.decode(cell.tide("why", "mine", "--json").stdout)["request"]
    assert (row["service"], row["route"], row["choice"]) == ("next", "rule beta", "power-of-two")
    _restart_router(cell, wait_until)  # its memory is gone, the access log is not
    wait_until(lambda: client.routing().router_up and asker(client.token).status_code == 200)
    again = cell.tide("why", "mine").stdout
    assert "request mine: ok, status 200" in again
    assert "was not kept" in again
    assert "no job named 'nobody'" in cell.tide("why", "nobody", check=False).stderr


def test_settings_survive_a_restart_and_the_journal_replays_to_them(cell, client: Client) -> None:
    tenant = Tenant("acme", limits=Limits(requests_per_minute=5))
    client.set_routing(Routing({"fast": "m"}, (Rule("all", splits=(Split("chat"),)),), (tenant,)))
    client.create_key(NewKey("acme", "one", Limits(concurrency=2)))
    client.create_key(NewKey("acme", "two"))
    client.set_routing(Routing({}, (), (Tenant("acme", weight=3.0),)))  # who stays keeps the keys
    client.revoke_key("acme", "two")
    settings = client.routing_settings()
    assert settings is not None
    assert [(key.name, key.limits.concurrency, key.hash) for key in settings.tenants[0].keys] == [
        ("one", 2, "")
    ]
    cell.down()
    journal = Journal(cell.home / "journal.db")
    with_snapshot, from_scratch = journal.replay(), journal.replay(use_snapshot=False)
    journal.close()
    assert encode_state(with_snapshot) == encode_state(from_scratch)
    assert from_scratch.routing is not None
    assert [key.name for key in from_scratch.routing.tenants[0].keys] == ["one"]


def test_what_makes_no_sense_is_refused(client: Client) -> None:
    with pytest.raises(NotFoundError, match="no tenant named 'acme'"):
        client.create_key(NewKey("acme", "k"))
    with pytest.raises(RefusedError, match="given keys"):
        client.set_routing(Routing(tenants=(Tenant("acme", (Key("k", "00"),)),)))
    client.set_routing(Routing(tenants=(Tenant("acme"),)))
    with pytest.raises(RefusedError, match="allowed: 0 or more"):
        client.create_key(NewKey("acme", "k", Limits(concurrency=-1)))
    with pytest.raises(NotFoundError, match="has no key 'k'; it has none"):
        client.revoke_key("acme", "k")


def _restart_router(cell, wait_until: Callable[..., None]) -> None:
    before = _routers(cell)
    assert len(before) == 1
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: _routers(cell) not in ([], before))


def _routers(cell) -> list[int]:
    """The router processes of this cell, by their command lines."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"tidecell.traffic.router" in words and str(cell.home.path).encode() in words:
            found.append(int(path.parent.name))
    return found


def test_a_cell_records_its_requests_and_the_simulator_takes_them_as_load(
    stopped_cell, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    client = stopped_cell.up("--cpu", "2", "--trace-requests")
    client.submit(_service("chat", "m"))
    client.wait("chat", "ready", timeout_s=20)
    ask = Asker(client)
    assert ask(client.token).status_code == 200
    ask.http.close()
    trace = stopped_cell.home / "router" / "trace.jsonl"
    wait_until(lambda: trace.exists() and trace.read_bytes().count(b"\n") == 1)
    jobs = tmp_path / "jobs.csv"
    jobs.write_text(
        "name,submit_s,duration_s,kind,replicas_min,replicas_max,scaling_target,cpu\nchat,0,60,service,1,4,1,1\n"
    )
    assert [point.service for point in load_of(read_requests(trace))][:1] == ["chat"]
    stopped_cell.tide("sim", "--trace", str(jobs), "--machines", "2:cpu=4,memory=8GB", "--load", str(trace))
    again = stopped_cell.tide(
        "sim", "--trace", str(jobs), "--machines", "2:cpu=4,memory=8GB", "--load", str(jobs), check=False
    )
    assert again.returncode != 0  # a table without the columns of a load file is still refused
