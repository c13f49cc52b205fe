"""How many replicas each elastic training gets, and where, so that trainings finish soon on average.

Pure and deterministic: trainings with their goodput curves and machines with their free GPUs in, places
out. It knows nothing of batch sizes, epochs or measurements (``tidecell.capacity.goodput`` turns those into
curves), so a plain table of measured samples a second by size serves as well.

A training that would take S seconds on one GPU and runs s times as fast at a size is worth
``S ** -size_exponent * s ** speed_exponent`` there. GPUs go, size by size, to whom they are worth most per
GPU. The first factor leans towards what is nearly done (as shortest-remaining-first does), the second
keeps a steep curve from starving the flat ones. Changing a running training costs what it would have done
while it restarts, spread over the time for which it is going to keep its new size. Replicas go on as few
machines as hold them; whoever keeps its size keeps its places.

A size never tried is trusted only up to ``exploration_factor`` times the largest one tried, as in Pollux
(Qiao et al., OSDI 2021); weighing by remaining work follows heSRPT (Berg et al., SIGMETRICS 2020), where
the optimal shares of jobs with equal concave curves grow with how little is left. Its exact shares need
equal power-law curves, which real trainings do not have.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from tidecell.capacity.goodput import GoodputCurve

# Replicas on each machine: (index of the machine, replicas).
Placement = tuple[tuple[int, int], ...]

# Nothing restarts more cheaply than this share of its value, however soon it ends.
LEAST_AFTER_RESTART = 0.05
LEAST_REMAINING_S = 30.0
# Speeds below this count as none.
LEAST_SPEED = 1e-9


class ElasticTraining(msgspec.Struct, frozen=True):
    """A training that can run at several sizes.

    Attributes:
        name: Unique among those given together.
        curve: Useful samples a second by size; None before its first step.
        remaining_samples: Useful samples left; None where nobody knows.
        attained_gpu_s: GPU-seconds it has had.
        min_replicas: Least size it can run at; it may always wait with none.
        max_replicas: Largest size.
        largest_size_seen: Most replicas it has run steps with.
        placement: Where it runs now.
        restart_s: Seconds it stands still when its places change.
    """

    name: str
    curve: GoodputCurve | None = None
    remaining_samples: float | None = None
    attained_gpu_s: float = 0.0
    min_replicas: int = 1
    max_replicas: int = 1
    largest_size_seen: int = 0
    placement: Placement = ()
    restart_s: float = 30.0

    @property
    def size(self) -> int:
        """Replicas it has now."""
        return sum(count for _, count in self.placement)


class SharingRule(msgspec.Struct, frozen=True):
    """Constants of the rule; the defaults were chosen on workloads 1 to 4 of 8 (docs/lab-log.md).

    Attributes:
        size_exponent: How much less a long training's GPU is worth than a short one's.
        speed_exponent: How fast further speed loses worth, above 0 to 1.
        exploration_factor: How far beyond the sizes it has tried a training may go.
        first_size: Most replicas before its first step.
        horizon_s: Longest time over which a restart is spread.
        unknown_remaining_s: Assumed single-GPU seconds left of a training that has not run a step; also
            the least assumed of one whose remaining work nobody knows.
        interval_s: Time between two decisions: the least for which a size is kept.
    """

    size_exponent: float = 0.5
    speed_exponent: float = 0.8
    exploration_factor: int = 4
    first_size: int = 2
    horizon_s: float = 600.0
    unknown_remaining_s: float = 600.0
    interval_s: float = 60.0


class SizeOption(msgspec.Struct, frozen=True):
    """A size and what it is worth, in any unit that all trainings share."""

    size: int
    worth: float


def share_machines(
    trainings: Sequence[ElasticTraining], machines: Sequence[int], rule: SharingRule | None = None
) -> dict[str, Placement]:
    """Return the places of each training for the next interval; one that is not named waits.

    Args:
        trainings: Those that run or wait; ties go to the earlier in the sequence.
        machines: GPUs that each machine has for them, those they hold now included.
        rule: Constants.

    Raises:
        ValueError: A name twice, an impossible size range, or a negative number of GPUs.
    """
    _check(trainings, machines)
    rule = rule or SharingRule()
    largest_machine = max(machines, default=0)
    total = sum(machines)
    ladder = sizes_to_consider(largest_machine, total)
    options = [_options(t, ladder, largest_machine, total, rule) for t in trainings]
    sizes = share_gpus(options, total)
    return place_sizes(trainings, sizes, machines)


def sizes_to_consider(largest_machine: int, total: int) -> tuple[int, ...]:
    """Return all sizes within a machine, then whole machines: what lies between wastes the rest of one."""
    within = range(1, min(largest_machine, total) + 1)
    beyond = range(2 * largest_machine, total + 1, largest_machine) if largest_machine else ()
    return (*within, *beyond)


def _check(trainings: Sequence[ElasticTraining], machines: Sequence[int]) -> None:
    names = {t.name for t in trainings}
    if len(names) != len(trainings):
        raise ValueError("two elastic trainings have one name")
    if any(gpus < 0 for gpus in machines):
        raise ValueError(f"a machine cannot have {min(machines)} GPUs")
    for t in trainings:
        if not 1 <= t.min_replicas <= t.max_replicas:
            raise ValueError(
                f"{t.name!r} has sizes {t.min_replicas} to {t.max_replicas}; need 1 <= min <= max"
            )


def _options(
    training: ElasticTraining, ladder: Sequence[int], largest_machine: int, total: int, rule: SharingRule
) -> list[SizeOption]:
    """Return the sizes it may take with what each is worth, smallest first; no replica is worth 0."""
    tried = max(rule.first_size, rule.exploration_factor * training.largest_size_seen)
    most = min(training.max_replicas, total, max(tried, training.min_replicas))
    now = training.size
    sizes: Iterable[int] = ladder
    extra = {training.min_replicas, now} - set(ladder)
    if extra:
        sizes = sorted({*ladder, *extra})
    unit, serial_s = _unit_and_remaining(training, rule)
    weight = serial_s**-rule.size_exponent
    options = [SizeOption(0, 0.0)]
    fastest = 0.0
    for size in sizes:
        if not training.min_replicas <= size <= most or size == 0:
            continue
        speed = _speed(training, size, largest_machine) / unit if unit > 0 else 0.0
        if speed <= fastest and size != now:
            continue  # no faster than a smaller one
        fastest = max(fastest, speed)
        if now not in (0, size):
            kept_s = min(max(serial_s / speed, rule.interval_s), rule.horizon_s)
            speed *= max(LEAST_AFTER_RESTART, 1.0 - training.restart_s / kept_s)
        options.append(SizeOption(size, weight * speed**rule.speed_exponent))
    return options


def _speed(training: ElasticTraining, size: int, largest_machine: int) -> float:
    """Return useful samples a second at a size, packed; in proportion to it before the first step."""
    if training.curve is None:
        return float(size)
    return training.curve.at(1 if size <= largest_machine else 2, size)


def _unit_and_remaining(training: ElasticTraining, rule: SharingRule) -> tuple[float, float]:
    """Return the speed of one GPU and the seconds that one GPU would need to finish."""
    curve = training.curve
    if curve is None:
        return 1.0, rule.unknown_remaining_s
    unit = curve.at(1, 1)
    if unit < LEAST_SPEED:  # it does not fit on one: a GPU's share of the first size that works
        first = next((n for n, v in enumerate(curve.across) if v >= LEAST_SPEED), 0)
        unit = curve.across[first] / first if first else 1.0
    if training.remaining_samples is None:
        return unit, max(training.attained_gpu_s, rule.unknown_remaining_s)
    return unit, max(training.remaining_samples / unit, LEAST_REMAINING_S)


def share_gpus(options: Sequence[Sequence[SizeOption]], free: int) -> list[int]:
    """Return a size for each training: the steps that are worth most per GPU first.

    Args:
        options: For each training, sizes in rising order; the first is taken if nothing better fits.
        free: GPUs beyond those first sizes.
    """
    at = [0] * len(options)
    heap: list[tuple[float, int, int, int]] = []

    def offer(index: int) -> None:
        """Push the best step up that fits into what is free."""
        row, start = options[index], at[index]
        base = row[start]
        best = (0.0, -1)
        for step in range(start + 1, len(row)):
            gpus = row[step].size - base.size
            if gpus > free:
                break
            best = max(best, ((row[step].worth - base.worth) / gpus, -step))
        if best[0] > 0:
            heapq.heappush(heap, (-best[0], index, start, -best[1]))

    for index in range(len(options)):
        offer(index)
    while heap and free:
        _, index, start, step = heapq.heappop(heap)
        if start != at[index]:
            continue
        gpus = options[index][step].size - options[index][start].size
        if gpus <= free:
            free -= gpus
            at[index] = step
        offer(index)
    return [row[position].size for row, position in zip(options, at, strict=True)]


def place_sizes(
    trainings: Sequence[ElasticTraining], sizes: Sequence[int], machines: Sequence[int]
) -> dict[str, Placement]:
    """Return places: who keeps its size keeps its places; the rest, largest first, as packed as can be."""
    free = list(machines)
    result: dict[str, Placement] = {}
    moving = []
    for order, (training, size) in enumerate(zip(trainings, sizes, strict=True)):
        if size and size == training.size and _still_there(training.placement, free):
            result[training.name] = training.placement
            for machine, count in training.placement:
                free[machine] -= count
        elif size:
            moving.append((-size, order, training.name))
    for negative, _, name in sorted(moving):
        result[name] = pack(-negative, free)
    return result


def _still_there(placement: Placement, free: Sequence[int]) -> bool:
    """Return whether these places can be kept; a machine may have lost GPUs meanwhile."""
    return all(machine < len(free) and free[machine] >= count for machine, count in placement)


def pack(size: int, free: list[int]) -> Placement:
    """Take places for a training out of ``free`` (changed in place), on as few machines as can be.

    Whole machines while it needs as much; for the rest the machine that is left with least; if none has
    enough, the emptiest first.

    Raises:
        ValueError: There are not that many free.
    """
    if size > sum(free):
        raise ValueError(f"{size} replicas do not fit into {sum(free)} free GPUs")
    taken: dict[int, int] = {}
    while size > 0:
        enough = [(count, machine) for machine, count in enumerate(free) if count >= size]
        if enough:
            machine = min(enough)[1]
        else:
            machine = max(range(len(free)), key=lambda m: (free[m], -m))
        count = min(size, free[machine])
        taken[machine] = taken.get(machine, 0) + count
        free[machine] -= count
        size -= count
    return tuple(sorted(taken.items()))


def num_replicas(placements: Mapping[str, Placement]) -> dict[str, int]:
    """Return the size that each placement amounts to: what a cell sets as a job's desired replicas."""
    return {name: sum(count for _, count in placement) for name, placement in placements.items()}
