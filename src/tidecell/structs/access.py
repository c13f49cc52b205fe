"""Who may do what: roles, users, and one table of what each call needs. Pure.

Borg gives each user capabilities (EuroSys 2015, §2.5); this is the smallest set that a team of fifty
needs: viewers look, members run work of their own team, operators run everybody's and tend machines,
admins also decide about users and quota. Roles rule what is asked of the API. They do not separate
programs: every task runs as the user that started the cell.
"""

from __future__ import annotations

import enum

import msgspec

OWNER = "owner"  # who started the cell, and may do everything


class Role(enum.IntEnum):
    """What a user is for, from least to most."""

    VIEWER = 0
    MEMBER = 1
    OPERATOR = 2
    ADMIN = 3

    @property
    def word(self) -> str:
        """The role as people type it."""
        return self.name.lower()


class User(msgspec.Struct, frozen=True, omit_defaults=True):
    """Somebody with a token of their own.

    Attributes:
        team: Whose jobs a member may submit, change and stop; empty: of any team, which only operators have.
        token_hash: SHA-256 of the token, in hex; the token itself is kept nowhere.
        expires_s: When the token ends to be accepted; 0: never.
    """

    name: str
    role: str
    team: str = ""
    token_hash: str = ""
    created_s: float = 0.0
    expires_s: float = 0.0

    @property
    def rank(self) -> Role:
        """The role as a number that compares."""
        return Role[self.role.upper()]

    def expired(self, now_s: float) -> bool:
        """Whether the token is no longer accepted."""
        return bool(self.expires_s) and now_s >= self.expires_s


# The first entry whose method and path prefix match says what a call needs. "*" is any method.
_NEEDS: tuple[tuple[str, str, Role], ...] = (
    ("*", "/v1/users", Role.ADMIN),
    ("POST", "/v1/plan", Role.VIEWER),  # commits nothing
    ("GET", "/v1/jobs", Role.VIEWER),
    ("*", "/v1/jobs", Role.MEMBER),
    ("GET", "/v1/", Role.VIEWER),
    ("*", "/v1/quota", Role.ADMIN),
    ("*", "/v1/routing", Role.ADMIN),
    ("*", "/v1/machines", Role.OPERATOR),
    ("*", "/v1/", Role.OPERATOR),
)
# Below a job, also reading is doing: they let in, and so need what a change needs.
_ENTERING = ("/exec", "/attach")


def role_needed(method: str, path: str) -> Role:
    """Return the least role that a call needs.

    Args:
        method: Of the HTTP request; a WebSocket's is GET.
        path: Of the HTTP request.
    """
    if path.startswith("/v1/jobs/") and path.endswith(_ENTERING):
        return Role.MEMBER
    for wanted, prefix, role in _NEEDS:
        if wanted in ("*", method) and (path.startswith(prefix)):
            return role
    return Role.ADMIN


def may_touch(user: User, team: str) -> bool:
    """Return whether a user may submit, change, enter or stop jobs of a team."""
    return user.rank >= Role.OPERATOR or (user.rank is Role.MEMBER and user.team == team)


__all__ = ["Role", "User", "may_touch", "role_needed"]
