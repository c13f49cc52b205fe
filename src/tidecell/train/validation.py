"""Validation: the same rows each time, measured in pieces that workers share out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tidecell.train.batches import Rows, to_tensors

ROWS_PER_PROBE = 8
# exp of it is a float still; a loss beyond is divergence anyway.
MOST_NATS = 700.0


class Validation:
    """Loss on fixed rows of the validation split, spread evenly over it.

    Suffixes as in ``transformer.py``; N: B times T.

    Attributes:
        num_probes: Pieces it is measured in.
    """

    def __init__(self, model: nn.Module, rows: Rows, num_rows: int, device: torch.device) -> None:
        self._model = model
        self._rows = rows
        self._device = device
        count = min(num_rows, rows.num_rows)
        picked = np.unique(np.linspace(0, rows.num_rows - 1, count).round().astype(np.int64))
        self._pieces = [picked[i : i + ROWS_PER_PROBE] for i in range(0, len(picked), ROWS_PER_PROBE)]
        self.num_probes = len(self._pieces)
        self._num_labels = sum(int((rows.rows(piece)[1] != -100).sum()) for piece in self._pieces)

    def probe(self, number: int) -> float:
        """Return the summed loss of one piece in nats; the model's mode and gradients stay as they are."""
        x_BT, y_BT = to_tensors(self._rows.rows(self._pieces[number]), self._device)
        training = self._model.training
        self._model.eval()
        with torch.no_grad():
            logits_BTV = self._model(x_BT).float()
            total = F.cross_entropy(
                logits_BTV.flatten(0, 1), y_BT.flatten(), ignore_index=-100, reduction="sum"
            )
        self._model.train(training)
        return float(total)

    def result(self, sums: Sequence[float], chars_per_token: float | None) -> dict[str, float]:
        """Return loss (nats per token), perplexity and, if it can be told, bits per character."""
        loss = math.fsum(sums) / max(1, self._num_labels)
        numbers = {"val_loss": loss, "perplexity": math.exp(min(loss, MOST_NATS))}
        if chars_per_token is not None:
            numbers["bits_per_char"] = loss / math.log(2) / chars_per_token
        return numbers
