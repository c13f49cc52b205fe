"""``PlanView`` and ``WhyView`` as text, as `tide plan` and `tide why` print them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from tidecell.client.views import Fix, Holder, PlannedVictim, PlanView, StartRange, WhyView
from tidecell.scheduler.words import about

MAX_MACHINES_SHOWN = 8


def render_why(view: WhyView, now_s: float = 0.0) -> str:
    """Return an explanation as text.

    Args:
        view: What ``explain_why`` found.
        now_s: Seconds since the epoch, to show ages; 0 leaves them out and shows times of day.
    """
    age = f" {about(now_s - view.since_s)}" if now_s else ""
    reasons = " · ".join(view.reasons)
    lines = [f"{view.name}  {view.state.value}{age}" + (f"   {reasons}" if reasons else "")]
    if view.message:
        lines.append(f"  {view.message}")
    if view.shrunk:
        lines.append(f"  runs      {view.shrunk}")
    if view.detail and not view.needs:
        lines.append(f"  {view.detail}")
    if view.needs:
        lines.append(f"  needs     {view.needs}       free now: {view.free_now}")
        lines += [f"  because   {text}" for text in (_because(view.detail),) if text]
    if view.position and (view.num_waiting > 1 or view.team):
        lines.append(f"  position  {_position(view)}")
    lines += _held_by(view.holders)
    if view.fixes:
        lines.append(f"  {'one more' if view.shrunk else 'it'} would start now if")
        lines += _fixes(view.fixes)
    if view.no_help:
        rows = _columns((f.change, f"({f.effect})" if f.effect else "") for f in view.no_help)
        lines += [f"  {'would not help' if i == 0 else '':14}  {row}" for i, row in enumerate(rows)]
    if view.start_range is not None:
        lines.append(f"  otherwise {_range(view.start_range, now_s)}")
    if view.expected_why:
        lines.append(f"  otherwise {_expected(view, now_s)}")
    return "\n".join(lines)


def _because(detail: str) -> str:
    """Return what the scheduler's own line says beyond needs and free room."""
    rest = detail.partition("; ")[2] if detail.startswith("needs ") else detail
    return "" if rest.startswith("free now") else rest


def _position(view: WhyView) -> str:
    mine = f", {view.team_position} of team {view.team}" if view.team else ""
    return f"{view.position} of {view.num_waiting} that wait{mine}"


def _held_by(holders: Iterable[Holder]) -> list[str]:
    machines: dict[str, list[str]] = {}
    for h in holders:
        extra = f", running {about(h.running_s)}" if h.running_s >= 1 else ""
        leaving = ", leaving" if h.leaving else ""
        team = f", team {h.team}" if h.team else ""
        text = f"{h.job} ({h.priority}{team}{extra}{leaving}) {h.resources.describe()}"
        machines.setdefault(h.machine, []).append(text)
    rows = [f"{name}: {', '.join(texts)}" for name, texts in machines.items()]
    more = [f"and {len(rows) - MAX_MACHINES_SHOWN} more machines"] if len(rows) > MAX_MACHINES_SHOWN else []
    rows = [*rows[:MAX_MACHINES_SHOWN], *more]
    return [f"  {'held by' if i == 0 else '':7}   {row}" for i, row in enumerate(rows)]


def _fixes(fixes: Iterable[Fix]) -> list[str]:
    rows = _columns((f.change, f.command, f"({f.effect})" if f.effect else "") for f in fixes)
    return [f"    {row}" for row in rows]


def _columns(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Return rows with their columns aligned; the last one is ragged."""
    table = list(rows)
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))] if table else []
    return ["   ".join(f"{c:{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in table]


def _range(found: StartRange, now_s: float) -> str:
    """Return a range as people read it: ``about 14:20 (13:55-15:40 ...)``, or as spans from now."""
    low, likely, high = (
        _when(t, now_s) if t is not None else "" for t in (found.earliest_s, found.expected_s, found.latest_s)
    )
    word = "in about" if now_s else "about"
    if not found.rate:
        sure = f"a guess from {found.num_cases} futures; too few waits to say how often it holds"
        return f"{word} {likely} ({low} to {high}, {sure})"
    sure = f"holds {100 * found.rate:.0f} % of the time, by {found.num_cases} past waits"
    if high:
        return f"{word} {likely} ({low} to {high}, {sure})"
    first = f"{word} {likely}, " if likely else ""
    return f"{first}not before {low} ({sure}; too many still wait to name an end)"


def _when(at_s: float, now_s: float) -> str:
    return about(at_s - now_s) if now_s else f"{datetime.fromtimestamp(at_s):%H:%M}"


def _expected(view: WhyView, now_s: float) -> str:
    if not view.expected_s:
        return view.expected_why
    if now_s:
        return f"in at most {about(view.expected_s - now_s)}, {view.expected_why}"
    return f"at {datetime.fromtimestamp(view.expected_s):%H:%M} at the latest, {view.expected_why}"


def render_plan(view: PlanView) -> str:
    """Return a plan as text: changes, where replicas go, who gives way and what that costs, who waits."""
    lines = list(view.changes) or ["nothing to change"]
    if view.placements:
        lines += ["", "starts now"]
        lines += [f"  {row}" for row in _columns(_placements(view))]
    if view.victims:
        lines += ["", "would be told to leave for it"]
        lines += [f"  {row}" for row in _columns(_victims(view))]
    if view.waits:
        lines += ["", "waits"]
        rows2 = [(w.job, _tasks(w.num_tasks), " · ".join(w.reasons), w.detail) for w in view.waits]
        lines += [f"  {row}" for row in _columns(rows2)]
    if view.placements or view.waits:
        lines += ["", _conclusion(view)]
    return "\n".join(lines)


def _placements(view: PlanView) -> list[tuple[str, ...]]:
    counts: dict[tuple[str, str], int] = {}
    for p in view.placements:
        counts[p.job, p.machine] = counts.get((p.job, p.machine), 0) + 1
    return [(job, _tasks(count), f"on {machine}") for (job, machine), count in counts.items()]


def _victims(view: PlanView) -> list[tuple[str, ...]]:
    """One row a job: who leaves where, how many remain, and what the one that loses most loses."""
    jobs: dict[str, list[PlannedVictim]] = {}
    for victim in view.victims:
        jobs.setdefault(victim.job, []).append(victim)
    rows: list[tuple[str, ...]] = []
    for job, tasks in jobs.items():
        size = min(v.new_size for v in tasks)
        machines = ", ".join(sorted({v.machine for v in tasks}))
        leave = f"{_tasks(len(tasks))} on {machines}"
        rows.append((f"{tasks[-1].action} {job}", leave, f"{size} remain", f"loses {tasks[0].loses}"))
    return rows


def _tasks(count: int) -> str:
    return f"{count} replica{'' if count == 1 else 's'}"


def _conclusion(view: PlanView) -> str:
    if not view.starts:
        return "not everything would start; tide why NAME says more once it is submitted"
    return "everything starts once those told to leave have left" if view.victims else "everything starts now"
