"""What is simulated: machines, and jobs with the behaviour that a trace knows of them. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import msgspec

from tidecell.structs.job import JobSpec
from tidecell.structs.machine import MachineSpec


class SimJob(msgspec.Struct, frozen=True, omit_defaults=True):
    """One job of a trace.

    Attributes:
        spec: What is submitted.
        submit_s: When, in seconds of virtual time.
        work_s: How long it runs with all its replicas; None: until somebody stops it. With fewer replicas
            it takes longer in proportion (linear speed-up; a job below its gang does not move at all). Of an
            array: how long each item runs.
        stop_s: When somebody stops it (a service's deletion); None: nobody does.
        done_s: Work of ``work_s`` that is done already, for jobs that ran when the simulation began.
        exit_code: How it ends by itself.
    """

    spec: JobSpec
    submit_s: float
    work_s: float | None
    stop_s: float | None = None
    done_s: float = 0.0
    exit_code: int = 0

    @property
    def ideal_s(self) -> float | None:
        """How long it takes with all its replicas on an empty cell; None: until somebody stops it."""
        array = self.spec.array
        if self.work_s is None or array is None:
            return self.work_s
        return self.work_s * math.ceil(array.count / max(1, self.spec.replicas.max))


class MachineChange(msgspec.Struct, frozen=True):
    """A machine that goes away or comes (back) at a moment."""

    at_s: float
    machine: MachineSpec
    up: bool


class LoadPoint(msgspec.Struct, frozen=True):
    """From a moment on, a service has so many requests in flight and queued."""

    at_s: float
    service: str
    ongoing: float


@dataclass(frozen=True)
class Workload:
    """Everything that happens to a simulated cell.

    Attributes:
        source: Where it comes from, for the report.
        notes: What had to be assumed to read it, in words.
    """

    machines: tuple[MachineSpec, ...]
    jobs: tuple[SimJob, ...]
    changes: tuple[MachineChange, ...] = ()
    load: tuple[LoadPoint, ...] = ()
    source: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def start_s(self) -> float:
        """When the first job is submitted; 0 without jobs."""
        return min((job.submit_s for job in self.jobs), default=0.0)


@dataclass(frozen=True)
class Behaviour:
    """How simulated machines and tasks behave, where a trace does not say.

    Attributes:
        starts_after_s: From the command to the running process.
        leaves_after_s: From the order to stop to its end, if the grace period is longer.
        batch_s: Inputs that arrive within this time are decided together, as a busy control plane does.
        heartbeat_s: A tick at least this often while anything lives; exact timers are set besides.
    """

    starts_after_s: float = 1.0
    leaves_after_s: float = 1.0
    batch_s: float = 0.0
    heartbeat_s: float = 300.0
