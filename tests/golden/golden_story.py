"""One story that makes a cell journal nearly every kind of event, told to a real journal file."""

from __future__ import annotations

from pathlib import Path

from tidecell.cell.journal import Journal
from tidecell.cell.runtime import Runtime
from tidecell.cell.state import CellState
from tidecell.engines.fake import FakeEngine, Script
from tidecell.structs import resources as resources_module
from tidecell.structs.job import (
    Band,
    Checkpoint,
    JobSpec,
    Kind,
    Preemption,
    Priority,
    Replicas,
    Retry,
    RetryOn,
    Scaling,
)
from tidecell.structs.machine import Accelerator, MachineSpec
from tidecell.structs.messages import (
    ControlStarted,
    DesiredProposed,
    Input,
    JobChanged,
    JobStopRequested,
    JobSubmitted,
    MachineLost,
    StartTask,
    TaskProbed,
    Tick,
)
from tidecell.structs.resources import Resources

GIB = 1 << 30
GPU = getattr(resources_module, "GPU", 1)  # 0.1.0 counted whole accelerators
SCRIPTS = {
    "tokenize": Script(starts_after_s=1.0, runs_s=20.0),
    "flaky": Script(starts_after_s=1.0, runs_s=3.0, exit_code=1),
    "sweep": Script(starts_after_s=1.0, runs_s=200.0),
}


def _machines() -> list[MachineSpec]:
    gpus = tuple(Accelerator(i, "H100", 80 * GIB) for i in range(4))
    return [
        MachineSpec("m0", Resources(16_000, 64 * GIB, 4 * GPU), gpus, {"rack": "r1"}),
        MachineSpec("m1", Resources(16_000, 64 * GIB, 4 * GPU), gpus, {"rack": "r2"}),
        MachineSpec("m2", Resources(8_000, 32 * GIB), (), {"rack": "r2"}),
    ]


def _specs() -> dict[str, JobSpec]:
    batch, production = Priority(Band.BATCH, 2), Priority(Band.PRODUCTION)
    elastic = Replicas(2, 4)
    return {
        "tokenize": JobSpec("tokenize", run="tok", resources=Resources(2_000, 4 * GIB), max_duration_s=600.0),
        "train": JobSpec(
            "train",
            run="train",
            resources=Resources(4_000, 8 * GIB, 2 * GPU),
            accelerator_type="H100",
            replicas=elastic,
            priority=batch,
            preemption=Preemption.ABOVE_MIN,
            checkpoint=Checkpoint("ckpt/", 60.0),
            after=("tokenize",),
            team="research",
            labels={"run": "a"},
        ),
        "flaky": JobSpec("flaky", run="x", retry=Retry((RetryOn.ERROR,), 2), grace_period_s=5.0),
        "sweep": JobSpec(
            "sweep", argv=("sweep",), resources=Resources(3_000), replicas=Replicas(2, 2), grace_period_s=10.0
        ),
        "chat": JobSpec(
            "chat",
            kind=Kind.SERVICE,
            run="serve",
            resources=Resources(2_000, 4 * GIB, GPU),
            replicas=Replicas(1, 3),
            priority=production,
            preemption=Preemption.NEVER,
            scaling=Scaling(),
            models=("chat-7b",),
        ),
        "huge": JobSpec("huge", run="x", resources=Resources(8_000), replicas=Replicas(5, 5), priority=batch),
    }


class _Teller:
    def __init__(self, path: Path) -> None:
        self.path, self.now_s = path, 1_000.0
        self.engine = FakeEngine(_machines(), self._script, now_s=self.now_s)
        self.runtime = Runtime(Journal(path), debug=True)
        self.tell(ControlStarted(), *self.engine.attach())

    def _script(self, command: StartTask) -> Script:
        return SCRIPTS.get(command.spec.name, Script(starts_after_s=1.0))

    def tell(self, *inputs: Input) -> None:
        outcome = self.runtime.tick(inputs, self.now_s)
        assert not [e for e in outcome.errors if e is not None], outcome.errors
        for command in outcome.commands:
            self.engine.send(command)

    def after(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s = min(end_s, self.now_s + 1.0)
            self.tell(*self.engine.advance(self.now_s), Tick())

    def restart(self) -> None:
        self.runtime.journal.close()
        self.runtime = Runtime(Journal(self.path), debug=True)
        self.tell(ControlStarted(), *self.engine.attach())


def tell_story(path: Path) -> CellState:
    """Let a day of a small cell happen to a journal at ``path``; return its last state."""
    cell, specs = _Teller(path), _specs()
    for name in ("tokenize", "train", "flaky", "sweep"):
        cell.tell(JobSubmitted(specs[name]))
    cell.after(30)
    cell.tell(JobSubmitted(specs["chat"]))
    cell.after(5)
    chat = cell.runtime.state.find("chat")
    assert chat is not None
    cell.tell(DesiredProposed(chat.uid, 3, "load"))
    cell.after(10)
    cell.tell(TaskProbed(cell.runtime.state.ref(chat, chat.tasks[0]), ready=False))
    cell.restart()
    cell.tell(JobChanged("train", priority=Priority(Band.BATCH, 5)), JobChanged("sweep", Replicas(1, 2)))
    cell.tell(JobSubmitted(specs["huge"]))
    cell.after(20)
    cell.tell(MachineLost("m1"))
    for ref in [r for r, p in cell.engine.running.items() if p.machine == "m1"]:
        del cell.engine.running[ref]
    cell.after(15)
    cell.tell(JobStopRequested("huge"))
    lost = next(m for m in cell.engine.attach() if m.spec.name == "m1")  # type: ignore[attr-defined]
    cell.tell(lost)
    cell.after(40)
    cell.tell(DesiredProposed(chat.uid, 1, "quiet"))
    cell.tell(JobSubmitted(specs["huge"]))
    cell.after(3)
    state = cell.runtime.state
    cell.runtime.journal.close()
    return state
