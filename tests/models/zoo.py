"""Networks for the tests of whole models, and a float64 comparison that does not take minutes."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tests.numerics import assert_same, randomize

__all__ = ["build", "equal", "image", "outputs_equal"]

BOUND = 1e-9


def build(name: str, **options: Any) -> nn.Module:
    """A timm model in float64 and eval mode whose weights hide no mistake."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, **options).double().eval()
    return randomize(model)


def image(size: int, batch: int = 2) -> Tensor:
    """Random float64 images."""
    noise = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, size, size, generator=noise, dtype=torch.float64)


def equal(reference: nn.Module, candidate: nn.Module, *inputs: Any, bound: float = BOUND) -> float:
    """`assert_same` with fast depthwise convs."""
    with FastDepthwise():
        return assert_same(reference, candidate, *inputs, bound=bound)


def outputs_equal(reference: Tensor, candidate: Tensor, bound: float = BOUND) -> None:
    """Two tensors agree relative to the largest value of the first."""
    assert reference.shape == candidate.shape
    assert reference.isfinite().all()
    assert reference.abs().max() > 0
    error = ((reference - candidate).abs().max() / reference.abs().max()).item()
    assert error <= bound, f"relative error {error:.3g}"


class FastDepthwise(TorchFunctionMode):
    """Float64 depthwise convs as a sum over the taps; torch's own take a hundred times as long."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.conv2d and not kwargs and len(args) == 7:
            x, weight, bias, stride, padding, dilation, groups = args
            plain = isinstance(padding, tuple) and x.dim() == 4 and x.dtype == torch.float64
            if plain and weight.shape[:2] == (groups, 1) and groups == x.shape[1]:
                return _depthwise(x, weight, bias, stride, padding, dilation)
        return function(*args, **(kwargs or {}))


def _depthwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any
) -> Tensor:
    (high, wide), taps = padding, weight[:, 0]
    padded = torch.nn.functional.pad(x, (wide, wide, high, high))
    rows = (padded.shape[2] - dilation[0] * (taps.shape[1] - 1) - 1) // stride[0] + 1
    columns = (padded.shape[3] - dilation[1] * (taps.shape[2] - 1) - 1) // stride[1] + 1
    total = x.new_zeros(x.shape[0], x.shape[1], rows, columns)
    for i in range(taps.shape[1]):
        for j in range(taps.shape[2]):
            top, left = i * dilation[0], j * dilation[1]
            window = padded[
                :,
                :,
                top : top + stride[0] * (rows - 1) + 1 : stride[0],
                left : left + stride[1] * (columns - 1) + 1 : stride[1],
            ]
            total = total + window * taps[:, i, j, None, None]
    return total if bias is None else total + bias[:, None, None]
