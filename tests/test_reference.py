"""The reference agrees with PyTorch, bit by bit, wherever PyTorch has the operation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings

from repfuse.operators import Affine, Conv, Pool, Select
from tests import reference
from tests.builders import Float64, affine, conv, integers, select
from tests.strategies import convs, pools

CONVS: tuple[Callable[..., Any], ...] = (F.linear, F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED: tuple[Callable[..., Any], ...] = (
    F.linear,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
)
POOLS: tuple[Callable[..., Any], ...] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The operations are tiny: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def in_torch(conv: Conv, x: Float64) -> Float64:
    """The conv with PyTorch's functions: pad, crop, convolve."""
    weight = torch.from_numpy(conv.weight.numpy())
    bias = torch.from_numpy(conv.bias.numpy())
    data = torch.from_numpy(x)
    if conv.rank == 0:
        assert conv.groups == 1
        return np.asarray(F.linear(data, weight, bias))
    if conv.transposed:
        return np.asarray(in_torch_transposed(conv, data, weight, bias))
    borders = [side for low_high in reversed(conv.padding) for side in low_high]
    wider = [max(side, 0) for side in borders]
    if conv.border == "zeros":
        data = F.pad(data, wider)
    elif any(wider):
        data = F.pad(data, wider, mode=conv.border)
    data = F.pad(data, [min(side, 0) for side in borders])
    options = {"stride": conv.stride, "dilation": conv.dilation, "groups": conv.groups}
    return np.asarray(CONVS[conv.rank](data, weight, bias, **options))


def in_torch_transposed(
    conv: Conv, data: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """PyTorch keeps the weight as (in_channels, out_channels / groups, *kernel_size)."""
    parts = [part.transpose(0, 1) for part in weight.chunk(conv.groups)]
    options: dict[str, Any] = {
        "stride": conv.stride,
        "dilation": conv.dilation,
        "groups": conv.groups,
    }
    low = tuple(side for side, _ in conv.padding)
    extra = tuple(side - other for side, other in conv.padding)
    limits = [max(s, d) for s, d in zip(conv.stride, conv.dilation, strict=True)]
    function = TRANSPOSED[conv.rank]
    if min(low) >= 0 and all(0 <= e < limit for e, limit in zip(extra, limits, strict=True)):
        options |= {"padding": low, "output_padding": extra}
        return torch.as_tensor(function(data, torch.cat(parts), bias, **options))
    whole = torch.as_tensor(function(data, torch.cat(parts), None, **options))
    crops = [-side for low_high in reversed(conv.padding) for side in low_high]
    return F.pad(whole, crops) + bias.reshape(-1, *[1] * conv.rank)


@settings(max_examples=150)
@given(convs())
def test_convolution(branch: Conv) -> None:
    assume(branch.rank > 0 or branch.groups == 1)
    smallest = [
        next(n for n in range(1, 99) if reference.output_size(branch, axis, n) > 0)
        for axis in range(branch.rank)
    ]
    for more in (0, 1, 4):
        sizes = [size + more + axis % 2 for axis, size in enumerate(smallest)]
        x = integers((2, branch.in_channels, *sizes), seed=more)
        assert np.array_equal(reference.apply(branch, x), in_torch(branch, x))


@settings(max_examples=80)
@given(pools())
def test_average_pooling(pool: Pool) -> None:
    assume(pool.rank > 0)
    assume(all(low == high for low, high in pool.padding))
    options = {
        "stride": pool.stride,
        "padding": tuple(low for low, _ in pool.padding),
        "ceil_mode": pool.ceil_mode,
        "count_include_pad": pool.counts_border,
    }
    if pool.rank > 1:
        assume(pool.divisor is None or pool.divisor == int(pool.divisor))
        options["divisor_override"] = None if pool.divisor is None else int(pool.divisor)
    else:
        assume(pool.divisor is None)
    for size in (4, 5, 7):
        x = integers((2, pool.channels, *[size + axis for axis in range(pool.rank)]), seed=size)
        theirs = POOLS[pool.rank - 1](torch.from_numpy(x), pool.kernel_size, **options)
        assert np.array_equal(reference.apply(pool, x), np.asarray(theirs))


@pytest.mark.parametrize("rank", range(4))
def test_affine_is_batch_norm(rank: int) -> None:
    operator: Affine = affine(4, rank)
    x = integers((2, 4, *range(3, 3 + rank)))
    zeros, ones = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    scale, shift = (torch.from_numpy(a.numpy()) for a in (operator.scale, operator.shift))
    theirs = F.batch_norm(torch.from_numpy(x), zeros, ones, scale, shift, eps=0.0)
    assert np.array_equal(reference.apply(operator, x), np.asarray(theirs))


def test_select_is_a_channel_shuffle() -> None:
    operator: Select = select([0, 3, 1, 4, 2, 5], in_channels=6)
    x = integers((2, 6, 3, 5))
    theirs = F.channel_shuffle(torch.from_numpy(x), 2)
    assert np.array_equal(reference.apply(operator, x), np.asarray(theirs))


def test_an_input_too_small_is_an_error() -> None:
    with pytest.raises(AssertionError, match="too small"):
        reference.apply(conv(4, 4, 3), integers((1, 4, 2, 5)))
    with pytest.raises(AssertionError, match="too small"):
        reference.apply(conv(4, 4, 3, padding=2, border="reflect"), integers((1, 4, 2, 5)))
