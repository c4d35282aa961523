"""Recognise arithmetic with constants, and sums of values."""

from __future__ import annotations

import numpy as np

from repfuse.arrays import Array
from repfuse.frontends.onnx.lowering import Lowering, NodeView
from repfuse.frontends.onnx.norms import KERNEL, is_shifted_norm, is_written_out
from repfuse.graph import Sum, Value

__all__ = ["add", "div", "identity", "mean", "mul", "neg", "per_channel", "sub"]


def per_channel(array: Array, channels: int, rank: int, ndim: int | None) -> Array | None:
    """A constant that broadcasts against a value, as one number per channel.

    None where it differs from position to position or from sample to sample, widens the value or
    gives it more axes: a constant of shape (W,) belongs to the last axis, also if W = channels.
    """
    shape = array.shape
    if ndim is None and len(shape) > rank + (2 if rank else 1):
        return None
    if ndim is not None and len(shape) > ndim:
        return None
    full = (1,) * (rank + 1 - len(shape)) + shape
    place = len(full) - rank - 1
    if full[place] not in (1, channels) or any(
        size != 1 for axis, size in enumerate(full) if axis != place
    ):
        return None
    if array.constant is not None:
        return Array.full((channels,), array.constant)
    return array.apply((channels,), lambda v: np.broadcast_to(v.reshape(-1), (channels,)))


def add(lowering: Lowering, node: NodeView) -> str | bool:
    """Add and Sum of any number of operands; the constants among them are a shift."""
    values = [name for name in node.inputs if lowering.is_value(name)]
    constants = [name for name in node.inputs if not lowering.is_value(name)]
    if not values or not all(lowering.is_float(lowering.value(name)) for name in values):
        return False
    if not constants:
        return _sum(lowering, node, values)
    if len(values) == 1 and is_shifted_norm(lowering, node, values[0]):
        return KERNEL
    total = lowering.value(values[0])
    if len(values) > 1:
        if not _fits(lowering, values):
            return False
        total = lowering.make(node, "", Sum(), tuple(map(lowering.value, values)))
    shift = _full(lowering, total, 0.0)
    for name in constants:
        part = _constant(lowering, name, total)
        if not isinstance(part, Array):
            return part
        shift = shift + part
    return _affine(lowering, node, total, 1.0, shift)


def _sum(lowering: Lowering, node: NodeView, names: list[str]) -> bool:
    if len(names) == 1:
        return _affine(lowering, node, lowering.value(names[0]), 1.0, 0.0)
    if not _fits(lowering, names):
        return False
    lowering.make(node, node.output, Sum(), tuple(map(lowering.value, names)))
    return True


def _fits(lowering: Lowering, names: list[str]) -> bool:
    """Whether all operands have the channel axis at the same place, as far as it is known."""
    facts = [lowering.known(lowering.value(name)) for name in names]
    return len({fact[1] for fact in facts if fact is not None}) <= 1


def sub(lowering: Lowering, node: NodeView) -> str | bool:
    """x - c, c - x, and the difference of two values."""
    left, right = node.input(0), node.input(1)
    if lowering.is_value(left) and lowering.is_value(right):
        a, b = lowering.value(left), lowering.value(right)
        if not lowering.is_float(a) or not _fits(lowering, [left, right]):
            return False
        minus = lowering.affine(b, _full(lowering, b, -1.0), _full(lowering, b, 0.0))
        if minus is None:
            return False
        negative = lowering.make(node, "", minus, (b,))
        lowering.make(node, node.output, Sum(), (a, negative))
        return True
    value = lowering.value(left if lowering.is_value(left) else right)
    constant = _constant(lowering, right if lowering.is_value(left) else left, value)
    if not isinstance(constant, Array):
        return constant
    sign = 1.0 if lowering.is_value(left) else -1.0
    return _affine(lowering, node, value, sign, constant * _full(lowering, value, -sign))


def mul(lowering: Lowering, node: NodeView) -> str | bool:
    """A product with a constant; of two values nothing can be folded."""
    left, right = node.input(0), node.input(1)
    if lowering.is_value(left) == lowering.is_value(right):
        return False
    if is_written_out(lowering, node):
        return False
    value = lowering.value(left if lowering.is_value(left) else right)
    constant = _constant(lowering, right if lowering.is_value(left) else left, value)
    if not isinstance(constant, Array):
        return constant
    return _affine(lowering, node, value, constant, 0.0)


def div(lowering: Lowering, node: NodeView) -> str | bool:
    """x / c; c / x is not linear."""
    left, right = node.input(0), node.input(1)
    if not lowering.is_value(left):
        linear = lowering.graph.is_linear(lowering.value(right))
        return "a constant divided by a value is not linear" if linear else False
    if lowering.is_value(right):
        return False
    value = lowering.value(left)
    constant = _constant(lowering, right, value)
    if not isinstance(constant, Array):
        return constant
    inverse = constant.apply(constant.shape, lambda c: 1.0 / c)
    return _affine(lowering, node, value, inverse, 0.0)


def neg(lowering: Lowering, node: NodeView) -> str | bool:
    value = lowering.value(node.input(0))
    return lowering.is_float(value) and _affine(lowering, node, value, -1.0, 0.0)


def identity(lowering: Lowering, node: NodeView) -> str | bool:
    """Identity, and Dropout outside of training."""
    if node.op == "Dropout":
        mode = node.input(2)
        trains = mode and (lowering.is_value(mode) or bool(lowering.constants.value(mode).any()))
        if trains:
            return "a dropout that may be active"
        if not node.single:
            return False
    value = lowering.value(node.input(0))
    return lowering.is_float(value) and _affine(lowering, node, value, 1.0, 0.0)


def mean(lowering: Lowering, node: NodeView) -> str | bool:
    """Mean of several values: their sum, scaled."""
    names = list(node.inputs)
    if not all(lowering.is_value(name) for name in names):
        return False
    if not lowering.is_float(lowering.value(names[0])) or not _fits(lowering, names):
        return False
    if len(names) == 1:
        return _affine(lowering, node, lowering.value(names[0]), 1.0, 0.0)
    total = lowering.make(node, "", Sum(), tuple(map(lowering.value, names)))
    return _affine(lowering, node, total, 1.0 / len(names), 0.0)


def _constant(lowering: Lowering, name: str, value: Value) -> Array | str | bool:
    """A constant operand as one number per channel of the value, or why it is not of that form."""
    known = lowering.known(value)
    if known is None or not lowering.is_float(value) or lowering.constants.precision(name) is None:
        return False
    array = lowering.constants.array(name)
    found = per_channel(array, *known, lowering.ndim(value))
    if found is None and lowering.graph.is_linear(value):
        return f"a constant of shape {array.shape} is no number per channel"
    return found if found is not None else False


def _full(lowering: Lowering, value: Value, number: float) -> Array:
    known = lowering.known(value)
    return Array.full((known[0] if known else 0,), number)


def _affine(
    lowering: Lowering, node: NodeView, value: Value, scale: Array | float, shift: Array | float
) -> bool:
    parts = [
        part if isinstance(part, Array) else _full(lowering, value, part) for part in (scale, shift)
    ]
    affine = lowering.affine(value, *parts)
    return affine is not None and lowering.apply(node, affine, value)
