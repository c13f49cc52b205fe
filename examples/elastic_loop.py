"""Your own training loop, elastic: what changes is the session around it.

    python examples/elastic_loop.py                            # by hand, one worker
    tide run --replicas 1..4 -- python examples/elastic_loop.py   # in a cell: workers come and go

The printed digest is the same whatever number of workers ran, and whenever that changed.
"""

from __future__ import annotations

import os

import torch

from tidecell.models.training_state import digest
from tidecell.train import elastic

NUM_STEPS = int(os.environ.get("NUM_STEPS", "400"))

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)


def loss_of(vrank: int) -> torch.Tensor:
    """Return the loss of one micro-batch: points drawn anew, seeded by step and virtual rank."""
    x = torch.rand(64, 2) * 4 - 2
    return (model(x) - (x[:, :1] * x[:, 1:]).sin()).square().mean()


with elastic.Session(model, optimizer, num_vranks=4, seed=0) as session:
    for step in session.steps(NUM_STEPS):
        loss = session.step(loss_of)
        session.report({"kind": "train", "step": step + 1, "num_steps": NUM_STEPS, "loss": loss})
    session.finish(lambda: print(f"loss {session.loss:.4f}, digest {digest(model, optimizer)[:16]}"))
