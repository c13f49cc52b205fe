"""`tide doctor`: is this machine fit, and is the cell well? Exit status 1 if something must be mended."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
from rich.text import Text

from tidecell.cell.journal import find_damage
from tidecell.cli.show import journal_text, out, print_json
from tidecell.client.client import Client
from tidecell.client.home import Home
from tidecell.engines import isolation
from tidecell.engines.discover import discover_machine
from tidecell.structs.errors import TidecellError

LOW_DISK_BYTES = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    good: bool
    text: str
    hint: str = ""


def _machine() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", sys.version_info >= (3, 11), version, "Python 3.11 or newer is needed")
    machine = discover_machine()
    yield Finding("machine", True, machine.capacity.describe())
    if machine.accelerators:
        yield Finding("gpu sharing", True, machine.sharing)
    level = isolation.detect("doctor")
    if level.tree is not None:
        isolation.remove_group(level.tree)
    yield Finding("isolation", True, level.word)
    extras = {"torch": "ai", "tokenizers": "data", "openai": "demo", "matplotlib": "demo"}
    missing = sorted({extra for module, extra in extras.items() if importlib.util.find_spec(module) is None})
    text = "all there" if not missing else f"not installed: {', '.join(missing)}"
    yield Finding("extras", True, text, f"pip install 'tidecell[{','.join(missing)}]'" if missing else "")


def _home(home: Home) -> Iterator[Finding]:
    if not home.path.exists():
        yield Finding("home", True, f"{home.path} (not made yet)", "tide up makes it")
        return
    writable = os.access(home.path, os.W_OK)
    yield Finding("home", writable, str(home.path), "it must be yours to write")
    free = shutil.disk_usage(home.path).free
    yield Finding(
        "disk", free > LOW_DISK_BYTES, f"{free / 1e9:.1f} GB free", "free some space, at least 1 GB"
    )
    mode = home.token_path.stat().st_mode & 0o077 if home.token_path.exists() else 0
    yield Finding(
        "token", mode == 0, "private" if mode == 0 else "others can read it", f"chmod 600 {home.token_path}"
    )
    yield _journal(home / "journal.db")
    aside = [p.name for p in home.path.glob("journal.db.*-*") if not p.name.endswith(("-wal", "-shm"))]
    if aside:
        yield Finding("journal tails", True, f"moved aside earlier: {', '.join(sorted(aside))}")


def _hook(home: Home) -> Iterator[Finding]:
    from tidecell.server.admission import look_at_hook

    found = look_at_hook(home.path)
    if found is not None:
        text = (
            f"{found.path.name}: {found.error}"
            if found.error
            else f"{found.path.name} is asked about every job"
        )
        yield Finding("admission", not found.error, text, "until it is mended, no job is admitted")


def _journal(path: Path) -> Finding:
    """Ask SQLite alone: opening it as a journal would repair what is damaged."""
    if not path.exists():
        return Finding("journal", True, "none yet")
    try:
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        with db:
            verdict = str(db.execute("PRAGMA quick_check").fetchone()[0])
            count = int(db.execute("SELECT count(*) FROM events").fetchone()[0])
        db.close()
        verdict = find_damage(path) or verdict if verdict == "ok" else verdict
    except sqlite3.Error as error:
        return Finding("journal", False, str(error), "the next tide up moves what is damaged aside")
    return Finding("journal", verdict == "ok", f"{count} events, {verdict}", "the next tide up repairs it")


def _cell(home: Home) -> Iterator[Finding]:
    try:
        with Client.from_home(home) as client:
            cell = client.cell()
    except TidecellError as error:
        yield Finding("cell", True, error.message, error.hint)
        return
    yield Finding("control plane", True, f"epoch {cell.epoch}, {journal_text(cell)}")
    yield Finding("agent", cell.agent_up, "attached" if cell.agent_up else "away", "tide up starts it again")
    yield Finding(
        "router", cell.router_up, cell.router_url if cell.router_up else "away", "see log/router.log"
    )


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def doctor(as_json: bool) -> None:
    """Check this machine and the cell."""
    home = Home()
    findings = [*_machine(), *_home(home), *_hook(home), *_cell(home)]
    if as_json:
        print_json(findings)
    else:
        for f in findings:
            mark = Text("ok  ", style="green") if f.good else Text("BAD ", style="red")
            hint = f"   hint: {f.hint}" if f.hint and (not f.good or f.name in ("extras", "cell")) else ""
            out.print(mark, f"{f.name:<14} {f.text}{hint}")
    if not all(f.good for f in findings):
        raise click.exceptions.Exit(1)
