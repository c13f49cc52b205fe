"""Python's way to the cell: functions as jobs, and what `tide apply`, `plan` and `why` do.

Example:
    @tidecell.job(gpu="H100:1", replicas=(2, 8), priority="batch")
    def train(lr: float) -> float: ...

    run = train.submit(lr=3e-4)
    print(run.why())
    loss = run.result()
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import update_wrapper
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

from tidecell import call
from tidecell.client.client import Client, LogLine
from tidecell.client.home import Home
from tidecell.client.schema import parse_data, parse_file
from tidecell.client.units import parse_size
from tidecell.client.views import JobStatus, PlanView, WhyView
from tidecell.scheduler.render import render_plan, render_why
from tidecell.structs.errors import JobFailedError, TidecellError
from tidecell.structs.job import JobSpec, TaskState

P = ParamSpec("P")
R = TypeVar("R")
V = TypeVar("V")

_Arguments = tuple[tuple[Any, ...], dict[str, Any]]
_RESOURCES = ("gpu", "cpu", "memory")  # what the decorator takes beside the keys of a spec


class _Shown(Generic[V]):
    """An answer as data, which prints as the command of its name prints it.

    Attributes:
        view: The answer; its fields can be asked of this object, too.
    """

    def __init__(self, view: V) -> None:
        self.view = view

    def __getattr__(self, name: str) -> Any:
        return getattr(self.view, name)

    def __repr__(self) -> str:
        return str(self)


class Why(_Shown[WhyView]):
    """Why a job waits and what would make it start."""

    def __str__(self) -> str:
        return render_why(self.view, time.time())


class Plan(_Shown[PlanView]):
    """What applying specs would do."""

    def __str__(self) -> str:
        return render_plan(self.view)


class Run(Generic[R]):
    """One run of a job.

    Attributes:
        name: Of the job.
        uid: Of this very run.
    """

    def __init__(
        self,
        client: Client,
        job: JobStatus,
        folder: Path | None = None,
        read: Callable[[Path], R] | None = None,
    ) -> None:
        self._client, self._folder, self._read = client, folder, read
        self.name, self.uid = job.name, job.uid

    def __repr__(self) -> str:
        return f"<run {self.uid}: {self.state.value}>"

    def status(self) -> JobStatus:
        """Return all that is known of it now."""
        return self._client.job(self.uid)

    @property
    def state(self) -> TaskState:
        """Its state now."""
        return self.status().state

    def why(self) -> Why:
        """Return why it waits and what would make it start."""
        return Why(self._client.why(self.uid))

    def logs(self, follow: bool = False, replica: int | None = None) -> Iterator[LogLine]:
        """Yield what it prints; with ``follow`` until it is over."""
        return self._client.logs(self.uid, follow=follow, replica=replica)

    def scale(self, least: int, most: int | None = None) -> JobStatus:
        """Change its replicas: ``scale(4)``, or ``scale(2, 8)``."""
        return self._client.scale(self.name, least, most)

    def resize(self, cpu: float | None = None, memory: str = "", restart: bool = False) -> JobStatus:
        """Change its size while it runs: ``resize(2, "4GB")``; ``restart``: start again where it must."""
        millis = None if cpu is None else round(1000 * cpu)
        return self._client.resize(self.name, millis, parse_size(memory) if memory else None, restart)

    def stop(self, now: bool = False) -> JobStatus:
        """Stop it: notice, SIGTERM, and SIGKILL after its grace period (``now``: at once)."""
        return self._client.stop(self.uid, now)

    def wait(self, until: str = "done", timeout_s: float | None = None) -> JobStatus:
        """Return when it is ``done``, ``ready`` or ``started``, or when the time is up."""
        return self._client.wait(self.uid, until, timeout_s)

    def result(self, timeout_s: float | None = None) -> R:
        """Return what the function returned: replica 0's value, or of ``map`` a list in the items' order.

        Raises:
            JobFailedError: It failed, was stopped, or returned something that cannot be pickled.
            TimeoutError: It is not over in time.
            TidecellError: It is not a function's run.
        """
        if self._folder is None or self._read is None:
            raise TidecellError(f"run '{self.uid}' is not of a function: it has no result", "see run.logs()")
        job = self.wait(timeout_s=timeout_s)
        if not job.done:
            raise TimeoutError(f"run '{self.uid}' is {job.state.value} after {timeout_s:g} s")
        if job.state is not TaskState.SUCCEEDED:
            raise self._failure(job)
        try:
            return self._read(self._folder)
        except FileNotFoundError as error:
            text = (
                f"run '{self.uid}' left no result in {self._folder}: {Path(error.filename).name} is missing"
            )
            raise JobFailedError(text, "results are read on the cell's machine, by its user") from error

    def _failure(self, job: JobStatus) -> JobFailedError:
        found = call.read_failure(self._folder) if self._folder is not None else ""
        last = found.strip().splitlines()[-1] if found else job.message
        error = JobFailedError(
            f"run '{self.uid}' {job.state.value}" + (f": {last}" if last else ""), f"tide logs {self.name}"
        )
        if found:
            error.add_note(found)
        return error


class Function(Generic[P, R]):
    """A function that runs here when it is called, and in the cell when it is submitted."""

    def __init__(self, fn: Callable[P, R], options: Mapping[str, Any]) -> None:
        self.fn, self._options = fn, dict(options)
        update_wrapper(self, fn)
        self.spec(("check",))  # a mistake shows where the decorator stands

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.fn(*args, **kwargs)

    def options(self, **options: Any) -> Function[P, R]:
        """Return the same function with other keys: ``train.options(replicas=4).submit()``."""
        return Function(self.fn, {**self._options, **options})

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Run[R]:
        """Submit one run of it; returns once that is durable.

        Raises:
            TidecellError: The cell does not take it, or the arguments cannot be pickled.
        """
        return Run(*self._submit([(args, kwargs)], {}), read=_first)

    def map(self, items: Iterable[Any], parallel: int | None = None) -> Run[list[R]]:
        """Submit one run that calls it for each item, as an array; at most ``parallel`` at once."""
        calls: list[_Arguments] = [((item,), {}) for item in items]
        if not calls:
            raise TidecellError("there are no items to map", "give at least one")
        array: dict[str, Any] = {"count": len(calls), "parallel": parallel or len(calls)}
        return Run(*self._submit(calls, {"array": array}), read=lambda folder: _each(folder, len(calls)))

    def plan(self) -> Plan:
        """Return what submitting it now would do; nothing is committed."""
        return plan([self.spec(("python",))])

    def spec(self, argv: Sequence[str], **more: Any) -> JobSpec:
        """Return its spec; the keys are those of docs/spec.md.

        Raises:
            SpecError: A key or a value is wrong.
        """
        given = {**self._options, **more}
        replicas = given.get("replicas")
        if isinstance(replicas, tuple):
            given["replicas"] = {"min": replicas[0], "max": replicas[-1]}
        asked = {key: given.pop(key) for key in _RESOURCES if key in given}
        if asked:
            given["resources"] = {**given.get("resources", {}), **asked}
        given.setdefault("name", _name_of(self.fn))
        given.setdefault("workdir", str(Path.cwd()))
        given["env"] = {**call.environment(), **given.get("env", {})}
        given["run"] = list(argv)
        (spec,) = parse_data(given, f"@tidecell.job of {self.fn.__name__}", Path.cwd())
        return spec

    def _submit(self, calls: Sequence[_Arguments], more: dict[str, Any]) -> tuple[Client, JobStatus, Path]:
        client = Client.from_home()
        folder = call.new_folder(Home().path / "calls")
        argv = call.write(folder, self.fn, calls)
        if "name" not in self._options:
            more["name"] = f"{_name_of(self.fn)[:50]}-{secrets.token_hex(2)}"
        return client, client.submit(self.spec(argv, **more)), folder


def _first(folder: Path) -> Any:
    return call.read_result(folder, 0)


def _each(folder: Path, count: int) -> list[Any]:
    return [call.read_result(folder, index) for index in range(count)]


def job(fn: Callable[P, R] | None = None, **options: Any) -> Any:
    """Make a function a job: ``@tidecell.job(gpu="H100:1", replicas=(2, 8), priority="batch")``.

    Args:
        fn: The function, where it stands without brackets.
        **options: Keys of a spec; ``gpu``, ``cpu`` and ``memory`` are those under ``resources``, and
            ``replicas`` may be a pair (least, most).

    Raises:
        SpecError: A key or a value is wrong.
    """
    if fn is not None:
        return Function(fn, options)
    return lambda decorated: Function(decorated, options)


def _name_of(fn: Callable[..., Any]) -> str:
    clean = "".join(c if c.isalnum() and c.isascii() else "-" for c in fn.__name__.lower())
    return clean.strip("-") or "function"


# ------------------------------------------------------------------------------------ specs and jobs


def _specs(source: str | Path | Mapping[str, Any] | JobSpec | Sequence[Any]) -> list[JobSpec]:
    if isinstance(source, JobSpec):
        return [source]
    if isinstance(source, str | Path):
        return parse_file(source)
    if isinstance(source, Mapping):
        return parse_data(source, "the spec", Path.cwd())
    return [spec for each in source for spec in _specs(each)]


def apply(source: str | Path | Mapping[str, Any] | JobSpec | Sequence[Any]) -> list[Run[Any]]:
    """Create jobs, or change live ones: from a file, a mapping, a ``JobSpec``, or a list of these."""
    client = Client.from_home()
    return [Run(client, client.apply(spec)) for spec in _specs(source)]


def plan(source: str | Path | Mapping[str, Any] | JobSpec | Sequence[Any]) -> Plan:
    """Return what applying would do: placements, who gives way and what that costs, what waits."""
    with Client.from_home() as client:
        return Plan(client.plan(_specs(source)))


def why(name: str) -> Why:
    """Return why a job waits and what would make it start."""
    with Client.from_home() as client:
        return Why(client.why(name))


def run(name: str) -> Run[Any]:
    """Return the newest run of that name.

    Raises:
        NotFoundError: There is none.
    """
    client = Client.from_home()
    return Run(client, client.job(name))


def jobs(everything: bool = False, labels: Sequence[str] = ()) -> list[JobStatus]:
    """Return the live jobs, or all that are remembered; ``labels`` as in `tide ps -l`."""
    with Client.from_home() as client:
        return client.jobs(everything, labels)


__all__ = ["Function", "Plan", "Run", "Why", "apply", "job", "jobs", "plan", "run", "why"]
