"""Machine code that is kept on disk is that of the source as it is now, callees and constants included."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

from tidecell.scheduler import compiled as compiling
from tidecell.scheduler.compiled import can_compile, compiled, digest

CALLER = "from tidecell.scheduler.probe_callee import price\n\n\ndef total(n):\n    return n * price(n)\n"


def _load(name: str, path: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    if not path.exists() or path.read_text() != source:
        path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(source, str(path), "exec"), module.__dict__)  # never an older .pyc
    return module


def _total(tmp_path: Path, callee: str, monkeypatch: pytest.MonkeyPatch) -> FunctionType:
    """Return the caller, whose file stays the same, over a callee of this source."""
    _load("tidecell.scheduler.probe_callee", tmp_path / "probe_callee.py", callee, monkeypatch)
    function = _load("tidecell.scheduler.probe", tmp_path / "probe.py", CALLER, monkeypatch).total
    assert isinstance(function, FunctionType)
    return function


@pytest.mark.skipif(not can_compile(), reason="numba is not installed (pip install 'tidecell[scale]')")
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("def price(n):\n    return 2\n", "def price(n):\n    return 3\n"),
        ("EACH = 2\n\n\ndef price(n):\n    return EACH\n", "EACH = 3\n\n\ndef price(n):\n    return EACH\n"),
    ],
    ids=["code", "constant"],
)
def test_machine_code_on_disk_is_not_used_after_a_callee_changed(
    tmp_path: Path, before: str, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path / "kept"))
    for source, expected in ((before, 14), (after, 21), (before, 14)):
        compiling._twin.cache_clear()
        total = compiled(_total(tmp_path, source, monkeypatch))
        assert total(7) == expected
    assert len(list((tmp_path / "kept").rglob("*total*.nbi"))) == 2  # the third was found again


@pytest.mark.skipif(not can_compile(), reason="numba is not installed (pip install 'tidecell[scale]')")
def test_kernels_compile_where_no_folder_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    compiling._twin.cache_clear()
    total = compiled(_total(tmp_path, "def price(n):\n    return 5\n", monkeypatch))
    assert total(7) == 35


def test_a_digest_is_of_what_a_function_does_not_of_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = digest(_total(tmp_path, "def price(n):\n    return 2\n", monkeypatch))
    assert one == digest(_total(tmp_path, "\n\ndef price(n):\n    return 2\n", monkeypatch))
    assert one != digest(_total(tmp_path, "def price(n):\n    return 4\n", monkeypatch))
