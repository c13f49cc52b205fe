"""``schedule``: the one function behind the live cell, ``plan``, ``why`` and the simulator. Pure.

Work is taken in order: band, then gangs before growth, then the integer inside the band, then age. A
gang is placed whole or not at all. What does not fit may take capacity from lower bands; what still
does not fit reserves its place, and later work may use only what that place leaves over, or time that
ends before it (EASY backfill, Lifka 1995). Same snapshot and seed, same plan.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Container, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from tidecell.scheduler.attributes import of_alloc_N
from tidecell.scheduler.backfill import Release, releases_of, reserve
from tidecell.scheduler.board import Board, Spot
from tidecell.scheduler.cached import CACHE_FROM, ScoreCache
from tidecell.scheduler.excluded import describe_domains, describe_excluded
from tidecell.scheduler.gang import fit, fits_empty
from tidecell.scheduler.options import USUAL, Options
from tidecell.scheduler.preemption import Victims, find_by_row, find_victims
from tidecell.scheduler.quota import Block, Gate
from tidecell.scheduler.runs import RunPlacer, has_wishes, pays_off
from tidecell.scheduler.sampling import Sampler
from tidecell.scheduler.snapshot import JobView, Kept, PlanTrace, Snapshot, Waiting
from tidecell.scheduler.topology import num_that_fit
from tidecell.scheduler.units import Unit, units_of
from tidecell.scheduler.victims import RowVictims
from tidecell.structs.job import Band, JobSpec, Preemption, Reason
from tidecell.structs.messages import Claim, Placement, Plan, Removal
from tidecell.structs.resources import Resources
from tidecell.structs.tenant import team_of

RUN_FROM = 16  # units; below it preparing for runs takes longer than they save
_IN_VAIN = {Reason.NO_MATCHING_MACHINE, Reason.DEPENDENCY}  # what no place kept would help


@dataclass
class _Pass:
    """One scheduling pass."""

    snapshot: Snapshot
    board: Board
    trace: PlanTrace = field(default_factory=PlanTrace)
    placements: list[Placement] = field(default_factory=list)
    removals: list[Removal] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    withdrawals: list[tuple[str, int]] = field(default_factory=list)
    left: set[tuple[str, int]] = field(default_factory=set)  # told to leave in this very pass
    left_uids: set[str] = field(default_factory=set)
    runners: dict[Band, dict[str, JobView]] | None = None  # who could give way, where somebody asked
    options: Options = USUAL
    rows: dict[Band, RowVictims] = field(default_factory=dict)
    heads: list[tuple[JobView, float]] = field(default_factory=list)  # who reserved, and from when
    without_gang: set[str] = field(default_factory=set)  # jobs whose gang does not start in this pass
    failed_shapes: dict[tuple[object, ...], Waiting] = field(default_factory=dict)
    full: dict[int, int] = field(default_factory=dict)  # kind: how often something had been given back
    failed_asks: set[tuple[Resources, str, int]] = field(default_factory=set)  # what those ask for, in short
    releases: list[Release] | None = None  # what ends when; worked out where somebody asks
    gate: Gate | None = None  # quota; None: everything is allowed
    cache: ScoreCache | Sampler | None = None  # None: every unit scans all rows


def schedule(
    snapshot: Snapshot,
    seed: int = 0,
    kept: Kept | None = None,
    options: Options = USUAL,
) -> tuple[Plan, PlanTrace]:
    """Return what to do now, and why the rest waits.

    Args:
        snapshot: The cell as it is.
        seed: Breaks ties between machines that are equally good; 0: the smallest name.
        kept: What a live cell keeps beside its snapshot; it saves time and changes no plan.
        options: How it saves time.
    """
    board = Board(snapshot, seed, kept, options.classes)
    run = _Pass(snapshot, board, gate=Gate.of(snapshot), options=options)
    if options.sample:
        run.cache = Sampler(board, options.sample, seed)
    elif len(board.fleet.names) >= CACHE_FROM if options.cached is None else options.cached:
        run.cache = ScoreCache(board)
    units: list[Unit] = []
    for job in snapshot.jobs if kept is None else map(kept.jobs.__getitem__, kept.waiting):
        units += units_of(job, snapshot.now_s, run.trace)
    _drop_idle_claims(run, units)
    if _may_run(run, len(units)):
        ordered = sorted(units, key=Unit.order)
        _serve_in_runs(run, RunPlacer(board, ordered, pays_off(len(board.fleet.names))), ordered)
    else:  # by quota, who is next depends on what was placed before
        for unit in run.gate.in_order(units) if run.gate is not None else sorted(units, key=Unit.order):
            run.trace.order.setdefault(unit.job.uid)
            _serve(run, unit)
    plan = Plan(tuple(run.placements), tuple(run.removals), tuple(run.claims), tuple(run.withdrawals))
    return plan, run.trace


def _may_run(run: _Pass, num_units: int) -> bool:
    """Whether runs of units may be placed by one call: quota asks for each, and few are not worth it."""
    options = run.options
    if run.gate is not None or options.sample or options.cached is False or not options.classes:
        return False
    if options.runs is not None:
        return options.runs and num_units > 0
    return num_units >= RUN_FROM and pays_off(len(run.board.fleet.names))


def _serve_in_runs(run: _Pass, runs: RunPlacer, units: Sequence[Unit]) -> None:
    """Serve all units in order, as many as possible at once.

    After a failure runs are short, since what follows the failed unit in its run has to be looked at again.
    """
    at, longest = 0, 1
    while at < len(units):
        end = _end_of_run(run, units, at, min(runs.end_of_run(at), at + longest))
        stop = at
        if end > at:
            stop = runs.place(at, end)
            placements = runs.placements(at, stop)
            run.placements += placements
            run.trace.order.update(dict.fromkeys([p.uid for p in placements]))
            if stop == end:
                at, longest = stop, 2 * longest
                continue
        run.trace.order.setdefault(units[stop].job.uid)
        _serve(run, units[stop])
        at, longest = stop + 1, 1 if stop < end else longest


def _end_of_run(run: _Pass, units: Sequence[Unit], first: int, end: int) -> int:
    """Return the first unit up to ``end`` that something in this pass makes particular."""
    seen = (run.failed_asks, run.left_uids, run.board.claims, run.without_gang, run.heads, run.full)
    if not any(seen):
        return end
    return next((at for at in range(first, end) if _needs_a_look(run, units[at])), end)


def _needs_a_look(run: _Pass, unit: Unit) -> bool:
    """Whether more than free room decides on a unit, as far as can be told quickly."""
    spec, uid = unit.job.spec, unit.job.uid
    if run.full.get(unit.kind) == run.board.num_given_back:
        return True
    if (spec.resources, spec.accelerator_type, len(unit.tasks)) in run.failed_asks or uid in run.left_uids:
        return True
    if run.heads and spec.max_duration_s:  # it may use what is kept for a head, and is a release itself
        return True
    return uid in run.without_gang or _has_claim(run, unit)


def _drop_idle_claims(run: _Pass, units: list[Unit]) -> None:
    """Give up what is held for a task that may no longer demand it, for example after a rescale."""
    if not run.board.claims:
        return
    demanded = {key for unit in units if unit.demanded for key in unit.task_keys()}
    for key in sorted(set(run.board.claims) - demanded):
        run.board.unclaim(key)
        run.withdrawals.append(key)
        if run.gate is not None:
            run.gate.drop_claim(*key)


def _serve(run: _Pass, unit: Unit) -> None:
    if not run.board.fleet.names:
        _wait(run, unit, Reason.WAITING_FOR_CAPACITY, detail="no machine has joined yet")
        return
    if unit.job.uid in run.left_uids:
        # Its size has just changed: what it lacks is counted anew in the next pass.
        _wait(run, unit, Reason.PRIORITY, detail="gives room to more important work just now")
        return
    if unit.growth and unit.job.uid in run.without_gang:
        _wait(run, unit, *run.trace.waiting[unit.job.uid].reasons, detail="its gang starts first")
        return
    known = run.failed_shapes.get(_shape(run, unit)) if run.failed_shapes else None
    if known is not None and not _has_claim(run, unit):
        if not unit.growth:
            run.without_gang.add(unit.job.uid)
        if len(unit.tasks) == known.num_tasks == 1 and unit.job.uid not in run.trace.waiting:
            run.trace.waiting[unit.job.uid] = known
        else:
            _wait(run, unit, *known.reasons, detail=known.detail, behind=known.behind)
        return
    block = run.gate.check(unit.job, unit.indices, unit.growth) if run.gate is not None else None
    if block is not None:
        _wait_for_quota(run, unit, block)
        return
    if _place(run, unit):
        return
    run.without_gang.update([] if unit.growth else [unit.job.uid])
    if unit.demanded and _preempt(run, unit):
        return
    waiting = _explain_wait(run, unit)
    _wait(run, unit, *waiting.reasons, detail=waiting.detail, behind=waiting.behind)
    # Nothing becomes free during a pass, so the same shape fails again: do not ask twice.
    _note_failed(run, unit, waiting)
    # What could not start on an empty cell gets no place kept: it would starve all others in vain.
    if unit.demanded and not _IN_VAIN & {*waiting.reasons}:
        first_s = min((start_s for _, start_s in run.heads), default=0.0)
        start_s = reserve(run.board, unit.job, unit.indices, _releases(run), first_s)
        run.heads.append((unit.job, start_s))


def _shape(run: _Pass, unit: Unit) -> tuple[object, ...]:
    """Return what makes two units of this pass fail alike."""
    return unit.shape() if run.gate is None else (*unit.shape(), *_standing(unit))


def _note_failed(run: _Pass, unit: Unit, waiting: Waiting) -> None:
    run.failed_shapes[_shape(run, unit)] = waiting
    spec = unit.job.spec
    run.failed_asks.add((spec.resources, spec.accelerator_type, len(unit.tasks)))


def _releases(run: _Pass) -> list[Release]:
    """Return what ends when, what this very pass has started among it."""
    if run.releases is None:
        run.releases = releases_of(run.snapshot, run.left)
        jobs = {job.uid: job for job in run.snapshot.jobs} if run.placements else {}
        for placed in run.placements:
            _note_release(run, jobs[placed.uid], placed)
    return run.releases


def _note_release(run: _Pass, job: JobView, placed: Placement) -> None:
    """Add the end of what starts now, where a time limit tells it."""
    if run.releases is not None and job.spec.max_duration_s:
        end_s = (job.ends_by_s or run.snapshot.now_s + job.spec.max_duration_s) + job.spec.grace_period_s
        release = Release(end_s, placed.machine, placed.resources, placed.accelerators)
        insort(run.releases, release, key=lambda r: (r.end_s, r.machine))


def _standing(unit: Unit) -> tuple[object, ...]:
    """What makes two units of the same shape stand alike before the gate."""
    return (team_of(unit.job.spec), unit.growth, unit.job.spec.preemption)


def _wait_for_quota(run: _Pass, unit: Unit, block: Block) -> None:
    """Take back what others borrowed of this unit's own, or else let it wait."""
    run.without_gang.update([] if unit.growth else [unit.job.uid])
    text, gate = block.text, run.gate
    given = block.others and gate is not None and gate.could_be_given_back(unit.job, unit.indices)
    if unit.demanded and (given or _has_claim(run, unit)) and _preempt(run, unit):
        return
    _wait(run, unit, Reason.WAITING_FOR_QUOTA, detail=text)
    _note_failed(run, unit, Waiting((Reason.WAITING_FOR_QUOTA,), text))
    if unit.demanded and run.gate is not None:
        run.gate.hold(unit.job, unit.indices)


def _has_claim(run: _Pass, unit: Unit) -> bool:
    claims = run.board.claims
    if not claims:
        return False
    if len(unit.tasks) == 1:
        return (unit.job.uid, unit.tasks[0].index) in claims
    return any(key in claims for key in unit.task_keys())


def _is_claimed(run: _Pass, unit: Unit) -> bool:
    """Whether room is held for the whole unit: nobody's later reservation takes that from it."""
    return bool(run.board.claims) and all(key in run.board.claims for key in unit.task_keys())


def _fit_now(run: _Pass, unit: Unit) -> list[Spot] | None:
    """Return a spot for each task in what is free now and kept for nobody else."""
    if _has_claim(run, unit):
        spot = None
        if len(unit.tasks) == 1 and not _is_particular(unit):
            spot = run.board.claimed_spot(unit.job, unit.tasks[0].index)
        return [spot] if spot is not None else _fit(run, unit)
    if run.cache is None or _is_particular(unit):
        return _fit(run, unit)
    if unit.kind >= 0 and run.full.get(unit.kind) == run.board.num_given_back:
        return None
    spots = run.cache.fit(unit.job, unit.indices)
    if spots is None and unit.kind >= 0:
        run.full[unit.kind] = run.board.num_given_back
    return spots


def _is_particular(unit: Unit) -> bool:
    """Whether rows are better or worse for it than packing says, which the score cache does not know."""
    return has_wishes(unit.job.spec) or any(t.avoid for t in unit.tasks)


def _fit(run: _Pass, unit: Unit, future: bool = False, ignore_reserved: bool = False) -> list[Spot] | None:
    room = run.board.room(unit.task_keys(), future, ignore_reserved=ignore_reserved)
    return fit(run.board, unit.job, unit.indices, room)


def _place(run: _Pass, unit: Unit) -> bool:
    spots, is_short = _fit_now(run, unit), _ends_before_heads(run, unit)
    if spots is None and (_is_claimed(run, unit) or is_short):
        spots = _fit(run, unit, ignore_reserved=True)
    if spots is None:
        return False
    for index, spot in zip(unit.indices, spots, strict=True):
        granted = run.board.take(unit.job, index, spot, gone_by_heads=is_short)
        machine = run.board.fleet.names[spot.row]
        placed = Placement(unit.job.uid, index, machine, spot.devices, granted, spot.shape)
        run.placements.append(placed)
        _note_release(run, unit.job, placed)
        if run.gate is not None:
            run.gate.admit(unit.job, index, granted, unit.growth)
    return True


def _ends_before_heads(run: _Pass, unit: Unit) -> bool:
    """Whether this work is over before any reserved start: it may use the reserved room."""
    spec = unit.job.spec
    if not run.heads or not spec.max_duration_s:
        return False
    end_s = run.snapshot.now_s + spec.max_duration_s + spec.grace_period_s
    return all(start_s and end_s <= start_s for _, start_s in run.heads)


def _preempt(run: _Pass, unit: Unit) -> bool:
    """Take capacity from lower bands, and hold it for this unit; or its own quota back from borrowers."""
    if _has_claim(run, unit):
        held = _is_claimed(run, unit)
        fits = _fit(run, unit, future=True, ignore_reserved=held) is not None
        if fits and (run.gate is None or run.gate.check(unit.job, unit.indices, future=True) is None):
            _wait(run, unit, Reason.WAITING_FOR_PREEMPTED, detail="the capacity held for it is being vacated")
            return True
        _withdraw(run, unit)
    victims = _find_victims(run, unit)
    if victims is None:
        return False
    _tell_to_leave(run, unit, victims)
    for index, spot in zip(unit.indices, victims.spots, strict=True):
        machine, wanted = run.board.fleet.names[spot.row], unit.job.spec.request(index, spot.shape)
        claim = Claim(unit.job.uid, index, machine, wanted, spot.devices)
        run.claims.append(claim)
        run.board.claim(claim)
        if run.gate is not None:
            run.gate.claim(unit.job, index, claim.resources)
    names = (
        ", ".join(dict.fromkeys(f"'{job.name}'" for job, _ in victims.tasks)) or "tasks that leave already"
    )
    _wait(run, unit, Reason.WAITING_FOR_PREEMPTED, detail=f"takes the place of {names}")
    return True


def _find_victims(run: _Pass, unit: Unit) -> Victims | None:
    """Return who leaves for a unit: of one task row by row where that decides, else over the whole cell."""
    band, now_s = unit.job.spec.priority.band, run.snapshot.now_s
    if len(unit.tasks) == 1 and run.options.by_row:
        rows = run.rows.get(band)
        if rows is None:
            lower = [job for b in Band if b < band for job in _runners(run)[b].values()]
            rows = run.rows[band] = RowVictims(run.board, lower, now_s)
        found = find_by_row(rows, unit.job, unit.indices[0], run.gate)
        if found is not None:
            tasks = tuple((g.job, t) for g in found.groups for t in g.tasks)
            return Victims(tasks, (found.spot,)) if found.spot is not None else None
    return find_victims(run.board, _could_give_way(run, band), unit.job, unit.indices, now_s, run.gate)


def _tell_to_leave(run: _Pass, unit: Unit, victims: Victims) -> None:
    hit = {job.uid: job for job, _ in victims.tasks}
    sizes = {u: sum(1 for t in job.tasks if t.machine and not t.leaving) for u, job in hit.items()}
    for job, _ in victims.tasks:
        sizes[job.uid] -= 1
    for job, task in victims.tasks:
        run.removals.append(Removal(job.uid, task.index, task.machine, unit.job.uid, sizes[job.uid]))
        run.left.add((job.uid, task.index))
        run.board.leave(task)
        if run.gate is not None:
            run.gate.leave(job, task)
        run.left_uids.add(job.uid)
    run.releases = None
    _note_left(run, victims)


def _withdraw(run: _Pass, unit: Unit) -> None:
    """Hold nothing for this unit any more."""
    for key in unit.task_keys():
        if run.board.unclaim(key):
            run.withdrawals.append(key)
            if run.gate is not None:
                run.gate.drop_claim(*key)


def _could_give_way(run: _Pass, band: Band) -> list[JobView]:
    """Return the jobs that run and are not above a band, as this pass has left them so far.

    Worked out once a pass, for all that ask: in a large cell most jobs are no business of a given unit.
    """
    same = run.gate is not None  # a team's own quota may be taken back inside a band
    bands = [b for b in Band if b < band or (same and b == band)]
    return [job for b in bands for job in _runners(run)[b].values()]


def _runners(run: _Pass) -> dict[Band, dict[str, JobView]]:
    if run.runners is None:
        run.runners = {b: {} for b in Band}
        for job in run.snapshot.jobs:
            if not job.stopping and job.spec.preemption is not Preemption.NEVER and _runs(job):
                run.runners[job.spec.priority.band][job.uid] = job
    return run.runners


def _runs(job: JobView) -> bool:
    return any(t.machine and not t.leaving for t in job.tasks)


def _note_left(run: _Pass, victims: Victims) -> None:
    """Bring what could give way up to date with who was told to leave just now."""
    for uid in dict.fromkeys(job.uid for job, _ in victims.tasks):
        job = next(job for job, _ in victims.tasks if job.uid == uid)
        gone = {task.index: task.machine for other, task in victims.tasks if other.uid == uid}
        fresh = _without(job, gone)
        if run.runners is not None and fresh is not None:
            run.runners[job.spec.priority.band][uid] = fresh
        elif run.runners is not None:
            run.runners[job.spec.priority.band].pop(uid, None)
        for band, rows in run.rows.items():
            if job.spec.priority.band < band:
                rows.update(uid, fresh, gone.values())


def _without(job: JobView, gone: Container[int]) -> JobView | None:
    """Return a job some of whose tasks were told to leave; None: no other could give way."""
    if not any(t.machine and not t.leaving and t.index not in gone for t in job.tasks):
        return None
    tasks = tuple([replace(t, leaving=True) if t.index in gone else t for t in job.tasks])
    spare = job.spare_disruptions
    if spare is not None:
        spare -= sum(t.index in gone for t in tasks)
    return replace(job, tasks=tasks, spare_disruptions=spare)


def _wait(run: _Pass, unit: Unit, *reasons: Reason, detail: str, behind: str = "") -> None:
    known = run.trace.waiting.get(unit.job.uid)
    count = len(unit.tasks) + (known.num_tasks if known is not None else 0)
    if known is not None:
        reasons = tuple(dict.fromkeys((*known.reasons, *reasons)))
        detail, behind = known.detail or detail, known.behind or behind
    run.trace.waiting[unit.job.uid] = Waiting(reasons, detail, count, behind)


def _explain_wait(run: _Pass, unit: Unit) -> Waiting:
    """Return all reasons that bind this unit, the decisive one first."""
    alloc = unit.job.spec.alloc
    if alloc and not of_alloc_N(run.board.fleet, alloc).any():
        return Waiting((Reason.DEPENDENCY,), f"its alloc '{alloc}' has no machine yet; tide why {alloc}")
    room = num_that_fit(run.board.fleet, unit.job.spec)
    needs = _describe_needs(unit)
    if unit.job.spec.sizes:
        alone = replace(unit.job, tasks=unit.tasks)  # the empty cell has no other replicas of it either
        room = len(unit.tasks) if fits_empty(run.board.fleet, alone, unit.indices) else 0
    if room < len(unit.tasks):
        excluded = describe_excluded(run.board.fleet, unit.job.spec)
        holds = f"holds {room}" if not unit.job.spec.sizes else "does not hold that"
        detail = f"needs {needs}; the empty cell {holds}" + (f"; {excluded}" if excluded else "")
        return Waiting((Reason.NO_MATCHING_MACHINE,), detail)
    if run.heads and _fit(run, unit, ignore_reserved=True) is not None:
        head = run.heads[0][0].name if run.heads else ""
        detail = f"needs {needs}; what is free is held for '{head}', which goes first"
        return Waiting((Reason.PRIORITY, Reason.WAITING_FOR_CAPACITY), detail, behind=head)
    reasons: tuple[Reason, ...] = (Reason.WAITING_FOR_CAPACITY,)
    free = f"free now: {_describe_free(run, unit.job.spec)}"
    if _fails_by_domains(run, unit):
        reasons = (*reasons, Reason.TOPOLOGY_PLACEMENT_FAILED)
        free = f"room now: {describe_domains(run.board, unit.job, run.board.room(unit.task_keys()))}"
    if run.heads:
        reasons = (*reasons, Reason.PRIORITY)
    behind = run.heads[0][0].name if run.heads else ""
    return Waiting(reasons, f"needs {needs}; {free}", behind=behind)


def _fails_by_domains(run: _Pass, unit: Unit) -> bool:
    """Whether it would start now if it did not ask for one rack, or for an even spread over many."""
    spec = unit.job.spec
    hard_spread = spec.spread is not None and spec.spread.max_skew > 0
    if not hard_spread and not (spec.topology is not None and spec.topology.required):
        return False
    free = replace(unit.job, spec=replace(spec, topology=None, spread=None))
    return fit(run.board, free, unit.indices, run.board.room(unit.task_keys())) is not None


def _describe_needs(unit: Unit) -> str:
    spec = unit.job.spec
    each = spec.resources.describe()
    where = f" in one {spec.topology.level}" if spec.topology is not None and spec.topology.required else ""
    if spec.sizes:
        each = spec.describe_sizes(unit.indices)
        return (each + where if len(unit.tasks) == 1 else f"{each} together{where}").removeprefix("1 x ")
    return each + where if len(unit.tasks) == 1 else f"{len(unit.tasks)} x {each} together{where}"


def _describe_free(run: _Pass, spec: JobSpec) -> str:
    fleet, room = run.board.fleet, run.board.room()
    names = sorted(m.name for m in fleet.specs if m.alloc == spec.alloc)
    parts = [
        f"{name}: {_with_cpu(run.board.in_row(room, fleet.rows[name], spec.accelerator_type))}"
        if fleet.open_N[fleet.rows[name]]
        else f"{name}: is being drained"
        for name in names[:4]
    ]
    return "; ".join(parts) + ("; ..." if len(names) > 4 else "")


def _with_cpu(free: Resources) -> str:
    """Say also that there is no cpu, which a request's description would leave out."""
    text = free.describe()
    return text if free.cpu_millis or " cpu" in text else f"0 cpu, {text}"


__all__ = ["Unit", "schedule"]
