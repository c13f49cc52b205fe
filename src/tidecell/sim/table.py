"""Tables from files: CSV (plain or gzip) and Parquet, told apart by their first bytes; never by the name.

Cells of a CSV are text, those of a Parquet file typed; ``Rows`` reads both through one parser per column and
collects every mistake with its line, so that a user sees all of them at once.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, Any, TypeVar

from tidecell.client.units import UnitError
from tidecell.structs.errors import DataError, Mistake, SpecError

MAX_MISTAKES = 20
MAX_ROWS = 5_000_000  # more would not be simulated in a day, and a damaged file must not fill the memory
POOLED = 4096  # cells of a column that are kept once however often they come
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
EPOCH = datetime(1970, 1, 1)
MAX_TIME_S = 1e11  # of a moment, counted from 1970 or from anywhere: three thousand years
T = TypeVar("T")


@dataclass(frozen=True)
class Table:
    """Columns of equal length.

    Attributes:
        source: The file's name, for messages.
        first_line: Line of the first row; a Parquet file's rows are counted from 1.
        lines: Line of each row, where they do not follow one another.
    """

    source: str
    columns: Mapping[str, Sequence[Any]]
    first_line: int = 1
    lines: Sequence[int] = ()

    def __len__(self) -> int:
        first = next(iter(self.columns), None)
        return len(self.columns[first]) if first is not None else 0

    @property
    def names(self) -> set[str]:
        """The columns' names."""
        return set(self.columns)

    def line(self, i: int) -> int:
        """Return the line of a row."""
        return self.lines[i] if self.lines else self.first_line + i

    def only(self, rows: Sequence[int]) -> Table:
        """Return some of the rows; they keep their lines."""
        columns = {name: [cells[i] for i in rows] for name, cells in self.columns.items()}
        return Table(self.source, columns, lines=[self.line(i) for i in rows])


def read_table(path: Path) -> Table:
    """Return the table in a file.

    Raises:
        DataError: The file cannot be read, is empty, or is neither CSV nor Parquet.
    """
    try:
        with path.open("rb") as file:
            head = file.peek(4)[:4]
            if head == b"PAR1":
                return _parquet(str(path), file)
            packed = head[:2] == b"\x1f\x8b"
            return _csv(str(path), gzip.GzipFile(fileobj=file) if packed else file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is a damaged gzip file: {error}", "fetch it again") from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror or error}", "give an existing file"
        ) from error


class _ArrowColumns(Mapping[str, Sequence[Any]]):
    """Columns of a Parquet file; those that nobody asks for are not turned into objects."""

    def __init__(self, source: str, table: Any) -> None:
        self._source, self._table = source, table
        self._read: dict[str, Sequence[Any]] = {}

    def __getitem__(self, name: str) -> Sequence[Any]:
        if name not in self._read:
            if name not in self._table.column_names:
                raise KeyError(name)
            self._read[name] = _cells(self._source, name, self._table.column(name))
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.column_names)

    def __len__(self) -> int:
        return int(self._table.num_columns)


def _cells(source: str, name: str, column: Any) -> list[Any]:
    """Return a Parquet column as text, numbers, dates and None.

    Raises:
        DataError: Its cells are lists or records, or bytes that are no text.
    """
    import pyarrow as pa

    kind = column.type
    try:
        if pa.types.is_nested(kind):
            raise DataError(f"{source}: column '{name}' holds {kind}", "a cell must be one value")
        if pa.types.is_timestamp(kind) and kind.unit == "ns":  # finer than Python's own dates
            column = column.cast(pa.timestamp("us", kind.tz), safe=False)
        elif pa.types.is_duration(kind):
            column = column.cast(pa.duration("us"), safe=False)
        elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            column = column.cast(pa.string())
        elif pa.types.is_decimal(kind):
            column = column.cast(pa.float64())
        found: list[Any] = column.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise DataError(
            f"{source}: column '{name}' of type {kind} cannot be read: {error}", "write text or numbers"
        ) from error
    return found


def _parquet(source: str, file: IO[bytes]) -> Table:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(
            f"{source} is a Parquet file, and pyarrow is not installed", "pip install 'tidecell[scale]'"
        ) from error
    try:
        whole = pq.ParquetFile(pa.PythonFile(file, mode="r"))
        _check_size(source, whole.metadata.num_rows)
        table = whole.read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{source} is a damaged Parquet file: {error}", "write it again") from error
    doubled = _first_double(table.column_names)
    if doubled is not None:
        raise DataError(f"{source}: column '{doubled}' is there twice", "name each column once")
    return Table(source, _ArrowColumns(source, table))


def _csv(source: str, file: IO[bytes] | gzip.GzipFile) -> Table:
    """Return a CSV file's table; what is read is kept by column, and often seen cells once."""
    with io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        return _rows_of(source, csv.reader(text, strict=True))


def _rows_of(source: str, reader: Any) -> Table:
    try:
        names = _header(source, reader)
        columns: list[list[str]] = [[] for _ in names]
        pools: list[dict[str, str]] = [{} for _ in names]
        lines = array("Q")
        for row in reader:
            if not row:
                continue
            if len(row) != len(names):
                raise _ragged(source, reader.line_num, row, names)
            for cell, column, pool in zip(row, columns, pools, strict=True):
                column.append(pool.setdefault(cell, cell) if len(pool) < POOLED else pool.get(cell, cell))
            lines.append(reader.line_num)
            _check_size(source, len(lines))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{source} is neither UTF-8 text nor Parquet: {error.reason} at byte {error.start}",
            "give a CSV file (plain or gzip) or a Parquet file",
        ) from error
    except csv.Error as error:
        raise DataError(
            f"{source}, line {reader.line_num}: {error}", "quotes must be closed, and doubled inside quotes"
        ) from error
    return Table(source, dict(zip(names, columns, strict=True)), lines=lines)


def _header(source: str, reader: Any) -> list[str]:
    """Return the names of the columns."""
    names = [name.strip() for name in next((row for row in reader if row), [])]
    if not names:
        raise DataError(f"{source} is empty", "its first line must name the columns")
    other = next((what for mark, what in SEPARATORS.items() if len(names) == 1 and mark in names[0]), None)
    if other is not None:
        raise DataError(f"{source} separates its columns by {other}", "separate them by commas")
    doubled = _first_double(names)
    if doubled is not None:
        raise DataError(f"{source}: column '{doubled}' is there twice", "name each column once")
    return names


def _ragged(source: str, line: int, row: Sequence[str], names: Sequence[str]) -> DataError:
    return DataError(
        f"{source}, line {line}: {len(row)} values for {len(names)} columns",
        f"give one value for each of {', '.join(names)}; an empty one stays empty between commas",
    )


def _check_size(source: str, num_rows: int) -> None:
    if num_rows > MAX_ROWS:
        raise DataError(f"{source} has more than {MAX_ROWS:,} rows", "simulate a part of it")


def _first_double(names: Sequence[str]) -> str | None:
    return next((name for i, name in enumerate(names) if name in names[:i]), None)


def is_blank(value: object) -> bool:
    """Return whether a cell is empty: no text, None, or not a number."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _shortened(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"


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
                found, right = self._parsed(name, i, cell, parse, default)
                if right and len(known) < POOLED:  # a wrong cell is reported at each of its lines
                    known[cell] = found
                out.append(found)
        return out

    def required(self, name: str, parse: Callable[[object], T], filler: T) -> list[T]:
        """Return a column in which every cell must have a value."""
        for i, cell in enumerate(self.table.columns[name]):
            if is_blank(cell):
                self.mistake(i, name, "is empty", "every row needs a value here")
        return self.read(name, parse, filler)

    def _parsed(
        self, name: str, i: int, cell: object, parse: Callable[[object], T], default: T
    ) -> tuple[T, bool]:
        """Return a cell's value, and whether it has one; what is wrong with it is noted."""
        try:
            return parse(cell), True
        except ValueError as error:
            shown = repr(cell) if isinstance(cell, str | int | float) else f"'{cell}'"
            self.mistake(i, name, f"{_shortened(shown)} {error}")
        except UnitError as error:
            self.mistake(i, name, _shortened(error.message), error.hint)
        return default, False

    def mistake(self, i: int, name: str, message: str, hint: str = "") -> None:
        """Note what is wrong with one cell."""
        if len(self.mistakes) < MAX_MISTAKES:
            self.mistakes.append(Mistake(name, message, hint, self.table.line(i)))

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
            found = value.total_seconds() if isinstance(value, timedelta) else float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            raise ValueError("is not a number") from None
        if not math.isfinite(found) or not low <= found <= high:
            upper = f" and at most {high:g}" if math.isfinite(high) else ""
            raise ValueError(f"is out of range; allowed are numbers of at least {low:g}{upper}")
        return found

    return parse


seconds = number(0.0, MAX_TIME_S)


def whole(low: int = 0, high: float = math.inf) -> Callable[[object], int]:
    """Return a parser of whole numbers in a range."""
    read = number(low, high)

    def parse(value: object) -> int:
        found = read(value)
        if found != int(found):
            raise ValueError("is not a whole number")
        return int(found)

    return parse


def moment(value: object) -> float:
    """Return seconds: of a number, or of a date and time as seconds since 1970."""
    if isinstance(value, datetime):
        return seconds((value.replace(tzinfo=None) - EPOCH).total_seconds())
    try:
        return seconds(value)
    except ValueError as error:
        if "is not a number" not in str(error):
            raise
    try:
        return seconds((datetime.fromisoformat(str(value)).replace(tzinfo=None) - EPOCH).total_seconds())
    except ValueError:
        raise ValueError("is no time; write 2017-10-09 07:01:55 or seconds") from None


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
