"""`tide events`: what happened, from the journal."""

from __future__ import annotations

import time
from collections.abc import Mapping

import click

from tidecell.cli.export import write_csv, write_parquet
from tidecell.cli.show import clock, err, print_json
from tidecell.cli.usage import moment
from tidecell.client.client import Client
from tidecell.client.views import EventView


@click.command()
@click.argument("name", required=False)
@click.option("--since", default="", help="From then on: 10m back from now, or 2027-03-01.")
@click.option("--until", default="", help="Before then.")
@click.option("--kind", default="", help="Only of this type, for example TaskNoticed.")
@click.option("--team", default="", help="Only of jobs of this team.")
@click.option("-n", "--limit", default=50, show_default=True, help="At most so many, the newest.")
@click.option("-f", "--follow", is_flag=True, help="Keep showing what happens.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="Print as CSV.")
@click.option("--parquet", metavar="FILE", default="", help="Write all that match to a Parquet file.")
def events(
    name: str | None,
    since: str,
    until: str,
    kind: str,
    team: str,
    limit: int,
    follow: bool,
    as_json: bool,
    as_csv: bool,
    parquet: str,
) -> None:
    """Show what happened, from the journal."""
    now_s = time.time()
    from_s = moment(since, "--since", now_s) if since else None
    until_s = moment(until, "--until", now_s) if until else None
    query = {"job": name or "", "kind": kind, "team": team, "from_s": from_s, "until_s": until_s}
    with Client.from_home() as client:
        if parquet:
            found = _all(client, query)
            write_parquet(found, EventView, parquet)
            err.print(f"{len(found)} events in {parquet}")
            return
        found = client.events(limit=limit, **query)  # type: ignore[arg-type]
        if as_json:
            print_json(found)
        elif as_csv:
            write_csv(found, EventView)
        else:
            for event in found:
                _print_event(event)
            _follow(client, query, found[-1].seq if found else 0, follow)


def _all(client: Client, query: Mapping[str, object]) -> list[EventView]:
    """Return everything that matches, a page at a time."""
    found: list[EventView] = []
    while page := client.events(after=found[-1].seq if found else 0, limit=10_000, **query):  # type: ignore[arg-type]
        found += page
    return found


def _follow(client: Client, query: Mapping[str, object], last: int, follow: bool) -> None:
    while follow:
        time.sleep(0.5)
        for event in client.events(after=last, **query):  # type: ignore[arg-type]
            _print_event(event)
            last = event.seq


def _print_event(event: EventView) -> None:
    click.echo(f"{clock(event.at_s)}  {event.seq:>6}  {event.job or 'cell':<20}  {event.text}")
