"""docs/spec.md and the parser know the same keys, and its example is a spec."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tidecell.client.schema import KEYS, NOT_YET, parse_data, parse_specs
from tidecell.structs.errors import SpecError
from tidecell.structs.job import Checkpoint, JobSpec, Probes, Retry, Scaling

PAGE = Path(__file__).parents[2] / "docs" / "spec.md"


def tables() -> dict[str, dict[str, list[str]]]:
    """Section -> key -> cells of its row."""
    found: dict[str, dict[str, list[str]]] = {}
    section = ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            section = line[3:].strip()
        elif match := re.match(r"\| `(\w+)` \|", line):
            cells = [c.strip() for c in line.strip("|").split(" | ")]
            found.setdefault("" if section == "Top level" else section, {})[match[1]] = cells
    return found


def test_every_key_of_the_parser_is_documented_and_vice_versa():
    assert {level: sorted(keys) for level, keys in tables().items()} == {
        level: sorted(keys) for level, keys in KEYS.items()
    }


def test_every_row_has_meaning_default_and_example():
    for level, rows in tables().items():
        for key, cells in rows.items():
            assert len(cells) == 4, f"{level}.{key}"
            assert all(cells), f"{level}.{key}"


def test_documented_defaults_are_the_real_ones():
    rows = tables()
    assert rows["checkpoint"]["every"][2] == "`5m`"
    assert Checkpoint("").every_s == 300
    assert rows["retry"]["on"][2] == f"`[{', '.join(Retry().on)}]`"
    assert rows["retry"]["max"][2] == f"`{Retry().max}`"
    assert rows["probes"]["every"][2] == f"`{Probes().every_s:g}s`"
    assert rows["probes"]["failures"][2] == f"`{Probes().failures}`"
    assert rows["scaling"]["target"][2] == f"`{Scaling().target:g}`"
    assert rows["scaling"]["metric"][2] == f"`{Scaling().metric}`"
    assert rows["scaling"]["up_delay"][2] == f"`{Scaling().up_delay_s:g}s`"
    assert rows["scaling"]["down_delay"][2] == f"`{Scaling().down_delay_s / 60:g}m`"
    assert rows[""]["grace_period"][2] == f"`{JobSpec('x').grace_period_s:g}s`"


def test_the_example_is_a_spec(tmp_path: Path):
    example = re.search(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert example is not None
    assert [s.name for s in parse_specs(example[1], "docs/spec.md", tmp_path)] == ["train-7b", "chat"]


@pytest.mark.parametrize("word", NOT_YET)
def test_words_that_are_not_supported_are_named_and_refused(word: str, tmp_path: Path):
    assert f"`{word}`" in PAGE.read_text().replace("`resources.any_of`", "`any_of`")
    with pytest.raises(SpecError) as caught:
        parse_data({"name": "a", "run": "true", word: {}}, "x", tmp_path)
    assert [m.message for m in caught.value.mistakes] == ["not supported in this version"]
