"""Carries out a recipe: shards in processes, decisions once, files that appear whole. I/O.

A preparation works in ``data/<name>/.work-<key>/``, where the key is a hash of its sources, recipe and code:

    shards/00000/     local results of a shard (``reading.read_shard``)
    decisions.json    what the global steps dropped
    out/              the dataset to be; renamed to its version at the end

Whatever is there under its final name is whole and is not made again, so a run that was stopped in any
way, kill -9 included, goes on where it was, to the same bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Protocol

import msgspec
import tokenizers

import tidecell
from tidecell.data import dataset
from tidecell.data.corpus import Corpus, decide
from tidecell.data.dataset import Lineage, Manifest, RunInfo, SourceEntry, TokenizerInfo
from tidecell.data.document import Drop
from tidecell.data.pipeline import (
    SPLITS,
    Recipe,
    StepCount,
    check_recipe,
    count_steps,
    global_steps,
    hash_of,
    local_steps,
)
from tidecell.data.reading import group_files, read_shard
from tidecell.data.shards import replacing, sha256_file
from tidecell.data.sources import Scan, SourceFile, scan
from tidecell.data.tokenizer import TextTokenizer, check_vocab_size
from tidecell.data.writing import train_tokenizer, write_documents, write_pairs, write_tokens
from tidecell.structs.errors import ConflictError, DataError

PIPELINE_REVISION = 1
"""Raised whenever the same sources and recipe would give other bytes."""


class Progress(Protocol):
    """Told how far a preparation is."""

    def start(self, stage: str, total: int) -> None:
        """A stage begins that will advance to ``total``."""
        ...

    def advance(self, amount: int) -> None:
        """The stage has come further."""
        ...

    def finish(self, note: str) -> None:
        """The stage is over; ``note`` says what came of it."""
        ...


class Silent:
    """Progress that nobody watches."""

    def start(self, stage: str, total: int) -> None:
        """Ignore it."""

    def advance(self, amount: int) -> None:
        """Ignore it."""

    def finish(self, note: str) -> None:
        """Ignore it."""


class Prepared(msgspec.Struct, frozen=True):
    """A finished preparation.

    Attributes:
        directory: Where the version lies.
        manifest: What it is.
        reused: Whether it was there already.
        wall_s: Seconds that it took.
    """

    directory: Path
    manifest: Manifest
    reused: bool
    wall_s: float


def prepare(
    specs: Sequence[str],
    name: str,
    recipe: Recipe,
    progress: Progress | None = None,
    num_processes: int | None = None,
) -> Prepared:
    """Make a version of a dataset, or find the one that is there.

    Args:
        specs: Sources, see ``sources.scan``.
        name: The dataset's.
        recipe: What is done to them.
        progress: Told how far it is.
        num_processes: Processes that read shards; None means one per core. No effect on the result.

    Raises:
        DataError: There is nothing to read, nothing is left, or the disk is full.
        ConflictError: The same is being prepared by another process.
    """
    began_s = time.monotonic()
    dataset.check_name(name)
    check_recipe(recipe)
    check_vocab_size(recipe.vocab_size)
    watcher = progress or Silent()
    try:
        watcher.start("scan", 1)
        found = scan(specs, recipe.max_bytes, recipe.seed)
        lineage = make_lineage(found, recipe)
        watcher.finish(f"{len(found.files)} files, {sum(f.num_bytes for f in found.files) / 1e6:.1f} MB")
        directory = dataset.find_key(name, lineage.key)
        reused = directory is not None
        if directory is None:
            work = _Work(dataset.data_dir() / name, found, lineage, watcher, num_processes)
            directory = work.run()
        dataset.point_latest(directory.parent, directory.name)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise DataError(
            f"{where}{error.strerror or error}",
            "check space and permissions; the same command goes on from here",
        ) from error
    return Prepared(directory, dataset.load_manifest(directory), reused, time.monotonic() - began_s)


def make_lineage(found: Scan, recipe: Recipe) -> Lineage:
    """Return all that decides a dataset's content, with its key."""
    entries = tuple(_source_entry(found, name, kind) for name, kind, _ in found.names)
    code = {
        "tidecell": tidecell.__version__,
        "pipeline": str(PIPELINE_REVISION),
        "tokenizers": tokenizers.__version__,
        "unicode": unicodedata.unidata_version,
    }
    parts = [dataset.canonical_json(part) for part in (entries, recipe, code)]
    return Lineage(entries, recipe, code, parents=(), key=hash_of(*parts))


def _source_entry(found: Scan, name: str, kind: str) -> SourceEntry:
    files = [f for f in found.files if f.source == name]
    contents = [f"{f.id}\x00{f.sha256}\x00{f.limit_bytes}".encode() for f in files]
    lost = [f"{d.document_id}\x00{d.detail}".encode() for d in found.drops if d.source == name]
    num_bytes = sum(f.num_bytes for f in files)
    return SourceEntry(name, kind, len(files), num_bytes, hash_of(*contents, *lost))


class _Work:
    """One preparation: its directory, and the stages in it."""

    def __init__(
        self, root: Path, found: Scan, lineage: Lineage, progress: Progress, num_processes: int | None
    ) -> None:
        self._root = root
        self._found = found
        self._lineage = lineage
        self._recipe = lineage.recipe
        self._progress = progress
        self._num_processes = num_processes or len(os.sched_getaffinity(0))
        self._directory = root / f".work-{lineage.key[:16]}"
        self._out = self._directory / "out"
        self._stage_wall_s: dict[str, float] = {}

    def run(self) -> Path:
        """Go through all stages and return the directory of the version."""
        began_s, created_unix_s = time.monotonic(), time.time()
        resumed = self._directory.exists()
        self._out.mkdir(parents=True, exist_ok=True)
        with _locked(self._directory / "lock"):
            for stale in list(self._directory.rglob(".*.tmp")):
                shutil.rmtree(stale, ignore_errors=True) if stale.is_dir() else stale.unlink(missing_ok=True)
            corpus = self._corpus(self._shards())
            tokenizer = self._tokenizer(corpus)
            manifest = self._manifest(corpus, tokenizer)
            run = RunInfo(
                created_unix_s=created_unix_s,
                wall_s=round(time.monotonic() - began_s, 3),
                stage_wall_s=self._stage_wall_s,
                resumed=resumed,
                roots=tuple(root for _, _, root in self._found.names),
            )
            return self._publish(manifest, run)

    @contextlib.contextmanager
    def _stage(self, name: str, total: int) -> Iterator[Callable[[str], None]]:
        """Time a stage and tell of it; the body sets the note that closes it."""
        began_s = time.monotonic()
        notes = [""]
        self._progress.start(name, total)
        yield lambda note: notes.__setitem__(0, note)
        self._stage_wall_s[name] = round(time.monotonic() - began_s, 3)
        self._progress.finish(notes[0])

    def _shards(self) -> list[Path]:
        groups = group_files(self._found.files, self._recipe.shard_bytes)
        paths = [self._directory / "shards" / f"{i:05d}" for i in range(len(groups))]
        missing = [(g, p) for g, p in zip(groups, paths, strict=True) if not p.is_dir()]
        with self._stage("read, clean, filter", sum(f.num_bytes for g in groups for f in g)) as note:
            done = sum(f.num_bytes for g, p in zip(groups, paths, strict=True) if p.is_dir() for f in g)
            self._progress.advance(done)
            self._read_missing(missing)
            note(f"{len(groups)} shards" + (f", {len(groups) - len(missing)} were there" if done else ""))
        return paths

    def _read_missing(self, missing: list[tuple[list[SourceFile], Path]]) -> None:
        num_processes = min(self._num_processes, len(missing))
        if num_processes <= 1:
            for files, path in missing:
                read_shard(files, self._recipe, path)
                self._progress.advance(sum(f.num_bytes for f in files))
            return
        # Spawned, as a fork of a process with threads may hang.
        context = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(num_processes, context, initializer=_begin_worker) as pool:
                sizes = {
                    pool.submit(read_shard, files, self._recipe, path): sum(f.num_bytes for f in files)
                    for files, path in missing
                }
                try:
                    for future in as_completed(sizes):
                        future.result()
                        self._progress.advance(sizes[future])
                except BaseException:
                    # Shards in the making are finished, as they are kept; the others are not begun.
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        except BrokenProcessPool as error:
            raise DataError(
                "a process that read documents died, as when memory runs out",
                "run the same command again; it goes on from here",
            ) from error

    def _corpus(self, shards: list[Path]) -> Corpus:
        corpus = Corpus.load(shards)
        with self._stage("deduplicate", 1) as note:
            path = self._directory / "decisions.json"
            if not path.exists():
                decisions = decide(corpus, global_steps(self._recipe))
                with replacing(path) as file:
                    file.write(msgspec.json.encode(decisions))
            corpus.leave_out(path.read_bytes())
            note(f"{len(corpus.kept)} of {corpus.num_read} documents are left")
        if not corpus.kept:
            raise _nothing_left(self._drops(corpus))
        corpus.assign_splits(self._recipe)
        return corpus

    def _tokenizer(self, corpus: Corpus) -> TextTokenizer:
        directory = self._out / "tokenizer"
        with self._stage("train tokenizer", 1) as note:
            # The last file that save() writes says that both are there.
            if not (directory / "tokenizer_config.json").exists():
                train_tokenizer(corpus, self._recipe).save(directory)
            tokenizer = TextTokenizer.load(directory)
            note(f"{tokenizer.vocab_size} tokens")
        return tokenizer

    def _manifest(self, corpus: Corpus, tokenizer: TextTokenizer) -> Manifest:
        with self._stage("tokenize, pack", sum(e.num_bytes for e in corpus.kept_entries())) as note:
            splits = write_tokens(corpus, tokenizer, self._recipe, self._out, self._progress.advance)
            note(", ".join(f"{s} {splits[s].num_tokens:,} tokens" for s in SPLITS))
        instructions: dict[str, int] = {}
        if self._recipe.instructions is not None:
            with self._stage("instruction pairs", 1) as note:
                splits, instructions = write_pairs(corpus, tokenizer, splits, self._out)
                note(f"{sum(s.num_sft_pairs for s in splits.values()):,} pairs")
        with self._stage("write", 1):
            drops = self._drops(corpus)
            write_documents(corpus, drops, self._out)
            unversioned = Manifest(
                format=dataset.FORMAT,
                version="",
                lineage=self._lineage,
                steps=self._step_counts(corpus, drops),
                drops=dict(sorted(Counter(d.reason for d in drops).items())),
                tokenizer=TokenizerInfo(
                    path="tokenizer",
                    vocab_size=tokenizer.vocab_size,
                    end_of_text_id=tokenizer.end_of_text_id,
                    pad_id=tokenizer.pad_id,
                    sha256=sha256_file(self._out / "tokenizer" / "tokenizer.json"),
                ),
                splits=splits,
                instructions=instructions,
                files=dataset.list_files(self._out),
            )
        version = dataset.manifest_version(unversioned)
        return msgspec.structs.replace(unversioned, version=version)

    def _drops(self, corpus: Corpus) -> list[Drop]:
        return [*self._found.drops, *corpus.drops]

    def _step_counts(self, corpus: Corpus, drops: list[Drop]) -> tuple[StepCount, ...]:
        local, everywhere = local_steps(self._recipe), global_steps(self._recipe)
        names = ["read", *(step.name for step in local), *(step.name for step in everywhere)]
        num_seen = corpus.num_read + len(self._found.drops)
        return count_steps(names, num_seen, Counter(d.step for d in drops))

    def _publish(self, manifest: Manifest, run: RunInfo) -> Path:
        """Give the finished dataset its name; a version that is there and intact stays."""
        target = self._root / manifest.version
        dataset.write_manifest(self._out, manifest)
        with replacing(self._out / "run.json") as file:
            file.write(msgspec.json.encode(run))
        if not target.exists():
            os.rename(self._out, target)
        elif not dataset.is_intact(target):
            os.rename(target, self._directory / "damaged")
            os.rename(self._out, target)
        shutil.rmtree(self._directory, ignore_errors=True)
        return target


def _nothing_left(drops: list[Drop]) -> DataError:
    by_reason = Counter(d.reason for d in drops).most_common()
    counts = ", ".join(f"{count} {reason}" for reason, count in by_reason) or "none was found"
    example = f"; for example {drops[0].document_id}: {drops[0].detail}" if drops else ""
    return DataError(f"no document is left of {len(drops)}: {counts}", f"give other text{example}")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that goes with the process, however it ends.

    Raises:
        ConflictError: Another process holds it.
    """
    with open(path, "a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ConflictError(
                f"process {file.read().strip() or 'another'} is preparing the same dataset",
                "wait for it, or stop it",
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _begin_worker() -> None:
    """End this worker with its parent, as nobody would tell it after kill -9; leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
