"""Traces in every documented format are read, and what is wrong with one is said with its line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tidecell.cli.sim import sim
from tidecell.sim.simple import read_jobs, read_machines
from tidecell.sim.table import Table, read_table
from tidecell.sim.trace import detect_format, read_fleet, read_workload
from tidecell.structs.errors import DataError, SpecError
from tidecell.structs.job import Band, Kind, Priority, Replicas
from tidecell.structs.resources import GPU, Resources

JOBS = """name,submit_s,duration_s,replicas_min,replicas_max,cpu,memory,gpu,gpu_type,priority,team
train,10,600,2,4,4,8GB,1,V100,batch+2,red
Web App,0,300,1,1,0.5,,0,,production,blue
"""


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return str(path)


@pytest.mark.parametrize("name", ["jobs.csv", "jobs.csv.gz", "jobs.parquet"])
def test_a_simple_trace_reads_the_same_from_csv_gzip_and_parquet(name: str, tmp_path: Path):
    if name.endswith("parquet"):
        pa = pytest.importorskip("pyarrow")
        import pyarrow.csv as pc
        import pyarrow.parquet as pq

        pq.write_table(pc.read_csv(pa.BufferReader(JOBS.encode())), tmp_path / name)
    else:
        write(tmp_path, name, JOBS)
    web, train = read_jobs(read_table(tmp_path / name))
    assert web.spec.name == "web-app"
    assert web.spec.priority == Priority(Band.PRODUCTION)
    assert web.spec.resources == Resources(500)
    assert train.spec.replicas == Replicas(2, 4)
    assert train.spec.resources == Resources(4000, 8 * 10**9, GPU)
    assert (train.submit_s, train.work_s, train.spec.team) == (10.0, 600.0, "red")


def test_every_optional_column_may_be_missing():
    jobs = read_jobs(Table("t", {"cpu": ["1", "2"]}))
    assert [j.spec.name for j in jobs] == ["job-0", "job-1"]
    assert [j.submit_s for j in jobs] == [0.0, 0.0]
    assert jobs[0].spec.replicas == Replicas(1, 1)


def test_names_that_come_again_are_numbered():
    names = [j.spec.name for j in read_jobs(Table("t", {"name": ["a", "A", "a"], "cpu": [1, 1, 1]}))]
    assert names == ["a", "a-x2", "a-x3"]


def test_a_service_with_a_duration_is_stopped_after_it():
    row = {"name": ["s"], "kind": ["service"], "cpu": [1], "submit_s": [5], "duration_s": [10]}
    service = read_jobs(Table("t", row))[0]
    assert service.spec.kind is Kind.SERVICE
    assert (service.work_s, service.stop_s) == (None, 15.0)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"name": ["a"], "cpus": ["1"]}, "t: unknown column 'cpus'; the simple job format may have name,"),
        ({"name": ["a"], "duration_s": ["1"]}, "t: no column says what a replica needs"),
    ],
)
def test_wrong_columns_are_named_with_those_allowed(columns: dict[str, list[str]], message: str):
    with pytest.raises(DataError) as caught:
        read_jobs(Table("t", columns))
    assert caught.value.message.startswith(message)


def test_all_bad_cells_are_listed_with_their_lines(tmp_path: Path):
    text = "name,duration_s,cpu,priority,gpu\na,-1,x,batch,0\nb,5,1,urgent,1.5\n"
    with pytest.raises(SpecError) as caught:
        read_jobs(read_table(Path(write(tmp_path, "j.csv", text))))
    found = {(m.line, m.where) for m in caught.value.mistakes}
    assert found == {(2, "duration_s"), (2, "cpu"), (3, "priority"), (3, "gpu")}


def test_a_row_that_is_too_short_is_named(tmp_path: Path):
    with pytest.raises(DataError) as caught:
        read_table(Path(write(tmp_path, "j.csv", "a,b\n1,2\n3\n")))
    assert caught.value.message.endswith("j.csv, line 3: 1 values for 2 columns")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "is empty"),
        (b"\xff\xfe\x00a", "neither UTF-8"),
        (b"PAR1xx", "damaged Parquet"),
        (b"\x1f\x8bxx", "damaged gzip"),
    ],
)
def test_files_that_are_no_tables_are_refused(body: bytes, message: str, tmp_path: Path):
    path = tmp_path / "f"
    path.write_bytes(body)
    with pytest.raises(DataError) as caught:
        read_table(path)
    assert message in caught.value.message


def test_machines_come_in_counts_with_attributes_and_times():
    table = Table(
        "m",
        {
            "name": ["gpu", "cpu"],
            "count": ["2", ""],
            "cpu": ["8", "4"],
            "memory": ["64GiB", "1GiB"],
            "gpu": ["4", ""],
            "gpu_type": ["H100", ""],
            "attributes": ["rack=r1;zone=a", ""],
            "down_s": ["", "50"],
        },
    )
    machines, changes = read_machines(table)
    assert [m.name for m in machines] == ["gpu-0", "gpu-1", "cpu"]
    assert machines[0].capacity == Resources(8000, 64 << 30, 4 * GPU)
    assert machines[0].attributes == {"rack": "r1", "zone": "a"}
    assert [(c.at_s, c.machine.name, c.up) for c in changes] == [(50.0, "cpu", False)]


def test_machines_in_words():
    fleet = read_fleet("12:cpu=64,memory=512GB,gpu=8,type=V100")
    assert len(fleet.machines) == 12
    assert fleet.machines[3].name == "m03"
    assert fleet.machines[3].capacity == Resources(64_000, 512 * 10**9, 8 * GPU)
    with pytest.raises(DataError, match="'disk=1' is not understood"):
        read_fleet("12:cpu=64,disk=1")


PUBLISHED = {
    "openb": "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,"
    "creation_time,deletion_time,scheduled_time\np,8000,1024,1,500,,10,70,20\n",
    "philly": "timestamp,duration,num_gpus,gpu_time,cluster\n2017-10-09 07:01:55,66.0,12,66.0,11cb48\n"
    "2017-10-09 07:00:55,66.0,1,66.0,6214e9\n",
    "dlrm": "instance_sn,role,app_name,cpu_request,gpu_request,memory_request,"
    "creation_time,deletion_time\ni,HN,app_0,12,1,120.0,,500\n",
}


@pytest.mark.parametrize("fmt", sorted(PUBLISHED))
def test_published_formats_are_told_by_their_columns(fmt: str, tmp_path: Path):
    table = read_table(Path(write(tmp_path, "t.csv.gz", PUBLISHED[fmt])))
    assert detect_format(table) == fmt
    jobs = read_workload(table, read_fleet("4:cpu=64,gpu=8,memory=512GB"), fmt).jobs
    if fmt == "openb":
        assert (jobs[0].submit_s, jobs[0].work_s) == (10.0, 50.0)
        assert jobs[0].spec.resources == Resources(8000, 1024 << 20, 500)
    elif fmt == "philly":
        assert [j.submit_s for j in jobs] == [0.0, 60.0]
        assert jobs[1].spec.replicas == Replicas(2, 2)
        assert jobs[1].spec.resources.gpu_millis == 6 * GPU
    else:
        assert (jobs[0].work_s, jobs[0].stop_s) == (None, 500.0)


def test_unknown_formats_name_the_known_ones():
    with pytest.raises(DataError) as caught:
        detect_format(Table("t", {"x": ["1"]}))
    assert "are of no known format" in caught.value.message
    assert "openb, philly, dlrm, pollux, simple" in caught.value.hint


def test_the_command_prints_figures_as_json_the_same_for_the_same_seed(tmp_path: Path):
    trace = write(tmp_path, "j.csv", JOBS)
    args = ["--trace", trace, "--machines", "3:cpu=8,memory=64GB,gpu=1,type=V100", "--seed", "7", "--json"]
    first, second = (CliRunner().invoke(sim, args, catch_exceptions=False) for _ in range(2))
    assert first.stdout == second.stdout
    figures = json.loads(first.stdout)
    assert figures["num_finished"] == 2
    assert figures["seed"] == 7
    assert set(figures["wait_s_by_band"]) == {"batch", "production"}
