"""Readers, and hostile inputs: everything is a document or a drop with a reason."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from tidecell.data.document import Document, Drop
from tidecell.data.sources import PART_CHARS, read_file, scan, stdlib_dir
from tidecell.structs.errors import DataError


def read_all(*specs: str | Path) -> tuple[list[Document], Counter[str]]:
    found = scan([str(s) for s in specs])
    documents, drops = [], list(found.drops)
    for file in found.files:
        for item in read_file(file):
            (drops if isinstance(item, Drop) else documents).append(item)
    return documents, Counter(d.reason for d in drops)


def test_the_default_is_this_pythons_own_library_without_its_tests() -> None:
    found = scan([])
    ids = {f.id for f in found.files}
    assert found.names[0][1:] == ("stdlib", str(stdlib_dir()))
    assert any(i.endswith("/asyncio/base_events.py") for i in ids)
    assert not any("/test/" in i or "/site-packages/" in i or "/lib2to3/" in i for i in ids)
    assert len(ids) > 400


def test_a_directory_gives_documents_in_order_with_their_kind(tmp_path: Path) -> None:
    for name in ("b.md", "a.py", "sub/c.txt", "skip.bin", "tests/t.py", ".hidden/x.py"):
        path = tmp_path / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {name}\n")
    documents, drops = read_all(tmp_path / "src")
    assert [(d.id, d.metadata.get("kind")) for d in documents] == [
        ("src/a.py", "code"),
        ("src/b.md", "prose"),
        ("src/sub/c.txt", "prose"),
    ]
    assert documents[0].is_python
    assert not drops


def test_globs_and_two_sources_of_one_name(tmp_path: Path) -> None:
    for name in ("one/x", "two/x"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.txt").write_text(name)
    documents, _ = read_all(tmp_path / "one" / "x", tmp_path / "two" / "x")
    assert [d.id for d in documents] == ["x/a.txt", "x-2/a.txt"]
    documents, _ = read_all(f"{tmp_path}/**/*.txt")
    assert [d.id for d in documents] == [f"{tmp_path.name}/one/x/a.txt", f"{tmp_path.name}/two/x/a.txt"]


def test_jsonl_gives_records_and_a_drop_for_each_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    lines = [
        json.dumps({"text": "one", "id": "x1", "language": "python"}).encode(),
        b"not json",
        b"",
        b'{"title": "no text"}',
        b'{"text": 7}',
        b"\xff\xfe",
        b"[" * 100_000,
        json.dumps({"text": "two"}).encode(),
        b'{"text": "half \\ud800"}',
    ]
    path.write_bytes(b"\n".join(lines))
    documents, drops = read_all(path)
    assert [(d.id, d.text, d.is_python) for d in documents[:2]] == [
        ("corpus/x1", "one", True),
        ("corpus/corpus.jsonl:8", "two", False),
    ]
    assert drops["BadRecord"] + len(documents) == 8
    assert drops["BadRecord"] >= 5


def test_a_broken_gzip_keeps_what_came_before_the_damage(tmp_path: Path) -> None:
    rows = b"".join(
        json.dumps({"text": f"{i} " + os.urandom(40).hex()}).encode() + b"\n" for i in range(2000)
    )
    whole = gzip.compress(rows)
    (tmp_path / "whole.jsonl.gz").write_bytes(whole)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "junk.jsonl.gz").write_bytes(b"no gzip at all")
    assert len(read_all(tmp_path / "whole.jsonl.gz")[0]) == 2000
    documents, drops = read_all(tmp_path / "cut.jsonl.gz")
    assert 0 < len(documents) < 2000
    assert drops == {"BrokenArchive": 1}
    assert read_all(tmp_path / "junk.jsonl.gz") == ([], {"BrokenArchive": 1})


def test_binary_undecodable_and_unreadable_files_are_drops(tmp_path: Path) -> None:
    (tmp_path / "junk.txt").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1") * 10)
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    documents, drops = read_all(tmp_path)
    assert drops == {"Binary": 1, "NotUtf8": 1, "Unreadable": 2}
    assert [d.text for d in documents] == [""]


def test_a_long_text_is_cut_at_blank_lines_and_nothing_is_lost(tmp_path: Path) -> None:
    book = "".join(f"Paragraph {i}. " + "word " * 100 + "\n\n" for i in range(200))
    (tmp_path / "book.txt").write_text(book)
    documents, _ = read_all(tmp_path / "book.txt")
    assert "".join(d.text for d in documents) == book
    assert len(documents) > 5
    assert all(len(d.text) <= PART_CHARS and d.text.endswith("\n\n") for d in documents)
    assert documents[1].id == "book/book.txt#2"


def test_one_endless_line_stays_whole_for_the_rules_to_judge(tmp_path: Path) -> None:
    (tmp_path / "line.txt").write_text("word " * 50_000)
    documents, _ = read_all(tmp_path / "line.txt")
    assert [len(d.text) for d in documents] == [250_000]


def test_max_bytes_takes_a_sample_that_depends_on_the_seed(corpus_dir: Path) -> None:
    all_files = scan([str(corpus_dir)]).files
    one, two, again = (scan([str(corpus_dir)], 20_000, seed).files for seed in (1, 2, 1))
    assert 10_000 < sum(f.num_bytes for f in one) <= 20_000
    assert one == again
    assert one != two
    assert [f for f in all_files if f in one] == list(one)


def test_max_bytes_smaller_than_any_file_reads_the_start_of_one(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": f"{i:04d}" * 25}) + "\n" for i in range(1000))
    (tmp_path / "big.jsonl").write_text(rows)
    found = scan([str(tmp_path / "big.jsonl")], 1050)
    assert sum(isinstance(item, Document) for item in read_file(found.files[0])) == 11


def test_a_missing_corpus_says_what_may_be_given(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        scan([str(tmp_path / "nothing")])
    assert caught.value.message == f"no corpus at '{tmp_path}/nothing'"
    assert "nothing for Python's own library" in caught.value.hint
    with pytest.raises(DataError, match="holds no text"):
        scan([str(tmp_path)])


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    found = scan([str(path)])
    path.write_text("after!")
    with pytest.raises(DataError, match="has changed while it was being read"):
        list(read_file(found.files[0]))
