"""The state of a training: taken, put back, digested, kept on disk.

State is a flat mapping of named tensors (trained weights, persistent buffers, the optimizer's state) and
a JSON part (its numbers and settings). Elastic workers send it to newcomers; checkpoints store it. It
does not depend on the number of workers, so a checkpoint resumes at any world size.

A checkpoint is a directory ``step-00000040`` with ``state.safetensors`` and ``state.json``, written
whole, its sha256 checked on loading. There is no file that points at the newest one: it is found by
looking, so no pointer can be stale.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tidecell.models.files import TMP_PREFIX, read_json, sha256_file, whole_directory, write_json
from tidecell.structs.errors import CheckpointError

TENSORS = "state.safetensors"
RECORD = "state.json"
LITTER_AGE_S = 3600.0


class State(msgspec.Struct, frozen=True):
    """What a training needs to go on.

    Attributes:
        tensors: By name; views of the live ones until ``copied``.
        extra: JSON: the optimizer's settings, and its state that is not a tensor.
    """

    tensors: dict[str, Tensor]
    extra: dict[str, Any]

    def copied(self) -> State:
        """Return a copy in CPU memory that later steps do not change."""
        return State({name: t.to("cpu", copy=True) for name, t in self.tensors.items()}, self.extra)


class SavedState(msgspec.Struct, frozen=True):
    """A checkpoint that was loaded."""

    step: int
    state: State
    contract: dict[str, Any]
    path: Path


def collect(model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Return the state of a training; tensors are the live ones, not copies."""
    tensors: dict[str, Tensor] = {}
    kept = set(model.state_dict())
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in trained.items():
        tensors[f"model/{name}"] = parameter.detach()
    for name, buffer in model.named_buffers():
        if name in kept:
            tensors[f"model/{name}"] = buffer
    plain: dict[str, dict[str, Any]] = {}
    for name, parameter in trained.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optim/{name}/{key}"] = value
            else:
                plain.setdefault(name, {})[key] = value
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    return State(tensors, {"optimizer": plain, "groups": [_plain(group) for group in groups]})


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, state: State) -> None:
    """Put a state in place of the live one, weights copied into the parameters that exist.

    Raises:
        CheckpointError: It is the state of another model.
    """
    current = collect(model, optimizer)
    wanted = {name for name in current.tensors if name.startswith("model/")}
    given = {name for name in state.tensors if name.startswith("model/")}
    if wanted != given or any(current.tensors[n].shape != state.tensors[n].shape for n in wanted):
        raise CheckpointError("the state is that of another model: names or shapes of weights differ")
    with torch.no_grad():
        for name in wanted:
            current.tensors[name].copy_(state.tensors[name])
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer.state.clear()
    for name, parameter in parameters.items():
        for key, value in state.extra["optimizer"].get(name, {}).items():
            optimizer.state[parameter][key] = value
    for name, tensor in state.tensors.items():
        if name.startswith("optim/"):
            owner, _, key = name.removeprefix("optim/").rpartition("/")
            device = parameters[owner].device if tensor.dim() else tensor.device
            optimizer.state[parameters[owner]][key] = tensor.to(device, copy=True)
    for group, saved in zip(optimizer.param_groups, state.extra["groups"], strict=True):
        group.update({k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()})


def digest(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """Return the sha256 over all weights (frozen ones too) and the optimizer's state.

    Two trainings have one digest exactly when they are bit for bit the same.
    """
    frozen = {f"model/{name}": p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    return digest_tensors({**frozen, **collect(model, optimizer).tensors})


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 over names, types, shapes and bytes, in the order of names."""
    result = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu").contiguous()
        result.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        result.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return result.hexdigest()


def compare_contracts(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Return the fields that differ, as ``threads 1 -> 2``."""
    absent = "absent"
    return [
        f"{key} {saved.get(key, absent)} -> {current.get(key, absent)}"
        for key in sorted({*saved, *current})
        if saved.get(key, absent) != current.get(key, absent)
    ]


def require_contract(saved: Mapping[str, Any], current: Mapping[str, Any], what: str) -> None:
    """Raise ``CheckpointError`` when two determinism contracts differ, naming every field."""
    differences = compare_contracts(saved, current)
    if differences:
        raise CheckpointError(
            f"{what} was made under another determinism contract: {'; '.join(differences)}",
            "use the settings it was made with, start under another name, or waive bitwise equality "
            "with --ignore-contract",
        )


def checkpoint_path(root: Path, step: int) -> Path:
    """Return where the checkpoint of a step lies."""
    return root / f"step-{step:08d}"


def save_checkpoint(
    root: Path, step: int, state: State, contract: Mapping[str, Any], facts: Mapping[str, Any] | None = None
) -> Path:
    """Write a checkpoint whole; one of the same step that loads is kept, a damaged one replaced.

    Args:
        facts: More to write beside it, for example the loss and the digest.
    """
    path = checkpoint_path(root, step)
    damaged = path.exists() and _damage(path) is not None
    with whole_directory(path, replace=damaged) as temporary:
        save_file({k: t.contiguous() for k, t in state.tensors.items()}, temporary / TENSORS)
        record = {
            "step": step,
            "sha256": sha256_file(temporary / TENSORS),
            "contract": dict(contract),
            "extra": state.extra,
            "facts": dict(facts or {}),
        }
        write_json(temporary / RECORD, record)
    return path


def load_checkpoint(path: Path) -> SavedState:
    """Return the checkpoint in a directory.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    damage = _damage(path)
    if damage:
        raise CheckpointError(
            f"checkpoint {path.name} is damaged: {damage}", "delete it; an older one is used"
        )
    record = read_json(path / RECORD)
    state = State(load_file(path / TENSORS), record["extra"])
    return SavedState(record["step"], state, record["contract"], path)


def newest_checkpoint(root: Path, tell: Callable[[str], None] = lambda text: None) -> SavedState | None:
    """Return the newest checkpoint that is whole, or None; ``tell`` is told of each damaged one."""
    for path in reversed(list_checkpoints(root)):
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            tell(f"{error.message}; trying the one before")
    return None


def list_checkpoints(root: Path) -> list[Path]:
    """Return the checkpoints under ``root``, oldest first, damaged ones included."""
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if p.is_dir() and p.name.startswith("step-"))


def prune_checkpoints(root: Path, keep_last: int = 2, keep_every: int = 0) -> list[Path]:
    """Delete what the policy does not keep, and litter of writers that died; return what was deleted.

    Args:
        keep_last: How many of the newest stay; at least 1.
        keep_every: Steps that are multiples of this stay as well; 0: none.
    """
    paths = list_checkpoints(root)
    doomed = [
        path
        for path in paths[: -max(1, keep_last)]
        if not (keep_every and int(path.name.removeprefix("step-")) % keep_every == 0)
    ]
    for path in [*doomed, *_litter(root)]:
        shutil.rmtree(path, ignore_errors=True)
    return doomed


def _litter(root: Path) -> list[Path]:
    """Return temporary directories that no living writer can still be filling."""
    limit_s = time.time() - LITTER_AGE_S
    return [p for p in root.glob(f"{TMP_PREFIX}*") if p.is_dir() and p.stat().st_mtime < limit_s]


def _damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint's files, or None."""
    try:
        record = read_json(path / RECORD)
        found = sha256_file(path / TENSORS)
    except (OSError, msgspec.DecodeError, SafetensorError) as error:
        return str(error)
    if found != record.get("sha256"):
        return f"{TENSORS} has sha256 {found[:12]}…, {RECORD} says {str(record.get('sha256'))[:12]}…"
    return None


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a parameter group that JSON can hold."""
    return {
        key: value
        for key, value in group.items()
        if isinstance(value, (bool, int, float, str, type(None)))
        or (isinstance(value, (tuple, list)) and all(isinstance(v, (int, float)) for v in value))
    }
