"""At which indices a job's replicas are wanted. Pure bookkeeping, part of ``apply``.

Normally the indices below ``desired``. An update or a drain lets another index stand in for one of them;
``extra`` and ``vacant`` keep the exceptions, so that nothing needs to move back afterwards.
"""

from __future__ import annotations

from tidecell.cell.records import Job, Task

LOOKAHEAD = 256  # items of an array that wait openly; the others wait behind them, unseen


def resize(job: Job) -> None:
    """Make room for the maximum of the spec's replicas and bring the wanted number into its range."""
    if job.spec.array is not None:  # of an array they only say how many items run at once
        open_items(job)
        return
    replicas = job.spec.replicas
    if job.spec.array is not None:
        open_items(job)
    if job.spec.array is not None or job.spec.schedule is not None:
        return
    grow_to(job, replicas.max)
    wanted = replicas.max if job.spec.scaling is None else job.desired
    set_desired(job, max(replicas.min, min(replicas.max, wanted)))
    trim(job)


def set_desired(job: Job, desired: int) -> None:
    """Change the wanted number; what stands in for others keeps standing in as far as it can."""
    job.desired = desired
    for index in [i for i in job.extra if i < desired]:  # it is a normal index now
        job.extra.remove(index)
        if job.vacant:
            job.vacant.pop()
    for index in [i for i in job.vacant if i >= desired]:  # nobody has to stand in for it any more
        job.vacant.remove(index)
        if job.extra:
            job.extra.pop()


def open_items(job: Job) -> None:
    """Let the next items of an array wait openly: as many as may run at once, but few that only wait.

    So a pass over the cell costs what runs and could start, not what the array holds.
    """
    array = job.spec.array
    if array is None:
        return
    most = min(job.spec.replicas.max, job.num_active + LOOKAHEAD)
    while len(job.tasks) < array.count and len(job.open) < most:
        job.open[len(job.tasks)] = None
        job.tasks.append(Task(len(job.tasks)))
    job.desired = len(job.tasks)


def grow_to(job: Job, count: int) -> None:
    """Add tasks up to ``count``; attempt numbers go on where an index was used before."""
    for index in range(len(job.tasks), count):
        job.open[index] = None
        job.tasks.append(Task(index, attempt=job.attempts.pop(str(index), 0)))


def trim(job: Job) -> None:
    """Forget tasks above the maximum, from the end, once they hold nothing; their attempts are remembered."""
    if job.spec.array is not None:
        return
    while len(job.tasks) > job.spec.replicas.max:
        last = job.tasks[-1]
        if last.active or last.index in job.extra:
            return
        if last.attempt:
            job.attempts[str(last.index)] = last.attempt
        job.tasks.pop()
        if last.index in job.open:
            del job.open[last.index]
        else:
            job.ended[last.state] -= 1


def open_slot(job: Job, index: int) -> None:
    """Want a replica at this index too."""
    if index < job.desired:
        job.vacant.remove(index)
        return
    grow_to(job, index + 1)
    job.extra.append(index)


def close_slot(job: Job, index: int) -> None:
    """Want no replica at this index any more."""
    if index < job.desired:
        job.vacant.append(index)
    else:
        job.extra.remove(index)
        trim(job)


def free_slots(job: Job, count: int) -> list[int]:
    """Return the lowest ``count`` indices at which nothing runs and nothing is wanted, new ones too."""
    if count <= 0:
        return []
    known = [t.index for t in job.tasks if not t.active and not job.wants(t.index)][:count]
    return [*known, *range(len(job.tasks), len(job.tasks) + count - len(known))]
