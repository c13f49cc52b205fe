"""When a session counts as used: what cannot be measured is no proof of idleness."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tidecell.engines import use
from tidecell.engines.use import Use, cpu_seconds, gpu_use


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float | None]:
    """Seconds that pass and that are spent, as the test says."""
    now: dict[str, float | None] = {"now": 100.0, "spent": 5.0}
    monkeypatch.setattr(use.time, "monotonic", lambda: now["now"])
    monkeypatch.setattr(use, "cpu_seconds", lambda pid: now["spent"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return now


def later(clock: dict[str, float | None], spent: float | None) -> None:
    clock["now"] = (clock["now"] or 0) + 10
    clock["spent"] = spent


def test_little_work_is_idle_and_much_is_use(clock: dict[str, float | None]) -> None:
    used = Use(1)
    assert used.is_used()  # nothing to compare with yet
    later(clock, 5.1)
    assert not used.is_used()
    later(clock, 6.1)
    assert used.is_used()


def test_processes_that_cannot_be_read_count_as_use(clock: dict[str, float | None]) -> None:
    used = Use(1)
    used.is_used()
    later(clock, None)
    assert used.is_used()
    later(clock, 5.0)
    assert used.is_used()  # and the first answer after it has nothing to compare with


@pytest.mark.parametrize(("percent", "expected"), [(0, False), (1, False), (40, True), (None, True)])
def test_accelerators_at_work_or_unknown_count_as_use(
    clock: dict[str, float | None], monkeypatch: pytest.MonkeyPatch, percent: int | None, expected: bool
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    used = Use(1, lambda: percent)
    used.is_used()
    later(clock, 5.0)
    assert used.is_used() is expected


def test_an_accelerator_that_cannot_be_asked_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "no-such-device")
    assert gpu_use() is None


def _process(proc: Path, pid: int, parent: int, ticks: int, ended_ticks: int = 0) -> None:
    """Write what the kernel shows of a process (proc(5)): 52 fields, of which fields 14 to 17 are times."""
    (proc / str(pid)).mkdir()
    before, after = " ".join(["0"] * 9), " ".join(["0"] * 35)
    text = f"{pid} (a ) b) S {parent} {before} {ticks} 0 {ended_ticks} 0 {after}"
    (proc / str(pid) / "stat").write_text(text)


def test_all_descendants_are_counted_and_nobody_else(tmp_path: Path) -> None:
    hertz = os.sysconf("SC_CLK_TCK")
    for pid, parent, seconds in ((1, 0, 100), (10, 1, 2), (11, 10, 3), (12, 11, 4), (20, 1, 50)):
        _process(tmp_path, pid, parent, seconds * hertz, hertz if pid == 12 else 0)
    assert cpu_seconds(10, str(tmp_path)) == 10.0
    assert cpu_seconds(99, str(tmp_path)) is None
    assert cpu_seconds(10, str(tmp_path / "nowhere")) is None
