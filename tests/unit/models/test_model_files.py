"""Model directories: round trip, damage, foreign networks."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch

from tidecell.models.checkpoint import load_config, load_model, save_model
from tidecell.models.files import TMP_PREFIX, whole_directory
from tidecell.models.transformer import ModelConfig, Transformer
from tidecell.structs.errors import CheckpointError, SpecError


def small(tied: bool = True, **changes: object) -> ModelConfig:
    base = {
        "vocab_size": 50,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
        "tie_word_embeddings": tied,
        "eos_token_id": 3,
    }
    return msgspec.convert({**base, **changes}, ModelConfig)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_a_saved_model_gives_the_same_logits(tmp_path: Path, tied: bool, qk_norm: bool) -> None:
    model = Transformer(small(tied, qk_norm=qk_norm), seed=5)
    save_model(tmp_path / "m", model, card={"steps": 7})
    loaded, config = load_model(tmp_path / "m", verify=True)
    tokens = torch.arange(12).view(1, 12)
    assert torch.equal(loaded(tokens), model(tokens))
    assert (config.eos_token_id, config.tie_word_embeddings, config.qk_norm) == (3, tied, qk_norm)


def test_directory_has_the_files_that_others_read(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tok"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    save_model(tmp_path / "m", Transformer(small()), tokenizer_dir=tokenizer, generation={"temperature": 0.8})
    assert {f.name for f in (tmp_path / "m").iterdir()} == {
        "config.json",
        "model.safetensors",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "card.json",
    }
    config = msgspec.json.decode((tmp_path / "m/config.json").read_bytes())
    assert config["architectures"] == ["LlamaForCausalLM"]
    generation = msgspec.json.decode((tmp_path / "m/generation_config.json").read_bytes())
    assert generation == {"eos_token_id": 3, "temperature": 0.8}


def test_saving_again_replaces_the_model_and_leaves_no_litter(tmp_path: Path) -> None:
    save_model(tmp_path / "m", Transformer(small(), seed=1))
    second = Transformer(small(), seed=2)
    save_model(tmp_path / "m", second)
    loaded, _ = load_model(tmp_path / "m")
    assert torch.equal(loaded.lm_head.weight, second.lm_head.weight)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(TMP_PREFIX)]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with whole_directory(tmp_path / "x") as temporary:
            (temporary / "half").write_text("a")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "m", Transformer(small()))
    weights = tmp_path / "m/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged: its sha256 is"):
        load_model(tmp_path / "m", verify=True)


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "m", Transformer(small()))
    weights = tmp_path / "m/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_model(tmp_path / "m")


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "m", Transformer(small()))
    config = small(num_hidden_layers=3)
    (tmp_path / "m/config.json").write_bytes(msgspec.json.encode(config.to_hf()))
    with pytest.raises(CheckpointError, match="9 weights are missing and 0 unknown"):
        load_model(tmp_path / "m")


def test_a_directory_without_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not a model directory: it has no config\.json"):
        load_config(tmp_path)


def test_a_foreign_network_is_refused_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "vocab_size": 9, "hidden_act": "gelu"}')
    with pytest.raises(SpecError) as caught:
        load_config(tmp_path)
    assert [m.where for m in caught.value.mistakes] == ["hidden_act", "model_type"]


def test_shapes_in_the_style_of_transformers_4_and_5_are_read() -> None:
    old = ModelConfig.from_hf({"vocab_size": 9, "rope_theta": 500000.0, "num_attention_heads": 6})
    new = ModelConfig.from_hf(
        {"vocab_size": 9, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    )
    assert old.rope_theta == new.rope_theta == 500000.0
    assert old.num_key_value_heads == 6
    with pytest.raises(SpecError):
        ModelConfig.from_hf({"vocab_size": 9, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}})
