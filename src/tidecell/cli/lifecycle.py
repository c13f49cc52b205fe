"""Start and stop a cell's processes. The agent is started here; it starts the others."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from tidecell.client.client import Client
from tidecell.client.home import Config, Home
from tidecell.engines import wire
from tidecell.structs.errors import CellUnreachable, TidecellError

READY_TIMEOUT_S = 20.0


def is_up(home: Home) -> bool:
    """Return whether the control plane answers."""
    try:
        with Client.from_home(home) as client:
            client.cell()
    except TidecellError:
        return False
    return True


def bring_up(home: Home, config: Config) -> float:
    """Start whatever of the cell does not run, and wait until all of it answers.

    Args:
        config: As wanted; ports that are 0 are chosen.

    Returns:
        Seconds that it took.

    Raises:
        TidecellError: A port is in use, or a process did not come up; the text has its last words.
    """
    began_s = time.monotonic()
    home.create()
    config = _with_ports(home, config)
    home.write_config(config)
    link = _connect(home) or _start_agent(home)
    with link:
        for message in _services(home, config):
            link.sendall(msgspec.json.encode(message) + b"\n")
        _wait_ready(home, began_s)
    return time.monotonic() - began_s


def _services(home: Home, config: Config) -> list[wire.Supervise]:
    python, path = sys.executable, str(home.path)
    control = (python, "-m", "tidecell.server", "--home", path)
    router = (python, "-m", "tidecell.traffic.router", "--home", path, "--host", config.host)
    ports: tuple[str, ...] = ("--port", str(config.router_port), "--control", str(home.socket_path("router")))
    ports += ("--trace",) if config.trace_requests else ()
    listen = (config.host, config.router_port)
    return [wire.Supervise("control", control), wire.Supervise("router", (*router, *ports), listen)]


def _with_ports(home: Home, config: Config) -> Config:
    """Keep the ports of last time where they are free, so that addresses stay good."""
    before = home.config()
    running = bool(_running_pids(home))
    control = _choose_port(config.host, config.control_port, before.control_port, running, "--port")
    router = _choose_port(config.host, config.router_port, before.router_port, running, "--router-port")
    return msgspec.structs.replace(config, control_port=control, router_port=router)


def _running_pids(home: Home) -> list[int]:
    pids = [home.read_int("control/pid"), home.read_int("agent/pid")]
    return [pid for pid in pids if pid and Path(f"/proc/{pid}").exists()]


def _choose_port(host: str, wanted: int, before: int, running: bool, flag: str) -> int:
    if running and before and wanted in (0, before):
        return before
    if wanted:
        if not _is_free(host, wanted):
            raise TidecellError(
                f"port {wanted} on {host} is in use by another program",
                f"choose another with {flag}, or leave the flag out and a free one is chosen",
            )
        return wanted
    if before and _is_free(host, before):
        return before
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _connect(home: Home) -> socket.socket | None:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.connect(str(home.socket_path("agent")))
    except OSError:
        link.close()
        return None
    return link


def _start_agent(home: Home) -> socket.socket:
    log = home / "log" / "agent.log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "tidecell.engines.agent", "--home", str(home.path)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            cwd=home.path,
        )
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline_s:
        link = _connect(home)
        if link is not None:
            # The agent is meant to outlive this program; nobody here will wait for it.
            process.returncode = 0
            return link
        if process.poll() is not None:
            break
        time.sleep(0.01)
    raise TidecellError(f"the agent did not start:\n{_last_words(log)}", f"its log: {log}")


def _wait_ready(home: Home, began_s: float) -> None:
    client = Client.from_home(home)
    with contextlib.closing(client):
        while True:
            waited_s = time.monotonic() - began_s
            missing = "the control plane"
            with contextlib.suppress(CellUnreachable):
                cell = client.cell()
                if not (cell.agent_up and client.machines()):
                    missing = "the agent"
                elif not cell.router_up:
                    missing = "the router"
                else:
                    return
            log = home / "log" / ("router.log" if missing == "the router" else "control.log")
            words = _last_words(log)
            if waited_s > READY_TIMEOUT_S or (waited_s > 3.0 and words.startswith("error:")):
                raise TidecellError(f"{missing} did not come up:\n{words}", f"its log: {log}")
            time.sleep(0.02)


def _last_words(log: Path, lines: int = 6) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"


def bring_down(home: Home, grace_s: float) -> bool:
    """End every task and process of the cell; return False if none ran.

    Raises:
        TidecellError: Something is still there after the grace period and ten seconds more.
    """
    link = _connect(home)
    if link is None:
        return False
    with link:
        link.sendall(msgspec.json.encode(wire.Shutdown(grace_s)) + b"\n")
        link.settimeout(grace_s + 25.0)
        try:
            while link.recv(4096):
                pass
        except TimeoutError:
            raise TidecellError(
                f"the cell in {home.path} did not end within {grace_s + 25:.0f} s",
                f"its agent is process {home.read_int('agent/pid')}; its log: {home / 'log' / 'agent.log'}",
            ) from None
        except OSError:
            pass
    pid = home.read_int("agent/pid")
    deadline_s = time.monotonic() + 5.0
    while pid and Path(f"/proc/{pid}").exists() and time.monotonic() < deadline_s:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        time.sleep(0.01)
    return True
