"""What the router says to clients: routing, framing, streaming, strictness, tokens, time-outs."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from router_harness import (
    Answer,
    ReplicaProcess,
    RouterProcess,
    ask,
    completion,
    connect,
    cpu_s,
    encode,
    raw,
    read_answer,
    request,
    route,
    wait_until,
)
from router_replica import stream_body, whole_body

from tidecell.structs.errors import ConflictError, RefusedError
from tidecell.traffic.table import Endpoint, Route, Table, hash_token


@pytest.fixture(scope="module", params=["with the C module", "without it"])
def stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SimpleNamespace]:
    """One router with one replica, for the stories that change neither."""
    replica = ReplicaProcess("a")
    options = ("--request-s", "1", "--first-byte-s", "4", "--max-upload-bytes", "50000000")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "without it":
            patch.setenv("TIDECELL_PURE", "1")
        router = RouterProcess(tmp_path_factory.mktemp("router"), *options)
    router.put(route(replica.endpoint()))
    yield SimpleNamespace(router=router, port=router.port, replica=replica)
    router.kill()
    replica.kill()


# -- routing


def test_models_are_listed_by_the_router_itself(stage: SimpleNamespace) -> None:
    listing = request(stage.port, "/v1/models").json()
    assert [card["id"] for card in listing["data"]] == ["m"]
    assert request(stage.port, "/v1/models/m").json()["id"] == "m"


def test_an_unknown_model_is_refused_with_the_known_ones_named(stage: SimpleNamespace) -> None:
    answer = ask(stage.port, model="gpt-9")
    assert answer.status == 404
    assert answer.json()["error"] == {
        "message": "the model 'gpt-9' does not exist; known models: m",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }


def test_a_body_that_is_not_json_is_refused(stage: SimpleNamespace) -> None:
    answer = request(stage.port, "/v1/chat/completions", b'{"model": ')
    assert answer.status == 400
    assert answer.json()["error"]["message"].startswith("the body is not JSON")
    assert request(stage.port, "/v1/chat/completions", b'{"model": 5}').status == 400


def test_a_service_is_reached_by_path_with_the_prefix_stripped(stage: SimpleNamespace) -> None:
    assert request(stage.port, "/services/chat/echo/x?y=1").body.startswith(b"GET /echo/x?y=1 HTTP/1.1\r\n")
    assert request(stage.port, "/services/nobody/").status == 404


def test_a_service_is_reached_by_host(stage: SimpleNamespace) -> None:
    answer = request(stage.port, "/echo", host=f"chat.localhost:{stage.port}")
    assert answer.body.startswith(b"GET /echo HTTP/1.1\r\n")


def test_the_official_client_works_through_the_router(stage: SimpleNamespace) -> None:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"http://127.0.0.1:{stage.port}/v1", api_key="any", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["m"]
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "hi"}])
    assert caught.value.code == "model_not_found"


# -- framing


def test_a_stream_arrives_byte_for_byte(stage: SimpleNamespace) -> None:
    answer = ask(stage.port, stream=True, tokens=500)
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.body == stream_body(500)


def test_tokens_arrive_as_they_are_made_not_at_the_end(stage: SimpleNamespace) -> None:
    with connect(stage.port) as sock:
        sock.sendall(completion(stream=True, tokens=40, pace_s=0.02))
        first_s, data = 0.0, b""
        begin_s = time.monotonic()
        while not data.endswith(b"0\r\n\r\n"):
            data += sock.recv(65536)
            if not first_s and b'"index": 0' in data:
                first_s = time.monotonic() - begin_s
        assert first_s < (time.monotonic() - begin_s) / 2


def test_requests_on_one_connection_are_answered_in_turn_even_when_pipelined(stage: SimpleNamespace) -> None:
    with connect(stage.port) as sock:
        sock.sendall(completion(tokens=1) + completion(tokens=2, wait_s=0.05) + encode("/v1/models") * 2)
        bodies = []
        file = sock.makefile("rb")
        for _ in range(4):
            length = 0
            while (line := file.readline()) != b"\r\n":
                if line.startswith(b"content-length"):
                    length = int(line.split(b":")[1])
            bodies.append(file.read(length))
    assert bodies[:2] == [whole_body(1, "a"), whole_body(2, "a")]
    assert bodies[2] == bodies[3]


def test_a_request_may_arrive_a_byte_at_a_time(stage: SimpleNamespace) -> None:
    with connect(stage.port) as sock:
        for byte in completion(tokens=2):
            sock.sendall(bytes([byte]))
        assert read_answer(sock).body == whole_body(2, "a")


def test_a_chunked_request_reaches_the_replica_with_a_length(stage: SimpleNamespace) -> None:
    body = b"5\r\nhello\r\n6;note=x\r\n world\r\n0\r\nx-trailer: y\r\n\r\n"
    head = b"POST /services/chat/echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    with connect(stage.port) as sock:
        sock.sendall(head + body)
        seen = read_answer(sock).body
    assert b"content-length: 11\r\n" in seen
    assert b"transfer-encoding" not in seen
    assert seen.endswith(b"\r\n\r\nhello world")


def test_a_client_that_expects_100_continue_is_told_to(stage: SimpleNamespace) -> None:
    head, body = completion(tokens=1).split(b"\r\n\r\n")
    with connect(stage.port) as sock:
        sock.sendall(head + b"\r\nexpect: 100-continue\r\n\r\n")
        assert sock.recv(1024) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert read_answer(sock).body == whole_body(1, "a")


def test_answers_without_a_body_end_at_their_head(stage: SimpleNamespace) -> None:
    with connect(stage.port) as sock:
        sock.sendall(encode("/services/chat/echo", method="HEAD") + encode("/services/chat/nothing"))
        sock.sendall(encode("/v1/models", method="HEAD") + encode("/health"))
        data = b""
        while b'{"status":"ok"}' not in data:
            data += sock.recv(65536)
    assert [line[9:12] for line in data.split(b"\r\n") if line.startswith(b"HTTP/")] == [
        b"200",
        b"204",
        b"200",
        b"200",
    ]
    assert data.count(b"\r\n\r\n") == 4


def test_early_hints_are_passed_on_before_the_answer(stage: SimpleNamespace) -> None:
    with connect(stage.port) as sock:
        sock.sendall(encode("/services/chat/early"))
        assert read_answer(sock).status == 103
    answer = raw(stage.port, encode("/services/chat/early", connection="close"))
    assert answer.startswith(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200")


def test_a_body_that_ends_with_the_connection_becomes_chunks(stage: SimpleNamespace) -> None:
    answer = ask(stage.port, act="plain", tokens=9)
    assert answer.headers["transfer-encoding"] == "chunked"
    assert (answer.body, answer.is_complete) == (whole_body(9, "a"), True)


def test_a_client_of_http_1_0_gets_a_stream_without_chunks(stage: SimpleNamespace) -> None:
    data = raw(stage.port, completion(stream=True, tokens=9).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    head, _, body = data.partition(b"\r\n\r\n")
    assert body == stream_body(9)
    assert b"transfer-encoding" not in head


def test_websockets_pass_both_ways(stage: SimpleNamespace) -> None:
    upgrade = encode("/services/chat/ws", connection="Upgrade", upgrade="websocket")
    with connect(stage.port) as sock:
        sock.sendall(upgrade + b"sent ahead")
        data = b""
        while not data.endswith(b"sent ahead"):
            data += sock.recv(1024)
        assert data.startswith(b"HTTP/1.1 101 ")
        blob = bytes(range(256)) * 4000
        sock.sendall(b"\x00" + blob[:100_000])
        echoed = b""
        while len(echoed) < 100_001:
            echoed += sock.recv(65536)
        assert echoed == b"\x00" + blob[:100_000]
    wait_until(lambda: stage.router.stats().in_flight("a") == 0, "the tunnel is closed")


def test_a_request_id_is_kept_or_made(stage: SimpleNamespace) -> None:
    given = request(stage.port, "/services/chat/echo", x_request_id="mine-1")
    assert given.headers["x-request-id"] == "mine-1"
    assert b"x-request-id: mine-1\r\n" in given.body
    made = request(stage.port, "/services/chat/echo", x_request_id="not one\x80")
    assert made.headers["x-request-id"].startswith("req-")


# -- strictness

POST = b"POST /v1/x HTTP/1.1\r\nhost: x\r\n"
GET = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"

SMUGGLING = {
    "both lengths (CL.TE)": POST + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths that differ": POST + b"content-length: 4\r\ncontent-length: 5\r\n\r\nabcd",
    "two lengths that agree": POST + b"content-length: 4\r\ncontent-length: 4\r\n\r\nabcd",
    "a list of lengths": POST + b"content-length: 4, 4\r\n\r\nabcd",
    "a signed length": POST + b"content-length: +4\r\n\r\nabcd",
    "a length in hex": POST + b"content-length: 0x4\r\n\r\nabcd",
    "a coding that hides (TE.TE)": POST + b"transfer-encoding: xchunked\r\n\r\n",
    "chunked not alone": POST + b"transfer-encoding: chunked, identity\r\n\r\n",
    "two codings": POST + b"transfer-encoding: chunked\r\ntransfer-encoding: x\r\n\r\n",
    "a space before the colon": POST + b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
    "a vertical tab in the coding": POST + b"transfer-encoding: \x0bchunked\r\n\r\n",
    "a folded line": GET + b"a: b\r\n c: d\r\n\r\n",
    "a bare LF": b"GET /v1/models HTTP/1.1\nhost: x\n\n",
    "a bare LF among CRLF": b"GET /v1/models HTTP/1.1\r\nhost: x\na: b\r\n\r\n",
    "a bare CR": GET + b"a: b\rc: d\r\n\r\n",
    "a NUL": GET + b"a: b\x00c\r\n\r\n",
    "no host": b"GET /v1/models HTTP/1.1\r\n\r\n",
    "two hosts": GET + b"host: y\r\n\r\n",
    "another host in the target": b"GET http://y/v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
    "two spaces": b"GET  /v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
    "no version": b"GET /v1/models\r\nhost: x\r\n\r\n",
    "chunks in HTTP/1.0": CHUNKED.replace(b"1.1", b"1.0") + b"0\r\n\r\n",
    "a chunk size with underscore": CHUNKED + b"1_0\r\n",
    "a chunk size with a sign": CHUNKED + b"+1\r\n",
    "a chunk longer than it says": CHUNKED + b"1\r\nab\r\n",
    "a chunk size ended by LF": CHUNKED + b"1\na\r\n",
    "a tunnel": b"CONNECT other:80 HTTP/1.1\r\nhost: other:80\r\n\r\n",
}


@pytest.mark.parametrize("attack", SMUGGLING.values(), ids=SMUGGLING.keys())
def test_an_ambiguous_request_is_refused_and_the_connection_closed(
    stage: SimpleNamespace, attack: bytes
) -> None:
    hidden = b"GET /services/chat/echo?smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
    data = raw(stage.port, attack + hidden)
    assert data.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 "))
    assert b"connection: close\r\n" in data
    assert data.count(b"HTTP/1.1 ") == 1
    assert b"smuggled" not in data


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/2.0\r\nhost: x\r\n\r\n", 505),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nhost: x\r\na: " + b"b" * 70_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 200 + b"\r\n", 431),
        (b"POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: 9000000\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nhost: x\r\nexpect: tea\r\n\r\n", 417),
    ],
)
def test_what_is_too_large_or_unknown_gets_its_own_status(
    stage: SimpleNamespace, data: bytes, status: int
) -> None:
    assert raw(stage.port, data).startswith(b"HTTP/1.1 %d " % status)


def upload(port: int, path: str, body: bytes, chunk_bytes: int = 0) -> Answer:
    """Send a body by its length, or in chunks."""
    with connect(port) as sock:
        if chunk_bytes:
            parts = [body[at : at + chunk_bytes] for at in range(0, len(body), chunk_bytes)]
            framed = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
            sock.sendall(encode(path, method="POST", transfer_encoding="chunked") + framed)
        else:
            sock.sendall(encode(path, body))
        return read_answer(sock)


@pytest.mark.parametrize("chunk_bytes", [0, 100_000])
def test_a_body_too_large_to_hold_is_passed_through_to_a_service_by_path(
    stage: SimpleNamespace, chunk_bytes: int
) -> None:
    body = bytes(range(256)) * 80_000  # 20 MB; 8 are held
    status = Path(f"/proc/{stage.router.popen.pid}/status")
    before_kb = _rss_kb(status)
    answer = upload(stage.port, "/services/chat/sum", body, chunk_bytes)
    assert answer.json() == {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    assert _rss_kb(status) - before_kb < 24_000
    assert ask(stage.port).status == 200


def test_an_upload_beyond_the_limit_is_refused_and_its_neighbours_are_not(stage: SimpleNamespace) -> None:
    head = encode("/services/chat/sum", method="POST", content_length="50000001")
    assert raw(stage.port, head).startswith(b"HTTP/1.1 413 ")
    assert ask(stage.port).status == 200


BOMBS = {
    "nested": b'{"a":' * 200_000,
    "nested and closed": b'{"model": "m", "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "not UTF-8": b'{"model": "\xff\xfe"}',
    "half a surrogate": b'{"model": "\\ud800"}',
    "a NUL": b'{"model": "m\x00"}',
    "not an object": b"[" * 1000 + b"]" * 1000,
    "two objects": b'{"model": "m"}{"model": "m"}',
    "a number of 100,000 digits for a model": b'{"model": ' + b"9" * 100_000 + b"}",
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_a_hostile_body_gets_400_on_a_connection_that_goes_on(stage: SimpleNamespace, bomb: bytes) -> None:
    with connect(stage.port) as sock:
        for _ in range(2):
            sock.sendall(encode("/v1/chat/completions", bomb))
            assert read_answer(sock).status == 400
        sock.sendall(completion(tokens=1))
        assert read_answer(sock).body == whole_body(1, "a")


def test_of_a_name_that_appears_twice_the_last_one_counts_as_for_the_replica(stage: SimpleNamespace) -> None:
    body = b'{"model": "gpt-9", "tokens": 1, "\\u006dodel": "m"}'
    assert request(stage.port, "/v1/chat/completions", body).body == whole_body(1, "a")
    body = b'{"model": "m", "model": "gpt-9"}'
    assert request(stage.port, "/v1/chat/completions", body).status == 404


def test_an_event_of_a_megabyte_passes_as_it_is(stage: SimpleNamespace) -> None:
    answer = ask(stage.port, stream=True, tokens=2, long_event=1_000_000)
    assert answer.body == b"data: " + b"x" * 1_000_000 + b"\n\n" + stream_body(2)


def test_a_client_that_closes_its_side_half_way_leaks_nothing(stage: SimpleNamespace) -> None:
    head, body = completion(tokens=1).split(b"\r\n\r\n")
    for cut in (head[:30], head + b"\r\n\r\n", head + b"\r\n\r\n" + body[:5]):
        with connect(stage.port) as sock:
            sock.sendall(cut)
            sock.shutdown(socket.SHUT_WR)
            assert b"200 OK" not in b"".join(iter(lambda sock=sock: sock.recv(4096), b""))
    wait_until(lambda: stage.router.stats().connections == 0, "no connection is left")


def test_hop_by_hop_fields_end_at_the_router(stage: SimpleNamespace) -> None:
    answer = request(
        stage.port, "/services/chat/echo", connection="x-secret, host", x_secret="1", te="trailers"
    )
    assert b"x-secret" not in answer.body
    assert b"te:" not in answer.body
    assert b"host: localhost\r\n" in answer.body


# -- slow and absent clients


def test_a_client_that_leaves_stops_the_replica_at_once(stage: SimpleNamespace) -> None:
    before = stage.replica.seen()["aborted"]
    sock = connect(stage.port)
    sock.sendall(completion(stream=True, tokens=10_000, pace_s=0.01))
    assert sock.recv(100)
    sock.close()
    wait_until(lambda: stage.replica.seen()["aborted"] == before + 1, "the replica noticed")
    wait_until(lambda: stage.router.stats().in_flight("a") == 0, "nothing is in flight")
    assert stage.router.stats().services["chat"].failed_total["client_closed"] >= 1


def test_a_slow_client_holds_the_replica_back_instead_of_filling_the_router(stage: SimpleNamespace) -> None:
    num_tokens = 6_000_000  # 30 MB, more than what kernels buffer on the way
    status = Path(f"/proc/{stage.router.popen.pid}/status")
    before_kb = _rss_kb(status)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    sock.connect(("127.0.0.1", stage.port))
    with sock:
        sock.sendall(completion(tokens=num_tokens))
        assert sock.recv(10)
        time.sleep(0.5)  # the time in which a router without back-pressure would swallow it all
        assert _rss_kb(status) - before_kb < 3_000
        assert stage.replica.seen()["open"] == 1
        total = 10
        sock.settimeout(20)
        while total < num_tokens * len("tide "):
            total += len(sock.recv(1 << 20))
    wait_until(lambda: stage.replica.seen()["open"] == 0, "the answer is complete")


def _rss_kb(status: Path) -> int:
    return int(status.read_text().split("VmRSS:")[1].split()[0])


def test_a_client_that_never_finishes_its_head_is_closed(stage: SimpleNamespace) -> None:
    data = raw(stage.port, b"GET / HTTP/1.1\r\nhost: x\r\n")
    assert data.startswith(b"HTTP/1.1 408 ")


def test_a_replica_that_never_answers_is_given_up_and_told(stage: SimpleNamespace) -> None:
    before = stage.replica.seen()["aborted"]
    answer = ask(stage.port, wait_s=60)
    assert (answer.status, answer.json()["error"]["code"]) == (504, "timeout")
    wait_until(lambda: stage.replica.seen()["aborted"] == before + 1, "the replica noticed")


# -- tokens, control, cost (these change the table, or need a router of their own)


def test_a_token_is_asked_for_and_stays_with_the_router(tmp_path: Path) -> None:
    replica, router = ReplicaProcess("a"), RouterProcess(tmp_path)
    try:
        router.put(route(replica.endpoint()), tokens=(hash_token("other"), hash_token("s3cret")))
        without = request(router.port, "/v1/models")
        assert (without.status, without.json()["error"]["code"]) == (401, "invalid_api_key")
        assert without.headers["www-authenticate"] == "Bearer"
        assert request(router.port, "/v1/models", authorization="Bearer wrong").status == 401
        assert request(router.port, "/v1/models", authorization="Basic s3cret").status == 401
        seen = request(router.port, "/services/chat/echo", authorization="Bearer s3cret")
        assert seen.status == 200
        assert b"authorization" not in seen.body
        assert request(router.port, "/health").status == 200
        router.access_lines(4)
        assert router.stop() == 0
        kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        assert b"s3cret" not in kept
        assert b"wrong" not in kept
    finally:
        router.kill()
        replica.kill()


def test_an_older_table_is_refused_and_the_newer_one_stays(tmp_path: Path) -> None:
    router = RouterProcess(tmp_path)
    try:
        newer = Table(3, 2, (Route("chat"),))
        assert router.ask(lambda control: control.put_table(newer)) == 3
        assert router.ask(lambda control: control.put_table(newer)) == 3
        with pytest.raises(ConflictError, match="older than"):
            router.ask(lambda control: control.put_table(Table(9, 1)))
        twice = Table(4, 2, (Route("chat"), Route("chat")))
        with pytest.raises(RefusedError, match="service 'chat' appears twice"):
            router.ask(lambda control: control.put_table(twice))
        assert (router.stats().epoch, router.stats().version) == (2, 3)
        assert router.socket.stat().st_mode & 0o777 == 0o600
    finally:
        router.kill()


def test_a_port_in_use_is_an_error_with_a_hint(stage: SimpleNamespace, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "tidecell.traffic.router", "--home", str(tmp_path)]
    argv += ["--control", str(tmp_path / "c"), "--port", str(stage.port)]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"error: the router cannot listen on 127.0.0.1:{stage.port}: ")
    assert "hint: something else may use the port" in ended.stderr


def test_a_second_router_does_not_take_over_the_control_socket(
    stage: SimpleNamespace, tmp_path: Path
) -> None:
    argv = [sys.executable, "-m", "tidecell.traffic.router", "--home", str(tmp_path)]
    argv += ["--control", str(stage.router.socket)]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 1
    assert "a router answers at" in ended.stderr
    assert stage.router.stats().port == stage.port


def test_metrics_are_shown_to_prometheus(stage: SimpleNamespace) -> None:
    ask(stage.port)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(stage.router.socket))
        sock.sendall(b"GET /metrics HTTP/1.1\r\nhost: router\r\n\r\n")
        page = b"".join(iter(lambda: sock.recv(65536), b"")).decode()
    assert 'tidecell_router_requests_total{service="chat",outcome="ok"}' in page


def test_a_router_without_requests_uses_no_cpu(tmp_path: Path) -> None:
    router = RouterProcess(tmp_path)
    try:
        router.put(Route("chat", ("m",), (Endpoint("a", "127.0.0.1", 1),)))
        with connect(router.port):  # an open connection must not cost anything either
            before_s = cpu_s(router.popen.pid)
            time.sleep(1.0)
            assert cpu_s(router.popen.pid) - before_s < 0.025  # two ticks of the clock that measures it
    finally:
        router.kill()


def test_a_port_that_refuses_is_retried_less_and_less_often(tmp_path: Path) -> None:
    router = RouterProcess(tmp_path)
    try:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            port = closed.getsockname()[1]
            router.put(route(Endpoint("a", "127.0.0.1", port), queue_timeout_s=1.0))
            answer = ask(router.port)
        assert answer.status == 504
        endpoint = router.stats().services["chat"].endpoints["a"]
        assert 3 <= endpoint.failures <= 5  # at 0, 0.1, 0.3, 0.7 s
        assert json.loads(answer.body)["error"]["code"] == "queue_timeout"
    finally:
        router.kill()
