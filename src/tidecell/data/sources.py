"""Readers: what can be read, in which order, and the documents in it.

A source is the running Python's own standard library (no argument), a directory, a file or a glob. Files are
found first (``scan``), with sizes and checksums, so that a dataset knows its content before any work is done;
then read one by one (``read_file``). What cannot be read is a ``Drop`` with its reason, never the end.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import io
import os
import sys
import sysconfig
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from tidecell.data.document import Document, Drop, DropReason, Rejection, digest64, drop
from tidecell.structs.errors import DataError

STDLIB = "stdlib"
SUFFIXES = (".py", ".txt", ".md", ".jsonl", ".jsonl.gz")
# Tests, vendored code and caches: no prose and no code that one would learn from.
SKIPPED_DIRS = frozenset(
    {"test", "tests", "idle_test", "__pycache__", "site-packages", "dist-packages", "lib2to3"}
)
# A text file beyond this is cut at blank lines: a book is many documents, so that some can be validation.
PART_CHARS = 1 << 14
MAX_FILE_BYTES = 1 << 30
_PROBE_BYTES = 8192


class SourceFile(msgspec.Struct, frozen=True):
    """A file to be read.

    Attributes:
        path: Where it is.
        id: Its path relative to the source, with the source's name in front: the same on every machine.
        source: The source's name.
        num_bytes: Its size.
        sha256: Checksum of its content.
        limit_bytes: Read documents only until this many bytes of text, or None for all.
    """

    path: str
    id: str
    source: str
    num_bytes: int
    sha256: str
    limit_bytes: int | None = None


class Scan(msgspec.Struct, frozen=True):
    """What a set of sources holds.

    Attributes:
        files: Files to read, in the order of reading.
        drops: Files that could not be read at all.
        names: Name of each source, its kind, and where it was found.
    """

    files: tuple[SourceFile, ...]
    drops: tuple[Drop, ...]
    names: tuple[tuple[str, str, str], ...]


def stdlib_dir() -> Path:
    """Return where the running Python keeps its library."""
    return Path(sysconfig.get_paths()["stdlib"])


def scan(specs: Sequence[str], max_bytes: int | None = None, seed: int = 0) -> Scan:
    """Find the files of sources.

    Args:
        specs: Paths, globs or the word ``stdlib``; none means ``stdlib``.
        max_bytes: Take files only until this many bytes; which ones is decided by hashes of their ids and the
            seed, so that a small sample is a fair one.
        seed: See above.

    Raises:
        DataError: A source does not exist or holds nothing that can be read.
    """
    files: list[SourceFile] = []
    drops: list[Drop] = []
    names: list[tuple[str, str, str]] = []
    taken: set[str] = set()
    for spec in specs or (STDLIB,):
        name, kind, root, paths = _expand(spec)
        name = _fresh(name, taken)
        names.append((name, kind, str(root)))
        for path in paths:
            entry = _stat(path, f"{name}/{path.relative_to(root).as_posix()}", name)
            (files if isinstance(entry, SourceFile) else drops).append(entry)  # type: ignore[arg-type]
    if not files and not drops:
        raise DataError(f"{', '.join(specs) or STDLIB} holds no text", f"readable are {', '.join(SUFFIXES)}")
    return Scan(tuple(_sample(files, max_bytes, seed)), tuple(drops), tuple(names))


def _fresh(name: str, taken: set[str]) -> str:
    """Return ``name``, numbered if an earlier source has it."""
    fresh, number = name, 2
    while fresh in taken:
        fresh, number = f"{name}-{number}", number + 1
    taken.add(fresh)
    return fresh


def _expand(spec: str) -> tuple[str, str, Path, list[Path]]:
    """Return a source's name, kind, root and files."""
    if spec == STDLIB and not Path(spec).exists():
        root = stdlib_dir()
        found = list(_walk(root, (".py",)))
        if not found:
            raise DataError(
                f"this Python has no source of its library in {root}", "give a directory or file to read"
            )
        return f"python{sys.version_info.major}.{sys.version_info.minor}", "stdlib", root, found
    path = Path(spec).expanduser()
    if path.is_dir():
        return path.resolve().name or "root", "directory", path, list(_walk(path, SUFFIXES))
    if path.exists():
        return path.name.split(".")[0] or path.name, "file", path.parent, [path]
    matches = sorted(Path(m) for m in glob.glob(str(path), recursive=True))
    matches = [m for m in matches if m.is_file()]
    if not matches:
        raise DataError(
            f"no corpus at {spec!r}",
            "give a directory, a file, a glob in quotes, or nothing for Python's own library",
        )
    root = Path(os.path.commonpath([str(m.parent) for m in matches]))
    return root.resolve().name or "root", "glob", root, matches


def _walk(root: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Yield the readable files below a directory in sorted order; links to directories are not followed."""
    for directory, children, names in os.walk(root):
        children[:] = sorted(c for c in children if c not in SKIPPED_DIRS and not c.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(suffixes) and not name.startswith("."):
                yield Path(directory, name)


def _stat(path: Path, file_id: str, source: str) -> SourceFile | Drop:
    """Return a file with its size and checksum, or why it cannot be read."""
    bare = Document(_printable(file_id), "", source)
    try:
        if not path.is_file():
            return drop(bare, "read", Rejection(DropReason.UNREADABLE, "no regular file"))
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            return drop(
                bare, "read", Rejection(DropReason.UNREADABLE, f"{size} bytes, at most {MAX_FILE_BYTES}")
            )
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return drop(bare, "read", Rejection(DropReason.UNREADABLE, error.strerror or str(error)))
    return SourceFile(str(path), _printable(file_id), source, size, digest)


def _printable(name: str) -> str:
    """Return a file name that encodes as UTF-8: undecodable bytes show as escapes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _sample(files: list[SourceFile], max_bytes: int | None, seed: int) -> list[SourceFile]:
    """Return the files that fit ``max_bytes``, chosen by hash, in the order they had.

    Where none fits, the first by hash is read until the limit is reached.
    """
    if max_bytes is None or not files:
        return files
    by_hash = sorted(range(len(files)), key=lambda i: digest64("sample", str(seed), files[i].id))
    chosen: set[int] = set()
    left = max_bytes
    for at in by_hash:
        if files[at].num_bytes <= left:
            chosen.add(at)
            left -= files[at].num_bytes
    if not chosen:
        return [msgspec.structs.replace(files[by_hash[0]], limit_bytes=max_bytes)]
    return [f for i, f in enumerate(files) if i in chosen]


def read_file(file: SourceFile) -> Iterator[Document | Drop]:
    """Yield the documents of a file, and a drop for each part that cannot be read.

    Raises:
        DataError: The file is not what ``scan`` saw.
    """
    left = file.limit_bytes
    for item in _read_all(file):
        yield item
        if left is not None and isinstance(item, Document):
            left -= len(item.text.encode("utf-8", "replace"))
            if left <= 0:
                return


def _read_all(file: SourceFile) -> Iterator[Document | Drop]:
    """Yield all documents of a file."""
    bare = Document(file.id, "", file.source)
    try:
        data = Path(file.path).read_bytes()
    except OSError as error:
        yield drop(bare, "read", Rejection(DropReason.UNREADABLE, error.strerror or str(error)))
        return
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise DataError(f"{file.path} has changed while it was being read", "run the command again")
    lower = file.path.lower()
    if lower.endswith((".jsonl", ".jsonl.gz")):
        yield from _records(data, file, gzipped=lower.endswith(".gz"))
        return
    text = _decode(data)
    if isinstance(text, Rejection):
        yield drop(bare, "read", text)
    elif lower.endswith(".py"):
        yield Document(file.id, text, file.source, {"kind": "code", "language": "python"})
    else:
        yield from _parts(text, file)


def _decode(data: bytes) -> str | Rejection:
    """Return the text of bytes, or why they are none."""
    if b"\x00" in data[:_PROBE_BYTES]:
        return Rejection(DropReason.BINARY, f"NUL at byte {data.index(0)}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Rejection(DropReason.NOT_UTF8, f"{error.reason} at byte {error.start}")


def _parts(text: str, file: SourceFile) -> Iterator[Document]:
    """Yield a text as one document, or cut at blank lines if it is long."""
    metadata = {"kind": "prose"}
    if len(text) <= PART_CHARS:
        yield Document(file.id, text, file.source, metadata)
        return
    begin, number = 0, 1
    while begin < len(text):
        end = len(text) if len(text) - begin <= PART_CHARS else _cut(text, begin)
        yield Document(f"{file.id}#{number}", text[begin:end], file.source, metadata)
        begin, number = end, number + 1


def _cut(text: str, begin: int) -> int:
    """Return where a part ends: after the last blank line in reach, else after the last line."""
    for mark in ("\n\n", "\n"):
        at = text.rfind(mark, begin + PART_CHARS // 2, begin + PART_CHARS)
        if at >= 0:
            return at + len(mark)
    # One endless line: taken whole, for the rule on long lines to judge.
    at = text.find("\n", begin + PART_CHARS)
    return len(text) if at < 0 else at + 1


def _records(data: bytes, file: SourceFile, *, gzipped: bool) -> Iterator[Document | Drop]:
    """Yield the documents of a JSONL file; damage in a compressed one ends it, what came before stays."""
    stream: io.BufferedIOBase = gzip.GzipFile(fileobj=io.BytesIO(data)) if gzipped else io.BytesIO(data)
    number = 0
    while True:
        number += 1
        try:
            line = stream.readline()
        except (OSError, EOFError, zlib.error) as error:
            rejection = Rejection(DropReason.BROKEN_ARCHIVE, f"from line {number}: {error}")
            yield drop(Document(f"{file.id}:{number}", "", file.source), "read", rejection)
            return
        if not line:
            return
        if line.strip():
            yield _record(line, f"{file.id}:{number}", file)


class _Record(msgspec.Struct):
    text: str
    id: str | int | None = None
    language: str | None = None


_RECORD = msgspec.json.Decoder(_Record)


def _record(line: bytes, place: str, file: SourceFile) -> Document | Drop:
    """Return the document on a line of JSONL, or why there is none."""
    try:
        record = _RECORD.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        sample = Document(place, line[:400].decode("utf-8", "replace"), file.source)
        return drop(sample, "read", Rejection(DropReason.BAD_RECORD, str(error)))
    code = (record.language or "").lower()
    metadata = {"kind": "code", "language": code} if code in ("python", "code") else {"kind": "prose"}
    identity = place if record.id in (None, "") else f"{file.source}/{record.id}"
    return Document(_printable(identity), record.text, file.source, metadata)
