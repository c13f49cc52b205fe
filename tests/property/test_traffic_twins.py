"""What the C module accepts, its Python twin accepts with the same result; h11 judges beside them."""

from __future__ import annotations

import json

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_traffic_http1 import ODD, heads

from tidecell.traffic import access_log
from tidecell.traffic import peek as peeking
from tidecell.traffic.http1 import Chunks, ProtocolError, find_head, parse_request, parse_response
from tidecell.traffic.usage import search_usage

fast = pytest.importorskip("tidecell.traffic._http1", reason="the C module is not built here")

MORE = [
    b"Host: x",
    b"Content-Length: 5",
    b"content-length: 05",
    b"Transfer-Encoding: chunked",
    b"Connection: close",
    b"Connection: Keep-Alive",
    b"Connection: close, x-a",
    b"Keep-Alive: timeout=5",
    b"Close: x",
    b"TE: trailers",
    b"Upgrade: h2c",
    b"Authorization: Bearer a",
    b"X-Request-Id: 7",
    b"Expect: 100-continue",
    b"Trailer: x",
    b"Proxy-Authorization: a",
    b"X-A:",
    b"X-A: \x80\xff",
    b"X-A:\t a b \t",
]
REQUEST_LINES = [
    b"GET / HTTP/1.1",
    b"POST /v1/x?y HTTP/1.1",
    b"GET / HTTP/1.0",
    b"CONNECT /x HTTP/1.1",
    b"GET /a#b HTTP/1.1",
]
STATUS_LINES = [
    b"HTTP/1.1 200 OK",
    b"HTTP/1.1 204",
    b"HTTP/1.0 200 OK",
    b"HTTP/1.1 304 x",
    b"HTTP/1.1 101 x",
    b"HTTP/1.1 099 x",
]


def disturbed(draw: st.DrawFn, data: bytes, most: int) -> bytes:
    for _ in range(draw(st.integers(0, most))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.sampled_from([*ODD, b"x", b""])) + data[at + draw(st.integers(0, 1)) :]
    return data


@st.composite
def messages(draw: st.DrawFn, first_lines: list[bytes]) -> bytes:
    lines = [draw(st.sampled_from(first_lines)), *draw(st.lists(st.sampled_from(MORE), max_size=5))]
    return disturbed(
        draw, b"\r\n".join(lines) + b"\r\n\r\n" + draw(st.sampled_from([b"", b"abcde", b"\r\n"])), 2
    )


def slow_request(data: bytes) -> object:
    try:
        length = find_head(data)
        return parse_request(data[:length]) if length >= 0 else None
    except ProtocolError:
        return None


def slow_response(data: bytes, method: bytes) -> object:
    try:
        length = find_head(data)
        return parse_response(data[:length], method) if length >= 0 else None
    except ProtocolError:
        return None


@given(st.one_of(heads(), messages(REQUEST_LINES)))
@settings(max_examples=500, deadline=None)
def test_a_request_head_means_the_same_to_both(data: bytes) -> None:
    found = fast.parse_request(data)
    if found is not None:
        assert found == slow_request(data)


@given(messages(STATUS_LINES), st.sampled_from([b"GET", b"HEAD"]))
@settings(max_examples=500, deadline=None)
def test_a_response_head_means_the_same_to_both(data: bytes, method: bytes) -> None:
    found = fast.parse_response(data, method == b"HEAD")
    if found is not None:
        assert found == slow_response(data, method)


@given(messages([b"GET /a HTTP/1.1\r\nHost: x", b"POST / HTTP/1.1\r\nHost: x"]))
@settings(max_examples=400, deadline=None)
def test_h11_agrees_about_what_the_c_module_accepts(data: bytes) -> None:
    found = fast.parse_request(data)
    if found is None:
        return
    server = h11.Connection(h11.SERVER)
    server.receive_data(data[: found.size])
    event = server.next_event()
    assert isinstance(event, h11.Request)
    assert (event.method, event.target) == (found.method, found.target)
    theirs = dict(event.headers)
    assert int(theirs.get(b"content-length", b"0")) == found.content_length
    assert b"transfer-encoding" not in theirs
    assert found.get(b"host") == theirs[b"host"]


def test_common_messages_are_taken_by_the_c_module() -> None:
    post = b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\nabc"
    assert fast.parse_request(post).content_length == 3
    assert (
        fast.parse_response(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", False).content_length
        == -1
    )
    assert fast.scan_body(b'{"messages": [{"content": "a\\n\\"b"}], "model": "m", "stream": true}') == (
        "m",
        True,
        0,
        "",
    )


CHUNKS = [
    b"5\r\nhello\r\n",
    b"1\r\na\r\n",
    b"0A\r\n0123456789\r\n",
    b"3;x=y\r\nabc\r\n",
    b"0\r\n\r\n",
    b"0\r\na: b\r\n\r\n",
]


@st.composite
def chunk_bodies(draw: st.DrawFn) -> bytes:
    return disturbed(draw, b"".join(draw(st.lists(st.sampled_from(CHUNKS), max_size=6))), 2)


def follow(data: bytes, cuts: list[int], wants_payload: bool) -> object:
    """Return how a body is followed: with payload asked for, the C module has no part in it."""
    chunks, ends = Chunks(), []
    try:
        for cut in [*cuts, len(data)]:
            if data and not chunks.is_done:
                used = chunks.feed(data[:cut], [] if wants_payload else None)
                ends.append(used)
                data = data[cut:]
    except ProtocolError as problem:
        return (*ends, problem.message)
    return (*ends, chunks.is_done)


@given(chunk_bodies(), st.lists(st.integers(1, 12), max_size=6))
@settings(max_examples=500, deadline=None)
def test_chunks_are_followed_the_same_by_both(data: bytes, cuts: list[int]) -> None:
    assert follow(data, cuts, False) == follow(data, cuts, True)


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
NAMES = st.sampled_from(["model", "stream", "max_tokens", "max_completion_tokens", "user", "messages", "a"])
COMMON = st.one_of(VALUES, st.sampled_from(["m", "é", True, False, 5, 0, -1, 1.5, None, "", 10**19]))


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """JSON objects, with names that repeat and odd bytes put in."""
    pairs = draw(st.lists(st.tuples(NAMES, COMMON), max_size=6))
    is_ascii = draw(st.booleans())
    text = ", ".join(
        f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=is_ascii)}" for name, value in pairs
    )
    odd = [b'"', b"\\", b",", b"{", b"]", b"0", b"\x00", b"\xff", b"\n", b"e", b" ", b""]
    data = b"{" + text.encode("utf-8", "surrogatepass") + b"}"
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.sampled_from(odd)) + data[at + draw(st.integers(0, 1)) :]
    return data


@given(bodies())
@settings(max_examples=500, deadline=None)
def test_a_body_says_the_same_to_both(body: bytes) -> None:
    found = fast.scan_body(body)
    if found is not None:
        assert peeking.Peek(*found) == peeking.parse(body)


@given(bodies())
@settings(max_examples=400, deadline=None)
def test_what_is_peeked_is_what_pythons_parser_reads(body: bytes) -> None:
    try:
        found = peeking.peek(body)
        value = json.loads(body)
    except (ProtocolError, ValueError):
        return
    assert found[0] == (value.get("model") or "")
    assert found[1] == bool(value.get("stream"))


@given(
    st.lists(
        st.sampled_from(
            [
                b'"usage"',
                b'"prompt_tokens"',
                b'"completion_tokens"',
                b":",
                b" ",
                b"12",
                b"1234567890123",
                b'"',
            ]
        ),
        max_size=14,
    )
)
@settings(max_examples=500, deadline=None)
def test_usage_is_found_the_same_by_both(parts: list[bytes]) -> None:
    tail = b"".join(parts)
    assert fast.find_usage(tail) == search_usage(tail)


TEXTS = st.one_of(st.sampled_from(["chat", "m", "", 'a"b', "a\\b", "\u00e9", "\x7f"]), st.text(max_size=8))
TIMES_MS = st.one_of(st.floats(0, 1e7), st.sampled_from([0.0, 0.0005, 1.0005, 2.5, 1e-9, 1e15, 100.0]))
TARGETS = st.sampled_from([b"/v1/x", b"/v1/x?y=1", b"/a?", b'/"', b"/\\"])
COUNTS = st.one_of(st.none(), st.integers(0, 2**40))


@st.composite
def entries(draw: st.DrawFn) -> tuple:
    """Values for the fields of a line, by what each field holds."""
    ids, methods = st.sampled_from([b"req-1f", b"a:b"]), st.sampled_from([b"POST", b"M-1!"])
    kinds = [
        st.floats(0, 1e6),
        ids,
        TEXTS,
        TEXTS,
        TEXTS,
        methods,
        TARGETS,
        st.integers(100, 599),
        st.booleans(),
    ]
    kinds += [
        st.one_of(st.none(), TIMES_MS),
        TIMES_MS,
        TIMES_MS,
        st.integers(0, 2**40),
        st.integers(0, 2**40),
    ]
    kinds += [COUNTS, COUNTS, st.integers(0, 3), TEXTS, TEXTS, TEXTS, TEXTS, COUNTS]
    return tuple(draw(kind) for kind in kinds)


@given(entries(), st.floats(1.7e9, 1.8e9))
@settings(max_examples=500, deadline=None)
def test_a_line_of_the_access_log_is_the_same_from_both(entry: tuple, wall_s: float) -> None:
    slow = json.loads(access_log._encode(access_log._line(entry, wall_s)))
    assert json.loads(access_log.encode(entry, wall_s)) == slow


def test_a_common_line_is_made_by_the_c_module() -> None:
    entry = (
        1.5,
        b"req-1",
        "chat",
        "m",
        "r1",
        b"POST",
        b"/v1/x?y",
        200,
        True,
        1.25,
        2.0,
        0.0,
        1,
        2,
        None,
        3,
        0,
        "ok",
        "power-of-two",
        "",
        "acme",
        None,
    )
    line = fast.log_line(access_log._NAMES, entry, 1.0)
    assert json.loads(line + b"}") | {"schema": access_log.SCHEMA} == json.loads(
        access_log._encode(access_log._line(entry, 1.0))
    )
