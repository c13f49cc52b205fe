"""The training loop in one process: learning, resuming, refusing, tuning, what it leaves behind."""

from __future__ import annotations

import itertools
import json
import math
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from synthetic_rows import LOADER, VOCAB, make_dataset

from tidecell.models.checkpoint import load_model
from tidecell.models.training_state import list_checkpoints
from tidecell.structs.errors import CheckpointError, DataError, SpecError
from tidecell.train.config import Lora, Schedule, Shape, TrainConfig, load_config
from tidecell.train.history import read_by_step, read_lines
from tidecell.train.loop import Training
from tidecell.train.lora import add_adapters, load_adapter, merge
from tidecell.train.records import append_line

SHAPE = Shape(
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=64,
)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "data")


def config(dataset: Path, run: str = "run", **changes: Any) -> TrainConfig:
    base = TrainConfig(
        name="t",
        run_dir=str(dataset.parent / run),
        dataset=str(dataset),
        loader=LOADER,
        shape=SHAPE,
        num_steps=12,
        num_vranks=2,
        micro_batch=2,
        seq_len=12,
        schedule=Schedule(lr=1e-2, warmup_steps=2),
        validate_every=4,
        validate_rows=12,
        checkpoint_every=4,
        sample_prompt="AC",
        sample_tokens=4,
    )
    return msgspec.structs.replace(base, **changes)


def run(of: TrainConfig) -> dict[str, Any]:
    return Training(of, tell=lambda text: None).run()


def test_it_learns_and_leaves_model_card_curve_and_digests(dataset: Path) -> None:
    card = run(config(dataset, num_steps=60))
    root = dataset.parent / "run"
    assert card["val_loss"] < 1.0 < math.log(VOCAB)
    assert card["bits_per_char"] == pytest.approx(card["val_loss"] / math.log(2) / 2.0)
    assert card["perplexity"] == pytest.approx(math.exp(card["val_loss"]))
    model, shape = load_model(root / "model", verify=True)
    assert shape.eos_token_id == 0
    assert json.loads((root / "model/card.json").read_text())["digest"] == card["digest"]
    assert len(json.loads((root / "loss.json").read_text())) == 60
    digests = {r["step"]: r["digest"] for r in read_lines(root / "digests.jsonl")}
    assert digests[60] == card["digest"]
    tokens = torch.tensor([[5, 7, 9, 11, 13, 15]])
    assert int(model(tokens)[0, -1].argmax()) == 17


def test_metrics_have_each_step_and_validation_at_intervals(dataset: Path) -> None:
    run(config(dataset))
    records = read_by_step(dataset.parent / "run" / "metrics.jsonl")
    assert [r["step"] for r in records] == list(range(1, 13))
    assert [r["step"] for r in records if "val_loss" in r] == [5, 9]
    assert {"loss", "lr", "grad_norm", "tokens_per_s", "world_size", "at"} <= set(records[0])


def test_validation_does_not_touch_the_weights(dataset: Path) -> None:
    often = run(config(dataset, "often", validate_every=1, sample_every=2))
    never = run(config(dataset, "never", validate_every=0))
    assert often["digest"] == never["digest"]
    assert often["val_loss"] == never["val_loss"]


def test_stopping_and_resuming_gives_the_bits_of_one_run(dataset: Path) -> None:
    whole = run(config(dataset, "whole"))
    first = run(config(dataset, "parts", stop_at_step=6))
    assert first["steps"] == 6
    assert first["digest"] != whole["digest"]
    assert run(config(dataset, "parts"))["digest"] == whole["digest"]
    steps = [r["step"] for r in read_lines(dataset.parent / "parts/metrics.jsonl") if "loss" in r]
    assert steps == list(range(1, 13))


def test_a_damaged_newest_checkpoint_costs_only_its_steps(dataset: Path) -> None:
    whole = run(config(dataset, "whole"))
    run(config(dataset, "parts", stop_at_step=8))
    newest = list_checkpoints(dataset.parent / "parts/checkpoints")[-1]
    (newest / "state.safetensors").write_bytes(b"torn")
    told: list[str] = []
    card = Training(config(dataset, "parts"), tell=told.append).run()
    assert card["digest"] == whole["digest"]
    assert told[0].startswith("checkpoint step-00000008 is damaged")
    assert told[1] == "resuming 't' after step 4"


def test_other_settings_are_refused_and_can_be_waived(dataset: Path) -> None:
    run(config(dataset, stop_at_step=4))
    other = config(dataset, seed=1, micro_batch=3)
    with pytest.raises(CheckpointError) as caught:
        run(other)
    assert caught.value.message == (
        "checkpoint step-00000004 was made under another determinism contract: "
        "micro_batch 2 -> 3; seed 0 -> 1"
    )
    assert run(msgspec.structs.replace(other, ignore_contract=True))["steps"] == 12


def test_other_data_is_refused(dataset: Path) -> None:
    run(config(dataset, stop_at_step=4))
    manifest = json.loads((dataset / "manifest.json").read_text())
    (dataset / "manifest.json").write_text(json.dumps({**manifest, "version": "v2"}))
    with pytest.raises(CheckpointError, match="data v1 -> v2"):
        run(config(dataset))


def test_threads_are_part_of_the_contract(dataset: Path) -> None:
    run(config(dataset, stop_at_step=4))
    with pytest.raises(CheckpointError, match="threads 1 -> 2"):
        run(config(dataset, threads=2))
    torch.set_num_threads(1)


def test_a_signal_checkpoints_and_ends_the_process(dataset: Path) -> None:
    whole = run(config(dataset, "whole"))
    training = Training(config(dataset, "cut"), tell=lambda text: None)
    inner = training.rows.batch

    def batch(step: int, *rest: Any) -> Any:
        if step == 6:
            signal.raise_signal(signal.SIGTERM)
        return inner(step, *rest)

    training.rows.batch = batch  # type: ignore[method-assign]
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left:
        training.run()
    assert left.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    assert [p.name for p in list_checkpoints(dataset.parent / "cut/checkpoints")][-1] == "step-00000006"
    from tidecell import task_link

    task_link.agent_link().notice = None
    assert run(config(dataset, "cut"))["digest"] == whole["digest"]


def test_full_tuning_starts_from_the_base_model(dataset: Path) -> None:
    run(config(dataset))
    base = str(dataset.parent / "run/model")
    before, _ = load_model(Path(base))
    card = run(config(dataset, "tuned", kind="tune", base_model=base, num_steps=3, stop_at_step=1))
    after, _ = load_model(dataset.parent / "tuned/model")
    moved = (after.lm_head.weight - before.lm_head.weight).detach().abs().max()
    assert 0 < float(moved) < 0.1
    assert card["base_model"] == base


def test_adapters_train_alone_and_merge_into_the_model(dataset: Path) -> None:
    run(config(dataset))
    base = str(dataset.parent / "run/model")
    lora = Lora(rank=2, alpha=4.0)
    card = run(config(dataset, "lora", kind="tune", base_model=base, lora=lora))
    assert card["val_loss"] > 0
    assert "bits_per_char" not in card  # not known of answers
    adapted, _ = load_model(Path(base))
    assert load_adapter(dataset.parent / "lora/adapter", adapted) == lora
    merged, _ = load_model(dataset.parent / "lora/model")
    tokens = torch.arange(5, 17).view(1, 12)
    torch.testing.assert_close(merged(tokens), adapted(tokens), atol=1e-5, rtol=1e-4)
    plain, _ = load_model(Path(base))
    assert not torch.allclose(merged(tokens), plain(tokens), atol=1e-3)
    assert torch.equal(merged.model.embed_tokens.weight, plain.model.embed_tokens.weight)


def test_adapters_resume_bitwise(dataset: Path) -> None:
    run(config(dataset))
    tuned = config(
        dataset,
        "a",
        kind="tune",
        base_model=str(dataset.parent / "run/model"),
        lora=Lora(rank=2),
        num_steps=8,
    )
    whole = run(tuned)
    parts = msgspec.structs.replace(tuned, run_dir=str(dataset.parent / "b"), stop_at_step=3)
    run(parts)
    assert run(msgspec.structs.replace(parts, stop_at_step=0))["digest"] == whole["digest"]


def test_fresh_adapters_change_nothing(dataset: Path) -> None:
    run(config(dataset))
    plain, _ = load_model(dataset.parent / "run/model")
    adapted, _ = load_model(dataset.parent / "run/model")
    add_adapters(adapted, Lora(), seed=1)
    tokens = torch.arange(5, 17).view(1, 12)
    assert torch.equal(adapted(tokens), plain(tokens))
    assert torch.equal(merge(adapted)(tokens), plain(tokens))
    with pytest.raises(SpecError):
        add_adapters(plain, Lora(targets=("no_such",)), seed=0)


def test_adapter_files_have_pefts_names(dataset: Path) -> None:
    run(config(dataset))
    base = str(dataset.parent / "run/model")
    run(config(dataset, "lora", kind="tune", base_model=base, lora=Lora(rank=2, targets=("q_proj",))))
    from safetensors.torch import load_file

    adapter = dataset.parent / "lora/adapter"
    names = set(load_file(adapter / "adapter_model.safetensors"))
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    assert names == {f"{prefix}.lora_A.weight", f"{prefix}.lora_B.weight"}
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["r"], settings["target_modules"]) == ("LORA", 2, ["q_proj"])


def test_rows_without_labels_teach_nothing_and_break_nothing(dataset: Path) -> None:
    (dataset / "labels").write_text("none")
    card = run(config(dataset, num_steps=3))
    assert math.isfinite(card["loss"])


def test_a_missing_manifest_and_an_unknown_loader_are_said(dataset: Path) -> None:
    with pytest.raises(SpecError) as caught:
        run(config(dataset, loader="no_such_module:Rows"))
    assert "no_such_module" in caught.value.mistakes[0].message
    (dataset / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"manifest\.json cannot be used"):
        run(config(dataset))


def test_a_configuration_is_refused_with_all_its_mistakes(tmp_path: Path) -> None:
    bad = TrainConfig(
        kind="tune", name="x", run_dir="r", dataset="d", num_steps=0, schedule=Schedule(kind="steps")
    )
    path = tmp_path / "config.json"
    path.write_bytes(msgspec.json.encode(bad))
    with pytest.raises(SpecError) as caught:
        load_config(path)
    assert [m.where for m in caught.value.mistakes] == ["num_steps", "schedule", "base_model"]


@pytest.mark.parametrize(("kind", "at_80"), [("cosine", 0.19), ("wsd", 1.0)])
def test_schedules_rise_hold_and_fall_to_their_floor(kind: str, at_80: float) -> None:
    schedule = Schedule(kind=kind, lr=1.0, warmup_steps=10, floor=0.1)
    rates = [schedule.at(step, 100) for step in range(101)]
    assert rates[:3] == [0.1, 0.2, pytest.approx(0.3)]
    assert rates[9] == 1.0
    assert rates[80] == pytest.approx(at_80, abs=0.02)
    assert rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_a_short_training_warms_up_for_a_third_of_it() -> None:
    schedule = Schedule(lr=1.0, warmup_steps=80)
    assert schedule.at(3, 12) == 1.0
    assert schedule.at(0, 1) == pytest.approx(1.0)


def test_a_torn_line_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"step": 1, "loss": 3.0})
    with path.open("ab") as file:
        file.write(b'{"step": 2, "lo')
    append_line(path, {"step": 2, "loss": 2.0})
    append_line(path, {"step": 2, "loss": 1.5})
    append_line(path, {"event": "regroup", "step": 2})
    assert read_by_step(path) == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 1.5}]
