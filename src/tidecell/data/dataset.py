"""Versioned datasets on disk: manifest, names, references, checks.

    $TIDECELL_HOME/data/<name>/
        latest -> <version>
        <version>/
            manifest.json              what it is; its hash is the version
            run.json                   when and where it was made; not part of the version
            tokenizer/                 tokenizer.json, tokenizer_config.json
            train-00000.npy ...        tokens; train-00000.lengths.npy holds the documents' lengths
            validation-00000.npy ...
            sft.train.jsonl ...        instruction pairs, and their tokens in sft.train.*.npy
            documents.jsonl            every document that was kept: id, split, sizes
            dropped.jsonl              every document that was not, with its reason

The manifest lists every other file with its checksum, so the version vouches for all of them.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tidecell.client.home import Home
from tidecell.data.document import Drop, DropReason
from tidecell.data.pack import PackStats
from tidecell.data.pipeline import Recipe, StepCount
from tidecell.data.shards import replacing, sha256_file
from tidecell.structs.errors import DataError, NotFoundError

FORMAT = 1
VERSION_CHARS = 12
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_VERSION = re.compile(rf"[0-9a-f]{{{VERSION_CHARS}}}")


class FileEntry(msgspec.Struct, frozen=True):
    """A file of a dataset: its path inside, size and checksum."""

    path: str
    num_bytes: int
    sha256: str


class SourceEntry(msgspec.Struct, frozen=True):
    """A source that was read: what it is, how much of it, and a checksum over the contents of its files."""

    name: str
    kind: str
    num_files: int
    num_bytes: int
    sha256: str


class Lineage(msgspec.Struct, frozen=True):
    """All that decides a dataset's content.

    Attributes:
        sources: What was read.
        recipe: What was done to it, with every parameter.
        code: Versions of the code that did it.
        parents: Versions of datasets that this one was made from.
        key: Hash of the above; the same key means the same version.
    """

    sources: tuple[SourceEntry, ...]
    recipe: Recipe
    code: dict[str, str]
    parents: tuple[str, ...]
    key: str


class SplitInfo(msgspec.Struct, frozen=True):
    """One split, train or validation.

    Attributes:
        num_documents: Documents in it.
        num_chars: Unicode characters of their texts.
        num_bytes: The same in UTF-8.
        num_tokens: Tokens, one end-of-text per document included.
        chars_per_token: ``num_chars / num_tokens``. A loss of L nats per token is
            ``L / ln 2 / chars_per_token`` bits per character.
        shards: Token files, in the order of the stream.
        lengths: Files of the documents' lengths, one per token file.
        packing: What packing to the recipe's ``seq_len`` gives.
        num_sft_pairs: Instruction pairs of this split.
        sft_pairs: File of the pairs as JSONL; empty where there are none.
    """

    num_documents: int
    num_chars: int
    num_bytes: int
    num_tokens: int
    chars_per_token: float
    shards: tuple[str, ...]
    lengths: tuple[str, ...]
    packing: PackStats
    num_sft_pairs: int = 0
    sft_pairs: str = ""


class TokenizerInfo(msgspec.Struct, frozen=True):
    """The tokenizer that made the tokens."""

    path: str
    vocab_size: int
    end_of_text_id: int
    pad_id: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What a version of a dataset is.

    Attributes:
        format: Layout of the directory; readers refuse others.
        version: Hash of everything else in here.
        lineage: What it was made from, and how.
        steps: Documents before and after each step.
        drops: Documents dropped, by reason.
        tokenizer: The tokenizer.
        splits: "train" and "validation".
        instructions: Functions left out of the instruction pairs, by reason.
        files: Every file but this one and ``run.json``.
    """

    format: int
    version: str
    lineage: Lineage
    steps: tuple[StepCount, ...]
    drops: dict[DropReason, int]
    tokenizer: TokenizerInfo
    splits: dict[str, SplitInfo]
    instructions: dict[str, int]
    files: tuple[FileEntry, ...]


class RunInfo(msgspec.Struct, frozen=True):
    """When and where a version was made; says nothing about what it is."""

    created_unix_s: float
    wall_s: float
    stage_wall_s: dict[str, float]
    resumed: bool
    roots: tuple[str, ...]


def data_dir() -> Path:
    """Return where datasets live: below ``TIDECELL_HOME``, or ``~/.tidecell``."""
    return Home() / "data"


def check_name(name: str) -> str:
    """Return ``name`` if a dataset may be called that.

    Raises:
        DataError: It may not.
    """
    if not _NAME.fullmatch(name):
        raise DataError(
            f"{name!r} is no name for a dataset",
            "use letters, digits, '.', '_' and '-', beginning with a letter or digit",
        )
    return name


def canonical_json(value: object) -> bytes:
    """Return JSON that is the same for equal values."""
    return msgspec.json.encode(value, order="deterministic")


def manifest_version(manifest: Manifest) -> str:
    """Return the version that a manifest's content has."""
    unversioned = msgspec.structs.replace(manifest, version="")
    return hashlib.sha256(canonical_json(unversioned)).hexdigest()[:VERSION_CHARS]


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write ``manifest.json``, indented for people."""
    with replacing(directory / "manifest.json") as file:
        file.write(msgspec.json.format(canonical_json(manifest), indent=2) + b"\n")


def load_manifest(directory: Path) -> Manifest:
    """Read the manifest of a version's directory.

    Raises:
        NotFoundError: There is none.
        DataError: It is damaged or of another format.
    """
    path = directory / "manifest.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError as error:
        raise NotFoundError(f"{directory} holds no dataset", "list datasets with `tide data ls`") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged: {error}", "prepare the dataset again") from error


def load_drops(directory: Path) -> list[Drop]:
    """Return the records of documents that a version left out.

    Raises:
        DataError: The file is missing or damaged.
    """
    path = directory / "dropped.jsonl"
    try:
        return msgspec.json.Decoder(Drop).decode_lines(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", "prepare the dataset again") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged: {error}", "prepare the dataset again") from error


def load_run(directory: Path) -> RunInfo | None:
    """Return when and where a version was made, if that is known."""
    try:
        return msgspec.json.decode((directory / "run.json").read_bytes(), type=RunInfo)
    except (OSError, msgspec.DecodeError):
        return None


def resolve(reference: str | os.PathLike[str]) -> Path:
    """Return the directory of a dataset's version.

    Args:
        reference: A path, a name (its latest version) or ``name@version``; a version may be shortened.

    Raises:
        NotFoundError: Nothing of that name, or several versions begin like that.
    """
    text = os.fspath(reference)
    path = Path(text).expanduser()
    for candidate in (path, path / "latest"):
        if (candidate / "manifest.json").is_file():
            return candidate.resolve()
    name, _, version = text.partition("@")
    root = data_dir() / name
    if not _NAME.fullmatch(name) or not root.is_dir():
        known = ", ".join(dataset_names()) or "none yet"
        raise NotFoundError(
            f"no dataset {text!r} in {data_dir()}; there are: {known}", "make one with `tide data prepare`"
        )
    if version in ("", "latest"):
        return _latest(root)
    matches = [v for v in versions(name) if v.startswith(version)]
    if len(matches) != 1:
        have = ", ".join(versions(name)) or "none"
        problem = "has no version" if not matches else "has several versions that begin with"
        raise NotFoundError(f"dataset {name!r} {problem} {version!r}; its versions: {have}")
    return (root / matches[0]).resolve()


def _latest(root: Path) -> Path:
    latest = root / "latest"
    if (latest / "manifest.json").is_file():
        return latest.resolve()
    raise NotFoundError(
        f"dataset {root.name!r} has no finished version", f"run `tide data prepare --out {root.name}` again"
    )


def dataset_names() -> list[str]:
    """Return the names of all datasets that have a version."""
    root = data_dir()
    return sorted(p.name for p in root.iterdir() if versions(p.name)) if root.is_dir() else []


def versions(name: str) -> list[str]:
    """Return the finished versions of a dataset, sorted."""
    root = data_dir() / name
    if not root.is_dir():
        return []
    return sorted(
        p.name for p in root.iterdir() if _VERSION.fullmatch(p.name) and (p / "manifest.json").is_file()
    )


def find_key(name: str, key: str) -> Path | None:
    """Return the version that was made from the same lineage, if there is one with all its files."""
    for version in versions(name):
        directory = data_dir() / name / version
        try:
            manifest = load_manifest(directory)
        except (DataError, NotFoundError):
            continue
        if manifest.lineage.key == key and not any(_misfits(directory, manifest)):
            return directory
    return None


def point_latest(root: Path, version: str) -> None:
    """Make ``latest`` name a version, at once for every reader."""
    temporary = root / ".latest.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(version)
    os.replace(temporary, root / "latest")


def list_files(directory: Path) -> tuple[FileEntry, ...]:
    """Return an entry for every file of a version but its manifest and run record."""
    paths = sorted(
        p for p in directory.rglob("*") if p.is_file() and p.name not in ("manifest.json", "run.json")
    )
    return tuple(
        FileEntry(p.relative_to(directory).as_posix(), p.stat().st_size, sha256_file(p)) for p in paths
    )


def is_intact(directory: Path) -> bool:
    """Return whether a version is what it was when it was made; see ``problems``."""
    try:
        return not any(problems(directory))
    except (DataError, NotFoundError):
        return False


def _misfits(directory: Path, manifest: Manifest) -> Iterator[str]:
    """Yield the files of a version that are missing or have another size."""
    for entry in manifest.files:
        path = directory / entry.path
        if not path.is_file():
            yield f"{entry.path} is missing"
        elif (size := path.stat().st_size) != entry.num_bytes:
            yield f"{entry.path} has {size} bytes, {entry.num_bytes} were written"


def problems(directory: Path) -> Iterator[str]:
    """Yield what is wrong with a version: its hash, and every file's presence, size and checksum."""
    manifest = load_manifest(directory)
    if (computed := manifest_version(manifest)) != manifest.version:
        yield f"manifest.json says version {manifest.version}, its content has {computed}"
    yield from _misfits(directory, manifest)
    for entry in manifest.files:
        path = directory / entry.path
        if not path.is_file() or path.stat().st_size != entry.num_bytes:
            continue  # told above
        if (digest := sha256_file(path)) != entry.sha256:
            yield f"{entry.path} has checksum {digest[:12]}, {entry.sha256[:12]} was written"
