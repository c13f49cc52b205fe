"""`tide sim --from`: what becomes of a cell from here on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from msgspec.structs import replace

from tidecell.cell.state import CellState
from tidecell.cli.show import err, out, print_json, print_table, span
from tidecell.cli.snapshot import read_cell
from tidecell.cli.specs import read_specs
from tidecell.client.units import UnitError, parse_duration
from tidecell.sim.resume import Forecast, Outlook, run_forecast
from tidecell.structs.errors import DataError
from tidecell.structs.machine import MachineSpec


def simulate_cell(
    source: str,
    added: str | None,
    durations: Sequence[str],
    machines: Sequence[str],
    until_s: float,
    seed: int,
    as_json: bool,
) -> None:
    """Run a copy of a cell in virtual time, and print what happens."""
    state, at_s = read_cell(source)
    specs = read_specs(added) if added else []
    more, fewer = changed_machines(state, machines)
    given = dict(_given(text) for text in durations)
    found = run_forecast(state, at_s, specs, given, more, fewer, until_s, seed)
    if as_json:
        print_json(found)
    else:
        _print(found, until_s)


def _given(text: str) -> tuple[str, float]:
    name, eq, value = text.partition("=")
    if not eq or not name:
        raise DataError(f"--duration {text} names no job", "write NAME=2h")
    try:
        return name, parse_duration(value)
    except UnitError as error:
        raise DataError(f"--duration {text}: {error.message}", error.hint) from error


def changed_machines(state: CellState, changes: Sequence[str]) -> tuple[list[MachineSpec], list[str]]:
    """Return the machines that join and the names of those that leave.

    Args:
        state: The cell.
        changes: ``+2`` (copies of the commonest machine), ``+2:NAME`` (copies of one), ``-1`` (the last by
            name), ``-NAME`` or ``NAME`` (that one goes).
    """
    up = {n: m.spec for n, m in sorted(state.machines.items()) if m.up}
    more: list[MachineSpec] = []
    fewer: list[str] = []
    for change in changes:
        plus = re.fullmatch(r"\+(\d+)(?::(.+))?", change)
        minus = re.fullmatch(r"-(\d+)", change)
        if plus:
            model = _named(up, plus[2], change) if plus[2] else _commonest(up, change)
            more += [replace(model, name=f"{model.name}-new{len(more) + i}") for i in range(int(plus[1]))]
        elif minus:
            left = [n for n in up if n not in fewer]
            if int(minus[1]) > len(left):
                raise DataError(f"--machines {change}: the cell has {len(left)}", "take fewer away")
            fewer += left[len(left) - int(minus[1]) :]
        else:
            fewer.append(_named(up, change.removeprefix("-"), change).name)
    return more, fewer


def _named(up: dict[str, MachineSpec], name: str, change: str) -> MachineSpec:
    if name not in up:
        raise DataError(
            f"--machines {change}: no machine '{name}' is up; there are {', '.join(list(up)[:12]) or 'none'}",
            "write +2, +2:NAME, -1 or -NAME",
        )
    return up[name]


def _commonest(up: dict[str, MachineSpec], change: str) -> MachineSpec:
    if not up:
        raise DataError(
            f"--machines {change}: the cell has no machine to copy", "begin with a cell that has one"
        )
    shape = Counter(m.capacity for m in up.values()).most_common(1)[0][0]
    return next(m for m in up.values() if m.capacity == shape)


def _print(found: Forecast, until_s: float) -> None:
    ahead = f"the next {span(until_s)}" if until_s else "until nothing more happens by itself"
    out.print(f"{found.num_machines} machines, {len(found.jobs)} jobs, {ahead}")
    rows = sorted(found.jobs, key=lambda o: (o.starts_s is None, o.starts_s or 0.0, o.name))
    print_table(
        ("JOB", "PRIORITY", "STARTS", "MACHINES", "ENDS", "IN THE END", "DURATION RESTS ON"),
        [
            (o.name, o.priority, _start(o), ",".join(o.machines) or "-", _end(o), o.state, o.basis)
            for o in rows
        ],
    )
    for p in found.preempted:
        verb = f"shrinks to {p.new_size}" if p.new_size else "is stopped"
        out.print(
            f"  after {span(p.at_s)}  {p.job}/{p.index} on {p.machine} leaves for {p.by}: {p.job} {verb}"
        )
    for o in rows:
        if o.waits:
            out.print(f"  still waits  {o.name}: {o.waits}")
    for line in found.refused:
        out.print(f"  refused      {line}")
    for line in found.assumptions:
        err.print(f"assumed: {line}")


def _start(o: Outlook) -> str:
    if o.starts_s is None:
        return "not in this time"
    return (
        "runs" if o.starts_s == 0 and not o.machines else (f"in {span(o.starts_s)}" if o.starts_s else "now")
    )


def _end(o: Outlook) -> str:
    return f"in {span(o.ends_s)}" if o.ends_s is not None else "-"
