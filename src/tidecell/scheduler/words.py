"""Small phrases that plans and explanations share. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from tidecell.scheduler.attributes import unmet
from tidecell.scheduler.board import Board
from tidecell.scheduler.excluded import describe_domains
from tidecell.scheduler.snapshot import JobView, Snapshot, TaskView
from tidecell.scheduler.whatif import find_job, num_staying
from tidecell.structs.messages import Removal
from tidecell.structs.resources import Resources


def about(seconds: float) -> str:
    """Return a duration in at most two units: 3725 gives ``1h2m``."""
    left = max(0, round(seconds))
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts[:2]) or "0s"


def listed(names: Iterable[str]) -> str:
    """Return names as a phrase: ``a, b and c``."""
    items = list(dict.fromkeys(names))
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1] if items else ""]))


def work_at_risk(job: JobView, task: TaskView, now_s: float) -> str:
    """Return what stopping this task costs its job."""
    if job.spec.is_service:
        return "no request"
    checkpoint = job.spec.checkpoint
    if checkpoint is not None:
        return f"at most {about(min(task.running_s(now_s), checkpoint.every_s))} of work"
    return f"at most {about(task.running_s(now_s))} of work"


def lost_with_envelope(snapshot: Snapshot, envelope: str) -> str:
    """Return what the end of an alloc's envelope costs those that are in it."""
    inside = [(j, t) for j in snapshot.jobs if j.spec.alloc for t in j.tasks if t.machine == envelope]
    costs = [f"{j.name} with it: {work_at_risk(j, t, snapshot.now_s)}" for j, t in inside]
    return "; ".join(costs) or "nothing: it is empty"


def describe_needs(job: JobView, count: int) -> str:
    """Return what the waiting part asks for."""
    each = job.spec.resources.describe()
    kind = f" ({job.spec.accelerator_type})" if job.spec.accelerator_type else ""
    topology = job.spec.topology
    where = f" in one {topology.level}" if topology is not None and topology.required else ""
    when = "".join(f", {condition}" for condition in job.spec.constraints)
    return f"{each}{kind}{where}{when}" if count == 1 else f"{count} x {each}{kind}{where}, together{when}"


def describe_free(snapshot: Snapshot, job: JobView, max_machines: int = 6) -> str:
    """Return what this job could use now, machine by machine; what is held for others is not free."""
    board = Board(snapshot, 0)
    mine = [(job.uid, t.index) for t in job.tasks]
    if job.spec.topology is not None and job.spec.topology.required and snapshot.machines:
        return f"room for {describe_domains(board, job, board.room(mine)) or 'none'}"
    free = {
        m.name: _masked(board.free_for(m.name, mine, job.spec.accelerator_type), job.spec.resources)
        for m in snapshot.machines
        if m.alloc == job.spec.alloc
        and m.has_type(job.spec.accelerator_type)
        and m.name not in snapshot.closed
        and unmet(job.spec, m) is None
    }
    here = {m.name for m in snapshot.machines if m.alloc == job.spec.alloc}
    shut = [name for name in snapshot.closed if name in here]
    closed = [f"{name}: is being drained" for name in shut[:max_machines]]
    if not free and not closed:
        return "no such machine" if snapshot.machines else "no machine has joined"
    rows = [(n, r) for n, r in free.items() if not r.is_zero()]
    shown = [f"{name}: {room.describe()}" for name, room in rows[:max_machines]] + closed
    more = f", and {len(rows) - max_machines} more machines" if len(rows) > max_machines else ""
    return ("; ".join(shown) or "nothing") + more


def _masked(room: Resources, request: Resources) -> Resources:
    """Return a machine's room, with memory only where the request asks for it."""
    return Resources(room.cpu_millis, room.memory_bytes if request.memory_bytes else 0, room.gpu_millis)


def describe_victims(snapshot: Snapshot, victims: Iterable[Removal]) -> str:
    """Return whom a change shrinks or evicts: ``shrinks train 4 -> 2``."""
    final: dict[str, int] = {}
    for removal in victims:
        final[removal.uid] = min(removal.new_size, final.get(removal.uid, removal.new_size))
    parts = []
    for uid, size in final.items():
        job = find_job(snapshot, uid)
        if job is not None:
            parts.append(f"shrinks {job.name} {num_staying(job)} -> {size}" if size else f"evicts {job.name}")
    return ", ".join(parts)
