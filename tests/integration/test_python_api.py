"""Functions as jobs: a script that submits its own functions to a real cell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tidecell.client.client import Client

SCRIPT = """
import dataclasses, os, sys, time
import tidecell
from helper import twice

print("loaded as", __name__)

@dataclasses.dataclass
class Config:
    lr: float

@tidecell.job(cpu=0.2, grace_period="2s")
def train(config, steps=1):
    print("in the task", config.lr)
    return Config(twice(config.lr) * steps)

@tidecell.job(cpu=0.1)
def square(x):
    return x * x

@tidecell.job(cpu=0.1, retry={"on": []})
def broken():
    raise ValueError("no such luck")

@tidecell.job(cpu=0.1, replicas=(1, 2))
def sleeper():
    while tidecell.notice() is None:
        time.sleep(0.05)

if __name__ == "__main__":
    assert square(3) == 9, "called, it runs here"
    run = train.submit(Config(0.5), steps=3)
    print("result", run.result(timeout_s=60).lr, run.state.value)
    print("log", "".join(p.text for p in run.logs()).splitlines())
    print("map", square.map(range(4), parallel=2).result(timeout_s=60))
    try:
        broken.submit().result(timeout_s=60)
    except tidecell.structs.errors.JobFailedError as error:
        print("failed", error, "|", "no such luck" in error.__notes__[0])
    run = sleeper.submit()
    run.wait("started", timeout_s=30)
    run.scale(2)
    run.stop()
    print("stopped", run.wait(timeout_s=30).state.value)
    big = square.options(cpu=1.9, name="big")
    blocker = sleeper.options(cpu=1, replicas=1, name="blocker").submit()
    blocker.wait("started", timeout_s=30)
    print(big.plan())
    waiting = big.submit(2)
    time.sleep(0.5)
    print(waiting.why())
    print(tidecell.why("big").reasons[0].value, [j.name for j in tidecell.jobs()])
    waiting.stop(now=True)
    tidecell.run("blocker").stop(now=True)
    (made,) = tidecell.apply({"name": "plain", "run": "true", "resources": {"cpu": 0.1}})
    print("plain", made.wait(timeout_s=30).state.value)
    try:
        made.result()
    except tidecell.structs.errors.TidecellError as error:
        print("refused", error)
"""


def test_a_script_submits_its_own_functions(cell, client: Client, tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("def twice(x):\n    return 2 * x\n")
    (tmp_path / "job.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "job.py"], cwd=tmp_path, env=cell.env, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "loaded as __main__"
    assert "result 3.0 SUCCEEDED" in lines
    assert "log ['loaded as __mp_main__', 'in the task 0.5']" in lines
    assert "map [0, 1, 4, 9]" in lines
    assert any("FAILED: ValueError: no such luck | True" in line for line in lines)
    assert "stopped CANCELLED" in lines
    assert "WaitingForCapacity ['blocker', 'big']" in lines
    assert "plain SUCCEEDED" in lines
    assert "it would start now if" in done.stdout
    assert any(line.startswith("refused run 'plain.1' is not of a function") for line in lines)


def test_mistakes_show_where_the_decorator_stands() -> None:
    import tidecell
    from tidecell.structs.errors import SpecError

    with pytest.raises(SpecError) as caught:

        @tidecell.job(replcas=2)
        def one() -> None: ...

    assert "did you mean" in caught.value.render()
    with pytest.raises(SpecError) as caught:

        @tidecell.job(gpu="H100:x")
        def two() -> None: ...

    assert "resources.gpu" in caught.value.render()


def test_what_a_task_cannot_import_is_refused_before_it_is_submitted(
    cell, client: Client, monkeypatch
) -> None:
    import tidecell
    from tidecell.structs.errors import TidecellError

    monkeypatch.setenv("TIDECELL_HOME", str(cell.home.path))
    monkeypatch.setitem(sys.modules, "cloudpickle", None)

    @tidecell.job
    def inner() -> None: ...

    with pytest.raises(TidecellError, match="is in no file that a task could import") as caught:
        inner.submit()
    assert "pip install cloudpickle" in caught.value.hint
    assert client.jobs() == []
