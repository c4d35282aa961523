"""Axes that are permuted or flattened in a file and do not come back (A12, A14)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import onnx
import pytest

from repfuse.frontends.onnx.plan import plan_model
from repfuse.layouts import Layout
from tests.frontends.onnx.build import Dims, Net, operators
from tests.frontends.onnx.cases import Case, each, fused
from tests.frontends.onnx.evaluate import SIZES, assert_same, in_double

LAST, FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
TOKENS: Dims = ("N", "L", 8)
TOKEN_SIZES = ({"N": 2, "L": 5}, {"N": 8, "L": 8}, {"N": 1, "L": 1})
IMAGE_SIZES = (*SIZES, {"N": 8, "H": 8, "W": 8}, {"N": 3, "H": 1, "W": 8})


def turned(net: Net, x: str, perm: list[int]) -> str:
    return net.node("Transpose", x, perm=perm)


def linear(net: Net, x: str, outputs: int = 8, inputs: int = 8, bias: bool = True) -> str:
    y = net.node("MatMul", x, net.weight(inputs, outputs))
    return net.add(y, net.weight(outputs)) if bias else y


def flat(net: Net, x: str, channels: int = 8) -> str:
    """Tokens of an image, whose sizes are open."""
    batch = net.node("Slice", net.node("Shape", x), net.ints(0), net.ints(1))
    shape = net.node("Concat", batch, net.ints(channels), net.ints(-1), axis=0)
    return turned(net, net.node("Reshape", x, shape), [0, 2, 1])


def norm_then_linear(net: Net, x: str) -> str:
    return net.relu(linear(net, turned(net, net.bn(x), LAST)))


def conv_then_tokens(net: Net, x: str) -> str:
    return net.relu(linear(net, flat(net, net.conv(x, size=1)), 6))


def tokens_then_norm(net: Net, x: str) -> str:
    return net.relu(net.bn(turned(net, linear(net, x), [0, 2, 1])))


def tokens_then_conv(net: Net, x: str) -> str:
    """The transposed tokens are read twice, so that both convs share the one that stays."""
    y = turned(net, linear(net, x), [0, 2, 1])
    left, right = (net.relu(net.conv(y, 8, 8, 1, rank=1)) for _ in range(2))
    return net.node("Mul", left, right)


def large_conv_before(net: Net, x: str) -> str:
    """The conv cannot work on the permuted data; its axes are moved after it."""
    return net.relu(linear(net, turned(net, net.conv(x), LAST)))


def matrix(net: Net, x: str) -> str:
    y = net.node("Flatten", turned(net, net.bn(x), LAST), axis=3)
    return net.relu(net.node("Gemm", y, net.weight(8, 4), net.weight(4)))


def read_in_both_forms(net: Net, x: str) -> str:
    """The moved data are also read by themselves, and so is what they are of."""
    y = net.relu(x)
    moved = turned(net, y, LAST)
    z = net.node("Tanh", turned(net, linear(net, moved), FIRST))
    total = net.add(net.bn(z), net.relu(turned(net, net.bn(y), [0, 1, 2, 3])))
    return net.add(total, net.relu(turned(net, moved, FIRST)))


def two_linears(net: Net, x: str) -> str:
    y = turned(net, net.bn(x), LAST)
    return net.relu(net.add(linear(net, y), linear(net, y)))


def shared_move(net: Net, x: str) -> str:
    y = turned(net, net.bn(x), LAST)
    return net.node("Mul", net.relu(linear(net, y)), net.node("Tanh", linear(net, y)))


def norm_then_conv(net: Net, x: str) -> str:
    """LayerNorm of the channels of an image, then a 1x1 conv."""
    y = turned(net, net.relu(x), LAST)
    y = net.node("LayerNormalization", y, net.scale(8), net.weight(8), axis=-1)
    return net.relu(net.conv(turned(net, y, FIRST), outputs=6, size=1))


FIRES = {
    "norm, permute, Linear": Case(norm_then_linear, "Add, MatMul, Relu, Transpose"),
    "conv, flatten, Linear": Case(
        conv_then_tokens, "Add, Concat, MatMul, Relu, Reshape, Shape, Slice, Transpose"
    ),
    "tokens, transpose, norm": Case(tokens_then_norm, "Conv, Relu, Transpose", TOKENS),
    "tokens, transpose, convs": Case(
        tokens_then_conv, "2 Conv, Mul, 2 Relu, Transpose", TOKENS
    ),
    "3x3 conv, permute, Linear": Case(large_conv_before, "Conv, Relu, Transpose"),
    "norm, permute, flatten, Gemm": Case(matrix, "Flatten, Gemm, Relu, Transpose"),
    "two Linears": Case(two_linears, "Add, MatMul, Relu, Transpose"),
    "two readers": Case(shared_move, "2 Add, 2 MatMul, Mul, Relu, Tanh, Transpose"),
}  # fmt: skip
LEFT = {"both forms": Case(read_in_both_forms)}


@each(FIRES)
def test_fires(case: Case) -> None:
    sizes = TOKEN_SIZES if case.dims is TOKENS else IMAGE_SIZES
    replace(case, sizes=sizes).check()


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
@each({**FIRES, **LEFT})
def test_is_the_same_function(case: Case, opset: int) -> None:
    model = in_double(replace(case, opset=opset).model())
    for target in ("cpu", "min-ops"):
        result, _ = fused(model, target)
        assert_same(model, result, 1e-9, TOKEN_SIZES if case.dims is TOKENS else IMAGE_SIZES)


def test_a_conv_absorbs_the_norm_before_a_permute() -> None:
    net = Net()
    model = net.model(norm_then_conv(net, net.input()))
    plan = plan_model(model)
    result = plan.apply()
    assert plan.report.errors == [] and len(plan.report.regions) == 1
    (norm,) = [node for node in result.graph.node if node.op_type == "LayerNormalization"]
    assert len(norm.input) == 2, "the norm still has its bias"
    assert_same(model, result, 1e-6, IMAGE_SIZES)
    assert plan_model(result).report.regions == []


def in_order(self: Layout, order: Any) -> Layout:
    """A recognition that is wrong: it keeps all axes but the channels in order."""
    place = list(order).index(self.place)
    rest = [group for axis, group in enumerate(self.groups) if axis != self.place]
    return replace(self, groups=(*rest[:place], self.groups[self.place], *rest[place:]))


def transposed(net: Net, x: str) -> str:
    """The image is transposed on the way."""
    y = turned(net, linear(net, turned(net, net.relu(x), [0, 3, 2, 1])), FIRST)
    return net.relu(net.bn(y))


def transposed_tokens(net: Net, x: str) -> str:
    y = turned(net, net.conv(x), [0, 1, 3, 2])
    return net.relu(linear(net, turned(net, y, [0, 2, 3, 1])))


@pytest.mark.parametrize("make", [transposed, transposed_tokens])
def test_a_wrong_recognition_is_refused(make: Callable[[Net, str], str], monkeypatch: Any) -> None:
    net = Net()
    model = in_double(net.model(make(net, net.input())))
    monkeypatch.setattr(Layout, "permuted", in_order)
    plan = plan_model(model, target="min-ops")
    result = plan.apply()
    assert_same(model, result, 1e-9)
    assert any("axes" in error for error in plan.report.errors)


def sizes_of_a_merged_value(net: Net, x: str) -> str:
    """A Reshape by the sizes of what is merged away; only the merged Linear reads what it makes."""
    y = linear(net, x)
    sizes = [net.node("Gather", net.node("Shape", y), net.ints(axis)) for axis in (0, 1)]
    y = net.node("Mul", y, net.scale(8))
    tokens = net.node("Reshape", y, net.ints(-1, 8))
    back = net.node(
        "Concat", *sizes, net.node("Gather", net.node("Shape", tokens), net.ints(1)), axis=0
    )
    y = net.node("Reshape", tokens, back)
    return net.node("Mul", linear(net, y), net.scale(8))


def test_sizes_for_what_new_nodes_read_stay() -> None:
    net = Net()
    model = in_double(net.model(sizes_of_a_merged_value(net, net.input("x", TOKENS))))
    for target in ("cpu", "min-ops"):
        result, _ = fused(model, target)
        onnx.checker.check_model(result, full_check=True)
        assert operators(result) != operators(model)
        assert_same(model, result, 1e-9, TOKEN_SIZES)
