"""What a training leaves behind while it runs: metrics, digests, checkpoints.

Only the leader writes; ``history`` reads it back.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tidecell.models.training_state import (
    State,
    collect,
    digest_tensors,
    prune_checkpoints,
    save_checkpoint,
)


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append one JSON line; starts on a line of its own even after a torn write."""
    line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line)


class CheckpointWriter:
    """Writes checkpoints and digests on a thread of its own; the training waits for a copy only.

    Args:
        run_dir: Checkpoints go to ``checkpoints/``, digests to ``digests.jsonl``.
        tell: Told when a write failed.
    """

    def __init__(
        self,
        run_dir: Path,
        contract: Mapping[str, Any],
        keep_last: int,
        keep_every: int,
        tell: Callable[[str], None],
    ) -> None:
        self.root = run_dir / "checkpoints"
        self._digests = run_dir / "digests.jsonl"
        self._contract = dict(contract)
        self._keep = (keep_last, keep_every)
        self._tell = tell
        self._thread: threading.Thread | None = None

    def write(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        facts: Mapping[str, Any],
        keep: bool = True,
    ) -> None:
        """Copy the state and write it behind the training's back.

        Args:
            keep: Whether to write a checkpoint, or the digest alone.
        """
        self.wait()
        state = collect(model, optimizer).copied()
        arguments = (step, state, dict(facts), keep)
        # Not a daemon: a process that ends in good order finishes its checkpoint.
        self._thread = threading.Thread(target=self._write, args=arguments, name="tidecell-checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until the last one is on disk."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, step: int, state: State, facts: dict[str, Any], keep: bool) -> None:
        try:
            digest = digest_tensors(state.tensors)
            append_line(self._digests, {"step": step, "digest": digest, **facts})
            if keep:
                save_checkpoint(self.root, step, state, self._contract, {"digest": digest, **facts})
                prune_checkpoints(self.root, *self._keep)
        except OSError as error:
            # A full disk must not end the training: older checkpoints stand, and this one is tried again.
            self._tell(f"checkpoint of step {step} could not be written: {error}")
