"""What-if on a copy of a cell: who starts when, who gives way, and what that rests on; never a secret."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cell_harness import Cell, job_spec, machine_spec, service_spec
from click.testing import CliRunner

from tidecell.cell.export import export_state, import_state
from tidecell.cell.snapshot import take_snapshot
from tidecell.cell.state import encode_state
from tidecell.cli.sim import sim
from tidecell.cli.sim_live import changed_machines
from tidecell.cli.snapshot import snapshot
from tidecell.scheduler.durations import Durations
from tidecell.scheduler.schedule import schedule
from tidecell.sim.resume import Forecast, run_forecast
from tidecell.structs.errors import DataError
from tidecell.structs.job import Band

SECRET = "hunter2"


@pytest.fixture
def busy() -> Cell:
    """Four cores: `long` holds three since 100 s, `next` waits for two."""
    cell = Cell().machine("a", cpu=4)
    cell.submit(job_spec("long", cpu=3, env={"PASSWORD": SECRET}, max_duration_s=1000.0))
    cell.up()
    cell.now_s += 100
    cell.submit(job_spec("next", cpu=2, setup=f"login {SECRET}"))
    return cell


def forecast(cell: Cell, **rest: object) -> Forecast:
    return run_forecast(cell.state, cell.now_s, **rest)  # type: ignore[arg-type]


def outlook(found: Forecast, name: str):
    return next(o for o in found.jobs if o.name == name)


def test_a_waiting_job_starts_when_the_running_one_ends_as_given(busy: Cell):
    found = forecast(busy, durations_s={"long": 400.0, "next": 50.0})
    assert outlook(found, "long").ends_s == 300.0
    assert outlook(found, "next").starts_s == 300.0
    assert outlook(found, "next").ends_s == 351.0
    assert outlook(found, "long").basis == "takes 400 s in all, as given"


def test_without_more_knowledge_a_time_limit_counts(busy: Cell):
    found = forecast(busy)
    assert outlook(found, "next").starts_s == 901.0
    assert outlook(found, "long").state == "TIMEOUT"
    assert outlook(found, "next").basis.startswith("unknown: never ends here")
    assert outlook(found, "next").ends_s is None


def test_earlier_runs_of_the_same_name_count_before_the_limit():
    cell = Cell().machine("a", cpu=4)
    for took_s in (10.0, 200.0, 300.0, 400.0):
        cell.submit(job_spec("nightly", cpu=3, max_duration_s=9000.0))
        cell.up()
        cell.now_s += took_s
        cell.down(cell.ref("nightly"))
    cell.submit(job_spec("nightly", cpu=3, max_duration_s=9000.0))
    cell.up()
    cell.now_s += 100
    cell.submit(job_spec("other", cpu=2))
    found = forecast(cell)
    assert outlook(found, "nightly").basis == "median of 3 earlier runs that took longer"
    assert outlook(found, "other").starts_s == 200.0


def test_more_machines_start_it_now_and_fewer_never(busy: Cell):
    now = forecast(busy, more=[machine_spec("b", 4)])
    assert outlook(now, "next").starts_s == 0.0
    assert outlook(now, "next").machines == ("b",)
    never = forecast(busy, fewer=["a"])
    assert outlook(never, "next").starts_s is None
    assert never.waiting == ("next",)
    assert "no machine" in outlook(never, "next").waits


def test_an_added_service_says_whom_it_sends_away(busy: Cell):
    found = forecast(busy, added=[service_spec("chat", cpu=3)])
    assert [(p.job, p.by, p.machine) for p in found.preempted] == [("long", "chat", "a")]
    assert outlook(found, "chat").starts_s == pytest.approx(1.0, abs=1.0)
    assert outlook(found, "long").state == "TIMEOUT"  # its time goes on while it waits


def test_nothing_of_the_cell_changes(busy: Cell):
    before = encode_state(busy.state)
    forecast(busy, added=[job_spec("x", band=Band.PRODUCTION, cpu=4)], fewer=["a"])
    assert encode_state(busy.state) == before


def test_a_duration_for_nobody_is_refused(busy: Cell):
    with pytest.raises(DataError, match="'nobody', which is no live or added job"):
        forecast(busy, durations_s={"nobody": 1.0})


def test_a_snapshot_keeps_every_decision_and_no_secret(busy: Cell):
    body = export_state(busy.state, busy.now_s)
    assert SECRET.encode() not in body
    state, at_s = import_state(body)
    assert at_s == busy.now_s
    plans = [schedule(take_snapshot(s, at_s))[0] for s in (state, busy.state)]
    assert plans[0] == plans[1]
    assert run_forecast(state, at_s) == forecast(busy)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"format":"x","version":1,"at_s":0,"state":{}}'])
def test_what_is_no_snapshot_is_refused(body: bytes):
    with pytest.raises(DataError):
        import_state(body, "f.json")


def test_machines_are_copied_and_taken_by_count_or_name(busy: Cell):
    busy.machine("b", cpu=8).machine("c", cpu=8)
    more, fewer = changed_machines(busy.state, ["+2", "+1:a", "-1", "-a"])
    assert [m.capacity.cpu_millis for m in more] == [8000, 8000, 4000]
    assert len({m.name for m in more}) == 3
    assert fewer == ["c", "a"]
    with pytest.raises(DataError, match="no machine 'zz' is up"):
        changed_machines(busy.state, ["-zz"])


def test_the_command_answers_from_a_file(busy: Cell, tmp_path: Path):
    file = tmp_path / "cell.json"
    file.write_bytes(export_state(busy.state, busy.now_s))
    args = ["--from", str(file), "--duration", "long=400s", "--json"]
    found = json.loads(CliRunner().invoke(sim, args, catch_exceptions=False).stdout)
    assert {o["name"]: o.get("starts_s") for o in found["jobs"]} == {"long": 0.0, "next": 300.0}
    text = CliRunner().invoke(sim, args[:-1], catch_exceptions=False).stdout
    assert "in 5m00s" in text
    asked = CliRunner().invoke(snapshot, ["load", str(file), "--why", "next"], catch_exceptions=False)
    assert "WaitingForCapacity" in asked.stdout
    summary = CliRunner().invoke(snapshot, ["load", str(file), "--json"], catch_exceptions=False)
    assert json.loads(summary.stdout)["waiting"] == ["next"]


# ------------------------------------------------------------------------------------- durations


def test_what_remains_is_conditioned_on_what_has_passed():
    past = Durations.of([10, 20, 30, 40, 1000])
    assert past.remaining_s(0, 0.5) == 30
    assert past.remaining_s(15, 0.5) == 25
    assert past.remaining_s(25, 0.7) == 975
    assert past.remaining_s(50, 0.5) is None
    assert past.remaining_s(50, 0.5, least=1) == 950


def test_one_that_lasts_longer_than_all_before_is_possible():
    past = Durations.of([10, 20, 30, 40, 1000])
    assert past.remaining_s(0, 0.95) > 1000


def test_work_that_still_runs_makes_what_remains_longer():
    """Of eight, four ended early and four go on: the half that ended says little of the rest."""
    alone, censored = Durations.of([1, 2, 3, 4]), Durations.of([1, 2, 3, 4], ongoing_s=[100.0] * 4)
    assert alone.remaining_s(0, 0.4) == 2
    assert censored.remaining_s(0, 0.4) == 4


def test_equal_times_that_have_passed_do_not_count_as_longer():
    assert Durations.of([10, 10, 10, 12, 14, 16]).num_longer(10) == 3
