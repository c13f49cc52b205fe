"""Pre-training and fine-tuning: the loop around an elastic session.

The same loop runs in every worker. What only one may do (files, reports) the leader does; whoever is
leader then. It resumes from the newest whole checkpoint at any number of workers, measures validation with
all workers and without touching the training's random state, and ends with a model directory.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from tidecell.models.checkpoint import load_model, save_model
from tidecell.models.files import sha256_file, write_json
from tidecell.models.training_state import digest, newest_checkpoint, require_contract, restore
from tidecell.models.transformer import ModelConfig, Transformer
from tidecell.train.batches import DataFacts, Text, open_rows, read_facts, to_tensors
from tidecell.train.config import LOADERS, TrainConfig
from tidecell.train.determinism import compute_exactly
from tidecell.train.elastic import Session
from tidecell.train.history import read_by_step
from tidecell.train.lora import add_adapters, merge, save_adapter
from tidecell.train.provenance import code_version
from tidecell.train.records import CheckpointWriter, append_line
from tidecell.train.validation import Validation

REPORT_EVERY_S = 0.2
# A change of membership must not show as a dip in speed for long.
SPEED_WINDOW_STEPS = 8


class Training:
    """One worker's training.

    Args:
        config: Checked.
        tell: Told, in words, what a person should know; by default printed to stderr.
        watch: Given what is reported to the cell.

    Attributes:
        result: After ``run`` on the worker that finished: the card of the model.
    """

    def __init__(
        self,
        config: TrainConfig,
        tell: Callable[[str], None] | None = None,
        watch: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.config = config
        self.run_dir = Path(config.run_dir)
        self.result: dict[str, Any] = {}
        self._tell = tell or (lambda text: print(text, file=sys.stderr, flush=True))
        self._watch = watch or (lambda report: None)
        device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.device = torch.device(device)
        compute_exactly(self.device)
        directory = Path(config.dataset)
        self.facts = read_facts(directory)
        loader = config.loader or LOADERS[config.kind]
        self.rows = open_rows(loader, directory, "train", config.seq_len, config.seed)
        self.model = build_model(config, self.facts).to(self.device)
        self.optimizer = build_optimizer(config, self.model)
        validation_rows = open_rows(loader, directory, "validation", config.seq_len, config.seed)
        self.validation = Validation(self.model, validation_rows, config.validate_rows, self.device)
        self.text = Text(self.facts.tokenizer_dir)
        self.session = Session(
            self.model,
            self.optimizer,
            num_vranks=config.num_vranks,
            seed=config.seed,
            max_grad_norm=config.max_grad_norm,
            threads=config.threads,
            contract=self._contract(),
            restore=self._restore,
            on_stop=self._checkpoint_and_wait,
            ignore_contract=config.ignore_contract,
        )
        self.writer = CheckpointWriter(
            self.run_dir, self.session.contract, config.keep_last, config.keep_every, self._tell
        )
        self._metrics = self.run_dir / "metrics.jsonl"
        self._step_ended: list[float] = []
        self._reported_at = 0.0
        self._events_written = 0
        self._val: dict[str, float] = {}

    def run(self) -> dict[str, Any]:
        """Train to the last step and return the model's card; in a cell only the finishing worker returns."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        with self.session as session:
            self._step_ended = [time.perf_counter()]
            for step in session.steps(self.config.last_step):
                self._one_step(step)
            session.finish(self._finish)
        return self.result

    # -- the loop's parts ------------------------------------------------------------------------------

    def _one_step(self, step: int) -> None:
        config = self.config
        validate = config.validate_every > 0 and step > 0 and step % config.validate_every == 0
        self.session.step(
            lambda vrank: self._loss(step, vrank),
            lr=config.schedule.at(step, config.num_steps),
            probe=self.validation.probe,
            num_probes=self.validation.num_probes if validate else 0,
        )
        self._step_ended = [*self._step_ended[-SPEED_WINDOW_STEPS:], time.perf_counter()]
        if not self.session.is_leader or self.session.committed != step + 1:
            return
        if self.session.probed:
            self._val = self._validated(self.session.probed)
        self._record(step)
        done = self.session.committed
        if done % config.checkpoint_every == 0 or done == config.last_step:
            self._checkpoint()
        elif done in config.digest_at:
            self._checkpoint(keep=False)
        if config.sample_every and done % config.sample_every == 0:
            append_line(self.run_dir / "samples.jsonl", {"step": done, "text": self._sample()})

    def _loss(self, step: int, vrank: int) -> Tensor:
        config = self.config
        batch = self.rows.batch(step, vrank, config.num_vranks, config.micro_batch)
        x_BT, y_BT = to_tensors(batch, self.device)
        logits_BTV = self.model(x_BT)
        loss = F.cross_entropy(logits_BTV.float().flatten(0, 1), y_BT.flatten(), ignore_index=-100)
        # A micro-batch without a single label has mean 0/0; it teaches nothing.
        return loss if bool((y_BT != -100).any()) else logits_BTV.sum() * 0.0

    def _record(self, step: int) -> None:
        """Write the step's numbers and report them, at most a few times a second."""
        session, config = self.session, self.config
        ended = self._step_ended
        tokens_per_s = config.tokens_per_step * (len(ended) - 1) / max(1e-9, ended[-1] - ended[0])
        record = {
            "step": session.committed,
            "loss": session.loss,
            "lr": config.schedule.at(step, config.num_steps),
            "grad_norm": session.grad_norm,
            "tokens_per_s": round(tokens_per_s, 1),
            "world_size": session.world_size,
            "generation": session.generation,
            "at": time.time(),
        }
        if session.probed:
            record |= self._val
        for event in session.events[self._events_written :]:
            append_line(self._metrics, {**event, "at": time.time()})
        self._events_written = len(session.events)
        append_line(self._metrics, record)
        if not math.isfinite(session.loss):
            self._tell(f"the loss is {session.loss} at step {session.committed}; a lower --lr may help")
        now = time.perf_counter()
        if now - self._reported_at >= REPORT_EVERY_S or session.committed == config.last_step:
            self._reported_at = now
            self._report({"kind": "train", "num_steps": config.last_step, **record, **self._val})

    def _validated(self, sums: list[float]) -> dict[str, float]:
        """Return validation's numbers; characters per token are known of documents, not of answers."""
        documents = self.config.kind == "train"
        return self.validation.result(sums, self.facts.chars_per_token if documents else None)

    def _sample(self) -> str:
        """Return a piece of text by the model as it is."""
        prompt = self.config.sample_prompt
        ids = self.text.question(prompt) if self.config.kind == "tune" else self.text.encode(prompt)
        new = self.model.generate(
            ids,
            self.config.sample_tokens,
            temperature=self.config.sample_temperature,
            seed=self.config.seed,
            stop_ids=frozenset({self.facts.end_of_text_id}),
        )
        text = self.text.decode(new)
        return text if self.config.kind == "tune" else prompt + text

    # -- checkpoints -----------------------------------------------------------------------------------

    def _contract(self) -> dict[str, Any]:
        base = Path(self.config.base_model) / "model.safetensors"
        return {
            **self.config.contract(),
            "data": self.facts.version,
            "base_model": sha256_file(base)[:16] if self.config.base_model else "",
        }

    def _checkpoint(self, keep: bool = True) -> None:
        facts = {"loss": self.session.loss, "world_size": self.session.world_size, **self._val}
        self.writer.write(self.session.committed, self.model, self.optimizer, facts, keep)

    def _checkpoint_and_wait(self) -> None:
        self._checkpoint()
        self.writer.wait()

    def _restore(self) -> int:
        saved = newest_checkpoint(self.writer.root, self._tell)
        if saved is None:
            return 0
        if not self.config.ignore_contract:
            require_contract(saved.contract, self.session.contract, f"checkpoint {saved.path.name}")
        restore(self.model, self.optimizer, saved.state)
        self._tell(f"resuming '{self.config.name}' after step {saved.step}")
        return saved.step

    # -- the end ---------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Validate, sample, and write the model with its card."""
        config = self.config
        numbers = [self.validation.probe(i) for i in range(self.validation.num_probes)]
        self._val = self._validated(numbers)
        self.writer.wait()
        curve = read_by_step(self._metrics)
        self.result = {
            "name": config.name,
            "kind": config.kind,
            "steps": self.session.committed,
            "tokens": self.session.committed * config.tokens_per_step,
            "loss": curve[-1]["loss"] if curve else None,
            **self._val,
            "digest": digest(self.model, self.optimizer),
            "num_parameters": self.model.num_parameters(),
            "data": {"directory": config.dataset, "version": self.facts.version},
            "base_model": config.base_model,
            "contract": self.session.contract,
            "code": code_version(),
            "sample": self._sample(),
        }
        points = [{k: r[k] for k in ("step", "loss", "val_loss") if k in r} for r in curve]
        write_json(self.run_dir / "loss.json", points)
        self._save_model()
        self._report({**self.result, "kind": "train-end"})

    def _report(self, data: dict[str, Any]) -> None:
        self._watch(data)
        self.session.report(data)

    def _save_model(self) -> None:
        model = self.model
        if self.config.lora is not None:
            save_adapter(self.run_dir / "adapter", model, self.config.lora, self.config.base_model)
            model = merge(model)
        save_model(
            self.run_dir / "model",
            model,
            tokenizer_dir=self.facts.tokenizer_dir,
            card={**self.result, "config": msgspec.to_builtins(self.config)},
            generation={"do_sample": True, "temperature": 0.8, "top_p": 0.95},
        )


def build_model(config: TrainConfig, facts: DataFacts) -> Transformer:
    """Return the network to train: a new one, or the base model with adapters where they are wanted."""
    if config.kind == "tune":
        model, _ = load_model(Path(config.base_model))
        if config.lora is not None:
            add_adapters(model, config.lora, config.seed)
        return model
    shape = {
        **msgspec.structs.asdict(config.shape),
        "vocab_size": facts.vocab_size,
        "eos_token_id": facts.end_of_text_id,
        "pad_token_id": facts.pad_id,
    }
    return Transformer(msgspec.convert(shape, ModelConfig), seed=config.seed)


def build_optimizer(config: TrainConfig, model: Transformer) -> torch.optim.Optimizer:
    """Return AdamW; matrices decay, norms do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=config.schedule.lr, betas=betas, fused=True)
