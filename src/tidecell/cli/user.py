"""`tide user`: who else may use the cell, and for what."""

from __future__ import annotations

import time

import click

from tidecell.cli.show import err, print_json, print_table, span
from tidecell.client.client import Client
from tidecell.client.units import parse_duration
from tidecell.client.views import NewUser, UserView

ROLES = ("viewer", "member", "operator", "admin")


@click.group()
def user() -> None:
    """Add, list and remove users of the cell.

    A viewer looks; a member submits, changes and stops jobs of their team; an operator those of all
    teams, and drains machines; an admin also keeps users and quota.
    """


@user.command()
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), default="member", show_default=True)
@click.option("--team", default="", help="Whose jobs a member may run.")
@click.option("--expires", metavar="DURATION", default="", help="For example 90d; default: never.")
def add(name: str, role: str, team: str, expires: str) -> None:
    """Add a user and print their token, once."""
    expires_s = time.time() + parse_duration(expires) if expires else 0.0
    with Client.from_home() as client:
        _print_token(client.add_user(NewUser(name, role, team, expires_s)), client.url)


@user.command()
@click.argument("name")
def rotate(name: str) -> None:
    """Give a user a new token; the old one ends at once."""
    with Client.from_home() as client:
        _print_token(client.rotate_user(name), client.url)


@user.command()
@click.argument("name")
def rm(name: str) -> None:
    """Remove a user; their token ends at once, their jobs go on."""
    with Client.from_home() as client:
        gone = client.remove_user(name)
    err.print(f"removed {gone.name}")


@user.command(name="ls")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def list_users(as_json: bool) -> None:
    """List users."""
    with Client.from_home() as client:
        users = client.users()
    if as_json:
        print_json(users)
        return
    if not users:
        err.print("only the owner so far; tide user add NAME --team TEAM adds somebody")
        return
    print_table(
        ("USER", "ROLE", "TEAM", "TOKEN"), [(u.name, u.role, u.team or "-", _token_text(u)) for u in users]
    )


def _token_text(user: UserView) -> str:
    if user.expired:
        return "expired"
    return f"expires in {span(user.expires_s - time.time())}" if user.expires_s else "valid"


def _print_token(made: UserView, url: str) -> None:
    """The token alone goes to stdout, so that it can be put in a file without being seen."""
    whose = f" of team {made.team}" if made.team else ""
    err.print(f"{made.name}, {made.role}{whose}; this token is not shown again:")
    click.echo(made.token)
    err.print(
        f"they put it in a file of their own (chmod 600) and set\n"
        f"  TIDECELL_URL={url} TIDECELL_TOKEN_FILE=that file"
    )
