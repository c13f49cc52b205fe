"""From sources to a version: reuse, resumption, order, counts, what a version vouches for."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tidecell.data import dataset, executor
from tidecell.data.executor import Prepared, Silent, prepare
from tidecell.data.pipeline import Recipe
from tidecell.structs.errors import ConflictError, DataError, NotFoundError

SMALL = Recipe(vocab_size=400, seq_len=64, shard_bytes=20_000, validation_share=0.15)


def tree(directory: Path) -> dict[str, str]:
    """Return the checksum of every file of a version but the record of its run."""
    paths = [p for p in directory.rglob("*") if p.is_file() and p.name != "run.json"]
    return {p.relative_to(directory).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


class StopAt(Silent):
    """Stops the preparation as a stage begins, or after it has advanced."""

    def __init__(self, stage: str, num_advances: int = 0) -> None:
        self._stage, self._left, self._here = stage, num_advances, False

    def start(self, stage: str, total: int) -> None:
        self._here = stage == self._stage
        if self._here and not self._left:
            raise KeyboardInterrupt

    def advance(self, amount: int) -> None:
        if self._here:
            self._left -= 1
            if self._left == 0:
                raise KeyboardInterrupt


class Stages(Silent):
    def __init__(self) -> None:
        self.notes: dict[str, str] = {}

    def start(self, stage: str, total: int) -> None:
        self._stage = stage

    def finish(self, note: str) -> None:
        self.notes[self._stage] = note


def test_the_same_again_is_reused_and_points_latest_at_it(corpus_dir: Path, home: Path) -> None:
    first = prepare([str(corpus_dir)], "a", SMALL, num_processes=1)
    other = prepare([str(corpus_dir)], "a", msgspec.structs.replace(SMALL, seed=1), num_processes=1)
    again = prepare([str(corpus_dir)], "a", SMALL, num_processes=1)
    assert (first.reused, other.reused, again.reused) == (False, False, True)
    assert first.directory == again.directory != other.directory
    assert dataset.resolve("a") == first.directory
    assert dataset.versions("a") == sorted([first.manifest.version, other.manifest.version])
    assert sorted(p.name for p in (home / "data" / "a").iterdir()) == sorted(
        [*dataset.versions("a"), "latest"]
    )


def test_the_version_depends_on_content_not_on_place_or_processes(
    prepared: Prepared, corpus_dir: Path, home: Path, tmp_path: Path
) -> None:
    shutil.copytree(corpus_dir, tmp_path / "elsewhere" / corpus_dir.name)
    moved = prepare([str(tmp_path / "elsewhere" / corpus_dir.name)], "b", SMALL, num_processes=2)
    assert not moved.reused
    assert tree(moved.directory) == tree(prepared.directory)
    changed = tmp_path / "elsewhere" / corpus_dir.name / "mod_00.py"
    changed.write_text(changed.read_text() + "# one more line\n")
    newer = prepare([str(tmp_path / "elsewhere" / corpus_dir.name)], "b", SMALL, num_processes=1)
    assert newer.manifest.version != moved.manifest.version


@pytest.mark.parametrize(
    "stop",
    [
        lambda: StopAt("read, clean, filter", 1),
        lambda: StopAt("read, clean, filter", 3),
        lambda: StopAt("deduplicate"),
        lambda: StopAt("train tokenizer"),
        lambda: StopAt("tokenize, pack"),
        lambda: StopAt("tokenize, pack", 2),
        lambda: StopAt("instruction pairs"),
        lambda: StopAt("write"),
    ],
)
def test_a_stopped_run_leaves_no_version_and_goes_on_to_the_same_bytes(
    prepared: Prepared, corpus_dir: Path, home: Path, stop: Callable[[], StopAt]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepare([str(corpus_dir)], "harbour", SMALL, stop(), num_processes=1)
    assert dataset.dataset_names() == []
    with pytest.raises(NotFoundError, match="has no finished version"):
        dataset.resolve("harbour")
    done = prepare([str(corpus_dir)], "harbour", SMALL, num_processes=1)
    assert tree(done.directory) == tree(prepared.directory)
    assert [p.name for p in (home / "data" / "harbour").glob(".*")] == []
    run = dataset.load_run(done.directory)
    assert run is not None
    assert run.resumed


def test_shards_that_are_there_are_not_read_again(
    corpus_dir: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepare([str(corpus_dir)], "a", SMALL, StopAt("deduplicate"), num_processes=1)
    monkeypatch.setattr(executor, "read_shard", lambda *_: pytest.fail("a shard was read again"))
    stages = Stages()
    prepare([str(corpus_dir)], "a", SMALL, stages, num_processes=1)
    assert stages.notes["read, clean, filter"].endswith("were there")


def test_two_at_once_on_the_same_dataset_is_a_conflict(corpus_dir: Path, home: Path) -> None:
    class Second(Silent):
        def start(self, stage: str, total: int) -> None:
            if stage == "deduplicate":
                prepare([str(corpus_dir)], "a", SMALL, num_processes=1)

    with pytest.raises(ConflictError, match="is preparing the same dataset"):
        prepare([str(corpus_dir)], "a", SMALL, Second(), num_processes=1)


def test_every_document_is_kept_or_dropped_with_a_reason(
    tmp_path: Path, home: Path, corpus_dir: Path
) -> None:
    root = tmp_path / "mixed"
    shutil.copytree(corpus_dir, root)
    (root / "copy.py").write_text((corpus_dir / "mod_03.py").read_text().upper())
    near = (corpus_dir / "notes" / "log_01.txt").read_text()
    (root / "notes" / "near.txt").write_text(near.replace("number", "numeral") + "one more line at the end\n")
    (root / "junk.txt").write_bytes(bytes(range(256)))
    (root / "tiny.txt").write_text("hi\n")
    (root / "same.jsonl").write_text((json.dumps({"text": near * 3, "id": "x"}) + "\n") * 2)
    manifest = prepare([str(root)], "m", SMALL, num_processes=1).manifest
    assert manifest.drops == {
        "Binary": 1,
        "ExactDuplicate": 1,
        "NearDuplicate": 1,
        "Repetitive": 2,
        "TooShort": 1,
    }
    num_kept = sum(s.num_documents for s in manifest.splits.values())
    assert manifest.steps[0].num_in == 48 + 6 == num_kept + sum(manifest.drops.values())
    assert manifest.steps[-1].num_out == num_kept
    assert all(a.num_out == b.num_in for a, b in zip(manifest.steps, manifest.steps[1:], strict=False))
    drops = dataset.load_drops(dataset.resolve("m"))
    assert sorted(d.reason for d in drops) == sorted(r for r, n in manifest.drops.items() for _ in range(n))
    # The upper-case copy comes first in order, so the original is the one that goes.
    exact = next(d for d in drops if d.reason == "ExactDuplicate")
    assert (exact.document_id, exact.detail) == ("mixed/mod_03.py", "same as mixed/copy.py")


def test_an_id_that_recurs_is_numbered(tmp_path: Path, home: Path, corpus_dir: Path) -> None:
    texts = [(corpus_dir / "notes" / f"log_{i:02d}.txt").read_text() for i in range(4)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t, "id": "same"}) + "\n" for t in texts))
    done = prepare([str(tmp_path / "a.jsonl")], "ids", SMALL, num_processes=1)
    lines = (done.directory / "documents.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["a/same", "a/same~2", "a/same~3", "a/same~4"]


def test_pairs_are_in_the_split_of_their_document_and_no_answer_is_in_both(prepared: Prepared) -> None:
    listed = [json.loads(line) for line in (prepared.directory / "documents.jsonl").read_text().splitlines()]
    split_of = {d["id"]: d["split"] for d in listed}
    answers: dict[str, set[str]] = {}
    for split, info in prepared.manifest.splits.items():
        lines = (prepared.directory / info.sft_pairs).read_text().splitlines()
        pairs = [json.loads(line) for line in lines]
        assert len(pairs) == info.num_sft_pairs > 0
        assert {split_of[p["document_id"]] for p in pairs} == {split}
        answers[split] = {p["messages"][1]["content"] for p in pairs}
    assert not answers["train"] & answers["validation"]


def test_without_python_or_when_told_so_there_are_no_pairs(corpus_dir: Path, home: Path) -> None:
    notes = prepare([str(corpus_dir / "notes")], "notes", SMALL, num_processes=1)
    off = msgspec.structs.replace(SMALL, instructions=None)
    silent = prepare([str(corpus_dir)], "off", off, num_processes=1)
    for done in (notes, silent):
        assert [s.num_sft_pairs for s in done.manifest.splits.values()] == [0, 0]
        assert not list(done.directory.glob("sft.*"))


def test_two_documents_are_enough_and_one_is_not(tmp_path: Path, home: Path, corpus_dir: Path) -> None:
    for i in range(2):
        shutil.copy(corpus_dir / f"mod_{i:02d}.py", tmp_path)
    splits = prepare([str(tmp_path)], "two", SMALL, num_processes=1).manifest.splits
    assert {name: s.num_documents for name, s in splits.items()} == {"train": 1, "validation": 1}
    with pytest.raises(DataError) as caught:
        prepare([str(tmp_path / "mod_00.py")], "one", SMALL, num_processes=1)
    assert caught.value.message == "1 document is left, and training and validation need one each"


def test_nothing_left_counts_the_reasons(tmp_path: Path, home: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text("x" * i)
    with pytest.raises(DataError) as caught:
        prepare([str(tmp_path)], "none", SMALL, num_processes=1)
    assert caught.value.message == "no document is left of 3: 2 TooShort, 1 Empty"
    assert "1.txt" in caught.value.hint or "0.txt" in caught.value.hint


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(seq_len=0), "seq_len is 0, at least 1 is allowed"),
        (Recipe(max_bytes=0), "max_bytes is 0, at least 1 is allowed"),
        (Recipe(validation_share=0.5), "the validation share is 0.5; above 0 and below 0.5 is allowed"),
        (Recipe(vocab_size=10), "a vocabulary of 10 is impossible; 261 to 1048576 are allowed"),
    ],
)
def test_impossible_recipes_are_refused(corpus_dir: Path, home: Path, recipe: Recipe, message: str) -> None:
    with pytest.raises(DataError) as caught:
        prepare([str(corpus_dir)], "x", recipe)
    assert caught.value.message == message


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b"])
def test_names_that_are_no_names_are_refused(corpus_dir: Path, home: Path, name: str) -> None:
    with pytest.raises(DataError, match="is no name for a dataset"):
        prepare([str(corpus_dir)], name, SMALL)


def test_a_home_that_cannot_be_written_is_a_clear_error(
    corpus_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TIDECELL_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match="Not a directory"):
        prepare([str(corpus_dir)], "x", SMALL)


def test_references_are_paths_names_and_shortened_versions(corpus_dir: Path, home: Path) -> None:
    done = prepare([str(corpus_dir)], "ref", SMALL, num_processes=1)
    version = done.manifest.version
    for reference in ("ref", "ref@latest", f"ref@{version}", f"ref@{version[:4]}", str(done.directory)):
        assert dataset.resolve(reference) == done.directory
    assert dataset.resolve(done.directory.parent) == done.directory
    with pytest.raises(NotFoundError) as caught:
        dataset.resolve("ref@zzz")
    assert caught.value.message == f"dataset 'ref' has no version 'zzz'; its versions: {version}"
    with pytest.raises(NotFoundError, match="no dataset 'other' in"):
        dataset.resolve("other")


def test_verify_finds_every_kind_of_damage(prepared: Prepared, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(prepared.directory, copy)
    assert list(dataset.problems(copy)) == []
    shard = copy / "train-00000.npy"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    (copy / "documents.jsonl").unlink()
    (copy / "dropped.jsonl").write_text("more\n")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["splits"]["train"]["num_chars"] += 1
    (copy / "manifest.json").write_text(json.dumps(manifest))
    found = list(dataset.problems(copy))
    assert len(found) == 4
    assert f"manifest.json says version {prepared.manifest.version}" in found[0]
    assert {f.split()[0] for f in found[1:]} == {"train-00000.npy", "documents.jsonl", "dropped.jsonl"}


def test_a_damaged_manifest_is_a_clear_error_and_never_reused(corpus_dir: Path, home: Path) -> None:
    done = prepare([str(corpus_dir)], "d", SMALL, num_processes=1)
    (done.directory / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        dataset.load_manifest(done.directory)
    again = prepare([str(corpus_dir)], "d", SMALL, num_processes=1)
    assert not again.reused
    assert list(dataset.problems(again.directory)) == []
    (again.directory / "train-00000.npy").unlink()
    third = prepare([str(corpus_dir)], "d", SMALL, num_processes=1)
    assert (third.reused, third.directory) == (False, again.directory)
    assert list(dataset.problems(third.directory)) == []


def test_a_full_disk_is_a_clear_error_and_the_next_run_goes_on(
    prepared: Prepared, corpus_dir: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DataError) as caught:
            prepare([str(corpus_dir)], "harbour", SMALL, num_processes=1)
    assert caught.value.render() == (
        "error: No space left on device\n\n"
        "hint: check space and permissions; the same command goes on from here"
    )
    done = prepare([str(corpus_dir)], "harbour", SMALL, num_processes=1)
    assert tree(done.directory) == tree(prepared.directory)


def test_token_files_are_narrow_and_match_their_lengths(prepared: Prepared) -> None:
    info = prepared.manifest.splits["train"]
    for shard, lengths in zip(info.shards, info.lengths, strict=True):
        tokens = np.load(prepared.directory / shard)
        sizes = np.load(prepared.directory / lengths)
        assert tokens.dtype == np.uint16
        assert tokens.size == sizes.sum()
        assert (tokens[np.cumsum(sizes) - 1] == 0).all()
    assert len(info.shards) > 2
