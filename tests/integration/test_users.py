"""Users with tokens of their own, against a real cell."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tidecell.client.client import Client
from tidecell.client.views import NewUser
from tidecell.structs.errors import ConflictError, ForbiddenError, NotFoundError, RefusedError, TidecellError
from tidecell.structs.job import JobSpec


def _client_of(owner: Client, new: NewUser) -> Client:
    return Client(owner.url, owner.add_user(new).token)


def _sleeper(name: str, team: str = "") -> JobSpec:
    return JobSpec(name, argv=("sleep", "600"), team=team)


def test_a_member_runs_work_of_the_own_team_and_nobody_elses(client: Client):
    client.submit(_sleeper("theirs", "speech"))
    with _client_of(client, NewUser("ana", "member", "vision")) as ana:
        mine = ana.submit(_sleeper("mine"))
        assert (mine.team, mine.labels["user"]) == ("vision", "ana")
        with pytest.raises(ForbiddenError, match="job 'theirs' belongs to team 'speech'"):
            ana.stop("theirs")
        with pytest.raises(ForbiddenError, match="belongs to team 'speech'; user 'ana' is a member of team"):
            ana.submit(_sleeper("other", "speech"))
        with pytest.raises(ForbiddenError, match="needs an admin"):
            ana.users()
        assert {j.name for j in ana.jobs()} == {"mine", "theirs"}
        ana.stop("mine", now=True)


def test_a_viewer_looks_and_an_operator_stops_anything(client: Client):
    client.submit(_sleeper("job", "vision"))
    with _client_of(client, NewUser("eve", "viewer")) as eve:
        assert eve.why("job").name == "job"
        with pytest.raises(ForbiddenError, match="user 'eve' is a viewer"):
            eve.submit(_sleeper("x"))
    with _client_of(client, NewUser("ops", "operator")) as ops:
        ops.stop("job", now=True)


def test_a_removed_rotated_or_expired_token_ends_at_once(client: Client):
    first = client.add_user(NewUser("ana", "member", "vision"))
    second = client.rotate_user("ana")
    with Client(client.url, first.token) as old, pytest.raises(TidecellError, match="missing or wrong"):
        old.jobs()
    with Client(client.url, second.token) as ana:
        ana.jobs()
        client.remove_user("ana")
        with pytest.raises(TidecellError, match="missing or wrong"):
            ana.jobs()
    past = NewUser("late", "member", "vision", expires_s=time.time() - 1)
    with _client_of(client, past) as late, pytest.raises(TidecellError, match="missing or wrong"):
        late.jobs()


def test_no_token_is_ever_stored(client: Client, cell):
    made = client.add_user(NewUser("ana", "member", "vision"))
    book = cell.home / "access.json"
    assert stat.S_IMODE(book.stat().st_mode) == 0o600
    files = [p for p in Path(cell.home.path).rglob("*") if p.is_file() and not p.name.endswith(".sock")]
    assert not [p for p in files if made.token.encode() in _bytes_of(p)]


def _bytes_of(path: Path) -> bytes:
    """Return what a file holds; nothing if it has gone: files are replaced while the cell runs."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (NewUser("Ana", "member", "v"), "'Ana' is no name for a user"),
        (NewUser("owner", "admin"), "'owner' is no name for a user"),
        (NewUser("ana", "king"), "'king' is no role"),
        (NewUser("ana", "member"), "a member needs a team"),
    ],
)
def test_a_user_that_makes_no_sense_is_refused(client: Client, new: NewUser, message: str):
    with pytest.raises(RefusedError, match=message):
        client.add_user(new)


def test_users_are_known_by_name(client: Client):
    client.add_user(NewUser("ana", "viewer"))
    with pytest.raises(ConflictError, match="there is a user 'ana' already"):
        client.add_user(NewUser("ana", "viewer"))
    with pytest.raises(NotFoundError, match="no user 'bob'; users are: ana"):
        client.remove_user("bob")


def test_the_router_takes_a_members_token_and_not_a_removed_ones(client: Client, wait_until):
    made = client.add_user(NewUser("ana", "member", "vision"))
    router = client.cell().router_url

    def status() -> int:
        headers = {"Authorization": f"Bearer {made.token}"}
        return httpx.get(f"{router}/v1/models", headers=headers, trust_env=False).status_code

    wait_until(lambda: status() == 200, what="the router's knowing the new token")
    client.remove_user("ana")
    wait_until(lambda: status() == 401, what="the router's forgetting the token")


def test_the_command_line_as_another_user(client: Client, cell, tmp_path):
    made = cell.tide("user", "add", "ana", "--team", "vision", "--expires", "90d")
    token_file = tmp_path / "token"
    token_file.write_text(made.stdout)
    listed = json.loads(cell.tide("user", "ls", "--json").stdout)
    assert [(u["name"], u["role"], u["team"]) for u in listed] == [("ana", "member", "vision")]
    env = {k: v for k, v in os.environ.items() if k != "TIDECELL_HOME"}
    env |= {"TIDECELL_URL": client.url, "TIDECELL_TOKEN_FILE": str(token_file)}
    command = [sys.executable, "-m", "tidecell.cli.main"]
    done = subprocess.run([*command, "ps", "--json"], env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, json.loads(done.stdout)) == (0, [])
    refused = subprocess.run([*command, "user", "ls"], env=env, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert "user 'ana' is a member; GET /v1/users needs an admin" in refused.stderr
