"""How long the cell's work took and waited: what forecasts rest on. Pure."""

from __future__ import annotations

import math

from tidecell.cell.state import MAX_FINISHED, CellState, Job
from tidecell.scheduler.durations import History, Wait
from tidecell.structs.job import TaskState

RECENT_S = 6 * 3600.0  # what is submitted next is taken to be like what was submitted in this time


def history_of(state: CellState, now_s: float) -> History:
    """Return the durations of the successful runs that the cell still remembers, and of what runs now."""
    ended = (
        (job.spec, job.finished_s - job.started_s)
        for job in state.jobs.values()
        if job.outcome is TaskState.SUCCEEDED and job.started_s and job.finished_s > job.started_s
    )
    ongoing = (
        (job.spec, now_s - job.started_s)
        for job in state.live_jobs()
        if job.started_s and not job.spec.is_service and now_s > job.started_s
    )
    arrivals = (
        (now_s - job.submitted_s, job.spec)
        for job in state.jobs.values()
        if 0 < now_s - job.submitted_s <= RECENT_S and not job.spec.is_service
    )
    waits = (wait for job in state.jobs.values() if (wait := _wait(job)) is not None)
    return History(ended, ongoing, arrivals, waits, _known_since_s(state))


def _wait(job: Job) -> Wait | None:
    """Return a job's wait for its first start; None where it may have waited for something else."""
    spec = job.spec
    if spec.after or spec.schedule is not None or (job.held and not job.started_s):
        return None
    until_s = job.started_s or (math.inf if job.live else job.finished_s)
    return Wait(job.uid, spec, max(job.submitted_s, job.begin_s), until_s, bool(job.started_s))


def _known_since_s(state: CellState) -> float:
    """Return since when no finished job is forgotten; 0: since ever."""
    if len(state.finished_uids) < MAX_FINISHED:
        return 0.0
    return state.jobs[state.finished_uids[0]].finished_s
