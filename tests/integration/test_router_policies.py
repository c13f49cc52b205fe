"""Policies in a real router process, by the table that is pushed to it."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from router_harness import (
    Answer,
    ReplicaProcess,
    RouterProcess,
    connect,
    encode,
    read_answer,
    request,
    wait_until,
)

from tidecell.sim.requests import load_of, read_requests
from tidecell.structs.traffic import (
    Affinity,
    Canary,
    ConcurrencyPolicy,
    HedgePolicy,
    Key,
    Limits,
    Match,
    OverloadPolicy,
    Rule,
    Shadow,
    Tenant,
    TrafficPolicy,
)
from tidecell.traffic.table import Route, Table, hash_token


class Stage:
    """One router and two replicas."""

    def __init__(self, home: Path) -> None:
        self.replicas = [ReplicaProcess("a"), ReplicaProcess("b")]
        self.router = RouterProcess(home)

    def put(self, *routes: Route, **more: Any) -> None:
        table = Table(time.monotonic_ns(), 1, routes, **more)
        assert self.router.ask(lambda control: control.put_table(table)) == table.version

    def ask(self, token: str = "", fields: dict[str, str] | None = None, **body: Any) -> Answer:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        raw = encode(
            "/v1/completions", json.dumps({"model": "m", **body}).encode(), **headers, **(fields or {})
        )
        with connect(self.router.port) as sock:
            sock.sendall(raw)
            return read_answer(sock)

    def close(self) -> None:
        self.router.kill()
        for replica in self.replicas:
            replica.kill()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    one = Stage(tmp_path)
    yield one
    one.close()


def chat(stage: Stage, policy: TrafficPolicy | None = None, name: str = "chat") -> Route:
    endpoints = tuple(replica.endpoint() for replica in stage.replicas)
    return Route(name, ("m",), endpoints, traffic=policy or TrafficPolicy())


def test_a_tenants_tokens_are_reserved_and_settled_by_what_was_used(stage: Stage) -> None:
    key = hash_token("secret")
    tenants = (Tenant("acme", (Key("k", key),), Limits(tokens_per_minute=120)),)
    stage.put(chat(stage), tokens=(key,), tenants=tenants)
    assert stage.ask("secret", max_tokens=80, tokens=5).status == 200  # it cost 3 + 5
    assert stage.ask("secret", max_tokens=80, tokens=5).status == 200
    refused = stage.ask("secret", max_tokens=100, tokens=5)
    assert refused.status == 429
    assert refused.json()["error"]["code"] == "limit_tokens_per_minute"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert "tenant acme has used 16 of 120 tokens per minute" in refused.json()["error"]["message"]


def test_a_rule_sends_some_users_to_a_canary(stage: Stage) -> None:
    first, second = (replica.endpoint() for replica in stage.replicas)
    rule = Rule("beta", Match(headers={"x-beta": "yes"}), canary=Canary("new", 1.0))
    stage.put(Route("chat", ("m",), (first,)), Route("new", (), (second,)), rules=(rule,))
    assert stage.ask().json()["replica"] == "a"
    assert stage.ask(fields={"x_beta": "yes"}).json()["replica"] == "b"


@pytest.mark.parametrize("balance", ["prequal", "prefix", "least-tokens", "round-robin"])
def test_every_policy_serves_and_says_why(stage: Stage, balance: str) -> None:
    stage.put(chat(stage, TrafficPolicy(balance=balance, slow_start_s=0.0)))  # type: ignore[arg-type]
    chosen = Counter(stage.ask(tokens=1).json()["replica"] for _ in range(20))
    assert sum(chosen.values()) == 20
    choices = stage.router.stats().services["chat"].choices_total
    assert sum(choices.values()) == 20
    if balance == "round-robin":
        assert chosen == {"a": 10, "b": 10}


def test_a_session_stays_at_its_replica(stage: Stage) -> None:
    stage.put(chat(stage, TrafficPolicy(affinity=Affinity())))
    for session in ("s1", "s2", "s3"):
        seen = {stage.ask(fields={"x_session_id": session}).json()["replica"] for _ in range(8)}
        assert len(seen) == 1


def test_above_the_limit_the_more_critical_goes_first(stage: Stage) -> None:
    limit = ConcurrencyPolicy("fixed", initial=1)
    stage.put(chat(stage, TrafficPolicy(overload=OverloadPolicy(limit))))
    order: list[str] = []

    def send(level: str, wait_s: float) -> None:
        assert stage.ask(fields={"x_tide_criticality": level}, wait_s=wait_s).status == 200
        order.append(level)

    threads = [threading.Thread(target=send, args=("critical", 0.5))]
    threads[0].start()
    wait_until(lambda: stage.router.stats().services["chat"].in_flight == 1, "the first is under way")
    for num, level in enumerate(("sheddable", "critical-plus"), 1):
        threads.append(threading.Thread(target=send, args=(level, 0.3)))  # so long that answers do not race
        threads[-1].start()
        wait_until(lambda num=num: stage.router.stats().services["chat"].queued == num, f"{num} wait")
    for thread in threads:
        thread.join()
    assert order == ["critical", "critical-plus", "sheddable"]


def test_one_that_would_be_late_is_told_so_without_a_replica(stage: Stage) -> None:
    stage.put(chat(stage, TrafficPolicy(overload=OverloadPolicy(ConcurrencyPolicy("fixed", initial=1)))))
    first = threading.Thread(target=lambda: stage.ask(wait_s=1.0))
    first.start()
    wait_until(lambda: stage.router.stats().services["chat"].in_flight == 1, "the first is under way")
    late = stage.ask(fields={"x_tide_deadline_ms": "100"})
    first.join()
    assert late.status == 504
    assert late.json()["error"]["message"].startswith("the request's deadline passed")
    assert sum(replica.seen()["requests"] for replica in stage.replicas) == 1


def test_metrics_and_access_log_say_what_was_counted(stage: Stage) -> None:
    key = hash_token("secret")
    tenants = (Tenant("acme", (Key("k", key),), Limits(tokens_per_minute=500)),)
    stage.put(chat(stage), tokens=(key,), tenants=tenants)
    assert stage.ask("secret", max_tokens=5, stream=True, tokens=5, pace_s=0.02).status == 200
    assert stage.ask("secret", max_tokens=5, tokens=5).status == 200
    assert stage.ask("secret", max_tokens=900).status == 429
    text = stage.router.ask(lambda control: control.metrics())
    for line in (
        'duration_seconds_count{service="chat"} 2',
        'ttft_seconds_bucket{service="chat",le="+Inf"} 2',
        'token_gap_seconds_count{service="chat"} 1',
        'sheds_total{service="chat",reason="limit_tokens_per_minute"} 1',
    ):
        assert f"tidecell_router_{line}\n" in text
    firsts = re.findall(r'endpoint_ttft_seconds_count{service="chat",endpoint="[ab]"} (\d)', text)
    assert sum(map(int, firsts)) == 2
    lines = stage.router.access_lines(3)
    assert [(row["outcome"], row["choice"], row["schema"]) for row in lines] == [
        ("ok", "power-of-two", 2),
        ("ok", "power-of-two", 2),
        ("limit_tokens_per_minute", "", 2),
    ]


def test_a_recorded_trace_reads_back_without_what_was_said(tmp_path: Path) -> None:
    replica, router = ReplicaProcess("a"), RouterProcess(tmp_path, "--trace")
    try:
        router.put(Route("chat", ("m",), (replica.endpoint(),)))
        for ending in ("one", "two"):
            body = json.dumps({"model": "m", "prompt": "secret words " * 400 + ending, "tokens": 5}).encode()
            assert request(router.port, "/v1/completions", body).status == 200
        assert router.stop() == 0
    finally:
        router.kill()
        replica.kill()
    path = tmp_path / "router" / "trace.jsonl"
    rows = read_requests(path)
    assert [(row.service, row.input_length, row.output_length, row.outcome) for row in rows] == [
        ("chat", 3, 5, "ok")
    ] * 2
    assert len(rows[0].hash_ids) == 2
    assert rows[0].hash_ids == rows[1].hash_ids
    assert b"secret" not in path.read_bytes()
    load = load_of(rows)
    assert {point.service for point in load} == {"chat"}
    assert load[-1].ongoing == 0.0


def test_the_replica_is_told_the_level_that_counts(stage: Stage) -> None:
    tenants = (Tenant("low", (Key("k", hash_token("low")),), ceiling="sheddable-plus"),)
    tokens = (hash_token("low"), hash_token("any"))
    stage.put(chat(stage, TrafficPolicy(overload=OverloadPolicy())), tokens=tokens, tenants=tenants)

    def told(token: str, **fields: str) -> list[bytes]:
        answer = request(
            stage.router.port, "/services/chat/echo", b"{}", authorization=f"Bearer {token}", **fields
        )
        return re.findall(rb"x-tide-criticality: (\S+)", answer.body)

    assert told("any") == [b"critical"]  # the policy's, where the client says nothing
    assert told("any", x_tide_criticality="sheddable") == [b"sheddable"]
    assert told("any", x_tide_criticality="nonsense") == [b"critical"]
    assert told("low", x_tide_criticality="critical-plus") == [b"sheddable-plus"]


def test_an_alias_and_a_fallback_ask_the_replica_for_a_model_that_it_has(stage: Stage) -> None:
    first, second = (replica.endpoint() for replica in stage.replicas)
    rule = Rule("spare", Match(service="chat"), fallback=("small",))
    big, small = Route("chat", ("big",), (first,)), Route("small", ("little",), (second,))

    def echo(model: str) -> dict[str, Any]:
        body = b'{"model": "%b", "n": 1.50, "messages": [{"model": "x"}]}' % model.encode()
        answer = request(stage.router.port, "/v1/echo", body)
        assert answer.status == 200
        assert b'"n":1.50' in answer.body.replace(b" ", b"")  # the rest is as it was
        return json.loads(answer.body[answer.body.index(b"{") :])

    stage.put(big, small, rules=(rule,), aliases={"best": "big"})
    assert echo("big")["model"] == "big"
    assert echo("best")["model"] == "big"
    stage.put(Route("chat", ("big",)), small, rules=(rule,), aliases={"best": "big"})
    assert echo("best") == {"model": "little", "n": 1.5, "messages": [{"model": "x"}]}
    shadowed = Rule("copy", Match(service="chat"), shadow=Shadow("small"))
    stage.put(big, small, rules=(shadowed,))
    assert echo("big")["model"] == "big"
    lines = stage.router.access_lines(5)
    assert sorted(row["service"] for row in lines) == ["chat", "chat", "chat", "small", "small"]


def hedged(stage: Stage) -> None:
    """Put a table that hedges what takes longer than 0.1 s, and fill its memory with quick answers."""
    hedge = HedgePolicy(share=1.0, least_s=0.1, min_samples=5)
    stage.put(chat(stage, TrafficPolicy("round-robin", slow_start_s=0.0, hedge=hedge)))
    for _ in range(6):
        assert stage.ask(tokens=1).status == 200


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_slow_request_is_hedged_and_the_loser_is_cancelled(stage: Stage, is_stream: bool) -> None:
    hedged(stage)
    began_s = time.monotonic()
    answers = [stage.ask(slow_at="a", wait_s=30.0, stream=is_stream, tokens=3) for _ in range(2)]
    assert time.monotonic() - began_s < 15.0  # one of the two began at the slow replica
    assert all(answer.status == 200 and answer.is_complete for answer in answers)
    wait_until(lambda: stage.replicas[0].seen()["aborted"], "the slow replica is told")
    stats = stage.router.stats().services["chat"]
    assert 1 <= stats.hedges_won_total <= stats.hedges_total
    assert (stats.ok_total, stats.in_flight) == (8, 0)
    hedges = [row for row in stage.router.access_lines(8) if row["choice"] == "hedge"]
    assert ("b", "ok") in [(row["endpoint"], row["outcome"]) for row in hedges]


def test_a_hedge_that_loses_or_fails_is_dropped(stage: Stage) -> None:
    hedged(stage)
    assert stage.ask(wait_s=0.4, tokens=3).status == 200  # both are slow: the first was asked earlier
    wait_until(lambda: any(replica.seen()["aborted"] for replica in stage.replicas), "one is told")
    stage.replicas[1].kill()
    for _ in range(2):
        assert stage.ask(wait_s=0.3, tokens=3).status == 200
    stats = stage.router.stats().services["chat"]
    assert (stats.ok_total, stats.in_flight) == (9, 0)
    assert stats.hedges_total >= 1
    wait_until(lambda: stage.replicas[0].seen()["open"] == 0, "nothing is left open")


def test_a_client_that_leaves_ends_both_attempts(stage: Stage) -> None:
    hedged(stage)
    with connect(stage.router.port) as sock:
        sock.sendall(encode("/v1/completions", b'{"model": "m", "wait_s": 30}'))
        wait_until(lambda: all(replica.seen()["open"] for replica in stage.replicas), "both work")
    wait_until(lambda: not any(replica.seen()["open"] for replica in stage.replicas), "neither works")
    wait_until(lambda: stage.router.stats().services["chat"].in_flight == 0, "nothing is in flight")


def test_retries_stay_within_their_budget(stage: Stage) -> None:
    stage.put(chat(stage))
    for _ in range(60):
        assert stage.ask(act="hang_up").status == 502
    attempts = sum(replica.seen()["requests"] for replica in stage.replicas)
    retries = stage.router.stats().services["chat"].retries_total
    assert attempts == 60 + retries
    # A request's first retry is free; the budget pays for what follows: ten, and a tenth of the requests.
    assert 60 <= retries <= 60 + 10 + 6
