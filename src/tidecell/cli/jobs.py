"""Commands about jobs: ps, queue, status, why, logs, events, stop, scale, prio."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import click
from rich.live import Live
from rich.table import Table

from tidecell.cli.show import (
    ago,
    clock,
    err,
    journal_text,
    make_table,
    moment,
    out,
    print_json,
    print_table,
    replicas_text,
    span,
    state_text,
    waits_text,
)
from tidecell.client.client import Client
from tidecell.client.routing_views import RouteWhy
from tidecell.client.schema import parse_priority, parse_replicas
from tidecell.client.units import parse_cpu, parse_duration, parse_size
from tidecell.client.views import CellStatus, JobStatus, WhyView
from tidecell.structs.errors import NotFoundError, TidecellError
from tidecell.structs.resources import format_bytes, format_cpu

T = TypeVar("T")


def _value(parse: Callable[[str], T], text: str, flag: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise TidecellError(f"{flag} {text}: {error}") from error


_by_label = click.option(
    "-l", "--label", "labels", multiple=True, help="Only with this label: key=value, key!=value, key or !key."
)


def _ps_table(jobs: Sequence[JobStatus]) -> Table:
    rows = [
        (
            j.name,
            j.kind,
            state_text(j.state),
            replicas_text(j) if not j.done or j.array is not None else str(j.replicas),
            j.priority,
            ago(j.submitted_s),
            waits_text(j),
        )
        for j in jobs
    ]
    return make_table(("NAME", "KIND", "STATE", "REPLICAS", "PRIORITY", "AGE", "WAITS FOR"), rows)


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Finished jobs too.")
@click.option("-w", "--watch", is_flag=True, help="Keep showing, once a second.")
@_by_label
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def ps(everything: bool, watch: bool, labels: tuple[str, ...], as_json: bool) -> None:
    """List jobs."""
    with Client.from_home() as client:
        if watch and not as_json:
            with Live(console=out, auto_refresh=False) as live:
                while True:
                    live.update(_ps_table(client.jobs(everything, labels)), refresh=True)
                    time.sleep(1.0)
        jobs = client.jobs(everything, labels)
    if as_json:
        print_json(jobs)
    elif jobs:
        out.print(_ps_table(jobs))
    else:
        with_labels = " with these labels" if labels else ""
        more = "" if everything else " (tide ps -a lists finished ones too)"
        err.print(f"no {'' if everything else 'live '}jobs{with_labels}{more}")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def queue(as_json: bool) -> None:
    """List jobs with waiting replicas, in scheduling order."""
    with Client.from_home() as client:
        waiting = [j for j in client.jobs() if j.waiting is not None]
    waiting.sort(key=lambda j: (j.position, j.submitted_s, j.uid))
    if as_json:
        print_json([{"position": j.position, "team_position": j.team_position, "job": j} for j in waiting])
        return
    if not waiting:
        err.print("nothing waits")
        return
    rows = [
        (
            str(j.position or "-"),
            j.name,
            f"{j.team} #{j.team_position}" if j.team else "-",
            j.priority,
            ago(j.submitted_s),
            replicas_text(j),
            waits_text(j),
        )
        for j in waiting
    ]
    print_table(("#", "NAME", "TEAM", "PRIORITY", "AGE", "REPLICAS", "WAITS FOR"), rows)


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def status(name: str | None, as_json: bool) -> None:
    """Show one job in full, or without NAME the cell."""
    with Client.from_home() as client:
        if name is None:
            cell = client.cell()
            if as_json:
                print_json(cell)
            else:
                _print_cell(cell, client)
            return
        job = client.job(name)
    if as_json:
        print_json(job)
    else:
        _print_job(job)


def _print_cell(cell: CellStatus, client: Client) -> None:
    def up(good: bool) -> str:
        return "up" if good else "DOWN"

    jobs = client.jobs()
    since = f"epoch {cell.epoch}, process {cell.pid}, for {ago(cell.started_s)}"
    out.print(f"control plane  up, {since}   {cell.control_url}")
    out.print(f"router         {up(cell.router_up)}   {cell.router_url}")
    out.print(f"agent          {up(cell.agent_up)}   isolation: {cell.isolation}")
    out.print(f"journal        {journal_text(cell)}" + (f"   repaired: {cell.repair}" if cell.repair else ""))
    waiting = sum(1 for j in jobs if j.running < j.replicas.min)
    out.print(f"jobs           {len(jobs)} live, {waiting} waiting")
    out.print(f"home           {cell.home}")


def _print_job(job: JobStatus) -> None:
    out.print(f"{job.name}  ", state_text(job.state), f"  ({job.kind}, {job.uid})")
    facts = [
        ("priority", job.priority),
        _size_fact(job),
        ("each needs", job.resources.describe()),
        *_program_facts(job),
        ("submitted", f"{clock(job.submitted_s)}, {ago(job.submitted_s)} ago"),
    ]
    if job.started_s:
        end_s = job.finished_s or time.time()
        facts.append(("ran", span(end_s - job.started_s)))
    if job.endpoint:
        facts.append(("endpoint", job.endpoint))
    if job.team:
        facts.append(("team", job.team))
    if job.labels:
        facts.append(("labels", ", ".join(f"{k}={v}" for k, v in job.labels.items())))
    if job.models:
        facts.append(("models", ", ".join(job.models)))
    if job.version > 1:
        facts.append(("version", f"{job.version} (tide history {job.name})"))
    if job.update is not None:
        facts.append(("update", job.update.text))
    if job.desired_why:
        facts.append(("scaled", job.desired_why))
    if job.begin_s > time.time():
        facts.append(("begins", moment(job.begin_s)))
    if job.runs:
        facts.append(("runs", ", ".join(job.runs[-10:])))
    if text := waits_text(job):
        facts.append(("outcome" if job.done else "waits for", text))
    if job.waiting is not None and job.waiting.detail:
        facts.append(("", job.waiting.detail))
    if job.position:
        mine = f", {job.team_position} of team {job.team}" if job.team else ""
        facts.append(("position", f"{job.position} among all that wait{mine}"))
    for key, value in facts:
        out.print(f"  {key:<11}{value}")
    rows = [
        (
            str(t.index),
            state_text(t.state),
            ("leaving: " + t.leaving)
            if t.leaving
            else ("ready" if t.ready and job.kind == "service" else ""),
            str(t.attempt),
            (f"{t.machine} ({t.envelope})" if t.envelope else t.machine) or "-",
            str(t.pid or "-"),
            str(t.port or "-"),
            format_cpu(t.cpu_millis) if t.pid else "-",
            format_bytes(t.memory_bytes) if t.pid else "-",
            t.message,
        )
        for t in job.tasks[:50]
        if t.wanted or t.attempt
    ]
    columns = ("REPLICA", "STATE", "", "ATTEMPT", "MACHINE", "PID", "PORT", "CPU", "MEMORY", "LAST")
    print_table(columns, rows)


def _program_facts(job: JobStatus) -> list[tuple[str, str]]:
    """Say what it runs; of an alloc who is inside and what is free."""
    inside = [("alloc", job.alloc)] if job.alloc else []
    if job.kind != "alloc":
        return [("command", job.command), ("workdir", job.workdir or "its own directory"), *inside]
    free = "; ".join(f"{name}: {room.describe()}" for name, room in job.free.items())
    return [("jobs in it", ", ".join(job.members) or "none"), ("free", free or "not placed yet")]


def _size_fact(job: JobStatus) -> tuple[str, str]:
    if job.schedule is not None:
        s = job.schedule
        return ("schedule", f"'{s.cron}' ({s.timezone}); overlap: {s.overlap}, catch_up: {s.catch_up}")
    if job.array is None:
        sizes = f"{job.running} running, {job.ready} ready, {job.desired} wanted ({job.replicas})"
        return ("replicas", sizes)
    counts = ", ".join(f"{n} {state}" for state, n in job.array.counts.items())
    return ("items", f"{job.array.count}: {counts}; at most {job.array.parallel} at once")


@click.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.option("--route", is_flag=True, help="Ask the router only: a service, a model or a request's id.")
def why(name: str, as_json: bool, route: bool) -> None:
    """Say why a job waits, or where a service's requests go.

    Of a job: reasons, who holds what it needs, and changes that would let it start now. Of a service, a model
    or a request (x-request-id): each replica's state and why it is chosen or not, and what was shed.
    """
    from tidecell.cli.route_why import render_route_why
    from tidecell.scheduler.explain import render_why

    with Client.from_home() as client:
        view = None if route else _why_job(client, name)
        routed = client.route_why(name) if view is None else _why_service(client, name)
    if as_json:
        print_json(view or routed)
        return
    if view is not None:
        click.echo(render_why(view, time.time()))
    if routed is not None:
        click.echo("\n".join(render_route_why(routed)))


def _why_job(client: Client, name: str) -> WhyView | None:
    """Return why a job waits; None: there is no such job, so the name may be one that the router knows."""
    try:
        return client.why(name)
    except NotFoundError as error:
        try:
            client.route_why(name)
        except TidecellError:
            raise error from None
        return None


def _why_service(client: Client, name: str) -> RouteWhy | None:
    """Return what the router says of a job that is a service; None: it is none, or the router is away."""
    try:
        return client.route_why(name)
    except TidecellError:
        return None


@click.command()
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job is over.")
@click.option("--since", default="", help="Only of the last, for example 10m.")
@click.option("--tail", type=int, default=None, help="Begin with the last N lines of each stream.")
@click.option("--replica", type=int, default=None, help="Only of this replica.")
@click.option("--stream", type=click.Choice(["all", "out", "err"]), default="all", show_default=True)
def logs(name: str, follow: bool, since: str, tail: int | None, replica: int | None, stream: str) -> None:
    """Show a job's output, kept after it ended; standard error goes to standard error."""
    since_s = _value(parse_duration, since, "--since") if since else None
    with Client.from_home() as client:
        job = client.job(name)
        many = (job.array is not None or len([t for t in job.tasks if t.attempt]) > 1) and replica is None
        for line in client.logs(name, follow, tail, since_s, replica, stream):
            stream_to = sys.stdout if line.stream == "out" else sys.stderr
            stream_to.write(_prefixed(line.text, line.index) if many else line.text)
            stream_to.flush()


def _prefixed(text: str, index: int) -> str:
    return "".join(f"[{index}] {part}" for part in text.splitlines(keepends=True))


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME...]")
@_by_label
@click.option("-y", "--yes", is_flag=True, help="With -l: do not ask.")
@click.option("--now", is_flag=True, help="Skip the grace period: SIGKILL at once.")
@click.option("--force", is_flag=True, help="Stop an alloc with all jobs in it.")
@click.option("-d", "--detach", is_flag=True, help="Do not wait until it has stopped.")
def stop(
    names: tuple[str, ...], labels: tuple[str, ...], yes: bool, now: bool, detach: bool, force: bool
) -> None:
    """Stop jobs, by name or by label: notice, SIGTERM, and SIGKILL after the grace period."""
    if bool(names) == bool(labels):
        what = "gives names and labels" if names else "says neither names nor labels"
        raise TidecellError(f"the command {what}", "tide stop NAME... or tide stop -l key=value")
    with Client.from_home() as client:
        if labels:
            names = _chosen(client, labels, yes)
        stopped = [client.stop(name, now, force) for name in names]
        for job in stopped:
            last = job if detach else client.wait(job.uid)
            out.print(f"{last.name}  ", state_text(last.state), "" if last.done else "  (stopping)")


def _chosen(client: Client, labels: tuple[str, ...], yes: bool) -> tuple[str, ...]:
    """Return the uids of the live jobs with these labels, once somebody has seen and agreed to them."""
    jobs = client.jobs(labels=labels)
    if not jobs:
        err.print("no live jobs with these labels")
        return ()
    err.print(_ps_table(jobs))
    count = "this job" if len(jobs) == 1 else f"these {len(jobs)} jobs"
    if not yes and not click.confirm(f"stop {count}?", default=False, err=True):
        raise click.exceptions.Exit(1)
    return tuple(job.uid for job in jobs)


@click.command()
@click.argument("name")
@click.argument("replicas")
def scale(name: str, replicas: str) -> None:
    """Change a job's replicas: tide scale chat 2..8 (of an array: how many items run at once)"""
    wanted = _value(parse_replicas, replicas, "replicas")
    with Client.from_home() as client:
        job = client.scale(name, wanted.min, wanted.max)
    if job.array is not None:
        out.print(f"{job.name}  at most {job.array.parallel} at once, {job.running} running")
    else:
        out.print(f"{job.name}  replicas {job.replicas}, {job.desired} wanted, {job.running} running")


@click.command()
@click.argument("name")
@click.option("--cpu", default="", help="Cores of each replica, for example 2 or 500m.")
@click.option("--memory", default="", help="Memory of each replica, for example 4GB; 0: no limit.")
@click.option("--restart", is_flag=True, help="Start replicas again if they cannot be resized as they run.")
def resize(name: str, cpu: str, memory: str, restart: bool) -> None:
    """Change the cpu and memory of a job's replicas while they run: tide resize train --memory 8GB"""
    if not cpu and not memory:
        raise TidecellError("the command names no size", "give --cpu, --memory or both")
    cpu_millis = _value(parse_cpu, cpu, "--cpu") if cpu else None
    memory_bytes = (0 if memory == "0" else _value(parse_size, memory, "--memory")) if memory else None
    with Client.from_home() as client:
        job = client.resize(name, cpu_millis, memory_bytes, restart)
    how = f"  {job.update.text}" if job.update is not None else ""
    out.print(f"{job.name}  each has {job.resources.describe()}{how}", highlight=False)


@click.command()
@click.argument("name")
@click.argument("priority")
def prio(name: str, priority: str) -> None:
    """Change a job's priority: tide prio train batch+3"""
    wanted = _value(parse_priority, priority, "priority")
    with Client.from_home() as client:
        job = client.change(name, priority=wanted)
    out.print(f"{job.name}  priority {job.priority}")
