"""The calibration of expected starts: estimates, errors of past ones, quantiles with what still waits."""

from __future__ import annotations

import math
import random

import pytest

from tidecell.scheduler.durations import Wait
from tidecell.scheduler.waits import Example, Waits, corrected_s, error_of, quantile, size_of
from tidecell.structs.job import Band, JobSpec, Priority, Replicas
from tidecell.structs.resources import GPU, Resources


def spec(name: str, gpus: int = 1, band: Band = Band.BATCH, replicas: int = 1, model: str = "") -> JobSpec:
    return JobSpec(
        name,
        run="x",
        resources=Resources(0, 0, gpus * GPU),
        priority=Priority(band),
        replicas=Replicas(replicas, replicas),
        accelerator_type=model,
    )


def wait(name: str, since_s: float, until_s: float = math.inf, gpus: int = 1, **more: object) -> Wait:
    own = spec(name, gpus, **more)  # type: ignore[arg-type]
    return Wait(name, own, since_s, until_s, math.isfinite(until_s))


def waits_of(*waits: Wait, known_since_s: float = 0.0) -> Waits:
    return Waits.of(waits, waits[-1].spec, known_since_s)


def row(waits: Waits, uid: str) -> int:
    return waits.uids.index(uid)


def test_as_much_as_lies_before_it_was_started_in_so_long():
    waits = waits_of(
        wait("a", 0, 10), wait("b", 0, 40, gpus=2), wait("c", 0, 70), wait("d", 50), wait("e", 60)
    )
    assert waits.estimate_s(row(waits, "d"), 100.0) == 30.0  # one accelerator: since c's start
    assert waits.estimate_s(row(waits, "e"), 100.0) == 60.0  # two: since b's


def test_more_than_was_ever_started_takes_in_proportion():
    waits = waits_of(wait("a", 0, 50), wait("big", 60, gpus=8))
    assert waits.estimate_s(row(waits, "big"), 100.0) == 8 * 50.0


def test_without_any_start_there_is_no_estimate():
    waits = waits_of(wait("a", 0), wait("b", 0))
    assert waits.estimate_s(0, 100.0) is None
    assert waits.examples(100.0) == []


def test_what_a_higher_band_waits_for_lies_before_older_work():
    waits = waits_of(
        wait("old", 0), wait("urgent", 90, band=Band.PRODUCTION), wait("s", 0, 95), wait("t", 0, 80)
    )
    assert waits.uids.index("urgent") < waits.uids.index("old")
    assert waits.estimate_s(row(waits, "urgent"), 100.0) == 5.0
    assert waits.estimate_s(row(waits, "old"), 100.0) == 20.0


def test_starts_that_others_of_their_time_are_forgotten_of_do_not_count():
    waits = waits_of(wait("a", 0, 10), wait("b", 0, 90), wait("c", 50, gpus=2), known_since_s=80.0)
    assert waits.estimate_s(row(waits, "c"), 100.0) == 20.0


def test_only_jobs_that_want_the_same_kind_of_thing_compete():
    cpu = Wait("cpu", JobSpec("cpu", run="x"), 0.0, 5.0, True)
    waits = waits_of(
        cpu, wait("t4", 0, 5, model="T4"), wait("a", 0, 5, model="H100"), wait("b", 1, model="h100")
    )
    assert waits.uids == ("a", "b")


def test_the_size_of_a_gang_is_all_of_it():
    assert size_of(spec("gang", 8, replicas=4)) == 32.0
    assert size_of(JobSpec("cpu", run="x", resources=Resources(2500, 1 << 30))) == 2.5


def test_a_corrected_estimate_gives_back_the_true_time():
    for true_s, estimate_s in ((0.0, 100.0), (500.0, 0.0), (7200.0, 60.0)):
        assert corrected_s(estimate_s, error_of(true_s, estimate_s)) == pytest.approx(true_s, abs=1e-6)
    assert corrected_s(10.0, math.inf) == math.inf


def known(*errors: float) -> list[Example]:
    return [Example(f"j{i}", e, True) for i, e in enumerate(errors)]


def test_quantiles_are_those_of_split_conformal_prediction():
    nineteen = known(*range(1, 20))
    assert quantile(nineteen, 0.95) == 19  # the ceil(0.95 * 20)-th
    assert quantile(nineteen, 0.5) == 10
    assert quantile(nineteen, 0.05) == 1
    assert quantile(known(*range(1, 19)), 0.95) == math.inf  # 18 are too few for one of 20


def test_what_still_waits_moves_quantiles_up_and_in_the_end_takes_them_away():
    examples = known(*range(1, 41))
    later = [*examples, *(Example(f"w{i}", 20.5, False) for i in range(10))]
    assert quantile(later, 0.5) > quantile(examples, 0.5)
    assert quantile([*examples, *(Example(f"w{i}", 99.0, False) for i in range(10))], 0.95) == math.inf


def test_the_next_of_equal_kind_is_covered_at_the_rate():
    rng = random.Random(4)
    held = 0
    for _ in range(2000):
        drawn = [rng.lognormvariate(0, 2) for _ in range(60)]
        low, high = quantile(known(*drawn[:-1]), 0.05), quantile(known(*drawn[:-1]), 0.95)
        held += low <= drawn[-1] <= high
    assert 0.88 <= held / 2000 <= 0.93


def test_examples_are_the_same_each_time_and_know_nothing_later():
    past = [wait(f"a{i}", 10.0 * i, 10.0 * i + 35) for i in range(60)]
    waits = Waits.of(past, past[0].spec)
    assert waits.examples(500.0, 3) == waits.examples(500.0, 3)
    early = Waits.of(
        [
            w if w.until_s <= 300.0 else w._replace(until_s=math.inf, started=False)
            for w in past
            if w.since_s <= 300.0
        ],
        past[0].spec,
    )
    assert {e.known for e in early.examples(300.0)} == {True, False}
    assert early.examples(300.0) == Waits.of(past[:31], past[0].spec).examples(300.0)
