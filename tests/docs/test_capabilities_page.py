"""docs/capabilities.md names what is there: commands, fields, modules, tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tidecell.cli.main import COMMANDS
from tidecell.client.vocabulary import KEYS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "capabilities.md").read_text()
SIZES = {"A": 10, "B": 13, "C": 17, "D": 13, "E": 12, "F": 14, "G": 10}
ROWS = [[c.strip() for c in m.strip("|").split("|")] for m in re.findall(r"^\| [A-G]\d+ \|.*$", PAGE, re.M)]
MISSING = set(re.findall(r"[A-G]\d+", PAGE.split("of the M rows these are ")[1].split(".")[0]))
FIELDS = {key for keys in KEYS.values() for key in keys}


def test_every_one_of_the_89_rows_is_there_once() -> None:
    wanted = [f"{group}{n}" for group, size in SIZES.items() for n in range(1, size + 1)]
    assert len(wanted) == 89
    assert [row[0] for row in ROWS] == wanted


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_what_a_row_names_exists(row: list[str]) -> None:
    number, need, _, how, module, test = row
    assert need in ("M", "S", "L")
    if how.startswith("not there: "):
        assert need != "M", f"{number} must be there"
        return
    if how.startswith("not there yet: "):
        assert need != "M" or number in MISSING, f"{number} must be there"
        return
    for name in re.findall(r"`tide ([a-z-]+)", how):
        assert name in COMMANDS, f"{number} names `tide {name}`"
    for key in re.findall(r"`([a-z_]+):", how):
        assert key in FIELDS, f"{number} names the field {key}"
    for name in re.findall(r"NAME=(\w+)", how):
        assert (ROOT / "benchmarks" / f"{name}.py").is_file(), f"{number} names benchmark {name}"
    assert (ROOT / "src" / "tidecell" / module.strip("`")).is_file(), f"{number} names {module}"
    assert (ROOT / "tests" / test.strip("`")).is_file(), f"{number} names {test}"
