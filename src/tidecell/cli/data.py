"""``tide data``: prepare, list, show, inspect and verify datasets.

Heavy imports wait until a command needs them, so that ``tide --help`` answers at once.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from tidecell.structs.errors import DataError, TidecellError

if TYPE_CHECKING:
    from tidecell.data.dataset import Manifest
    from tidecell.data.executor import Prepared
    from tidecell.data.executor import Progress as Watcher

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_NEEDS_EXTRA = "install it with: pip install 'tidecell[data]'"


class Bytes(click.ParamType[int]):
    """A number of bytes, such as 5000000, 5MB or 4MiB."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes that ``value`` spells."""
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is no number of bytes; 5000000, 5MB and 4MiB are", param, ctx)
        number, prefix, binary = match.groups()
        base = 1024 if binary else 1000
        return int(float(number) * base ** " kmgt".index(prefix.lower() or " "))


@click.group("data")
def data() -> None:
    """Prepare text for training, and look at what was prepared."""


@data.command()
@click.argument("sources", nargs=-1, metavar="[SOURCE]...")
@click.option("--out", "name", metavar="NAME", help="Name of the dataset. Default: the first source's.")
@click.option("--vocab-size", type=int, help="Size of the vocabulary. Default: 2048.")
@click.option("--seq-len", type=int, help="Inputs per row that packing is reported for. Default: 256.")
@click.option("--max-bytes", type=Bytes(), help="Read no more than this, a fair sample of files: 5MB, 4MiB.")
@click.option("--validation", type=float, help="Share of documents kept for validation. Default: 0.05.")
@click.option("--seed", type=int, default=0, show_default=True, help="Chooses the sample and the split.")
@click.option("--no-instructions", is_flag=True, help="Make no instruction pairs from Python functions.")
@click.option("--no-near-dedup", is_flag=True, help="Leave near duplicates in.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def prepare(
    sources: tuple[str, ...],
    name: str | None,
    vocab_size: int | None,
    seq_len: int | None,
    max_bytes: int | None,
    validation: float | None,
    seed: int,
    no_instructions: bool,
    no_near_dedup: bool,
    as_json: bool,
) -> None:
    """Turn text into a dataset: clean, filter, deduplicate, tokenise, pack.

    SOURCE is a directory, a file (.py .txt .md .jsonl .jsonl.gz) or a glob in quotes. Without one, the source
    of this Python's own library is used: 12 MB of code and prose that is on every machine.
    """
    _need_data_extra()
    from tidecell.data.executor import prepare as run
    from tidecell.data.pipeline import Recipe

    given: dict[str, Any] = {
        "vocab_size": vocab_size,
        "seq_len": seq_len,
        "max_bytes": max_bytes,
        "validation_share": validation,
    }
    chosen: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if no_instructions:
        chosen["instructions"] = None
    if no_near_dedup:
        chosen["dedup"] = None
    recipe = Recipe(seed=seed, **chosen)
    with _Bars() as bars:
        try:
            done = run(sources, name or _default_name(sources), recipe, bars)
        except KeyboardInterrupt:
            stopped = DataError("stopped before the end", "the same command goes on from here")
            stopped.exit_code = 130  # as a shell reports Ctrl-C
            raise stopped from None
    if as_json:
        click.echo(_json(_summary(done)))
    else:
        _print_summary(done)


@data.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_datasets(as_json: bool) -> None:
    """List datasets and their versions."""
    _need_data_extra()
    rows = _rows()
    if as_json:
        click.echo(_json(rows))
        return
    if not rows:
        click.echo("no datasets yet; make one with: tide data prepare")
        return
    table = Table("name", "version", "", box=None, pad_edge=False, header_style="bold")
    for column in ("documents", "tokens", "pairs", "vocabulary", "size", "made"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row["name"],
            row["version"],
            "latest" if row["latest"] else "",
            f"{row['documents']:,}",
            f"{row['tokens']:,}",
            f"{row['sft_pairs']:,}",
            f"{row['vocab_size']:,}",
            _size(row["bytes"]),
            _ago(row["created_unix_s"]),
        )
    _console().print(table)


@data.command()
@click.argument("reference", metavar="NAME")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def show(reference: str, as_json: bool) -> None:
    """Show what a dataset is and where it came from. NAME is a name, name@version or a path."""
    _need_data_extra()
    from tidecell.data.dataset import canonical_json, load_manifest, resolve

    directory = resolve(reference)
    manifest = load_manifest(directory)
    if as_json:
        click.echo(_json({"path": str(directory), **json.loads(canonical_json(manifest))}))
        return
    console = _console()
    console.print(_facts(manifest, directory))
    console.print()
    console.print(_steps(manifest))
    _print_drops(console, manifest)
    if manifest.instructions:
        skipped = ", ".join(f"{n:,} {reason}" for reason, n in manifest.instructions.items())
        console.print(f"\n[bold]functions without a pair[/]  {skipped}")
    console.print(f"\n[bold]recipe[/]  {canonical_json(manifest.lineage.recipe).decode()}", soft_wrap=True)


@data.command()
@click.argument("reference", metavar="NAME")
@click.option("--reason", help="Only documents dropped for this reason, such as NearDuplicate.")
@click.option("--limit", type=click.IntRange(min=0), default=20, help="At most so many, 20; 0: all.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(reference: str, reason: str | None, limit: int, as_json: bool) -> None:
    """Show documents that were dropped, and why."""
    _need_data_extra()
    from tidecell.data.dataset import load_drops, resolve
    from tidecell.data.document import REASON_MEANING, DropReason

    wanted = _reason(reason)
    found = [d for d in load_drops(resolve(reference)) if wanted in (None, d.reason)]
    shown = found[:limit] if limit else found
    if as_json:
        click.echo(_json([{name: getattr(d, name) for name in d.__struct_fields__} for d in shown]))
        return
    console = _console()
    for drop in shown:
        console.print(f"[bold]{drop.reason}[/]  {_escape(drop.document_id)}  [dim]{_escape(drop.detail)}[/]")
        if drop.sample:
            console.print(f"    [dim]{_escape(' '.join(drop.sample.split())[:90])}[/]")
    for token in sorted({d.reason for d in shown}):
        console.print(f"\n{token}: {REASON_MEANING[DropReason(token)]}")
    console.print(f"\n{len(shown)} of {len(found)} dropped documents" + (f" ({wanted})" if wanted else ""))


@data.command()
@click.argument("reference", metavar="NAME")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(reference: str, as_json: bool) -> None:
    """Check every file of a dataset against its checksum."""
    _need_data_extra()
    from tidecell.data.dataset import load_manifest, problems, resolve

    directory = resolve(reference)
    manifest = load_manifest(directory)
    found = list(problems(directory))
    if as_json:
        click.echo(_json({"path": str(directory), "version": manifest.version, "problems": found}))
    if found:
        raise DataError(
            f"{directory} is damaged: {'; '.join(found)}",
            "delete that directory and run the same `tide data prepare` again; it gives the same version",
        )
    if not as_json:
        size = _size(sum(f.num_bytes for f in manifest.files))
        click.echo(f"{directory}: version {manifest.version} is intact ({len(manifest.files)} files, {size})")


class _Bars:
    """Progress on stderr: bars on a terminal, else a line per finished stage."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        columns = (SpinnerColumn(), TextColumn("{task.description:<22}"), BarColumn(28), TimeElapsedColumn())
        self._bars: Progress | None = None
        if self._console.is_terminal:
            self._bars = Progress(*columns, TextColumn("[dim]{task.fields[note]}"), console=self._console)
        self._task = TaskID(0)
        self._stage = ""
        self._total = 1
        self._began_s = 0.0

    def __enter__(self) -> _Bars:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def start(self, stage: str, total: int) -> None:
        """Begin a bar."""
        self._stage, self._total, self._began_s = stage, max(total, 1), time.monotonic()
        if self._bars is not None:
            self._task = self._bars.add_task(stage, total=self._total, note="")

    def advance(self, amount: int) -> None:
        """Move the bar."""
        if self._bars is not None:
            self._bars.advance(self._task, amount)

    def finish(self, note: str) -> None:
        """Fill the bar, or write the line."""
        if self._bars is not None:
            self._bars.update(self._task, completed=self._total, note=note)
        else:
            took_s = time.monotonic() - self._began_s
            click.echo(f"{self._stage:<22} {took_s:6.2f} s  {note}".rstrip(), err=True)


if TYPE_CHECKING:
    _watcher: Watcher = _Bars()


def _need_data_extra() -> None:
    """Refuse with a hint where numpy or tokenizers are not installed."""
    try:
        import numpy  # noqa: F401
        import tokenizers  # noqa: F401
    except ImportError as error:
        raise TidecellError(f"datasets need the package {error.name}", _NEEDS_EXTRA) from error


def _default_name(sources: Sequence[str]) -> str:
    """Return the name of the first source as a dataset may be called, or ``stdlib``."""
    if not sources:
        return "stdlib"
    path = Path(sources[0]).expanduser()
    plain = [part for part in (path.resolve() if path.exists() else path).parts if not set("*?[") & set(part)]
    base = Path(plain[-1]).name.split(".")[0] if plain else ""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", base).strip("-._") or "dataset"


def _reason(given: str | None) -> str | None:
    """Return the reason that ``given`` spells in whatever case."""
    from tidecell.data.document import DropReason

    if given is None:
        return None
    for reason in DropReason:
        if reason.lower() == given.lower():
            return str(reason)
    raise DataError(f"no reason {given!r}", f"reasons are {', '.join(DropReason)}")


def _summary(done: Prepared) -> dict[str, Any]:
    manifest = done.manifest
    splits = manifest.splits.values()
    return {
        "name": done.directory.parent.name,
        "version": manifest.version,
        "path": str(done.directory),
        "reused": done.reused,
        "wall_s": round(done.wall_s, 3),
        "documents_in": manifest.steps[0].num_in,
        "documents_out": sum(s.num_documents for s in splits),
        "drops": {str(reason): count for reason, count in manifest.drops.items()},
        "tokens": {name: s.num_tokens for name, s in manifest.splits.items()},
        "chars_per_token": {name: s.chars_per_token for name, s in manifest.splits.items()},
        "sft_pairs": {name: s.num_sft_pairs for name, s in manifest.splits.items()},
        "vocab_size": manifest.tokenizer.vocab_size,
    }


def _print_summary(done: Prepared) -> None:
    console = _console()
    console.print()
    console.print(_facts(done.manifest, done.directory))
    _print_drops(console, done.manifest)
    name = done.directory.parent.name
    if done.reused:
        console.print(f"\n[bold green]nothing to do[/]: this version was there already ({done.wall_s:.1f} s)")
    else:
        console.print(f"\n[bold green]ready[/] in {done.wall_s:.1f} s")
    console.print(f"next: [bold]tide data inspect {name}[/] shows what was dropped; ", end="")
    console.print(f"[bold]tide train {name}[/] trains on the rest")


def _facts(manifest: Manifest, directory: Path) -> Table:
    """Return the facts of a dataset as a table of names and values."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    train, validation = manifest.splits["train"], manifest.splits["validation"]
    num_out = train.num_documents + validation.num_documents
    sources = [f"{s.name} ({s.num_files:,} files, {_size(s.num_bytes)})" for s in manifest.lineage.sources]
    packing = train.packing
    rows = {
        "dataset": f"{directory.parent.name}@{manifest.version}",
        "from": _escape(", ".join(sources)),
        "documents": f"{manifest.steps[0].num_in:,} in, {num_out:,} kept: {train.num_documents:,} train, "
        f"{validation.num_documents:,} validation",
        "tokens": f"{train.num_tokens:,} train, {validation.num_tokens:,} validation; "
        f"vocabulary {manifest.tokenizer.vocab_size:,}",
        "chars per token": f"{train.chars_per_token:.3f} train, {validation.chars_per_token:.3f} validation",
        "rows": f"{packing.num_rows:,} of {packing.row_tokens - 1} inputs; "
        f"padding {packing.padding_share:.3%}, {packing.num_documents_cut:,} documents cut",
        "instruction pairs": f"{train.num_sft_pairs:,} train, {validation.num_sft_pairs:,} validation",
        "size": f"{_size(sum(f.num_bytes for f in manifest.files))} in {len(manifest.files)} files, "
        f"{len(train.shards)} shards a split",
        "path": _escape(str(directory)),
    }
    for key, value in rows.items():
        table.add_row(key, value)
    return table


def _steps(manifest: Manifest) -> Table:
    table = Table("step", box=None, pad_edge=False, header_style="bold")
    for column in ("in", "out", "dropped"):
        table.add_column(column, justify="right")
    for step in manifest.steps:
        table.add_row(step.step, f"{step.num_in:,}", f"{step.num_out:,}", f"{step.num_in - step.num_out:,}")
    return table


def _print_drops(console: Console, manifest: Manifest) -> None:
    from tidecell.data.document import REASON_MEANING

    if not manifest.drops:
        return
    table = Table("dropped", box=None, pad_edge=False, header_style="bold")
    table.add_column("", justify="right")
    table.add_column("", style="dim")
    for reason, count in sorted(manifest.drops.items(), key=lambda item: -item[1]):
        table.add_row(reason, f"{count:,}", REASON_MEANING[reason])
    console.print()
    console.print(table)


def _rows() -> list[dict[str, Any]]:
    from tidecell.data.dataset import data_dir, dataset_names, load_manifest, load_run, resolve, versions

    rows: list[dict[str, Any]] = []
    for name in dataset_names():
        latest = resolve(name).name if (data_dir() / name / "latest").exists() else ""
        for version in versions(name):
            directory = data_dir() / name / version
            manifest, run = load_manifest(directory), load_run(directory)
            splits = manifest.splits.values()
            rows.append(
                {
                    "name": name,
                    "version": version,
                    "latest": version == latest,
                    "path": str(directory),
                    "documents": sum(s.num_documents for s in splits),
                    "tokens": sum(s.num_tokens for s in splits),
                    "sft_pairs": sum(s.num_sft_pairs for s in splits),
                    "vocab_size": manifest.tokenizer.vocab_size,
                    "bytes": sum(f.num_bytes for f in manifest.files),
                    "created_unix_s": run.created_unix_s if run else None,
                }
            )
    return rows


def _console() -> Console:
    # Piped output is not cut at a terminal's width: tables must survive grep.
    return Console(highlight=False, width=None if sys.stdout.isatty() else 200)


def _escape(text: str) -> str:
    """Return text that rich prints as it is: brackets are no markup, control characters do nothing."""
    from rich.markup import escape

    return escape("".join(c if c.isprintable() else "\ufffd" for c in text))


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _size(num_bytes: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes} B"


def _ago(unix_s: float | None) -> str:
    if unix_s is None:
        return "?"
    age_s = max(0.0, time.time() - unix_s)
    for unit, scale in (("d", 86400.0), ("h", 3600.0), ("m", 60.0)):
        if age_s >= scale:
            return f"{int(age_s // scale)}{unit} ago"
    return f"{int(age_s)}s ago"


def main(args: Sequence[str] | None = None) -> None:
    """Run ``tide data`` on its own, as ``python -m tidecell.cli.data``."""
    try:
        data.main(args=list(args) if args is not None else None, prog_name="tide data", standalone_mode=True)
    except TidecellError as error:
        click.echo(error.render(), err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
