"""Reads traces of the openb format: a list of machines, and pods with their variants.

The format is that of alibaba/clusterdata, cluster-trace-gpu-v2023: machines ``sn, cpu_milli, memory_mib, gpu,
model``; pods ``name, cpu_milli, memory_mib, num_gpu, gpu_milli, gpu_spec`` and, where several lists are
joined in
one file, ``variant``. CSV, CSV.gz or Parquet; further columns are ignored. A pod with one accelerator and
``gpu_milli`` below 1000 shares it; any other takes whole ones. ``gpu_spec`` names the models it can use,
``A|B``; empty means any.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tidecell.scheduler.packing import ANY_TYPE
from tidecell.scheduler.scoring import WHOLE, Ints
from tidecell.sim.table import read_table
from tidecell.sim.workload import SimJob
from tidecell.structs.errors import DataError
from tidecell.structs.machine import MachineSpec

MACHINE_COLUMNS = ("sn", "cpu_milli", "memory_mib", "gpu")
POD_COLUMNS = ("name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli")
MAX_MODELS = 62  # a set of models is the bits of one integer
BLANK = ("", "nan", "none", "null")
MIB = 1 << 20
MAX_WHOLE = 1 << 40  # sums of many stay within 64 bits
MAX_GPUS = 1024  # of one machine or pod


@dataclass(frozen=True)
class Machines:
    """Machines in the order of their names.

    Attributes:
        names: One a machine.
        models: Accelerator models that occur, sorted.
        capacity_NR: int64: cpu_millis, memory in MiB, accelerator thousandths.
        gpu_NG: int64: 1000 for each accelerator, 0 beyond.
        types_N: int64: index into ``models``; -1 for a machine without accelerators.
    """

    names: tuple[str, ...]
    models: tuple[str, ...]
    capacity_NR: Ints
    gpu_NG: Ints
    types_N: Ints

    def __len__(self) -> int:
        return len(self.names)

    def only(self, rows: Ints) -> Machines:
        """Return these machines, in this order."""
        names = tuple(self.names[int(r)] for r in rows)
        return Machines(names, self.models, self.capacity_NR[rows], self.gpu_NG[rows], self.types_N[rows])


@dataclass(frozen=True)
class Pods:
    """Pods in the order of their names.

    Attributes:
        variant: Which list of the trace; empty if the file has only one.
        asks_PQ: int64: cpu_millis, memory in MiB, accelerator thousandths, mask of models.
    """

    variant: str
    asks_PQ: Ints

    def __len__(self) -> int:
        return len(self.asks_PQ)


def read_machines(path: Path) -> Machines:
    """Return the machines of a node list.

    Raises:
        DataError: The file is not there, lacks a column, or has a value that is no machine's.
    """
    found: dict[str, tuple[int, int, int, str]] = {}
    for line, row in _rows(path, MACHINE_COLUMNS):
        name = str(row["sn"]).strip()
        if not name or name in found:
            raise _bad(path, line, "sn", name, "a name that no other machine has")
        cpu, memory, gpus = (_whole(path, line, row, c) for c in MACHINE_COLUMNS[1:])
        found[name] = (cpu, memory, gpus, _text(row.get("model")) if gpus else "")
    if not found:
        raise DataError(f"{path} has no machines", "its first row after the columns' names is missing")
    return _machines(found, str(path))


def machines_of(specs: Iterable[MachineSpec], source: str) -> Machines:
    """Return machines of another format in the form that is packed."""
    found = {}
    for spec in specs:
        model = spec.accelerators[0].type if spec.accelerators else ""
        capacity = spec.capacity
        found[spec.name] = (capacity.cpu_millis, capacity.memory_bytes // MIB, len(spec.accelerators), model)
    return _machines(found, source)


def _machines(found: dict[str, tuple[int, int, int, str]], source: str) -> Machines:
    """Return machines of cpu_millis, MiB, accelerators and their model, by name."""
    names = tuple(sorted(found))
    models = tuple(sorted({found[n][3] for n in names if found[n][2]}))
    if len(models) > MAX_MODELS:
        raise DataError(f"{source} has {len(models)} accelerator models; at most {MAX_MODELS} are supported")
    capacity = np.array([(found[n][0], found[n][1], found[n][2] * WHOLE) for n in names], np.int64)
    count = capacity[:, 2] // WHOLE
    gpu = np.where(np.arange(max(1, count.max())) < count[:, None], WHOLE, 0).astype(np.int64)
    types = np.array([models.index(found[n][3]) if found[n][2] else -1 for n in names], np.int64)
    return Machines(names, models, capacity, gpu, types)


def pods_of(jobs: Sequence[SimJob], models: tuple[str, ...]) -> Pods:
    """Return jobs of another format as pods, one a replica; that a gang starts together is not packed."""
    asks = []
    for job in sorted(jobs, key=lambda j: j.spec.name):
        wanted = [shape.accelerator_type.lower() for shape in job.spec.shapes]
        mask = ANY_TYPE
        if all(wanted) and job.spec.resources.gpu_millis:
            mask = sum(1 << i for i, m in enumerate(models) if any(w in m.lower() for w in wanted))
        for replica in range(job.spec.replicas.max):
            needs = job.spec.request(replica)
            asks.append((needs.cpu_millis, -(-needs.memory_bytes // MIB), needs.gpu_millis, mask))
    return Pods("", np.array(asks, np.int64))


def read_pods(paths: Iterable[Path], models: tuple[str, ...]) -> dict[str, Pods]:
    """Return the pods of one file or several, by variant.

    A file without a ``variant`` column is one variant, named for the file (``openb_pod_list_default.csv``:
    ``default``).

    Raises:
        DataError: A file is not there, lacks a column, or has a value that is no pod's.
    """
    found: dict[str, list[tuple[str, tuple[int, int, int, int]]]] = {}
    for path in paths:
        stem = path.name.split(".")[0]
        own = stem.removeprefix("openb_pod_list_").removeprefix("openb_")
        for line, row in _rows(path, POD_COLUMNS):
            variant = _text(row["variant"]) if "variant" in row else own
            found.setdefault(variant, []).append((_text(row["name"]), _ask(path, line, row, models)))
    if not found:
        raise DataError("the trace has no pods", "its first row after the columns' names is missing")
    for pods in found.values():
        pods.sort(key=lambda p: p[0])
    return {v: Pods(v, np.array([a for _, a in found[v]], np.int64)) for v in sorted(found)}


def _ask(path: Path, line: int, row: dict[str, Any], models: tuple[str, ...]) -> tuple[int, int, int, int]:
    """Return one pod's ask."""
    cpu, memory, count, share = (_whole(path, line, row, c) for c in POD_COLUMNS[1:])
    if count == 0:
        return cpu, memory, 0, ANY_TYPE
    if share > WHOLE or share == 0:
        raise _bad(path, line, "gpu_milli", share, "1 to 1000 where num_gpu is 1 or more")
    if count > 1 and share < WHOLE:
        raise _bad(path, line, "gpu_milli", share, f"1000: {count} accelerators are whole ones")
    thousandths = share if count == 1 else count * WHOLE
    wanted = [m.strip() for m in _text(row.get("gpu_spec")).split("|") if m.strip()]
    if not wanted:
        return cpu, memory, thousandths, ANY_TYPE
    return cpu, memory, thousandths, sum(1 << i for i, m in enumerate(models) if m in wanted)


def _rows(path: Path, needed: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number and values of each row; a Parquet row's number counts from 1."""
    table = read_table(path)
    _need(path, table.columns, needed)
    names = [n for n in (*needed, "model", "gpu_spec", "variant") if n in table.columns]
    for i, values in enumerate(zip(*(table.columns[n] for n in names), strict=True)):
        yield table.line(i), dict(zip(names, values, strict=True))


def _need(path: Path, there: Iterable[str], needed: tuple[str, ...]) -> None:
    names = list(there)
    missing = [n for n in needed if n not in names]
    if missing:
        raise DataError(
            f"{path} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; "
            f"it has {', '.join(names)}",
            f"this reader needs {', '.join(needed)}",
        )


def _text(value: Any) -> str:
    text = "" if value is None else str(value).strip()
    return "" if text.lower() in BLANK else text


def _whole(path: Path, line: int, row: dict[str, Any], column: str) -> int:
    """Return a whole number of 0 or more."""
    text = _text(row[column])
    try:
        number = float(text)
    except ValueError:
        raise _bad(path, line, column, text, "a whole number of 0 or more") from None
    most = MAX_GPUS if column in ("gpu", "num_gpu") else MAX_WHOLE
    if not 0 <= number <= most or number != number // 1:
        raise _bad(path, line, column, text, f"a whole number of 0 to {most}")
    return int(number)


def _bad(path: Path, line: int, column: str, value: object, allowed: str) -> DataError:
    return DataError(f"{path}, line {line}: {column} is {value!r}; it should be {allowed}")
