"""State of a training: digest, round trip, checkpoints, contracts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tidecell.models.files import TMP_PREFIX
from tidecell.models.training_state import (
    collect,
    digest,
    list_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    require_contract,
    restore,
    save_checkpoint,
)
from tidecell.structs.errors import CheckpointError

Pair = tuple[nn.Module, torch.optim.Optimizer]


def pair(seed: int = 0, kind: str = "adamw") -> Pair:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    if kind == "sgd":
        return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)


def step(both: Pair, count: int = 1) -> None:
    model, optimizer = both
    for i in range(count):
        optimizer.zero_grad()
        model(torch.full((3, 4), 0.5 + i)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_restored_training_goes_on_with_the_same_bits(tmp_path: Path, kind: str) -> None:
    first = pair(kind=kind)
    step(first, 3)
    save_checkpoint(tmp_path, 3, collect(*first).copied(), {"seed": 0})
    second = pair(seed=9, kind=kind)
    assert digest(*second) != digest(*first)
    restore(*second, load_checkpoint(tmp_path / "step-00000003").state)
    assert digest(*second) == digest(*first)
    step(first, 2)
    step(second, 2)
    assert digest(*second) == digest(*first)


def test_settings_of_the_optimizer_come_back() -> None:
    first, second = pair(), pair()
    first[1].param_groups[0]["lr"] = 0.123
    restore(*second, collect(*first).copied())
    assert second[1].param_groups[0]["lr"] == 0.123
    assert second[1].param_groups[0]["betas"] == (0.9, 0.999)


def test_one_changed_bit_changes_the_digest() -> None:
    both = pair()
    step(both)
    before = digest(*both)
    state = next(iter(both[1].state.values()))
    state["exp_avg"].view(torch.int32)[0, 0] ^= 1
    assert digest(*both) != before


def test_frozen_weights_count_in_the_digest_but_not_in_the_state() -> None:
    model, _ = pair()
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    before = digest(model, optimizer)
    assert set(collect(model, optimizer).tensors) == {"model/2.weight", "model/2.bias"}
    with torch.no_grad():
        model[0].weight[0, 0] += 1
    assert digest(model, optimizer) != before


def test_the_state_of_another_model_is_refused() -> None:
    other = nn.Linear(4, 6)
    state = collect(other, torch.optim.AdamW(other.parameters()))
    with pytest.raises(CheckpointError, match="that of another model"):
        restore(*pair(), state)


def write(root: Path, *steps: int) -> None:
    both = pair()
    for number in steps:
        save_checkpoint(root, number, collect(*both), {"seed": 0}, {"loss": 1.5})


@pytest.mark.parametrize("damage", ["flip", "truncate", "no record", "half record"])
def test_a_damaged_newest_one_falls_back_to_the_one_before(tmp_path: Path, damage: str) -> None:
    write(tmp_path, 10, 20)
    tensors, record = (tmp_path / "step-00000020" / n for n in ("state.safetensors", "state.json"))
    content = bytearray(tensors.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        tensors.write_bytes(content)
    elif damage == "truncate":
        tensors.write_bytes(content[: len(content) // 2])
    elif damage == "no record":
        record.unlink()
    else:
        record.write_bytes(record.read_bytes()[:20])
    told: list[str] = []
    saved = newest_checkpoint(tmp_path, told.append)
    assert saved is not None
    assert saved.step == 10
    assert told[0].startswith("checkpoint step-00000020 is damaged: ")
    assert told[0].endswith("; trying the one before")


def test_without_any_whole_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "absent") is None
    (tmp_path / "step-00000001").mkdir()
    assert newest_checkpoint(tmp_path) is None


def test_a_damaged_checkpoint_is_written_again_and_a_whole_one_kept(tmp_path: Path) -> None:
    write(tmp_path, 5)
    tensors = tmp_path / "step-00000005" / "state.safetensors"
    whole = tensors.stat().st_ino
    write(tmp_path, 5)
    assert tensors.stat().st_ino == whole
    tensors.write_bytes(b"nothing")
    write(tmp_path, 5)
    assert load_checkpoint(tmp_path / "step-00000005").step == 5


def test_policy_keeps_the_last_ones_and_every_nth(tmp_path: Path) -> None:
    write(tmp_path, 10, 20, 30, 40, 50)
    deleted = prune_checkpoints(tmp_path, keep_last=2, keep_every=20)
    assert [p.name for p in deleted] == ["step-00000010", "step-00000030"]
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000020", "step-00000040", "step-00000050"]
    prune_checkpoints(tmp_path, keep_last=0)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000050"]


def test_litter_of_writers_that_died_is_deleted_once_it_is_old(tmp_path: Path) -> None:
    import os

    write(tmp_path, 10)
    old, young = (tmp_path / f"{TMP_PREFIX}{n}-step-00000020" for n in (1, 2))
    for path in (old, young):
        path.mkdir()
    os.utime(old, (0, 0))
    prune_checkpoints(tmp_path)
    assert not old.exists()
    assert young.exists()


def test_another_contract_is_refused_with_every_field_that_differs() -> None:
    saved = {"threads": 1, "seed": 3, "torch": "2.12"}
    with pytest.raises(CheckpointError) as caught:
        require_contract(saved, {"threads": 2, "seed": 3, "data": "ab"}, "checkpoint step-00000040")
    assert caught.value.message == (
        "checkpoint step-00000040 was made under another determinism contract: "
        "data absent -> ab; threads 1 -> 2; torch 2.12 -> absent"
    )
    assert "--ignore-contract" in caught.value.hint
    require_contract(saved, dict(saved), "x")
