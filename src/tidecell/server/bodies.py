"""What a call brings: a body of bounded size, and the job that its path names."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from starlette.requests import Request

from tidecell.cell.state import Job
from tidecell.server.control import ControlPlane
from tidecell.structs.errors import NotFoundError, RefusedError

T = TypeVar("T")
MAX_BODY_BYTES = 4 << 20


async def read_bytes(request: Request) -> bytes:
    """Return a call's body.

    Raises:
        RefusedError: It is larger than MAX_BODY_BYTES.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise RefusedError(f"the request's body is larger than {MAX_BODY_BYTES} bytes")
    return body


async def read_body(request: Request, kind: type[T]) -> T:
    """Return a call's body as a struct.

    Raises:
        RefusedError: It is too large, or not such a struct.
    """
    body = await read_bytes(request)
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise RefusedError(f"the request's body is not as it should be: {error}") from error


def find_job(control: ControlPlane, request: Request) -> Job:
    """Return the newest run of the name in a call's path, or the run of that uid.

    Raises:
        NotFoundError: There is none.
    """
    name = request.path_params["name"]
    job = control.find(name)
    if job is None:
        raise NotFoundError(f"no job named '{name}'", "tide ps -a lists all jobs")
    return job


__all__ = ["MAX_BODY_BYTES", "find_job", "read_body", "read_bytes"]
