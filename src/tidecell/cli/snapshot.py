"""`tide snapshot`: keep a cell in a file, and ask of the copy what one asks of a cell."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from tidecell.cell.export import import_state
from tidecell.cell.past import history_of
from tidecell.cell.snapshot import take_snapshot
from tidecell.cell.state import CellState
from tidecell.cli.show import ago, err, out, print_json
from tidecell.client.client import Client
from tidecell.structs.errors import ConflictError, DataError, NotFoundError


@click.group()
def snapshot() -> None:
    """Keep the cell in a file, without secrets, and ask plan and why of the copy."""


@snapshot.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def save(file: Path) -> None:
    """Write the cell to FILE (- is standard output): what runs where and what waits, no secrets."""
    with Client.from_home() as client:
        body = client.snapshot()
    if str(file) == "-":
        sys.stdout.buffer.write(body + b"\n")
        return
    try:
        file.write_bytes(body)
    except OSError as error:
        raise DataError(f"{file} cannot be written: {error.strerror}", "give a path you may write") from error
    err.print(
        f"kept: {file} ({len(body)} bytes)     ask it: tide sim --from {file}     tide snapshot load {file}"
    )


def read_cell(source: str) -> tuple[CellState, float]:
    """Return a cell from a file, or with ``live`` the one that runs."""
    if source == "live":
        with Client.from_home() as client:
            return import_state(client.snapshot(), "the live cell")
    try:
        body = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise DataError(
            f"{source} cannot be read: {error.strerror}", "give `live`, or an existing file"
        ) from error
    return import_state(body, source)


@snapshot.command()
@click.argument("file")
@click.option("--why", "name", metavar="NAME", help="Say why this job waits in the copy.")
@click.option("--plan", "spec", metavar="SPEC", help="Show what applying this spec to the copy would do.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def load(file: str, name: str | None, spec: str | None, as_json: bool) -> None:
    """Read a cell from FILE and answer questions about it offline; nothing live is touched."""
    state, at_s = read_cell(file)
    if name is not None:
        _why(state, at_s, name, as_json)
    if spec is not None:
        _plan(state, at_s, spec, as_json)
    if name is None and spec is None:
        _summary(state, at_s, as_json)


def _why(state: CellState, at_s: float, name: str, as_json: bool) -> None:
    from tidecell.scheduler.explain import explain_why, render_why

    job = state.find(name)
    if job is None:
        raise NotFoundError(f"no job named '{name}' in the copy", "tide snapshot load FILE lists its jobs")
    if not job.live:
        raise ConflictError(f"job '{name}' is {job.state} in the copy and waits for nothing")
    view = explain_why(take_snapshot(state, at_s), job.uid, at_s, history=history_of(state, at_s))
    if as_json:
        print_json(view)
    else:
        click.echo(render_why(view, at_s))


def _plan(state: CellState, at_s: float, spec: str, as_json: bool) -> None:
    from tidecell.cli.specs import read_specs
    from tidecell.scheduler.explain import explain_plan, render_plan

    specs = read_specs(spec)
    for each in specs:
        known = state.find(each.name)
        if known is not None and known.live:
            raise ConflictError(f"job '{each.name}' is live in the copy", "give the new one another name")
    changes = tuple(f"create {each.name}" for each in specs)
    view = explain_plan(take_snapshot(state, at_s), specs, changes)
    if as_json:
        print_json(view)
    else:
        click.echo(render_plan(view))


def _summary(state: CellState, at_s: float, as_json: bool) -> None:
    live = list(state.live_jobs())
    running = [j.spec.name for j in live if j.active_tasks()]
    waiting = [j.spec.name for j in live if not j.active_tasks()]
    machines = sorted(n for n, m in state.machines.items() if m.up)
    if as_json:
        print_json({"at_s": at_s, "machines": machines, "running": running, "waiting": waiting})
        return
    out.print(f"a cell {ago(at_s, time.time())} ago: {len(machines)} machines, {len(live)} live jobs")
    out.print(f"  running   {', '.join(running) or '-'}")
    out.print(f"  waiting   {', '.join(waiting) or '-'}")
