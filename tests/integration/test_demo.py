"""The whole demo on real processes: slow, so part of `make test-all`; its parts are tested everywhere."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tidecell.cli.demo_tide import TideResult, leave_times
from tidecell.client.views import EventView


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_demo_ends_with_three_zeros_and_a_second_one_reuses_what_is_done(stopped_cell) -> None:
    first = stopped_cell.tide("demo", timeout_s=600)
    assert "0 failed requests, 0 lost steps, 0 differing digests" in first.stdout
    assert (stopped_cell.home / "demo" / "tide.png").stat().st_size > 20_000
    began_s = time.monotonic()
    second = stopped_cell.tide("demo", timeout_s=600)
    assert "done by an earlier demo and kept" in second.stderr
    assert "0 failed requests, 0 lost steps, 0 differing digests" in second.stdout
    assert time.monotonic() - began_s < 300


def test_interrupted_demo_takes_its_cell_down(stopped_cell, wait_until) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "tidecell.cli.main", "demo"],
        env=stopped_cell.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    pid_file = stopped_cell.home / "demo" / "control" / "pid"
    wait_until(pid_file.exists, timeout_s=30)
    pid = int(pid_file.read_text())
    demo_said = []
    for line in demo.stdout or []:
        demo_said.append(line)
        if "tide data prepare" in line:
            break
    # Ctrl-C reaches the whole foreground group, as a terminal sends it.
    signal_group(demo.pid)
    rest, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130, "".join(demo_said) + rest
    wait_until(lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid), timeout_s=20)


def signal_group(pid: int) -> None:
    """Send SIGINT to a process group."""
    import os

    os.killpg(pid, signal.SIGINT)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def _write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines))


def test_result_counts_lost_steps_and_differing_digests(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    _write(mine / "metrics.jsonl", '{"step":1}', '{"step":2}', '{"step":2}', '{"step":3}', '{"step":4}')
    _write(mine / "digests.jsonl", '{"step":2,"digest":"a"}', '{"step":4,"digest":"x"}')
    _write(
        other / "digests.jsonl",
        '{"step":2,"digest":"a"}',
        '{"step":4,"digest":"b"}',
        '{"step":6,"digest":"c"}',
    )
    result = TideResult(0.0, grown=True, give_s=[0.1])
    result.compare(mine, other)
    assert (result.steps, result.lost_steps) == (4, 1)
    assert (result.compared, result.differing) == (2, 1)
    assert not result.good


def test_result_is_good_only_if_there_was_a_tide(tmp_path: Path) -> None:
    result = TideResult(0.0, compared=3)
    assert not result.good
    result.grown, result.give_s = True, [0.2]
    assert result.good
    result.errors.append("ConnectionError")
    assert not result.good


def test_leave_times_pair_the_order_with_the_end_of_that_very_start() -> None:
    def event(at_s: float, kind: str, epoch: int, by: str = "") -> EventView:
        return EventView(
            1, at_s, kind, "t.1", "", {"ref": {"uid": "t.1", "index": 1, "epoch": epoch}, "by": by}
        )

    events = [
        event(1.0, "TaskNoticed", 5, "chat"),
        event(1.5, "TaskEnded", 4),
        event(1.75, "TaskEnded", 5),
        event(3.0, "TaskNoticed", 9),  # not preempted: told to leave by its owner
        event(3.5, "TaskEnded", 9),
    ]
    assert leave_times(events) == [0.75]
