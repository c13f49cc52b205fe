"""Values as people type them, in specs and on the command line, to our units and back. Pure.

Every parser takes what YAML or a flag gives (text or a number), and raises ``UnitError`` with what was
found and what is allowed. Every formatter writes text that its parser reads back to the same value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation

from tidecell.structs.errors import TidecellError
from tidecell.structs.job import BAND_WORDS, Preemption, Priority, Replicas
from tidecell.structs.resources import GPU, Resources, format_cpu

MAX_DURATION_S = 10 * 365 * 86400.0
MAX_REPLICAS = 10_000
MAX_ORDER = 1_000_000
MAX_ITEMS = 100_000  # of one array
MIN_MEMORY_BYTES = 1 << 20

_SECONDS = {
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
}
_SIZES = {
    "": 1,
    "b": 1,
    **{f"{p}b": 1000 ** (i + 1) for i, p in enumerate("kmgtp")},
    **{f"{p}ib": 1024 ** (i + 1) for i, p in enumerate("kmgtp")},
}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)")
_GPU_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
_COUNT = re.compile(r"[0-9]{1,4}(\.[0-9]{1,9})?")
_PRIORITY = re.compile(r"([a-z-]*?)(?:([+-])(\d+))?")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_BANDS = {word: band for band, word in BAND_WORDS.items()}
_OWN_ENV = {"PORT", "CUDA_VISIBLE_DEVICES"}
# Run:ai's words mean the same; both are read, ours are written.
_PREEMPTION = {
    **{p.value: p for p in Preemption},
    "preemptible": Preemption.ANY,
    "semi-preemptible": Preemption.ABOVE_MIN,
    "non-preemptible": Preemption.NEVER,
}


class UnitError(TidecellError):
    """A value cannot be read: what was found, and what is allowed."""

    exit_code = 2


def show(value: object) -> str:
    """Return a value as a message quotes it."""
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else f"{value[:57]}...")
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else str(value)


def _number(value: object) -> Decimal | None:
    """Return a finite number, of a number or of text that is one, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = Decimal(str(value).strip())
    except InvalidOperation:
        return None
    return number if number.is_finite() and abs(number) < Decimal(10) ** 30 else None


# ------------------------------------------------------------------------------------------ durations


def parse_duration(value: object) -> float:
    """Return seconds of ``30``, ``"90s"``, ``"10m"``, ``"1h30m"``, ``"2d"`` or ``"500ms"``.

    Raises:
        UnitError: It is no duration, negative, or more than ten years.
    """
    seconds = _number(value)
    if seconds is None and isinstance(value, str):
        text = value.strip().lower()
        parts = _DURATION_PART.findall(text)
        if parts and "".join(n + u for n, u in parts) == text:
            seconds = sum((Decimal(n) * _SECONDS[u] for n, u in parts), Decimal(0))
    if seconds is None or seconds < 0:
        raise UnitError(
            f"{show(value)} is no duration",
            "write seconds, or numbers with ms, s, m, h, d: 30, 90s, 10m, 1h30m, 2d",
        )
    if seconds > MAX_DURATION_S:
        raise UnitError(f"{show(value)} is more than ten years", "leave it out for no limit")
    return float(seconds)


def format_duration(seconds: float) -> str:
    """Return the shortest text that ``parse_duration`` reads back to exactly these seconds."""
    left = Decimal(repr(float(seconds)))
    if left % 1:
        millis = left * 1000
        return f"{int(millis)}ms" if millis % 1 == 0 else f"{left:f}s"
    parts, rest = [], int(left)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def parse_moment(value: object, now_s: float) -> float:
    """Return seconds since the epoch of ``"+10m"`` (from now), or of a date and time as in ISO 8601.

    Without a time zone the time is that of this machine: ``2026-11-24 03:00``.

    Raises:
        UnitError: It is neither.
    """
    text = value.strip() if isinstance(value, str) else ""
    if text.startswith("+"):
        return now_s + parse_duration(text[1:])
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError) as error:
        raise UnitError(
            f"{show(value)} is no time",
            "write +10m, or a date and time: 2026-11-24 03:00, 2026-11-24T03:00+01:00",
        ) from error


def format_moment(at_s: float) -> str:
    """Return text that ``parse_moment`` reads back to exactly this moment, in whole microseconds."""
    return datetime.fromtimestamp(at_s, UTC).isoformat(" ")


# ------------------------------------------------------------------------------------------ resources


def parse_size(value: object) -> int:
    """Return bytes of ``"64GB"`` (10^9), ``"64GiB"`` (2^30), or of a plain number of bytes.

    Raises:
        UnitError: It is no size, or has a unit that means two things (``64G``).
    """
    number = _number(value)
    unit = ""
    if number is None and isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        number, unit = Decimal(match[1]), match[2].lower()
    if number is not None and unit not in _SIZES and f"{unit.removesuffix('i')}b" in _SIZES:
        prefix = unit.removesuffix("i").upper()
        raise UnitError(
            f"{show(value)} has an unclear unit", f"write {prefix}B (powers of 1000) or {prefix}iB (of 1024)"
        )
    if number is None or number < 0 or unit not in _SIZES:
        raise UnitError(
            f"{show(value)} is no size", "write bytes, or a number with KB, MB, GB, TB or KiB, MiB, GiB, TiB"
        )
    size = int(number * _SIZES[unit])
    if size >= 1 << 60:
        raise UnitError(f"{show(value)} is more than 1024 PiB", "write a smaller size")
    return size


def parse_memory(value: object) -> int:
    """Return bytes for a task; 0 is no limit, and less than 1 MiB is surely a forgotten unit."""
    size = parse_size(value)
    if 0 < size < MIN_MEMORY_BYTES:
        raise UnitError(
            f"{show(value)} is {size} bytes, less than a program needs", "give a unit, for example 64GB"
        )
    return size


def format_size(num_bytes: int) -> str:
    """Return the shortest text that ``parse_size`` reads back to exactly these bytes."""
    for unit in ("pib", "pb", "tib", "tb", "gib", "gb", "mib", "mb", "kib", "kb"):
        if num_bytes and num_bytes % _SIZES[unit] == 0:
            return f"{num_bytes // _SIZES[unit]}{unit[0].upper()}{unit[1:-1]}B"
    return str(num_bytes)


def parse_cpu(value: object) -> int:
    """Return thousandths of a core of ``8``, ``0.5`` or ``"500m"``.

    Raises:
        UnitError: It is no number of cores, not above 0, or finer than a thousandth.
    """
    text = value.strip() if isinstance(value, str) else value
    if isinstance(text, str) and text.endswith("m"):
        millis = _number(text[:-1])
    else:
        cores = _number(text)
        millis = None if cores is None else cores * 1000
    if millis is None or millis <= 0 or millis % 1 or millis > 10**9:
        raise UnitError(
            f"{show(value)} is no number of cores", "write cores above 0 in steps of 0.001: 8, 0.5, 500m"
        )
    return int(millis)


def parse_gpu(value: object) -> tuple[str, int]:
    """Return type and thousandths of ``"H100:8"``, ``"H100"`` (one) or ``2`` (of any type, then ``""``).

    Below one it is a share of one accelerator: ``"H100:0.5"``, ``0.25``.

    Raises:
        UnitError: It is none of these.
    """
    text = str(value).strip() if isinstance(value, int | float | str) and not isinstance(value, bool) else ""
    kind, colon, count = text.partition(":")
    if not colon and _COUNT.fullmatch(text):
        kind, count = "", text
    elif not colon:
        count = "1" if text else ""
    match = _COUNT.fullmatch(count)
    if match is None or (kind and not _GPU_TYPE.fullmatch(kind)) or (colon and not kind):
        raise UnitError(
            f"{show(value)} is no number of accelerators",
            "write TYPE:COUNT, TYPE or COUNT: H100:8, H100, 2; or a share of one: H100:0.5",
        )
    millis = Decimal(count) * GPU
    if millis != int(millis) or (millis > GPU and millis % GPU) or (kind and not millis):
        raise UnitError(
            f"{show(value)} is neither a whole number of accelerators nor a share of one in steps of 0.001",
            "ask for whole accelerators, or for less than one: H100:2, H100:0.5",
        )
    return kind, int(millis)


def format_gpu(accelerator_type: str, gpu_millis: int) -> str | int | float:
    """Return accelerators as ``parse_gpu`` reads them."""
    count = gpu_millis / GPU
    plain = int(count) if count.is_integer() else count
    return f"{accelerator_type}:{plain}" if accelerator_type else plain


# ------------------------------------------------------------------------------- priority, replicas


def parse_priority(value: object) -> Priority:
    """Return the band and order of ``"production"``, ``"batch+5"`` or ``"best-effort-1"``.

    Raises:
        UnitError: The band is none of the four.
    """
    match = _PRIORITY.fullmatch(value.strip().lower()) if isinstance(value, str) else None
    if match is None or match[1] not in _BANDS:
        words = ", ".join(reversed(list(_BANDS)))
        raise UnitError(
            f"{show(value)} is no priority; bands are {words}", "write a band, or BAND+N: batch, batch+5"
        )
    order = int(f"{match[2] or ''}{match[3] or 0}") if len(match[3] or "") <= 7 else MAX_ORDER + 1
    if abs(order) > MAX_ORDER:
        raise UnitError(f"{show(value)} orders by more than {MAX_ORDER}", "a small number is enough: batch+5")
    return Priority(_BANDS[match[1]], order)


def parse_preemption(value: object) -> Preemption:
    """Return what may be taken from a job; Run:ai's words are read as well.

    Raises:
        UnitError: It is no such word.
    """
    known = _PREEMPTION.get(value) if isinstance(value, str) else None
    if known is None:
        raise UnitError(
            f"{show(value)} is not never, above-min or any", "above-min gives up replicas above replicas.min"
        )
    return known


def parse_replicas(value: object) -> Replicas:
    """Return the range of ``3``, ``"2..8"`` or ``{"min": 2, "max": 8}`` (either may be left out).

    Raises:
        UnitError: It is no range with 0 <= min <= max and 1 <= max.
    """
    low: object = value
    high: object = value
    if isinstance(value, str) and (match := _RANGE.fullmatch(value.strip())):
        low, high = match[1], match[2]
    elif isinstance(value, Mapping):
        if not value or set(value) - {"min", "max"}:
            raise UnitError("the mapping must have min, max or both", "write {min: 2, max: 8}, 2..8 or 3")
        low = value.get("min", 1)
        high = value.get("max", low)
    least, most = _whole(low), _whole(high)
    if least is None or most is None:
        found = show(value) if not isinstance(value, Mapping) else f"{show(low)}..{show(high)}"
        raise UnitError(f"{found} is no number of replicas", "write {min: 2, max: 8}, 2..8 or 3")
    if least > most:
        raise UnitError(
            f"min {least} is above max {most}", "min is the gang that starts together, max the most to run"
        )
    if most < 1:
        raise UnitError("max is 0; it must be 1 or more", "to run nothing, stop the job instead")
    if most > MAX_REPLICAS:
        raise UnitError(f"max {most} is above {MAX_REPLICAS}", "split the work into several jobs")
    return Replicas(least, most)


def parse_array(value: object) -> tuple[int, int]:
    """Return count and parallel of ``100`` or, as Slurm writes it, ``"100%10"``; without it they are equal.

    Raises:
        UnitError: It is none of these, or a number is out of range.
    """
    text = str(value).strip() if isinstance(value, int | str) and not isinstance(value, bool) else ""
    head, percent, tail = text.partition("%")
    count, parallel = _whole(head), _whole(tail if percent else head)
    if count is None or parallel is None:
        raise UnitError(f"{show(value)} is no array", "write COUNT or COUNT%PARALLEL: 100, 100%10")
    if not 1 <= count <= MAX_ITEMS:
        raise UnitError(f"an array of {count} items; 1 to {MAX_ITEMS} are allowed", "split it into several")
    if not parallel >= 1:
        raise UnitError("0 items at once would never end", "write COUNT%PARALLEL with PARALLEL at least 1")
    return count, min(parallel, count, MAX_REPLICAS)


def _whole(value: object) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number >= 0 and number % 1 == 0 else None


# -------------------------------------------------------------------------------------------- others


def parse_resources(cpu: str, memory: str, gpus: str) -> tuple[str, Resources]:
    """Return the accelerator type and the resources that flags ask for; empty: none of it.

    Raises:
        UnitError: One of them cannot be read.
    """
    kind, gpu_millis = parse_gpu(gpus) if gpus else ("", 0)
    return kind, Resources(parse_cpu(cpu), parse_size(memory) if memory else 0, gpu_millis)


def parse_env(text: str) -> tuple[str, str]:
    """Return name and value of ``K=V``.

    Raises:
        UnitError: There is no ``=``, or the name cannot be set.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise UnitError(f"{show(text)} is not NAME=VALUE", f"write {name or 'NAME'}=VALUE")
    check_env(name, value)
    return name, value


def check_env(name: str, value: str) -> None:
    """Raise UnitError if a task's environment cannot have this variable."""
    if not _ENV_NAME.fullmatch(name):
        raise UnitError(
            f"{show(name)} is no name of a variable", "use letters, digits and underscores, no digit first"
        )
    if name in _OWN_ENV or name.startswith("TIDECELL_"):
        raise UnitError(f"{name} is set by Tidecell for every task", "choose another name")
    if "\0" in value:
        raise UnitError(f"the value of {name} has a NUL character", "take it out")


__all__ = [
    "UnitError",
    "check_env",
    "format_cpu",
    "format_duration",
    "format_gpu",
    "format_moment",
    "format_size",
    "parse_array",
    "parse_cpu",
    "parse_duration",
    "parse_env",
    "parse_gpu",
    "parse_memory",
    "parse_moment",
    "parse_preemption",
    "parse_priority",
    "parse_replicas",
    "parse_size",
    "show",
]
