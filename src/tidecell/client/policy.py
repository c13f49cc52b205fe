"""A quota file as people write it to a ``Policy``: teams, quotas, cohorts, prices. Parsed once.

The whole file is checked before anything happens; every mistake is listed with its line, its path, what
is allowed and what to do. The format is documented in docs/quota.md.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from tidecell.client.document import Node, read_text
from tidecell.client.section import name_of
from tidecell.client.units import UnitError, parse_cpu, parse_duration, parse_gpu, parse_size, show
from tidecell.structs.errors import Mistake, SpecError
from tidecell.structs.job import BAND_WORDS, NAME_HINT
from tidecell.structs.resources import GPU
from tidecell.structs.tenant import ANYTHING, Amounts, Policy, Prices, Quota, Team

T = TypeVar("T")

TOP = ("teams", "prices", "patience")
TEAM = ("cohort", "weight", "users", "quota")
VECTOR = ("cpu", "memory", "gpu")
QUOTA = (*VECTOR, "borrow", "lend", "from", "until", "period", "renew")
PRICES = ("cpu_hour", "memory_gib_hour", "gpu_hour", "currency")
BANDS = tuple(reversed(BAND_WORDS.values()))
LIMITED_BANDS = tuple(w for w in BANDS if w != "best-effort")
ALL_TYPES = "all"
MAX_WEIGHT = 1000.0


def parse_policy(text: str, source: str) -> Policy:
    """Return the policy that a YAML or JSON text says.

    Args:
        text: One document.
        source: What messages call it, for example the file's name.

    Raises:
        SpecError: It has mistakes; all of them are listed.
    """
    documents = read_text(text, source)
    if len(documents) != 1:
        message = "there is no policy in it" if not documents else f"{len(documents)} documents"
        raise SpecError([Mistake("", message, "a quota file is one mapping with teams: in it")], source)
    reader = _Reader(documents[0])
    policy = reader.policy()
    if reader.mistakes:
        raise SpecError(sorted(reader.mistakes, key=lambda m: m.line or 0), source)
    return policy


@dataclass
class _Reader:
    """Reads one document; notes what is wrong with line and path."""

    top: Node
    mistakes: list[Mistake] = field(default_factory=list)

    def policy(self) -> Policy:
        pairs = self._mapping(self.top, "", TOP)
        teams = pairs.get("teams")
        if teams is None:
            self._note("teams", "is missing", "write teams: and a name below it", self.top.line)
            return Policy()
        names = self._mapping(teams, "teams", None)
        read = tuple(self._team(name, node) for name, node in names.items())
        return Policy(
            teams=read,
            prices=self._prices(pairs["prices"]) if "prices" in pairs else Prices(),
            patience_s=self._take(pairs, "patience", "", _duration, 0.0),
        )

    # ---------------------------------------------------------------------------------- pieces

    def _team(self, name: str, node: Node) -> Team:
        path = f"teams.{name}"
        try:
            name_of(Node(name, name))
        except UnitError as error:
            self._note(path, error.message, NAME_HINT, node.line)
        pairs = self._mapping(node, path, TEAM)
        quotas = {}
        if "quota" in pairs:
            for band, quota in self._mapping(pairs["quota"], f"{path}.quota", LIMITED_BANDS).items():
                quotas[band] = self._quota(quota, f"{path}.quota.{band}", band)
        return Team(
            name=name,
            quotas=quotas,
            cohort=self._take(pairs, "cohort", path, name_of, ""),
            weight=self._take(pairs, "weight", path, _weight, 1.0),
            users=self._take(pairs, "users", path, _texts, ()),
        )

    def _quota(self, node: Node, path: str, band: str) -> Quota:
        pairs = self._mapping(node, path, QUOTA)
        for key in ("borrow", "lend"):
            if key in pairs and band != "batch":
                text = f"{band} work cannot be taken back, so nothing is lent to it"
                self._note(
                    f"{path}.{key}", text, "take it out; only batch borrows and lends", pairs[key].line
                )
        quota = Quota(
            amounts=self._vector({k: v for k, v in pairs.items() if k in VECTOR}, path),
            borrow=self._limits(pairs, "borrow", path),
            lend=self._limits(pairs, "lend", path),
            from_s=self._take(pairs, "from", path, _moment, 0.0),
            until_s=self._take(pairs, "until", path, _moment, 0.0),
            period_s=self._take(pairs, "period", path, _period, 0.0),
            renew=self._take(pairs, "renew", path, _flag, True),
        )
        if quota.until_s and quota.until_s <= quota.from_s:
            self._note(
                f"{path}.until", "is not after from", "let it end after it begins", pairs["until"].line
            )
        if "renew" in pairs and not quota.period_s:
            self._note(
                f"{path}.renew", "there is no period to renew", "give period: 30d", pairs["renew"].line
            )
        return quota

    def _limits(self, pairs: dict[str, Node], key: str, path: str) -> Amounts | None:
        node = pairs.get(key)
        if node is None:
            return None
        if node.text == "none":
            return {ANYTHING: 0}
        if node.text == "all":
            return None
        return self._vector(
            self._mapping(node, f"{path}.{key}", VECTOR, "or write none, or all"), f"{path}.{key}"
        )

    def _vector(self, pairs: dict[str, Node], path: str) -> Amounts:
        out: Amounts = {}
        for key, parse in (("cpu", _cpu), ("memory", _memory)):
            if key in pairs:
                out[key] = self._take(pairs, key, path, parse, 0)
        gpu = pairs.get("gpu")
        if gpu is not None and gpu.pairs is None:
            nothing: Amounts = {}
            out.update(self._take(pairs, "gpu", path, _gpus, nothing))
        elif gpu is not None:
            for kind, node in self._mapping(gpu, f"{path}.gpu", None).items():
                count = self._take({kind: node}, kind, f"{path}.gpu", _count, 0)
                out["gpu" if kind == ALL_TYPES else f"gpu:{kind}"] = count
        return out

    def _prices(self, node: Node) -> Prices:
        pairs = self._mapping(node, "prices", PRICES)
        gpu: dict[str, float] = {}
        if "gpu_hour" in pairs and pairs["gpu_hour"].pairs is None:
            gpu[""] = self._take(pairs, "gpu_hour", "prices", _price, 0.0)
        elif "gpu_hour" in pairs:
            for kind, price in self._mapping(pairs["gpu_hour"], "prices.gpu_hour", None).items():
                name = "" if kind == ALL_TYPES else kind
                gpu[name] = self._take({kind: price}, kind, "prices.gpu_hour", _price, 0.0)
        return Prices(
            cpu_hour=self._take(pairs, "cpu_hour", "prices", _price, 0.0),
            memory_gib_hour=self._take(pairs, "memory_gib_hour", "prices", _price, 0.0),
            gpu_hour=gpu,
            currency=self._take(pairs, "currency", "prices", _text, ""),
        )

    # ---------------------------------------------------------------------------------- plumbing

    def _note(self, where: str, message: str, hint: str, line: int | None) -> None:
        self.mistakes.append(Mistake(where, message, hint, line))

    def _mapping(
        self, node: Node, path: str, keys: tuple[str, ...] | None, hint: str = ""
    ) -> dict[str, Node]:
        """Return a mapping's values by key; None allows any key."""
        if node.is_empty and path:
            return {}
        if node.pairs is None:
            allowed = f"write {', '.join(f'{k}:' for k in keys)} below it" if keys else "write names below it"
            self._note(path, f"must be a mapping, not {show(node.plain())}", hint or allowed, node.line)
            return {}
        out = {}
        for key, line, value in node.pairs:
            if keys is not None and key not in keys:
                self._unknown(key, path, keys, line)
            else:
                out[key] = value
        return out

    def _unknown(self, key: str, path: str, keys: tuple[str, ...], line: int | None) -> None:
        where = f"{path}.{key}" if path else key
        if key == "best-effort":
            text = "best-effort is over-sold: it needs no quota and always waits for what is spare"
            self._note(where, text, "take it out", line)
            return
        near = difflib.get_close_matches(key, keys, 1, 0.6)
        hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(keys)}"
        self._note(where, "unknown key", hint, line)

    def _take(self, pairs: dict[str, Node], key: str, path: str, parse: Callable[[Node], T], default: T) -> T:
        node = pairs.get(key)
        if node is None:
            return default
        where = f"{path}.{key}" if path else key
        try:
            if node.is_empty:
                raise UnitError("has no value", "give one, or take the key out")
            return parse(node)
        except UnitError as error:
            self._note(where, error.message, error.hint, node.line)
            return default


# ------------------------------------------------------------------------------------ kinds of values


def _duration(node: Node) -> float:
    return parse_duration(node.plain())


def _period(node: Node) -> float:
    seconds = parse_duration(node.plain())
    if seconds < 60:
        raise UnitError(f"{show(node.plain())} is shorter than a minute", "write for example 30d")
    return seconds


def _text(node: Node) -> str:
    if node.value is None or not node.text.strip():
        raise UnitError(f"must be text, not {show(node.plain())}", "quote it")
    return node.text


def _texts(node: Node) -> tuple[str, ...]:
    if node.items is None:
        raise UnitError(f"must be a list, not {show(node.plain())}", "write [a, b]")
    return tuple(_text(item) for item in node.items)


def _flag(node: Node) -> bool:
    if not isinstance(node.value, bool):
        raise UnitError(f"must be true or false, not {show(node.plain())}", "write true or false")
    return node.value


def _weight(node: Node) -> float:
    value = node.value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_WEIGHT:
        raise UnitError(
            f"{show(node.plain())} is no weight", f"write a number above 0, at most {MAX_WEIGHT:g}"
        )
    return float(value)


def _price(node: Node) -> float:
    value = node.value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise UnitError(f"{show(node.plain())} is no price", "write a number, 0 or more")
    return float(value)


def _cpu(node: Node) -> int:
    return 0 if node.value == 0 else parse_cpu(node.plain())


def _memory(node: Node) -> int:
    return parse_size(node.plain())


def _count(node: Node) -> int:
    value = node.value
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 10**6
    if not good or not isinstance(value, int | float) or round(value * GPU) != value * GPU:
        raise UnitError(
            f"{show(node.plain())} is no number of accelerators", "write 0 or more, in steps of 0.001"
        )
    return round(value * GPU)


def _gpus(node: Node) -> Amounts:
    """``12`` of any type, or ``H100:8``."""
    if isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return {"gpu": _count(node)}
    kind, gpu_millis = parse_gpu(node.plain())
    return {f"gpu:{kind}" if kind else "gpu": gpu_millis}


def _moment(node: Node) -> float:
    """A date, or a date and time; without a zone that of this machine."""
    try:
        return datetime.fromisoformat(_text(node)).timestamp()
    except (ValueError, OverflowError) as error:
        hint = "write 2027-03-01, or 2027-03-01T12:00+01:00"
        raise UnitError(f"{show(node.plain())} is no date", hint) from error


__all__ = ["parse_policy"]
