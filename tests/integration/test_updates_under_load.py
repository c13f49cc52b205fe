"""Changed specs of live services with real processes: no request is lost, and there is a way back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import yaml
from test_services import SERVER, Load

from tidecell.client.client import Client

SPEC = {
    "kind": "service",
    "name": "web",
    "run": [sys.executable, "-c", SERVER],
    "env": {"SLOW": "0.02", "RELEASE": "1"},
    "resources": {"cpu": 0.25},
    "replicas": 2,
    "grace_period": "10s",
    "probes": {"ready": "/health"},
    "update": {"max_surge": 1, "healthy_after": "300ms", "deadline": "20s"},
}


def write(folder: Path, **changes: object) -> str:
    path = folder / "web.yaml"
    path.write_text(yaml.safe_dump({**SPEC, **changes}))
    return str(path)


def is_settled(client: Client, version: int) -> bool:
    job = client.job("web")
    running = [t for t in job.tasks if t.pid]
    new = all(t.version == version for t in running)
    return job.version == version and job.update is None and new and job.ready == len(running) == 2


def test_a_rolling_update_and_a_rollback_under_load_fail_no_request(
    cell, client: Client, wait_until: Callable[..., None], tmp_path: Path
) -> None:
    cell.tide("apply", "-y", "-f", write(tmp_path))
    client.wait("web", "ready", timeout_s=20)
    wait_until(lambda: client.job("web").ready == 2)
    with Load(client, "web", 6) as load:
        wait_until(lambda: len(load.statuses) > 50)
        shown = cell.tide("apply", "-y", "-f", write(tmp_path, env={"SLOW": "0.02", "RELEASE": "2"})).stdout
        assert "rolling update (up to 1 more, 0 missing): env.RELEASE: 1 -> 2" in shown
        least = 2
        while not is_settled(client, 2):
            least = min(least, client.job("web").ready)
        cell.tide("rollback", "web")
        wait_until(lambda: is_settled(client, 3), timeout_s=40)
        seen = len(load.statuses)
        wait_until(lambda: len(load.statuses) > seen + 30)
    assert set(load.statuses) == {200}
    assert least == 2
    history = cell.tide("history", "web").stdout
    assert "rollback to version 1" in history
    assert "env.RELEASE: 1 -> 2" in history


def test_a_version_that_cannot_start_reverts_by_itself_under_load(
    cell, client: Client, wait_until: Callable[..., None], tmp_path: Path
) -> None:
    cell.tide("apply", "-y", "-f", write(tmp_path))
    wait_until(lambda: client.job("web").ready == 2)
    with Load(client, "web", 4) as load:
        cell.tide("apply", "-y", "-f", write(tmp_path, run=["false"], retry={"max": 1}))
        wait_until(lambda: is_settled(client, 3), timeout_s=40)
    assert set(load.statuses) == {200}
    assert "back to version 1" in client.history("web")[-1].why


def test_labels_and_grace_period_change_in_place(
    cell, client: Client, wait_until: Callable[..., None], tmp_path: Path
) -> None:
    cell.tide("apply", "-y", "-f", write(tmp_path))
    wait_until(lambda: client.job("web").ready == 2)
    pids = sorted(t.pid for t in client.job("web").tasks)
    changed = cell.tide("apply", "-y", "-f", write(tmp_path, labels={"tier": "front"}, grace_period="3s"))
    assert "change web, in place: grace_period: 10s -> 3s; labels.tier: (none) -> front" in changed.stdout
    job = client.job("web")
    assert (job.labels["tier"], job.version) == ("front", 2)
    assert sorted(t.pid for t in job.tasks) == pids


HANGS = (
    SERVER.replace("class H", "BORN = time.time()\nclass H")
    .replace("def do_GET(self):", 'def do_GET(self):\n        if self.path == "/alive": self.hang()', 1)
    .replace(
        "    def log_message",
        '    def hang(self):\n        first = os.environ["TIDECELL_ATTEMPT"] == "1"\n'
        "        time.sleep(30 if first and time.time() > BORN + 1 else 0)\n    def log_message",
    )
)


def test_a_replica_that_hangs_is_started_again_by_its_liveness_probe(
    cell, client: Client, wait_until: Callable[..., None], tmp_path: Path
) -> None:
    probes = {"ready": "/health", "alive": "/alive", "every": "200ms", "failures": 1}
    path = write(tmp_path, run=[sys.executable, "-c", HANGS], probes=probes, replicas=1, grace_period="1s")
    cell.tide("apply", "-y", "-f", path)
    wait_until(lambda: client.job("web").tasks[0].attempt == 2 and client.job("web").ready == 1)
    assert any("told to leave: unhealthy" in e.text for e in client.events("web", limit=100))
