"""Flat float32 gradients: one vector per node of the tree, the parameters' ``grad`` are views of it.

Accumulation is in float32 whatever the weights are, from zeroed buffers (so that -0.0 cannot tell who
added first). It does not know workers or the tree.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class FlatGradients:
    """Buffers for gradients of a fixed list of parameters; freed ones are used again.

    Attributes:
        num_elements: Length of one flat gradient.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.num_elements = sum(p.numel() for p in self.parameters)
        self._free: list[Tensor] = []

    def zeroed(self) -> Tensor:
        """Return a buffer of zeros."""
        buffer = self.any()
        return buffer.zero_()

    def any(self) -> Tensor:
        """Return a buffer whose content is not defined."""
        return self._free.pop() if self._free else torch.empty(self.num_elements)

    def give_back(self, buffers: Sequence[Tensor]) -> None:
        """Take buffers that nobody uses any more."""
        self._free.extend(buffers)

    def attach(self, buffer: Tensor) -> None:
        """Let ``backward`` add into this buffer (for weights in float32 on the CPU: without a copy)."""
        offset = 0
        for parameter in self.parameters:
            view = buffer[offset : offset + parameter.numel()].view_as(parameter)
            offset += parameter.numel()
            same_kind = parameter.dtype == buffer.dtype and parameter.device == buffer.device
            parameter.grad = view if same_kind else torch.zeros_like(parameter)

    def collect(self, buffer: Tensor) -> None:
        """Add the gradients that could not be views (other type or device) to the buffer."""
        offset = 0
        for parameter in self.parameters:
            if parameter.dtype != buffer.dtype or parameter.device != buffer.device:
                part = buffer[offset : offset + parameter.numel()].view_as(parameter)
                part.add_(parameter.grad.to(buffer.device, buffer.dtype))
            offset += parameter.numel()

    def publish(self, buffer: Tensor) -> None:
        """Set the parameters' gradients from this buffer, for the optimizer."""
        self.attach(buffer)
        offset = 0
        for parameter in self.parameters:
            if parameter.dtype != buffer.dtype or parameter.device != buffer.device:
                part = buffer[offset : offset + parameter.numel()].view_as(parameter)
                parameter.grad.copy_(part)
            offset += parameter.numel()

    def detach(self) -> None:
        """Take the gradients away from the parameters, so that no buffer is held by them."""
        for parameter in self.parameters:
            parameter.grad = None


def clip_(flat: Tensor, max_norm: float) -> float:
    """Scale a gradient down to a norm, as ``clip_grad_norm_`` does; return its norm before.

    The norm is that of the full reduced gradient: the same number on every worker.
    """
    norm = torch.linalg.vector_norm(flat)
    if max_norm > 0:
        flat.mul_(torch.clamp(max_norm / (norm + 1e-6), max=1.0))
    return float(norm)
