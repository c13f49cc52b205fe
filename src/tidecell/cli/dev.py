"""`tide dev`, `tide attach` and `tide exec`: a terminal in the cell."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import click

from tidecell.call import environment
from tidecell.cli.run import report_end
from tidecell.cli.show import err
from tidecell.client.client import Client
from tidecell.client.home import Home
from tidecell.client.schema import parse_priority
from tidecell.client.terminal import attach as join_terminal
from tidecell.client.units import parse_duration, parse_env, parse_resources
from tidecell.client.views import JobStatus
from tidecell.engines.beside import run_beside
from tidecell.structs.errors import NotFoundError, TidecellError
from tidecell.structs.job import JobSpec, Kind, Retry, TaskState

LISTENS_WITHIN_S = 10.0


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("-n", "--name", default="dev", show_default=True, help="Name of the session.")
@click.option("-d", "--detach", is_flag=True, help="Do not attach; tide attach NAME does.")
@click.option("--gpus", default="", help="Accelerators, for example 1 or H100:0.5.")
@click.option("--cpu", default="1", show_default=True, help="Cores.")
@click.option("--memory", default="", help="Memory, for example 8GB.")
@click.option("--priority", default="batch", show_default=True, help="A band, or a band and a number.")
@click.option("--team", default="", help="Whose quota it is charged to.")
@click.option("--alloc", default="", metavar="NAME", help="Start it in the room of this alloc.")
@click.option("-e", "--env", multiple=True, metavar="K=V", help="Environment variable; may be repeated.")
@click.option("--workdir", default=".", help="Where it starts (default: here).")
@click.option(
    "--idle-timeout", default="8h", show_default=True, help="End it after so long without use; 0: never."
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def dev(name: str, detach: bool, command: tuple[str, ...], **options: str) -> None:
    """Start a shell (or COMMAND) in the cell, on a terminal of its own, and attach to it.

    Leave it with ~. at the start of a line, or Ctrl-] d: it goes on, and tide attach brings it back.
    """
    with Client.from_home() as client:
        known = _live(client, name)
        if known is not None:
            if known.kind != Kind.DEV or command:
                raise TidecellError(f"there is a job named '{name}' already", "give another --name")
            err.print(f"{name} runs already: attaching to it", style="dim")
            job = known
        else:
            job = client.submit(_spec(name, command, options))
        if detach:
            err.print(f"{name}   attach: tide attach {name}     end: tide stop {name}")
            return
        _attach(client, job)


@click.command()
@click.argument("name")
def attach(name: str) -> None:
    """Attach this terminal to a dev session; several may be attached at once."""
    with Client.from_home() as client:
        job = client.job(name)
        if job.kind != Kind.DEV:
            raise TidecellError(f"'{name}' is a {job.kind}, not a dev session", f"tide exec {name} -- sh")
        _attach(client, job)


@click.command("exec", context_settings={"ignore_unknown_options": True})
@click.argument("name", metavar="NAME[/INDEX]")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(name: str, command: tuple[str, ...]) -> None:
    """Run COMMAND beside a running task, in its environment and directory; the exit status is COMMAND's."""
    base, _, number = name.partition("/")
    with Client.from_home() as client:
        job = client.job(base)
    running = [t for t in job.tasks if t.pid and (not number or str(t.index) == number)]
    if not running:
        which = f"replica {number} of '{base}'" if number else f"'{base}'"
        raise TidecellError(
            f"no task of {which} is running ({job.state.value})", f"tide status {base} shows what runs"
        )
    sys.exit(run_beside(running[0].pid, command))


def _live(client: Client, name: str) -> JobStatus | None:
    try:
        job = client.job(name)
    except NotFoundError:
        return None
    return (
        None
        if job.state in (TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED, TaskState.TIMEOUT)
        else job
    )


def _spec(name: str, command: tuple[str, ...], o: dict[str, str]) -> JobSpec:
    workdir = Path(o["workdir"]).expanduser().absolute()
    if not workdir.is_dir():
        raise TidecellError(f"workdir {workdir} is no directory", "give an existing one with --workdir")
    try:
        kind, resources = parse_resources(o["cpu"], o["memory"], o["gpus"])
        return JobSpec(
            name=name,
            kind=Kind.DEV,
            argv=command or (os.environ.get("SHELL") or "/bin/sh",),
            workdir=str(workdir),
            env={
                **environment("TERM"),
                **dict(parse_env(pair) for pair in o["env"]),
            },
            resources=resources,
            accelerator_type=kind,
            priority=parse_priority(o["priority"]),
            team=o["team"],
            alloc=o["alloc"],
            retry=Retry((), 0),
            grace_period_s=30.0,
            idle_timeout_s=parse_duration(o["idle_timeout"]),
        )
    except ValueError as error:
        raise TidecellError(str(error), "tide dev --help shows what each flag takes") from error


def _attach(client: Client, job: JobStatus) -> None:
    """Wait for the start, join the terminals, and say how it was left."""
    job = _started(client, job)
    path = Home().session_path(job.uid)
    deadline_s = time.monotonic() + LISTENS_WITHIN_S
    while not path.exists() and time.monotonic() < deadline_s and not client.job(job.uid).finished_s:
        time.sleep(0.02)
    err.print(f"attached to {job.name}; leave it with ~. at the start of a line, or Ctrl-] d", style="dim")
    if join_terminal(path, job.name):
        err.print(
            f"\nleft {job.name}; it goes on   (tide attach {job.name}, tide stop {job.name})", style="dim"
        )
        return
    sys.exit(report_end(client.wait(job.uid)))


def _started(client: Client, job: JobStatus) -> JobStatus:
    """Return the job once it runs; say what it waits for. Ctrl-C leaves it waiting."""
    said = ""
    try:
        while True:
            now = client.wait(job.uid, until="started", timeout_s=1.0)
            if now.state is not TaskState.PENDING and now.state is not TaskState.STARTING:
                return now
            if now.message and now.message != said:
                said = now.message
                err.print(f"{job.name} waits: {said}   (tide why {job.name})", style="yellow")
    except KeyboardInterrupt:
        hint = f"tide attach {job.name} waits on; tide stop {job.name} gives it up"
        raise TidecellError(f"'{job.name}' still waits for its start", hint) from None


__all__ = ["attach", "dev", "exec_"]
