"""Token files: one flat array each, memory-mapped when read.

A token store is a list of ``.npy`` files (uint16 while the vocabulary fits, else uint32) that make one
stream, each with a ``.npy`` of its documents' lengths (int64). A document never spans two files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from tidecell.structs.errors import DataError


def token_dtype(vocab_size: int) -> npt.DTypeLike:
    """Return the narrowest type that holds every id."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Write a file that appears under its name complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def sync_file(path: Path) -> None:
    """Make sure that a file's content is on the disk, for it is about to be vouched for."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def write_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array as ``.npy``, complete or not at all."""
    with replacing(path) as file:
        np.lib.format.write_array(file, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)


def read_array(path: Path) -> npt.NDArray[Any]:
    """Map an array of a ``.npy`` file.

    Raises:
        DataError: The file is missing, cut short or no array.
    """
    try:
        # numpy refuses to map nothing; an empty array has nothing to map.
        loaded: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        return loaded
    except (OSError, ValueError, EOFError) as error:
        try:
            empty: npt.NDArray[Any] = np.load(path, allow_pickle=False)
            if empty.size == 0:
                return empty
        except (OSError, ValueError, EOFError):
            pass
        raise DataError(
            f"{path} cannot be read: {error}", "check it with `tide data verify`, or prepare it again"
        ) from error


def sha256_file(path: Path) -> str:
    """Return the checksum of a file as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class TokenStream:
    """Several token files read as one array.

    Attributes:
        num_tokens: Tokens in all files.
        dtype: Type of an id in the files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        # A plain view of the mapped bytes: slices of a memmap object cost ten times as much.
        self._shards = [np.asarray(read_array(path)) for path in paths]
        sizes = [shard.size for shard in self._shards]
        self._begin = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64))).astype(np.int64)
        self._starts: list[int] = self._begin[:-1].tolist()
        self.num_tokens = int(self._begin[-1])
        self.dtype = self._shards[0].dtype if self._shards else np.dtype(np.uint16)

    def read_into(self, out: npt.NDArray[np.int64], start: int, length: int) -> None:
        """Copy ``length`` tokens from position ``start`` to the front of ``out``.

        The stretch must lie in one file, as every document does.
        """
        at = 0
        if len(self._shards) > 1:
            at = int(np.searchsorted(self._begin, start, side="right")) - 1
        offset = start - self._starts[at]
        out[:length] = self._shards[at][offset : offset + length]
