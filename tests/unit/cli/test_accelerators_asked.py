"""How many accelerators a worker or a replica gets by default."""

from __future__ import annotations

import pytest

from tidecell.cli import gpus
from tidecell.client.units import UnitError
from tidecell.structs.resources import Resources


class FakeMachine:
    def __init__(self, millis: int) -> None:
        self.capacity = Resources(8000, 0, millis)


class FakeClient:
    """A cell of one machine without accelerators and perhaps one with."""

    def __init__(self, *millis: int) -> None:
        self.millis = millis

    def from_home(self) -> FakeClient:
        return self

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def machines(self) -> list[FakeMachine]:
        return [FakeMachine(m) for m in self.millis]


@pytest.mark.parametrize(("cell", "expected"), [((0, 4000), ("", 1000)), ((0, 0), ("", 0)), ((), ("", 0))])
def test_auto_is_one_where_the_cell_has_any(monkeypatch, cell, expected):
    monkeypatch.setattr(gpus, "Client", FakeClient(*cell))
    assert gpus.accelerators("auto") == expected


def test_what_is_typed_counts_and_no_cell_is_asked():
    assert gpus.accelerators("H100:2") == ("H100", 2000)
    assert gpus.accelerators("0.5") == ("", 500)
    assert gpus.accelerators("0") == gpus.accelerators("") == ("", 0)
    with pytest.raises(UnitError):
        gpus.accelerators("-1")
