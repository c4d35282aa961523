"""Recognise arithmetic: sums, differences, products and quotients with constants."""

from __future__ import annotations

from typing import Any

from torch import fx

from repfuse.arrays import Array
from repfuse.frontends.torch.arguments import is_number, name_of, per_channel, read
from repfuse.frontends.torch.entries import Entry
from repfuse.frontends.torch.gates import factor_of
from repfuse.frontends.torch.lowering import Lowering
from repfuse.graph import Sum, Value

__all__ = ["add", "div", "mul", "neg", "rsub", "sub"]


def add(lowering: Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    return _sum(lowering, node, args, kwargs, 1.0)


def sub(lowering: Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    return _sum(lowering, node, args, kwargs, -1.0)


def _sum(
    lowering: Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any], sign: float
) -> Entry | None:
    """a + sign * alpha * b, of which torch still takes (a, alpha, b)."""
    left, right = (*args, kwargs.get("other"))[:2]
    alpha = kwargs.get("alpha", 1)
    if len(args) > 2:
        left, alpha, right = args
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        return None
    factor = sign * alpha
    a, b = read(lowering, node, left), read(lowering, node, right)
    if isinstance(a, int) and isinstance(b, int):
        if factor != 1.0:
            scaled = lowering.affine(node, b, factor, 0.0)
            if scaled is None:
                return _elementwise(lowering, node, a, b)
            lowering.graph.nodes[scaled].inner = True
            b = scaled
        return lowering.changed_in_place(node, lowering.make(node, Sum(), (a, b)))
    if isinstance(a, int):
        return _shifted(lowering, node, left, a, right, 1.0, factor)
    if isinstance(b, int):
        return _shifted(lowering, node, right, b, left, factor, 1.0)
    return None


def _shifted(
    lowering: Lowering,
    node: fx.Node,
    source: fx.Node,
    value: Value,
    other: Any,
    scale: float,
    factor: float,
) -> Entry | None:
    """scale * value + factor * other, where other is a constant."""
    if is_number(other) and other * factor == 0 and scale == 1.0:
        return _unchanged(lowering, node, source, value)
    shift = per_channel(lowering, other, value)
    if shift is None:
        return None
    if factor != 1.0:
        shift = shift * Array.full(shift.shape, factor)
    result = lowering.affine(node, value, scale, shift)
    return None if result is None else lowering.changed_in_place(node, result)


def _unchanged(lowering: Lowering, node: fx.Node, source: fx.Node, value: Value) -> Entry:
    """x + 0 and x * 1: the same numbers, in memory of their own."""
    result = lowering.affine(node, value, 1.0, 0.0)
    if result is None:
        return lowering.alias(node, source, value, copied=True)
    return lowering.changed_in_place(node, result)


def rsub(lowering: Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """other - alpha * x."""
    left, right = (*args, kwargs.get("other"))[:2]
    return None if len(args) > 2 else _sum(lowering, node, [right, left], kwargs, -1.0)


def mul(lowering: Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Entry | None:
    left, right = (*args, kwargs.get("other"))[:2]
    a, b = read(lowering, node, left), read(lowering, node, right)
    if isinstance(a, int) and isinstance(b, int):
        return _product(lowering, node, (left, a), (right, b))
    source, value, other = (left, a, right) if isinstance(a, int) else (right, b, left)
    if not isinstance(value, int):
        return None
    if is_number(other) and other == 1:
        return _unchanged(lowering, node, source, value)
    scale = per_channel(lowering, other, value)
    result = None if scale is None else lowering.affine(node, value, scale, 0.0)
    return None if result is None else lowering.changed_in_place(node, result)


def _elementwise(lowering: Lowering, node: fx.Node, a: Value, b: Value, nature: str = "") -> Value:
    """Arithmetic of data: nothing to fold, but the shape of the wider one is known."""
    result = lowering.opaque(node, nature=nature)
    facts = [fact for fact in (lowering.known(a), lowering.known(b)) if fact is not None]
    made = lowering.graph.nodes[result]
    if facts and len({rank for _, rank in facts}) == 1 and max(facts)[0] > 1:
        made.channels, made.rank = max(facts)
    return result


def _product(
    lowering: Lowering, node: fx.Node, left: tuple[fx.Node, Value], right: tuple[fx.Node, Value]
) -> Value:
    """A product of data, one side of which may be a factor of the sample."""
    result = _elementwise(lowering, node, left[1], right[1], "product")
    made = lowering.graph.nodes[result]
    if name_of(node) in ("mul", "multiply"):  # and not in place
        made.factor = factor_of(lowering, left, right)
    if isinstance(made.factor, tuple):  # of the other operand's shape
        made.channels, made.rank = lowering.known(made.factor[0]) or (None, None)
        made.area = lowering.graph.nodes[made.factor[0]].area
    return result


def div(lowering: Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Entry | None:
    left, right = (*args, kwargs.get("other"))[:2]
    value = read(lowering, node, left)
    if not isinstance(value, int) or kwargs.get("rounding_mode") is not None:
        return None
    other = read(lowering, node, right)
    if other is not None:
        return _elementwise(lowering, node, value, other)
    divisor = per_channel(lowering, right, value)
    if divisor is None:
        return None
    scale = divisor.apply(divisor.shape, lambda d: 1.0 / d)
    result = lowering.affine(node, value, scale, 0.0)
    return None if result is None else lowering.changed_in_place(node, result)


def neg(lowering: Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Entry | None:
    value = read(lowering, node, args[0])
    result = lowering.affine(node, value, -1.0, 0.0) if isinstance(value, int) else None
    return None if result is None else lowering.changed_in_place(node, result)
