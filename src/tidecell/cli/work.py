"""Commands that hold work back and let it go: hold, release."""

from __future__ import annotations

import click

from tidecell.cli.show import out, state_text, waits_text
from tidecell.client.client import Client


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def hold(names: tuple[str, ...]) -> None:
    """Hold jobs back: what waits does not start, what runs goes on; a schedule does not fire."""
    with Client.from_home() as client:
        for job in [client.hold(name) for name in names]:
            out.print(
                f"{job.name}  ", state_text(job.state), f"  held; tide release {job.name} lets it start"
            )


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def release(names: tuple[str, ...]) -> None:
    """Let jobs start that are held back, or whose begin time has not come."""
    with Client.from_home() as client:
        for job in [client.release(name) for name in names]:
            out.print(f"{job.name}  ", state_text(job.state), f"  {waits_text(job)}".rstrip())
