"""Fixtures that many tests share: a real cell in a directory of its own, and the command line."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tidecell.client.client import Client
from tidecell.client.home import Home

# A suite started in the background of a script inherits an ignored SIGINT, and so would every program under
# test that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


class Cell:
    """A cell of real processes, driven through the command line and the client."""

    def __init__(self, path: Path) -> None:
        self.home = Home(path)
        self._clients: list[Client] = []
        self.env = {**os.environ, "TIDECELL_HOME": str(path), "COLUMNS": "200"}

    def tide(
        self, *args: str, check: bool = True, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run `tide ARGS` in this cell's home."""
        done = subprocess.run(
            [sys.executable, "-m", "tidecell.cli.main", *args],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"tide {' '.join(args)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
            )
        return done

    def up(self, *args: str) -> Client:
        """Start the cell and return a client."""
        self.tide("up", "--machine", "m", *args)
        self._clients.append(Client.from_home(self.home))
        return self._clients[-1]

    def down(self) -> None:
        """Stop everything."""
        while self._clients:
            self._clients.pop().close()
        self.tide("down", "--grace", "1", check=False)

    def control_pid(self) -> int:
        """Return the control plane's process."""
        pid = self.home.read_int("control/pid")
        assert pid is not None
        return pid


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A directory with a short path, as unix sockets like it."""
    path = Path(tempfile.mkdtemp(prefix="tc-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def stopped_cell(short_tmp: Path) -> Iterator[Cell]:
    """A cell that was not started yet; whatever the test starts is stopped after it."""
    cell = Cell(short_tmp / "cell")
    yield cell
    cell.down()


@pytest.fixture
def cell(stopped_cell: Cell) -> Cell:
    """A running cell that offers two cores, with all invariants checked after every step."""
    stopped_cell.up("--cpu", "2", "--debug")
    return stopped_cell


@pytest.fixture
def client(cell: Cell) -> Iterator[Client]:
    """A client of the running cell."""
    with Client.from_home(cell.home) as client:
        yield client


def wait_until(truth: Callable[[], bool], timeout_s: float = 20.0, what: str = "it") -> None:
    """Poll until something is true; fail after ``timeout_s``."""
    deadline_s = time.monotonic() + timeout_s
    while not truth():
        if time.monotonic() > deadline_s:
            raise AssertionError(f"{what} did not happen within {timeout_s} s")
        time.sleep(0.02)


@pytest.fixture(name="wait_until")
def _wait_until() -> Callable[..., None]:
    return wait_until
