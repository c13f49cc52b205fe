"""A training in a terminal: a bar while it runs, a summary at its end."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from tidecell.cli.show import err, out, waits_text
from tidecell.client.client import Client
from tidecell.client.views import JobStatus
from tidecell.structs.errors import CellUnreachable
from tidecell.structs.job import TaskState
from tidecell.train.config import TrainConfig

POLL_S = 0.3


class Bar:
    """Step, loss, speed, workers and time left of one training, on stderr."""

    def __init__(self, config: TrainConfig) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=err,
        )
        self._task = self._progress.add_task(config.name, total=config.last_step, numbers="starting")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(text)

    def show(self, report: dict[str, Any]) -> None:
        """Show one report of the training."""
        if report.get("kind") != "train":
            return
        size = report["world_size"]
        numbers = f"loss {report['loss']:.3f}  {report['tokens_per_s']:,.0f} tok/s  "
        numbers += f"{size} worker{'' if size == 1 else 's'}"
        if "bits_per_char" in report:
            numbers += f"  {report['bits_per_char']:.2f} bits/char"
        self._progress.update(self._task, completed=report["step"], numbers=numbers)

    def waits(self, text: str) -> None:
        """Show what the training waits for."""
        self._progress.update(self._task, numbers=text)


def follow(client: Client, job: JobStatus, config: TrainConfig) -> JobStatus:
    """Show a training's progress until it is over; a control plane that restarts is waited for."""
    last_seq = 0
    with Bar(config) as bar:
        while True:
            try:
                for report in client.reports(job.uid, after=last_seq):
                    last_seq = report.seq
                    bar.show(report.data)
                status = client.job(job.uid)
            except CellUnreachable:
                time.sleep(POLL_S)
                continue
            if status.done:
                return status
            if status.state is TaskState.PENDING:
                bar.waits(waits_text(status) or "waiting")
            time.sleep(POLL_S)


def print_summary(config: TrainConfig, card: dict[str, Any]) -> None:
    """Print how good the model is, what it writes, where it lies and what to do next."""
    run_dir = Path(config.run_dir)
    out.print(
        f"\n{config.name}   {card['steps']} steps, {card['tokens']:,} tokens, "
        f"{card['num_parameters']:,} parameters"
    )
    quality = f"  validation   loss {card['val_loss']:.3f}   perplexity {card['perplexity']:.1f}"
    if "bits_per_char" in card:
        quality += f"   {card['bits_per_char']:.3f} bits per character"
    out.print(quality)
    out.print(f"  digest       {card['digest']}")
    out.print(f"  model        {run_dir / 'model'}")
    if config.lora is not None:
        out.print(f"  adapter      {run_dir / 'adapter'}")
    out.print("  sample")
    for line in str(card["sample"]).splitlines()[:12]:
        out.print(Text(f"    {line}"))
    out.print(f"\nnext: tide serve {run_dir / 'model'}")
