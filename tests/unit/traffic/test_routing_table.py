"""Tables and the directory made from one."""

from __future__ import annotations

import json

import pytest

from tidecell.structs.errors import ConflictError, RefusedError
from tidecell.traffic.directory import MAX_REMEMBERED, ByModel, Directory, Target
from tidecell.traffic.http1 import RequestHead, parse_request
from tidecell.traffic.replies import Reply
from tidecell.traffic.table import Endpoint, Route, Table, check, check_order, decode, encode, hash_token

TABLE = Table(
    3,
    1,
    (
        Route("chat", ("small", "large"), (Endpoint("chat/0", "127.0.0.1", 4711),)),
        Route("embed", ("large", "vec"), prefix="/embed/"),
        Route("embed-two", prefix="/embed/two/"),
    ),
)


def head(target: str, host: str = "localhost", **fields: str) -> RequestHead:
    more = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return parse_request(f"GET {target} HTTP/1.1\r\nhost: {host}\r\n{more}\r\n".encode())


def where(target: str, host: str = "localhost") -> object:
    return Directory(TABLE).resolve(head(target, host))


def test_a_table_survives_its_own_encoding() -> None:
    assert decode(encode(TABLE)) == TABLE


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"{", "not a routing table"),
        (b'{"routes": [{"service": 5}]}', "not a routing table"),
        (b'{"routes": [{"service": "a"}, {"service": "a"}]}', "service 'a' appears twice"),
        (b'{"routes": [{"service": "a", "prefix": "x/"}]}', "must start and end with '/'"),
        (b'{"routes": [{"service": "a", "max_queue": -1}]}', "must be 0 or more"),
        (
            b'{"routes": [{"service": "a", "endpoints": [{"id": "e", "host": "h", "port": 0}]}]}',
            "endpoint 'e' has port 0; allowed are 1 to 65535",
        ),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(raw: bytes, message: str) -> None:
    with pytest.raises(RefusedError) as caught:
        decode(raw)
    assert message in caught.value.message
    assert caught.value.hint


def test_an_endpoint_id_may_appear_once_only() -> None:
    endpoint = Endpoint("e", "127.0.0.1", 1)
    with pytest.raises(RefusedError, match="endpoint 'e' appears twice"):
        check(Table(routes=(Route("a", endpoints=(endpoint,)), Route("b", endpoints=(endpoint,)))))


def test_the_epoch_counts_before_the_version() -> None:
    check_order(Table(9, 1), Table(1, 2))
    check_order(Table(9, 1), Table(9, 1))
    with pytest.raises(ConflictError) as caught:
        check_order(Table(1, 2), Table(9, 1))
    assert caught.value.message == (
        "table (epoch 1, version 9) is older than (epoch 2, version 1), which is served"
    )


def test_paths_and_hosts_lead_to_services() -> None:
    assert where("/services/chat/a?b") == Target("chat", b"/a?b")
    assert where("/services/chat") == Target("chat", b"/")
    assert where("/services/chat?b") == Target("chat", b"/?b")
    assert where("/embed/a") == Target("embed", b"/a")
    assert where("/embed/two/a") == Target("embed-two", b"/a")
    assert where("/any", "Chat.localhost:8080") == Target("chat", b"/any")
    by_model = where("/v1/embeddings")
    assert isinstance(by_model, ByModel)
    assert by_model.targets["vec"] == Target("embed", b"/v1/embeddings")


@pytest.mark.parametrize("target", ["/", "/v2/x", "/services/none/", "/v1/models/none"])
def test_what_is_not_there_is_404(target: str) -> None:
    answer = where(target)
    assert isinstance(answer, Reply)
    assert answer.status == 404


def test_a_model_of_two_services_goes_to_the_first() -> None:
    directory = Directory(TABLE)
    target = directory.resolve(head("/v1/x"))
    assert isinstance(target, ByModel)
    assert directory.by_model(target, b'{"model": "large"}')[0] == Target("chat", b"/v1/x")
    assert directory.by_model(target, b'{"model": "vec"}')[0] == Target("embed", b"/v1/x")
    assert [card["id"] for card in directory.models()["data"]] == ["large", "small", "vec"]


def test_a_request_without_a_model_goes_to_the_only_service_or_is_refused() -> None:
    only = Directory(Table(routes=(Route("chat", ("m",)), Route("web"))))
    assert only.by_model(ByModel(b"/v1/x"), b"{}")[0] == Target("chat", b"/v1/x")
    answer = Directory(TABLE).by_model(ByModel(b"/v1/x"), b"{}")[0]
    assert isinstance(answer, Reply)
    assert json.loads(answer.body)["error"]["message"] == (
        "the request names no model; known models: large, small, vec"
    )


def test_tokens_are_asked_for_only_when_the_table_has_some() -> None:
    assert Directory(TABLE).authorize(head("/v1/models")) == ""
    directory = Directory(Table(tokens=(hash_token("t1"), hash_token("t2"))))
    assert directory.authorize(head("/v1/models", authorization="Bearer t2")) == hash_token("t2")
    assert directory.authorize(head("/v1/models", authorization="bearer t1")) == hash_token("t1")
    assert directory.authorize(head("/health")) == ""
    for wrong in ("Bearer t3", "Bearer", "t1", f"Bearer {hash_token('t1')}"):
        refusal = directory.authorize(head("/v1/models", authorization=wrong))
        assert isinstance(refusal, Reply)
        assert refusal.status == 401


def test_what_is_remembered_has_a_bound_and_holds_no_refusal() -> None:
    directory = Directory(Table(routes=TABLE.routes, tokens=(hash_token("t"),)))
    for number in range(MAX_REMEMBERED + 10):
        request = head(f"/v1/x{number}", authorization="Bearer t")
        key, where = directory.enter(request)
        assert (key, where.path) == (hash_token("t"), b"/v1/x%d" % number)
        assert directory.known[b"Bearer t", b"localhost", request.target] == (key, where)
    assert len(directory.known) <= MAX_REMEMBERED
    count = len(directory.known)
    directory.enter(head("/v1/x", authorization="Bearer wrong"))
    directory.enter(head("/nowhere", authorization="Bearer t"))
    assert len(directory.known) == count


def test_health_of_a_service_by_host_is_not_exempt_from_tokens() -> None:
    directory = Directory(Table(routes=TABLE.routes, tokens=(hash_token("t"),)))
    assert isinstance(directory.authorize(head("/health", "chat.localhost")), Reply)
