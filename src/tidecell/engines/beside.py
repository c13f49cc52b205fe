"""Run a program beside a task: in its environment, its directory and its control group."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tidecell.engines.isolation import ROOTS, join_group
from tidecell.engines.process import environ_of
from tidecell.structs.errors import TidecellError


def run_beside(pid: int, argv: Sequence[str]) -> int:
    """Run a program beside a task and return its exit status, 128 + N where signal N ended it.

    Its streams are those of this process, a terminal included. It works on the machine of the task, for the
    user whose processes the tasks are.

    Args:
        pid: Process of the task.
        argv: The program.

    Raises:
        TidecellError: The task is not here, or the program cannot be run.
    """
    env, groups = environ_of(pid), _groups_of(pid)
    try:
        workdir = os.readlink(f"/proc/{pid}/cwd")
    except OSError as error:
        text = f"its process {pid} cannot be reached from here ({error.strerror})"
        raise TidecellError(text, "tide exec works on the machine that the task runs on") from error
    env["TERM"] = os.environ.get("TERM", "dumb")

    def join() -> None:
        for group in groups:
            join_group(group)

    try:
        done = subprocess.Popen(argv, env=env, cwd=workdir, preexec_fn=join)
    except OSError as error:
        text = f"'{argv[0]}' cannot be run: {error.strerror}"
        raise TidecellError(text, "is it on the task's PATH?") from error
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the program's
    try:
        status = done.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    return 128 - status if status < 0 else status


def _groups_of(pid: int) -> list[Path]:
    """Return the cgroup (v2) of a process below each place where such a tree may be mounted."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            group = line.partition("::")[2].lstrip("/")
            if group:
                return [root / group for root in ROOTS]
    return []


__all__ = ["run_beside"]
