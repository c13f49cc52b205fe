"""Low-rank adapters: small matrices beside frozen weights.

Saved in peft's layout, so that peft, vLLM and llama.cpp read them. Source: Hu et al., LoRA (2021).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tidecell.models.files import read_json, whole_directory, write_json
from tidecell.models.transformer import Transformer
from tidecell.structs.errors import CheckpointError, Mistake, SpecError
from tidecell.train.config import Lora

PEFT_PREFIX = "base_model.model."


class LoraLinear(nn.Module):
    """A frozen linear layer plus ``scale * B A``; B starts at zero, so nothing changes at first."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = base.weight
        self.scale = alpha / rank
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))
        bound = 1 / math.sqrt(base.in_features)
        with torch.no_grad():
            self.lora_A.uniform_(-bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        low = nn.functional.linear(nn.functional.linear(x, self.lora_A), self.lora_B)
        return nn.functional.linear(x, self.weight) + low * self.scale

    def merged(self) -> Tensor:
        """Return the weight with the adapter added."""
        return self.weight.detach() + self.scale * (self.lora_B.detach() @ self.lora_A.detach())


def add_adapters(model: Transformer, lora: Lora, seed: int) -> None:
    """Freeze the model and put adapters beside the target layers.

    Raises:
        SpecError: A target names no layer.
    """
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    found = set()
    for name, layer in list(model.named_modules()):
        parent, _, last = name.rpartition(".")
        if last in lora.targets and isinstance(layer, nn.Linear):
            found.add(last)
            setattr(model.get_submodule(parent), last, LoraLinear(layer, lora.rank, lora.alpha, generator))
    missing = [t for t in lora.targets if t not in found]
    if missing or not found:
        raise SpecError([Mistake("lora.targets", f"no layer is called {t!r}") for t in missing], "lora")


def adapters(model: Transformer) -> Iterator[tuple[str, LoraLinear]]:
    """Yield the adapted layers with their names."""
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLinear):
            yield name, layer


def merge(model: Transformer) -> Transformer:
    """Return a plain network with the adapters added into the weights."""
    weights = {name: t for name, t in model.state_dict().items() if ".lora_" not in name}
    for name, layer in adapters(model):
        weights[f"{name}.weight"] = layer.merged()
    plain = Transformer(model.config)
    plain.load_state_dict(weights)
    return plain


def save_adapter(directory: Path, model: Transformer, lora: Lora, base_model: str) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``."""
    tensors: dict[str, Tensor] = {}
    for name, layer in adapters(model):
        tensors[f"{PEFT_PREFIX}{name}.lora_A.weight"] = layer.lora_A.detach().contiguous()
        tensors[f"{PEFT_PREFIX}{name}.lora_B.weight"] = layer.lora_B.detach().contiguous()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(lora.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    with whole_directory(directory, replace=True) as temporary:
        save_file(tensors, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
        write_json(temporary / "adapter_config.json", config)


def load_adapter(directory: Path, model: Transformer) -> Lora:
    """Add the adapters of a directory to a model; return their settings.

    Raises:
        CheckpointError: They do not fit the model.
    """
    config = read_json(directory / "adapter_config.json")
    lora = Lora(rank=config["r"], alpha=config["lora_alpha"], targets=tuple(config["target_modules"]))
    add_adapters(model, lora, seed=0)
    tensors = load_file(directory / "adapter_model.safetensors")
    for name, layer in adapters(model):
        try:
            with torch.no_grad():
                layer.lora_A.copy_(tensors.pop(f"{PEFT_PREFIX}{name}.lora_A.weight"))
                layer.lora_B.copy_(tensors.pop(f"{PEFT_PREFIX}{name}.lora_B.weight"))
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"the adapter in {directory} does not fit {name}: {error}") from error
    if tensors:
        raise CheckpointError(f"the adapter in {directory} has {len(tensors)} weights too many")
    return lora
