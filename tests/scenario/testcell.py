"""A cell in virtual time with verbs for stories: the real runtime, a scripted engine, no process."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from tidecell.cell.invariants import check_state
from tidecell.cell.journal import Journal
from tidecell.cell.runtime import Runtime
from tidecell.cell.snapshot import take_snapshot
from tidecell.cell.state import Job, encode_state
from tidecell.engines.fake import FakeEngine, Script
from tidecell.scheduler.snapshot import Snapshot
from tidecell.structs.job import Band, JobSpec, Kind, Preemption, Priority, Replicas, Scaling, TaskState
from tidecell.structs.machine import MachineSpec
from tidecell.structs.messages import (
    ControlStarted,
    DesiredProposed,
    Event,
    Input,
    JobChanged,
    JobStopRequested,
    JobSubmitted,
    ReplicaDrained,
    StartTask,
    Tick,
)
from tidecell.structs.resources import Resources

STEP_S = 0.5


class StoryCell:
    """The real state machine and scheduler over a scripted engine."""

    def __init__(self, cores: float = 2.0, machines: int = 1) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tc-story-"))
        self.scripts: dict[str, Script] = {}
        self.script_for: Callable[[StartTask], Script] | None = None
        specs = [MachineSpec(f"m{i}", Resources(int(1000 * cores), 8 << 30)) for i in range(machines)]
        self.engine = FakeEngine(specs, self._script)
        self.now_s = 1000.0
        self.engine.now_s = self.now_s
        self.events: list[tuple[float, Event]] = []
        self.runtime = Runtime(Journal(self.folder / "journal.db"), debug=True)
        self.tell(ControlStarted(), *self.engine.attach())

    def _script(self, command: StartTask) -> Script:
        if self.script_for is not None:
            return self.script_for(command)
        return self.scripts.get(command.spec.name, Script())

    # ------------------------------------------------------------------------------- verbs

    def tell(self, *inputs: Input) -> None:
        """Give the cell inputs; carry out what it commands; raise what it refuses."""
        outcome = self.runtime.tick(inputs, self.now_s)
        for error in outcome.errors:
            if error is not None:
                raise error
        self.events += [(self.now_s, e) for e in outcome.events]
        for command in outcome.commands:
            self.engine.send(command)
        check_state(self.runtime.state)

    def job(self, name: str, cores: float = 1.0, replicas: tuple[int, int] = (1, 1), **more: object) -> Job:
        """Submit a job."""
        script = more.pop("script", None)
        if isinstance(script, Script):
            self.scripts[name] = script
        more.setdefault("resources", Resources(int(1000 * cores)))
        spec = JobSpec(name, argv=("x",), replicas=Replicas(*replicas), **more)
        self.tell(JobSubmitted(spec))
        return self[name]

    def service(self, name: str, cores: float = 0.5, replicas: tuple[int, int] = (1, 1)) -> Job:
        """Submit a production service that scales by load."""
        return self.job(
            name,
            cores,
            replicas,
            kind=Kind.SERVICE,
            priority=Priority(Band.PRODUCTION),
            preemption=Preemption.NEVER,
            scaling=Scaling(),
        )

    def want(self, name: str, replicas: int) -> None:
        """Let the autoscaler want so many replicas."""
        self.tell(DesiredProposed(self[name].uid, replicas, "story"))

    def scale(self, name: str, low: int, high: int) -> None:
        """Change a job's replicas."""
        self.tell(JobChanged(name, replicas=Replicas(low, high)))

    def stop(self, name: str) -> None:
        """Stop a job."""
        self.tell(JobStopRequested(name))

    def pass_time(self, seconds: float) -> None:
        """Let time pass in small steps; drained replicas are reported as the router would."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s = min(end_s, self.now_s + STEP_S)
            self.tell(*self.engine.advance(self.now_s), *self._drained(), Tick())

    def tick_without_checks(self, steps: int) -> None:
        """Let time pass as a live cell does: no invariant is checked."""
        for _ in range(steps):
            self.now_s += STEP_S
            outcome = self.runtime.tick([*self.engine.advance(self.now_s), Tick()], self.now_s)
            for command in outcome.commands:
                self.engine.send(command)

    def snapshot(self) -> Snapshot:
        """Return the cell as the scheduler sees it."""
        return take_snapshot(self.runtime.state, self.now_s)

    def _drained(self) -> list[Input]:
        state = self.runtime.state
        return [
            ReplicaDrained(state.ref(job, task))
            for job in state.live_jobs()
            if job.spec.is_service
            for task in job.tasks
            if task.notice is not None and not task.notice.stopping
        ]

    def restart_control_plane(self) -> None:
        """Kill the control plane and start another on the same journal."""
        before = encode_state(self.runtime.state)
        self.runtime.journal.close()
        self.runtime = Runtime(Journal(self.folder / "journal.db"), debug=True)
        assert encode_state(self.runtime.state) == before
        self.tell(ControlStarted(), *self.engine.attach())

    # ------------------------------------------------------------------------------- looks

    def __getitem__(self, name: str) -> Job:
        job = self.runtime.state.find(name)
        assert job is not None, name
        return job

    def running(self, name: str) -> int:
        """Return how many replicas run and stay."""
        return sum(1 for t in self[name].tasks if t.state is TaskState.RUNNING)

    def happened(self, kind: type[Event]) -> list[Event]:
        """Return the events of a kind, in order."""
        return [e for _, e in self.events if isinstance(e, kind)]
