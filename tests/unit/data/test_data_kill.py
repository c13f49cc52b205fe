"""kill -9 in the middle of `tide data prepare`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tidecell.data import dataset
from tidecell.data.executor import Prepared

COMMAND = [sys.executable, "-m", "tidecell.cli.data", "prepare", "--out", "k"]
ARGS = ["--vocab-size", "400", "--seq-len", "64", "--max-bytes", "3MB"]


def run_until(line_start: str | None, home: Path) -> str:
    """Run a preparation, kill it when stderr has such a line, and return what it said."""
    env = {**os.environ, "TIDECELL_HOME": str(home)}
    process = subprocess.Popen(
        [*COMMAND, *ARGS], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    said = ""
    assert process.stderr is not None
    assert process.stdout is not None
    for line in process.stderr:
        said += line
        if line_start is not None and line.startswith(line_start):
            process.send_signal(signal.SIGKILL)
            break
    said += process.stdout.read() + process.stderr.read()
    process.wait()
    process.stdout.close()
    process.stderr.close()
    return said


def content(directory: Path) -> dict[str, bytes]:
    paths = [p for p in directory.rglob("*") if p.is_file() and p.name != "run.json"]
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in paths}


def test_a_preparation_killed_again_and_again_ends_in_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "ready in" in run_until(None, tmp_path / "whole")
    for stage in ("scan", "read, clean, filter", "deduplicate", "train tokenizer", "tokenize, pack"):
        run_until(stage, tmp_path / "torn")
        assert not list((tmp_path / "torn" / "data" / "k").glob("[0-9a-f]*/manifest.json"))
    assert "ready in" in run_until(None, tmp_path / "torn")
    results = []
    for home in ("whole", "torn"):
        monkeypatch.setenv("TIDECELL_HOME", str(tmp_path / home))
        results.append(content(dataset.resolve("k")))
        assert list(dataset.problems(dataset.resolve("k"))) == []
        assert not list((tmp_path / home / "data" / "k").glob(".work-*"))
    assert results[0] == results[1]


def test_workers_end_when_their_parent_is_killed(prepared: Prepared, tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "import multiprocessing\n"
        "from tidecell.data.executor import _begin_worker\n"
        "import os\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    pool = ProcessPoolExecutor(1, context, initializer=_begin_worker)\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    time.sleep(60)\n"
    )
    path = tmp_path / "parent.py"
    path.write_text(script)
    with subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
    deadline_s = time.monotonic() + 10
    while _is_running(worker):
        assert time.monotonic() < deadline_s, "the worker outlived its parent"
        time.sleep(0.02)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
