"""Strange files: each is read, or refused with its line and what is allowed; never a traceback."""

from __future__ import annotations

import gzip
import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tidecell.cli.sim import sim
from tidecell.sim.published import read_philly
from tidecell.sim.simple import MAX_GPUS, make_machine, read_jobs, read_machines, unique_names
from tidecell.sim.table import MAX_ROWS, Table, read_table
from tidecell.sim.trace import has_times, read_fleet
from tidecell.structs.errors import DataError, SpecError, TidecellError

HEAD = "name,submit_s,duration_s,cpu\n"
ROWS = HEAD + "a,0,10,1\nb,5,10,2\n"


def put(tmp_path: Path, body: bytes | str, name: str = "f") -> Path:
    path = tmp_path / name
    path.write_bytes(body if isinstance(body, bytes) else body.encode())
    return path


def refused(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        read_jobs(read_table(path))
    return caught.value


@pytest.mark.parametrize(
    "body",
    [
        ROWS.encode(),
        ROWS.replace("\n", "\r\n").encode(),
        ROWS.replace("\n", "\r").encode(),
        b"\xef\xbb\xbf" + ROWS.encode(),
        gzip.compress(ROWS.encode()),
        ROWS.replace("\n", "\n\n").encode(),
        ROWS.rstrip("\n").encode(),
        b'"name","submit_s","duration_s","cpu"\n"a","0","10","1"\n"b","5","10","2"\n',
    ],
    ids=["plain", "crlf", "cr", "bom", "gzip", "blank lines", "no last newline", "quoted"],
)
def test_the_same_table_in_any_dress_gives_the_same_jobs(body: bytes, tmp_path: Path):
    jobs = read_jobs(read_table(put(tmp_path, body)))
    assert [(j.spec.name, j.submit_s, j.work_s, j.spec.resources.cpu_millis) for j in jobs] == [
        ("a", 0.0, 10.0, 1000),
        ("b", 5.0, 10.0, 2000),
    ]


def test_mistakes_after_blank_lines_are_named_by_their_line_in_the_file(tmp_path: Path):
    with pytest.raises(SpecError) as caught:
        read_jobs(read_table(put(tmp_path, HEAD + 'a,0,1,1\n\n\n"b\n2",0,x,1\n')))
    assert [(m.line, m.where) for m in caught.value.mistakes] == [(6, "duration_s")]


def test_the_same_wrong_cell_is_named_at_each_of_its_lines(tmp_path: Path):
    with pytest.raises(SpecError) as caught:
        read_jobs(read_table(put(tmp_path, HEAD + "a,0,x,1\nb,0,1,1\nc,0,x,1\n")))
    assert [m.line for m in caught.value.mistakes] == [2, 4]


def test_rows_of_one_variant_keep_their_lines():
    table = Table("t", {"v": ["a", "b", "a"]}, first_line=2).only([2])
    assert (table.columns["v"], table.line(0)) == (["a"], 4)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (ROWS.replace(",", ";").encode(), "separates its columns by semicolons"),
        (ROWS.replace(",", "\t").encode(), "separates its columns by tabs"),
        (ROWS.encode("utf-16"), "is neither UTF-8 text nor Parquet"),
        (gzip.compress(ROWS.encode() * 100)[:50], "is a damaged gzip file"),
        (b"\x1f\x8b\x08\x00" + bytes(range(60)), "is a damaged gzip file"),
        ((HEAD + '"a,0,10,1\nb,0,1,1\n').encode(), "line 3: unexpected end of data"),
        ((HEAD + "x" * 200_000 + ",0,1,1\n").encode(), "line 2: field larger than field limit"),
        (b"\n\n\n", "is empty"),
    ],
)
def test_what_is_no_table_is_refused_in_words(body: bytes, message: str, tmp_path: Path):
    assert message in refused(put(tmp_path, body)).message


def test_a_directory_is_no_table(tmp_path: Path):
    assert "cannot be read: Is a directory" in refused(tmp_path).message


@pytest.mark.parametrize("cell", ["-5", "nan", "inf", "1e400", "1e308", "ten", "10s"])
def test_durations_that_are_none_are_refused(cell: str):
    table = Table("t", {"duration_s": [cell], "cpu": ["1"]})
    with pytest.raises(SpecError) as caught:
        read_jobs(table)
    assert [(m.line, m.where) for m in caught.value.mistakes] == [(1, "duration_s")]


@pytest.mark.parametrize(
    ("columns", "where"),
    [
        ({"cpu": ["4"], "count": ["99999999999"]}, "count"),
        ({"cpu": ["4"], "gpu": [str(MAX_GPUS + 1)]}, "gpu"),
        ({"cpu": ["4"], "up_s": ["50"], "down_s": ["5"]}, "down_s"),
        ({"cpu": [""], "gpu": ["0"]}, "cpu"),
    ],
)
def test_machines_that_cannot_be_are_refused_before_they_fill_the_memory(
    columns: dict[str, list[str]], where: str
):
    with pytest.raises(SpecError) as caught:
        read_machines(Table("m", columns))
    assert [m.where for m in caught.value.mistakes] == [where]


@pytest.mark.parametrize("text", ["99999999999:cpu=1", "2:gpu=99999", "2:cpu=1,gpu=-1"])
def test_too_many_machines_in_words_are_refused(text: str):
    with pytest.raises(DataError, match="that is too many"):
        read_fleet(text)


def test_machines_of_either_format_have_names_of_their_own(tmp_path: Path):
    for body in ("name,cpu\nx,4\nx,4\n", "sn,cpu_milli,memory_mib,gpu\nx,4,1,0\nx,4,1,0\n"):
        with pytest.raises(DataError, match="machine 'x' is there twice"):
            read_fleet(str(put(tmp_path, body)))
    with pytest.raises(DataError, match="no machine that is there from the start"):
        read_fleet(str(put(tmp_path, "sn,cpu_milli,memory_mib,gpu\n")))


def test_names_that_a_number_would_double_are_numbered_on():
    names = unique_names(["a", "a", "a-x2", "a", "a-x2"], "job")
    assert len(set(names)) == 5
    assert (names[0], names[2]) == ("a", "a-x2")


def test_a_job_after_one_that_is_not_there_is_refused():
    with pytest.raises(SpecError) as caught:
        read_jobs(Table("t", {"name": ["a", "b"], "cpu": ["1", "1"], "after": ["", "zz"]}))
    assert str(caught.value.mistakes[0].message) == "there is no job named 'zz'"


def test_a_column_of_no_cores_is_that_of_a_trace_of_accelerators():
    job = read_jobs(Table("t", {"cpu": ["0"], "gpu": ["1"]}))[0]
    assert job.spec.resources.cpu_millis == 0


def test_openb_pods_run_in_time_where_the_trace_has_times():
    columns = {n: ["1"] for n in ("name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli")}
    assert not has_times(Table("t", columns), "openb")
    assert has_times(Table("t", columns | {"creation_time": ["0"], "deletion_time": ["5"]}), "openb")


# ------------------------------------------------------------------------------------------- Parquet

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def parquet(tmp_path: Path, columns: dict[str, object]) -> Path:
    path = tmp_path / "p"
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize(
    "kind", ["int8", "int16", "uint8", "uint64", "float", "double", "string", "large_string"]
)
def test_numbers_of_any_width_are_numbers(kind: str, tmp_path: Path):
    values = pa.array([0, 5]).cast(pa.type_for_alias(kind))
    columns = {"submit_s": values, "duration_s": values, "gpu": values, "cpu": values, "memory": values}
    jobs = read_jobs(read_table(parquet(tmp_path, columns)))
    assert [(j.submit_s, j.work_s, j.spec.resources.gpu_millis) for j in jobs] == [(0, 0, 0), (5, 5, 5000)]


def test_decimals_booleans_dictionaries_bytes_and_nulls_are_read(tmp_path: Path):
    columns = {
        "name": pa.array([b"a", b"b"]),
        "team": pa.array(["red", "red"]).dictionary_encode(),
        "cpu": pa.array([1, 2]).cast(pa.decimal128(22, 2)),
        "replicas": pa.array([True, True]),
        "gpu_type": pa.nulls(2),
        "duration_s": pa.array([timedelta(seconds=3), None]),
    }
    jobs = read_jobs(read_table(parquet(tmp_path, columns)))
    assert [(j.spec.name, j.spec.team, j.work_s) for j in jobs] == [("a", "red", 3.0), ("b", "red", None)]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC"])
def test_moments_of_any_unit_are_moments(unit: str, zone: str | None, tmp_path: Path):
    begin = datetime(2024, 1, 1, tzinfo=UTC)
    times = pa.array([begin, begin + timedelta(seconds=90)], pa.timestamp("us", zone or "UTC"))
    times = times.cast(pa.timestamp(unit, zone or "UTC")).cast(pa.timestamp(unit, zone))
    path = parquet(tmp_path, {"timestamp": times, "duration": [1, 2], "num_gpus": [1, 1]})
    jobs, _ = read_philly(read_table(path), [make_machine("m", 0, 0, 8)])
    assert [j.submit_s for j in jobs] == [0.0, 90.0]


def test_nanoseconds_that_python_has_no_date_for_are_cut(tmp_path: Path):
    times = pa.array([1_704_067_200_123_456_789], pa.timestamp("ns"))
    path = parquet(tmp_path, {"submit_s": times, "cpu": [1], "duration_s": [1]})
    assert read_jobs(read_table(path))[0].submit_s == pytest.approx(1_704_067_200.123456)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["a", "b"], "column 'team' holds list<"),
        ({"x": 1}, "column 'team' holds struct<"),
        (b"\xff", "column 'team' of type binary cannot be read"),
    ],
)
def test_cells_that_are_no_values_are_refused(column: object, message: str, tmp_path: Path):
    path = parquet(tmp_path, {"cpu": [1], "duration_s": [1], "team": pa.array([column])})
    assert message in refused(path).message


def test_a_column_that_nobody_reads_may_be_anything(tmp_path: Path):
    path = parquet(
        tmp_path,
        {"timestamp": ["5"], "duration": [1], "num_gpus": [1], "extra": pa.array([{"x": 1}])},
    )
    assert len(read_philly(read_table(path), [make_machine("m", 0, 0, 8)])[0]) == 1


def test_a_table_is_kept_in_little_more_than_its_cells(tmp_path: Path):
    path = put(tmp_path, HEAD + "".join(f"job-{i % 50},{i},10,1\n" for i in range(20_000)))
    tracemalloc.start()
    table = read_table(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(table) == 20_000
    assert peak < 8_000_000  # 400 bytes a row; rows as lists took 1,100


def test_a_file_with_more_rows_than_any_trace_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tidecell.sim.table.MAX_ROWS", 1)
    assert MAX_ROWS > 1_000_000
    assert "has more than 1 rows" in refused(put(tmp_path, ROWS)).message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--trace", "t.csv", "--policy", "fgd", "--until", "1h"],
            "--policy packs, it runs nothing in time; --until",
        ),
        (
            ["--trace", "t.csv", "--compact", "--load", "l.csv"],
            "--compact packs, it runs nothing in time; --load",
        ),
        (["--trace", "t.csv", "--compact", "--plot", "o.png"], "--compact has no curve to draw; --plot"),
        (["--from", "live", "--trace", "t.csv"], "--from runs a cell in time; --trace"),
        (["--from", "live", "--startup", "9s"], "--from runs a cell in time; --startup"),
        (["--trace", "t.csv", "--plot", "o.txt"], "--plot o.txt does not end in .png"),
    ],
)
def test_options_that_a_mode_would_ignore_are_refused(options: list[str], message: str):
    with pytest.raises(TidecellError) as caught:
        sim.main(options, standalone_mode=False)
    assert caught.value.message.startswith(message)
