"""Tables from files: CSV (plain or gzip) and Parquet, told apart by their first bytes; never by the name.

Cells of a CSV are text, those of a Parquet file typed; ``Rows`` reads both through one parser per column and
collects every mistake with its line, so that a user sees all of them at once.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tidecell.client.units import UnitError
from tidecell.structs.errors import DataError, Mistake, SpecError

MAX_MISTAKES = 20
T = TypeVar("T")


@dataclass(frozen=True)
class Table:
    """Columns of equal length.

    Attributes:
        source: The file's name, for messages.
        first_line: Line of the first row; a Parquet file's rows are counted from 1.
    """

    source: str
    columns: Mapping[str, Sequence[Any]]
    first_line: int = 1

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    @property
    def names(self) -> set[str]:
        """The columns' names."""
        return set(self.columns)


def read_table(path: Path) -> Table:
    """Return the table in a file.

    Raises:
        DataError: The file cannot be read, is empty, or is neither CSV nor Parquet.
    """
    try:
        body = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", "give an existing file") from error
    if body[:4] == b"PAR1":
        return _parquet(path, body)
    if body[:2] == b"\x1f\x8b":
        try:
            body = gzip.decompress(body)
        except (OSError, EOFError) as error:
            raise DataError(f"{path} is a damaged gzip file: {error}", "fetch it again") from error
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is neither UTF-8 text nor Parquet: {error.reason} at byte {error.start}",
            "give a CSV file (plain or gzip) or a Parquet file",
        ) from error
    return _csv(str(path), text)


def _parquet(path: Path, body: bytes) -> Table:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(
            f"{path} is a Parquet file, and pyarrow is not installed", "pip install 'tidecell[scale]'"
        ) from error
    try:
        table = pq.read_table(pa.BufferReader(body))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is a damaged Parquet file: {error}", "write it again") from error
    return Table(str(path), {n: table.column(n).to_pylist() for n in table.column_names})


def _csv(source: str, text: str) -> Table:
    rows = list(csv.reader(io.StringIO(text)))
    rows = [row for row in rows if row]
    if not rows:
        raise DataError(f"{source} is empty", "its first line must name the columns")
    names = [name.strip() for name in rows[0]]
    doubled = sorted({n for n in names if names.count(n) > 1})
    if doubled:
        raise DataError(f"{source}: column '{doubled[0]}' is there twice", "name each column once")
    for line, row in enumerate(rows[1:], 2):
        if len(row) != len(names):
            raise DataError(
                f"{source}, line {line}: {len(row)} values for {len(names)} columns",
                f"give one value for each of {', '.join(names)}; an empty one stays empty between commas",
            )
    columns = {name: [row[i] for row in rows[1:]] for i, name in enumerate(names)}
    return Table(source, columns, first_line=2)


def is_blank(value: object) -> bool:
    """Return whether a cell is empty: no text, None, or not a number."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


@dataclass
class Rows:
    """Reads the cells of a table and collects what is wrong with them."""

    table: Table
    mistakes: list[Mistake] = field(default_factory=list)

    def read(self, name: str, parse: Callable[[object], T], default: T) -> list[T]:
        """Return a column, parsed; empty cells, or a column that is not there, become ``default``."""
        cells = self.table.columns.get(name)
        if cells is None:
            return [default] * len(self.table)
        known: dict[object, T] = {}
        out = []
        for i, cell in enumerate(cells):
            if is_blank(cell):
                out.append(default)
            elif cell in known:
                out.append(known[cell])
            else:
                out.append(self._parsed(name, i, cell, parse, default))
                known[cell] = out[-1]
        return out

    def required(self, name: str, parse: Callable[[object], T], filler: T) -> list[T]:
        """Return a column in which every cell must have a value."""
        for i, cell in enumerate(self.table.columns[name]):
            if is_blank(cell):
                self.mistake(i, name, "is empty", "every row needs a value here")
        return self.read(name, parse, filler)

    def _parsed(self, name: str, i: int, cell: object, parse: Callable[[object], T], default: T) -> T:
        try:
            return parse(cell)
        except ValueError as error:
            self.mistake(i, name, f"{cell!r} {error}")
        except UnitError as error:
            self.mistake(i, name, error.message, error.hint)
        return default

    def mistake(self, i: int, name: str, message: str, hint: str = "") -> None:
        """Note what is wrong with one cell."""
        if len(self.mistakes) < MAX_MISTAKES:
            self.mistakes.append(Mistake(name, message, hint, self.table.first_line + i))

    def check(self) -> None:
        """Raise SpecError with all that was wrong."""
        if self.mistakes:
            raise SpecError(self.mistakes, self.table.source)


def require_columns(table: Table, needed: Sequence[str], allowed: Sequence[str], what: str) -> None:
    """Raise DataError unless the needed columns are there and no others than the allowed ones.

    Args:
        table: As read.
        needed: Must be there.
        allowed: May be there, the needed ones included; empty: any.
        what: The format, for messages.
    """
    missing = [n for n in needed if n not in table.names]
    if missing:
        raise DataError(
            f"{table.source}: column '{missing[0]}' is missing; {what} needs {', '.join(needed)}",
            f"it has {', '.join(table.columns)}; --format names another format",
        )
    unknown = [n for n in table.columns if n not in allowed] if allowed else []
    if unknown:
        raise DataError(
            f"{table.source}: unknown column '{unknown[0]}'; {what} may have {', '.join(allowed)}",
            "take it out, or rename it (docs/sim.md)",
        )


# -------------------------------------------------------------------------------------------- parsers


def number(low: float = 0.0, high: float = math.inf) -> Callable[[object], float]:
    """Return a parser of finite numbers in a range."""

    def parse(value: object) -> float:
        try:
            found = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise ValueError("is not a number") from None
        if not math.isfinite(found) or not low <= found <= high:
            upper = f" and at most {high:g}" if math.isfinite(high) else ""
            raise ValueError(f"is out of range; allowed are numbers of at least {low:g}{upper}")
        return found

    return parse


def whole(low: int = 0) -> Callable[[object], int]:
    """Return a parser of whole numbers of at least ``low``."""
    read = number(low)

    def parse(value: object) -> int:
        found = read(value)
        if found != int(found):
            raise ValueError("is not a whole number")
        return int(found)

    return parse


def text(value: object) -> str:
    """Return a cell as text."""
    return str(value).strip()


def one_of(*allowed: str) -> Callable[[object], str]:
    """Return a parser of a few words."""

    def parse(value: object) -> str:
        word = str(value).strip().lower()
        if word not in allowed:
            raise ValueError(f"is not known; allowed are {', '.join(allowed)}")
        return word

    return parse
