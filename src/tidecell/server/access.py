"""Who is asking: tokens to users, and the gate in front of the API.

The cell's own token belongs to its owner and may do everything. Further users are kept in ``access.json``
beside it, with hashes of their tokens only; the file is read again whenever it changes.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from tidecell.client.home import Home
from tidecell.structs.access import OWNER, Role, User, may_touch, role_needed
from tidecell.structs.errors import ConflictError, ForbiddenError, NotFoundError, TidecellError

_OPEN_PATHS = frozenset({"/", "/health", "/openapi.json", "/favicon.ico"})


def hash_token(token: str) -> str:
    """Return what is kept of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


class AccessBook:
    """The users of a cell and their tokens' hashes."""

    def __init__(self, home: Home) -> None:
        self._path = home / "access.json"
        self._owner = User(OWNER, Role.ADMIN.word, token_hash=hash_token(home.token()))
        self._stamp = (0, 0)
        self._users: dict[str, User] = {}

    def users(self) -> list[User]:
        """Return all users but the owner, by name."""
        self._refresh()
        return [self._users[name] for name in sorted(self._users)]

    def identify(self, token: str, now_s: float) -> User | None:
        """Return whose token this is; None: nobody's, or it has expired."""
        given = hash_token(token)
        if hmac.compare_digest(given, self._owner.token_hash):
            return self._owner
        for user in self.users():
            if hmac.compare_digest(given, user.token_hash):
                return None if user.expired(now_s) else user
        return None

    def token_hashes(self, now_s: float) -> tuple[str, ...]:
        """Return the hashes that the router accepts: the owner's and those of all who may run work."""
        able = [u for u in self.users() if u.rank >= Role.MEMBER and not u.expired(now_s)]
        return (self._owner.token_hash, *(u.token_hash for u in able))

    def any_expires(self) -> bool:
        """Whether the mere passing of time may end somebody's token."""
        return any(u.expires_s for u in self._users.values())

    def add(self, name: str, role: str, team: str, expires_s: float, now_s: float) -> tuple[User, str]:
        """Add a user; return them and their token, which is never shown again.

        Raises:
            ConflictError: There is a user of that name.
        """
        self._refresh()
        if name in self._users or name == OWNER:
            raise ConflictError(
                f"there is a user '{name}' already", f"tide user rotate {name} gives a new token"
            )
        return self._keep(User(name, role, team, created_s=now_s, expires_s=expires_s))

    def rotate(self, name: str) -> tuple[User, str]:
        """Give a user a new token; the old one ends at once."""
        return self._keep(self._known(name))

    def remove(self, name: str) -> User:
        """Forget a user; their token ends at once. Their jobs go on."""
        user = self._known(name)
        del self._users[name]
        self._write()
        return user

    def _known(self, name: str) -> User:
        self._refresh()
        if name not in self._users:
            known = ", ".join(sorted(self._users)) or "there are none"
            raise NotFoundError(f"no user '{name}'; users are: {known}", "tide user ls lists them")
        return self._users[name]

    def _keep(self, user: User) -> tuple[User, str]:
        token = secrets.token_urlsafe(32)
        kept = msgspec.structs.replace(user, token_hash=hash_token(token))
        self._users[user.name] = kept
        self._write()
        return kept, token

    def _refresh(self) -> None:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            self._users, self._stamp = {}, (0, 0)
            return
        stamp = (found.st_mtime_ns, found.st_ino)
        if stamp == self._stamp:
            return
        try:
            users = msgspec.json.decode(self._path.read_bytes(), type=list[User])
            self._users = {u.name: u for u in users if u.rank is not None}
        except (msgspec.DecodeError, KeyError) as error:
            self._users = {}  # a damaged file lets nobody in but the owner
            raise TidecellError(f"{self._path} is damaged: {error}", "mend it, or delete it") from error
        finally:
            self._stamp = stamp

    def _write(self) -> None:
        body = msgspec.json.format(msgspec.json.encode(list(self._users.values())), indent=1)
        Home.write_private(self._path, body.decode() + "\n")
        found = self._path.stat()
        self._stamp = (found.st_mtime_ns, found.st_ino)


Refuse = Callable[[int, str, str, str], ASGIApp]


class AccessGate:
    """Lets a call pass whose token may make it; ``scope["tidecell.user"]`` says who asks.

    Args:
        app: What is behind it.
        book: Who may come in.
        team_of: The team of a job by name; None: there is no such job, which the app will say.
        refuse: Builds an answer from status, error type, message and hint.
    """

    def __init__(
        self, app: ASGIApp, book: AccessBook, team_of: Callable[[str], str | None], refuse: Refuse
    ) -> None:
        self._app, self._book, self._team_of, self._refuse = app, book, team_of, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 without a token that is known, 403 to one that may not."""
        if scope["type"] not in ("http", "websocket") or self._open(scope["path"]):
            await self._app(scope, receive, send)
            return
        answer = self._judge(scope)
        await (answer or self._app)(scope, receive, send)

    def _judge(self, scope: Scope) -> ASGIApp | None:
        given = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
        kind, _, token = given.partition(" ")
        try:
            user = self._book.identify(token, time.time()) if kind == "Bearer" and token else None
        except TidecellError as error:
            return self._refuse(500, type(error).__name__, error.message, error.hint)
        if user is None:
            hint = "send `Authorization: Bearer` with it: tide token"
            return self._refuse(401, "Unauthorized", "the cell's token is missing or wrong", hint)
        scope["tidecell.user"] = user
        try:
            self._check(user, scope.get("method", "GET"), scope["path"])
        except ForbiddenError as error:
            return self._refuse(403, "ForbiddenError", error.message, error.hint)
        return None

    def _check(self, user: User, method: str, path: str) -> None:
        need = role_needed(method, path)
        if user.rank < need:
            raise ForbiddenError(
                f"user '{user.name}' is a {user.role}; {method} {path} needs a{_n(need)} {need.word}",
                "ask an admin of the cell: tide user add NAME --role ROLE",
            )
        name = path.removeprefix("/v1/jobs/").split("/")[0] if path.startswith("/v1/jobs/") else ""
        if name and need >= Role.MEMBER:
            check_team(user, self._team_of(name), f"job '{name}'")

    @staticmethod
    def _open(path: str) -> bool:
        return path in _OPEN_PATHS or path.startswith("/static/")


def _n(role: Role) -> str:
    return "n" if role in (Role.OPERATOR, Role.ADMIN) else ""


def check_team(user: User, team: str | None, what: str) -> None:
    """Raise ForbiddenError if what belongs to a team is not this user's business; None: to nobody."""
    if team is None or may_touch(user, team):
        return
    whose = f"team '{team}'" if team else "no team"
    mine = f"team '{user.team}'" if user.team else "no team"
    raise ForbiddenError(
        f"{what} belongs to {whose}; user '{user.name}' is a {user.role} of {mine}",
        "an operator may; or ask that team",
    )
