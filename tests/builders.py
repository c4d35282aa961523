"""Operators for tests: short to write, with integer weights that can be sealed.

Weights are integers in [-4, 4], so that every sum of products is exact in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from repfuse.arrays import Array
from repfuse.operators import Affine, Conv, Pad, Padding, Pool, Select

Float64: TypeAlias = npt.NDArray[np.float64]
PerAxis: TypeAlias = int | tuple[int, ...]

_sealed = False


@contextmanager
def sealed() -> Iterator[None]:
    """Inside, computing a weight is an error: a pass must be content with shapes."""
    global _sealed
    _sealed = True
    try:
        yield
    finally:
        _sealed = False


def numbers(shape: Sequence[int], seed: int = 0) -> Array:
    """Integers in [-4, 4], drawn when they are asked for."""

    def compute() -> Float64:
        assert not _sealed, "a weight was computed"
        return integers(shape, seed)

    return Array(shape, compute)


def integers(shape: Sequence[int], seed: int = 0) -> Float64:
    return np.random.default_rng(seed).integers(-4, 5, tuple(shape)).astype(np.float64)


def conv(
    in_channels: int = 4,
    out_channels: int = 4,
    kernel_size: PerAxis = 3,
    *,
    rank: int = 2,
    stride: PerAxis = 1,
    padding: int | Padding = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
    border: str = "zeros",
    transposed: bool = False,
    bias: bool = True,
    seed: int = 0,
) -> Conv:
    """A conv; a number stands for all axes, a tuple of kernel sizes also sets the rank."""
    sizes = per_axis(kernel_size, rank)
    rank = len(sizes)
    shape = (out_channels, in_channels // groups, *sizes)
    return Conv(
        weight=numbers(shape, seed),
        bias=numbers((out_channels,), seed + 1) if bias else Array.full((out_channels,), 0.0),
        stride=per_axis(stride, rank),
        padding=((padding, padding),) * rank if isinstance(padding, int) else padding,
        dilation=per_axis(dilation, rank),
        groups=groups,
        border=border,
        transposed=transposed,
    )


def affine(
    channels: int = 4, rank: int = 2, *, scale: bool = True, shift: bool = True, seed: int = 0
) -> Affine:
    """A scale and a shift; without one of them it is 1 and 0, and known to be."""
    shape = (channels,)
    return Affine(
        scale=numbers(shape, seed + 2) if scale else Array.full(shape, 1.0),
        shift=numbers(shape, seed + 3) if shift else Array.full(shape, 0.0),
        rank=rank,
    )


def pool(
    channels: int = 4,
    kernel_size: PerAxis = 2,
    *,
    rank: int = 2,
    stride: PerAxis = 1,
    padding: int | Padding = 0,
    counts_border: bool = True,
    ceil_mode: bool = False,
    divisor: float | None = None,
) -> Pool:
    sizes = per_axis(kernel_size, rank)
    rank = len(sizes)
    return Pool(
        channels=channels,
        kernel_size=sizes,
        stride=per_axis(stride, rank),
        padding=((padding, padding),) * rank if isinstance(padding, int) else padding,
        counts_border=counts_border,
        ceil_mode=ceil_mode,
        divisor=divisor,
    )


def pad(
    channels: int = 4,
    padding: int | Padding = 1,
    *,
    rank: int = 2,
    border: str = "zeros",
    value: Array | None = None,
) -> Pad:
    sides = ((padding, padding),) * rank if isinstance(padding, int) else padding
    return Pad(channels, sides, border, value)


def select(indices: Sequence[int], in_channels: int = 4, rank: int = 2) -> Select:
    return Select(tuple(indices), in_channels, rank)


def per_axis(value: PerAxis, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else value
