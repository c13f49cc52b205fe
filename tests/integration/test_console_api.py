"""What the console asks a real cell: pages, tags, schedules, allocs, who asks, which snapshot."""

from __future__ import annotations

import json

import httpx
import pytest

from tidecell.client.client import Client
from tidecell.client.views import NewUser
from tidecell.structs.cron import Schedule
from tidecell.structs.errors import RefusedError
from tidecell.structs.job import JobSpec, Kind
from tidecell.structs.resources import Resources


def _raw(client: Client, method: str, path: str, **more: object) -> httpx.Response:
    headers = {"Authorization": f"Bearer {client.token}", **more.pop("headers", {})}  # type: ignore[dict-item]
    return httpx.request(method, client.url + path, headers=headers, trust_env=False, **more)  # type: ignore[arg-type]


def test_the_console_s_lists_over_a_real_cell(cell, client: Client, wait_until) -> None:
    sleeper = {"argv": ("sleep", "600"), "resources": Resources(100)}
    client.submit(JobSpec("lab", Kind.ALLOC, resources=Resources(500)))
    client.submit(JobSpec("inside", alloc="lab", **sleeper))
    client.submit(JobSpec("nightly", run="true", schedule=Schedule("0 3 * * *", "Europe/Berlin")))
    client.submit(JobSpec("large", argv=("sleep", "600"), resources=Resources(1800)))
    client.wait("inside", "started", 20.0)

    (alloc,) = client.allocs()
    assert [t.job for t in alloc.envelopes[0].inside] == ["inside"]
    assert alloc.envelopes[0].free.cpu_millis == 400
    (schedule,) = client.schedules()
    assert (schedule.name, schedule.overlap, len(schedule.next)) == ("nightly", "skip", 5)

    page = _raw(client, "GET", "/v1/jobs?state=any&limit=2&brief=1").json()
    assert (len(page["items"]), page["total"]) == (2, 4)
    assert not any(job.get("tasks") for job in page["items"])
    waiting = _raw(client, "GET", "/v1/jobs?state=waiting").json()["items"]
    assert [(job["name"], job["position"]) for job in waiting] == [("large", 1)]
    status = client.cell()
    assert (status.num_live, status.num_waiting) == (4, 1)

    why = client.why("large")
    assert why.seq == status.journal_seq
    assert client.plan([JobSpec("more", **sleeper)]).seq == status.journal_seq

    _raw(client, "PATCH", "/v1/jobs/large", json={"priority": "production+5"}).raise_for_status()
    assert client.job("large").priority == "production+5"
    refused = _raw(client, "PATCH", "/v1/jobs/large", json={"priority": "urgent"})
    assert refused.status_code == 422
    assert "urgent" in refused.json()["error"]["message"]


def test_an_answer_that_is_known_is_not_sent_again(client: Client) -> None:
    first = _raw(client, "GET", "/v1/quota")
    again = _raw(client, "GET", "/v1/quota", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = _raw(client, "GET", "/v1/quota", headers={"If-None-Match": '"of before"'})
    assert other.status_code == 200
    assert other.content == first.content
    assert "etag" not in _raw(client, "POST", "/v1/plan", json=[]).headers


def test_each_user_is_told_who_they_are(client: Client) -> None:
    assert (client.me().name, client.me().role) == ("owner", "admin")
    new = client.add_user(NewUser("ana", "member", "vision"))
    with Client(client.url, new.token) as ana:
        assert (ana.me().name, ana.me().role, ana.me().team) == ("ana", "member", "vision")
    assert _raw(client, "GET", "/v1/me", headers={"Authorization": "Bearer x"}).status_code == 401


def test_events_are_paged_backwards_without_gap_or_overlap(client: Client) -> None:
    client.submit(JobSpec("quick", argv=("true",)))
    client.wait("quick", timeout_s=20.0)
    everything = [e.seq for e in client.events(limit=1000)]
    for more in ("", "&until=99999999999"):  # from the newest block, and by a search of the whole journal
        seen: list[int] = []
        before = everything[-1] + 1
        while page := _raw(client, "GET", f"/v1/events?limit=3&before={before}{more}").json()["items"]:
            seen = [e["seq"] for e in page] + seen
            before = page[0]["seq"]
        assert seen == everything
    assert {"JobAccepted", "TaskPlaced", "MachineDraining"} <= set(client.event_kinds())


def test_a_selection_that_is_not_known_is_refused(client: Client) -> None:
    with pytest.raises(RefusedError, match="state='odd' is not known"):
        client._list("/v1/jobs", dict, state="odd")


def test_a_dev_session_tells_when_it_was_used_last(cell, client: Client, wait_until) -> None:
    cell.tide("dev", "-d", "-n", "shell", "--idle-timeout", "1h", "--", "sh")
    wait_until(lambda: client.job("shell").last_used_s > 0, what="the session's first word")
    job = client.job("shell")
    assert job.idle_timeout_s == 3600.0
    assert 0 <= job.last_used_s - job.submitted_s < 30
    assert not [r for r in client.reports("shell") if r.data.get("kind") == "session"]


def test_usage_over_time_is_the_same_by_command_and_by_api(cell, client: Client, tmp_path) -> None:
    client.submit(JobSpec("quick", argv=("true",), labels={"user": "ana"}))
    client.wait("quick", timeout_s=20.0)
    typed = json.loads(cell.tide("usage", "--by", "job", "--since", "10m", "--every", "1m", "--json").stdout)
    assert {row["job"] for row in typed["rows"]} == {"quick"}
    assert all(row["at_s"] % 60 == 0 for row in typed["rows"])
    asked = client.usage("job", typed["since_s"], typed["until_s"], 60.0)
    assert [(r.job, r.at_s, r.starts) for r in asked.rows] == [
        (r["job"], r["at_s"], r.get("starts", 0)) for r in typed["rows"]
    ]
    pytest.importorskip("matplotlib")
    picture = tmp_path / "usage.png"
    cell.tide("usage", "--by", "job", "--since", "10m", "--every", "1m", "--plot", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
    done = cell.tide("usage", "--plot", str(picture), check=False)
    assert done.returncode != 0
    assert "say how long a step is: --every 1h" in done.stderr
