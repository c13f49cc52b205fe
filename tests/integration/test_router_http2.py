"""HTTP/2 on the router's port, with the h2 library as the client."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import pytest
from router_harness import ReplicaProcess, RouterProcess, ask, route, wait_until
from router_replica import stream_body, whole_body

from tidecell.traffic.http2 import MAX_RESETS, _as_http1

DATA = Path(__file__).parent.parent / "data"
HEAD = [(":method", "POST"), (":path", "/v1/chat/completions"), (":scheme", "http"), (":authority", "x")]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    replica = ReplicaProcess("a")
    router = RouterProcess(tmp_path_factory.mktemp("router"), "--request-s", "1")
    router.put(route(replica.endpoint()))
    yield SimpleNamespace(router=router, port=router.port, replica=replica)
    router.kill()
    replica.kill()


class Client:
    """A connection; answers are collected per stream."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.status: dict[int, str] = {}
        self.body: dict[int, bytes] = {}
        self.ended: dict[int, str] = {}
        self.is_gone = False

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.sock.close()

    def ask(self, body: bytes = b"", head: list[tuple[str, str]] = HEAD, cut: int = 0) -> int:
        number = self.h2.get_next_available_stream_id()
        self.h2.send_headers(number, head, end_stream=not body)
        if body:
            self.h2.send_data(number, body[:cut] if cut else body, end_stream=not cut)
        if cut:
            self.h2.send_data(number, body[cut:], end_stream=True)
        self.sock.sendall(self.h2.data_to_send())
        return number

    def read(self, *numbers: int) -> None:
        """Read until these streams have ended, or the connection has."""
        while not self.is_gone and not all(number in self.ended for number in numbers):
            data = self.sock.recv(65536)
            if not data:
                self.is_gone = True
                return
            for event in self.h2.receive_data(data):
                self.take(event)
            self.sock.sendall(self.h2.data_to_send())

    def take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            self.status[event.stream_id] = dict(event.headers)[":status"]
        elif isinstance(event, h2.events.DataReceived):
            self.body[event.stream_id] = self.body.get(event.stream_id, b"") + event.data
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.ended[event.stream_id] = "complete"
        elif isinstance(event, h2.events.StreamReset):
            self.ended[event.stream_id] = "reset"
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.is_gone = True


def connect(port: int) -> Client:
    return Client(socket.create_connection(("127.0.0.1", port), 20))


def body(**fields: object) -> bytes:
    return json.dumps({"model": "m", **fields}).encode()


def test_streams_run_beside_each_other_on_one_connection(stage: SimpleNamespace) -> None:
    with connect(stage.port) as client:
        slow = client.ask(body(stream=True, tokens=30, pace_s=0.01))
        quick = client.ask(body(tokens=3), cut=7)
        client.read(quick)
        assert slow not in client.ended
        client.read(slow)
        assert (client.status[quick], client.body[quick]) == ("200", whole_body(3, "a"))
        assert (client.status[slow], client.body[slow]) == ("200", stream_body(30))


def test_an_answer_larger_than_all_windows_arrives_whole(stage: SimpleNamespace) -> None:
    with connect(stage.port) as client:
        number = client.ask(body(tokens=200_000))
        client.read(number)
        assert client.body[number] == whole_body(200_000, "a")


def test_refusals_and_the_routers_own_pages_are_answers_as_any(stage: SimpleNamespace) -> None:
    with connect(stage.port) as client:
        wrong = client.ask(body(model="gpt-9"))
        health = client.ask(head=[(":method", "GET"), (":path", "/health"), *HEAD[2:]])
        client.read(wrong, health)
        assert (client.status[wrong], client.status[health]) == ("404", "200")
        assert client.body[health] == b'{"status":"ok"}'


def test_an_answer_cut_in_the_middle_is_reset_and_the_connection_goes_on(stage: SimpleNamespace) -> None:
    with connect(stage.port) as client:
        cut = client.ask(body(act="cut", stream=True, tokens=20))
        client.read(cut)
        assert client.ended[cut] == "reset"
        good = client.ask(body(tokens=1))
        client.read(good)
        assert client.ended[good] == "complete"


def test_a_reset_stream_ends_the_replicas_work(stage: SimpleNamespace) -> None:
    before = stage.replica.seen()["aborted"]
    with connect(stage.port) as client:
        number = client.ask(body(stream=True, tokens=10_000, pace_s=0.01))
        while number not in client.body:
            for event in client.h2.receive_data(client.sock.recv(65536)):
                client.take(event)
        client.h2.reset_stream(number)
        client.sock.sendall(client.h2.data_to_send())
        wait_until(lambda: stage.replica.seen()["aborted"] == before + 1, "the replica noticed")


def test_a_client_that_only_resets_is_disconnected_and_its_neighbours_are_not(stage: SimpleNamespace) -> None:
    with connect(stage.port) as client:
        try:
            for _ in range(MAX_RESETS + 50):
                number = client.ask(body(wait_s=5))
                client.h2.reset_stream(number)
                client.sock.sendall(client.h2.data_to_send())
            client.read(1 << 30)
        except OSError:
            client.is_gone = True
        assert client.is_gone
    assert ask(stage.port).status == 200
    wait_until(lambda: stage.router.stats().in_flight("a") == 0, "nothing is left behind")


@pytest.mark.parametrize(
    "fields",
    [
        [(b"x-a", b"b\r\ncontent-length: 5")],
        [(b"x-a", b"b\nhost: y")],
        [(b"x a", b"b")],
        [(b"host", b"other")],
        [(b"transfer-encoding", b"chunked")],
        [(b":path", b"/a HTTP/1.1\r\nhost: y\r\n\r\nGET /b")],
        [(b":method", b"GET /b HTTP/1.1\r\n")],
        [(b":authority", b"x\r\nx-a: b")],
    ],
)
def test_nothing_in_a_head_can_begin_a_second_request(fields: list[tuple[bytes, bytes]]) -> None:
    head = {b":method": b"GET", b":path": b"/", b":scheme": b"http", b":authority": b"x"}
    headers = [*(head | {name: value for name, value in fields if name.startswith(b":")}).items()]
    headers += [field for field in fields if not field[0].startswith(b":")]
    assert _as_http1(headers, True) is None


def test_garbage_after_the_preface_ends_the_connection_only(stage: SimpleNamespace) -> None:
    with socket.create_connection(("127.0.0.1", stage.port), 20) as sock:
        for part in (b"PRI * HT", b"TP/2.0\r\n\r\nSM\r\n\r\n", b"\xff" * 200):  # a frame of 16 MB begins
            sock.sendall(part)
        while sock.recv(4096):
            pass
    with socket.create_connection(("127.0.0.1", stage.port), 20) as sock:
        try:
            sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 10_000_000)
            while sock.recv(4096):
                pass
        except ConnectionError:
            pass  # closed long before all was sent
    assert ask(stage.port).status == 200
    wait_until(lambda: stage.router.stats().connections == 0, "no connection is left")


def test_alpn_leads_to_http2(tmp_path: Path) -> None:
    replica = ReplicaProcess("a")
    pem = (str(DATA / "tls-one.crt"), str(DATA / "tls-one.key"))
    router = RouterProcess(tmp_path, "--tls", *pem)
    try:
        router.put(route(replica.endpoint()))
        context = ssl.create_default_context(cafile=pem[0])
        context.set_alpn_protocols(["h2"])
        plain = socket.create_connection(("127.0.0.1", router.port), 20)
        sock = context.wrap_socket(plain, server_hostname="one.test")
        assert sock.selected_alpn_protocol() == "h2"
        with Client(sock) as client:
            number = client.ask(body(tokens=4))
            client.read(number)
            assert client.body[number] == whole_body(4, "a")
    finally:
        router.kill()
        replica.kill()
