"""Models on disk, in Hugging Face's layout.

A model directory holds ``config.json``, ``model.safetensors``, ``generation_config.json``, the
tokenizer's files where one was given, and ``card.json``: where the weights come from. It opens in
transformers unchanged. Checkpoints of a training are in ``training_state.py``.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tidecell.models.files import read_json, sha256_file, whole_directory, write_json
from tidecell.models.transformer import ModelConfig, Transformer
from tidecell.structs.errors import CheckpointError

WEIGHTS = "model.safetensors"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def save_model(
    directory: Path,
    model: Transformer,
    *,
    tokenizer_dir: Path | None = None,
    card: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model directory, whole or not at all; one that exists is replaced.

    Args:
        tokenizer_dir: Where ``tokenizer.json`` lies (a dataset or another model); its files are copied.
        card: Provenance: data version, steps, loss, digest; ``weights_sha256`` is added.
        generation: Defaults for sampling, as in ``generation_config.json``.

    Returns:
        ``directory``.
    """
    with whole_directory(directory, replace=True) as temporary:
        save_file(portable_weights(model), temporary / WEIGHTS, metadata={"format": "pt"})
        write_json(temporary / "config.json", {**model.config.to_hf(), "torch_dtype": _dtype_name(model)})
        write_json(temporary / "generation_config.json", _generation_config(model.config, generation))
        _copy_tokenizer(tokenizer_dir, temporary, model.config)
        sha256 = sha256_file(temporary / WEIGHTS)
        write_json(temporary / "card.json", {**(card or {}), "weights_sha256": sha256})
    return directory


def load_model(directory: Path, verify: bool = False) -> tuple[Transformer, ModelConfig]:
    """Return the network with its weights, and its shape.

    Args:
        verify: Compare the weights' sha256 with the card's, where the card has one.

    Raises:
        CheckpointError: A file is missing or damaged, or the weights do not fit the shape.
        SpecError: ``config.json`` describes a network that we do not have.
    """
    config = load_config(directory)
    weights = directory / WEIGHTS
    if verify:
        _verify(directory)
    try:
        tensors = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{weights} cannot be read: {error}", "train or copy the model again"
        ) from error
    model = Transformer(config)
    if next(iter(tensors.values())).dtype != torch.float32:
        model.to(next(iter(tensors.values())).dtype)
    result = model.load_state_dict(tensors, strict=False)
    missing = [k for k in result.missing_keys if not (k == "lm_head.weight" and config.tie_word_embeddings)]
    if missing or result.unexpected_keys:
        names = ", ".join([*missing, *result.unexpected_keys][:4])
        raise CheckpointError(
            f"{weights} does not fit config.json: {len(missing)} weights are missing and "
            f"{len(result.unexpected_keys)} unknown ({names})"
        )
    return model, config


def load_config(directory: Path) -> ModelConfig:
    """Return the shape of the model in a directory.

    Raises:
        CheckpointError: There is no ``config.json``, or it is not JSON.
        SpecError: It describes a network that we do not have.
    """
    path = directory / "config.json"
    try:
        return ModelConfig.from_hf(read_json(path))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{directory} is not a model directory: it has no config.json",
            "give a directory that `tide train` or `tide tune` wrote, or one in Hugging Face's layout",
        ) from error
    except msgspec.DecodeError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def portable_weights(model: Transformer) -> dict[str, Tensor]:
    """Return the weights to save: on the CPU, contiguous, a tied head left out (as transformers does)."""
    tied = model.config.tie_word_embeddings
    return {
        name: tensor.detach().to("cpu").contiguous()
        for name, tensor in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }


def _verify(directory: Path) -> None:
    """Raise when the weights are not those that the card was written for."""
    card_path = directory / "card.json"
    if not card_path.exists():
        return
    expected = read_json(card_path).get("weights_sha256")
    found = sha256_file(directory / WEIGHTS)
    if expected and found != expected:
        raise CheckpointError(
            f"{directory / WEIGHTS} is damaged: its sha256 is {found[:12]}…, the card says {expected[:12]}…",
            "train or copy the model again",
        )


def _copy_tokenizer(source: Path | None, target: Path, config: ModelConfig) -> None:
    """Copy a tokenizer's files; write the small one that transformers wants when it is not there."""
    if source is None:
        return
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
    settings = target / "tokenizer_config.json"
    if not settings.exists():
        length = config.max_position_embeddings
        write_json(settings, {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length})


def _generation_config(config: ModelConfig, extra: Mapping[str, Any] | None) -> dict[str, Any]:
    ids = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    }
    return {**{k: v for k, v in ids.items() if v is not None}, **(extra or {})}


def _dtype_name(model: Transformer) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")
