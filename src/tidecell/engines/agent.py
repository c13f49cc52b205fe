"""The agent: one small process per machine that owns the tasks. It outlives the control plane.

It starts and ends processes, keeps their exit statuses until a control plane has them durably, carries
notices and reports between cell and tasks, keeps elastic groups, and keeps the cell's own processes
(control plane, router) running. It imports neither torch nor Ray nor an event loop: one selector, one
thread, so that it may fork safely and cheaply.

A task ends in one order always: notice on its socket, SIGTERM, SIGKILL to all of it. The timers run
here, so that a grace period holds also while no control plane is there.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import heapq
import itertools
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tidecell.client.home import Home
from tidecell.engines import isolation, process, wire
from tidecell.engines.discover import discover_machine
from tidecell.engines.gpu_use import gpu_percents
from tidecell.engines.groups import Group
from tidecell.engines.interruption import InterruptionWatch
from tidecell.engines.ledger import Ledger, Running
from tidecell.engines.links import Link, Switchboard
from tidecell.engines.services import Supervisor
from tidecell.engines.sharing import device_env, mps_directory
from tidecell.structs.job import Band, Cause, JobSpec, Kind
from tidecell.structs.machine import MachineSpec
from tidecell.structs.messages import StartTask, StopTask, TaskDown, TaskRef, TaskUp
from tidecell.telemetry import log_line

LOOK_EVERY_S = 1.0
MEASURE_EVERY_S = 1.0
NICENESS = {Band.MONITORING: 0, Band.PRODUCTION: 0, Band.BATCH: 5, Band.BEST_EFFORT: 10}

_to_agent: msgspec.json.Decoder[wire.ToAgent] = msgspec.json.Decoder(wire.ToAgent)


@dataclass(eq=False)
class Task:
    """A process of ours and what was said to it."""

    running: Running
    ref: TaskRef
    link: Link | None = None
    adopted: bool = False
    deadline_s: float | None = None
    stop: StopTask | None = None
    said_hello: bool = False
    released: bool = False
    log_sizes: tuple[int, int] = (0, 0)
    over_memory: bool = False


class Agent:
    """All of the agent's state and its loop."""

    def __init__(self, home: Home, machine: MachineSpec, interruption: str = "") -> None:
        self.home = home
        self.interruption = InterruptionWatch(interruption) if interruption else None
        self.interrupted_s: float | None = None  # the end that the control plane was told
        tag = hashlib.sha256(str(home.path).encode()).hexdigest()[:12]
        self.isolation = isolation.detect(tag)
        self.machine = msgspec.structs.replace(machine, isolation=self.isolation.word)
        self.ledger = Ledger(home / "agent" / "ledger.jsonl")
        self.selector = selectors.DefaultSelector()
        self.board = Switchboard(self.selector, self._read_line, self._link_closed)
        self.services = Supervisor(home, self.ledger, self._later, lambda: self.stopping)
        self.tasks: dict[int, Task] = {}
        self.by_ref: dict[TaskRef, Task] = {}
        self.groups: dict[str, Group] = {}
        self.control: Link | None = None
        self.timers: list[tuple[float, int, Callable[[], None]]] = []
        self.counter = itertools.count()
        self.stopping = False
        self.measure_due_s = 0.0

    # ---------------------------------------------------------------------------- the loop

    def run(self) -> None:
        """Serve until shut down and nothing is left running."""
        wake_r, wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self.begin_shutdown(10.0))
        signal.signal(signal.SIGINT, lambda *_: self.begin_shutdown(10.0))
        _become_subreaper()
        self.selector.register(wake_r, selectors.EVENT_READ, lambda mask: os.read(wake_r, 4096))
        self.board.listen(self.home.socket_path("agent"))
        self._adopt()
        if self.interruption is not None:
            self._look_for_interruption()
        while not (self.stopping and not self.tasks and not self.services.pids()):
            self._turn()

    def _turn(self) -> None:
        timeout_s = self._next_due_s() - time.time()
        for key, mask in self.selector.select(max(0.0, min(timeout_s, 3600.0))):
            key.data(mask)
        self._reap()
        now = time.time()
        while self.timers and self.timers[0][0] <= now:
            heapq.heappop(self.timers)[2]()
        if self.tasks and now >= self.measure_due_s:
            self.measure_due_s = now + MEASURE_EVERY_S
            self._measure(now)

    def _next_due_s(self) -> float:
        due_s = self.timers[0][0] if self.timers else time.time() + 3600.0
        return min(due_s, self.measure_due_s) if self.tasks else due_s

    def _later(self, at_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self.timers, (at_s, next(self.counter), action))

    # -------------------------------------------------------------------------- connections

    def _read_line(self, link: Link, line: bytes) -> None:
        """A control plane's lines are typed strictly; a task's are free, and bad ones are dropped."""
        try:
            raw = msgspec.json.decode(line)
            kind = raw.get("type") if isinstance(raw, dict) else None
        except msgspec.DecodeError:
            return
        if kind in ("hello", "ready", "released", "report"):
            with contextlib.suppress(KeyError, TypeError, ValueError):
                self._from_task(link, kind, raw)
            return
        try:
            message = _to_agent.decode(line)
        except msgspec.ValidationError as error:
            log_line(f"agent: cannot read a message: {error}")
            return
        self._from_control(link, message)

    def _link_closed(self, link: Link) -> None:
        if self.control is link:
            self.control = None
        task = link.owner
        if isinstance(task, Task) and task.link is link:
            task.link = None
            self._leave_group(task)  # the end of the stream tells of a crash before the status does

    # ------------------------------------------------------------------------ control plane

    def _from_control(self, link: Link, message: wire.ToAgent) -> None:
        if isinstance(message, wire.Attach):
            self._attach(link, message.epoch)
        elif isinstance(message, wire.Supervise):
            self.services.keep(message.name, message.argv, message.listen)
        elif isinstance(message, wire.Shutdown):
            self.begin_shutdown(message.grace_s)
        elif link is not self.control:
            return  # a control plane that was replaced; its orders no longer count
        elif isinstance(message, wire.Ack):
            self.ledger.acknowledge(message.seq)
        elif isinstance(message.command, StartTask):
            self._start(message.command)
        else:
            self._stop(message.command)

    def _attach(self, link: Link, epoch: int) -> None:
        if epoch < self.ledger.epoch:
            self.board.send(link, wire.Refused(self.ledger.epoch))
            return
        old, self.control = self.control, link
        if old is not None and old is not link:
            self.board.close(old)
        self.ledger.set_epoch(epoch)
        known = set(self.by_ref)
        known.update(t.body.ref for t in self.ledger.untold)
        self.board.send(link, wire.Attached(self.machine, tuple(sorted(known))))
        for told in self.ledger.untold:
            self.board.send(link, wire.Happened(told.seq, told.body))
        self.interrupted_s = None  # it may not have heard

    def _look_for_interruption(self) -> None:
        """Tell the control plane once that this machine will be taken away."""
        at_s = self.interruption.deadline_s if self.interruption is not None else None
        if at_s is None:
            self.interrupted_s = None
        elif self.control is not None and at_s != self.interrupted_s:
            self.interrupted_s = at_s
            self.board.send(self.control, wire.Interrupted(self.machine.name, at_s))
        self._later(time.time() + LOOK_EVERY_S, self._look_for_interruption)

    def _tell(self, body: TaskUp | TaskDown) -> None:
        told = self.ledger.tell(body)
        if self.control is not None:
            self.board.send(self.control, wire.Happened(told.seq, told.body))

    # -------------------------------------------------------------------------------- tasks

    def _start(self, command: StartTask) -> None:
        """Start a task; a repeated command for the same start changes nothing."""
        if command.ref in self.by_ref or any(t.body.ref == command.ref for t in self.ledger.untold):
            return
        try:
            task, port = self._launch(command)
        except (process.StartError, OSError) as error:
            text = str(error) if isinstance(error, process.StartError) else f"cannot start: {error}"
            self._tell(TaskDown(command.ref, self.machine.name, exit_code=127, error=text))
            return
        self._tell(TaskUp(command.ref, self.machine.name, task.running.pid, port))

    def _launch(self, command: StartTask) -> tuple[Task, int]:
        spec, ref = command.spec, command.ref
        run_dir = self.home.run_dir(ref.uid)
        (run_dir / "logs").mkdir(parents=True, exist_ok=True)
        port = (spec.port or _free_port()) if spec.is_service else 0
        group = self.isolation.make_group(f"{ref.uid}.{ref.index}.{ref.epoch}", command.resources)
        launch = process.Launch(
            argv=_argv(command),
            env=self._task_env(command, port),
            workdir=spec.workdir or str(run_dir),
            out=self.home.log_path(ref.uid, ref.index, command.attempt, "out"),
            err=self.home.log_path(ref.uid, ref.index, command.attempt, "err"),
            request=command.resources,
            nice=NICENESS[spec.priority.band],
            oom_score=isolation.oom_score(spec.priority.band, command.resources),
            group=group,
            measured=not self.isolation.limits,
        )
        pid = process.start(launch)
        seen = process.look_at(pid)
        running = Running(
            pid=pid,
            start_ticks=seen.start_ticks if seen else 0,
            ref=ref,
            cgroup=str(group or ""),
            memory_bytes=0 if self.isolation.limits else command.resources.memory_bytes,
            attempt=command.attempt,
            grace_s=spec.grace_period_s,
            min_members=spec.replicas.min,
        )
        self.ledger.started(running)
        return self._keep(Task(running, ref)), port

    def _keep(self, task: Task) -> Task:
        self.tasks[task.running.pid] = task
        self.by_ref[task.ref] = task
        return task

    def _task_env(self, command: StartTask, port: int) -> dict[str, str]:
        spec, ref = command.spec, command.ref
        own = {
            "TIDECELL_JOB": spec.name,
            "TIDECELL_UID": ref.uid,
            "TIDECELL_INDEX": str(ref.index),
            "TIDECELL_ATTEMPT": str(command.attempt),
            "TIDECELL_EPOCH": str(ref.epoch),
            "TIDECELL_SOCKET": str(self.home.socket_path("agent")),
            "TIDECELL_RUN_DIR": str(self.home.run_dir(ref.uid)),
            **device_env(self.machine, command.accelerators, command.resources, mps_directory()),
        }
        if spec.array is not None:
            own["TIDECELL_ARRAY_INDEX"] = str(ref.index)
            own["TIDECELL_ARRAY_COUNT"] = str(spec.array.count)
            own |= spec.array.parameters(ref.index)
        if spec.kind is Kind.DEV:
            own["TIDECELL_SESSION"] = str(self.home.session_path(ref.uid))
            own["TIDECELL_IDLE_TIMEOUT_S"] = str(spec.idle_timeout_s)
        if port:
            own["PORT"] = str(port)
        return {**process.base_env(), **spec.env, **own}

    def _stop(self, command: StopTask) -> None:
        """Begin or hasten the end of a task: notice, SIGTERM, SIGKILL; the earlier deadline wins."""
        task = self.by_ref.get(command.ref)
        if task is None:
            return
        now = time.time()
        deadline_s = now + command.grace_s
        if task.deadline_s is not None and task.deadline_s <= deadline_s:
            return
        first = task.stop is None
        task.deadline_s, task.stop = deadline_s, command
        if command.grace_s <= 0:
            self._kill(task)
            return
        self._later(deadline_s, lambda: self._kill_if_due(task))
        if task.link is not None:
            self._give_notice(task, command)
            self._later(now + command.grace_s / 2, lambda: self._terminate(task))
        else:
            self._terminate(task)
        if first:
            self._announce(command.ref.uid, self._group(task).leaving(command.ref.index))

    def _give_notice(self, task: Task, command: StopTask) -> None:
        if task.link is None:
            return
        notice = {
            "type": "notice",
            "action": "stop",
            "cause": command.cause.value,
            "deadline_s": command.grace_s,
            "grace_s": command.grace_s,
            "new_size": command.new_size,
            "by": command.by,
        }
        self.board.send(task.link, notice)

    def _terminate(self, task: Task) -> None:
        if task.running.pid in self.tasks:
            process.signal_group(task.running.pid, signal.SIGTERM)

    def _kill_if_due(self, task: Task) -> None:
        if task.running.pid in self.tasks and task.deadline_s is not None and time.time() >= task.deadline_s:
            self._kill(task)

    def _kill(self, task: Task) -> None:
        if task.running.pid not in self.tasks:
            return
        process.signal_group(task.running.pid, signal.SIGKILL)
        if task.running.cgroup:
            isolation.kill_group(Path(task.running.cgroup))

    # ------------------------------------------------------------------------ what tasks say

    def _from_task(self, link: Link, kind: str, raw: dict[str, Any]) -> None:
        if kind == "hello":
            ref = TaskRef(str(raw["uid"]), int(raw["index"]), int(raw["epoch"]))
            task = self.by_ref.get(ref)
            if task is None:
                self.board.close(link)  # not a start of ours: a leftover of an older epoch
                return
            link.owner, task.link, task.said_hello = task, link, True
            if task.stop is not None:
                self._give_notice(task, task.stop)
            return
        task = link.owner
        if not isinstance(task, Task):
            return
        if kind == "ready":
            group = self._group(task)
            seen = int(raw.get("generation", 0))
            self._announce(task.ref.uid, group.ready(task.ref.index, str(raw["endpoint"]), seen))
        elif kind == "released":
            task.released = True
        elif kind == "report" and self.control is not None and isinstance(raw.get("data"), dict):
            self.board.send(self.control, wire.Reported(task.ref, time.time(), raw["data"]))

    def _group(self, task: Task) -> Group:
        return self.groups.setdefault(task.ref.uid, Group(task.running.min_members))

    def _announce(self, uid: str, message: dict[str, Any] | None) -> None:
        if message is None:
            return
        members = {m["index"] for m in message["members"]}
        for task in list(self.tasks.values()):
            if task.ref.uid == uid and task.ref.index in members and task.link is not None:
                self.board.send(task.link, message)

    def _leave_group(self, task: Task) -> None:
        group = self.groups.get(task.ref.uid)
        if group is not None:
            self._announce(task.ref.uid, group.gone(task.ref.index))

    # --------------------------------------------------------------------------------- ends

    def _reap(self) -> None:
        """Collect every child that ended; children of dead children are ours too (subreaper)."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._ended(pid, process.exit_code_of(status))

    def _ended(self, pid: int, exit_code: int, lost: bool = False) -> None:
        if self.services.ended(pid, exit_code):
            return
        task = self.tasks.pop(pid, None)
        if task is None:
            return
        self._end_the_rest(task)
        del self.by_ref[task.ref]
        self.ledger.gone(pid)
        group = Path(task.running.cgroup) if task.running.cgroup else None
        oom = task.over_memory or isolation.oom_killed(group)
        worked_on = task.said_hello and not task.released
        completed = task.stop is not None and exit_code == 0 and worked_on and not lost
        # `tide down` is an interruption, not a failure: the job goes on with the next `tide up`.
        lost = lost or (self.stopping and task.stop is not None)
        self._leave_group(task)
        self._tell(
            TaskDown(
                task.ref,
                self.machine.name,
                exit_code,
                out_of_memory=oom,
                lost=lost,
                completed=completed,
            )
        )
        if task.link is not None:
            task.link.owner = None
        if not any(t.ref.uid == task.ref.uid for t in self.tasks.values()):
            self.groups.pop(task.ref.uid, None)
        if group is not None and not isolation.remove_group(group):
            self._later(time.time() + 1.0, lambda: _forget_group(group))

    def _end_the_rest(self, task: Task) -> None:
        """The leader is gone: whatever it left behind goes as well, also what left its session."""
        process.signal_group(task.running.pid, signal.SIGKILL)
        if task.running.cgroup:
            isolation.kill_group(Path(task.running.cgroup))
            return
        for seen in process.process_table():
            if seen.parent != os.getpid() or seen.pid in self.tasks or seen.pid in self.services.pids():
                continue
            if process.environ_of(seen.pid).get("TIDECELL_EPOCH") == str(task.ref.epoch):
                process.signal_group(seen.session, signal.SIGKILL)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(seen.pid, signal.SIGKILL)

    # ----------------------------------------------------------------------- after a restart

    def _adopt(self) -> None:
        """Take over what an agent before us started; its exit status we can no longer know."""
        for running in list(self.ledger.running.values()):
            seen = process.look_at(running.pid)
            alive = seen is not None and seen.start_ticks == running.start_ticks
            if running.service:
                self.ledger.gone(running.pid)
                if alive:
                    process.signal_group(running.pid, signal.SIGTERM)  # it is started anew, under us
                continue
            if running.ref is None:
                continue
            task = self._keep(Task(running, running.ref, adopted=True))
            if alive:
                self._watch(task)
            else:
                self._ended(running.pid, -1, lost=True)

    def _watch(self, task: Task) -> None:
        fd = os.pidfd_open(task.running.pid)

        def gone(mask: int) -> None:
            self.selector.unregister(fd)
            os.close(fd)
            self._ended(task.running.pid, -1, lost=True)

        self.selector.register(fd, selectors.EVENT_READ, gone)

    # ------------------------------------------------------------------------------ the end of all

    def begin_shutdown(self, grace_s: float) -> None:
        """End tasks first, then the cell's own processes; a second call hurries."""
        hurry = self.stopping
        self.stopping = True
        for task in list(self.tasks.values()):
            wait_s = 0.0 if hurry else min(grace_s, task.running.grace_s)
            self._stop(StopTask(task.ref, self.machine.name, Cause.CANCEL, wait_s))
        self._later(time.time(), self._shutdown_services)
        self._later(time.time() + grace_s + 10.0, self._shutdown_hard)

    def _shutdown_services(self) -> None:
        if self.tasks:
            self._later(time.time() + 0.05, self._shutdown_services)
            return
        self.services.terminate()

    def _shutdown_hard(self) -> None:
        for pid in [*self.tasks, *self.services.pids()]:
            process.signal_group(pid, signal.SIGKILL)

    # ---------------------------------------------------------------------------- measuring

    def _measure(self, now_s: float) -> None:
        """Sum what each task's processes use; enforce memory limits where the kernel does not."""
        by_task = process.by_task(process.process_table(), self.tasks)
        rows = []
        for task in list(self.tasks.values()):
            mine = by_task.get(task.running.pid, [])
            memory = sum(p.memory_bytes for p in mine)
            rows.append(wire.TaskUse(task.ref, sum(p.cpu_s for p in mine), memory))
            limit = task.running.memory_bytes
            if limit and memory > limit and not task.over_memory:
                task.over_memory = True
                self._kill(task)
            self._mark_logs(task, now_s)
        if self.control is not None:
            percents = gpu_percents() if self.machine.accelerators else {}
            self.board.send(self.control, wire.Used(now_s, tuple(rows), self.machine.name, percents))

    def _mark_logs(self, task: Task, now_s: float) -> None:
        """Note how long the logs are now, so that `tide logs --since` finds its place in raw output."""
        stem = self.home.run_dir(task.ref.uid) / "logs" / f"{task.ref.index}.{task.running.attempt}"
        sizes = (_size_of(Path(f"{stem}.out")), _size_of(Path(f"{stem}.err")))
        if sizes != task.log_sizes:
            task.log_sizes = sizes
            with contextlib.suppress(OSError), open(f"{stem}.idx", "a") as file:
                file.write(f"{now_s:.3f} {sizes[0]} {sizes[1]}\n")


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _argv(command: StartTask) -> tuple[str, ...]:
    """Return what to exec; a session's program gets a terminal of its own."""
    spec = command.spec
    if spec.kind is Kind.DEV:  # -P: a file of the user's must not stand in for a module of ours
        program = _program(spec) if spec.argv or spec.run else (os.environ.get("SHELL") or "/bin/sh",)
        return (sys.executable, "-P", "-m", "tidecell.engines.session", *program)
    return _program(spec)


def _program(spec: JobSpec) -> tuple[str, ...]:
    """Return a job's program; a script runs under sh, after its set-up in the same directory."""
    script = spec.run
    if spec.argv and not spec.setup:
        return spec.argv
    if spec.setup:
        body = 'exec "$@"' if spec.argv else script
        script = f'(\nset -e\n{spec.setup}\n) || {{ echo "setup failed" >&2; exit 1; }}\n{body}'
    return ("/bin/sh", "-c", script, spec.name, *spec.argv)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _forget_group(group: Path) -> None:
    isolation.remove_group(group)


def _become_subreaper() -> None:
    """Orphans of our tasks come to us instead of init (prctl PR_SET_CHILD_SUBREAPER)."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0)


def main() -> int:
    """Run the agent of one home."""
    parser = argparse.ArgumentParser(prog="tidecell-agent")
    parser.add_argument("--home", required=True)
    home = Home(parser.parse_args().home)
    lock = os.open(home / "agent" / "lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log_line(f"error: another agent runs in {home.path}")
        return 1
    config = home.config()
    machine = discover_machine(
        config.machine, config.cpu_millis, config.memory_bytes, config.attributes, config.holds
    )
    agent = Agent(home, machine, config.interruption)
    Home.write_private(home / "agent" / "pid", str(os.getpid()))
    try:
        agent.run()
    finally:
        (home / "agent" / "pid").unlink(missing_ok=True)
        home.socket_path("agent").unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
