"""`tide apply` and `tide plan`: jobs from a file. The plan shown is the scheduler's own."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from tidecell.cli.show import err, out, print_json, state_text
from tidecell.client.client import Client
from tidecell.client.schema import parse_specs
from tidecell.client.views import JobStatus
from tidecell.structs.errors import TidecellError
from tidecell.structs.job import JobSpec


def read_specs(path: str) -> list[JobSpec]:
    """Read and check a whole file; ``-`` is standard input."""
    if path == "-":
        return parse_specs(sys.stdin.read(), "standard input", Path.cwd())
    file = Path(path).expanduser()
    try:
        text = file.read_text()
    except OSError as error:
        raise TidecellError(
            f"{path} cannot be read: {error.strerror}", "give an existing file with -f"
        ) from error
    except UnicodeDecodeError as error:
        raise TidecellError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    return parse_specs(text, path, file.absolute().parent)


@click.command()
@click.option("-f", "--file", "path", required=True, help="YAML file, or - for standard input.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def plan(path: str, as_json: bool) -> None:
    """Show what applying a file would do: placements, who would be shrunk or evicted, what waits."""
    from tidecell.scheduler.explain import render_plan

    specs = read_specs(path)
    with Client.from_home() as client:
        view = client.plan(specs)
    if as_json:
        print_json(view)
    else:
        click.echo(render_plan(view))


@click.command()
@click.option("-f", "--file", "path", required=True, help="YAML file, or - for standard input.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print the jobs as JSON.")
def apply(path: str, yes: bool, as_json: bool) -> None:
    """Create or change jobs from a file; shows the plan and asks."""
    from tidecell.scheduler.explain import render_plan

    specs = read_specs(path)
    with Client.from_home() as client:
        view = client.plan(specs)
        if not as_json:
            click.echo(render_plan(view))
        if not yes and not click.confirm("apply?", default=True, err=True):
            raise click.exceptions.Exit(1)
        done = [client.apply(spec) for spec in specs]
    if as_json:
        print_json(done)
        return
    for job in done:
        out.print(f"{job.name}  ", state_text(job.state), f"  {_text(job)}".rstrip())
    err.print(f"follow: tide ps -w     tide logs -f {done[0].name}" if done else "the file has no jobs")


def _text(job: JobStatus) -> str:
    """Say where an update stands, or what a job waits for."""
    return job.update.text if job.update is not None else job.message
