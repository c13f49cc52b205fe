"""A cell under random inputs: every invariant after every step, and history that adds up.

The engine is scripted by hypothesis: processes start, exit, vanish and come back in any order, machines
go away with or without what they run, control planes restart, users change their minds, and plans
arrive that no longer fit. At the end the faults stop and everything must come to an end.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import msgspec
import pytest
from cell_harness import Cell, Process, machine_spec
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tidecell.cell.journal import Journal
from tidecell.cell.reconcile import GANG_REPAIR_S, reconcile
from tidecell.cell.runtime import Outcome
from tidecell.cell.snapshot import take_snapshot
from tidecell.cell.state import CellState, Job, encode_state
from tidecell.client.schema_work import CATCH_UPS, OVERLAPS
from tidecell.scheduler.options import Options
from tidecell.scheduler.schedule import schedule
from tidecell.scheduler.snapshot import Snapshot
from tidecell.sim.order_check import check_order
from tidecell.structs.cron import Schedule
from tidecell.structs.errors import TidecellError
from tidecell.structs.job import (
    Amount,
    Band,
    Cause,
    Disruptions,
    JobSpec,
    Kind,
    Preemption,
    Priority,
    Reason,
    Replicas,
    Retry,
    RetryOn,
    Scaling,
    TaskState,
    Update,
)
from tidecell.structs.lifecycle import DrainRequested, PromoteRequested, RollbackRequested, SpecChanged
from tidecell.structs.messages import (
    Claim,
    ControlStarted,
    DesiredProposed,
    Input,
    JobAccepted,
    JobChanged,
    JobFinished,
    JobHoldRequested,
    JobStopRequested,
    JobSubmitted,
    MachineLost,
    MachineSeen,
    Placement,
    Plan,
    PlanProposed,
    PolicyProposed,
    Removal,
    ReplicaDrained,
    StartTask,
    TaskDown,
    TaskEnded,
    TaskNoticed,
    TaskPlaced,
    TaskProbed,
    TaskRef,
    TaskUp,
    Tick,
)
from tidecell.structs.resources import Resources
from tidecell.structs.tenant import ANYTHING, Policy, Quota, Team
from tidecell.structs.work import Array

MACHINES = {name: machine_spec(name, cpu=4, gpus=["H100"] if name == "c" else []) for name in "abc"}
NAMES = ["n0", "n1", "n2", "n3", "n4", "n5"]
LABS = ["lab0", "lab1"]  # allocs
SHM = Path("/dev/shm")

ranges = st.tuples(st.integers(0, 4), st.integers(1, 5)).map(lambda p: Replicas(min(p), max(1, *p)))
TEAMS = ["", "red", "blue", "default"]
vectors = st.dictionaries(st.sampled_from(["cpu", "gpu"]), st.sampled_from([0, 1000, 3000, 6000]), max_size=2)
limits = st.sampled_from([None, None, {ANYTHING: 0}, {"cpu": 1000}])
quotas = st.builds(
    Quota,
    amounts=vectors,
    borrow=limits,
    lend=limits,
    until_s=st.sampled_from([0.0, 0.0, 1050.0]),
    period_s=st.sampled_from([0.0, 0.0, 60.0]),
    renew=st.booleans(),
)
bands_of_quota = st.dictionaries(st.sampled_from(["batch", "production", "monitoring"]), quotas, max_size=3)
policies = st.builds(
    lambda quotas, cohorts, patience: Policy(
        tuple(
            Team(name, q, cohort)
            for name, q, cohort in zip(("red", "blue", "default"), quotas, cohorts, strict=True)
        ),
        patience_s=patience,
    ),
    st.tuples(bands_of_quota, bands_of_quota, bands_of_quota),
    st.tuples(*[st.sampled_from(["", "sea", "sea"])] * 3),
    st.sampled_from([0.0, 0.0, 5.0]),
)
priorities = st.builds(Priority, st.sampled_from(Band), st.integers(-1, 1))


@st.composite
def updates(draw: st.DrawFn, service: bool) -> Update:
    amounts = st.sampled_from([None, Amount(0), Amount(1), Amount(50, percent=True)])
    return Update(
        max_unavailable=draw(amounts),
        max_surge=draw(amounts) if service else None,
        canary=draw(st.sampled_from([0, 0, 1])) if service else 0,
        auto_revert=draw(st.booleans()),
        healthy_after_s=draw(st.sampled_from([0.0, 5.0])),
        deadline_s=30.0,
        max_disruptions=draw(st.sampled_from([0, 0, 1])),
    )


@st.composite
def alloc_specs(draw: st.DrawFn) -> JobSpec:
    return JobSpec(
        name=draw(st.sampled_from(LABS)),
        kind=Kind.ALLOC,
        resources=Resources(draw(st.sampled_from([2000, 3000])), 0, draw(st.sampled_from([0, 0, 0, 1000]))),
        replicas=draw(ranges),
        priority=draw(priorities),
        preemption=draw(st.sampled_from([Preemption.ANY, Preemption.ABOVE_MIN, Preemption.NEVER])),
        grace_period_s=draw(st.sampled_from([0.0, 10.0])),
        max_duration_s=draw(st.sampled_from([0.0, 40.0])),
        team=draw(st.sampled_from(TEAMS)),
        update=draw(updates(service=False)),
    )


@st.composite
def job_specs(draw: st.DrawFn) -> JobSpec:
    if draw(st.integers(0, 7)) == 0:
        return draw(alloc_specs())
    service = draw(st.booleans())
    replicas = draw(ranges)
    gpu = draw(st.integers(0, 9)) == 0
    array = None if service or draw(st.integers(0, 4)) else Array(draw(st.integers(1, 9)))
    if array is not None:
        replicas = Replicas(0, draw(st.integers(1, array.count)))
    schedule = None
    if not service and array is None and draw(st.integers(0, 5)) == 0:
        overlap, catch_up = draw(st.sampled_from(OVERLAPS)), draw(st.sampled_from(CATCH_UPS))
        schedule = Schedule("* * * * *", "UTC", overlap, catch_up, draw(st.integers(1, 3)))
    return JobSpec(
        schedule=schedule,
        alloc=draw(st.sampled_from(["", "", "", *LABS])),
        hold=draw(st.integers(0, 9)) == 0,
        begin_s=draw(st.sampled_from([0.0, 0.0, 0.0, 1_030.0])),
        array=array,
        name=draw(st.sampled_from(NAMES)),
        kind=Kind.SERVICE if service else Kind.JOB,
        run="x",
        resources=Resources(draw(st.sampled_from([500, 1000, 2000, 3000])), 0, int(gpu) * 1000),
        replicas=replicas,
        priority=draw(priorities),
        preemption=draw(
            st.sampled_from([Preemption.ANY, Preemption.ANY, Preemption.ABOVE_MIN, Preemption.NEVER])
        ),
        grace_period_s=draw(st.sampled_from([0.0, 10.0])),
        min_runtime_s=draw(st.sampled_from([0.0, 0.0, 5.0])),
        retry=Retry(draw(st.sampled_from([(), (RetryOn.ERROR, RetryOn.INTERRUPTION), tuple(RetryOn)])), 2),
        max_duration_s=draw(st.sampled_from([0.0, 0.0, 40.0])),
        team=draw(st.sampled_from(TEAMS)),
        after=() if schedule is not None else tuple(draw(st.sampled_from([(), (), (), ("n0",)]))),
        scaling=Scaling() if service and replicas.min < replicas.max and draw(st.booleans()) else None,
        update=draw(updates(service)),
        disruptions=draw(
            st.sampled_from([None, None, Disruptions(Amount(1)), Disruptions(Amount(50, True))])
        ),
    )


class BusyJournal(Journal):
    """A journal with a snapshot every few records, so that every walk crosses several."""

    def snapshot_due(self) -> bool:
        return self.last_seq - self._last_snapshot_seq >= 25


class History:
    """What must be true of the sequence of events, kept apart from the cell's own state."""

    def __init__(self) -> None:
        self.finished: set[str] = set()
        self.noticed: dict[TaskRef, TaskNoticed] = {}
        self.highest_epoch = 0
        self.fired: set[tuple[str, float]] = set()
        self.open: set[TaskRef] = set()
        self.below_min_since: dict[str, float] = {}

    def check(self, state: CellState, outcome: Outcome, now_s: float) -> None:
        for event in outcome.events:
            if isinstance(event, JobFinished):
                assert event.uid not in self.finished, f"{event.uid} finishes twice"
                self.finished.add(event.uid)
            elif isinstance(event, JobAccepted) and event.parent:
                assert (event.parent, event.target_s) not in self.fired, "a firing starts two runs"
                assert event.target_s <= now_s, "a run before its time"
                self.fired.add((event.parent, event.target_s))
            elif isinstance(event, TaskPlaced):
                job = state.jobs.get(event.ref.uid)
                assert job is None or not job.held, "a job that is held starts tasks"
                assert job is None or job.begin_s <= now_s, "a job starts before its time"
                self._placed(event)
            elif isinstance(event, TaskNoticed):
                self._noticed(state, event, now_s)
            elif isinstance(event, TaskEnded):
                assert event.ref in self.open, f"{event.ref} ends twice, or never began"
                self.open.discard(event.ref)
                if event.cause is Cause.PREEMPT:
                    assert event.ref in self.noticed, "preempted without a notice"
        self._gangs(state, outcome, now_s)

    def _placed(self, event: TaskPlaced) -> None:
        assert event.ref.uid not in self.finished, "a finished job starts tasks"
        assert event.ref.epoch > self.highest_epoch, "an epoch is used again"
        self.highest_epoch = event.ref.epoch
        others = [r for r in self.open if (r.uid, r.index) == (event.ref.uid, event.ref.index)]
        assert not others, f"{event.ref} starts while {others} has not ended"
        self.open.add(event.ref)

    def _noticed(self, state: CellState, event: TaskNoticed, now_s: float) -> None:
        assert event.ref in self.open
        self.noticed[event.ref] = event
        job = state.jobs[event.ref.uid]
        if event.cause is not Cause.PREEMPT:
            return
        by = state.find(event.by)
        assert by is not None
        mine, theirs = job.spec.priority.band, by.spec.priority.band
        takes_back = mine is theirs is Band.BATCH and (job.spec.team or "default") != (
            by.spec.team or "default"
        )
        assert mine < theirs or takes_back, "a beneficiary is in a higher band, or takes its own quota back"
        if event.forced:
            assert job.spec.alloc, "only what is in an alloc leaves with it, whatever its own wishes"
            return
        assert job.spec.preemption is not Preemption.NEVER
        assert event.deadline_s >= now_s + job.spec.grace_period_s, "the whole grace period"

    def _gangs(self, state: CellState, outcome: Outcome, now_s: float) -> None:
        placed = {e.ref.uid for e in outcome.events if isinstance(e, TaskPlaced)}
        taken = {e.ref.uid for e in outcome.events if isinstance(e, TaskNoticed) and e.cause is Cause.PREEMPT}
        for job in state.live_jobs():
            size, least = gang(job)
            if job.uid in placed and job.stopping is None:
                assert size >= least, f"{job.uid} starts with {size} of {least}"
            if job.uid in taken and not job.spec.alloc:
                assert not job.staying_tasks() or size >= least or job.uid in self.below_min_since, (
                    "taken below its minimum"
                )
            lost = any(t.state is TaskState.PENDING and t.ended_s for t in job.tasks[: job.desired])
            if (
                job.stopping is None
                and not job.spec.is_service
                and job.staying_tasks()
                and lost
                and size < least
            ):
                self.below_min_since.setdefault(job.uid, now_s)
            else:
                self.below_min_since.pop(job.uid, None)


def gang(job: Job) -> tuple[int, int]:
    """How many replicas run for good or are done, and how many must."""
    done = sum(1 for t in job.tasks if t.state is TaskState.SUCCEEDED)
    return len(job.staying_tasks()) + done, min(job.spec.replicas.min, job.desired)


class CellMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.dir = Path(tempfile.mkdtemp(dir=SHM if SHM.is_dir() else None))
        self.cell = Cell(BusyJournal(self.dir / "journal.db"))
        self.history = History()
        self.past: list[TaskRef] = []

    @initialize(
        names=st.sets(st.sampled_from(sorted(MACHINES)), min_size=1),
        specs=st.lists(job_specs(), min_size=3, max_size=6, unique_by=lambda s: s.name),
        prompt=st.booleans(),
    )
    def open(self, names: set[str], specs: list[JobSpec], prompt: bool) -> None:
        self.tick(ControlStarted())
        for name in sorted(names):
            self.seen(name)
        for spec in specs:
            self.ask(JobSubmitted(spec))
        if prompt:
            self.all_up()

    def teardown(self) -> None:
        try:
            self.come_to_an_end()
        finally:
            self.cell.journal.close()
            shutil.rmtree(self.dir)

    # ------------------------------------------------------------------------------- plumbing

    def tick(self, *inputs: Input) -> Outcome:
        outcome = self.cell.send(*inputs)
        self.history.check(self.cell.state, outcome, self.cell.now_s)
        for command in outcome.commands:
            if isinstance(command, StartTask):
                self.past.append(command.ref)
        return outcome

    def ask(self, message: Input) -> None:
        """A request may be refused, in words."""
        error = self.tick(message).errors[0]
        if error is not None:
            assert isinstance(error, TidecellError)
            assert error.message

    def seen(self, name: str) -> None:
        self.cell.engine.attached[name] = MACHINES[name]
        self.tick(MachineSeen(MACHINES[name], self.cell.engine.running_on(name)))

    def processes(self, up: bool | None = None) -> list[tuple[TaskRef, Process]]:
        engine = self.cell.engine
        return [
            (ref, p)
            for ref, p in sorted(engine.processes.items())
            if p.command.machine in engine.attached and up in (None, p.up)
        ]

    # ---------------------------------------------------------------------------- what users do

    @rule(spec=job_specs())
    def submit(self, spec: JobSpec) -> None:
        self.ask(JobSubmitted(spec))

    @rule(specs=st.lists(job_specs(), min_size=2, max_size=4), prompt=st.booleans())
    def submit_several(self, specs: list[JobSpec], prompt: bool) -> None:
        for spec in specs:
            self.ask(JobSubmitted(spec))
        if prompt:
            self.all_up()

    def some_job(self, data: st.DataObject) -> str:
        live = [j.spec.name for j in self.cell.state.live_jobs()]
        return data.draw(st.sampled_from(live * 4 + NAMES + LABS))

    @rule(data=st.data(), replicas=ranges)
    def scale(self, data: st.DataObject, replicas: Replicas) -> None:
        self.ask(JobChanged(self.some_job(data), replicas=replicas))

    @rule(data=st.data(), priority=priorities)
    def prio(self, data: st.DataObject, priority: Priority) -> None:
        self.ask(JobChanged(self.some_job(data), priority=priority))

    @rule(policy=st.one_of(st.none(), policies))
    def set_policy(self, policy: Policy | None) -> None:
        """What runs goes on; what starts from now on is covered (checked at every start)."""
        self.ask(PolicyProposed(policy))

    @rule(data=st.data(), immediately=st.booleans(), force=st.booleans())
    def stop(self, data: st.DataObject, immediately: bool, force: bool) -> None:
        self.ask(JobStopRequested(self.some_job(data), immediately, force))

    @rule(data=st.data(), desired=st.integers(0, 6))
    def propose(self, data: st.DataObject, desired: int) -> None:
        job = self.cell.state.find(self.some_job(data))
        self.tick(DesiredProposed(job.uid if job is not None else "nobody.1", desired, "load"))

    @rule(data=st.data(), change=st.sampled_from(["run", "labels", "update", "resources", "grace"]))
    def apply(self, data: st.DataObject, change: str) -> None:
        job = self.cell.state.find(self.some_job(data))
        if job is None:
            return
        spec = job.spec
        changed = {
            "run": lambda: {"run": data.draw(st.sampled_from(["x", "y", "z"]))},
            "labels": lambda: {"labels": {"k": data.draw(st.sampled_from("ab"))}},
            "update": lambda: {"update": data.draw(updates(spec.is_service))},
            "resources": lambda: {"resources": Resources(data.draw(st.sampled_from([500, 1000, 2500])))},
            "grace": lambda: {"grace_period_s": data.draw(st.sampled_from([0.0, 5.0]))},
        }[change]()
        self.ask(SpecChanged(msgspec.structs.replace(spec, **changed), "ana"))

    @rule(data=st.data(), version=st.integers(0, 4))
    def roll_back(self, data: st.DataObject, version: int) -> None:
        self.ask(RollbackRequested(self.some_job(data), version))

    @rule(data=st.data())
    def promote(self, data: st.DataObject) -> None:
        self.ask(PromoteRequested(self.some_job(data)))

    @rule(name=st.sampled_from([*sorted(MACHINES), "nowhere"]), cancel=st.booleans(), wait=st.booleans())
    def drain(self, name: str, cancel: bool, wait: bool) -> None:
        start_s = self.cell.now_s + 20.0 if wait else 0.0
        self.ask(DrainRequested(name, start_s, self.cell.now_s + 50.0, cancel))

    # --------------------------------------------------------------------------- what engines say

    @precondition(lambda self: self.processes(up=False))
    @rule(data=st.data(), everything=st.booleans())
    def come_up(self, data: st.DataObject, everything: bool) -> None:
        if everything:
            self.all_up()
        else:
            self.one_up(*data.draw(st.sampled_from(self.processes(up=False))))

    def all_up(self) -> None:
        for ref, process in self.processes(up=False):
            self.one_up(ref, process)

    def one_up(self, ref: TaskRef, process: Process) -> None:
        process.up = True
        self.tick(TaskUp(ref, process.command.machine, pid=7, port=8000, agent_seq=ref.epoch))

    @precondition(lambda self: self.processes())
    @rule(data=st.data(), code=st.sampled_from([0, 0, 1, -9, 3]), completed=st.booleans(), oom=st.booleans())
    def exit(self, data: st.DataObject, code: int, completed: bool, oom: bool) -> None:
        ref, process = data.draw(st.sampled_from(self.processes()))
        del self.cell.engine.processes[ref]
        told = process.stop_by_s is not None
        self.tick(
            TaskDown(
                ref,
                process.command.machine,
                code,
                out_of_memory=oom and code == -9,
                completed=told and completed,
            )
        )

    @precondition(lambda self: self.processes(up=False))
    @rule(data=st.data())
    def fail_to_start(self, data: st.DataObject) -> None:
        ref, process = data.draw(st.sampled_from(self.processes(up=False)))
        del self.cell.engine.processes[ref]
        self.tick(TaskDown(ref, process.command.machine, error="no such program"))

    @precondition(lambda self: any(p.stop_by_s is not None for _, p in self.processes()))
    @rule()
    def leave(self) -> None:
        for ref, process in self.processes():
            if process.stop_by_s is not None:
                del self.cell.engine.processes[ref]
                self.tick(TaskDown(ref, process.command.machine, -15))

    @precondition(lambda self: self.processes(up=True))
    @rule(data=st.data(), ready=st.booleans())
    def probe(self, data: st.DataObject, ready: bool) -> None:
        ref, _ = data.draw(st.sampled_from(self.processes(up=True)))
        self.tick(TaskProbed(ref, ready))

    @precondition(lambda self: self.past)
    @rule(data=st.data())
    def drained(self, data: st.DataObject) -> None:
        self.tick(ReplicaDrained(data.draw(st.sampled_from(self.past))))

    @precondition(lambda self: self.past)
    @rule(data=st.data(), kind=st.sampled_from(["up", "down", "probe"]))
    def stale(self, data: st.DataObject, kind: str) -> None:
        """Word of a start that is over must change nothing."""
        ref = data.draw(st.sampled_from(self.past))
        assume(ref not in self.history.open)
        before = encode_state(self.cell.state)
        machine = data.draw(st.sampled_from(sorted(MACHINES)))
        message: Input = {
            "up": TaskUp(ref, machine, pid=9),
            "down": TaskDown(ref, machine, 1),
            "probe": TaskProbed(ref, True),
        }[kind]
        outcome = self.cell.runtime.tick([message], self.cell.now_s)
        if not outcome.events:  # the scheduler may have had something left to do
            assert encode_state(self.cell.state) == before
        else:
            assert not any(getattr(e, "ref", None) == ref for e in outcome.events)
        self.cell.engine.take(outcome.commands, self.cell.now_s)
        self.history.check(self.cell.state, outcome, self.cell.now_s)

    # ------------------------------------------------------------------------------------ machines

    @rule(name=st.sampled_from(sorted(MACHINES)), die=st.booleans())
    def lose_machine(self, name: str, die: bool) -> None:
        engine = self.cell.engine
        engine.attached.pop(name, None)
        for ref in engine.running_on(name) if die else ():
            del engine.processes[ref]
        self.tick(MachineLost(name))

    @rule(name=st.sampled_from(sorted(MACHINES)), data=st.data())
    def machine_comes_back(self, name: str, data: st.DataObject) -> None:
        """Its agent tells what it runs; some of it may have vanished meanwhile."""
        for ref in self.cell.engine.running_on(name):
            if data.draw(st.integers(0, 3)) == 0:
                del self.cell.engine.processes[ref]
        self.seen(name)

    @rule(name=st.sampled_from(sorted(MACHINES)))
    def stray_is_stopped(self, name: str) -> None:
        stray = TaskRef("ghost.1", 0, 1)
        self.cell.engine.attached[name] = MACHINES[name]
        outcome = self.tick(MachineSeen(MACHINES[name], (*self.cell.engine.running_on(name), stray)))
        assert any(getattr(c, "ref", None) == stray for c in outcome.commands)

    # --------------------------------------------------------------------------- plans, time, crashes

    @precondition(lambda self: self.cell.state.jobs)
    @rule(data=st.data())
    def stale_plan(self, data: st.DataObject) -> None:
        """A plan from nowhere: only what holds of it may be done."""
        uids = st.sampled_from(sorted(self.cell.state.jobs))
        index, machine = st.integers(0, 5), st.sampled_from([*sorted(MACHINES), "nowhere"])
        size = Resources(1000)
        plan = Plan(
            tuple(
                data.draw(
                    st.lists(
                        st.builds(Placement, uids, index, machine, st.just(()), st.just(size)), max_size=2
                    )
                )
            ),
            tuple(
                data.draw(st.lists(st.builds(Removal, uids, index, machine, uids, st.just(0)), max_size=2))
            ),
            tuple(data.draw(st.lists(st.builds(Claim, uids, index, machine, st.just(size)), max_size=1))),
        )
        self.tick(PlanProposed(plan))

    @precondition(lambda self: self.cell.state.live_uids)
    @rule(data=st.data(), hold=st.booleans())
    def hold(self, data: st.DataObject, hold: bool) -> None:
        uid = data.draw(st.sampled_from(sorted(self.cell.state.live_uids)))
        self.ask(JobHoldRequested(self.cell.state.jobs[uid].spec.name, hold))

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.0, 7.0, 30.0, 61.0]))
    def wait(self, seconds: float) -> None:
        self.cell.now_s += seconds
        self.tick(Tick())
        for uid, since_s in self.history.below_min_since.items():
            assert self.cell.now_s - since_s <= 2 * GANG_REPAIR_S + 130, f"{uid} stays below its minimum"

    @rule(agents_stay=st.booleans())
    def restart(self, agents_stay: bool) -> None:
        before = encode_state(self.cell.state)
        self.cell.journal.close()
        self.cell.journal = BusyJournal(self.dir / "journal.db")
        assert self.cell.journal.repair is None
        self.cell.restart()
        assert encode_state(self.cell.state) == before
        self.tick(ControlStarted())
        for name in sorted(self.cell.engine.attached) if agents_stay else ():
            self.seen(name)

    # ---------------------------------------------------------------------------------- invariants

    @invariant()
    def the_journal_leads_to_this_state(self) -> None:
        live = encode_state(self.cell.state)
        assert encode_state(self.cell.journal.replay(use_snapshot=False)) == live
        assert encode_state(self.cell.journal.replay(use_snapshot=True)) == live

    @invariant()
    def the_same_snapshot_and_seed_give_the_same_plan(self) -> None:
        snapshot = take_snapshot(self.cell.state, self.cell.now_s)
        copy = msgspec.json.decode(msgspec.json.encode(snapshot), type=Snapshot)
        for seed in (0, 3):
            assert msgspec.json.encode(schedule(snapshot, seed)[0]) == msgspec.json.encode(
                schedule(copy, seed)[0]
            )

    @invariant()
    def victims_are_the_same_whether_looked_for_row_by_row_or_over_the_whole_cell(self) -> None:
        snapshot = take_snapshot(self.cell.state, self.cell.now_s)
        assert schedule(snapshot)[0] == schedule(snapshot, options=Options(by_row=False))[0]

    @invariant()
    def a_tick_asks_every_job_that_time_has_changed(self) -> None:
        """Only jobs that are due are reconciled at a tick; none of the others may have something to say."""
        if self.cell.last_was_tick:
            for uid in self.cell.state.live_uids:
                assert not reconcile(self.cell.state, uid, self.cell.now_s).events, uid

    @invariant()
    def nobody_shrinks_and_grows_in_one_plan(self) -> None:
        plan, _ = schedule(take_snapshot(self.cell.state, self.cell.now_s))
        assert not {p.uid for p in plan.placements} & {r.uid for r in plan.removals}

    @invariant()
    def the_head_of_the_queue_starts_if_it_fits_and_is_not_delayed_by_what_jumps_it(self) -> None:
        snapshot = take_snapshot(self.cell.state, self.cell.now_s)
        plan, trace = schedule(snapshot)
        check_order(snapshot, plan, trace)

    @invariant()
    def whatever_waits_has_a_reason(self) -> None:
        snapshot = take_snapshot(self.cell.state, self.cell.now_s)
        plan, trace = schedule(snapshot)
        placed = {(p.uid, p.index) for p in plan.placements}
        for job in snapshot.jobs:
            if job.stopping or all((job.uid, t.index) in placed for t in job.tasks if t.pending):
                continue
            assert trace.waiting[job.uid].reasons, job.uid
            assert trace.waiting[job.uid].detail

    @invariant()
    def slots_beyond_the_wanted_number_stand_in_for_others_or_for_an_update(self) -> None:
        for job in self.cell.state.live_jobs():
            assert all(i >= job.desired for i in job.extra)
            assert all(i < job.desired for i in job.vacant)
            assert len(set(job.extra)) == len(job.extra)
            assert len(job.vacant) <= len(job.extra)
            if not job.spec.is_service:
                assert not job.extra
            if job.rollout is None and not self.cell.state.drains and job.stopping is None:
                assert len(job.extra) == len(job.vacant), f"{job.uid} surges for nothing"

    @invariant()
    def a_closed_machine_takes_no_new_work(self) -> None:
        for name, drain in self.cell.state.drains.items():
            for job in self.cell.state.live_jobs():
                for task in job.active_tasks():
                    assert task.machine != name or task.placed_s <= drain.start_s, f"{job.uid} on {name}"

    @invariant()
    def what_is_held_for_somebody_is_really_there(self) -> None:
        """What stays and what is held never exceed a machine, unless it was lost meanwhile."""
        state = self.cell.state
        for name, machine in state.machines.items():
            used = Resources()
            for job in state.live_jobs():
                for task in job.staying_tasks():
                    used = used + task.resources if task.row == name else used
            for claim in state.claims.values():
                if claim.machine == name:
                    used = used + claim.resources
            assert used.fits(machine.spec.capacity), f"{name}: {used}"

    # -------------------------------------------------------------------------------------- the end

    def come_to_an_end(self) -> None:
        """Faults and quotas stop, services are stopped, programs succeed: every job that can run ends."""
        self.ask(PolicyProposed(None))
        for name in list(self.cell.state.drains):
            self.ask(DrainRequested(name, cancel=True))
        for name in MACHINES:
            self.seen(name)
        for job in list(self.cell.state.live_jobs()):
            if job.spec.is_service or job.spec.is_alloc or job.spec.schedule is not None:
                self.ask(JobStopRequested(job.spec.name, force=True))
            elif job.held:
                self.ask(JobHoldRequested(job.spec.name, hold=False))
        for _ in range(60):
            if not self.cell.state.live_uids:
                return
            self.cell.now_s += 61.0
            self.tick(Tick())
            for ref, process in self.processes():
                if not process.up:
                    process.up = True
                    self.tick(TaskUp(ref, process.command.machine))
                else:
                    del self.cell.engine.processes[ref]
                    self.tick(TaskDown(ref, process.command.machine, 0))
        stuck = self.cell.runtime.trace.waiting
        for job in self.cell.state.live_jobs():
            assert job.uid in stuck, f"{job.uid} neither ends nor waits: {job}"
            reasons = set(stuck[job.uid].reasons)
            assert reasons & {Reason.NO_MATCHING_MACHINE, Reason.DEPENDENCY}, f"{job.uid} waits: {stuck}"


class LongCellMachine(CellMachine):
    """The same walks, more of them, and others on every run."""


COMMON = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
CellMachine.TestCase.settings = settings(COMMON, max_examples=60, stateful_step_count=40, derandomize=True)
LongCellMachine.TestCase.settings = settings(COMMON, max_examples=1000, stateful_step_count=50)
TestCellUnderRandomInputs = CellMachine.TestCase
TestCellUnderRandomInputsForLonger = pytest.mark.slow(pytest.mark.timeout(1200)(LongCellMachine.TestCase))
