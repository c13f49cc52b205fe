"""Answers that a client has already: tagged by their content, and not sent again while it is the same."""

from __future__ import annotations

import hashlib

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse


def unless_known(request: Request, answer: Response) -> Response:
    """Return an answer with a tag (``ETag``), or 304 without a body if the client named this very tag."""
    if request.method != "GET" or answer.status_code != 200 or isinstance(answer, StreamingResponse):
        return answer
    tag = f'"{hashlib.blake2b(answer.body, digest_size=12).hexdigest()}"'
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"ETag": tag})
    answer.headers["ETag"] = tag
    return answer


__all__ = ["unless_known"]
