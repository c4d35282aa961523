"""Where a convolution reads: tap positions as offsets from the output position.

An output position p of a conv reads its source at stride * p + dilation * t - pad_low. Two
branches are compared by these offsets, not by kernel size.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import gcd
from typing import Any

import numpy as np

from repfuse.operators import Conv, Padding

__all__ = ["common_grid", "place_taps", "sees_only_zeros", "tap", "taps"]


def common_grid(left: Conv, right: Conv) -> tuple[int, ...]:
    """The coarsest spacing, per axis, on which the taps of both convs lie."""
    grid = []
    for axis in range(left.rank):
        spacing = left.padding[axis][0] - right.padding[axis][0]
        for conv in (left, right):
            if conv.kernel_size[axis] > 1:
                spacing = gcd(spacing, conv.dilation[axis])
        grid.append(abs(spacing) or 1)
    return tuple(grid)


def place_taps(
    conv: Conv,
    kernel_size: tuple[int, ...],
    first: tuple[int, ...],
    step: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Conv:
    """The same conv with its taps inside a larger kernel, zeros elsewhere.

    Tap t goes to position first + step * t of the new kernel. The padding follows, so that
    every tap reads what it read before and the output size is what it was.
    """
    old = conv.kernel_size
    where = tap(
        *(
            slice(begin, begin + stride * (size - 1) + 1, stride)
            for begin, stride, size in zip(first, step, old, strict=True)
        )
    )
    shape = conv.weight.shape[:2] + kernel_size

    def embed(weight: np.ndarray) -> np.ndarray:
        result = np.zeros(shape)
        result[where] = weight
        return result

    padding = []
    for axis, (size, begin, spacing) in enumerate(zip(kernel_size, first, dilation, strict=True)):
        low = conv.padding[axis][0] + begin * spacing
        padding.append((low, conv.slack[axis] + spacing * (size - 1) - low))
    weight = conv.weight.apply(shape, embed)
    return replace(conv, weight=weight, padding=tuple(padding), dilation=dilation)


def sees_only_zeros(conv: Conv, padding: Padding) -> bool:
    """Whether the conv would compute from zeros alone what lies beyond its output, as far as
    `padding` goes: pad_low >= span - stride + 1 below, and pad_high >= span above."""
    return (conv.border == "zeros" or not conv.pads) and all(
        (below <= 0 or low >= span - stride + 1) and (above <= 0 or high >= span)
        for (low, high), span, stride, (below, above) in zip(
            conv.padding, conv.span, conv.stride, padding, strict=True
        )
    )


def taps(kernel_size: tuple[int, ...]) -> product[tuple[int, ...]]:
    """All tap positions of a kernel; one empty position for a Linear."""
    return product(*(range(size) for size in kernel_size))


def tap(*position: int | slice) -> tuple[Any, ...]:
    """The index of a tap, or of a range of taps, in a weight: the last axes are the kernel's."""
    return (..., *position)
