"""Commands about a job's versions: history, rollback, promote."""

from __future__ import annotations

import click

from tidecell.cli.show import ago, clock, err, out, print_json, print_table, state_text
from tidecell.client.client import Client
from tidecell.client.views import JobStatus, VersionView


@click.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def history(name: str, as_json: bool) -> None:
    """List a job's versions: who made them, when, and what they changed."""
    with Client.from_home() as client:
        found = client.history(name)
    if as_json:
        print_json(found)
        return
    rows = [(str(v.number), clock(v.at_s), ago(v.at_s), v.who or "-", _state(v), _what(v)) for v in found]
    print_table(("VERSION", "AT", "AGE", "BY", "", "CHANGES"), rows)


def _state(version: VersionView) -> str:
    words = [w for w, on in (("current", version.current), ("healthy", version.stable)) if on]
    return ", ".join(words)


def _what(version: VersionView) -> str:
    changes = "; ".join(version.changes)
    return f"{version.why}: {changes}" if version.why else changes


@click.command()
@click.argument("name")
@click.argument("version", type=int, default=0)
@click.option("--json", "as_json", is_flag=True, help="Print the job as JSON.")
def rollback(name: str, version: int, as_json: bool) -> None:
    """Bring an earlier version back, by default the last healthy one: tide rollback chat 3"""
    with Client.from_home() as client:
        job = client.rollback(name, version)
    _print(job, as_json)


@click.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print the job as JSON.")
def promote(name: str, as_json: bool) -> None:
    """Let an update go on: from its canaries, or from where it halted."""
    with Client.from_home() as client:
        job = client.promote(name)
    _print(job, as_json)


def _print(job: JobStatus, as_json: bool) -> None:
    if as_json:
        print_json(job)
        return
    text = job.update.text if job.update is not None else f"version {job.version}"
    out.print(f"{job.name}  ", state_text(job.state), f"  {text}")
    if job.update is not None:
        err.print(f"follow: tide status {job.name}")
