"""Start a process in a session of its own, look at it, and end all of it.

The fork happens in the agent, which is small: forking a large process costs milliseconds per gigabyte.
What a task inherits is set here and nowhere else: environment from an allow-list, signals at their
defaults, no descriptors but the three standard ones (the router's standard input is the socket it serves).
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from tidecell.engines.isolation import join_group, set_oom_score, set_rlimits
from tidecell.structs.resources import Resources

INHERITED = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SHELL", "TERM")
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class StartError(Exception):
    """The process could not be started; the text says why."""


@dataclass(frozen=True)
class Launch:
    """Everything that is needed to start one process.

    Attributes:
        nice: Added niceness; batch work gives way to serving on a busy core.
        oom_score: What is added to the kernel's badness when memory runs out; the highest dies first.
        group: cgroup to join, or None.
        stdin: Descriptor that becomes its standard input, None: it has none.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    workdir: str
    out: Path
    err: Path
    request: Resources = field(default_factory=Resources)
    nice: int = 0
    oom_score: int = 0
    group: Path | None = None
    measured: bool = True
    stdin: int | None = None


def base_env() -> dict[str, str]:
    """Return what every task gets from the agent's own environment."""
    return {key: os.environ[key] for key in INHERITED if key in os.environ}


def start(launch: Launch) -> int:
    """Fork and exec; return the pid, which is also session and process group.

    Raises:
        StartError: The program, the directory or a log file cannot be used.
    """
    try:
        out = os.open(launch.out, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartError(f"log file cannot be written: {error.strerror}") from error
    try:
        err = os.open(launch.err, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        os.close(out)
        raise StartError(f"log file cannot be written: {error.strerror}") from error
    told, tell = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _become(launch, out, err, tell)
    for fd in (out, err, tell):
        os.close(fd)
    with os.fdopen(told, "rb") as pipe:
        failure = pipe.read()
    if failure:
        os.waitpid(pid, 0)
        raise StartError(failure.decode(errors="replace"))
    return pid


def _become(launch: Launch, out: int, err: int, tell: int) -> NoReturn:
    """In the child: set everything up and exec; say through ``tell`` what failed."""
    what = "cannot start"
    try:
        os.setsid()
        if launch.group is not None:
            join_group(launch.group)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        set_rlimits(launch.request, launch.measured)
        if launch.nice:
            os.nice(launch.nice)
        set_oom_score(launch.oom_score)
        what = f"workdir '{launch.workdir}' cannot be entered"
        os.chdir(launch.workdir)
        given = os.open("/dev/null", os.O_RDONLY) if launch.stdin is None else launch.stdin
        for fd, to in ((given, 0), (out, 1), (err, 2)):
            os.dup2(fd, to)
        os.set_inheritable(tell, False)
        os.closerange(3, tell)
        os.closerange(tell + 1, 4096)
        what = f"'{launch.argv[0]}' cannot be run"
        os.execvpe(launch.argv[0], list(launch.argv), dict(launch.env))
    except BaseException as error:  # anything at all must reach the parent, then end this process
        reason = getattr(error, "strerror", None) or repr(error)
        with contextlib.suppress(OSError):
            os.write(tell, f"{what}: {reason}".encode())
    os._exit(127)


@dataclass(frozen=True)
class Seen:
    """One line of the process table: who, whose session, how much.

    Attributes:
        cpu_s: What it has spent itself.
        ended_cpu_s: What children of it have spent that have ended and been waited for.
    """

    pid: int
    parent: int
    session: int
    cpu_s: float
    memory_bytes: int
    start_ticks: int
    ended_cpu_s: float = 0.0


def process_table(proc: str = "/proc") -> list[Seen]:
    """Return all processes that can be read."""
    found = []
    for entry in os.scandir(proc):
        if entry.name.isdigit():
            seen = look_at(int(entry.name), proc)
            if seen is not None:
                found.append(seen)
    return found


def by_task(table: Sequence[Seen], leaders: Container[int]) -> dict[int, list[Seen]]:
    """Return the processes of each task: its session's, and those of sessions that descend from it.

    Args:
        table: All processes.
        leaders: Pids of tasks; each leads a session.
    """
    seen = {p.pid: p for p in table}
    owners: dict[int, int] = {}  # session: the task that it belongs to; 0: none

    def owner(session: int) -> int:
        if session in leaders:
            return session
        if session not in owners:
            owners[session] = 0  # also the answer where parents go round in a circle
            leader = seen.get(session)
            parent = seen.get(leader.parent) if leader is not None else None
            owners[session] = owner(parent.session) if parent is not None else 0
        return owners[session]

    found: dict[int, list[Seen]] = {}
    for process in table:
        task = owner(process.session)
        if task:
            found.setdefault(task, []).append(process)
    return found


def look_at(pid: int, proc: str = "/proc") -> Seen | None:
    """Return one process, or None if it is gone."""
    try:
        with open(f"{proc}/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    if fields[0] in (b"Z", b"X"):
        return None
    own_s, ended_s = (sum(map(int, fields[i : i + 2])) / _CLOCK_TICKS for i in (11, 13))
    return Seen(pid, int(fields[1]), int(fields[3]), own_s, int(fields[21]) * _PAGE, int(fields[19]), ended_s)


def family_of(table: Sequence[Seen], pid: int) -> list[Seen]:
    """Return a process and all that descend from it; empty if it is not there."""
    children: dict[int, list[Seen]] = {}
    for process in table:
        children.setdefault(process.parent, []).append(process)
    found = [process for process in table if process.pid == pid]
    for process in found:  # grows while it is walked
        found += children.get(process.pid, ())
    return found


def environ_of(pid: int) -> dict[str, str]:
    """Return the environment a process was started with; empty if it cannot be read."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (item.partition(b"=") for item in raw.split(b"\0") if item)
    return {key.decode(errors="replace"): value.decode(errors="replace") for key, _, value in pairs}


def signal_group(pid: int, number: int) -> None:
    """Signal a whole process group; gone is fine."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def exit_code_of(status: int) -> int:
    """Return a wait status as an exit code; negative: the signal that ended it."""
    return os.waitstatus_to_exitcode(status)
