"""Rows of structs as CSV or Parquet; pyarrow is imported only when it is asked for."""

from __future__ import annotations

import csv
import importlib
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tidecell.structs.errors import TidecellError


def flat(value: Any, kind: Any) -> dict[str, Any]:
    """Return a struct as columns; what is a mapping or a list becomes JSON text."""
    row = {f.name: getattr(value, f.name) for f in msgspec.structs.fields(kind)}
    return {
        k: json.dumps(v, sort_keys=True) if isinstance(v, dict | list | tuple) else v for k, v in row.items()
    }


def write_csv(rows: Iterable[Any], kind: Any) -> None:
    """Print structs of one type as CSV with a header."""
    writer = csv.DictWriter(sys.stdout, [f.name for f in msgspec.structs.fields(kind)], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(flat(row, kind))


def write_parquet(rows: Sequence[Any], kind: Any, path: str) -> None:
    """Write structs of one type to a Parquet file.

    Raises:
        TidecellError: pyarrow is not installed, or the file cannot be written.
    """
    try:
        pyarrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise TidecellError(
            "Parquet needs pyarrow, which is not installed", "pip install 'tidecell[scale]', or use --csv"
        ) from error
    types = {int: pyarrow.int64(), float: pyarrow.float64(), bool: pyarrow.bool_()}
    fields = [
        pyarrow.field(f.name, types.get(f.type, pyarrow.string())) for f in msgspec.structs.fields(kind)
    ]
    table = pyarrow.Table.from_pylist([flat(row, kind) for row in rows], schema=pyarrow.schema(fields))
    try:
        parquet.write_table(table, str(Path(path).expanduser()))
    except OSError as error:
        raise TidecellError(
            f"{path} cannot be written: {error}", "name a file in a directory that exists"
        ) from error
