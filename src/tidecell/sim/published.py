"""Published traces as jobs and machines: openb, Philly, DLRM churn. Pure.

Each reader takes only the columns it names; whatever had to be assumed is in the notes of the workload,
because figures of a trace mean nothing without them.
"""

from __future__ import annotations

import math

from tidecell.sim.simple import MAX_GPUS, MAX_REPLICAS, clean_name, make_machine, unique_names
from tidecell.sim.table import Rows, Table, is_blank, moment, number, require_columns, seconds, text, whole
from tidecell.sim.workload import SimJob
from tidecell.structs.errors import DataError
from tidecell.structs.job import (
    Band,
    JobSpec,
    Kind,
    Preemption,
    Priority,
    Replicas,
    Retry,
    RetryOn,
    Shape,
)
from tidecell.structs.machine import MachineSpec
from tidecell.structs.resources import GPU, Resources

MIB, GIB = 1 << 20, 1 << 30
OPENB_NODE_COLUMNS = ("sn", "cpu_milli", "memory_mib", "gpu")
OPENB_POD_COLUMNS = ("name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli")
PHILLY_COLUMNS = ("timestamp", "duration", "num_gpus")
DLRM_COLUMNS = ("instance_sn", "app_name", "cpu_request", "gpu_request", "memory_request")
_AGAIN = Retry((RetryOn.INTERRUPTION, RetryOn.ERROR), 1_000_000)


def read_openb_machines(table: Table) -> list[MachineSpec]:
    """Return the machines of an openb node list (alibaba/clusterdata, cluster-trace-gpu-v2023)."""
    require_columns(table, OPENB_NODE_COLUMNS, (), "an openb node list")
    rows = Rows(table)
    names = rows.required("sn", text, "")
    cpus, memories = rows.required("cpu_milli", whole(), 0), rows.required("memory_mib", whole(), 0)
    gpus, models = rows.read("gpu", whole(0, MAX_GPUS), 0), rows.read("model", text, "")
    rows.check()
    return [make_machine(names[i], cpus[i], memories[i] * MIB, gpus[i], models[i]) for i in range(len(table))]


def read_openb_jobs(table: Table, variant: str = "") -> tuple[list[SimJob], list[str]]:
    """Return openb pods as jobs in time: created, run from scheduled to deleted, one replica each."""
    require_columns(table, OPENB_POD_COLUMNS, (), "an openb pod list")
    table = only(table, "variant", variant, "--variant")
    missing = [n for n in ("creation_time", "deletion_time") if n not in table.names]
    if missing:
        raise DataError(
            f"{table.source}: column '{missing[0]}' is missing; "
            "pods in time need creation_time and deletion_time",
            "without them pods can be packed as they arrive: --policy tidecell",
        )
    rows = Rows(table)
    cpus, memories = rows.required("cpu_milli", whole(), 0), rows.required("memory_mib", whole(), 0)
    counts, shares = rows.required("num_gpu", whole(0, MAX_GPUS), 0), rows.read("gpu_milli", whole(0, GPU), 0)
    types = rows.read("gpu_spec", text, "")
    created = rows.read("creation_time", seconds, 0.0)
    began: list[float | None] = rows.read("scheduled_time", seconds, None)
    deleted: list[float | None] = rows.read("deletion_time", seconds, None)
    rows.check()
    names = unique_names([str(n) for n in table.columns["name"]], "pod")
    jobs = []
    for i, name in enumerate(names):
        gpu = counts[i] * GPU if counts[i] != 1 else min(GPU, shares[i] or GPU)
        resources = Resources(cpus[i], memories[i] * MIB, gpu)
        first, *others = [t.strip() for t in types[i].split("|")] or [""]
        spec = JobSpec(
            name,
            run="simulated",
            resources=resources,
            accelerator_type=first,
            any_of=tuple(Shape(resources, t) for t in others),
            retry=_AGAIN,
        )
        end_s, start_s = deleted[i], began[i] if began[i] is not None else created[i]
        work_s = max(0.0, end_s - start_s) if end_s is not None and start_s is not None else None
        jobs.append(SimJob(spec, created[i], work_s))
    return sorted(jobs, key=lambda j: j.submit_s), ["pods run from scheduled_time to deletion_time"]


def only(table: Table, column: str, value: str, flag: str) -> Table:
    """Return the rows of one variant or set, where a file holds several.

    Raises:
        DataError: There are several and none was named, or there is none of that name.
    """
    if column not in table.names:
        if value:
            raise DataError(f"{table.source} has no column '{column}'", f"leave out {flag}")
        return table
    found = sorted({str(v) for v in table.columns[column]})
    if not value and len(found) == 1:
        return table
    if value not in found:
        what = f"has no {column} '{value}'" if value else f"holds {len(found)} of them"
        shown = ", ".join(found[:30]) + (", ..." if len(found) > 30 else "")
        raise DataError(f"{table.source} {what}; there are {shown}", f"choose one: {flag} {found[0]}")
    keep = [i for i, v in enumerate(table.columns[column]) if str(v) == value]
    return table.only(keep)


def read_philly(table: Table, machines: list[MachineSpec]) -> tuple[list[SimJob], list[str]]:
    """Return Philly's jobs in the form of Pollux: gangs of whole GPUs, by virtual cluster."""
    require_columns(table, PHILLY_COLUMNS, (), "the Philly format")
    rows = Rows(table)
    submitted = rows.required("timestamp", moment, 0.0)
    durations = rows.required("duration", seconds, 0.0)
    gpus = rows.required("num_gpus", whole(1, MAX_REPLICAS), 1)
    teams = rows.read("cluster", text, "")
    rows.check()
    largest = max((len(m.accelerators) for m in machines), default=0)
    if not largest:
        raise DataError(
            f"{table.source} asks for GPUs, and no machine has any", "give machines with gpu, for example 8"
        )
    start_s = min(submitted, default=0.0)
    order = sorted(range(len(table)), key=lambda i: (submitted[i], i))
    jobs = []
    for number_of, i in enumerate(order):
        count = math.ceil(gpus[i] / largest)
        each = math.ceil(gpus[i] / count)
        spec = JobSpec(
            f"philly-{number_of}",
            run="simulated",
            resources=Resources(0, 0, each * GPU),
            replicas=Replicas(count, count),
            retry=_AGAIN,
            team=clean_name(teams[i], ""),
        )
        jobs.append(SimJob(spec, submitted[i] - start_s, durations[i]))
    notes = [
        "times count from the first submission; the trace has no cpu or memory, so neither is limited",
        f"a job of more than {largest} GPUs is a gang of equal replicas, one a machine at most",
        "every job is batch; teams are the trace's virtual clusters, without quotas",
    ]
    return jobs, notes


def read_dlrm(table: Table) -> tuple[list[SimJob], list[str]]:
    """Return the instances of Alibaba's DLRM services (2025): created, serving, deleted."""
    require_columns(table, DLRM_COLUMNS, (), "the DLRM format")
    rows = Rows(table)
    cpus = rows.required("cpu_request", number(), 0.0)
    gpus = rows.required("gpu_request", number(0.0, MAX_GPUS), 0.0)
    memories = rows.required("memory_request", number(), 0.0)
    created, deleted = rows.read("creation_time", seconds, 0.0), table.columns.get("deletion_time", ())
    apps = rows.required("app_name", text, "")
    ends: list[float | None] = rows.read("deletion_time", seconds, None)
    rows.check()
    names = unique_names([str(n) for n in table.columns["instance_sn"]], "instance")
    jobs = [
        SimJob(
            JobSpec(
                name,
                kind=Kind.SERVICE,
                run="simulated",
                resources=Resources(
                    round(cpus[i] * 1000), round(memories[i] * GIB), math.ceil(gpus[i]) * GPU
                ),
                priority=Priority(Band.PRODUCTION),
                preemption=Preemption.NEVER,
                team=clean_name(apps[i], ""),
                retry=_AGAIN,
            ),
            created[i],
            None,
            stop_s=max(created[i], ends[i] or 0.0) if ends[i] is not None else None,
        )
        for i, name in enumerate(names)
    ]
    blank = sum(1 for v in deleted if is_blank(v))
    notes = [
        "an instance without creation_time is there from the start",
        f"{blank} instances have no deletion_time and stay until the end",
        "each instance is a production service of one replica",
        "disk, rdma and max_instance_per_node are not simulated",
    ]
    return sorted(jobs, key=lambda j: j.submit_s), notes
