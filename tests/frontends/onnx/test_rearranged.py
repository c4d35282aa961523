"""Channel shuffles written as Reshape, Transpose, Reshape; sums and means of stacked values."""

from __future__ import annotations

import onnx
import pytest

from tests.frontends.onnx.build import Net, operators
from tests.frontends.onnx.cases import Case, Make, each, fused
from tests.frontends.onnx.evaluate import assert_same, in_double

SPLIT, BACK = (0, 2, 4, 5, 6), (0, 8, 5, 6)
STATIC = ("N", 8, 5, 6)
SIZES = ({"N": 2}, {"N": 3})


def shuffle(
    net: Net, x: str, split: tuple[int, ...], perm: tuple[int, ...], back: tuple[int, ...]
) -> str:
    y = net.node("Reshape", net.conv(x), net.ints(*split))
    return net.node("Reshape", net.node("Transpose", y, perm=perm), net.ints(*back))


def by_sizes(net: Net, x: str, other: str = "") -> str:
    """The shapes are computed, from the sizes of the shuffled tensor or of another one."""
    y = net.conv(x)
    shape = net.node("Shape", other or y)
    ends = [net.node("Gather", shape, net.ints(axis)) for axis in (0, 2, 3)]
    batch, high, wide = ends
    split = net.node("Concat", batch, net.ints(4, 2), high, wide, axis=0)
    back = net.node("Concat", batch, net.ints(8), high, wide, axis=0)
    y = net.node("Transpose", net.node("Reshape", y, split), perm=(0, 2, 1, 3, 4))
    return net.node("Reshape", y, back)


def stacked(
    net: Net, x: str, *, axis: int = 1, over: int = 1, op: str = "ReduceMean", keepdims: int = 0
) -> str:
    terms = [net.node("Unsqueeze", net.conv(x), net.ints(axis)) for _ in range(3)]
    return net.node(op, net.node("Concat", *terms, axis=axis), axes=[over], keepdims=keepdims)


def summed(net: Net, x: str) -> str:
    terms = [net.node("Unsqueeze", net.conv(x), net.ints(0)) for _ in range(2)]
    total = net.node("ReduceSum", net.node("Concat", *terms, axis=0), net.ints(0), keepdims=0)
    return net.node("Relu", total)


def turned(perm: tuple[int, ...]) -> Make:
    return lambda net, x: shuffle(net, x, SPLIT, perm, BACK)


MERGED = {
    "sizes as they are": Case(turned((0, 2, 1, 3, 4)), dims=STATIC, sizes=SIZES),
    "sizes that are computed": Case(by_sizes),
    "sizes of the input": Case(lambda n, x: by_sizes(n, x, x)),
    "one size left open": Case(
        lambda n, x: shuffle(n, x, (0, 2, -1, 5, 6), (0, 2, 1, 3, 4), (-1, 8, 5, 6)),
        dims=STATIC,
        sizes=SIZES,
    ),
    "mean": Case(stacked),
    "mean along the last axis": Case(lambda n, x: stacked(n, x, axis=-1, over=-1)),
    "sum": Case(summed, "Conv, Relu"),
    "halves, cut out of the whole batch": Case(lambda n, x: halves(n, x, n.ints(4))),
    "the channels backwards": Case(
        lambda n, x: n.conv(
            n.node("Slice", x, n.ints(-1), n.ints(-(2**63)), n.ints(1), n.ints(-1)))
    ),
    "halves, by the number of channels": Case(lambda n, x: halves(n, x, half(n, x))),
}  # fmt: skip


def halves(net: Net, x: str, middle: str) -> str:
    """Equal convs on both halves of the channels, of the whole batch."""
    x = net.node("Slice", x, net.ints(0), net.ints(2**63 - 1), net.ints(0))
    left = net.node("Slice", x, net.ints(0), middle, net.ints(1))
    right = net.node("Slice", x, middle, net.ints(2**63 - 1), net.ints(1))
    return net.node("Concat", net.conv(left, 4), net.conv(right, 4), axis=1)


def half(net: Net, x: str) -> str:
    """Half of the channels, computed from a shape whose other sizes are open."""
    channels = net.node("Gather", net.node("Shape", x), net.ints(1))
    return net.node("Div", channels, net.ints(2))


def shared_shape(net: Net, x: str) -> tuple[str, str]:
    """One of the sizes is asked for outside of the shuffle, too."""
    result = by_sizes(net, x)
    (batch,) = [n.output[0] for n in net.nodes if n.op_type == "Gather"][:1]
    return result, batch


@each({**MERGED, "a size is an output": Case(shared_shape, "Conv, Gather, Shape")})
def test_merged(case: Case) -> None:
    case.check()


LEFT: dict[str, Make] = {
    "other axes move, too": turned((0, 2, 1, 4, 3)),
    "the pieces are kept": lambda n, x: stacked(n, x, keepdims=1),
    "another axis is reduced": lambda n, x: stacked(n, x, over=2),
    "the sizes change": lambda n, x: shuffle(n, x, SPLIT, (0, 2, 1, 3, 4), (0, 8, 6, 5)),
    "the channels change": lambda n, x: shuffle(n, x, SPLIT, (0, 2, 1, 3, 4), (0, 4, 10, 6)),
}


@pytest.mark.parametrize("make", LEFT.values(), ids=list(LEFT))
def test_left(make: Make) -> None:
    net = Net()
    outputs = make(net, net.input("x", STATIC))
    model = in_double(net.model(*([outputs] if isinstance(outputs, str) else outputs)))
    result, _ = fused(model)
    onnx.checker.check_model(result, full_check=True)
    assert operators(result) == operators(model)
    assert_same(model, result, 1e-12, SIZES)


def test_a_stack_that_somebody_else_reads_stays() -> None:
    net = Net()
    x = net.input()
    terms = [net.node("Unsqueeze", net.conv(x), net.ints(1)) for _ in range(2)]
    stack = net.node("Concat", *terms, axis=1)
    model = in_double(net.model(net.node("ReduceMean", stack, axes=[1], keepdims=0), stack))
    result, _ = fused(model)
    assert operators(result) == operators(model)
    assert_same(model, result, 1e-12)
