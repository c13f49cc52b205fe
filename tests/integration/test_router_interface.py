"""What the data plane asks policies and tells them, with a router in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

from router_harness import ReplicaProcess, ask

from tidecell.traffic.policy import ADMIT, Decision, End, Facts
from tidecell.traffic.replies import error
from tidecell.traffic.request import Limits
from tidecell.traffic.router import Router
from tidecell.traffic.table import Route, Table


class Recorder:
    """Admission and balancer at once: notes all calls."""

    def __init__(self, decision: Decision = ADMIT) -> None:
        self.decision = decision
        self.calls: list[tuple] = []
        self.reason = "always the first"
        self.reasons: dict[str, int] = {}
        self.learns = True

    def admit(self, facts: Facts, now_s: float) -> Decision:
        self.calls.append(("admit", facts.service, facts.model, facts.stream, facts.max_tokens, facts.user))
        return self.decision

    def settle(self, facts: Facts, end: End, now_s: float) -> None:
        self.calls.append(("settle", end.outcome, end.status, end.tokens_in, end.tokens_out))

    def has_room(self) -> bool:
        return True

    def pick(self, loads: list, facts: Facts, now_s: float) -> int:
        return 0

    def on_start(self, load: object, facts: Facts, now_s: float) -> None:
        self.calls.append(("start", load.id))

    def on_first_byte(self, load: object, facts: Facts, ttft_ms: float, now_s: float) -> None:
        self.calls.append(("first byte", load.id))

    def on_end(self, load: object, facts: Facts, end: End, now_s: float) -> None:
        self.calls.append(("end", load.id, end.outcome))


def story(home: Path, recorder: Recorder, tell: Callable[[Router], Awaitable[None]]) -> Router:
    """Run a router with replicas a and b for ``chat`` and c for ``web``."""
    replicas = [ReplicaProcess(name) for name in "abc"]
    a, b, c = (replica.endpoint() for replica in replicas)

    async def run() -> Router:
        router = Router(home, Limits(), Random(1))
        await router.put_table(Table(1, 1, (Route("chat", ("m",), (a, b)), Route("web", ("w",), (c,)))))
        router.policies.admission = recorder
        for service in router.fleet.services.values():
            service.use(recorder)
        await router.listen("127.0.0.1", 0)
        await tell(router)
        await router.shut_down()
        return router

    try:
        return asyncio.run(run())
    finally:
        for replica in replicas:
            replica.kill()


def test_every_attempt_and_every_request_is_told_of_once(tmp_path: Path) -> None:
    recorder = Recorder()

    async def tell(router: Router) -> None:
        answer = await asyncio.to_thread(ask, router.port, max_tokens=7, user="u")
        assert answer.status == 200
        assert (await asyncio.to_thread(ask, router.port, status=503)).status == 503

    story(tmp_path, recorder, tell)
    assert recorder.calls[:5] == [
        ("admit", "chat", "m", False, 7, "u"),
        ("start", "a"),
        ("first byte", "a"),
        ("end", "a", "ok"),
        ("settle", "ok", 200, 3, 5),
    ]
    assert recorder.calls[5:] == [
        ("admit", "chat", "m", False, 0, ""),
        ("start", "a"),
        ("end", "a", "retried"),
        ("start", "b"),
        ("first byte", "b"),
        ("end", "b", "upstream_5xx"),
        ("settle", "upstream_5xx", 503, 3, 5),
    ]


def test_a_refusal_of_the_policies_is_the_answer_and_nothing_starts(tmp_path: Path) -> None:
    recorder = Recorder(Decision(refusal=error(429, "too many", "over_limit", retry_after_s=3)))

    async def tell(router: Router) -> None:
        answer = await asyncio.to_thread(ask, router.port)
        assert (answer.status, answer.headers["retry-after"]) == (429, "3")
        assert answer.json()["error"]["code"] == "over_limit"

    router = story(tmp_path, recorder, tell)
    assert recorder.calls == [("admit", "chat", "m", False, 0, "")]
    assert router.stats().refused_total == {"over_limit": 1}


def test_another_service_may_serve_and_a_third_see_a_copy(tmp_path: Path) -> None:
    recorder = Recorder(Decision(service="web", shadow="chat"))

    async def tell(router: Router) -> None:
        answer = await asyncio.to_thread(ask, router.port)
        assert answer.json()["replica"] == "c"
        while router.exchanges:
            await asyncio.sleep(0.01)
        counts = {name: service.meter.ok_total for name, service in router.fleet.services.items()}
        assert counts == {"web": 1, "chat": 1}

    story(tmp_path, recorder, tell)
    assert [call[0] for call in recorder.calls].count("settle") == 1


def test_a_request_whose_deadline_has_passed_is_not_sent(tmp_path: Path) -> None:
    recorder = Recorder(Decision(deadline_s=0.0))

    async def tell(router: Router) -> None:
        answer = await asyncio.to_thread(ask, router.port)
        assert (answer.status, answer.json()["error"]["code"]) == (504, "late")

    story(tmp_path, recorder, tell)
    assert [call[0] for call in recorder.calls] == ["admit", "settle"]
