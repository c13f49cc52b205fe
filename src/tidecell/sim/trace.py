"""Trace files to workloads: which format a file has, and who reads it.

A format is recognised by its columns; ``fmt`` overrides that. Machines come from a file as well, or in a few
words: ``250:cpu=64,memory=512GB,gpu=8,type=V100``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tidecell.client.units import UnitError, parse_cpu, parse_size
from tidecell.sim import published, simple
from tidecell.sim.table import Table, read_table
from tidecell.sim.workload import LoadPoint, MachineChange, Workload
from tidecell.structs.errors import DataError
from tidecell.structs.machine import MachineSpec

# Format -> columns that tell it; the first whose columns are all there is taken.
FORMATS: dict[str, tuple[str, ...]] = {
    "openb": published.OPENB_POD_COLUMNS,
    "philly": published.PHILLY_COLUMNS,
    "dlrm": published.DLRM_COLUMNS,
    "pollux": ("application", "num_replicas", "batch_size", "time"),
    "simple": (),
}
TIMED = ("simple", "philly", "dlrm", "openb")


@dataclass(frozen=True)
class Fleet:
    """The machines of a simulation, and which of them come and go."""

    machines: list[MachineSpec]
    changes: list[MachineChange]
    source: str


def detect_format(table: Table) -> str:
    """Return the name of the format that a table's columns tell."""
    for name, columns in FORMATS.items():
        if columns and set(columns) <= table.names:
            return name
    if table.names & set(simple.JOB_COLUMNS):
        return "simple"
    raise DataError(
        f"{table.source}: its columns ({', '.join(table.columns)}) are of no known format",
        f"--format names one of {', '.join(FORMATS)}; docs/sim.md has their columns",
    )


def check_format(name: str) -> str:
    """Return a format's name if it is one."""
    if name not in FORMATS:
        raise DataError(f"there is no trace format '{name}'", f"there are {', '.join(FORMATS)}")
    return name


def read_fleet(text: str) -> Fleet:
    """Return machines from a file, or from words such as ``250:cpu=64,gpu=8,type=V100``.

    Raises:
        DataError, SpecError: The file or the words are wrong.
    """
    count, colon, rest = text.partition(":")
    if colon and count.isdecimal() and "=" in rest:
        return Fleet(_worded(text, int(count), rest), [], text)
    table = read_table(Path(text))
    if set(published.OPENB_NODE_COLUMNS) <= table.names:
        machines = published.read_openb_machines(table)
        simple.check_names(machines, text)
        return Fleet(machines, [], text)
    return Fleet(*simple.read_machines(table), text)


_WORDS = ("cpu", "memory", "gpu", "type")


def _worded(text: str, count: int, rest: str) -> list[MachineSpec]:
    """Return ``count`` equal machines."""
    given = dict.fromkeys(_WORDS, "")
    for part in rest.split(","):
        key, eq, value = part.partition("=")
        if not eq or key not in given:
            raise DataError(
                f"machines '{text}': '{part}' is not understood; allowed are {', '.join(_WORDS)}",
                "write for example 250:cpu=64,memory=512GB,gpu=8,type=V100",
            )
        given[key] = value
    try:
        cpu = parse_cpu(given["cpu"]) if given["cpu"] else 0
        memory, gpu = parse_size(given["memory"] or 0), int(given["gpu"] or 0)
    except (ValueError, UnitError) as error:
        raise DataError(f"machines '{text}': {error}", "write for example 250:cpu=64,memory=512GB") from error
    if not count or not (cpu or gpu):
        raise DataError(f"machines '{text}': there are none, or they have nothing", "give cpu or gpu")
    if count > simple.MAX_MACHINES or not 0 <= gpu <= simple.MAX_GPUS:
        raise DataError(
            f"machines '{text}': that is too many",
            f"at most {simple.MAX_MACHINES:,} machines of 0 to {simple.MAX_GPUS} accelerators are simulated",
        )
    width = len(str(count - 1))
    return [simple.make_machine(f"m{i:0{width}d}", cpu, memory, gpu, given["type"]) for i in range(count)]


def read_workload(
    table: Table, fleet: Fleet, fmt: str, variant: str = "", load: tuple[LoadPoint, ...] = ()
) -> Workload:
    """Return what a trace says, in time.

    Args:
        table: The trace.
        fleet: The machines.
        fmt: One of ``TIMED``.
        variant: Which rows, where a file holds several variants.
        load: Load on services, for their autoscalers.

    Raises:
        DataError, SpecError: Columns or cells are wrong.
    """
    notes: list[str] = []
    if fmt == "simple":
        jobs = simple.read_jobs(table)
    elif fmt == "philly":
        jobs, notes = published.read_philly(table, fleet.machines)
    elif fmt == "dlrm":
        jobs, notes = published.read_dlrm(table)
    elif fmt == "openb":
        jobs, notes = published.read_openb_jobs(table, variant)
    else:
        raise DataError(
            f"{table.source}: format '{fmt}' is not simulated in time by this reader",
            f"these are: {', '.join(TIMED)}",
        )
    if not jobs:
        raise DataError(f"{table.source} has no jobs", "its first row after the columns' names is missing")
    return Workload(
        tuple(fleet.machines), tuple(jobs), tuple(fleet.changes), load, table.source, tuple(notes)
    )


def has_times(table: Table, fmt: str) -> bool:
    """Return whether a trace says how long its jobs run; else it can only be packed."""
    if fmt == "openb":
        return {"creation_time", "deletion_time"} <= table.names
    return fmt != "simple" or bool(table.names & {"duration_s", "stop_s"})
