"""`tide run`: a command as a job, followed as if it ran here."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tidecell.client.client import Client
from tidecell.structs.job import JobSpec, TaskState
from tidecell.structs.resources import Resources


def test_exit_status_and_both_streams_come_through(cell) -> None:
    done = cell.tide("run", "--", "sh", "-c", "echo out; echo err >&2; exit 3", check=False)
    assert done.returncode == 3
    assert done.stdout == "out\n"
    assert "err\n" in done.stderr
    assert "FAILED: exit code 3" in done.stderr


def test_success_says_nothing_of_its_own(cell) -> None:
    done = cell.tide("run", "--", "echo", "hello")
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")


def test_it_runs_where_it_was_typed_with_the_environment_given(cell, short_tmp: Path) -> None:
    script = 'echo "$PWD|$A|$TIDECELL_JOB|$TIDECELL_INDEX"'
    done = cell.tide(
        "run", "--name", "w", "--workdir", str(short_tmp), "--env", "A=1 2", "--", "sh", "-c", script
    )
    assert done.stdout == f"{short_tmp}|1 2|w|0\n"


def test_a_program_that_does_not_exist_is_named(cell) -> None:
    done = cell.tide("run", "--", "no-such-program-at-all", check=False)
    assert done.returncode != 0
    assert "'no-such-program-at-all' cannot be run: No such file or directory" in done.stderr


def test_more_than_the_machine_has_is_refused_with_a_fix_that_works(cell) -> None:
    done = cell.tide("run", "--cpu", "64", "--", "true", check=False)
    assert done.returncode == 1
    assert "asks for 64 cpu per replica; machine 'm', which comes closest, has 2 cpu" in done.stderr
    assert "hint: set resources.cpu to 2" in done.stderr
    assert cell.tide("run", "--cpu", "2", "--", "true").returncode == 0


def test_without_a_cell_it_says_how_to_start_one(stopped_cell) -> None:
    done = stopped_cell.tide("run", "--", "true", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no cell lives in ")
    assert "hint: start one: tide up" in done.stderr


def test_ctrl_c_stops_the_job(cell, client: Client, wait_until: Callable[..., None]) -> None:
    follower = subprocess.Popen(
        [sys.executable, "-m", "tidecell.cli.main", "run", "--name", "long", "--", "sleep", "600"],
        env=cell.env,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: any(j.state is TaskState.RUNNING for j in client.jobs()))
    follower.send_signal(signal.SIGINT)
    _, errors = follower.communicate(timeout=20)
    assert follower.returncode == 130
    assert client.job("long").state is TaskState.CANCELLED
    assert "stopping long" in errors


def test_detached_job_can_be_followed_later(cell) -> None:
    printed = cell.tide("run", "-d", "--name", "later", "--", "sh", "-c", "echo first; echo second")
    assert "tide logs -f later" in printed.stdout
    assert cell.tide("logs", "-f", "later").stdout == "first\nsecond\n"
    assert cell.tide("logs", "--tail", "1", "later").stdout == "second\n"


def test_a_task_that_ignores_sigterm_is_killed_after_its_grace_period(
    cell, client: Client, wait_until: Callable[..., None]
) -> None:
    script = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
    client.submit(JobSpec("deaf", argv=("sh", "-c", script), grace_period_s=0.5))
    wait_until(lambda: any("ready" in line.text for line in client.logs("deaf")))
    began_s = time.monotonic()
    client.stop("deaf")
    assert client.wait("deaf").state is TaskState.CANCELLED
    assert 0.4 < time.monotonic() - began_s < 10.0


def test_memory_above_the_limit_ends_the_task_and_says_so(cell, client: Client) -> None:
    hog = "import time; x = bytearray(200 << 20); time.sleep(60)"
    spec = JobSpec("hog", argv=(sys.executable, "-c", hog), resources=Resources(500, 64 << 20))
    client.submit(spec)
    job = client.wait("hog", timeout_s=30)
    assert job.state is TaskState.FAILED
    assert job.message == "killed: more memory than its limit"


def test_a_retried_failure_counts_attempts_and_may_succeed(cell, short_tmp: Path) -> None:
    script = 'test "$TIDECELL_ATTEMPT" = 3'
    done = cell.tide("run", "--retries", "3", "--name", "third", "--", "sh", "-c", script)
    assert done.returncode == 0
    status = cell.tide("status", "third").stdout
    assert "SUCCEEDED" in status


def test_max_duration_ends_a_job_as_timeout(cell) -> None:
    done = cell.tide("run", "--max-duration", "1s", "--grace-period", "1s", "--", "sleep", "60", check=False)
    assert done.returncode == 124
    assert "TIMEOUT: ran longer than 1 s" in done.stderr


def test_low_bands_die_first_when_the_machine_runs_out_of_memory(cell) -> None:
    def score(*args: str) -> int:
        return int(cell.tide("run", *args, "--", "cat", "/proc/self/oom_score_adj").stdout)

    spare = score("--priority", "best-effort", "--memory", "64MiB")
    batch = score("--memory", "64MiB")
    assert spare > batch > score("--priority", "production", "--memory", "64MiB") > 0
    assert score() > batch  # it reserved nothing: whatever it uses is more than its share
