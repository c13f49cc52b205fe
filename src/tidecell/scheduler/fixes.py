"""The smallest changes that would let a waiting job start: each is tried on the snapshot. Pure.

One constraint is relaxed at a time, and the very scheduler is run on the changed snapshot. What is
suggested starts the job; the next smaller step in the same direction does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from msgspec.structs import replace

from tidecell.client.units import format_cpu, format_size
from tidecell.client.views import Fix, Holder
from tidecell.scheduler.board import Board
from tidecell.scheduler.quota import Gate
from tidecell.scheduler.relaxing import (
    with_looser_domains,
    with_min,
    without_conditions,
    without_one_condition,
)
from tidecell.scheduler.snapshot import JobView, Snapshot
from tidecell.scheduler.whatif import (
    Verdict,
    find_job,
    judge,
    num_missing,
    num_staying,
    released,
    reprioritized,
    rescaled,
    resubmitted,
    stopped,
    withdrawn,
)
from tidecell.scheduler.words import about, describe_victims, listed, work_at_risk
from tidecell.structs.job import Band, JobSpec, Preemption, Priority, Reason, Replicas
from tidecell.structs.resources import GPU, Resources, format_bytes

MAX_HOLDERS_TRIED = 12
MAX_STOPS_SHOWN = 3

GIB, MIB = 1 << 30, 1 << 20


def cpu_step(cpu_millis: int) -> int:
    """Return the step in which less cpu is suggested, for a request of this size."""
    return 1000 if cpu_millis >= 8000 else 500 if cpu_millis >= 2000 else 100


def memory_step(memory_bytes: int) -> int:
    """Return the step in which less memory is suggested, for a request of this size."""
    return GIB if memory_bytes >= 8 * GIB else 256 * MIB if memory_bytes >= GIB else 64 * MIB


def largest(high: int, works: Callable[[int], bool]) -> int:
    """Return a k in 1..high that works while k + 1 does not (or is above high); 0 if 1 does not work."""
    if high < 1 or not works(1):
        return 0
    low, above = 1, high + 1
    while above - low > 1:
        middle = (low + above) // 2
        low, above = (middle, above) if works(middle) else (low, middle)
    return low


@dataclass
class Search:
    """The search for what would help one waiting job.

    Attributes:
        holders: Who holds what it needs, as ``explain_why`` found them.
        reasons: Why it waits.
        fixes: What would help, found so far.
        no_help: What people would try, and why it would not.
    """

    snapshot: Snapshot
    job: JobView
    holders: Sequence[Holder]
    seed: int = 0
    reasons: tuple[Reason, ...] = ()
    fixes: list[Fix] = field(default_factory=list)
    no_help: list[Fix] = field(default_factory=list)

    def run(self) -> None:
        """Try every kind of change, the user's own first."""
        if self.job.held or self.job.begin_s > self.snapshot.now_s:
            self._release()
            return
        if self.job.blocked_by:
            self._dependencies()
            return
        if self._is_whole():
            self._fewer_in_gang()
            if not self._less_cpu() | self._less_memory():
                self._less_of_both()
            self._fewer_accelerators()
            self._any_accelerator()
            self._looser_places()
        self._priority()
        if not self._others_shrink() | self._others_stop():
            self._several_stop()
        self._drains_end()

    def _drains_end(self) -> None:
        """A machine that is emptied for maintenance could take it."""
        for name in self.snapshot.closed:
            rest = tuple(n for n in self.snapshot.closed if n != name)
            verdict = self._judge(replace(self.snapshot, closed=rest))
            if verdict.starts:
                change, command = f"the drain of {name} is taken back", f"tide drain {name} --cancel"
                self.fixes.append(Fix(change, command, self._effect(verdict)))

    # --------------------------------------------------------------------------------------- asking

    @cached_property
    def rest(self) -> Snapshot:
        """The cell once this job was stopped, to be submitted anew."""
        return withdrawn(self.snapshot, self.job, self.seed)

    def _is_whole(self) -> bool:
        """Whether nothing of it runs, so that it could be submitted anew with another spec."""
        return not any(t.machine for t in self.job.tasks)

    def _judge(self, changed: Snapshot) -> Verdict:
        return judge(changed, self.job.uid, self.seed)

    def _with_spec(self, spec: JobSpec) -> bool:
        return self._judge(resubmitted(self.rest, self.job, spec)).starts

    def _with_resources(self, resources: Resources) -> bool:
        return self._with_spec(replace(self.job.spec, resources=resources))

    def _effect(self, verdict: Verdict) -> str:
        return describe_victims(self.snapshot, verdict.victims)

    def _add_spec_fix(self, change: str, spec: JobSpec) -> None:
        verdict = self._judge(resubmitted(self.rest, self.job, spec))
        self.fixes.append(Fix(f"{change} in the spec", "", self._effect(verdict)))

    # -------------------------------------------------------------------------------- the job itself

    def _fewer_in_gang(self) -> None:
        replicas = self.job.spec.replicas
        best = largest(replicas.min - 1, lambda k: self._judge(self._with_min(k)).starts)
        if best:
            effect = self._effect(self._judge(self._with_min(best)))
            command = f"tide scale {self.job.name} {Replicas(best, replicas.max)}"
            self.fixes.append(Fix(f"replicas.min {replicas.min} -> {best}", command, effect))
        elif replicas.min > 1:
            text = "not even one replica could start"
            self.no_help.append(Fix(f"replicas.min {replicas.min} -> 1", "", text))

    def _with_min(self, least: int) -> Snapshot:
        return rescaled(self.snapshot, self.job, Replicas(least, self.job.spec.replicas.max))

    def _less_cpu(self) -> bool:
        asked = self.job.spec.resources
        step = cpu_step(asked.cpu_millis)
        best = largest(
            (asked.cpu_millis - 1) // step,
            lambda k: self._with_resources(replace(asked, cpu_millis=k * step)),
        )
        if best:
            spec = replace(self.job.spec, resources=replace(asked, cpu_millis=best * step))
            change = f"resources.cpu {format_cpu(asked.cpu_millis)} -> {format_cpu(best * step)}"
            self._add_spec_fix(change, spec)
        return best > 0

    def _less_memory(self) -> bool:
        asked = self.job.spec.resources
        step = memory_step(asked.memory_bytes)
        best = largest(
            (asked.memory_bytes - 1) // step,
            lambda k: self._with_resources(replace(asked, memory_bytes=k * step)),
        )
        if best:
            spec = replace(self.job.spec, resources=replace(asked, memory_bytes=best * step))
            change = f"resources.memory {_size(asked.memory_bytes)} -> {_size(best * step)}"
            self._add_spec_fix(change, spec)
        return best > 0

    def _less_of_both(self) -> None:
        """Neither alone is enough: what some machine has left of both, the most cpu first."""
        asked = self.job.spec.resources
        board = Board(self.snapshot, self.seed)
        rooms = {
            board.free_for(name, [(self.job.uid, t.index) for t in self.job.tasks])
            for name, machine in zip(board.fleet.names, board.fleet.specs, strict=True)
            if machine.alloc == self.job.spec.alloc
        }
        for room in sorted(rooms, key=lambda r: (-r.cpu_millis, -r.memory_bytes)):
            cpu = _floor(room.cpu_millis, asked.cpu_millis, cpu_step(asked.cpu_millis))
            memory = _floor(room.memory_bytes, asked.memory_bytes, memory_step(asked.memory_bytes))
            less = replace(asked, cpu_millis=cpu, memory_bytes=memory)
            if cpu and memory and less != asked and self._with_resources(less):
                change = f"resources.cpu {format_cpu(asked.cpu_millis)} -> {format_cpu(cpu)} and "
                change += f"resources.memory {_size(asked.memory_bytes)} -> {_size(memory)}"
                self._add_spec_fix(change, replace(self.job.spec, resources=less))
                return

    def _fewer_accelerators(self) -> None:
        asked = self.job.spec.resources
        best = largest(
            asked.gpu_millis // GPU - 1, lambda k: self._with_resources(replace(asked, gpu_millis=k * GPU))
        )
        if best:
            spec = replace(self.job.spec, resources=replace(asked, gpu_millis=best * GPU))
            self._add_spec_fix(f"resources.gpu {format_cpu(asked.gpu_millis)} -> {best}", spec)

    def _any_accelerator(self) -> None:
        kind = self.job.spec.accelerator_type
        spec = replace(self.job.spec, accelerator_type="")
        if kind and self._with_spec(spec):
            self._add_spec_fix(f"resources.gpu {kind} -> of any type", spec)

    def _release(self) -> None:
        """Let it go; nothing else helps while it is held back or before its time."""
        change = "held -> released" if self.job.held else "begin -> now"
        if self._judge(released(self.snapshot, self.job)).starts:
            self.fixes.append(Fix(change, f"tide release {self.job.name}"))
        else:
            text = "then it would wait all the same: see tide why after it"
            self.no_help.append(Fix(change, f"tide release {self.job.name}", text))

    def _looser_places(self) -> None:
        """Without a constraint, or all of them; in any domain; or that and a smaller gang."""
        spec = self.job.spec
        found = [self._try_spec(change, less) for change, less in without_one_condition(spec)]
        if len(spec.constraints) > 1 and not any(found):
            self._try_spec(*without_conditions(spec))
        for change, looser in with_looser_domains(spec):
            if self._try_spec(change, looser) or spec.array is not None:
                continue
            alone = largest(spec.replicas.min - 1, lambda k: self._judge(self._with_min(k)).starts)
            best = largest(
                spec.replicas.min - 1,
                lambda k, to=looser: self._with_spec(with_min(to, k)),  # type: ignore[misc]
            )
            if best > alone:
                text = f"{change} and replicas.min {spec.replicas.min} -> {best}"
                self._add_spec_fix(text, with_min(looser, best))

    def _try_spec(self, change: str, spec: JobSpec) -> bool:
        """Suggest this spec if it starts; else say that it would not help."""
        if self._with_spec(spec):
            self._add_spec_fix(change, spec)
            return True
        self.no_help.append(Fix(f"{change} in the spec", "", "then it would wait all the same"))
        return False

    def _dependencies(self) -> None:
        """Without the jobs it comes after; nothing else helps while they have not succeeded."""
        names = listed(f"'{n}'" for n in self.job.blocked_by)
        rest = tuple(n for n in self.job.spec.after if n not in self.job.blocked_by)
        spec = replace(self.job.spec, after=rest)
        if self._with_spec(spec):
            self._add_spec_fix(f"after: without {names}", spec)
        else:
            text = "then it would wait for capacity all the same"
            self.no_help.append(Fix(f"after: without {names} in the spec", "", text))

    # -------------------------------------------------------------------------------------- priority

    def _priority(self) -> None:
        now = self.job.spec.priority
        top = max((j.spec.priority.order for j in self._rivals()), default=now.order)
        tries = [Priority(now.band, max(top, now.order) + 1)] if self._rivals() else []
        tries += [Priority(band) for band in Band if now.band < band <= self._highest_band()]
        if Reason.WAITING_FOR_QUOTA in self.reasons:  # they have quotas of their own, or need none
            tries += [Priority(band) for band in reversed(Band) if band < now.band]
        if not self._rivals():  # what people try first, though nobody of its band is ahead of it
            self._no_help_from_order(Priority(now.band, now.order + 10))
        for priority in tries:
            verdict = self._judge(reprioritized(self.snapshot, self.job, priority))
            change = f"priority {now} -> {priority}"
            if verdict.starts:
                command = f"tide prio {self.job.name} {priority}"
                self.fixes.append(Fix(change, command, self._effect(verdict)))
                return
            self.no_help.append(Fix(change, "", self._why_not_taken(priority)))

    def _highest_band(self) -> Band:
        """Return the band that people may raise it to: in an alloc not above the alloc's."""
        bands = [j.spec.priority.band for j in self.snapshot.jobs if j.name == self.job.spec.alloc]
        return min([Band.PRODUCTION, *bands])

    def _no_help_from_order(self, higher: Priority) -> None:
        if not self._judge(reprioritized(self.snapshot, self.job, higher)).starts:
            change = f"priority {self.job.spec.priority} -> {higher}"
            self.no_help.append(Fix(change, "", self._why_not_taken(higher)))

    def _rivals(self) -> list[JobView]:
        """Jobs of the same band that wait as well."""
        band, mine = self.job.spec.priority.band, self.job.uid
        return [
            j
            for j in self.snapshot.jobs
            if j.uid != mine and j.spec.priority.band == band and any(t.pending for t in j.tasks)
        ]

    def _why_not_taken(self, priority: Priority) -> str:
        """Return why this priority takes nothing from those who hold what is needed: quota is asked first."""
        quota = self._no_quota(priority)
        if quota:
            return quota
        if not self.holders:
            return self._why_nobody()
        reasons: dict[str, list[str]] = {}
        for name in dict.fromkeys(h.job for h in self.holders):
            job = next(j for j in self.snapshot.jobs if j.name == name)
            reasons.setdefault(_refusal(job, priority.band, self.snapshot.now_s), []).append(name)
        kinds = {text: listed(names) for text, names in reasons.items() if text}
        if not kinds:
            return "what could be taken is not enough"
        return ", ".join(f"{names} {text}" for text, names in kinds.items())

    def _why_nobody(self) -> str:
        """Return why a priority does not help where nobody holds what is needed."""
        if not self.snapshot.machines:
            return "no machine has joined"
        if Reason.NO_MATCHING_MACHINE in self.reasons:
            takes = "that takes new work " if self.snapshot.closed else ""
            return f"no machine {takes}is large enough"
        return "nobody runs there who could give way"

    def _no_quota(self, priority: Priority) -> str:
        """Return why quota does not let it start at this priority; empty if quota is not what is short."""
        waits = Reason.WAITING_FOR_QUOTA in self.reasons
        if waits and priority.band is self.job.spec.priority.band:
            return "an integer only orders: quota is short at this band"
        changed = reprioritized(self.snapshot, self.job, priority)
        gate, job = Gate.of(changed), find_job(changed, self.job.uid)
        pending = [t.index for t in self.job.tasks if t.pending][: num_missing(self.job) or 1]
        block = gate.check(job, pending) if gate is not None and job is not None else None
        if block is None:
            return "it would wait for capacity there" if waits else ""
        return block.text

    # ---------------------------------------------------------------------------------------- others

    def _held_by(self) -> list[JobView]:
        """Holders that may be asked for room: lower and the same band first, then the cheapest."""
        names = list(dict.fromkeys(h.job for h in self.holders))
        jobs = [j for j in self.snapshot.jobs if j.name in names and not j.stopping]
        jobs.sort(key=lambda j: (j.spec.priority.band, j.spec.priority.order, -j.submitted_s, j.uid))
        return jobs[:MAX_HOLDERS_TRIED]

    def _others_shrink(self) -> bool:
        found = False
        for other in self._held_by():
            replicas, running = other.spec.replicas, num_staying(other)
            low = max(1, replicas.min)
            best = largest(running - low, lambda k, o=other, b=low - 1: self._shrunk_starts(o, b + k))  # type: ignore[misc]
            if not best:
                continue
            size = Replicas(min(replicas.min, low - 1 + best), low - 1 + best)
            change = f"{other.name} replicas {replicas} -> {size}"
            self.fixes.append(
                Fix(change, f"tide scale {other.name} {size}", _cost(other, self.snapshot.now_s))
            )
            found = True
        return found

    def _shrunk_starts(self, other: JobView, most: int) -> bool:
        size = Replicas(min(other.spec.replicas.min, most), most)
        return self._judge(rescaled(self.snapshot, other, size)).starts

    def _others_stop(self) -> bool:
        shrinking = {fix.command.split()[2] for fix in self.fixes if fix.command.startswith("tide scale ")}
        shown = 0
        tried = [j for j in self._held_by() if j.name not in shrinking]
        for other in tried:
            if shown < MAX_STOPS_SHOWN and self._judge(stopped(self.snapshot, other)).starts:
                command, cost = self._stop(other.name), _cost(other, self.snapshot.now_s)
                self.fixes.append(Fix(f"{other.name} stops", command, cost))
                shown += 1
        return shown > 0

    def _stop(self, name: str) -> str:
        """Return the command that stops a job; an alloc goes with all that is in it."""
        inside = any(j.spec.alloc == name for j in self.snapshot.jobs)
        return f"tide stop {name} --force" if inside else f"tide stop {name}"

    def _several_stop(self) -> None:
        """No single holder is enough: the first sufficient ones together, less those not needed."""
        held_by, chosen, changed = self._held_by(), [], self.snapshot
        for other in held_by:
            chosen.append(other)
            changed = stopped(changed, other)
            if self._judge(changed).starts:
                break
        else:
            for other in held_by[:2] if len(held_by) > 1 else held_by:
                text = "what it holds is not enough"
                self.no_help.append(Fix(f"{other.name} stops", "", text))
            return
        for other in reversed(chosen[:-1]):
            rest = [j for j in chosen if j is not other]
            if self._judge(self._all_stopped(rest)).starts:
                chosen = rest
        names = [j.name for j in chosen]
        self.fixes.append(Fix(f"{listed(names)} stop", "; ".join(self._stop(n) for n in names)))

    def _all_stopped(self, jobs: Sequence[JobView]) -> Snapshot:
        changed = self.snapshot
        for job in jobs:
            changed = stopped(changed, find_job(changed, job.uid) or job)
        return changed


def _floor(have: int, asked: int, step: int) -> int:
    """Return what is asked for if there is as much, else what there is, rounded down."""
    return asked if asked <= have else have // step * step


def _refusal(job: JobView, band: Band, now_s: float) -> str:
    """Return why a job of this band takes nothing (or not all) from another; empty if it could."""
    theirs = job.spec.priority.band
    if theirs == band:
        return "is in the same band"
    if theirs > band:
        return "is in a higher band"
    if job.spec.preemption is Preemption.NEVER:
        return "is never preempted"
    if any(t.running_s(now_s) < job.spec.min_runtime_s for t in job.tasks if t.machine):
        return f"has not run its min_runtime of {about(job.spec.min_runtime_s)} yet"
    return "keeps its minimum" if job.spec.preemption is Preemption.ABOVE_MIN else ""


def _cost(job: JobView, now_s: float) -> str:
    running = [t for t in job.tasks if t.machine and not t.leaving]
    if not running:
        return ""
    return f"loses {work_at_risk(job, min(running, key=lambda t: t.placed_s), now_s)}"


def _size(num_bytes: int) -> str:
    """Return a size as it can be typed: exact where that is short."""
    exact = format_size(num_bytes)
    return exact if len(exact) <= 8 else format_bytes(num_bytes).replace(" ", "")
