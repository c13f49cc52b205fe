"""Users of a cell under faults: what they ask for, and how their tasks behave, by seed. Pure."""

from __future__ import annotations

import random

from msgspec.structs import replace

from tidecell.cell.state import CellState
from tidecell.engines.fake import Script
from tidecell.structs.job import (
    Band,
    JobSpec,
    Kind,
    Preemption,
    Priority,
    Replicas,
    Retry,
    RetryOn,
    Scaling,
)
from tidecell.structs.lifecycle import SpecChanged
from tidecell.structs.messages import (
    DesiredProposed,
    Input,
    JobChanged,
    JobStopRequested,
    JobSubmitted,
    StartTask,
)
from tidecell.structs.resources import GPU, Resources

USER_SPAN_S = 150.0
NUM_NAMES = 12


class Users:
    """Everybody who asks something of the cell."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.scripts: dict[str, Script] = {}
        self.num_submitted = 0

    def say(self, state: CellState, after_s: float, faults: bool) -> list[Input]:
        """Return what is asked in this second; in the end only that services stop."""
        live = list(state.live_jobs())
        if not faults:
            return [JobStopRequested(j.uid) for j in live if j.spec.is_service and j.stopping is None]
        rng, said = self.rng, list[Input]()
        if rng.random() < (0.6 if after_s < 20 else 0.15):
            said.append(JobSubmitted(self._spec()))
        if live and rng.random() < 0.1:
            job = rng.choice(live)
            said.append(self._change(job.spec.name, job.uid, job.spec))
        return said

    def _change(self, name: str, uid: str, spec: JobSpec) -> Input:
        rng = self.rng
        kind = rng.choice(["scale", "prio", "stop", "kill", "want", "resize"])
        if kind == "scale":
            return JobChanged(name, replicas=self._replicas())
        if kind == "prio":
            return JobChanged(name, priority=Priority(rng.choice(list(Band)), rng.randint(-1, 1)))
        if kind == "resize":
            size = Resources(rng.choice([250, 500, 1000, 2000]), 0, spec.resources.gpu_millis)
            return SpecChanged(replace(spec, resources=size), restart=rng.random() < 0.5)
        if kind == "want":
            return DesiredProposed(uid, rng.randint(0, 4), "load")
        return JobStopRequested(name, immediately=kind == "kill")

    def _replicas(self) -> Replicas:
        low = self.rng.choice([1, 1, 2, 3])
        return Replicas(low, low + self.rng.choice([0, 0, 2]))

    def _spec(self) -> JobSpec:
        rng = self.rng
        self.num_submitted += 1
        service, gpu = rng.random() < 0.25, rng.random() < 0.15
        replicas = Replicas(1, rng.choice([1, 2])) if gpu else self._replicas()
        return JobSpec(
            name=f"n{rng.randrange(NUM_NAMES)}",
            kind=Kind.SERVICE if service else Kind.JOB,
            run="x",
            resources=Resources(
                rng.choice([500, 1000, 2000, 3000]), 0, rng.choice([GPU, GPU, 500]) if gpu else 0
            ),
            replicas=replicas,
            priority=Priority(rng.choice(list(Band)), rng.randint(-1, 1)),
            preemption=rng.choice([Preemption.ANY, Preemption.ANY, Preemption.ABOVE_MIN, Preemption.NEVER]),
            grace_period_s=rng.choice([0.0, 5.0, 20.0]),
            min_runtime_s=rng.choice([0.0, 0.0, 10.0]),
            retry=Retry((RetryOn.INTERRUPTION, RetryOn.ERROR), 50),
            max_duration_s=rng.choice([0.0, 0.0, 60.0]),
            after=("n0",) if rng.random() < 0.1 else (),
            scaling=Scaling() if service and replicas.min < replicas.max else None,
        )

    def script_of(self, command: StartTask, faults: bool) -> Script:
        """Return how one start behaves; without faults it does what it should."""
        rng = random.Random(f"{command.ref}")
        if command.spec.is_service:
            return Script(rng.choice([0.1, 2.0]), leaves_after_s=rng.choice([0.1, 3.0, None]))
        runs_s = rng.choice([1.0, 10.0, 30.0, 60.0])
        if not faults:
            return Script(0.1, runs_s=runs_s)
        error = "no such file" if rng.random() < 0.02 else ""
        code = rng.choice([0, 0, 0, 0, 0, 1, -9])
        return Script(rng.choice([0.1, 2.0]), error, runs_s, code, rng.choice([0.1, 3.0, None]))
