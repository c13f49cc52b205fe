"""What a training is: one struct, stored beside the run, the same for all its workers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec

from tidecell.structs.errors import Mistake, SpecError

LOADERS = {"train": "tidecell.data.loader:Loader", "tune": "tidecell.data.loader:SftLoader"}


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """Shape of a network to be trained from nothing, in the field names of ``LlamaConfig``."""

    hidden_size: int = 192
    intermediate_size: int = 512
    num_hidden_layers: int = 4
    num_attention_heads: int = 6
    num_key_value_heads: int = 3
    max_position_embeddings: int = 512
    tie_word_embeddings: bool = True
    qk_norm: bool = False
    initializer_range: float = 0.06


# Parameters with a vocabulary of 2,048: 1.0, 2.0, 5.6 and 16 million.
SHAPES = {
    "tiny": Shape(hidden_size=128, intermediate_size=352, num_attention_heads=4, num_key_value_heads=2),
    "small": Shape(),
    "medium": Shape(hidden_size=288, intermediate_size=768, num_hidden_layers=6),
    "large": Shape(
        hidden_size=448,
        intermediate_size=1216,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
    ),
}


class Lora(msgspec.Struct, frozen=True, kw_only=True):
    """Low-rank adapters (Hu et al., 2021): weights plus ``alpha / rank * B A``."""

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """Learning rate over the steps.

    Attributes:
        kind: ``cosine``, or ``wsd``: warm up, stay, decay linearly over the last ``decay_share``.
        warmup_steps: Linear rise from 0; never more than a third of all steps.
        floor: Share of ``lr`` at the end.
    """

    kind: str = "cosine"
    lr: float = 2e-3
    warmup_steps: int = 80
    floor: float = 0.1
    decay_share: float = 0.2

    def at(self, step: int, num_steps: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warmup = min(self.warmup_steps, num_steps // 3)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        if self.kind == "wsd":
            length = max(1, round(num_steps * self.decay_share))
            left = min(1.0, (num_steps - step) / length)
            return self.lr * (self.floor + (1 - self.floor) * left)
        done = (step - warmup) / max(1, num_steps - warmup)
        return self.lr * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


class TrainConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One training, from nothing (``kind: train``) or of a model that exists (``kind: tune``).

    Defaults suit two million parameters and the source of Python's library on a CPU. Tried there, one seed
    each, bits per character on 64 held-out rows (on which they were chosen, too):

        8 rows a step, 600 steps, init 0.02, beta2 0.95, warm-up 30: lr 1.5e-3 1.936, 2e-3 1.940
        the same, 640 steps, warm-up 20: lr 3e-3 2.112
        16 rows a step, 320 steps, warm-up 20: lr 1e-3 2.016, 1.5e-3 1.983, 3e-3 2.069, 6e-3 2.248
        8 rows a step, 300 steps, lr 2e-3: warm-up 20 2.333, warm-up 80 2.123, init 0.06 and warm-up 30 2.119,
        all of init 0.06, warm-up 80 and beta2 0.99 2.066; those with 600 steps 1.810

    Attributes:
        run_dir: Where checkpoints, metrics and the model go.
        dataset: Directory of one version of a dataset.
        loader: ``module:callable`` that opens ``(directory, split, seq_len, seed)`` and has ``batch``
            and ``rows``; empty: Tidecell's for this kind.
        base_model: Directory of the model to tune.
        lora: Adapters to train instead of all weights (tune only).
        num_vranks: Micro-batches per step, and the most workers that can share them.
        stop_at_step: End early at this step, on the schedule of ``num_steps``; 0: do not.
        validate_every: Steps; 0: only at the end. ``validate_rows`` rows of the validation split.
        checkpoint_every: Steps; the last ``keep_last`` stay, and every ``keep_every``-th for good.
        sample_every: Steps between samples of text; 0: only at the end.
        digest_at: Steps whose digest is written, besides those of checkpoints.
        threads: Threads that torch computes with.
        device: ``cpu``, ``cuda``, or empty: CUDA where there is a device.
    """

    kind: str = "train"
    name: str
    run_dir: str
    dataset: str
    loader: str = ""
    shape: Shape = Shape()
    base_model: str = ""
    lora: Lora | None = None
    num_steps: int = 600
    stop_at_step: int = 0
    num_vranks: int = 4
    micro_batch: int = 2
    seq_len: int = 128
    schedule: Schedule = Schedule()
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    max_grad_norm: float = 1.0
    seed: int = 0
    threads: int = 1
    device: str = ""
    validate_every: int = 50
    validate_rows: int = 64
    checkpoint_every: int = 50
    keep_last: int = 2
    keep_every: int = 0
    sample_every: int = 0
    sample_prompt: str = "def "
    sample_tokens: int = 64
    sample_temperature: float = 0.7
    digest_at: tuple[int, ...] = ()
    ignore_contract: bool = False

    @property
    def last_step(self) -> int:
        """Step at which this training ends."""
        return min(self.stop_at_step or self.num_steps, self.num_steps)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of the global batch."""
        return self.num_vranks * self.micro_batch * self.seq_len

    def check(self) -> None:
        """Raise ``SpecError`` with every mistake."""
        mistakes = [
            Mistake(name, f"{value} is not allowed", f"at least {least}")
            for name, value, least in (
                ("num_steps", self.num_steps, 1),
                ("num_vranks", self.num_vranks, 1),
                ("micro_batch", self.micro_batch, 1),
                ("seq_len", self.seq_len, 1),
                ("threads", self.threads, 1),
                ("checkpoint_every", self.checkpoint_every, 1),
                ("stop_at_step", self.stop_at_step, 0),
                ("validate_rows", self.validate_rows, 1),
            )
            if value < least
        ]
        if self.kind not in LOADERS:
            mistakes.append(Mistake("kind", f"{self.kind!r} is unknown", "train or tune"))
        if self.schedule.kind not in ("cosine", "wsd"):
            mistakes.append(Mistake("schedule", f"{self.schedule.kind!r} is unknown", "cosine or wsd"))
        if self.kind == "tune" and not self.base_model:
            mistakes.append(Mistake("base_model", "a tuning needs a model to start from"))
        if self.kind == "train" and self.lora is not None:
            mistakes.append(Mistake("lora", "adapters need a model to adapt", "use kind: tune"))
        if self.kind == "train" and self.seq_len > self.shape.max_position_embeddings:
            mistakes.append(
                Mistake(
                    "seq_len", f"{self.seq_len} is more than {self.shape.max_position_embeddings} positions"
                )
            )
        if mistakes:
            raise SpecError(mistakes, f"the configuration of '{self.name}'")

    def contract(self) -> dict[str, Any]:
        """Return what the weights depend on, besides what the runtime sees itself."""
        schedule = self.schedule
        return {
            "kind": self.kind,
            "loader": self.loader,
            "micro_batch": self.micro_batch,
            "seq_len": self.seq_len,
            "num_steps": self.num_steps,
            "schedule": f"{schedule.kind} {schedule.lr} {schedule.warmup_steps} {schedule.floor}"
            + (f" {schedule.decay_share}" if schedule.kind == "wsd" else ""),
            "max_grad_norm": self.max_grad_norm,
            "lora": str(msgspec.to_builtins(self.lora)),
        }


def load_config(path: Path) -> TrainConfig:
    """Return a stored configuration, checked.

    Raises:
        SpecError: It is not one.
    """
    try:
        config = msgspec.json.decode(path.read_bytes(), type=TrainConfig)
    except (OSError, msgspec.DecodeError) as error:
        raise SpecError([Mistake("", str(error))], str(path)) from error
    config.check()
    return config
