"""The part of the API that keeps users: list, add, rotate, remove."""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import re
import time
from collections.abc import Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tidecell.client.views import NewUser, UserView
from tidecell.server.access import AccessBook, check_team
from tidecell.server.openapi import Operation
from tidecell.structs.access import OWNER, Role, User
from tidecell.structs.errors import RefusedError
from tidecell.structs.job import JobSpec

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")


def asker(request: Request) -> User | None:
    """Return who asks; None where no gate is in front (tests of the app alone)."""
    found = request.scope.get("tidecell.user")
    return found if isinstance(found, User) else None


@functools.cache
def os_user() -> str:
    """Return the name of the operating-system user that runs the cell."""
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(os.getuid()).pw_name
    return str(os.getuid())


def owned_by_asker(spec: JobSpec, user: User | None) -> JobSpec:
    """Return the spec as this user may submit it: named after them, and of their team unless it says.

    The owner of the cell is known by the name of its operating-system user, unless the spec names another.

    Raises:
        ForbiddenError: It is of a team that is not theirs.
    """
    if user is None or user.name == OWNER:
        return msgspec.structs.replace(spec, labels={"user": os_user(), **spec.labels})
    spec = msgspec.structs.replace(
        spec, team=spec.team or user.team, labels={**spec.labels, "user": user.name}
    )
    check_team(user, spec.team, f"job '{spec.name}'")
    return spec


class UsersApi:
    """The handlers, over one book of users.

    Args:
        book: The users.
        changed: Called after each change: the router has to hear of it.
    """

    def __init__(self, book: AccessBook, changed: Callable[[], None]) -> None:
        self._book = book
        self._changed = changed

    async def list(self, request: Request) -> Response:
        """Return all users, without anything of their tokens."""
        now_s = time.time()
        return _json({"items": [_view(u, now_s) for u in self._book.users()]})

    async def add(self, request: Request) -> Response:
        """Add a user; the answer is the only one that holds the token."""
        new = _checked(await request.body())
        now_s = time.time()
        user, token = self._book.add(new.name, new.role, new.team, new.expires_s, now_s)
        self._changed()
        return _json(_view(user, now_s, token), 201)

    async def rotate(self, request: Request) -> Response:
        """Give a user a new token."""
        user, token = self._book.rotate(request.path_params["name"])
        self._changed()
        return _json(_view(user, time.time(), token))

    async def remove(self, request: Request) -> Response:
        """Forget a user."""
        user = self._book.remove(request.path_params["name"])
        self._changed()
        return _json(_view(user, time.time()))


def _checked(body: bytes) -> NewUser:
    try:
        new = msgspec.json.decode(body, type=NewUser)
    except msgspec.DecodeError as error:
        raise RefusedError(f"the request's body is not as it should be: {error}") from error
    if not _NAME.fullmatch(new.name) or new.name == OWNER:
        raise RefusedError(
            f"'{new.name}' is no name for a user",
            "use lower-case letters, digits, dots, dashes; at most 63 characters, and not 'owner'",
        )
    words = [role.word for role in Role]
    if new.role not in words:
        raise RefusedError(f"'{new.role}' is no role", f"roles are {', '.join(words)}")
    if new.role == Role.MEMBER.word and not new.team:
        raise RefusedError("a member needs a team", "name it: --team NAME")
    return new


def _view(user: User, now_s: float, token: str = "") -> UserView:
    return UserView(
        name=user.name,
        role=user.role,
        team=user.team,
        created_s=user.created_s,
        expires_s=user.expires_s,
        expired=user.expired(now_s),
        token=token,
    )


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


OPERATIONS = (
    Operation("GET", "/v1/users", "Users and their roles; for admins", UserView, many=True),
    Operation(
        "POST", "/v1/users", "Add a user; answers their token, once", UserView, body=NewUser, status=201
    ),
    Operation("POST", "/v1/users/{name}/rotate", "Give a user a new token", UserView),
    Operation("DELETE", "/v1/users/{name}", "Forget a user", UserView),
)
