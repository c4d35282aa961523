"""Compose two convolutions in series into one.

    V * (U * x + b) + c  =  (V U) * x + (sum of the taps of V on b + c)

Exact when no tap of V leaves the middle value; or when what lies beyond the middle value is
what U would have computed there: U has no bias and reaches only zeros wherever V reads its
border, that is pad_low >= span - stride + 1 below and pad_high >= span above; or when U is a
pointwise conv of stride 1 and V's border is made of its input (reflect, replicate, circular).

The result has stride s1 s2, padding p1 + s1 p2 per side, and its taps on the grid
gcd(d1, s1 d2). Groups meet at their gcd.

Source: Ding et al., "Diverse Branch Block", CVPR 2021; Guo et al., "ExpandNets", NeurIPS 2020.
"""

from dataclasses import replace
from math import gcd

import numpy as np

from repfuse.offsets import sees_only_zeros, tap, taps
from repfuse.operators import Conv
from repfuse.rules import chain, require


@chain
def compose_convs(first: Conv, second: Conv) -> Conv:
    require(first.rank == second.rank, f"a {second.rank}-D conv reads {first.rank}-D data")
    require(
        first.out_channels == second.in_channels,
        f"{first.out_channels} channels meet a conv that reads {second.in_channels}",
    )
    require(
        not second.transposed or (first.pointwise and not first.has_bias),
        "the conv before a transposed conv has a bias or is no pointwise conv",
    )
    require(
        not first.transposed or second.pointwise,
        "the conv after a transposed conv is no pointwise conv",
    )
    require(
        not second.pads or second.transposed or covers_border(first, second),
        f"the second conv pads by {second.padding} where the first would give its bias or taps",
    )

    rank, transposed = first.rank, first.transposed or second.transposed
    grid, step1, step2, sizes = [], [], [], []
    for axis in range(rank):
        k1, k2 = first.kernel_size[axis], second.kernel_size[axis]
        spread1 = first.dilation[axis] if k1 > 1 else 0
        spread2 = first.stride[axis] * second.dilation[axis] if k2 > 1 else 0
        if transposed:
            spread2 = second.dilation[axis] if k2 > 1 else 0
        spacing = gcd(spread1, spread2) or 1
        grid.append(spacing)
        step1.append(spread1 // spacing)
        step2.append(spread2 // spacing)
        sizes.append((spread1 * (k1 - 1) + spread2 * (k2 - 1)) // spacing + 1)

    groups = gcd(first.groups, second.groups)
    shape = (second.out_channels, first.in_channels // groups, *sizes)

    def product_of(v: np.ndarray, u: np.ndarray) -> np.ndarray:
        inner, outer = per_group(u, first.groups, groups), per_group(v, second.groups, groups)
        result = np.zeros((groups, outer.shape[1], inner.shape[2], *sizes))
        for t2 in taps(second.kernel_size):
            for t1 in taps(first.kernel_size):
                at = (a * i + b * j for a, i, b, j in zip(step1, t1, step2, t2, strict=True))
                result[tap(*at)] += outer[tap(*t2)] @ inner[tap(*t1)]
        return result.reshape(shape)

    def bias_through(v: np.ndarray, b: np.ndarray) -> np.ndarray:
        rows = v.sum(axis=tuple(range(2, 2 + rank))).reshape(second.groups, -1, v.shape[1])
        added: np.ndarray = rows @ b.reshape(second.groups, -1, 1)
        return added.reshape(-1)

    bias = second.bias
    if first.has_bias:
        bias = bias + second.weight.apply((second.out_channels,), bias_through, first.bias)
    strides = zip(first.stride, second.stride, strict=True)
    scale = (1,) * rank if transposed else first.stride
    border = second.border if second.pads else first.border
    return replace(
        second,
        weight=second.weight.apply(shape, product_of, first.weight),
        bias=bias,
        stride=tuple(s1 * s2 for s1, s2 in strides),
        padding=tuple(
            (low1 + s * low2, high1 + s * high2)
            for (low1, high1), (low2, high2), s in zip(
                first.padding, second.padding, scale, strict=True
            )
        ),
        dilation=tuple(grid),
        groups=groups,
        border="zeros" if transposed else border,
        transposed=transposed,
    )


def covers_border(first: Conv, second: Conv) -> bool:
    """Whether the first conv would itself compute what the second one's border holds."""
    if second.border != "zeros":
        return first.pointwise
    return not first.has_bias and sees_only_zeros(first, second.padding)


def per_group(weight: np.ndarray, groups: int, fewer: int) -> np.ndarray:
    """(out, in / groups, ...) as (fewer, out / fewer, in / fewer, ...), block-diagonal."""
    rows, columns = weight.shape[0] // groups, weight.shape[1]
    blocks, kernel_size = groups // fewer, weight.shape[2:]
    old = weight.reshape(fewer, blocks, rows, columns, *kernel_size)
    if blocks == 1:
        return old[:, 0]
    new = np.zeros((fewer, blocks, rows, blocks, columns, *kernel_size))
    for block in range(blocks):
        new[:, block, :, block] = old[:, block]
    return new.reshape(fewer, blocks * rows, blocks * columns, *kernel_size)
