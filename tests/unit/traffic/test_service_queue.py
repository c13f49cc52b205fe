"""A service's queue in front of a learned limit."""

from __future__ import annotations

from random import Random

from tidecell.structs.traffic import ConcurrencyPolicy, OverloadPolicy, TrafficPolicy
from tidecell.traffic.fleet import Fleet, Replica, Service
from tidecell.traffic.http1 import parse_request
from tidecell.traffic.policies import TrafficPolicies
from tidecell.traffic.policy import Decision, End, Facts
from tidecell.traffic.table import Endpoint, Route, Table

HEAD = parse_request(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n")
OK = End("ok", 200, None, None, 0, 1.0, 1.0)


class Waiting:
    """A request that goes to a replica or waits, as an exchange does."""

    def __init__(
        self, name: str, service: Service, log: list[str], sequence: int, decision: Decision
    ) -> None:
        self.name, self.service, self.log = name, service, log
        self.sequence, self.decision = sequence, decision
        self.is_queued = False
        self.replica: Replica | None = None
        self.facts = Facts("chat", "", "", False, 0, "", 0, HEAD, b"", 0.0)

    def dispatch(self) -> None:
        if self.decision.deadline_s <= 1.0:
            self.log.append(f"{self.name} late")
            return
        self.replica = self.service.pick(self.facts, 1.0)
        if self.replica is not None:
            self.replica.load.in_flight += 1
            self.service.balancer.on_start(self.replica.load, self.facts, 1.0)
            self.log.append(self.name)
        elif not self.service.enqueue(self):
            self.log.append(f"{self.name} refused")

    def service_removed(self) -> None:
        self.log.append(f"{self.name} removed")

    def shed(self) -> None:
        self.log.append(f"{self.name} shed")

    def end(self) -> None:
        assert self.replica is not None
        self.service.balancer.on_end(self.replica.load, self.facts, OK, 1.0)
        self.service.release(self.replica)


class Stage:
    """One service of two replicas whose limit is one request."""

    def __init__(self, max_queue: int = 10) -> None:
        policy = TrafficPolicy(overload=OverloadPolicy(ConcurrencyPolicy("fixed", initial=1), max_queue))
        endpoints = (Endpoint("a", "h", 1), Endpoint("b", "h", 2))
        table = Table(1, 1, (Route("chat", (), endpoints, max_queue, traffic=policy),))
        fleet = Fleet(Random(1), lambda: 1.0)
        fleet.apply(table, TrafficPolicies(table, Random(1)))
        self.service = fleet.services["chat"]
        self.log: list[str] = []
        self.number = 0

    def ask(self, name: str, rank: int = 1, tenant: str = "", deadline_s: float = 99.0) -> Waiting:
        self.number += 1
        decision = Decision(rank=rank, tenant=tenant, deadline_s=deadline_s)
        one = Waiting(name, self.service, self.log, self.number, decision)
        one.dispatch()
        return one


def test_above_the_limit_requests_wait_and_go_by_criticality() -> None:
    stage = Stage()
    first = stage.ask("first")
    stage.ask("low", rank=3)
    second = stage.ask("high", rank=0)
    assert stage.log == ["first"]
    first.end()
    assert stage.log == ["first", "high"]
    second.end()
    assert stage.log == ["first", "high", "low"]
    assert stage.service.num_queued == 0


def test_tenants_take_turns() -> None:
    stage = Stage()
    now = stage.ask("first")
    waiting = [stage.ask(f"flood{i}", tenant="flood") for i in range(3)] + [stage.ask("quiet", tenant="q")]
    now.end()
    next(one for one in waiting if one.replica is not None).end()
    assert "quiet" in stage.log[1:3]


def test_a_full_queue_makes_room_for_the_more_critical() -> None:
    stage = Stage(max_queue=1)
    stage.ask("first")
    stage.ask("low", rank=3)
    stage.ask("high", rank=0)
    stage.ask("other", rank=3)
    assert stage.log == ["first", "low shed", "other refused"]
    assert stage.service.num_queued == 1


def test_one_that_left_takes_no_place_and_no_turn() -> None:
    stage = Stage(max_queue=1)
    first = stage.ask("first")
    gone = stage.ask("gone")
    stage.service.leave_queue(gone)
    stage.ask("next")
    first.end()
    assert stage.log == ["first", "next"]


def test_one_whose_deadline_passed_is_told_so_when_its_turn_comes() -> None:
    stage = Stage()
    first = stage.ask("first")
    late = stage.ask("late")
    late.decision = Decision(deadline_s=0.5)
    stage.service._queue._lanes[1][""].entries[0].deadline_s = 0.5
    stage.ask("next")
    first.end()
    assert stage.log == ["first", "late late", "next"]


def test_a_service_that_is_removed_ends_those_who_wait() -> None:
    stage = Stage()
    stage.ask("first")
    stage.ask("waits")
    stage.service.remove(1.0)
    assert stage.log == ["first", "waits removed"]
