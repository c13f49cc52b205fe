"""A small elastic training for tests: dropout, AdamW, clipping; says what it committed.

python elastic_worker.py DIRECTORY NUM_STEPS NUM_VRANKS [MICRO_BATCH_S]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tidecell.models.training_state import collect, digest, newest_checkpoint, restore, save_checkpoint
from tidecell.train import elastic

WIDTH = 24


def main(directory: Path, num_steps: int, num_vranks: int, micro_batch_s: float) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(WIDTH, 40), nn.GELU(), nn.Dropout(0.2), nn.Linear(40, WIDTH))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)

    def loss_of(vrank: int) -> Tensor:
        # Both what the script draws itself and what numpy draws must come from the micro-batch's seed.
        x = torch.randn(8, WIDTH) + float(np.random.rand()) + vrank
        # While this file exists a test has something to do: go slowly.
        time.sleep(0.2 if (directory / "slow").exists() else micro_batch_s)
        return (model(x) - x.flip(1)).square().mean()

    def load() -> int:
        saved = newest_checkpoint(directory)
        if saved is None:
            return 0
        restore(model, optimizer, saved.state)
        return saved.step

    def save() -> None:
        save_checkpoint(directory, session.committed, collect(model, optimizer), session.contract)

    session = elastic.Session(
        model, optimizer, num_vranks=num_vranks, seed=3, max_grad_norm=0.5, restore=load, on_stop=save
    )
    with session:
        for step in session.steps(num_steps):
            loss = session.step(loss_of, lr=1e-2 / (1 + step))
            session.report({"step": step, "loss": loss, "world_size": session.world_size})
        session.finish(lambda: finish(session, directory, digest(model, optimizer)))


def finish(session: elastic.Session, directory: Path, digest_of_all: str) -> None:
    (directory / "digest").write_text(digest_of_all)
    session.report({"step": session.committed, "events": session.events, "done": True})


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        int(sys.argv[2]),
        int(sys.argv[3]),
        float(sys.argv[4]) if len(sys.argv) > 4 else 0.0,
    )
