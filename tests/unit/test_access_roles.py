"""Roles: what each may call, and whose jobs it may touch."""

from __future__ import annotations

import pytest

from tidecell.structs.access import Role, User, may_touch, role_needed


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        ("GET", "/v1/jobs", Role.VIEWER),
        ("GET", "/v1/jobs/x/logs", Role.VIEWER),
        ("POST", "/v1/plan", Role.VIEWER),
        ("POST", "/v1/jobs", Role.MEMBER),
        ("DELETE", "/v1/jobs/x", Role.MEMBER),
        ("POST", "/v1/jobs/x/exec", Role.MEMBER),
        ("GET", "/v1/jobs/x/attach", Role.MEMBER),
        ("GET", "/v1/machines", Role.VIEWER),
        ("POST", "/v1/machines/m/drain", Role.OPERATOR),
        ("GET", "/v1/quota", Role.VIEWER),
        ("PUT", "/v1/quota", Role.ADMIN),
        ("GET", "/v1/users", Role.ADMIN),
        ("POST", "/v1/something-new", Role.OPERATOR),
        ("GET", "/elsewhere", Role.ADMIN),
    ],
)
def test_each_call_needs_a_role(method: str, path: str, role: Role):
    assert role_needed(method, path) is role


def test_a_member_touches_jobs_of_the_own_team_only():
    ana = User("ana", "member", "vision")
    assert may_touch(ana, "vision")
    assert not may_touch(ana, "speech")
    assert not may_touch(ana, "")


def test_an_operator_touches_all_and_a_viewer_none():
    assert may_touch(User("ops", "operator"), "vision")
    assert not may_touch(User("eve", "viewer", "vision"), "vision")


def test_an_expired_token_is_not_accepted_from_its_very_moment():
    user = User("ana", "member", "vision", expires_s=100.0)
    assert not user.expired(99.9)
    assert user.expired(100.0)
    assert not User("ana", "member", "vision").expired(1e12)
