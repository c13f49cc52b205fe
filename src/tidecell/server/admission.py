"""The admission hook: what this cell's keeper wants of every spec, before it is submitted.

``admission.py`` in the cell's directory defines ``admit(spec, cell)`` and returns a spec, or None to leave it
as it is, or raises ``Refused("why", "what to do")``; ``admission.yaml`` holds rules (client/rules.py). The
file is read again when it changes. Whatever a hook does wrong is a refusal that names it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from tidecell.cell.state import CellState
from tidecell.client.rules import apply_rules, parse_rules
from tidecell.structs.errors import RefusedError, TidecellError
from tidecell.structs.job import JobSpec, Reason

NAMES = ("admission.py", "admission.yaml")
TIMEOUT_S = 2.0

_Admit = Callable[[JobSpec, Mapping[str, Any]], JobSpec | None]


class Refused(Exception):
    """What a Python hook raises to refuse a spec: why, and what to do."""


@dataclass(frozen=True)
class Found:
    """A hook's file, for `tide doctor`: where it is and whether it can be used."""

    path: Path
    error: str = ""


def find_hook(home: Path) -> Path | None:
    """Return the hook's file in a cell's directory, or None."""
    return next((home / name for name in NAMES if (home / name).is_file()), None)


def look_at_hook(home: Path) -> Found | None:
    """Return the hook's file and what is wrong with it; None where there is none."""
    path = find_hook(home)
    if path is None:
        return None
    try:
        _load(path)
    except TidecellError as error:
        return Found(path, error.message)
    return Found(path)


class Admission:
    """Asks the hook of one cell."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._stamp: tuple[Path, int] | None = None
        self._admit: _Admit | None = None

    async def admit(self, spec: JobSpec, state: CellState) -> JobSpec:
        """Return the spec as this cell takes it.

        Raises:
            RefusedError: The hook refuses it, fails, or takes too long.
        """
        spec = _of_its_team(spec, state)
        path = find_hook(self._home)
        if path is None:
            return spec
        try:
            self._refresh(path)
        except TidecellError as error:
            raise _broken(path, spec, error.message) from error
        if self._admit is None:
            return spec
        try:
            async with asyncio.timeout(TIMEOUT_S):
                answer = await asyncio.to_thread(self._admit, spec, _picture(state))
        except TimeoutError as error:
            raise _broken(path, spec, f"it did not answer within {TIMEOUT_S:g} s") from error
        except Refused as refusal:
            why, hint = (*map(str, refusal.args), "", "")[:2]
            text = f"job '{spec.name}' is refused by this cell's {path.name}: {why or 'no reason given'}"
            raise RefusedError(text, hint, Reason.MISCONFIGURED) from refusal
        except TidecellError:
            raise
        except Exception as error:
            raise _broken(path, spec, f"{type(error).__name__}: {error}") from error
        if answer is not None and (not isinstance(answer, JobSpec) or answer.name != spec.name):
            raise _broken(path, spec, f"it answered {answer!r:.80}, not a spec of that name")
        return answer or spec

    def _refresh(self, path: Path) -> None:
        stamp = (path, path.stat().st_mtime_ns)
        if stamp != self._stamp:
            self._admit = _load(path)
            self._stamp = stamp


def _load(path: Path) -> _Admit:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TidecellError(f"{path} cannot be read: {error}") from error
    if path.suffix == ".yaml":
        rules = parse_rules(text, path.name)
        return lambda spec, cell: apply_rules(rules, spec)
    scope: dict[str, Any] = {"Refused": Refused, "replace": replace, "__name__": "tidecell_admission"}
    try:
        exec(compile(text, str(path), "exec"), scope)
    except Exception as error:
        raise TidecellError(f"{path.name}: {type(error).__name__}: {error}") from error
    admit = scope.get("admit")
    if not callable(admit):
        raise TidecellError(f"{path.name} defines no admit(spec, cell)")
    return admit  # type: ignore[no-any-return]


def _of_its_team(spec: JobSpec, state: CellState) -> JobSpec:
    """Give a job that names no team that of its user, where the policy says whose they are."""
    team = state.policy.of_user(spec.labels.get("user", "")) if state.policy is not None else None
    return replace(spec, team=team.name) if team is not None and not spec.team else spec


def _picture(state: CellState) -> Mapping[str, Any]:
    """What a hook may look at: plain data, a copy."""
    jobs = [
        {
            "name": j.spec.name,
            "team": j.spec.team,
            "band": j.spec.priority.band.word,
            "user": j.spec.labels.get("user", ""),
            "replicas": j.spec.replicas.max,
        }
        for j in state.live_jobs()
    ]
    teams = [t.name for t in state.policy.teams] if state.policy is not None else []
    machines = [name for name, m in sorted(state.machines.items()) if m.up]
    return {"jobs": jobs, "teams": teams, "machines": machines}


def _broken(path: Path, spec: JobSpec, why: str) -> RefusedError:
    return RefusedError(
        f"job '{spec.name}' cannot be admitted: this cell's {path.name} failed: {why}",
        f"whoever keeps the cell mends {path}, or takes it away; tide doctor looks at it",
        Reason.MISCONFIGURED,
    )


__all__ = ["Admission", "Found", "Refused", "find_hook", "look_at_hook"]
