"""`tide why` speaks the truth: every suggestion, carried out on the same cell, starts the job.

Suggestions are typed into the real runtime as the commands they are; those about the spec are
submitted anew. The next smaller step in the same direction must not be enough.
"""

from __future__ import annotations

import re

from cell_harness import Cell, MemoryJournal, job_spec
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tidecell.cell.snapshot import take_snapshot
from tidecell.cell.state import Job
from tidecell.client.units import format_size, parse_cpu, parse_priority, parse_replicas, parse_size
from tidecell.client.views import Fix, WhyView
from tidecell.scheduler.explain import explain_plan, explain_why, render_plan, render_why
from tidecell.scheduler.fixes import cpu_step, memory_step
from tidecell.scheduler.schedule import schedule
from tidecell.structs.errors import RefusedError
from tidecell.structs.job import (
    Band,
    JobSpec,
    Kind,
    Preemption,
    Reason,
    Replicas,
    Retry,
    RetryOn,
    TaskState,
)
from tidecell.structs.messages import (
    JobChanged,
    JobStopRequested,
    JobSubmitted,
    PolicyProposed,
    TaskDown,
    TaskNoticed,
    Tick,
)
from tidecell.structs.placement import Spread, Topology, parse_condition
from tidecell.structs.resources import GPU
from tidecell.structs.tenant import Policy, Quota, Team

GIB = 1 << 30
MIB = 1 << 20


@st.composite
def places(draw: st.DrawFn) -> dict[str, object]:
    """Where replicas may go: mostly anywhere."""
    conditions = [parse_condition(text) for text in ("rack = r1", "rack != r1", "cpu >= 5")]
    some = st.lists(st.sampled_from(conditions), unique=True, min_size=1, max_size=2).map(tuple)
    return {
        "constraints": draw(st.one_of(st.just(()), st.just(()), some)),
        "topology": draw(st.sampled_from([None, None, None, Topology("rack"), Topology("rack", False)])),
        "spread": draw(st.sampled_from([None, None, None, Spread("name"), Spread("name", 1)])),
        "retry": Retry((RetryOn.NO_CAPACITY, RetryOn.INTERRUPTION)),
    }


@st.composite
def specs(draw: st.DrawFn, name: str) -> JobSpec:
    low = draw(st.integers(1, 4))
    service = draw(st.integers(0, 3)) == 0
    return job_spec(
        name,
        cpu=draw(st.sampled_from([0.5, 1, 2, 3, 4, 5])),
        memory_gib=draw(st.sampled_from([0, 0, 1, 4, 12])),
        gpus=draw(st.sampled_from([0, 0, 0, 0, 1, 2])),
        replicas=(low, low + draw(st.sampled_from([0, 0, 2]))),
        band=draw(st.sampled_from([Band.BEST_EFFORT, Band.BATCH, Band.BATCH, Band.PRODUCTION])),
        order=draw(st.integers(-1, 2)),
        kind=Kind.SERVICE if service else Kind.JOB,
        preemption=draw(st.sampled_from(list(Preemption))),
        min_runtime_s=draw(st.sampled_from([0.0, 0.0, 100.0])),
        max_duration_s=draw(st.sampled_from([0.0, 0.0, 600.0])),
        team=draw(st.sampled_from(["", "red", "blue"])),
        after=("j0",) if name != "j0" and draw(st.integers(0, 6)) == 0 else (),
        **draw(places()),
    )


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Three teams that may lend to each other; small quotas, so that they bind."""

    def quota() -> Quota:
        amounts = {"cpu": 1000 * draw(st.integers(1, 8))}
        begins_s = draw(st.sampled_from([0.0, 0.0, 0.0, 1300.0]))
        return Quota(amounts, lend=draw(st.sampled_from([None, {"cpu": 1000}])), from_s=begins_s)

    cohort = draw(st.sampled_from(["", "sea"]))
    bands = ("batch", "production")
    teams = [Team(n, {b: quota() for b in bands}, cohort) for n in ("red", "blue", "default")]
    return Policy(tuple(teams), patience_s=draw(st.sampled_from([0.0, 0.0, 20.0])))


@st.composite
def cells(draw: st.DrawFn) -> Cell:
    """A cell with some jobs running and some waiting, at rest."""
    cell = Cell()
    cell.send(PolicyProposed(draw(st.one_of(st.none(), policies()))))
    for name in "abcd"[: draw(st.sampled_from([1, 1, 2, 2, 4]))]:
        gpus = draw(st.sampled_from([[], [], ["H100", "H100"]]))
        cell.machine(
            name,
            draw(st.integers(3, 8)),
            draw(st.sampled_from([4, 16])),
            gpus,
            rack="r1" if name in "ac" else "r2",
        )
    for i in range(draw(st.integers(2, 6))):
        cell.send(JobSubmitted(draw(specs(f"j{i}"))))
        cell.up()
        cell.after(draw(st.sampled_from([0.0, 1.0, 150.0])))
        if draw(st.booleans()):
            cell.leave()
    return cell


def copy(cell: Cell) -> Cell:
    """Another cell in the same state, to try things on."""
    journal = MemoryJournal()
    journal.rows = list(cell.journal.rows)  # type: ignore[union-attr]
    other = Cell(journal)
    other.now_s = cell.now_s
    other.engine.attached = dict(cell.engine.attached)
    other.engine.processes = dict(cell.engine.processes)
    return other


def goal_of(job: Job) -> int:
    """How many replicas must run for what waits to have started: the gang, or one more."""
    done = sum(1 for t in job.tasks if t.state is TaskState.SUCCEEDED)
    missing = min(job.spec.replicas.min, job.desired) - done - len(job.staying_tasks())
    return len(job.staying_tasks()) + max(1, missing)


def goal_of_gang(cell: Cell, name: str) -> int:
    """How many replicas make the gang of a job of which nothing ran before."""
    job = cell.job(name)
    return max(1, min(job.spec.replicas.min, job.desired))


def settles_with(cell: Cell, name: str, goal: int) -> bool:
    """Let everything that was told to leave do so, and say whether the job came to run."""
    for _ in range(8):
        if len(cell.job(name).staying_tasks()) >= goal:
            return True
        cell.send(Tick())
        for job in list(cell.state.live_jobs()):
            for task in list(job.active_tasks()):
                if task.notice is not None:
                    cell.send(TaskDown(cell.state.ref(job, task), task.machine, -15))
    return len(cell.job(name).staying_tasks()) >= goal


def type_in(cell: Cell, command: str) -> None:
    for line in command.split("; "):
        _, verb, name, *rest = line.split()
        if verb == "scale":
            cell.ask(JobChanged(name, replicas=parse_replicas(rest[0])))
        elif verb == "prio":
            cell.ask(JobChanged(name, priority=parse_priority(rest[0])))
        else:
            assert verb == "stop"
            cell.ask(JobStopRequested(name))


def change_spec(spec: JobSpec, change: str) -> JobSpec:
    """Read a change of the spec as a person would."""
    for part in change.removesuffix(" in the spec").split(" and "):
        if match := re.fullmatch(r"resources\.(\w+) (\S+) -> (\S+)", part):
            asked = spec.resources
            key, value = match[1], match[3]
            asked = {
                "cpu": lambda a=asked, v=value: replace(a, cpu_millis=parse_cpu(v)),
                "memory": lambda a=asked, v=value: replace(a, memory_bytes=parse_size(v)),
                "gpu": lambda a=asked, v=value: replace(a, gpu_millis=int(v) * GPU),
            }[key]()
            spec = replace(spec, resources=asked)
        elif match := re.fullmatch(r"replicas\.min (\d+) -> (\d+)", part):
            spec = replace(spec, replicas=Replicas(int(match[2]), spec.replicas.max))
        elif part == "topology required -> preferred":
            assert spec.topology is not None
            spec = replace(spec, topology=replace(spec.topology, required=False))
        elif part.startswith("spread.max_skew "):
            assert spec.spread is not None
            spec = replace(spec, spread=replace(spec.spread, max_skew=0))
        elif part.startswith("constraints: without "):
            left_out = re.findall(r"'([^']+)'", part)
            spec = replace(spec, constraints=tuple(c for c in spec.constraints if str(c) not in left_out))
        else:
            assert part.startswith("after: without"), part
            left_out = re.findall(r"'([^']+)'", part)
            spec = replace(spec, after=tuple(n for n in spec.after if n not in left_out))
    return spec


def works(cell: Cell, job: Job, fix: Fix) -> bool:
    trial, goal = copy(cell), goal_of(job)
    if not fix.command:
        return resubmitted_starts(trial, job, change_spec(job.spec, fix.change))
    type_in(trial, fix.command)
    if fix.command.startswith(f"tide scale {job.spec.name} "):
        goal = goal_of_gang(trial, job.spec.name)
    return settles_with(trial, job.spec.name, goal)


def resubmitted_starts(trial: Cell, job: Job, spec: JobSpec) -> bool:
    trial.stop(job.spec.name)
    trial.submit(spec)
    return settles_with(trial, spec.name, goal_of_gang(trial, spec.name))


def picture(cell: Cell, job: Job, *what: object) -> str:
    """Return a cell as a failed test shows it."""
    lines = [f"{job.uid}: {' '.join(map(str, what))}"]
    lines += [
        f"  {m.spec.name}: {m.spec.capacity.describe()} {m.spec.accelerators}"
        for m in cell.state.machines.values()
    ]
    for other in cell.state.live_jobs():
        tasks = [f"{t.index}:{t.state}@{t.machine}" for t in other.tasks]
        lines.append(f"  {other.uid} {other.spec} {tasks}")
    return "\n".join([*lines, f"  claims {cell.state.claims}"])


def waiting_jobs(cell: Cell) -> list[tuple[Job, WhyView]]:
    snapshot = take_snapshot(cell.state, cell.now_s)
    found = []
    for job in cell.state.live_jobs():
        view = explain_why(snapshot, job.uid, cell.now_s)
        assert render_why(view, cell.now_s)
        if view.reasons:
            found.append((job, view))
    return found


MANY = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@MANY
@given(cells())
def test_every_suggestion_starts_the_job(cell: Cell):
    for job, view in waiting_jobs(cell):
        for fix in view.fixes:
            event(fix.change.split()[0] if not fix.command else fix.command.split()[1])
            assert works(cell, job, fix), picture(cell, job, fix)


@MANY
@given(cells())
def test_nothing_smaller_would_do(cell: Cell):
    for job, view in waiting_jobs(cell):
        for fix in view.fixes:
            larger = next_smaller_change(job.spec, fix)
            if larger is not None:
                event("tried the next smaller change")
                assert not works(cell, job, larger), f"{job.uid}: {larger} would do, {fix} was said"


def next_smaller_change(spec: JobSpec, fix: Fix) -> Fix | None:
    """Return the suggestion one step closer to what was asked, or None if that is what was asked."""
    if match := re.fullmatch(r"replicas\.min (\d+) -> (\d+)", fix.change):
        asked, said = int(match[1]), int(match[2])
        size = Replicas(said + 1, spec.replicas.max)
        return Fix("", f"tide scale {spec.name} {size}") if said + 1 < asked else None
    if match := re.fullmatch(r"(\S+) replicas (\S+) -> (\S+)", fix.change):
        asked_size, said_size = parse_replicas(match[2]), parse_replicas(match[3])
        size = Replicas(min(asked_size.min, said_size.max + 1), said_size.max + 1)
        return Fix("", f"tide scale {match[1]} {size}") if said_size.max + 1 < asked_size.max else None
    if match := re.fullmatch(r"resources\.(cpu|memory|gpu) (\S+) -> (\S+) in the spec", fix.change):
        r = spec.resources
        key = match[1]
        if key == "gpu":
            more = int(match[3]) + 1
            return Fix(f"resources.gpu x -> {more}") if more * GPU < r.gpu_millis else None
        if key == "cpu":
            millis = parse_cpu(match[3]) + cpu_step(r.cpu_millis)
            return Fix(f"resources.cpu x -> {millis}m") if millis < r.cpu_millis else None
        size_bytes = parse_size(match[3]) + memory_step(r.memory_bytes)
        return (
            Fix(f"resources.memory x -> {format_size(size_bytes)}") if size_bytes < r.memory_bytes else None
        )
    return None


@MANY
@given(cells())
def test_what_would_not_help_does_not(cell: Cell):
    for job, view in waiting_jobs(cell):
        for fix in view.no_help:
            trial = copy(cell)
            if match := re.fullmatch(r"priority \S+ -> (\S+)", fix.change):
                event("priority")
                try:
                    trial.prio(job.spec.name, parse_priority(match[1]))
                except RefusedError:  # its team's quota there could never cover it
                    continue
                assert not settles_with(trial, job.spec.name, goal_of(job)), fix
            elif match := re.fullmatch(r"(\S+) stops", fix.change):
                event("stop")
                trial.stop(match[1])
                assert not settles_with(trial, job.spec.name, goal_of(job)), fix


@MANY
@given(cells())
def test_without_the_named_holders_the_verdict_is_another(cell: Cell):
    for job, view in waiting_jobs(cell):
        if not view.holders:
            continue
        event("holders named")
        trial = copy(cell)
        for name in {h.job for h in view.holders}:
            if trial.job(name).stopping is None:
                trial.stop(name)
        if settles_with(trial, job.spec.name, goal_of(job)):
            continue
        after = explain_why(take_snapshot(trial.state, trial.now_s), job.uid, trial.now_s)
        assert (after.reasons, after.detail, after.holders) != (view.reasons, view.detail, view.holders)


@MANY
@given(cells())
def test_reasons_are_the_schedulers_own(cell: Cell):
    snapshot = take_snapshot(cell.state, cell.now_s)
    _, trace = schedule(snapshot)
    for job, view in waiting_jobs(cell):
        assert view.reasons == trace.waiting[job.uid].reasons
        assert view.needs
        assert view.free_now


@MANY
@given(cells())
def test_an_expected_start_comes_true_when_limits_are_reached(cell: Cell):
    """With nothing but time limits and grace periods at work, the job runs by then."""
    for job, view in waiting_jobs(cell):
        if not view.expected_s or Reason.DEPENDENCY in view.reasons:
            continue
        event("forecast made")
        trial, goal = copy(cell).up(), goal_of(job)
        while trial.now_s < view.expected_s + 2:
            due = [t.notice.deadline_s for j in trial.state.live_jobs() for t in j.active_tasks() if t.notice]
            due += [
                j.started_s + j.spec.max_duration_s
                for j in trial.state.live_jobs()
                if j.started_s and j.spec.max_duration_s and j.stopping is None
            ]
            moments = [m for m in due if m > trial.now_s]
            trial.now_s = min([*moments, view.expected_s + 2])
            trial.send(Tick())
            for other in list(trial.state.live_jobs()):
                for task in list(other.active_tasks()):
                    if task.notice is not None and task.notice.deadline_s <= trial.now_s:
                        trial.send(TaskDown(trial.state.ref(other, task), task.machine, -15))
            trial.up()
            if len(trial.job(job.spec.name).staying_tasks()) >= goal:
                break
        assert len(trial.job(job.spec.name).staying_tasks()) >= goal, view


@MANY
@given(cells(), st.lists(specs("new"), min_size=1, max_size=1))
def test_a_plan_is_what_then_happens(cell: Cell, new: list[JobSpec]):
    spec = new[0]
    assume(all(cell.state.find(n) is not None for n in spec.after))
    live = {j.spec.name for j in cell.state.live_jobs()}
    snapshot = take_snapshot(cell.state, cell.now_s)
    view = explain_plan(snapshot, [spec], ("create new",))
    assert render_plan(view)
    trial = copy(cell)
    trial.events.clear()
    if trial.send(JobSubmitted(spec)).errors[0] is not None:
        return
    event("starts" if view.starts else "waits")
    placed = sorted((t.index, t.machine) for t in trial.job("new").active_tasks())
    assert placed == sorted((p.index, p.machine) for p in view.placements)
    if not set(spec.after) & live:
        assert settles_with(trial, "new", goal_of_gang(trial, "new")) == view.starts
    victims = [e.ref for e in trial.story(TaskNoticed) if e.by == "new"]
    named = {(v.job, v.index) for v in view.victims}
    assert {(trial.state.jobs[r.uid].spec.name, r.index) for r in victims} <= named
