"""The canonical form of any spec reads back to the same spec; no text makes the parser fall over."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tidecell.client.schema import parse_data, parse_specs, spec_diff, spec_to_dict
from tidecell.client.schema_work import CATCH_UPS, OVERLAPS
from tidecell.structs.cron import Schedule
from tidecell.structs.errors import SpecError
from tidecell.structs.job import (
    Amount,
    Band,
    Checkpoint,
    Disruptions,
    IdleGpu,
    JobSpec,
    Kind,
    Override,
    Preemption,
    Priority,
    Probes,
    Replicas,
    Retry,
    RetryOn,
    Scaling,
    Shape,
    Update,
)
from tidecell.structs.placement import Condition, Op, Preference, Spread, Topology
from tidecell.structs.resources import Resources
from tidecell.structs.work import Array, grid_size

names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20).filter(
    str.strip
)
seconds = st.integers(1, 10**7).map(lambda n: n / 1000)
variables = st.dictionaries(
    st.from_regex(r"[A-Z]_[A-Z0-9]{0,8}", fullmatch=True), st.text(string.printable, max_size=9)
)


@st.composite
def ranges(draw: st.DrawFn) -> Replicas:
    low = draw(st.integers(0, 9))
    return Replicas(low, draw(st.integers(max(1, low), 12)))


amounts = st.one_of(
    st.integers(0, 99).map(Amount), st.integers(0, 100).map(lambda n: Amount(n, percent=True))
)


@st.composite
def updates(draw: st.DrawFn, service: bool) -> Update:
    missing = draw(st.one_of(st.none(), amounts))
    surge = draw(st.one_of(st.none(), amounts)) if service else None
    if missing is not None and surge is not None and not missing.value:
        surge = Amount(1)
    healthy_after_s = draw(seconds)
    return Update(
        max_unavailable=missing,
        max_surge=surge,
        canary=draw(st.integers(0, 3)) if service else 0,
        auto_revert=draw(st.booleans()),
        healthy_after_s=healthy_after_s,
        deadline_s=healthy_after_s + draw(seconds),
        max_disruptions=draw(st.integers(0, 5)),
    )


@st.composite
def work_of(draw: st.DrawFn, service: bool) -> dict[str, object]:
    """What kind of work it is, besides replicas."""
    start: dict[str, object] = {"begin_s": float(draw(st.integers(0, 2**31))), "hold": draw(st.booleans())}
    if service or draw(st.booleans()):
        return start
    if draw(st.booleans()):
        cron = draw(st.sampled_from(["0 3 * * *", "*/5 * * * 1-5", "0 0 1 1 *"]))
        zones, ways = st.sampled_from(["UTC", "Europe/Berlin"]), st.sampled_from(OVERLAPS)
        schedule = st.builds(
            Schedule, st.just(cron), zones, ways, st.sampled_from(CATCH_UPS), st.integers(1, 99)
        )
        return {"schedule": draw(schedule), "after": ()}
    if draw(st.booleans()):
        array = Array(draw(st.integers(1, 99)))
    else:
        values = st.lists(words, min_size=1, max_size=3).map(tuple)
        keys = st.from_regex(r"s[a-z]{1,4}", fullmatch=True)
        sweep = draw(st.dictionaries(keys, values, min_size=1, max_size=3))
        size = grid_size(sweep)
        samples = draw(st.integers(0, size))
        seed = draw(st.integers(0, 9)) if samples else 0
        array = Array(samples or size, sweep, samples, seed)
    return {"array": array, "replicas": Replicas(0, draw(st.integers(1, array.count)))}


attributes = st.from_regex(r"[a-z_][a-z0-9_.-]{0,6}", fullmatch=True)
values = st.text(st.characters(codec="utf-8", exclude_characters="\0(),\n"), min_size=1, max_size=9).filter(
    lambda text: text.strip() == text
)


@st.composite
def conditions(draw: st.DrawFn) -> Condition:
    op = draw(st.sampled_from(Op))
    if op in (Op.IN, Op.NOT_IN):
        return Condition(draw(attributes), op, tuple(draw(st.lists(values, min_size=1, unique=True))))
    if op in (Op.EXISTS, Op.ABSENT):
        return Condition(draw(attributes), op, ())
    numbers = st.sampled_from(["1", "40GB", "-0.5", "16GiB"])
    compares = op in (Op.AT_LEAST, Op.AT_MOST, Op.ABOVE, Op.BELOW)
    return Condition(draw(attributes), op, (draw(numbers if compares else values),))


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    millis = draw(st.one_of(st.integers(0, 999), st.integers(1, 8).map(lambda n: n * 1000)))
    memory_bytes = draw(st.sampled_from([0, 1 << 20, 10**9, 12345678]))
    kind = draw(st.sampled_from(["", "H100"])) if millis else ""
    return Shape(Resources(draw(st.integers(1, 10**6)), memory_bytes, millis), kind)


weights = st.integers(-100, 100).filter(bool)


@st.composite
def places(draw: st.DrawFn) -> dict[str, object]:
    """Where replicas go."""
    topology = draw(st.one_of(st.none(), st.builds(Topology, attributes, st.booleans())))
    spread = draw(st.one_of(st.none(), st.builds(Spread, attributes, st.integers(0, 9))))
    both = topology is not None and spread is not None and topology.level == spread.by
    return {
        "constraints": tuple(draw(st.lists(conditions(), unique=True, max_size=3))),
        "prefer": tuple(draw(st.lists(st.builds(Preference, conditions(), weights), max_size=2))),
        "topology": topology,
        "spread": None if both else spread,
        "data": tuple(draw(st.lists(words, unique=True, max_size=2))),
    }


@st.composite
def overrides(draw: st.DrawFn, spec: JobSpec) -> tuple[Override, ...]:
    """What some replicas have otherwise."""
    if spec.array is not None or spec.schedule is not None:
        return ()
    out, at = [], 0
    while at < spec.replicas.max and len(out) < 3 and draw(st.booleans()):
        first = draw(st.integers(at, spec.replicas.max - 1))
        last = draw(st.integers(first, min(first + 3, spec.replicas.max - 1)))
        size = draw(st.one_of(st.none(), shapes().map(lambda s: s.resources))) if not spec.any_of else None
        size = None if size == spec.resources else size
        own = Override(first, last, size, draw(variables), draw(st.one_of(st.just(""), words)))
        at = last + 1
        if own != Override(first, last) and not (spec.models and own.run):
            out.append(own)
    return tuple(out)


@st.composite
def specs(draw: st.DrawFn) -> JobSpec:
    if draw(st.integers(0, 7)) == 0:
        return draw(alloc_specs())
    spec = draw(plain_specs())
    plain = not (spec.constraints or spec.prefer or spec.topology or spec.spread or spec.data)
    alloc = draw(st.sampled_from(["", "lab"])) if plain and spec.name != "lab" else ""
    idle = draw(st.sampled_from([None, IdleGpu(1, 60.0)])) if has_gpu(spec) else None
    return replace(spec, tasks=draw(overrides(spec)), alloc=alloc, idle_gpu=idle)


def has_gpu(spec: JobSpec) -> bool:
    return spec.kind is Kind.JOB and any(s.resources.gpu_millis for s in spec.shapes)


@st.composite
def alloc_specs(draw: st.DrawFn) -> JobSpec:
    shape = draw(shapes())
    return JobSpec(
        name=draw(names),
        kind=Kind.ALLOC,
        resources=shape.resources,
        accelerator_type=shape.accelerator_type,
        replicas=draw(ranges()),
        priority=Priority(draw(st.sampled_from(Band)), draw(st.integers(-99, 99))),
        grace_period_s=draw(seconds),
        max_duration_s=draw(st.one_of(st.just(0.0), seconds)),
        labels=draw(variables),
        team=draw(st.sampled_from(["", "search"])),
        **draw(places()),
    )


@st.composite
def plain_specs(draw: st.DrawFn) -> JobSpec:
    service = draw(st.booleans())
    argv = tuple(draw(st.lists(words, min_size=1, max_size=3))) if draw(st.booleans()) else ()
    replicas = draw(ranges())
    name = draw(names)
    after = tuple(n for n in draw(st.lists(names, unique=True, max_size=3)) if n != name)
    first, *others = draw(st.lists(shapes(), min_size=1, max_size=3, unique=True))
    return JobSpec(
        name=name,
        kind=Kind.SERVICE if service else Kind.JOB,
        run="" if argv else draw(words),
        argv=argv,
        setup=draw(st.one_of(st.just(""), words)),
        workdir=draw(st.sampled_from(["", "/"])),
        env=draw(variables),
        resources=first.resources,
        accelerator_type=first.accelerator_type,
        any_of=tuple(others),
        priority=Priority(draw(st.sampled_from(Band)), draw(st.integers(-99, 99))),
        preemption=draw(st.sampled_from(Preemption)),
        grace_period_s=draw(seconds),
        min_runtime_s=draw(seconds),
        checkpoint=draw(st.one_of(st.none(), st.builds(Checkpoint, words, seconds))),
        retry=Retry(
            tuple(draw(st.lists(st.sampled_from(RetryOn), unique=True))),
            draw(st.integers(0, 9)),
            tuple(draw(st.lists(st.integers(1, 255), unique=True, max_size=2))),
            backoff_s := draw(seconds),
            backoff_s + draw(seconds),
        ),
        max_duration_s=draw(st.one_of(st.just(0.0), seconds)),
        port=draw(st.integers(1, 65535)) if service else 0,
        probes=Probes(
            draw(st.sampled_from(["", "/health"])),
            draw(seconds),
            draw(st.integers(1, 9)),
            draw(st.sampled_from(["", "/alive"])),
        )
        if service
        else Probes(),
        scaling=Scaling("requests_per_second", draw(st.integers(1, 99)) / 4, draw(seconds), draw(seconds))
        if service and replicas.min < replicas.max
        else None,
        models=tuple(draw(st.lists(words, unique=True, max_size=2))) if service else (),
        labels=draw(variables),
        team=draw(st.sampled_from(["", "search"])),
        update=draw(updates(service)),
        disruptions=draw(st.one_of(st.none(), st.builds(Disruptions, amounts))),
        **{"replicas": replicas, "after": after, **draw(work_of(service)), **draw(places())},
    )


@given(specs())
def test_the_canonical_form_reads_back_to_the_same_spec(spec: JobSpec):
    form = spec_to_dict(spec)
    assert parse_data(form, "x", Path("/")) == [spec]
    assert parse_specs(json.dumps(form), "x", Path("/")) == [spec]
    assert spec_diff(spec, spec) == []


@given(specs(), specs())
def test_a_diff_is_empty_only_for_equal_specs(one: JobSpec, other: JobSpec):
    assert bool(spec_diff(one, other)) == (one != other)


def refusal_of(parse: Callable[[], object]) -> SpecError | None:
    try:
        parse()
    except SpecError as error:
        return error
    return None


junk = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)
keys = st.sampled_from(
    [
        "name",
        "run",
        "env",
        "resources",
        "replicas",
        "retry",
        "probes",
        "scaling",
        "after",
        "kind",
        "array",
        "update",
        "disruptions",
        "begin",
        "schedule",
        "constraints",
        "prefer",
        "topology",
        "spread",
        "data",
    ]
)


@settings(max_examples=200)
@given(st.dictionaries(keys, junk, max_size=6))
def test_whatever_is_given_is_read_or_refused_with_reasons(data: dict[str, object]):
    refusal = refusal_of(lambda: parse_data(data, "x", Path("/")))
    assert refusal is None or (refusal.mistakes and all(m.message for m in refusal.mistakes))


@settings(max_examples=200)
@given(st.text(st.sampled_from("namerun:{}[],- \n\t'\"&*!|>#0123%@`~"), max_size=40))
def test_whatever_is_typed_is_read_or_refused_with_reasons(text: str):
    refusal = refusal_of(lambda: parse_specs(text, "x", Path("/")))
    assert refusal is None or refusal.mistakes
