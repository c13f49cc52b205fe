"""docs/work-model.md: its files are specs, and its commands run as they are written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tidecell.client.schema import parse_specs

PAGE = (Path(__file__).parents[2] / "docs" / "work-model.md").read_text()
SECTIONS = [part for part in re.split(r"^## ", PAGE, flags=re.M)[1:] if "```sh" in part]
TITLES = [part.partition(":")[0].partition("\n")[0].lower() for part in SECTIONS]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.S)


@pytest.mark.parametrize("text", blocks(PAGE, "yaml"))
def test_every_file_shown_is_a_spec(text: str, tmp_path: Path) -> None:
    assert re.match(r"# [a-z-]+\.yaml\n", text)
    assert parse_specs(text, "docs/work-model.md", tmp_path)


@pytest.mark.parametrize("part", SECTIONS, ids=TITLES)
def test_the_commands_run_as_written(part: str, cell, short_tmp: Path) -> None:
    folder = short_tmp / "page"
    folder.mkdir()
    for language in ("yaml", "python"):
        for text in blocks(part, language):
            (folder / text.split()[1]).write_text(text)
    (folder / "tide").write_text(f'#!/bin/sh\nexec {sys.executable} -m tidecell.cli.main "$@"\n')
    (folder / "tide").chmod(0o755)
    path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    for script in blocks(part, "sh"):
        done = subprocess.run(
            ["sh", "-exc", script],
            env={**cell.env, "PATH": path},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=90,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stdout + done.stderr
