"""The task's side of the contract: notices, membership, reports, an agent that goes away."""

from __future__ import annotations

import json
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tidecell.task_link import AgentLink, Member, Membership, Notice, notice_from


class Listener:
    """The agent's end of the socket."""

    def __init__(self, path: str) -> None:
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(path)
        self._server.listen()
        self._server.settimeout(10)
        self.connection: socket.socket | None = None

    def accept(self) -> None:
        self.connection, _ = self._server.accept()
        self.connection.settimeout(10)
        self._lines = self.connection.makefile("rb")

    def heard(self) -> dict[str, Any]:
        return json.loads(self._lines.readline())

    def say(self, *messages: dict[str, Any]) -> None:
        assert self.connection is not None
        self.connection.sendall(b"".join(json.dumps(m).encode() + b"\n" for m in messages))

    def hang_up(self) -> None:
        assert self.connection is not None
        self._lines.close()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()

    def close(self) -> None:
        if self.connection is not None:
            self._lines.close()
            self.connection.close()
        self._server.close()


@pytest.fixture
def agent() -> Iterator[Listener]:
    with tempfile.TemporaryDirectory() as directory:
        listener = Listener(str(Path(directory) / "a.sock"))
        listener.path = str(Path(directory) / "a.sock")  # type: ignore[attr-defined]
        yield listener
        listener.close()


@pytest.fixture
def link(agent: Listener) -> Iterator[AgentLink]:
    link = AgentLink(agent.path, "train.1", 1, 2, 7)  # type: ignore[attr-defined]
    agent.accept()
    yield link
    link.close()


def group(generation: int, *indices: int) -> dict[str, Any]:
    members = [{"index": i, "endpoint": f"h:{i}"} for i in indices]
    return {"type": "group", "generation": generation, "members": members}


def test_it_says_hello_first(agent: Listener, link: AgentLink) -> None:
    assert agent.heard() == {"type": "hello", "uid": "train.1", "index": 1, "attempt": 2, "epoch": 7}


def test_a_notice_is_taken(agent: Listener, link: AgentLink) -> None:
    assert link.notice is None
    message = {"type": "notice", "action": "stop", "cause": "preempt", "deadline_s": 20.0, "grace_s": 30.0}
    agent.say({**message, "new_size": 1, "by": "chat"})
    assert link.wait(lambda: link.notice is not None, 10)
    notice = link.notice
    assert notice is not None
    assert (notice.cause, notice.new_size, notice.by, notice.grace_s) == ("preempt", 1, "chat", 30.0)
    assert 0 < notice.remaining_s <= 20.0
    assert notice.deadline == pytest.approx(time.time() + 20, abs=10)


def test_the_newest_generation_wins_and_an_old_one_is_dropped(agent: Listener, link: AgentLink) -> None:
    agent.say(group(3, 0, 1), group(2, 1), {"type": "something new"}, group(4, 1))
    assert link.wait(lambda: link.group is not None and link.group.generation == 4, 10)
    assert link.group == Membership(4, (Member(1, "h:1"),))


def test_ready_reports_and_release_are_one_line_each(agent: Listener, link: AgentLink) -> None:
    agent.heard()
    link.ready("h:1")
    link.report({"kind": "train", "step": 4})
    link.released()
    assert agent.heard() == {"type": "ready", "endpoint": "h:1", "generation": 0}
    assert agent.heard() == {"type": "report", "data": {"kind": "train", "step": 4}}
    assert agent.heard() == {"type": "released", "generation": 0}


def test_after_an_agents_restart_it_says_hello_and_ready_with_what_it_knows(
    agent: Listener, link: AgentLink
) -> None:
    agent.heard()
    link.ready("h:1")
    agent.heard()
    agent.say(group(6, 0, 1))
    assert link.wait(lambda: link.group is not None, 10)
    agent.hang_up()
    agent.accept()
    assert agent.heard()["type"] == "hello"
    assert agent.heard() == {"type": "ready", "endpoint": "h:1", "generation": 6}
    assert link.wait(lambda: link.down_since is None, 10)


def test_without_an_agent_nothing_is_sent_or_received() -> None:
    link = AgentLink("")
    assert link.send({"type": "report", "data": {}}) is False
    assert link.notice is None
    assert link.group is None


def test_a_signals_notice_does_not_replace_the_agents() -> None:
    link = AgentLink("")
    first = Notice("stop", "preempt", 1.0, 1.0, 1)
    link.put_notice(first)
    link.put_notice(Notice("stop", "signal", 2.0, 2.0, -1))
    assert link.notice == first


def test_waiting_ends_with_the_time_or_the_event() -> None:
    link = AgentLink("")
    assert link.wait(lambda: False, 0.01) is False
    threading.Thread(target=lambda: link.put_notice(notice_from({"cause": "drain"}))).start()
    assert link.wait(lambda: link.notice is not None, 10)


@pytest.mark.parametrize(
    ("new", "lacks"),
    [
        (((0, "h:0"), (1, "h:1"), (2, "h:2")), False),
        (((0, "h:0"),), True),
        (((0, "h:0"), (1, "h:9")), True),
    ],
)
def test_a_member_that_left_or_came_back_anew_is_missing(
    new: tuple[tuple[int, str], ...], lacks: bool
) -> None:
    before = Membership(1, (Member(0, "h:0"), Member(1, "h:1")))
    assert Membership(2, tuple(Member(*m) for m in new)).lacks(before) is lacks


def test_rank_is_the_place_in_the_generation() -> None:
    members = Membership(1, (Member(2, "a"), Member(5, "b")))
    assert [members.rank_of(i) for i in (2, 5, 3)] == [0, 1, None]
