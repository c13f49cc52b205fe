"""`tide data` as people and scripts use it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tidecell.cli.data import main

ARGS = ["--vocab-size", "400", "--seq-len", "64", "--validation", "0.15"]


def tide_data(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(args)
    out = capsys.readouterr()
    code = caught.value.code
    return (code if isinstance(code, int) else 0), out.out, out.err


def test_prepare_reads_well_and_the_second_time_does_nothing(
    corpus_dir: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = tide_data(capsys, "prepare", str(corpus_dir), *ARGS)
    assert code == 0
    assert "48 in, 48 kept" in out
    assert "harbour (48 files, " in out
    assert "tide train harbour" in out
    assert [line.split("  ")[0] for line in err.splitlines()] == [
        "scan",
        "read, clean, filter",
        "deduplicate",
        "train tokenizer",
        "tokenize, pack",
        "instruction pairs",
        "write",
    ]
    code, out, err = tide_data(capsys, "prepare", str(corpus_dir), *ARGS)
    assert code == 0
    assert "nothing to do" in out


def test_json_is_all_that_is_on_stdout(
    corpus_dir: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = tide_data(
        capsys, "prepare", str(corpus_dir), "--out", "j", "--no-instructions", "--json", *ARGS
    )
    made = json.loads(out)
    assert made["name"] == "j"
    assert made["reused"] is False
    assert made["sft_pairs"] == {"train": 0, "validation": 0}
    assert made["documents_in"] == made["documents_out"] + sum(made["drops"].values())
    _, out, _ = tide_data(capsys, "ls", "--json")
    assert [(r["name"], r["version"], r["latest"]) for r in json.loads(out)] == [("j", made["version"], True)]
    _, out, _ = tide_data(capsys, "show", "j", "--json")
    shown = json.loads(out)
    assert shown["version"] == made["version"]
    assert shown["lineage"]["recipe"]["seq_len"] == 64
    _, out, _ = tide_data(capsys, "verify", "j", "--json")
    assert json.loads(out)["problems"] == []


def test_options_change_what_they_say(
    corpus_dir: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = corpus_dir / "notes"
    near = notes / "near.txt"
    near.write_text((notes / "log_05.txt").read_text() + "one more line\n")
    try:
        _, out, _ = tide_data(capsys, "prepare", str(notes), "--out", "n", "--json", *ARGS)
        assert json.loads(out)["drops"] == {"NearDuplicate": 1}
        _, out, _ = tide_data(capsys, "prepare", str(notes), "--out", "n", "--no-near-dedup", "--json", *ARGS)
        assert json.loads(out)["drops"] == {}
    finally:
        near.unlink()
    _, out, _ = tide_data(capsys, "prepare", str(notes), "--out", "n", "--max-bytes", "30kB", "--json", *ARGS)
    assert json.loads(out)["documents_in"] < 20
    _, out, _ = tide_data(capsys, "ls")
    assert out.count("latest") == 1
    assert len(out.strip().splitlines()) == 4


def test_inspect_shows_who_was_dropped_and_why(
    tmp_path: Path, home: Path, corpus_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(4):
        (tmp_path / f"ok_{i}.py").write_text((corpus_dir / f"mod_{i:02d}.py").read_text())
    (tmp_path / "tiny.txt").write_text("[bold]hi[/]\x1b[31m")
    (tmp_path / "void.txt").write_text("")
    tide_data(capsys, "prepare", str(tmp_path), "--out", "i", *ARGS)
    _, out, _ = tide_data(capsys, "inspect", "i")
    assert "tiny.txt  16 characters, at least 64" in out
    assert "[bold]hi[/]" in out
    assert "\x1b" not in out
    assert "2 of 2 dropped documents" in out
    _, out, _ = tide_data(capsys, "inspect", "i", "--reason", "empty", "--json")
    assert [d["reason"] for d in json.loads(out)] == ["Empty"]
    code, _, err = tide_data(capsys, "inspect", "i", "--reason", "ugly")
    assert code == 1
    assert err.startswith("error: no reason 'ugly'\n\nhint: reasons are Unreadable, ")


def test_verify_of_a_damaged_dataset_fails(
    corpus_dir: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = tide_data(capsys, "prepare", str(corpus_dir), "--out", "v", "--json", *ARGS)
    assert tide_data(capsys, "verify", "v")[0] == 0
    (Path(json.loads(out)["path"]) / "dropped.jsonl").write_text("x")
    code, out, err = tide_data(capsys, "verify", "v")
    assert code == 1
    assert "dropped.jsonl has 1 bytes, 0 were written" in err


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["prepare", "/nowhere/at/all"], 1, "error: no corpus at '/nowhere/at/all'"),
        (["prepare", "--max-bytes", "lots"], 2, "'lots' is no number of bytes"),
        (["prepare", "--vocab-size", "7"], 1, "a vocabulary of 7 is impossible"),
        (["show", "nobody"], 1, "there are: none yet"),
        (["verify", "../../etc"], 1, "no dataset '../../etc'"),
    ],
)
def test_mistakes_are_errors_with_a_hint(
    home: Path, capsys: pytest.CaptureFixture[str], args: list[str], code: int, said: str
) -> None:
    exit_code, _, err = tide_data(capsys, *args)
    assert exit_code == code
    assert said in err
    assert "Traceback" not in err


def test_no_datasets_says_how_to_make_one(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tide_data(capsys, "ls")[1] == "no datasets yet; make one with: tide data prepare\n"
    assert tide_data(capsys, "ls", "--json")[1] == "[]\n"
