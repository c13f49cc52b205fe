"""`tide drain`: empty a machine for maintenance."""

from __future__ import annotations

import time
from datetime import datetime, timedelta

import click

from tidecell.cli.show import err, out, print_json
from tidecell.client.client import Client
from tidecell.client.units import UnitError, parse_duration
from tidecell.client.views import MachineStatus
from tidecell.structs.errors import TidecellError

POLL_S = 0.2


@click.command()
@click.argument("machine")
@click.option("--deadline", default="10m", show_default=True, help="What is left then is ended, with grace.")
@click.option("--at", "at_text", default="", help="Begin at HH:MM, at a date and time, or in 2h.")
@click.option("--cancel", is_flag=True, help="Let the machine take work again.")
@click.option("--wait", is_flag=True, help="Return once the machine holds no task.")
@click.option("--json", "as_json", is_flag=True, help="Print the machine as JSON.")
def drain(machine: str, deadline: str, at_text: str, cancel: bool, wait: bool, as_json: bool) -> None:
    """Empty a machine: it takes no new work, and what runs there moves within disruption budgets."""
    if cancel and (at_text or wait):
        raise TidecellError("--cancel takes the drain back; --at and --wait do not go with it")
    try:
        deadline_s = parse_duration(deadline)
    except UnitError as error:
        raise TidecellError(f"--deadline {deadline}: {error.message}", error.hint) from error
    start_s = parse_moment(at_text, time.time()) if at_text else 0.0
    with Client.from_home() as client:
        status = client.drain(machine, deadline_s, start_s, cancel)
        while wait and status.drain is not None and not status.drain.drained:
            time.sleep(POLL_S)
            status = next(m for m in client.machines() if m.name == machine)
    if as_json:
        print_json(status)
        return
    out.print(f"{machine}  {_text(status)}")
    if not cancel and not wait:
        err.print(f"follow: tide machines     take it back: tide drain {machine} --cancel")


def _text(status: MachineStatus) -> str:
    return status.drain.text if status.drain is not None else "takes work"


def parse_moment(text: str, now_s: float) -> float:
    """Return a moment in seconds since the epoch: ``02:30`` (the next one), a date and time, or ``2h``.

    Raises:
        TidecellError: It is none of these, or over.
    """
    now = datetime.fromtimestamp(now_s)
    try:
        return now_s + parse_duration(text)
    except UnitError:
        pass
    try:
        clock = datetime.strptime(text, "%H:%M")
        at = now.replace(hour=clock.hour, minute=clock.minute, second=0, microsecond=0)
        return (at if at > now else at + timedelta(days=1)).timestamp()
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text).timestamp()
    except ValueError as error:
        raise TidecellError(
            f"--at {text}: is no moment", "write 02:30, 2026-12-01T02:30, or 2h from now"
        ) from error
    if moment < now_s:
        raise TidecellError(f"--at {text}: is over", "give a moment that is still to come")
    return moment
