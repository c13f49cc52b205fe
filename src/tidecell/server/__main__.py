"""The control plane's process: `python -m tidecell.server --home DIR`. The agent keeps it running."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys

import uvicorn

from tidecell.client.home import Home
from tidecell.server.api import make_app
from tidecell.server.control import ControlPlane
from tidecell.structs.errors import TidecellError


def _bind(home: Home) -> socket.socket:
    config = home.config()
    # With the protocol named, asyncio sets TCP_NODELAY on what is accepted; else an answer waits 40 ms.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((config.host, config.control_port))
    except OSError as error:
        raise TidecellError(
            f"port {config.control_port} on {config.host} cannot be used: {error.strerror}",
            "choose another: tide up --port N",
        ) from error
    return sock


async def _serve(home: Home) -> None:
    sock = _bind(home)
    control = ControlPlane(home)
    # What was replayed lives on: the garbage collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    app = make_app(control)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=2, ws="none"
    )
    server = uvicorn.Server(config)
    loop = asyncio.create_task(control.run())
    web = asyncio.create_task(server.serve(sockets=[sock]))
    Home.write_private(home / "control" / "pid", str(os.getpid()))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    ended = asyncio.create_task(stop.wait())
    try:
        done, _ = await asyncio.wait([loop, web, ended], return_when=asyncio.FIRST_COMPLETED)
        for task in done - {ended}:
            task.result()
    finally:
        server.should_exit = True
        loop.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await loop
        with contextlib.suppress(asyncio.CancelledError, SystemExit):
            await web


def collect_rarely() -> None:
    """Let the cyclic collector run after 100,000 allocations: the state is large and has no cycles.

    At the usual 700 it walks the whole cell again and again (docs/lab-log.md has what that cost).
    """
    gc.set_threshold(100_000, 50, 100)


def main() -> int:
    """Serve until asked to end."""
    collect_rarely()
    parser = argparse.ArgumentParser(prog="tidecell-control")
    parser.add_argument("--home", required=True)
    home = Home(parser.parse_args().home)
    try:
        asyncio.run(_serve(home))
    except TidecellError as error:
        print(error.render(), file=sys.stderr, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
