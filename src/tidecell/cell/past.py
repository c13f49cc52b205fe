"""How long the cell's finished work took: what forecasts rest on. Pure."""

from __future__ import annotations

from tidecell.cell.state import CellState
from tidecell.scheduler.durations import History
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
    return History(ended, ongoing, arrivals)
