"""Specs are checked whole; messages say what was found, what is allowed and what to do."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import dedent

import pytest

from tidecell.client.schema import parse_data, parse_file, parse_specs, spec_diff, spec_to_dict
from tidecell.structs.errors import NotFoundError, SpecError
from tidecell.structs.job import (
    Band,
    Checkpoint,
    JobSpec,
    Kind,
    Preemption,
    Priority,
    Probes,
    Replicas,
    Retry,
    RetryOn,
    Scaling,
)
from tidecell.structs.resources import Resources

TRAIN = """
kind: job
name: train-7b
workdir: .
setup: pip install -r requirements.txt
run: python train.py --resume auto
env: {EPOCHS: "3", LR: 1e-3, DEBUG: yes}
resources: {gpu: H100:1, cpu: 8, memory: 64GB}
replicas: {min: 2, max: 8}
priority: batch+5
preemption: above-min
grace_period: 60s
min_runtime: 10m
checkpoint: {path: ckpt/, every: 5m}
retry: {on: [interruption, no-capacity], max: 5}
max_duration: 2d
after: [tokenize]
"""


def rendered(text: str, base_dir: Path) -> str:
    with pytest.raises(SpecError) as caught:
        parse_specs(dedent(text), "x.yaml", base_dir)
    return caught.value.render()


def test_a_full_job_is_read_into_our_units(tmp_path: Path):
    assert parse_specs(TRAIN, "x", tmp_path) == [
        JobSpec(
            name="train-7b",
            kind=Kind.JOB,
            run="python train.py --resume auto",
            setup="pip install -r requirements.txt",
            workdir=str(tmp_path.resolve()),
            env={"EPOCHS": "3", "LR": "1e-3", "DEBUG": "yes"},
            resources=Resources(8000, 64 * 10**9, 1000),
            accelerator_type="H100",
            replicas=Replicas(2, 8),
            priority=Priority(Band.BATCH, 5),
            preemption=Preemption.ABOVE_MIN,
            grace_period_s=60.0,
            min_runtime_s=600.0,
            checkpoint=Checkpoint("ckpt/", 300.0),
            retry=Retry((RetryOn.INTERRUPTION, RetryOn.NO_CAPACITY), 5),
            max_duration_s=172800.0,
            after=("tokenize",),
        )
    ]


def test_a_service_of_a_model_runs_our_replica(tmp_path: Path):
    (tmp_path / "m").mkdir()
    text = "{kind: service, name: chat, model: m, replicas: 1..6, scaling: {target: 32}}"
    (spec,) = parse_specs(text, "x", tmp_path)
    model = str((tmp_path / "m").resolve())
    assert spec.argv == (
        sys.executable,
        "-m",
        "tidecell.inference.replica",
        "--model",
        model,
        "--name",
        "chat",
        "--grace",
        "30",
    )
    assert spec.models == ("chat",)
    assert spec.probes == Probes(ready="/health")
    assert spec.priority == Priority(Band.PRODUCTION)
    assert spec.preemption is Preemption.NEVER
    assert spec.scaling == Scaling(target=32.0)


def test_a_model_that_is_no_directory_is_left_to_the_replica_to_find(tmp_path: Path):
    (spec,) = parse_specs("{kind: service, name: chat, model: runs/chat/latest}", "x", tmp_path)
    assert spec.argv[4] == "runs/chat/latest"
    assert spec.replicas == Replicas(1, 1)


def test_every_mistake_of_a_file_is_listed(tmp_path: Path):
    text = """\
        kind: job
        name: Train_7b
        replica: 3
        run: python train.py
        env: {PORT: 3, X: , L: [1]}
        resources:
          gpus: H100:1
          cpu: eight
          memory: 64G
        retry: {on: [interuption], max: -1}
        topology: {preferred: [rack]}
        max_duration: 2x
        """
    assert rendered(text, tmp_path) == dedent("""\
        error: x.yaml has 12 mistakes

          line 2: name: 'Train_7b' is no name
            hint: use lower-case letters, digits and dashes, at most 63, no dash first or last
          line 3: replica: unknown key
            hint: did you mean 'replicas'?
          line 5: env.PORT: PORT is set by Tidecell for every task
            hint: choose another name
          line 5: env.X: has no value
            hint: quote it; "" is the empty text
          line 5: env.L: must be text, not a list
            hint: quote it
          line 7: resources.gpus: unknown key
            hint: did you mean 'gpu'?
          line 8: resources.cpu: 'eight' is no number of cores
            hint: write cores above 0 in steps of 0.001: 8, 0.5, 500m
          line 9: resources.memory: '64G' has an unclear unit
            hint: write GB (powers of 1000) or GiB (of 1024)
          line 10: retry.on: 'interuption' is not one of CAUSES
            hint: did you mean 'interruption'?
          line 10: retry.max: -1 is not a whole number from 0 to 1000
          line 11: topology.preferred: must be text, not a list
            hint: quote it
          line 12: max_duration: '2x' is no duration
            hint: write seconds, or numbers with ms, s, m, h, d: 30, 90s, 10m, 1h30m, 2d""").replace(
        "CAUSES", ", ".join(RetryOn)
    )


def test_rules_across_keys(tmp_path: Path):
    text = """\
        {kind: service, name: a, replicas: 3, scaling: {target: 0}}
        ---
        {kind: service, name: b, run: serve, model: m}
        ---
        {name: c, run: x, port: 80, probes: {ready: health}, after: [c]}
        ---
        {name: d}
        """
    assert rendered(text, tmp_path) == dedent("""\
        error: x.yaml has 9 mistakes

          line 1: scaling.target: 0 is not a number above 0
          line 1: run: a service needs run or model
            hint: give a command that listens on $PORT, or model: a directory
          line 1: scaling: cannot change replicas 3
            hint: give a range: replicas: {min: 3, max: 6}
          line 3: model: a service has either run or model, not both
            hint: take one out
          line 5: probes.ready: 'health' is no path of an HTTP request
            hint: start it with a slash: /health
          line 5: port: is for services only
            hint: add kind: service, or take it out
          line 5: probes: is for services only
            hint: add kind: service, or take it out
          line 5: after: 'c' cannot come after itself
            hint: take it out
          line 7: run: is missing
            hint: give the command that does the work""")


def test_rules_across_documents(tmp_path: Path):
    text = """\
        {name: a, run: x, after: [b]}
        ---
        {name: b, run: x, after: [c]}
        ---
        {name: c, run: x, after: [a]}
        ---
        {name: b, run: x}
        """
    assert rendered(text, tmp_path) == dedent("""\
        error: x.yaml has 2 mistakes

          line 1: after: a circle: a after b after c after a
            hint: take one of them out
          line 7: name: 'b' is used twice, first on line 3
            hint: give each job its own name""")


@pytest.mark.parametrize(
    ("replicas", "message"),
    [
        ("{min: 3, max: 2}", "min 3 is above max 2"),
        ("0", "max is 0; it must be 1 or more"),
        ("{}", "the mapping must have min, max or both"),
        ("many", "'many' is no number of replicas"),
        ("2.5", "2.5 is no number of replicas"),
        ("-1", "-1 is no number of replicas"),
        ("{max: 20000}", "max 20000 is above 10000"),
    ],
)
def test_replicas_that_are_no_range_are_refused(replicas: str, message: str, tmp_path: Path):
    with pytest.raises(SpecError) as caught:
        parse_specs(f"name: a\nrun: x\nreplicas: {replicas}\n", "x", tmp_path)
    assert [(m.line, m.where, m.message) for m in caught.value.mistakes] == [(3, "replicas", message)]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("command: x", "here it is called run"),
        ("gpu: 1", "here it is called resources.gpu"),
        ("timeout: 3", "here it is called max_duration"),
        ("priorty: batch", "did you mean 'priority'?"),
        ("every: 3", "did you mean checkpoint.every?"),
        ("<<: {}", "write the keys out"),
    ],
)
def test_unknown_keys_say_what_was_meant(text: str, hint: str, tmp_path: Path):
    with pytest.raises(SpecError) as caught:
        parse_specs(f"name: a\nrun: x\n{text}\n", "x", tmp_path)
    assert [m.hint for m in caught.value.mistakes] == [hint]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [", "line 1: not YAML: expected the node content, but found '<stream end>'"),
        ("a:\n\tb: c", "line 2: not YAML: found character '\\t' that cannot start any token"),
        ("", "there is no spec in it"),
        ("- 3", "line 1: must be a mapping, not 3"),
        ("&a [*a]", "line 1: an alias contains itself"),
        ("name: x\nname: y\nrun: z", "line 2: name: given twice, first on line 1"),
        ("[" * 5000, "values are nested too deeply"),
        ("#" * (1 << 20) + "x", "1048577 characters; a spec has at most 1048576"),
        ("name: !!int x\nrun: y\n? [a]\n: 3", "line 3: a key is not a word"),
    ],
)
def test_text_that_is_no_spec_is_refused_with_its_line(text: str, expected: str, tmp_path: Path):
    assert rendered(text, tmp_path).splitlines()[2].strip() == expected


def test_many_aliases_of_aliases_cost_nothing(tmp_path: Path):
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 200))
    assert "has 201 mistakes" in rendered(bomb + "name: a", tmp_path)


def test_json_reads_as_yaml_does(tmp_path: Path):
    text = '{"name": "a", "run": "echo \\u00e9 \\ud83d\\ude00 a\\/b", "retry": {"on": ["error"]}}'
    (spec,) = parse_specs(text, "x", tmp_path)
    assert spec.run == "echo é \N{GRINNING FACE} a/b"
    assert spec.retry == Retry((RetryOn.ERROR,), 3)


def test_data_without_text_names_the_document(tmp_path: Path):
    with pytest.raises(SpecError) as caught:
        parse_data(
            [{"name": "a", "run": "x"}, {"name": "b", "resources": {"cpu": -1}, "run": "x"}], "x", tmp_path
        )
    assert caught.value.render().splitlines()[2] == "  #2 resources.cpu: -1 is no number of cores"


def test_a_relative_workdir_is_the_files_neighbour(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "x.yaml").write_text("name: a\nrun: [echo, 3]\nworkdir: sub\n")
    (spec,) = parse_file(tmp_path / "x.yaml")
    assert spec.workdir == str((tmp_path / "sub").resolve())
    assert spec.argv == ("echo", "3")
    (tmp_path / "sub").rmdir()
    with pytest.raises(SpecError) as caught:
        parse_file(tmp_path / "x.yaml")
    missing = (tmp_path / "sub").resolve()
    assert [m.message for m in caught.value.mistakes] == [f"there is no directory 'sub' ({missing})"]


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path):
    with pytest.raises(NotFoundError) as caught:
        parse_file(tmp_path / "no.yaml")
    assert caught.value.message == f"there is no spec file '{tmp_path / 'no.yaml'}'"


def test_a_file_that_is_not_text_is_refused(tmp_path: Path):
    (tmp_path / "x.yaml").write_bytes(b"name: \xff")
    with pytest.raises(SpecError) as caught:
        parse_file(tmp_path / "x.yaml")
    assert [m.message for m in caught.value.mistakes] == ["is not UTF-8 text (byte 6)"]


def test_the_canonical_form_leaves_out_what_is_default():
    spec = JobSpec("a", run="x", resources=Resources(500, 1 << 30), replicas=Replicas(1, 4))
    assert spec_to_dict(spec) == {
        "kind": "job",
        "name": "a",
        "run": "x",
        "resources": {"cpu": 0.5, "memory": "1GiB"},
        "replicas": {"min": 1, "max": 4},
    }


def test_a_diff_names_each_value_that_differs():
    old = JobSpec("a", run="x", env={"A": "1", "B": "2"}, replicas=Replicas(2, 8))
    new = JobSpec("a", run="y", env={"A": "1", "C": "3"}, replicas=Replicas(3, 8), max_duration_s=90.0)
    assert spec_diff(old, new) == [
        "run: x -> y",
        "env.C: (none) -> 3",
        "replicas: 2..8 -> 3..8",
        "max_duration: (none) -> 1m30s",
        "env.B: 2 -> (none)",
    ]
    assert spec_diff(old, old) == []


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("topology: rack", "topology: {required: rack}"),
        ("spread: rack", "spread: {by: rack}"),
        ("constraints: ssd exists", "constraints: [ssd exists]"),
    ],
)
def test_a_short_form_says_the_same_and_is_what_is_written(short: str, long: str, tmp_path: Path):
    head = "name: a\nrun: x\n"
    (brief,), (full,) = (parse_specs(head + text, "x", tmp_path) for text in (short, long))
    assert brief == full
    assert parse_data(spec_to_dict(full), "x", tmp_path) == [full]


def test_a_domain_that_is_no_name_is_a_mistake_in_either_form(tmp_path: Path):
    with pytest.raises(SpecError) as caught:
        parse_specs("name: a\nrun: x\nspread: my rack\ntopology: {required: my rack}\n", "x", tmp_path)
    assert [(m.line, m.where, m.message) for m in caught.value.mistakes] == [
        (3, "spread", "'my rack' is no name of an attribute"),
        (4, "topology.required", "'my rack' is no name of an attribute"),
    ]


def test_the_writer_keeps_what_a_short_form_cannot_say(tmp_path: Path):
    text = "name: a\nrun: x\nspread: {by: rack, max_skew: 1}\ntopology: {preferred: zone}\n"
    (spec,) = parse_specs(text, "x", tmp_path)
    written = spec_to_dict(spec)
    assert (written["spread"], written["topology"]) == ({"by": "rack", "max_skew": 1}, {"preferred": "zone"})
    short = spec_to_dict(parse_specs("name: a\nrun: x\nspread: rack\n", "x", tmp_path)[0])
    assert short["spread"] == "rack"
