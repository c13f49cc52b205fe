"""When a schedule fires: pure functions of expression, time zone and moment.

Nothing here knows what time it is. An expression has cron's five fields and means what it means to
Debian's cron, also where clocks are turned (a fixed hour that is left out fires right after the gap,
one that comes twice fires once); the arithmetic is cronsim's.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim, CronSimError

LATE_S = 60.0  # a target that is no older counts as on time, whatever catch_up says
MAX_TARGETS = 1000  # decided on at once; the rest follows in the next decision
_WINDOWS_S = (3600.0, 86400.0, 32 * 86400.0, 366 * 86400.0, 30 * 366 * 86400.0)


class Schedule(msgspec.Struct, frozen=True, omit_defaults=True):
    """When a job is started again and again.

    Attributes:
        cron: Minute, hour, day of month, month, day of week.
        timezone: Name of a time zone, for example ``Europe/Berlin``.
        overlap: If a run is still going: ``skip`` the new one, ``queue`` it, or ``replace`` the old one.
        catch_up: Of targets missed while the cell was down or held: start ``none``, the ``last`` or ``all``.
        history: Finished runs that are remembered.
    """

    cron: str
    timezone: str = "UTC"
    overlap: str = "skip"
    catch_up: str = "none"
    history: int = 10


def check_cron(expression: str) -> str:
    """Return what is wrong with an expression; empty if nothing is and it fires at all."""
    if len(expression.split()) != 5:
        return f"has {len(expression.split())} fields; cron has 5: minute, hour, day, month, day of week"
    try:
        next(CronSim(expression, datetime(2024, 1, 1, tzinfo=UTC)))
    except CronSimError as error:
        return str(error)
    except StopIteration:
        return "never fires"
    return ""


def zone(name: str) -> tzinfo:
    """Return a time zone.

    Raises:
        ValueError: There is none of that name (``zoneinfo`` raises several kinds; all become this one).
    """
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError) as error:
        raise ValueError(f"no time zone is called {name!r}") from error


@functools.lru_cache(maxsize=4096)
def next_target_s(cron: str, timezone: str, after_s: float) -> float:
    """Return the first firing after a moment, in seconds since the epoch; 0: there is none."""
    return next(_targets(cron, timezone, after_s), 0.0)


def targets_after(schedule: Schedule, after_s: float) -> Iterator[float]:
    """Yield the firings of a schedule after a moment, rising."""
    return _targets(schedule.cron, schedule.timezone, after_s)


def _targets(cron: str, timezone: str, after_s: float) -> Iterator[float]:
    """Yield firings after a moment, rising."""
    last_s = after_s
    for moment in CronSim(cron, datetime.fromtimestamp(after_s, zone(timezone))):
        target_s = moment.timestamp()
        if target_s > last_s:  # where clocks go back, one moment may be named twice
            last_s = target_s
            yield target_s


class Due(msgspec.Struct, frozen=True):
    """What a schedule asks for at a moment.

    Attributes:
        targets: Firings to start a run for, rising.
        late: How many of them, from the front, are older than ``LATE_S``.
        through_s: Everything up to here is decided.
        skipped: Firings that were missed and are let go, as far as they were counted.
    """

    targets: tuple[float, ...]
    late: int
    through_s: float
    skipped: int = 0


def due(schedule: Schedule, through_s: float, now_s: float) -> Due | None:
    """Return what fires after ``through_s`` and up to ``now_s``, or None if nothing does.

    After a long pause ``all`` is dealt out ``MAX_TARGETS`` at a time: ask again until there is nothing.
    """
    first_s = next_target_s(schedule.cron, schedule.timezone, through_s)
    if not first_s or first_s > now_s:
        return None
    limit = MAX_TARGETS if schedule.catch_up == "all" else 10**9
    start_s = through_s if schedule.catch_up == "all" else max(through_s, now_s - LATE_S)
    found = tuple(itertools.islice(_until(schedule, start_s, now_s), limit))
    on_time = tuple(t for t in found if now_s - t <= LATE_S)
    if schedule.catch_up == "all":
        done_s = found[-1] if len(found) == limit else now_s
        return Due(found, len(found) - len(on_time), done_s)
    missed = _count(schedule, through_s, min(now_s, on_time[0] - 1.0 if on_time else now_s))
    if schedule.catch_up == "last" and not on_time:
        return Due((_last(schedule, through_s, now_s),), 1, now_s, missed - 1)
    return Due(on_time, 0, now_s, missed)


def _until(schedule: Schedule, after_s: float, until_s: float) -> Iterator[float]:
    targets = targets_after(schedule, after_s)
    return itertools.takewhile(lambda target_s: target_s <= until_s, targets)


def _count(schedule: Schedule, after_s: float, until_s: float) -> int:
    """Return how many firings there were, at most ``MAX_TARGETS``."""
    return sum(1 for _ in itertools.islice(_until(schedule, after_s, until_s), MAX_TARGETS))


def _last(schedule: Schedule, after_s: float, until_s: float) -> float:
    """Return the last firing in a span that has one, without going through all of it."""
    for window_s in _WINDOWS_S:
        found = list(_until(schedule, max(after_s, until_s - window_s), until_s))
        if found:
            return found[-1]
    return next_target_s(schedule.cron, schedule.timezone, after_s)


def run_name(name: str, schedule: Schedule, target_s: float) -> str:
    """Return the name of a run: ``NAME-YYYYMMDDTHHMM`` in the schedule's zone.

    Where clocks go back, the second of two equal times of day has a ``b`` at its end.
    """
    moment = datetime.fromtimestamp(target_s, zone(schedule.timezone))
    return f"{name}-{moment:%Y%m%dT%H%M}{'b' if moment.fold else ''}"
