"""The README's commands run, and what it names is there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import yaml

from tidecell.cli.main import COMMANDS
from tidecell.client.schema import parse_specs

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def test_first_commands_are_make_demo_and_make_test() -> None:
    first = _blocks("sh")[0].split("\n")
    assert first[0].startswith("make demo")
    assert first[1].startswith("make test")


def test_five_minutes_with_a_cell_run_as_written(cell) -> None:
    lines = [line.split("#")[0].strip() for line in _blocks("sh")[1].splitlines()]
    commands = [line for line in lines if line.startswith("tide ")]
    assert len(commands) == 4
    script = "\n".join(c.replace("tide ", "python -m tidecell.cli.main ", 1) for c in commands)
    done = subprocess.run(
        ["sh", "-ec", script], env={**cell.env, "PATH": _path()}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "hello\n" in done.stdout


def _path() -> str:
    import os
    import sys

    return f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def test_the_spec_shown_is_accepted(tmp_path: Path) -> None:
    text = _blocks("yaml")[0]
    assert len(list(yaml.safe_load_all(text))) == 2
    names = [spec.name for spec in parse_specs(text, "README.md", tmp_path)]
    assert names == ["train", "web"]


def test_every_command_named_exists_and_every_command_is_named() -> None:
    named = set(re.findall(r"`tide ([a-z-]+)", README))
    named |= set(re.findall(r"^tide ([a-z]+)", README, flags=re.M))
    for cell_text in re.findall(r"\| (`tide [^|]+) \|", README):
        named |= set(re.findall(r"`([a-z]+)`", cell_text))
    missing = {"join", "sim", "plan-capacity"}  # named among the limits
    assert named - missing <= set(COMMANDS) | {"ls", "show", "inspect", "verify"}


def test_every_file_linked_exists() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
