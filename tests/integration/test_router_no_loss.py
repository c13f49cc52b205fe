"""No admitted request is lost in drains, crashes, restarts and waits, judged by the clients' ledger."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from router_harness import (
    Load,
    ReplicaProcess,
    RouterProcess,
    ask,
    completion,
    connect,
    request,
    route,
    wait_until,
)
from router_replica import stream_body

from tidecell.traffic.http1 import Chunks
from tidecell.traffic.table import Endpoint


class Stage:
    """A router and replicas made as the story needs them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.replicas: list[ReplicaProcess] = []
        self.router = RouterProcess(home)

    def replica(self, name: str, port: int = 0) -> ReplicaProcess:
        self.replicas.append(ReplicaProcess(name, port))
        return self.replicas[-1]

    def restart_router(self) -> None:
        self.router = RouterProcess(self.home, "--port", str(self.router.port))

    def close(self) -> None:
        for process in (self.router, *self.replicas):
            process.kill()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.close()


def in_background(call: object) -> tuple[threading.Thread, list]:
    """Run ``call`` in a thread; its result is appended to the list."""
    results: list = []
    thread = threading.Thread(target=lambda: results.append(call()))  # type: ignore[operator]
    thread.start()
    return thread, results


def test_a_drained_replica_finishes_what_it_has_and_gets_nothing_new(stage: Stage) -> None:
    a, b = stage.replica("a"), stage.replica("b")
    stage.router.put(route(a.endpoint(), b.endpoint()))
    body = stream_body(20)
    with Load(stage.router.port, 6, body, stream=True, tokens=20, pace_s=0.005) as load:
        load.wait_for(20)
        stage.router.put(route(a.endpoint("draining"), b.endpoint()))
        after_drain = stage.router.stats().services["chat"].endpoints["a"].requests
        wait_until(lambda: stage.router.stats().in_flight("a") == 0, "a has drained")
        a.kill()  # at zero in flight nobody misses it
        load.wait_for(20)
        assert stage.router.stats().services["chat"].endpoints["a"].requests == after_drain
    assert load.ledger.failed == {}
    assert load.ledger.num_ok >= 40


def test_an_endpoint_that_left_the_table_stays_in_the_stats_until_it_is_idle(stage: Stage) -> None:
    a = stage.replica("a")
    stage.router.put(route(a.endpoint()))
    thread, results = in_background(lambda: ask(stage.router.port, wait_s=1.0))
    wait_until(lambda: stage.router.stats().in_flight("a") == 1, "in flight")
    stage.router.put(route())
    assert stage.router.stats().services["chat"].endpoints["a"].state == "gone"
    assert stage.router.stats().in_flight("a") == 1
    thread.join()
    assert results[0].status == 200
    assert "a" not in stage.router.stats().services["chat"].endpoints


def test_replicas_come_and_go_under_load_without_a_failed_request(stage: Stage) -> None:
    a, b, c = (stage.replica(name) for name in "abc")
    stage.router.put(route(a.endpoint()))
    with Load(stage.router.port, 8, tokens=30, wait_s=0.002) as load:
        for endpoints in ((a, b), (a, b, c), (b, c), (c,), (), (a,), (a, b, c)):
            stage.router.put(route(*(replica.endpoint() for replica in endpoints)))
            if endpoints:
                load.wait_for(25)
    assert load.ledger.failed == {}
    assert load.ledger.num_ok >= 150


def test_a_replica_killed_under_load_costs_no_request_that_had_no_answer_yet(stage: Stage) -> None:
    a, b = stage.replica("a"), stage.replica("b")
    stage.router.put(route(a.endpoint(), b.endpoint()))
    with Load(stage.router.port, 6, tokens=5, wait_s=0.05) as load:
        load.wait_for(12)
        a.kill()
        load.wait_for(40)
    assert load.ledger.failed == {}
    assert stage.router.stats().services["chat"].retries_total > 0


def test_the_only_replica_is_restarted_on_its_port_and_no_request_fails(stage: Stage) -> None:
    a = stage.replica("a")
    stage.router.put(route(a.endpoint()))
    with Load(stage.router.port, 4, wait_s=0.01) as load:
        load.wait_for(10)
        a.kill()
        wait_until(lambda: stage.router.stats().services["chat"].queued >= 3, "requests wait")
        stage.replica("a", a.port)
        load.wait_for(20)
    assert load.ledger.failed == {}


def test_a_request_that_kills_its_replica_goes_to_another_and_then_gets_a_502(stage: Stage) -> None:
    replicas = [stage.replica(name) for name in "abcdef"]
    stage.router.put(route(*(replica.endpoint() for replica in replicas)))
    answer = ask(stage.router.port, act="die")
    assert answer.status == 502
    assert answer.json()["error"]["code"] == "upstream_lost"
    num_dead = sum(replica.popen.poll() is not None for replica in replicas)
    assert 2 <= num_dead <= 4
    assert ask(stage.router.port).status == 200


def test_an_answer_cut_in_the_middle_reaches_the_client_as_cut_and_is_not_retried(stage: Stage) -> None:
    a, b = stage.replica("a"), stage.replica("b")
    stage.router.put(route(a.endpoint(), b.endpoint()))
    streamed = ask(stage.router.port, act="cut", stream=True, tokens=20)
    whole = ask(stage.router.port, act="cut", tokens=50)
    assert (streamed.status, streamed.is_complete) == (200, False)
    assert (whole.status, whole.is_complete) == (200, False)
    lines = stage.router.access_lines(2)
    assert [line["outcome"] for line in lines] == ["stream_broken", "stream_broken"]
    assert [line["retries"] for line in lines] == [0, 0]


def test_a_stale_pooled_connection_is_replaced_without_counting_as_a_failure(stage: Stage) -> None:
    a = stage.replica("a")
    stage.router.put(route(a.endpoint()))
    with Load(stage.router.port, 3, act="close_after") as load:
        load.wait_for(60)
    endpoint = stage.router.stats().services["chat"].endpoints["a"]
    assert load.ledger.failed == {}
    assert endpoint.failures == 0


def test_a_body_that_is_passed_through_is_not_lost_with_a_stale_connection(stage: Stage) -> None:
    body = b"x" * 9_000_000
    got: list[int] = []

    def serve(listener: socket.socket) -> None:
        first, _ = listener.accept()
        first.recv(65536)
        first.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        second, _ = listener.accept()  # a replica that would hang up on a second request on the first one
        first.close()
        with second, second.makefile("rb") as file:
            while file.readline() != b"\r\n":
                pass
            got.append(len(file.read(len(body))))
            second.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread, _ = in_background(lambda: serve(listener))
        stage.router.put(route(Endpoint("x", "127.0.0.1", listener.getsockname()[1])))
        assert request(stage.router.port, "/services/chat/").status == 200
        assert request(stage.router.port, "/services/chat/", body).status == 200
        thread.join()
    assert got == [len(body)]


def test_requests_wait_while_nothing_is_ready_and_are_served_once_something_is(stage: Stage) -> None:
    stage.router.put(route())
    pending = [in_background(lambda: ask(stage.router.port)) for _ in range(5)]
    wait_until(lambda: stage.router.stats().services["chat"].queued == 5, "five wait")
    assert stage.router.stats().services["chat"].ongoing == 5
    stage.router.put(route(stage.replica("a").endpoint()))
    for thread, results in pending:
        thread.join()
        assert results[0].status == 200
    assert stage.router.stats().services["chat"].queued == 0
    assert min(line["queue_ms"] for line in stage.router.access_lines(5)) > 0


def test_a_stream_that_waits_is_told_so_in_comments_and_then_gets_its_tokens(stage: Stage) -> None:
    stage.router.put(route())
    with connect(stage.router.port) as sock:
        sock.sendall(completion(stream=True, tokens=20) * 2)  # the second one on the same connection
        early = b""
        while b": waiting for a replica of chat since 2 s, 0 others wait" not in early:
            early += sock.recv(4096)
        assert early.startswith(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n")
        stage.router.put(route(stage.replica("a").endpoint()))
        rest = b""
        while rest.count(b"\r\n0\r\n\r\n") < 2:
            rest += sock.recv(65536)
    first, _, second = (early + rest).partition(b"0\r\n\r\nHTTP/1.1 200")
    assert payload(first.partition(b"\r\n\r\n")[2] + b"0\r\n\r\n").endswith(b"\n\n" + stream_body(20))
    assert payload(second.partition(b"\r\n\r\n")[2]) == stream_body(20)
    assert [line["outcome"] for line in stage.router.access_lines(2)] == ["ok", "ok"]


def test_an_error_after_the_stream_began_arrives_as_an_event(stage: Stage) -> None:
    stage.router.put(route(queue_timeout_s=2.6))
    late = ask(stage.router.port, stream=True)
    assert (late.status, late.is_complete) == (200, True)
    comment, data = late.body.decode().split("\n\n")[:2]
    assert comment.startswith(": waiting")
    assert json.loads(data.removeprefix("data: "))["error"]["code"] == "queue_timeout"


def payload(chunks: bytes) -> bytes:
    parts: list[bytes] = []
    Chunks().feed(chunks, parts)
    return b"".join(parts)


def test_waiting_has_a_deadline_and_the_queue_a_bound(stage: Stage) -> None:
    stage.router.put(route(max_queue=1, queue_timeout_s=0.5))
    thread, results = in_background(lambda: ask(stage.router.port))
    wait_until(lambda: stage.router.stats().services["chat"].queued == 1, "one waits")
    full = ask(stage.router.port)
    assert (full.status, full.json()["error"]["code"]) == (503, "queue_full")
    assert full.headers["retry-after"] == "1"
    thread.join()
    late = results[0]
    assert (late.status, late.json()["error"]["code"]) == (504, "queue_timeout")
    assert late.json()["error"]["message"] == "no replica of 'chat' was ready within 0.5 s"
    assert late.headers["retry-after"] == "5"


def test_a_service_that_is_removed_ends_the_requests_that_wait_for_it(stage: Stage) -> None:
    stage.router.put(route())
    thread, results = in_background(lambda: ask(stage.router.port))
    wait_until(lambda: stage.router.stats().services["chat"].queued == 1, "one waits")
    stage.router.put()
    thread.join()
    assert (results[0].status, results[0].json()["error"]["code"]) == (503, "removed")
    assert stage.router.stats().services == {}


def test_a_503_is_tried_on_another_replica_and_passed_on_where_there_is_none(stage: Stage) -> None:
    a = stage.replica("a")
    stage.router.put(route(a.endpoint()))
    assert ask(stage.router.port, status=503).status == 503
    stage.router.put(route(a.endpoint(), stage.replica("b").endpoint()))
    assert ask(stage.router.port, status=503).status == 503  # both refuse: the last one's answer counts
    assert [line["retries"] for line in stage.router.access_lines(2)] == [0, 1]


def test_the_router_serves_on_without_its_control_socket(stage: Stage) -> None:
    a = stage.replica("a")
    stage.router.put(route(a.endpoint()))
    stage.router.socket.unlink()
    with Load(stage.router.port, 2) as load:
        load.wait_for(20)
    assert load.ledger.failed == {}


def test_a_restarted_router_serves_the_last_table_before_anybody_pushes_one(stage: Stage) -> None:
    a = stage.replica("a")
    stage.router.put(route(a.endpoint()), version=7)
    assert (stage.home / "router" / "table.json").stat().st_mode & 0o777 == 0o600
    stage.router.kill()
    stage.restart_router()
    assert ask(stage.router.port).status == 200
    assert stage.router.stats().version == 7


def test_while_a_router_that_was_killed_starts_again_nobody_is_refused(tmp_path: Path) -> None:
    """The socket is kept by the test here, by the agent in a cell."""
    replica = ReplicaProcess("a")
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        options = ("--listen-fd", str(listener.fileno()))
        port = listener.getsockname()[1]
        router = RouterProcess(tmp_path, *options, keep=(listener.fileno(),))
        try:
            assert router.port == port
            router.put(route(replica.endpoint()))
            for _ in range(3):
                router.kill()
                waiting = [in_background(lambda: ask(port)) for _ in range(8)]
                router = RouterProcess(tmp_path, *options, keep=(listener.fileno(),))
                for thread, results in waiting:
                    thread.join()
                    assert results[0].status == 200
        finally:
            router.kill()
            replica.kill()


def test_two_routers_share_a_port(tmp_path: Path) -> None:
    replica = ReplicaProcess("a")
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = RouterProcess(tmp_path / "one", "--reuse-port")
    two = RouterProcess(tmp_path / "two", "--reuse-port", "--port", str(one.port))
    try:
        for router in (one, two):
            router.put(route(replica.endpoint()))
        assert {ask(one.port).status for _ in range(40)} == {200}
        served = [router.stats().services["chat"].requests_total for router in (one, two)]
        assert sum(served) == 40
        assert min(served) > 0
    finally:
        for process in (one, two, replica):
            process.kill()


def test_sigterm_finishes_what_is_in_flight_and_exits_with_0(stage: Stage) -> None:
    a = stage.replica("a")
    stage.router.put(route(a.endpoint()))
    thread, results = in_background(lambda: ask(stage.router.port, stream=True, tokens=10, pace_s=0.05))
    wait_until(lambda: stage.router.stats().in_flight("a") == 1, "in flight")
    assert stage.router.stop() == 0
    thread.join()
    assert results[0].body == stream_body(10)
    assert results[0].is_complete
    assert not (stage.home / "router" / "port").exists()
    assert len(stage.router.access_lines(1)) == 1


def test_every_admitted_request_has_exactly_one_line_in_the_access_log(stage: Stage) -> None:
    a, b = stage.replica("a"), stage.replica("b")
    stage.router.put(route(a.endpoint(), b.endpoint()))
    with Load(stage.router.port, 4, tokens=3) as load:
        load.wait_for(100)
    total = sum(load.ledger.outcomes.values())
    lines = stage.router.access_lines(total)
    assert len(lines) == total == stage.router.stats().services["chat"].requests_total
    assert len({line["id"] for line in lines}) == total
    assert {(line["outcome"], line["tokens_in"], line["tokens_out"]) for line in lines} == {("ok", 3, 3)}
    assert request(stage.router.port, "/health").json() == {"status": "ok"}


def test_clients_that_leave_at_any_moment_leak_nothing_and_are_no_replicas_failure(stage: Stage) -> None:
    a, b = stage.replica("a"), stage.replica("b")
    stage.router.put(route(a.endpoint(), b.endpoint()))
    for number in range(120):
        with connect(stage.router.port) as sock:
            sock.sendall(completion(stream=True, tokens=200, pace_s=0.0005, wait_s=0.003 * (number % 3)))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", number % 2, 0))
            if number % 4:
                sock.recv(1 + 997 * (number % 5))
    wait_until(lambda: stage.router.stats().services["chat"].ongoing == 0, "nothing is under way")
    stats = stage.router.stats()
    service = stats.services["chat"]
    assert sum(endpoint.failures for endpoint in service.endpoints.values()) == 0
    assert service.ok_total + service.failed_total["client_closed"] == service.requests_total
    assert set(service.failed_total) == {"client_closed"}
    wait_until(lambda: stage.router.stats().connections == 0, "no connection is left")
    assert len(stage.router.access_lines(service.requests_total)) == service.requests_total
