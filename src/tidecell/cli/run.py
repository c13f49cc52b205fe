"""`tide run`: run a command as a job and follow it, as if it ran here."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from tidecell.call import environment
from tidecell.cli.show import err, out
from tidecell.client.client import Client
from tidecell.client.schema import parse_priority, parse_replicas
from tidecell.client.units import (
    MAX_REPLICAS,
    UnitError,
    parse_array,
    parse_duration,
    parse_env,
    parse_moment,
    parse_resources,
)
from tidecell.client.views import JobStatus
from tidecell.structs.errors import TidecellError
from tidecell.structs.job import JobSpec, Replicas, Retry, RetryOn, TaskState
from tidecell.structs.labels import is_label
from tidecell.structs.work import Array, grid_size


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("-n", "--name", default="", help="Name of the job (default: from the command).")
@click.option("-d", "--detach", is_flag=True, help="Do not follow; print the name.")
@click.option("--gpus", default="", help="Accelerators per replica, for example 1 or H100:2.")
@click.option("--cpu", default="1", show_default=True, help="Cores per replica.")
@click.option("--memory", default="", help="Memory per replica, for example 4GB: reserved, and its limit.")
@click.option("--replicas", default="", help="N, or MIN..MAX (default: 1).")
@click.option("--array", default="", metavar="N[%P]", help="N independent items, at most P at once: 100%10.")
@click.option(
    "--sweep", multiple=True, metavar="K=A,B", help="An item for each combination of values, in $K."
)
@click.option(
    "--priority", default="batch", show_default=True, help="A band, or a band and a number: batch+5."
)
@click.option("-e", "--env", multiple=True, metavar="K=V", help="Environment variable; may be repeated.")
@click.option("-l", "--label", multiple=True, metavar="K=V", help="Label of the job; may be repeated.")
@click.option("--workdir", default=".", help="Where it runs (default: here).")
@click.option("--max-duration", default="", help="Stop it after so long, for example 2h.")
@click.option("--retries", default=0, help="Start it again so often when it fails.")
@click.option("--grace-period", default="30s", show_default=True, help="Between notice and SIGKILL.")
@click.option("--begin", default="", metavar="TIME", help="Start no earlier: +10m, 2026-11-24 03:00.")
@click.option("--hold", is_flag=True, help="Wait until it is released: tide release NAME.")
@click.option("--alloc", default="", metavar="NAME", help="Run in the room that this alloc has reserved.")
@click.option("--after", multiple=True, metavar="JOB", help="Start when this job has succeeded.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(command: tuple[str, ...], detach: bool, **options: object) -> None:
    """Run a command and follow it: tide run -- python train.py

    Its output comes here; the exit status is the command's. Ctrl-C stops it.
    """
    if command[0].startswith("-"):
        raise TidecellError(
            f"there is no option '{command[0]}'", "tide run --help lists all; the command comes after --"
        )
    spec = _spec(command, options)
    with Client.from_home() as client:
        job = client.submit(spec)
        if detach:
            out.print(f"{job.name}   {job.state.value}   follow it: tide logs -f {job.name}")
            return
        try:
            done = follow(client, job)
        except KeyboardInterrupt:
            done = _interrupt(client, job)
    sys.exit(report_end(done))


def _spec(command: tuple[str, ...], o: dict[str, object]) -> JobSpec:
    def text(key: str) -> str:
        return str(o[key] or "")

    try:
        gpu_type, resources = parse_resources(text("cpu"), text("memory"), text("gpus"))
        array, replicas = _array(text("array"), text("replicas"), list(_strings(o["sweep"])))
        env = dict(parse_env(pair) for pair in _strings(o["env"]))
        labels = dict(parse_label(pair) for pair in _strings(o["label"]))
        retries = int(text("retries") or 0)
        on = (RetryOn.ERROR, RetryOn.INTERRUPTION) if retries else (RetryOn.INTERRUPTION,)
        return JobSpec(
            name=text("name") or _default_name(command),
            argv=command,
            workdir=_workdir(text("workdir")),
            env={**environment(), **env},
            labels=labels,
            resources=resources,
            accelerator_type=gpu_type,
            replicas=replicas,
            array=array,
            priority=parse_priority(text("priority")),
            max_duration_s=parse_duration(text("max_duration")) if text("max_duration") else 0.0,
            grace_period_s=parse_duration(text("grace_period")),
            retry=Retry(on, retries or 3),
            begin_s=parse_moment(text("begin"), time.time()) if text("begin") else 0.0,
            hold=bool(o["hold"]),
            after=tuple(_strings(o["after"])),
            alloc=text("alloc"),
        )
    except ValueError as error:
        raise TidecellError(str(error), "tide run --help shows what each flag takes") from error


def parse_label(text: str) -> tuple[str, str]:
    """Return key and value of ``K=V``."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not is_label(key):
        raise UnitError(f"--label {text!r} is no K=V", "write for example --label owner=ana")
    return key, value


def _strings(value: object) -> Iterator[str]:
    return (str(v) for v in value) if isinstance(value, tuple) else iter(())


def _array(items: str, replicas: str, sweep: list[str]) -> tuple[Array | None, Replicas]:
    """Return the array that is asked for, if one is, and the replicas."""
    if not items and not sweep:
        return None, parse_replicas(replicas or "1")
    if replicas:
        raise UnitError(
            "--replicas and --array are two ways to run many", "say how many at once: --array N%P"
        )
    if not sweep:
        count, parallel = parse_array(items)
        return Array(count), Replicas(0, parallel)
    grid: dict[str, tuple[str, ...]] = {}
    for pair in sweep:
        name, values = parse_env(pair)
        grid[name] = tuple(values.split(","))
    size = grid_size(grid)
    if not items:
        return Array(parse_array(size)[0], grid), Replicas(0, min(size, MAX_REPLICAS))
    count, parallel = parse_array(items)
    if count > size:
        raise UnitError(f"--array {items}: the sweep has only {size} points", f"give {size} or fewer")
    return Array(count, grid, 0 if count == size else count), Replicas(0, parallel)


def _workdir(text: str) -> str:
    path = Path(text).expanduser().absolute()
    if not path.is_dir():
        raise TidecellError(f"workdir {path} is no directory", "give an existing one with --workdir")
    return str(path)


def _default_name(command: tuple[str, ...]) -> str:
    base = Path(command[0]).name.lower()
    clean = "".join(c if c.isalnum() and c.isascii() else "-" for c in base).strip("-")[:40] or "run"
    return f"{clean}-{secrets.token_hex(2)}"


def follow(client: Client, job: JobStatus) -> JobStatus:
    """Print a job's output until it is over; say what it waits for while it does."""
    started = client.wait(job.uid, until="started", timeout_s=0.5)
    if started.state is TaskState.PENDING:
        err.print(
            f"{job.name} waits: {started.message or 'not placed yet'}   (tide why {job.name})", style="yellow"
        )
    for line in client.logs(job.uid, follow=True):
        stream = sys.stdout if line.stream == "out" else sys.stderr
        stream.write(line.text)
        stream.flush()
    return client.wait(job.uid)


def _interrupt(client: Client, job: JobStatus) -> JobStatus:
    """Ctrl-C: stop the job with its grace period; a second one does not wait for that."""
    err.print(f"\nstopping {job.name} (Ctrl-C again: at once)", style="yellow")
    try:
        client.stop(job.uid)
        return client.wait(job.uid)
    except KeyboardInterrupt:
        client.stop(job.uid, now=True)
        return client.wait(job.uid)


def report_end(job: JobStatus) -> int:
    """Say how a job ended where that was not well; return the exit status to pass on."""
    if job.state is TaskState.SUCCEEDED:
        return 0
    text = f"job '{job.name}' {job.state.value}" + (f": {job.message}" if job.message else "")
    err.print(text, style="red")
    if job.state is TaskState.CANCELLED:
        return 130
    return job.exit_code or 1


__all__ = ["follow", "report_end", "run"]
