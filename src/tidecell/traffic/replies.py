"""Answers that the router gives itself, in OpenAI's error shape, and heads that it rewrites. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from http import HTTPStatus

import msgspec

from tidecell.traffic.http1 import Field

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}
_KINDS = {400: "invalid_request_error", 401: "authentication_error", 404: "invalid_request_error"}


@dataclass(frozen=True)
class Reply:
    """A whole answer of the router's own.

    Attributes:
        outcome: Word for the access log and the counters.
        fields: Besides those that frame the body.
    """

    status: int
    body: bytes
    outcome: str = "local"
    fields: tuple[Field, ...] = field(default=())

    def encode(self, keep_alive: bool, request_id: bytes = b"", with_body: bool = True) -> bytes:
        """Return the bytes of the answer; ``with_body`` is False for HEAD."""
        fields = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(self.body))]
        fields += self.fields
        if request_id:
            fields.append((b"x-request-id", request_id))
        if not keep_alive:
            fields.append((b"connection", b"close"))
        line = b"HTTP/1.1 %d %s" % (self.status, PHRASES.get(self.status, b""))
        head = encode_head(line, fields)
        return head + self.body if with_body else head


def encode_head(line: bytes, fields: Iterable[Field]) -> bytes:
    """Return a head: first line, fields, empty line."""
    lines = [line, *[name + b": " + value for name, value in fields], b"\r\n"]
    return b"\r\n".join(lines)


def error(
    status: int,
    message: str,
    outcome: str,
    *,
    code: str | None = None,
    param: str | None = None,
    retry_after_s: int | None = None,
) -> Reply:
    """Return a refusal in the shape that OpenAI's clients understand."""
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "service_unavailable")
    what = {"message": message, "type": kind, "param": param, "code": code or outcome}
    fields: tuple[Field, ...] = ()
    if retry_after_s is not None:
        fields = ((b"retry-after", b"%d" % retry_after_s),)
    if status == 401:
        fields += ((b"www-authenticate", b"Bearer"),)
    return Reply(status, msgspec.json.encode({"error": what}), outcome, fields)


def json_reply(value: object, status: int = 200) -> Reply:
    """Return an answer that carries ``value`` as JSON."""
    return Reply(status, msgspec.json.encode(value))
