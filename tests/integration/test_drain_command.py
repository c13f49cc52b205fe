"""`tide drain` on a cell of one machine: real processes get notice, and come back when it is over."""

from __future__ import annotations

from collections.abc import Callable

from test_services import _elastic, _service

from tidecell.client.client import Client
from tidecell.structs.job import Replicas, TaskState


def test_a_drain_empties_the_machine_by_its_deadline_and_work_returns_after_it(
    cell, client: Client, wait_until: Callable[..., None]
) -> None:
    client.submit(_service("web", Replicas(1, 1)))
    client.submit(_elastic("train", 500))
    client.wait("web", "ready", timeout_s=20)
    wait_until(lambda: sum("listening" in line.text for line in client.logs("train")) == 2)
    (machine,) = client.machines()
    shown = cell.tide("drain", machine.name, "--deadline", "2s", "--wait").stdout
    assert "drained" in shown
    assert client.job("web").state is TaskState.PENDING
    assert "notice drain 0" in "".join(line.text for line in client.logs("train"))
    assert "drained" in cell.tide("machines").stdout
    why = cell.tide("why", "web").stdout
    assert f"{machine.name}: is being drained" in why
    assert f"tide drain {machine.name} --cancel" in why
    assert any("is drained by owner" in e.text for e in client.events(limit=500))
    cell.tide("drain", machine.name, "--cancel")
    wait_until(lambda: client.job("web").ready == 1 and client.job("train").running == 2)
    assert client.machines()[0].drain is None
    client.stop("train", now=True)


def test_an_interruption_notice_drains_the_machine(stopped_cell, wait_until: Callable[..., None]) -> None:
    notice = stopped_cell.home.path.parent / "interruption"
    client = stopped_cell.up("--interruption", str(notice))
    client.submit(_elastic("train", 500))
    wait_until(lambda: sum("listening" in line.text for line in client.logs("train")) == 2)
    notice.write_text("60")
    wait_until(lambda: client.machines()[0].drain is not None, what="the drain")
    wait_until(lambda: client.job("train").running == 0)
    drain = client.machines()[0].drain
    assert drain is not None
    assert drain.who == "an interruption notice"
    assert 20 < drain.deadline_s - drain.start_s <= 30
    assert "notice drain 0" in "".join(line.text for line in client.logs("train"))
    client.stop("train", now=True)
