"""`tide quota`: who may use how much, who uses it, and who borrows from whom."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from tidecell.cli.show import NamesToo, err, out, print_json, print_table
from tidecell.client.client import Client
from tidecell.client.policy import parse_policy
from tidecell.client.policy_diff import describe_change
from tidecell.client.quota_views import QuotaStatus
from tidecell.structs.errors import NotFoundError, TidecellError
from tidecell.structs.tenant import Policy, describe_amounts


@click.group(cls=NamesToo, no_args_is_help=False)
def quota() -> None:
    """Show what teams may use and do use; `tide quota TEAM` one of them.

    \b
    tide quota apply -f quota.yaml   set teams, quotas and prices (docs/quota.md); asks first
    tide quota clear                 take them away: everything is allowed
    """


@quota.command()
@click.argument("team", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def show(team: str | None, as_json: bool) -> None:
    """Show quota and use, of all teams or of one."""
    with Client.from_home() as client:
        rows = client.quota(team or "")
    if as_json:
        print_json(rows)
    elif rows:
        columns = ("TEAM", "BAND", "QUOTA", "USED", "BORROWED", "LENT", "WAITING", "SHARE", "UNTIL")
        print_table(columns, [_row(r) for r in rows])
    else:
        err.print("no quota is set: everything is allowed (tide quota apply -f quota.yaml)")


def _row(row: QuotaStatus) -> tuple[str, ...]:
    own = describe_amounts(row.own) if row.own else ("unlimited" if row.valid else "none now")
    if row.band == "best-effort":
        own = "over-sold"
    elif row.most:
        own += f" (up to {describe_amounts(row.most)})"
    name = row.team + (f" ({row.cohort})" if row.cohort else "")
    parts = [describe_amounts(a) if a else "-" for a in (row.used, row.borrowed, row.lent, row.waiting)]
    return (name, row.band, own, *parts, f"{row.share:.2f}", _until(row))


def _until(row: QuotaStatus) -> str:
    if row.renews_s and not row.until_s:
        return f"renews {_date(row.renews_s)}"
    if row.from_s > time.time():
        return f"begins {_date(row.from_s)}"
    return _date(row.until_s) if row.until_s else "-"


def _date(at_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at_s))


@quota.command()
@click.option("-f", "--file", "path", required=True, help="YAML file, or - for standard input.")
@click.option("--dry-run", is_flag=True, help="Check the file; change nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def apply(path: str, dry_run: bool, yes: bool) -> None:
    """Show what a file changes, and set teams, quotas and prices from it; it replaces what was set before."""
    from tidecell.cell.quota import begin_periods

    policy = read_policy(path)
    if dry_run:
        err.print(f"{path}: {len(policy.teams)} teams, no mistakes")
        return
    if path == "-" and not yes:
        hint = "look at it with --dry-run, then say -y"
        raise TidecellError("nobody can be asked while the file comes from standard input", hint)
    with Client.from_home() as client:
        before = client.policy()
        after = begin_periods(policy, before, time.time())  # as the cell does when it is set
        for line in describe_change(before, after):
            out.print(line, markup=False)
        if before == after:
            return
        if not yes and not click.confirm("apply?", default=True, err=True):
            raise click.exceptions.Exit(1)
        client.set_policy(policy)
    err.print(f"set: {len(policy.teams)} teams     tide quota shows them with what is used")


def read_policy(path: str) -> Policy:
    """Read and check a quota file; ``-`` is standard input."""
    if path == "-":
        return parse_policy(sys.stdin.read(), "standard input")
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no quota file '{path}'", "give its path with -f") from error
    except (OSError, UnicodeDecodeError) as error:
        raise TidecellError(f"{path} cannot be read: {error}") from error
    return parse_policy(text, path)


@quota.command()
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def clear(yes: bool) -> None:
    """Take all quotas and prices away: everything is allowed then."""
    if not yes and not click.confirm("take all quotas and prices away?", default=False, err=True):
        raise click.exceptions.Exit(1)
    with Client.from_home() as client:
        for line in client.set_policy(None).lines:
            out.print(line)
