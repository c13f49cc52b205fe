"""`tide key`: the bearer tokens with which tenants send requests to the router."""

from __future__ import annotations

import click
import msgspec

from tidecell.cli.route import describe_use
from tidecell.cli.show import ago, err, print_json, print_table
from tidecell.client.client import Client
from tidecell.client.routing_views import NewKey
from tidecell.structs.traffic import Limits


@click.group()
def key() -> None:
    """Create, list and revoke keys of tenants.

    A key lets requests in at the router and counts against its tenant's limits, and limits of its own.
    It does not open the cell's API: that is what users are for (tide user). Tenants are named in the file of
    tide route apply.
    """


@key.command()
@click.argument("tenant")
@click.option("--name", default="default", show_default=True, help="For people; unique within the tenant.")
@click.option("--requests-per-minute", type=click.IntRange(0), default=0, help="Of this key; 0: no limit.")
@click.option("--tokens-per-minute", type=click.IntRange(0), default=0, help="Prompt and completion.")
@click.option("--tokens-per-day", type=click.IntRange(0), default=0, help="From midnight to midnight.")
@click.option("--concurrency", type=click.IntRange(0), default=0, help="Requests under way at once.")
def create(tenant: str, name: str, **limits: int) -> None:
    """Give a tenant a key and print its token, once."""
    with Client.from_home() as client:
        made = client.create_key(NewKey(tenant, name, msgspec.convert(limits, Limits)))
    err.print(f"key {made.name} of {made.tenant}; this token is not shown again:")
    click.echo(made.token)


@key.command(name="ls")
@click.argument("tenant", default="")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def list_keys(tenant: str, as_json: bool) -> None:
    """List keys, of all tenants or of one, with what they use."""
    with Client.from_home() as client:
        tenants = client.routing().tenants
    keys = [key for one in tenants if tenant in ("", one.name) for key in one.keys]
    if as_json:
        print_json(keys)
    elif keys:
        rows = [
            (k.tenant, k.name, ago(k.created_s), str(k.in_flight), describe_use(k.limits, k.used))
            for k in keys
        ]
        print_table(("TENANT", "KEY", "AGE", "IN FLIGHT", "USED OF ITS OWN LIMITS"), rows)
    else:
        err.print("no keys; tide key create TENANT makes one")


@key.command()
@click.argument("tenant")
@click.argument("name")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def revoke(tenant: str, name: str, yes: bool) -> None:
    """End a key: the router accepts it no longer."""
    if not yes and not click.confirm(f"end key {name} of {tenant}?", default=False, err=True):
        raise click.exceptions.Exit(1)
    with Client.from_home() as client:
        client.revoke_key(tenant, name)
    err.print(f"revoked {name} of {tenant}")
