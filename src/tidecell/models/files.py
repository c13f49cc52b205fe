"""Files that are whole or absent: everything that outlives a process is written through here.

A file or a directory is written beside its final name, synced, and renamed. A crash leaves the old
one, the new one, or litter whose name starts with ``.tmp-``; never half of one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

TMP_PREFIX = ".tmp-"


def sha256_file(path: Path) -> str:
    """Return the hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole: temporary name, sync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TMP_PREFIX}{os.getpid()}-{path.name}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole."""
    write_bytes(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def read_json(path: Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        OSError: It cannot be read.
        msgspec.DecodeError: It is not JSON.
    """
    return msgspec.json.decode(path.read_bytes())


@contextmanager
def whole_directory(path: Path, replace: bool = False) -> Iterator[Path]:
    """Give a temporary directory that becomes ``path`` when the block succeeds.

    Args:
        replace: Put it in the place of a directory that exists. Otherwise an existing one is kept and
            the new one dropped: two writers of one step's checkpoint wrote the same bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TMP_PREFIX}{os.getpid()}-{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        if replace and path.exists():
            _swap(temporary, path)
        elif not path.exists():
            temporary.rename(path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap(new: Path, old: Path) -> None:
    """Put ``new`` in the place of ``old``; a reader misses it only between two renames."""
    aside = old.with_name(f"{TMP_PREFIX}{os.getpid()}-old-{old.name}")
    shutil.rmtree(aside, ignore_errors=True)
    old.rename(aside)
    new.rename(old)
    shutil.rmtree(aside, ignore_errors=True)


def sync(path: Path) -> None:
    """Ask the disk to keep a file's or a directory's content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
