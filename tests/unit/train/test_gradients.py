"""Flat gradients and clipping."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tidecell.train.gradients import FlatGradients, clip_


def model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def loss(net: nn.Module, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return net(torch.linspace(-1, 1, 20).view(4, 5).to(dtype)).square().sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_backward_adds_into_the_flat_buffer(dtype: torch.dtype) -> None:
    net = model(dtype)
    loss(net, dtype).backward()
    expected = torch.cat([p.grad.float().flatten() for p in net.parameters()])
    gradients = FlatGradients(list(net.parameters()))
    buffer = gradients.zeroed()
    gradients.attach(buffer)
    loss(net, dtype).backward()
    gradients.collect(buffer)
    assert buffer.dtype == torch.float32
    assert torch.equal(buffer, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_published_gradients_are_what_the_optimizer_sees(dtype: torch.dtype) -> None:
    net = model(dtype)
    gradients = FlatGradients(list(net.parameters()))
    buffer = torch.arange(gradients.num_elements, dtype=torch.float32) / 8
    gradients.publish(buffer)
    seen = torch.cat([p.grad.flatten() for p in net.parameters()])
    assert torch.equal(seen, buffer.to(dtype))


def test_a_parameter_without_gradient_gets_zeros() -> None:
    used, unused = nn.Linear(2, 2), nn.Linear(2, 2)
    gradients = FlatGradients([*used.parameters(), *unused.parameters()])
    buffer = gradients.zeroed()
    gradients.attach(buffer)
    used(torch.ones(1, 2)).sum().backward()
    gradients.collect(buffer)
    assert buffer[:6].abs().sum() > 0
    assert torch.equal(buffer[6:], torch.zeros(6))


def test_freed_buffers_are_used_again_and_zeroed() -> None:
    gradients = FlatGradients(list(model().parameters()))
    first = gradients.zeroed().fill_(3)
    gradients.give_back([first])
    second = gradients.zeroed()
    assert second.data_ptr() == first.data_ptr()
    assert float(second.abs().sum()) == 0.0


def test_clipping_is_that_of_torch() -> None:
    net = model()
    loss(net).backward()
    flat = torch.cat([p.grad.flatten() for p in net.parameters()])
    expected_norm = float(nn.utils.clip_grad_norm_(net.parameters(), 0.25))
    expected = torch.cat([p.grad.flatten() for p in net.parameters()])
    assert clip_(flat, 0.25) == pytest.approx(expected_norm, rel=1e-6)
    torch.testing.assert_close(flat, expected)


def test_a_small_gradient_is_left_alone() -> None:
    flat = torch.full((4,), 0.1)
    assert clip_(flat, 1.0) == pytest.approx(0.2)
    assert torch.equal(flat, torch.full((4,), 0.1))
