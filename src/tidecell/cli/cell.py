"""Commands about the cell itself: up, down, machines, token, console."""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

from tidecell.cli import lifecycle
from tidecell.cli.show import clock, err, out, print_json, print_table
from tidecell.client.client import Client
from tidecell.client.home import Config, Home
from tidecell.client.units import parse_cpu, parse_duration, parse_size
from tidecell.client.views import MachineStatus
from tidecell.structs.errors import TidecellError
from tidecell.structs.placement import is_key
from tidecell.structs.resources import format_bytes, format_cpu


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=0, help="Port of API and console (default: a free one, kept).")
@click.option("--router-port", default=0, help="Port where services are reached (default: a free one, kept).")
@click.option(
    "--machine", default="", help="Name of this machine (default: that of before, or its host name)."
)
@click.option("--cpu", default="", help="Cores to offer (default: all).")
@click.option("--memory", default="", help="Memory to offer, for example 8GB (default: all).")
@click.option("--attr", "attrs", multiple=True, help="KEY=VALUE: say of this machine, for example rack=r1.")
@click.option("--holds", multiple=True, help="Name of a dataset or package that is on this machine.")
@click.option(
    "--interruption",
    default="",
    metavar="FILE|URL",
    help="Where a notice stands before this machine is taken away: then it drains.",
)
@click.option(
    "--keep-events",
    default="",
    metavar="TIME|forever",
    help="How long the event log goes back (default: as before, at first 90d).",
)
@click.option(
    "--trace-requests", is_flag=True, help="The router records sizes and times of requests (docs/router.md)."
)
@click.option("--debug", is_flag=True, help="Check all invariants after every step.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def up(
    host: str,
    port: int,
    router_port: int,
    machine: str,
    cpu: str,
    memory: str,
    attrs: tuple[str, ...],
    holds: tuple[str, ...],
    interruption: str,
    keep_events: str,
    trace_requests: bool,
    debug: bool,
    as_json: bool,
) -> None:
    """Start the cell on this machine; what runs already is left alone."""
    home = Home()
    was_up = lifecycle.is_up(home)
    before = home.config()
    config = Config(
        host=host,
        control_port=port,
        router_port=router_port,
        machine=machine or before.machine,  # a cell that was named keeps its machine's name
        cpu_millis=_parsed(parse_cpu, cpu, "--cpu"),
        memory_bytes=_parsed(parse_size, memory, "--memory"),
        debug=debug,
        attributes=_attributes(attrs),
        holds=holds,
        interruption=interruption,
        keep_events_s=_keep_events(keep_events) if keep_events else before.keep_events_s,
        trace_requests=trace_requests,
    )
    if was_up and trace_requests and not before.trace_requests:
        raise TidecellError(
            "--trace-requests: the cell is up already and its router records nothing",
            "tide down, then tide up with it; tasks start again",
        )
    if was_up and keep_events and config.keep_events_s != before.keep_events_s:
        raise TidecellError(
            f"--keep-events {keep_events}: the cell is up already and keeps them as before",
            "tide down, then tide up with it; tasks start again",
        )
    if host not in ("127.0.0.1", "localhost", "::1"):
        err.print(f"note: listening on {host}: whoever has the token can run commands as you", style="yellow")
    took_s = lifecycle.bring_up(home, home.config() if was_up else config)
    with Client.from_home(home) as client:
        cell = client.cell()
        if as_json:
            print_json(cell)
            return
        machines = client.machines()
    verb = "is up already" if was_up else f"is up ({took_s:.1f} s)"
    out.print(f"cell {verb}")
    for m in machines:
        out.print(f"  machine   {m.name}: {m.capacity.describe()}   isolation: {m.isolation}")
    # The token goes to a person's terminal, never into a file that output is kept in.
    secret = (
        f"#token={home.token()}" if sys.stdout.isatty() else "   (its address with the token: tide console)"
    )
    out.print(f"  console   {cell.control_url}/{secret}")
    out.print(f"  services  {cell.router_url}   (OpenAI base URL: {cell.router_url}/v1)")
    out.print(f"  home      {cell.home}")
    if cell.repair:
        err.print(f"note: the journal was repaired: {cell.repair}", style="yellow")
    out.print("next: tide run -- echo hello     tide ps     tide down")


def _attributes(texts: tuple[str, ...]) -> dict[str, str]:
    """Read KEY=VALUE pairs."""
    found = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not is_key(key) or not value or any(c in value for c in "(),\n"):
            raise TidecellError(
                f"--attr {text}: is no KEY=VALUE",
                "write for example --attr rack=r1; no commas or parentheses",
            )
        found[key] = value
    return found


def _keep_events(text: str) -> float:
    """Read a time, at least a day; 0 is for ever."""
    if text == "forever":
        return 0.0
    try:
        keep_s = parse_duration(text)
    except ValueError as error:
        raise TidecellError(f"--keep-events {text}: {error}", "write for example 30d, or forever") from error
    if keep_s < 86_400.0:
        raise TidecellError(f"--keep-events {text}: less than a day", "write for example 30d, or forever")
    return keep_s


def _parsed(parse: Callable[[str], int], text: str, flag: str) -> int:
    if not text:
        return 0
    try:
        return parse(text)
    except ValueError as error:
        raise TidecellError(f"{flag} {text}: {error}") from error


@click.command()
@click.option("--grace", default=10.0, show_default=True, help="Seconds between SIGTERM and SIGKILL.")
def down(grace: float) -> None:
    """Stop the cell and everything that runs in it. State stays; `tide up` goes on from it."""
    home = Home()
    if lifecycle.bring_down(home, grace):
        out.print(f"cell is down; its state stays in {home.path}")
    else:
        out.print(f"no cell runs in {home.path}")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def machines(as_json: bool) -> None:
    """List machines: what they have, what is reserved, what is used."""
    with Client.from_home() as client:
        rows = client.machines()
    if as_json:
        print_json(rows)
        return
    columns = (
        "MACHINE",
        "STATE",
        "CPU RESERVED",
        "CPU USED",
        "MEMORY RESERVED",
        "USED",
        "GPUS",
        "TASKS",
        "ISOLATION",
        "SHARING",
        "ATTRIBUTES",
    )
    print_table(
        columns,
        [
            (
                m.name,
                _machine_state(m),
                f"{format_cpu(m.reserved.cpu_millis)} of {format_cpu(m.capacity.cpu_millis)}",
                format_cpu(round(m.cpu_used_millis, -1)),
                f"{format_bytes(m.reserved.memory_bytes)} of {format_bytes(m.capacity.memory_bytes)}",
                format_bytes(m.memory_used_bytes),
                f"{format_cpu(m.reserved.gpu_millis)} of {format_cpu(m.capacity.gpu_millis)}",
                str(m.num_tasks),
                m.isolation,
                m.sharing or "-",
                _said(m),
            )
            for m in rows
        ],
    )


def _said(machine: MachineStatus) -> str:
    """Return attributes and what is held, without what each machine says anyway."""
    usual = ("os", "arch", "cpu_model")
    parts = [f"{key}={value}" for key, value in machine.attributes.items() if key not in usual]
    return " ".join([*parts, *(f"holds:{name}" for name in machine.holds)])


def _machine_state(machine: MachineStatus) -> str:
    parts = ["up" if machine.up else "gone"]
    if machine.held_until_s:
        parts.append(f"its tasks wait for it until {clock(machine.held_until_s)}")
    if machine.drain is not None:
        parts.append(machine.drain.text)
    return ", ".join(parts)


@click.command()
def token() -> None:
    """Print the cell's token: who has it may do everything here."""
    text = Home().token()
    if not text:
        raise TidecellError(f"no cell was ever started in {Home().path}", "start one: tide up")
    click.echo(text)


@click.command()
def console() -> None:
    """Print the console's address, token included."""
    home = Home()
    with Client.from_home(home) as client:
        click.echo(f"{client.url}/#token={home.token()}")
