"""What each operator computes, in plain NumPy: the measure that every pass is held against.

Slow, and written to be read. Arrays are (batch, channels, *spatial). With integers of small
size in float64 every result is exact.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from repfuse.arrays import evaluate
from repfuse.operators import Affine, Conv, Mixed, Operator, Pad, Pool, Select, SlicedConv
from tests.builders import Float64


def apply(operator: Operator, x: Float64) -> Float64:
    """The operator on x; the input must be large enough for it."""
    assert not isinstance(operator, Mixed), "it needs factors"
    assert x.ndim == operator.rank + 2, f"{x.ndim - 2}-D data for a {operator.rank}-D operator"
    assert x.shape[1] == operator.in_channels, f"{x.shape[1]} channels for {operator.in_channels}"
    sizes = output_sizes(operator, x.shape[2:])
    assert all(size > 0 for size in sizes), f"{x.shape[2:]} is too small"
    if isinstance(operator, Affine):
        scale, shift = evaluate(operator.scale, operator.shift)
        return x * over_channels(scale, operator.rank) + over_channels(shift, operator.rank)
    if isinstance(operator, Select):
        return x[:, list(operator.indices)]
    if isinstance(operator, Pad):
        return bordered(operator, x, sizes)
    if isinstance(operator, SlicedConv):
        return apply(operator.conv, x[:, operator.begin : operator.end])
    if isinstance(operator, Pool):
        return average(operator, x, sizes)
    return scatter(operator, x, sizes) if operator.transposed else convolve(operator, x, sizes)


def mixed(operator: Mixed, x: Float64, factors: dict[int, Float64]) -> Float64:
    """The sum of the terms on x. factors: by the value of their gate, (batch, channels)."""
    total = np.zeros(())
    for gate, term in operator.terms:
        part = apply(term, x)
        if gate is not None:
            part = part * factors[gate.value].reshape(len(x), -1, *[1] * operator.rank)
        total = total + part
    return total


def output_sizes(operator: Operator, sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(output_size(operator, axis, size) for axis, size in enumerate(sizes))


def output_size(operator: Operator, axis: int, size: int) -> int:
    """The length of an axis of the output; 0 where the input is too short for the operator."""
    assert not isinstance(operator, Mixed)
    if size < 1:
        return 0
    if isinstance(operator, Affine | Select):
        return size
    if isinstance(operator, SlicedConv):
        operator = operator.conv
    low, high = operator.padding[axis]
    if isinstance(operator, Pad):
        return padded_size(size, low, high, operator.border)
    stride, kernel_size = operator.stride[axis], operator.kernel_size[axis]
    if isinstance(operator, Pool):
        return pooled_size(operator, axis, size)
    span = operator.dilation[axis] * (kernel_size - 1)
    if operator.transposed:
        return max(0, stride * (size - 1) + span + 1 - low - high)
    room = padded_size(size, low, high, operator.border) - span
    return (room - 1) // stride + 1 if room > 0 else 0


def padded_size(size: int, low: int, high: int, border: str) -> int:
    """The length of an axis with its border; 0 where the mode cannot make so wide a border."""
    widest = max(low, high)
    if (border == "reflect" and widest >= size) or (border == "circular" and widest > size):
        return 0
    return max(0, size + low + high)


def bordered(pad: Pad, x: Float64, sizes: tuple[int, ...]) -> Float64:
    """y[p] = x[p - low], beyond the input as the border mode says, or the pad's value."""
    with_zero = np.pad(x, [(0, 0), (0, 0), *[(0, 1)] * pad.rank])
    if pad.value is not None:
        value = over_channels(pad.value.numpy(), pad.rank)
        inside = np.pad(np.ones((1, 1, *x.shape[2:])), [(0, 0), (0, 0), *[(0, 1)] * pad.rank])
        with_zero = with_zero + value * (1 - inside)
    positions = [
        [source(p - pad.padding[axis][0], x.shape[2 + axis], pad.border) for p in range(length)]
        for axis, length in enumerate(sizes)
    ]
    result: Float64 = with_zero[at(positions)]
    return result


def convolve(conv: Conv, x: Float64, sizes: tuple[int, ...]) -> Float64:
    """y[p] = bias + sum over taps t of weight[t] @ x[stride p + dilation t - low]."""
    weight, bias = dense(conv), conv.bias.numpy()
    result = np.zeros((x.shape[0], conv.out_channels, *sizes)) + over_channels(bias, conv.rank)
    with_zero = np.pad(x, [(0, 0), (0, 0), *[(0, 1)] * conv.rank])
    for tap in np.ndindex(*conv.kernel_size):
        positions = [
            [
                source(
                    conv.stride[axis] * p + offset(conv, axis, tap), x.shape[2 + axis], conv.border
                )
                for p in range(sizes[axis])
            ]
            for axis in range(conv.rank)
        ]
        seen = with_zero[at(positions)]
        result += np.einsum("oc,nc...->no...", weight[(..., *tap)], seen)
    return result


def scatter(conv: Conv, x: Float64, sizes: tuple[int, ...]) -> Float64:
    """Transposed: y[stride p + dilation t - low] += weight[t] @ x[p], y starts at the bias."""
    weight, bias = dense(conv), conv.bias.numpy()
    result = np.zeros((x.shape[0], conv.out_channels, *sizes)) + over_channels(bias, conv.rank)
    for tap in np.ndindex(*conv.kernel_size):
        inside, outside = [], []
        for axis in range(conv.rank):
            begin = offset(conv, axis, tap)
            targets = [conv.stride[axis] * p + begin for p in range(x.shape[2 + axis])]
            inside.append([p for p, q in enumerate(targets) if 0 <= q < sizes[axis]])
            outside.append([q for q in targets if 0 <= q < sizes[axis]])
        seen = x[at(inside)]
        result[at(outside)] += np.einsum("oc,nc...->no...", weight[(..., *tap)], seen)
    return result


def offset(conv: Conv, axis: int, tap: tuple[int, ...]) -> int:
    return conv.dilation[axis] * tap[axis] - conv.padding[axis][0]


def source(position: int, size: int, border: str) -> int:
    """Where a position is read from; the slot `size`, after the end, holds a zero."""
    if 0 <= position < size:
        return position
    if border == "reflect":
        return -position if position < 0 else 2 * (size - 1) - position
    if border == "replicate":
        return 0 if position < 0 else size - 1
    if border == "circular":
        return position % size
    assert border == "zeros"
    return size


def dense(conv: Conv) -> Float64:
    """The weight as (out_channels, in_channels, *kernel_size), zero between the groups."""
    weight = conv.weight.numpy()
    rows, columns = conv.out_channels // conv.groups, conv.in_channels // conv.groups
    result = np.zeros((conv.out_channels, conv.in_channels, *conv.kernel_size))
    for row in range(conv.out_channels):
        begin = row // rows * columns
        result[row, begin : begin + columns] = weight[row]
    return result


def pooled_size(pool: Pool, axis: int, size: int) -> int:
    """PyTorch's rule: in ceil mode a window may hang over, but starts before the border ends."""
    (low, high), stride = pool.padding[axis], pool.stride[axis]
    room = size + low + high - pool.kernel_size[axis]
    if room < 0:
        return 0
    if not pool.ceil_mode:
        return room // stride + 1
    count = math.ceil(room / stride) + 1
    return count - 1 if (count - 1) * stride >= size + low else count


def average(pool: Pool, x: Float64, sizes: tuple[int, ...]) -> Float64:
    """Each window's sum over its divisor, where the border beyond the padding never counts."""
    result = np.zeros((*x.shape[:2], *sizes))
    for position in np.ndindex(*sizes):
        window: list[Any] = [...]
        counted = 1
        for axis, p in enumerate(position):
            low, high = pool.padding[axis]
            size = x.shape[2 + axis]
            begin = pool.stride[axis] * p - low
            end = min(begin + pool.kernel_size[axis], size + high)
            inside = slice(max(begin, 0), min(end, size))
            counted *= end - begin if pool.counts_border else inside.stop - inside.start
            window.append(inside)
        total = x[tuple(window)].sum(axis=tuple(range(2, x.ndim)))
        result[(..., *position)] = total / (counted if pool.divisor is None else pool.divisor)
    return result


def at(positions: list[list[int]]) -> Any:
    """The index of all channels at a grid of positions."""
    return (slice(None), slice(None), *np.ix_(*positions))


def over_channels(values: Float64, rank: int) -> Float64:
    return values.reshape(-1, *[1] * rank)
