"""Dev sessions on real terminals, through the command line."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Screen:
    """A terminal that a command runs on, as a person would have it."""

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        self.fd, end = pty.openpty()
        self.process = subprocess.Popen(
            argv, stdin=end, stdout=end, stderr=end, env=env, start_new_session=True
        )
        os.close(end)
        self.text = ""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def expect(self, wanted: str, within_s: float = 30.0) -> str:
        """Wait until it shows ``wanted``; return all text up to there, which then is read."""
        deadline_s = time.monotonic() + within_s
        while wanted not in self.text:
            left_s = deadline_s - time.monotonic()
            assert left_s > 0, f"{wanted!r} never came; there is {self.text!r}"
            if select.select([self.fd], [], [], left_s)[0]:
                try:
                    self.text += os.read(self.fd, 65536).decode(errors="replace")
                except OSError:
                    assert wanted in self.text, f"{wanted!r} never came; there is {self.text!r}"
        seen, self.text = self.text.split(wanted, 1)
        return seen


@contextmanager
def screen(cell, *args: str) -> Iterator[Screen]:
    shown = Screen([sys.executable, "-m", "tidecell.cli.main", *args], cell.env)
    try:
        yield shown
    finally:
        if shown.process.poll() is None:
            shown.process.kill()
        shown.process.wait()
        os.close(shown.fd)


def session(*args: str) -> tuple[str, ...]:
    return ("dev", "-n", "d", "--cpu", "0.2", "-e", "PS1=ready>", *args, "--", "sh", "-i")


def test_a_session_is_typed_into_left_and_attached_again(cell, client) -> None:
    with screen(cell, *session()) as shown:
        shown.expect("leave it with ~.")
        shown.expect("ready>")
        shown.type("X=kept; echo a$((40 + 2))b\n")
        shown.expect("a42b")
        shown.type("tty\n")
        shown.expect("/dev/pts/")
        shown.type("~.")
        shown.expect("left d; it goes on")
        assert shown.process.wait(10) == 0
    assert client.job("d").running == 1
    with screen(cell, "attach", "d") as again, screen(cell, "attach", "d") as other:
        again.expect("a42b")  # what was shown last is shown again
        other.expect("a42b")
        again.type("echo still-$X-here\n")
        again.expect("still-kept-here")
        other.expect("still-kept-here")
        again.type("exit\n")
        assert again.process.wait(15) == 0
    assert client.wait("d", timeout_s=15).state == "SUCCEEDED"


def test_a_session_outlives_the_control_plane(cell, client) -> None:
    cell.tide(*session("-d"))
    with screen(cell, "attach", "d") as shown:
        shown.expect("ready>")
        os.kill(client.cell().pid, signal.SIGKILL)
        shown.type("echo a$((1 + 1))b\n")
        shown.expect("a2b")


def test_an_unused_session_ends_and_a_used_one_does_not(cell, client) -> None:
    cell.tide(*session("-d", "--idle-timeout", "3s"))
    busy = ("dev", "-n", "busy", "-d", "--cpu", "0.2", "--idle-timeout", "3s", "--")
    cell.tide(*busy, "sh", "-c", "while :; do :; done")
    done = client.wait("d", timeout_s=30)
    assert done.state == "SUCCEEDED"
    assert "idle for 3 s" in cell.tide("logs", "d").stdout
    assert client.job("busy").running == 1
    cell.tide("stop", "busy")


def test_a_command_beside_a_task_has_its_environment_and_directory(
    cell, client, wait_until, short_tmp
) -> None:
    cell.tide(
        "run",
        "-d",
        "-n",
        "host",
        "--cpu",
        "0.2",
        "-e",
        "WHO=host",
        "--workdir",
        str(short_tmp),
        "--",
        "sleep",
        "60",
    )
    wait_until(lambda: client.job("host").running == 1)
    done = cell.tide("exec", "host", "--", "sh", "-c", 'echo "$WHO in $(pwd)"; exit 7', check=False)
    assert done.stdout == f"host in {short_tmp}\n"
    assert done.returncode == 7
    gone = cell.tide("exec", "host/3", "--", "true", check=False)
    assert gone.returncode != 0
    assert "no task of replica 3 of 'host' is running" in gone.stderr
    refused = cell.tide("attach", "host", check=False)
    assert "not a dev session" in refused.stderr
