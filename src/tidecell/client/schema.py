"""Specs as people write them to ``JobSpec``s: parsed once, typed from here on.

The whole text is checked before anything happens, and every mistake is listed with its line, its path,
what was found, what is allowed and what to do. The keys are documented in docs/spec.md; a test holds
``KEYS`` and that page together.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tidecell.client.document import Node, read_text
from tidecell.client.document import read_data as read_plain_data
from tidecell.client.schema_alloc import alloc_rules
from tidecell.client.schema_lifecycle import read_disruptions, read_idle_gpu, read_retry, read_update
from tidecell.client.schema_placement import (
    placement_rules,
    read_constraints,
    read_data,
    read_prefer,
    read_shapes,
    read_spread,
    read_topology,
)
from tidecell.client.schema_tasks import program, read_env, read_mapping, read_tasks, task_rules
from tidecell.client.schema_traffic import read_traffic
from tidecell.client.schema_work import read_array, read_begin, read_schedule, work_rules
from tidecell.client.section import (
    Section,
    choice,
    duration,
    filled,
    http_path,
    models,
    name_of,
    names,
    plainly,
    positive,
    positive_duration,
    whole_number,
    yes_or_no,
)
from tidecell.client.specform import spec_diff, spec_to_dict
from tidecell.client.units import (
    UnitError,
    parse_cpu,
    parse_duration,
    parse_env,
    parse_gpu,
    parse_preemption,
    parse_priority,
    parse_replicas,
    parse_size,
    show,
)
from tidecell.client.vocabulary import KEYS, NOT_YET
from tidecell.structs.errors import Mistake, NotFoundError, SpecError
from tidecell.structs.job import (
    DEV_IDLE_TIMEOUT_S,
    NAME_HINT,
    Band,
    Checkpoint,
    JobSpec,
    Kind,
    Preemption,
    Priority,
    Probes,
    Replicas,
    Scaling,
)

METRICS = ("ongoing_requests", "requests_per_second")
_SERVICE_ONLY = ("model", "models", "port", "probes", "scaling", "traffic")


def parse_file(path: Path | str) -> list[JobSpec]:
    """Return the jobs of a spec file; relative directories are resolved against the file's own.

    Raises:
        NotFoundError: There is no such file.
        SpecError: It has mistakes.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no spec file '{path}'", "give its path with -f") from error
    except OSError as error:
        raise SpecError([Mistake("", f"cannot be read: {error.strerror}")], str(path)) from error
    except UnicodeDecodeError as error:
        raise SpecError([Mistake("", f"is not UTF-8 text (byte {error.start})")], str(path)) from error
    return parse_specs(text, path.name, path.absolute().parent)


def parse_specs(text: str, source: str, base_dir: Path) -> list[JobSpec]:
    """Return the jobs of a YAML or JSON text of one or several documents.

    Args:
        text: The spec.
        source: What messages call it, for example the file's name.
        base_dir: What relative directories are relative to.

    Raises:
        SpecError: It has mistakes; all of them are listed.
    """
    return _parse(read_text(text, source), source, base_dir)


def parse_data(data: object, source: str, base_dir: Path) -> list[JobSpec]:
    """Return the jobs of one mapping, or of a list of mappings, as ``parse_specs`` does."""
    return _parse([read_plain_data(data)], source, base_dir)


def _parse(documents: list[Node], source: str, base_dir: Path) -> list[JobSpec]:
    nodes: list[Node] = []
    for document in documents:
        nodes += document.items if document.items is not None else (document,)
    if not nodes:
        raise SpecError([Mistake("", "there is no spec in it", "a spec has at least a name and run")], source)
    readers = [
        _SpecReader(node, base_dir, "" if len(nodes) == 1 else f"#{i}") for i, node in enumerate(nodes, 1)
    ]
    specs = [reader.read() for reader in readers]
    mistakes = [m for reader in readers for m in reader.mistakes] + _across(readers, specs)
    if mistakes:
        raise SpecError(sorted(mistakes, key=lambda m: m.line or 0), source)
    return specs


# ------------------------------------------------------------------------------------- one document


class _SpecReader:
    """Reads one document into a ``JobSpec``."""

    def __init__(self, node: Node, base_dir: Path, label: str) -> None:
        self.mistakes: list[Mistake] = []
        self.top = Section(node, "", self.mistakes, label)
        self._base_dir = base_dir

    def read(self) -> JobSpec:
        """Return the job; meaningless if ``mistakes`` is not empty afterwards."""
        top = self.top
        if not top.check_keys():
            return JobSpec("")
        kind = top.take("kind", self._kind, Kind.JOB)
        service = kind is Kind.SERVICE
        if not top.has("name"):
            top.note("name", "is missing", NAME_HINT)
        name = top.take("name", name_of, "")
        nothing: tuple[str, tuple[str, ...]] = ("", ())
        run, argv = top.take("run", program, nothing)
        shapes = read_shapes(top)
        array = read_array(top)
        spec = JobSpec(
            name=name,
            kind=kind,
            run=run,
            argv=argv,
            setup=top.take("setup", filled, ""),
            workdir=top.take("workdir", self._directory, ""),
            env=read_env(top),
            resources=shapes[0].resources,
            accelerator_type=shapes[0].accelerator_type,
            any_of=shapes[1:],
            replicas=self._replicas() if array is None else Replicas(0, array[1]),
            begin_s=read_begin(top),
            hold=top.take("hold", yes_or_no, False),
            schedule=read_schedule(top),
            array=array[0] if array is not None else None,
            priority=top.take("priority", plainly(parse_priority), default_priority(kind)),
            preemption=top.take("preemption", plainly(parse_preemption), default_preemption(kind)),
            grace_period_s=top.take("grace_period", duration, 30.0),
            min_runtime_s=top.take("min_runtime", duration, 0.0),
            checkpoint=self._checkpoint(),
            retry=read_retry(top),
            max_duration_s=top.take("max_duration", positive_duration, 0.0),
            after=top.take("after", names, ()),
            port=top.take("port", whole_number(1, 65535), 0),
            probes=self._probes(service),
            scaling=self._scaling(),
            traffic=read_traffic(top),
            models=top.take("models", models, ()),
            labels=read_mapping(top, "labels"),
            team=top.take("team", name_of, ""),
            update=read_update(top, service),
            disruptions=read_disruptions(top),
            constraints=read_constraints(top),
            prefer=read_prefer(top),
            topology=read_topology(top),
            spread=read_spread(top),
            data=read_data(top),
            tasks=read_tasks(top, shapes[0]),
            idle_timeout_s=top.take("idle_timeout", duration, default_idle_timeout_s(kind)),
            alloc=top.take("alloc", name_of, ""),
            idle_gpu=read_idle_gpu(top, kind, max(s.resources.gpu_millis for s in shapes)),
        )
        self._rules(spec)
        return self._with_model(spec)

    @staticmethod
    def _kind(node: Node) -> Kind:
        return Kind(choice([k.value for k in Kind])(node))

    def _directory(self, node: Node) -> str:
        text = filled(node)
        path = (self._base_dir / Path(text).expanduser()).resolve()
        if not path.is_dir():
            raise UnitError(f"there is no directory {show(text)} ({path})", "make it, or correct the path")
        return str(path)

    def _replicas(self) -> Replicas:
        node = self.top.node.get("replicas")
        if node is not None and node.pairs is not None:
            section = self.top.section("replicas")
            if section is None or section.bad:
                self.top.bad.add("replicas")
                return Replicas()
        return self.top.take("replicas", plainly(parse_replicas), Replicas())

    def _checkpoint(self) -> Checkpoint | None:
        section = self.top.section("checkpoint")
        if section is None:
            return None
        if not section.has("path"):
            section.note(
                "path", "is missing", "name the directory that the program writes its checkpoints to"
            )
        every_s = section.take("every", positive_duration, Checkpoint("").every_s)
        return Checkpoint(section.take("path", filled, ""), every_s)

    def _probes(self, service: bool) -> Probes:
        ready = "/health" if service and self.top.has("model") else ""
        section = self.top.section("probes")
        if section is None:
            return Probes(ready=ready)
        return Probes(
            ready=section.take("ready", http_path, ready),
            every_s=section.take("every", positive_duration, Probes().every_s),
            failures=section.take("failures", whole_number(1, 1000), Probes().failures),
            alive=section.take("alive", http_path, ""),
        )

    def _scaling(self) -> Scaling | None:
        section = self.top.section("scaling")
        if section is None:
            return None
        default = Scaling()
        return Scaling(
            metric=section.take("metric", choice(METRICS), default.metric),
            target=section.take("target", positive, default.target),
            up_delay_s=section.take("up_delay", duration, default.up_delay_s),
            down_delay_s=section.take("down_delay", duration, default.down_delay_s),
        )

    def _rules(self, spec: JobSpec) -> None:
        """Rules across keys; silent about keys that are wrong by themselves."""
        top = self.top
        if "kind" not in top.bad:
            self._kind_rules(spec)
        if spec.scaling is not None and "replicas" not in top.bad and not spec.is_elastic:
            fixed = spec.replicas.min
            top.note(
                "scaling",
                f"cannot change replicas {fixed}",
                f"give a range: replicas: {{min: {fixed}, max: {fixed + 3}}}",
            )
        work_rules(top, spec)
        placement_rules(top, spec)
        task_rules(top, spec)
        alloc_rules(top, spec)
        if spec.name and spec.name in spec.after:
            top.note("after", f"'{spec.name}' cannot come after itself", "take it out")

    def _kind_rules(self, spec: JobSpec) -> None:
        top = self.top
        if not spec.is_service:
            for key in _SERVICE_ONLY:
                if top.has(key):
                    top.note(key, "is for services only", "add kind: service, or take it out")
            if not top.has("run") and spec.kind is Kind.JOB:
                top.note("run", "is missing", "give the command that does the work")
            session_rules(top, spec)
        elif top.has("run") and top.has("model"):
            top.note("model", "a service has either run or model, not both", "take one out")
        elif not top.has("run") and not top.has("model"):
            hint = "give a command that listens on $PORT, or model: a directory"
            top.note("run", "a service needs run or model", hint)

    def _with_model(self, spec: JobSpec) -> JobSpec:
        """Fill in the command that serves a model."""
        model = self.top.take("model", filled, "")
        if not model or self.mistakes:
            return spec
        path = (self._base_dir / Path(model).expanduser()).resolve()
        where = str(path) if path.is_dir() else model  # else a run's name, which the replica looks up
        models = spec.models or (spec.name,)
        argv = [sys.executable, "-m", "tidecell.inference.replica", "--model", where, "--name", models[0]]
        argv += ["--grace", f"{spec.grace_period_s:g}"]
        return _replace(spec, argv=tuple(argv), models=models)


def _replace(spec: JobSpec, argv: tuple[str, ...], models: tuple[str, ...]) -> JobSpec:
    fields = {name: getattr(spec, name) for name in spec.__struct_fields__}
    return JobSpec(**{**fields, "argv": argv, "models": models})


def default_priority(kind: Kind) -> Priority:
    """Return the priority of a job that gives none."""
    return Priority(Band.PRODUCTION if kind is Kind.SERVICE else Band.BATCH)


def default_idle_timeout_s(kind: Kind) -> float:
    """Return after how long without use a session ends that does not say: the working day is over."""
    return DEV_IDLE_TIMEOUT_S if kind is Kind.DEV else 0.0


def session_rules(top: Section, spec: JobSpec) -> None:
    """Rules of dev sessions."""
    if spec.kind is not Kind.DEV:
        if top.has("idle_timeout"):
            top.note("idle_timeout", "is for dev sessions only", "add kind: dev, or use max_duration")
        return
    for key in ("array", "schedule", "after", "update"):
        if top.has(key):
            top.note(key, "is not for dev sessions", "take it out")
    if "replicas" not in top.bad and spec.array is None and spec.replicas != Replicas(1, 1):
        top.note("replicas", "a dev session has one", "take it out; start a second session")


def default_preemption(kind: Kind) -> Preemption:
    """Return what may be taken from a job that does not say."""
    return Preemption.NEVER if kind is Kind.SERVICE else Preemption.ANY


# ------------------------------------------------------------------------------------ whole file


def _across(readers: list[_SpecReader], specs: list[JobSpec]) -> list[Mistake]:
    """Mistakes that only several documents together can have."""
    found: list[Mistake] = []
    first: dict[str, int] = {}
    for number, (reader, spec) in enumerate(zip(readers, specs, strict=True)):
        if not spec.name:
            continue
        if spec.name in first:
            line = next(
                (at for key, at, _ in readers[first[spec.name]].top.node.pairs or () if key == "name"), None
            )
            text = f"on line {line}" if line else f"as #{first[spec.name] + 1}"
            before = len(reader.mistakes)
            reader.top.note(
                "name", f"'{spec.name}' is used twice, first {text}", "give each job its own name"
            )
            found += reader.mistakes[before:]
        first.setdefault(spec.name, number)
    cycle = _cycle({name: [n for n in specs[i].after if n != name] for name, i in first.items()})
    if cycle:
        reader = readers[first[cycle[0]]]
        before = len(reader.mistakes)
        reader.top.note("after", f"a circle: {' after '.join([*cycle, cycle[0]])}", "take one of them out")
        found += reader.mistakes[before:]
    return found


def _cycle(after: dict[str, list[str]]) -> list[str]:
    """Return the names of one circle of dependencies, or nothing."""
    done: set[str] = set()
    for start in after:
        path: list[str] = []
        stack = [(start, iter(after[start]))] if start not in done else []
        while stack:
            name, rest = stack[-1]
            if len(path) < len(stack):
                path.append(name)
            following = next(rest, None)
            if following is None:
                done.add(name)
                stack.pop()
                path.pop()
            elif following in path:
                return path[path.index(following) :]
            elif following in after and following not in done:
                stack.append((following, iter(after[following])))
    return []


__all__ = [
    "KEYS",
    "NOT_YET",
    "UnitError",
    "parse_cpu",
    "parse_data",
    "parse_duration",
    "parse_env",
    "parse_file",
    "parse_gpu",
    "parse_priority",
    "parse_replicas",
    "parse_size",
    "parse_specs",
    "spec_diff",
    "spec_to_dict",
]
