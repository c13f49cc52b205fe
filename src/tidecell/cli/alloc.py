"""`tide alloc`: reserve room that jobs then enter and leave."""

from __future__ import annotations

import click

from tidecell.cli.show import err, out
from tidecell.client.client import Client
from tidecell.client.schema import parse_priority, parse_replicas
from tidecell.client.units import parse_duration, parse_resources
from tidecell.structs.errors import TidecellError
from tidecell.structs.job import JobSpec, Kind


@click.command()
@click.argument("name")
@click.option("--gpus", default="", help="Accelerators of each envelope, for example 1 or H100:2.")
@click.option("--cpu", default="1", show_default=True, help="Cores of each envelope.")
@click.option("--memory", default="", help="Memory of each envelope, for example 16GB.")
@click.option("--replicas", default="1", show_default=True, help="Envelopes: N, or MIN..MAX.")
@click.option("--priority", default="batch", show_default=True, help="A band, or a band and a number.")
@click.option("--team", default="", help="Whose quota it is charged to; its jobs are of the same team.")
@click.option("--max-duration", default="", help="Give it back after so long, for example 8h.")
@click.option("-d", "--detach", is_flag=True, help="Do not wait until it is there.")
def alloc(name: str, detach: bool, **options: str) -> None:
    """Reserve an envelope on a machine, or several, that jobs enter and leave.

    Jobs enter with `tide run --alloc NAME`, or `alloc: NAME` in a spec; the room stays reserved between them.
    """
    spec = _spec(name, options)
    with Client.from_home() as client:
        job = client.submit(spec)
        if not detach:
            started = client.wait(job.uid, until="started", timeout_s=1.0)
            if started.message:
                err.print(f"{name} waits: {started.message}   (tide why {name})", style="yellow")
                try:
                    started = client.wait(job.uid, until="started")
                except KeyboardInterrupt:
                    hint = f"tide status {name} shows it; tide stop {name} gives it up"
                    raise TidecellError(f"'{name}' still waits for room", hint) from None
            places = ", ".join(f"{name}/{t.index} on {t.machine}" for t in started.tasks if t.machine)
            out.print(f"{name}   {places}")
        err.print(f"enter it: tide run --alloc {name} -- COMMAND     give it back: tide stop {name}")


def _spec(name: str, o: dict[str, str]) -> JobSpec:
    try:
        kind, resources = parse_resources(o["cpu"], o["memory"], o["gpus"])
        return JobSpec(
            name=name,
            kind=Kind.ALLOC,
            resources=resources,
            accelerator_type=kind,
            replicas=parse_replicas(o["replicas"]),
            priority=parse_priority(o["priority"]),
            team=o["team"],
            max_duration_s=parse_duration(o["max_duration"]) if o["max_duration"] else 0.0,
        )
    except ValueError as error:
        raise TidecellError(str(error), "tide alloc --help shows what each flag takes") from error


__all__ = ["alloc"]
