"""HTTP/1.1 heads and chunks, parsed strictly. Pure: bytes in, structs out.

A proxy that reads a message differently from the replica behind it lets one request hide in another
(smuggling). So whatever two parsers could see differently is refused, not repaired: bare LF, folded
lines, a space before the colon, Content-Length twice or beside Transfer-Encoding, any coding but
``chunked``. What is accepted, llhttp accepts with the same meaning (tests compare them on generated
input).

Sources: RFC 9112; the smuggling corpus of the tests names the attack that each rule closes.
"""

from __future__ import annotations

import os
import re
from types import ModuleType

import msgspec

scanner: ModuleType | None
try:  # a small C module: the same rules, faster; TIDECELL_PURE=1 leaves it out
    from tidecell.traffic import _http1 as scanner
except ImportError:
    scanner = None
INTERFACE = 2  # of _http1.c: one that was built from an older source is not used
if os.environ.get("TIDECELL_PURE") or getattr(scanner, "INTERFACE", 0) != INTERFACE:
    scanner = None

MAX_HEAD_BYTES = 64 * 1024
MAX_TARGET_BYTES = 16 * 1024
MAX_FIELDS = 128
MAX_SIZE_LINE_BYTES = 1024
MAX_TRAILER_BYTES = 8 * 1024

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([!-~]+) HTTP/([0-9])\.([0-9])")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_FIELD = re.compile(rb"(" + _TOKEN + rb"):([\t\x20-\x7e\x80-\xff]*)\r\n")
_FIELDS = re.compile(rb"(?:" + _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*\r\n)*")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_DIGITS = re.compile(rb"[0-9]{1,18}")
_QUOTED = rb'"(?:[\t\x20\x21\x23-\x5b\x5d-\x7e]|\\[\t\x20-\x7e])*"'
_EXTENSION = rb";" + _TOKEN + rb"(?:=(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?"
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,12})(?:" + _EXTENSION + rb")*\r\n")
_HOST = re.compile(rb"[A-Za-z0-9\-._~%!$&'()*+,;=:\[\]]*")
_ABSOLUTE = re.compile(rb"https?://([^/?]+)(.*)", re.IGNORECASE)

# Fields that speak of this connection only, never of the next.
HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"upgrade", b"proxy-authenticate"}
    | {b"proxy-authorization"}
)
# Replaced by the router, or read by it and passed on apart.
_OF_THE_ROUTER = frozenset(
    {b"content-length", b"transfer-encoding", b"expect", b"trailer", b"x-request-id", b"authorization"}
)
# A client that names these in Connection must not make the router drop them.
_NEVER_DROPPED = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"authorization", b"content-type", b"x-request-id"}
)

Field = tuple[bytes, bytes]


class ProtocolError(Exception):
    """A message that is refused, with the status to refuse it with. Never shown beyond the connection."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class RequestHead(msgspec.Struct, frozen=True, gc=False):
    """A request up to its body.

    Attributes:
        target: Path and query, always starting with ``/`` (or ``*``).
        host: Value of Host, empty if HTTP/1.0 came without.
        content_length: Bytes of the body, 0 without one, -1 when it is chunked.
        keep_alive: Whether the client takes another response on this connection.
        expects_continue: Whether it waits for 100 before it sends the body.
        upgrade: Protocol it asks to switch to, empty: none.
        is_http10: Whether it cannot take chunks.
        authorization: Value of Authorization, empty if it is missing.
        request_id: Value of X-Request-Id, likewise.
        forward: The field lines for the replica, names in lower case, in order: all but hop-by-hop ones,
            those that frame the body and the two above.
        size: Bytes of the head.
    """

    method: bytes
    target: bytes
    host: bytes
    content_length: int
    keep_alive: bool
    expects_continue: bool
    upgrade: bytes
    is_http10: bool
    authorization: bytes
    request_id: bytes
    forward: bytes
    size: int

    @property
    def fields(self) -> list[Field]:
        """The fields of ``forward``."""
        return split_fields(self.forward)

    def get(self, name: bytes) -> bytes:
        """Return the first value of a field of ``forward`` (name in lower case), empty if it is missing."""
        if self.forward.startswith(name + b": "):
            begin = len(name) + 2
        else:
            at = self.forward.find(b"\r\n" + name + b": ")
            if at < 0:
                return b""
            begin = at + len(name) + 4
        return self.forward[begin : self.forward.index(b"\r\n", begin)]


class ResponseHead(msgspec.Struct, frozen=True, gc=False):
    """A response up to its body.

    Attributes:
        status_line: Without the line end, as HTTP/1.1.
        content_length: Bytes of the body; -1: chunked, -2: until the connection closes.
        keep_alive: Whether the replica takes another request on this connection.
        has_request_id: Whether X-Request-Id is among its fields.
        forward: The field lines for the client, names in lower case; those that frame the body are among
            them.
        size: Bytes of the head.
    """

    status: int
    status_line: bytes
    content_length: int
    keep_alive: bool
    has_request_id: bool
    forward: bytes
    size: int

    @property
    def fields(self) -> list[Field]:
        """The fields of ``forward``."""
        return split_fields(self.forward)


def split_fields(lines: bytes) -> list[Field]:
    """Return names and values of field lines as ``forward`` holds them."""
    fields = []
    for line in lines.split(b"\r\n")[:-1]:
        name, _, value = line.partition(b": ")
        fields.append((name, value))
    return fields


def join_fields(fields: list[Field]) -> bytes:
    """Return field lines as ``forward`` holds them."""
    return b"".join([b"%b: %b\r\n" % field for field in fields])


def find_head(buffer: bytearray | bytes, start: int = 0) -> int:
    """Return the length of the head that ``buffer`` starts with, or -1 if more has to come.

    Args:
        buffer: What arrived so far.
        start: Where to look from; what lies before was looked at.

    Raises:
        ProtocolError: It has a line that ends in a bare LF, or is too long.
    """
    end = buffer.find(b"\r\n\r\n", start)
    if end >= 0 and end + 4 <= MAX_HEAD_BYTES:
        return end + 4
    if end >= 0 or len(buffer) > MAX_HEAD_BYTES:
        line_end = buffer.find(b"\r\n")
        if line_end < 0 or line_end > MAX_TARGET_BYTES:
            raise ProtocolError(414, f"the request line is longer than {MAX_TARGET_BYTES} bytes")
        raise ProtocolError(431, f"the head is longer than {MAX_HEAD_BYTES} bytes")
    if _BARE_LF.search(buffer, start):
        raise ProtocolError(400, "a line ends in LF without CR")
    return -1


def parse_request(head: bytes) -> RequestHead:
    """Return the parsed head, ``head`` ending with the empty line.

    Raises:
        ProtocolError: It breaks a rule.
    """
    line_end = head.index(b"\r\n")
    match = _REQUEST_LINE.fullmatch(head, 0, line_end)
    if match is None:
        raise ProtocolError(400, "malformed request line")
    method, target, major, minor = match.groups()
    if major != b"1" or minor not in b"01":
        raise ProtocolError(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
    if len(target) > MAX_TARGET_BYTES:
        raise ProtocolError(414, f"the target is longer than {MAX_TARGET_BYTES} bytes")
    is_http10 = minor == b"0"
    raw_fields = _parse_fields(head, line_end + 2)
    singles, connection = _collect(raw_fields)
    host, target = _host_and_target(method, target, singles.get(b"host"), is_http10)
    tokens = _connection_tokens(connection)
    ids = [value for name, value in raw_fields if name == b"x-request-id"]
    return RequestHead(
        method=method,
        target=target,
        host=host,
        content_length=_request_length(singles, is_http10),
        keep_alive=(b"keep-alive" in tokens) if is_http10 else (b"close" not in tokens),
        expects_continue=_expects_continue(singles.get(b"expect"), is_http10),
        upgrade=singles.get(b"upgrade", b"").lower() if b"upgrade" in tokens else b"",
        is_http10=is_http10,
        authorization=singles.get(b"authorization", b""),
        request_id=ids[0] if ids else b"",
        forward=join_fields(_forwardable(raw_fields, _dropped(tokens) | _OF_THE_ROUTER)),
        size=len(head),
    )


def parse_response(head: bytes, method: bytes) -> ResponseHead:
    """Return the parsed head of a replica's answer to a request with this method.

    Raises:
        ProtocolError: It breaks a rule; the replica cannot be understood (502).
    """
    line_end = head.index(b"\r\n")
    match = _STATUS_LINE.fullmatch(head, 0, line_end)
    if match is None:
        raise ProtocolError(502, "the replica's status line is malformed")
    status = int(match.group(2))
    is_http10 = match.group(1) == b"0"
    raw_fields = _parse_fields(head, line_end + 2)
    singles, connection = _collect(raw_fields)
    tokens = _connection_tokens(connection)
    length = _response_length(singles, status, method)
    keep_alive = (b"keep-alive" in tokens) if is_http10 else (b"close" not in tokens)
    fields = _forwardable(raw_fields, _dropped(tokens))
    return ResponseHead(
        status=status,
        status_line=b"HTTP/1.1 " + head[9:line_end],
        content_length=length,
        keep_alive=keep_alive and length != -2 and status != 101,
        has_request_id=any(name == b"x-request-id" for name, _ in fields),
        forward=join_fields(fields),
        size=len(head),
    )


def read_request(data: bytes) -> RequestHead | None:
    """Return the head that ``data`` starts with, None if more has to come.

    Raises:
        ProtocolError: It breaks a rule.
    """
    head = scan_request(data)
    if head is None:
        length = find_head(data)
        head = parse_request(data[:length]) if length >= 0 else None
    return head


def read_response(data: bytes, method: bytes) -> ResponseHead | None:
    """Return the head that ``data`` starts with, None if more has to come.

    Raises:
        ProtocolError: It breaks a rule.
    """
    head = scan_response(data, method == b"HEAD")
    if head is None:
        length = find_head(data)
        head = parse_response(data[:length], method) if length >= 0 else None
    return head


def _parse_fields(head: bytes, start: int) -> list[Field]:
    """Return names (lower case) and values of the field lines, the empty line at the end left out."""
    end = len(head) - 2
    if _FIELDS.fullmatch(head, start, end) is None:
        raise ProtocolError(400, _what_is_wrong(head[start:end]))
    fields = [(name.lower(), value.strip(b" \t")) for name, value in _FIELD.findall(head, start, end)]
    if len(fields) > MAX_FIELDS:
        raise ProtocolError(431, f"{len(fields)} header fields; allowed are {MAX_FIELDS}")
    return fields


def _what_is_wrong(block: bytes) -> str:
    if _BARE_LF.search(block):
        return "a line ends in LF without CR"
    if block.startswith((b" ", b"\t")) or b"\r\n " in block or b"\r\n\t" in block:
        return "a folded header line"
    return "malformed header field"


_SINGLE = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"expect", b"upgrade", b"authorization"}
)


def _collect(fields: list[Field]) -> tuple[dict[bytes, bytes], bytes]:
    """Return the fields that frame a message (each at most once), and all of Connection."""
    singles: dict[bytes, bytes] = {}
    connection = b""
    for name, value in fields:
        if name in _SINGLE:
            if name in singles:
                raise ProtocolError(400, f"{name.decode()} appears twice")
            singles[name] = value
        elif name == b"connection":
            connection = connection + b"," + value if connection else value
    return singles, connection


def _connection_tokens(connection: bytes) -> frozenset[bytes]:
    if not connection:
        return frozenset()
    return frozenset(token.strip(b" \t").lower() for token in connection.split(b","))


def _dropped(tokens: frozenset[bytes]) -> frozenset[bytes]:
    """Return the names that end at the router, those that Connection names among them."""
    return HOP_BY_HOP | (tokens - _NEVER_DROPPED) if tokens else HOP_BY_HOP


def _forwardable(fields: list[Field], dropped: frozenset[bytes]) -> list[Field]:
    return [field for field in fields if field[0] not in dropped]


def _host_and_target(
    method: bytes, target: bytes, host: bytes | None, is_http10: bool
) -> tuple[bytes, bytes]:
    """Return who is addressed and which path, from the origin or the absolute form of the target."""
    if host is None and not is_http10:
        raise ProtocolError(400, "the Host field is missing")
    host = host or b""
    if _HOST.fullmatch(host) is None:
        raise ProtocolError(400, "malformed Host field")
    if b"#" in target:
        raise ProtocolError(400, "a fragment in the target")
    if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
        return host, target
    match = _ABSOLUTE.fullmatch(target)
    if method == b"CONNECT" or match is None:
        raise ProtocolError(400, "the target must be a path")
    authority, path = match.groups()
    if authority.lower() != host.lower():
        raise ProtocolError(400, "the target and the Host field name different hosts")
    return host, path if path.startswith(b"/") else b"/" + path


def _length(singles: dict[bytes, bytes]) -> int | None:
    """Return -1 for a chunked body, its length, or None when neither is said."""
    coding = singles.get(b"transfer-encoding")
    raw_length = singles.get(b"content-length")
    if coding is not None:
        if raw_length is not None:
            raise ProtocolError(400, "both Content-Length and Transfer-Encoding")
        if coding.lower() != b"chunked":
            raise ProtocolError(501, "the only transfer coding known here is chunked")
        return -1
    if raw_length is None:
        return None
    if _DIGITS.fullmatch(raw_length) is None:
        raise ProtocolError(400, "malformed Content-Length")
    return int(raw_length)


def _request_length(singles: dict[bytes, bytes], is_http10: bool) -> int:
    length = _length(singles)
    if length == -1 and is_http10:
        raise ProtocolError(400, "Transfer-Encoding in HTTP/1.0")
    return length or 0


def _response_length(singles: dict[bytes, bytes], status: int, method: bytes) -> int:
    try:
        length = _length(singles)
    except ProtocolError as error:
        raise ProtocolError(502, f"the replica's answer has {error.message}") from error
    if method == b"HEAD" or status < 200 or status in (204, 304):
        return 0
    return -2 if length is None else length


def _expects_continue(expect: bytes | None, is_http10: bool) -> bool:
    if expect is None:
        return False
    if expect.lower() != b"100-continue":
        raise ProtocolError(417, "the only expectation known here is 100-continue")
    return not is_http10


def scan_request(data: bytes) -> RequestHead | None:
    """Return the plain head that ``data`` starts with; None: ask ``read_request``. Only C knows any."""
    return None


def scan_response(data: bytes, is_head: bool) -> ResponseHead | None:
    """Return the plain head that ``data`` starts with; None: ask ``read_response``. Only C knows any."""
    return None


class Chunks:
    """Follows a chunked body through any split into pieces, without copying it unless asked to.

    Attributes:
        is_done: Whether the last chunk and the trailer have passed.
    """

    __slots__ = ("_left", "_line", "_state", "_trailer_bytes", "is_done")

    _SIZE, _DATA, _DATA_END, _TRAILER = range(4)

    def __init__(self) -> None:
        self.is_done = False
        self._state = self._SIZE
        self._left = 0
        self._line = b""
        self._trailer_bytes = 0

    def feed(self, data: bytes, payload: list[bytes] | None = None, start: int = 0) -> int:
        """Advance over ``data`` from ``start`` and return the index just after what was used.

        Args:
            data: What arrived.
            payload: The chunks' content is appended here, if given.
            start: Where to begin.

        Raises:
            ProtocolError: The framing is broken.
        """
        at, end = start, len(data)
        while at < end and not self.is_done:
            if scanner is not None and payload is None and self._state == self._SIZE and not self._line:
                at = scanner.skip_chunks(data, at)
                if at == end:
                    break
            if self._state == self._DATA:
                stop = min(end, at + self._left)
                if payload is not None:
                    payload.append(data[at:stop])
                self._left -= stop - at
                at = stop
                if self._left == 0:
                    self._state = self._DATA_END
            else:
                at = self._take_line(data, at)
        return at

    def _take_line(self, data: bytes, at: int) -> int:
        """Use up to the end of a line; an unfinished line is kept for the next piece."""
        line_end = data.find(b"\n", at)
        if line_end < 0:
            self._line += data[at:]
            self._check_unfinished()
            return len(data)
        line = data[at : line_end + 1]
        if self._line:
            line, self._line = self._line + line, b""
        if self._state == self._SIZE:
            self._begin_chunk(line)
        elif self._state == self._DATA_END:
            if line != b"\r\n":
                raise ProtocolError(400, "a chunk is longer than it says")
            self._state = self._SIZE
        else:
            self._take_trailer(line)
        return line_end + 1

    def _check_unfinished(self) -> None:
        if self._state == self._DATA_END and self._line != b"\r":
            raise ProtocolError(400, "a chunk is longer than it says")
        if len(self._line) > MAX_SIZE_LINE_BYTES:
            raise ProtocolError(400, "a chunk's size line is too long")

    def _begin_chunk(self, line: bytes) -> None:
        match = _SIZE_LINE.fullmatch(line)
        if match is None or len(line) > MAX_SIZE_LINE_BYTES:
            raise ProtocolError(400, "malformed chunk size")
        self._left = int(match.group(1), 16)
        self._state = self._DATA if self._left else self._TRAILER

    def _take_trailer(self, line: bytes) -> None:
        self._trailer_bytes += len(line)
        if line == b"\r\n":
            self.is_done = True
        elif self._trailer_bytes > MAX_TRAILER_BYTES:
            raise ProtocolError(431, f"the trailer is longer than {MAX_TRAILER_BYTES} bytes")
        elif _FIELDS.fullmatch(line) is None:
            raise ProtocolError(400, "malformed trailer field")


if scanner is not None:
    scanner.use_types(RequestHead, ResponseHead)
    scan_request = scanner.parse_request
    scan_response = scanner.parse_response
