"""Our parser against llhttp (httptools): what we accept, it accepts with the same meaning."""

from __future__ import annotations

import httptools
from hypothesis import given, settings
from hypothesis import strategies as st

from tidecell.traffic.http1 import Chunks, ProtocolError, RequestHead, find_head, parse_request

NAMES = [
    b"Host",
    b"Content-Length",
    b"Transfer-Encoding",
    b"Connection",
    b"X-A",
    b"content_length",
    b"Upgrade",
]
VALUES = [b"x", b"5", b"chunked", b"Chunked", b"close", b"keep-alive", b"gzip, chunked", b"", b"a b", b"+5"]
ODD = [b"\n", b"\r", b" ", b"\t", b"\x00", b":", b"\x0b", b"\x80", b"\r\n", b"\r\n "]


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """Return a head that is nearly right: common fields, and odd bytes put in anywhere."""
    method = draw(st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS", b"PUT"]))
    target = draw(st.sampled_from([b"/", b"/a?b=c", b"*", b"http://x/a", b"/%zz", b"/a#b", b"a"]))
    version = draw(st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.2", b"http/1.1"]))
    lines = [b" ".join((method, target, version)), b"Host: x"]
    for _ in range(draw(st.integers(0, 4))):
        separator = draw(st.sampled_from([b": ", b":", b" : ", b":\t"]))
        lines.append(draw(st.sampled_from(NAMES)) + separator + draw(st.sampled_from(VALUES)))
    head = b"\r\n".join(lines) + b"\r\n\r\n"
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(head) - 4))
        head = head[:at] + draw(st.sampled_from(ODD)) + head[at:]
    return head


class Judge:
    """What llhttp makes of the bytes."""

    def __init__(self, data: bytes) -> None:
        self.fields: list[tuple[bytes, bytes]] = []
        self.target = b""
        self.body = b""
        self.num_complete = 0
        self.parser = httptools.HttpRequestParser(self)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value.strip(b" \t")))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.num_complete += 1


def parse(data: bytes) -> tuple[RequestHead, int] | None:
    try:
        length = find_head(data)
        return (parse_request(data[:length]), length) if length > 0 else None
    except ProtocolError:
        return None


@given(heads())
@settings(max_examples=1500, deadline=None)
def test_an_accepted_head_means_the_same_to_llhttp(head: bytes) -> None:
    parsed = parse(head)
    if parsed is None:
        return
    ours, length = parsed
    judge = Judge(head[:length])
    dropped = {b"connection", b"upgrade", b"content-length", b"transfer-encoding"}
    assert ours.fields == [field for field in judge.fields if field[0] not in dropped]
    framing = dict(judge.fields)
    if b"transfer-encoding" in framing:
        assert ours.content_length == -1
    else:
        assert ours.content_length == int(framing.get(b"content-length", b"0"))
    assert judge.parser.get_method() == ours.method
    if not judge.target.startswith(b"http"):
        assert judge.target == ours.target
    if not ours.upgrade:
        assert (judge.num_complete == 1) == (ours.content_length == 0)


@given(st.binary(max_size=300))
def test_no_bytes_break_the_parser(data: bytes) -> None:
    parse(data)
    parse(b"GET / HTTP/1.1\r\nhost: x\r\n" + data + b"\r\n\r\n")


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.lists(st.integers(1, 30), max_size=60))
def test_chunks_are_read_the_same_however_they_are_split(parts: list[bytes], cuts: list[int]) -> None:
    wire = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\nx: y\r\n\r\n"
    chunks, payload, at = Chunks(), [], 0
    for cut in [*cuts, len(wire)]:
        if at < len(wire):
            assert not chunks.is_done
            piece = wire[at : at + cut]
            assert chunks.feed(piece, payload) == len(piece)
            at += len(piece)
    assert b"".join(payload) == b"".join(parts)
    assert chunks.is_done


@given(st.binary(max_size=60))
def test_what_follows_the_last_chunk_is_left_alone(rest: bytes) -> None:
    wire = b"3\r\nabc\r\n0\r\n\r\n"
    chunks = Chunks()
    assert chunks.feed(wire + rest) == len(wire)


@st.composite
def chunked_bodies(draw: st.DrawFn) -> bytes:
    body = bytearray(b"5\r\nhello\r\n3;a=b\r\nabc\r\n0\r\n\r\n")
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(body) - 1))
        body[at : at + draw(st.integers(0, 1))] = draw(st.sampled_from([*ODD, b"g", b"1", b";", b""]))
    return bytes(body)


@given(chunked_bodies())
@settings(max_examples=800, deadline=None)
def test_an_accepted_chunked_body_means_the_same_to_llhttp(body: bytes) -> None:
    chunks, payload = Chunks(), []
    try:
        used = chunks.feed(body, payload)
    except ProtocolError:
        return
    if not chunks.is_done:
        return
    judge = Judge(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + body[:used])
    assert judge.num_complete == 1
    assert judge.body == b"".join(payload)
