"""The ways to write something in ONNX, and which nodes are left after it is fused."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from onnx import TensorProto

from tests.frontends.onnx.build import Dims, Net
from tests.frontends.onnx.cases import Case, Make, each

SIGNAL: Dims = ("N", 8, "W")
VOLUME: Dims = ("N", 8, "D", "H", "W")
TOKENS: Dims = ("N", "W", 8)
ROWS: Dims = ("N", 8)

# Convs with a batch norm behind them.


def conv_bn(rank: int = 2, outputs: int = 8, **options: Any) -> Make:
    def make(net: Net, x: str) -> str:
        return net.bn(net.conv(x, outputs=outputs, rank=rank, **options), outputs)

    return make


def transposed_bn(rank: int = 2, outputs: int = 8, **options: Any) -> Make:
    def make(net: Net, x: str) -> str:
        return net.bn(net.conv_transpose(x, 8, outputs, rank=rank, **options), outputs)

    return make


STATIC: Dims = (2, 8, 7, 10)
CONVS = {
    "Conv 1-D": Case(conv_bn(1), dims=SIGNAL),
    "Conv 3-D": Case(conv_bn(3), dims=VOLUME),
    "no bias": Case(conv_bn(bias=False)),
    "groups": Case(conv_bn(outputs=12, group=4)),
    "depthwise": Case(conv_bn(group=8)),
    "strides": Case(conv_bn(strides=[2, 3])),
    "dilations": Case(conv_bn(dilations=[1, 2], pads=[1, 2, 1, 2])),
    "asymmetric pads": Case(conv_bn(size=(3, 4), pads=[0, 3, 2, 1])),
    "auto_pad NOTSET": Case(conv_bn(auto_pad="NOTSET", pads=[1, 1, 1, 1])),
    "auto_pad VALID": Case(conv_bn(auto_pad="VALID")),
    "auto_pad VALID with strides": Case(conv_bn(auto_pad="VALID", strides=[2, 2])),
    "auto_pad SAME_UPPER": Case(conv_bn(size=(2, 4), auto_pad="SAME_UPPER")),
    "auto_pad SAME_LOWER": Case(conv_bn(size=(2, 4), auto_pad="SAME_LOWER")),
    "auto_pad SAME_UPPER with dilations": Case(
        conv_bn(size=(2, 3), auto_pad="SAME_UPPER", dilations=[3, 2])
    ),
    "auto_pad SAME_UPPER with strides": Case(
        conv_bn(auto_pad="SAME_UPPER", strides=[2, 3]), dims=STATIC
    ),
    "auto_pad SAME_LOWER with strides": Case(
        conv_bn(size=2, auto_pad="SAME_LOWER", strides=[2, 3]), dims=STATIC
    ),
    "auto_pad SAME_UPPER with a stride above the kernel": Case(
        conv_bn(size=2, auto_pad="SAME_UPPER", strides=[3, 3]), dims=STATIC
    ),
    "ConvTranspose 1-D": Case(transposed_bn(1), "ConvTranspose", SIGNAL),
    "ConvTranspose 2-D": Case(transposed_bn(), "ConvTranspose"),
    "ConvTranspose 3-D": Case(transposed_bn(3), "ConvTranspose", VOLUME),
    "ConvTranspose with groups": Case(transposed_bn(outputs=12, group=4), "ConvTranspose"),
    "ConvTranspose with output_padding": Case(
        transposed_bn(strides=[2, 3], output_padding=[1, 2]), "ConvTranspose"
    ),
    "ConvTranspose with asymmetric pads": Case(
        transposed_bn(outputs=4, group=2, strides=[2, 1], pads=[1, 0, 0, 2]), "ConvTranspose"
    ),
    "ConvTranspose with pads and output_padding": Case(
        transposed_bn(strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]), "ConvTranspose"
    ),
    "ConvTranspose with dilations": Case(transposed_bn(dilations=[2, 3]), "ConvTranspose"),
    **{
        f"BatchNormalization of opset {opset}": Case(
            lambda net, x: net.bn(net.conv(x), epsilon=0.25), opset=opset
        )
        for opset in (9, 14, 15)
    },
    "the batch norm first": Case(lambda net, x: net.conv(net.bn(x), pads=[0, 0, 0, 0])),
    "a batch norm of rows": Case(
        lambda net, x: net.bn(net.node("Gemm", x, net.weight(8, 8))), "Gemm", ROWS
    ),
    "a conv behind a pointwise conv": Case(
        lambda net, x: net.conv(net.conv(x, size=1, bias=False))
    ),
}


@each(CONVS)
def test_convs(case: Case) -> None:
    case.check()


# Arithmetic on the branches `a` (3x3) and `b` (1x1).

ARITHMETIC: dict[str, Make] = {
    "Add": lambda n, x: n.node("Add", n.conv(x), n.conv(x, size=1)),
    "Add of the input": lambda n, x: n.node("Add", x, n.conv(x)),
    "Add of a value to itself": lambda n, x: n.node("Add", *[n.conv(x)] * 2),
    "Sub": lambda n, x: n.node("Sub", n.conv(x), n.conv(x, size=1)),
    "Sub from the input": lambda n, x: n.node("Sub", x, n.conv(x)),
    "Sum of one": lambda n, x: n.node("Sum", n.conv(x)),
    "Sum of two": lambda n, x: n.node("Sum", n.conv(x), n.conv(x, size=1)),
    "Sum of three": lambda n, x: n.node("Sum", n.conv(x), x, n.conv(x, size=1)),
    "Sum with a constant": lambda n, x: n.node("Sum", n.conv(x), n.weight(8, 1, 1), x),
    "Mean": lambda n, x: n.node("Mean", n.conv(x), n.conv(x, size=1), x),
    "Mean of one": lambda n, x: n.node("Mean", n.conv(x)),
    "Neg": lambda n, x: n.node("Neg", n.conv(x)),
    "Neg in a sum": lambda n, x: n.add(x, n.node("Neg", n.conv(x))),
    "Identity": lambda n, x: n.node("Identity", n.conv(x)),
    "Identity on a branch": lambda n, x: n.add(n.node("Identity", x), n.conv(x)),
    "Identity between": lambda n, x: n.bn(n.node("Identity", n.conv(x))),
    "a batch norm alone": lambda n, x: n.add(n.conv(x), n.bn(x)),
    "a batch norm of a sum": lambda n, x: n.bn(n.add(n.conv(x), n.bn(n.conv(x, size=1)))),
    "branches of other shapes": lambda n, x: n.add(
        n.conv(x, size=(1, 3)), n.conv(x, size=(3, 1)), n.conv(x, group=8), n.conv(x, size=5)
    ),
    "a scaled skip": lambda n, x: n.add(x, n.node("Mul", n.conv(x), n.const(0.1))),
    "a scaled input": lambda n, x: n.add(n.node("Mul", n.const(0.1), x), n.conv(x)),
    "nested sums": lambda n, x: n.add(
        n.node("Sub", n.conv(x), n.add(x, n.conv(x, size=1))), n.add(n.bn(x), x)
    ),
}


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic(name: str) -> None:
    Case(ARITHMETIC[name]).check()


SHAPES: tuple[tuple[int, ...], ...] = ((), (1,), (8, 1, 1), (1, 8, 1, 1), (1, 1, 1, 1), (1, 1))
CONSTANTS: dict[str, tuple[str, bool]] = {
    "y + c": ("Add", False),
    "c + y": ("Add", True),
    "y - c": ("Sub", False),
    "c - y": ("Sub", True),
    "y * c": ("Mul", False),
    "c * y": ("Mul", True),
    "y / c": ("Div", False),
}


def constant(op: str, first: bool, shape: tuple[int, ...], net: Net, x: str) -> str:
    pair = [net.conv(x), net.scale(*shape)]
    return net.node(op, *(pair[::-1] if first else pair))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("text", CONSTANTS)
def test_constants(text: str, shape: tuple[int, ...]) -> None:
    Case(partial(constant, *CONSTANTS[text], shape)).check()


CHAINS: dict[str, Make] = {
    "many constants": lambda n, x: n.node(
        "Div",
        n.node("Sub", n.const(2.0), n.node("Mul", n.node("Add", n.conv(x), n.scale(1)), n.scale())),
        n.scale(8, 1, 1),
    ),
    "two factors of the input": lambda n, x: n.conv(
        n.node("Mul", n.node("Div", x, n.scale(8, 1, 1)), n.scale()), bias=False
    ),
    "a constant before a valid conv": lambda n, x: n.conv(
        n.node("Add", x, n.scale(8, 1, 1)), pads=[0] * 4
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_chains_of_constants(name: str) -> None:
    Case(CHAINS[name]).check()


# Dropout outside of training.


def dropout(attrs: dict[str, Any], rest: tuple[str, ...], net: Net, x: str) -> str:
    values = {"": "", "ratio": net.const(0.5), "off": net.const(False, elem=TensorProto.BOOL)}
    dropped = net.node("Dropout", net.conv(x), *(values[name] for name in rest), **attrs)
    return net.add(dropped, x)


DROPOUTS = {
    "opset 9": Case(partial(dropout, {"ratio": 0.5}, ()), opset=9),
    "opset 10": Case(partial(dropout, {"ratio": 0.5}, ()), opset=10),
    "opset 12": Case(partial(dropout, {}, ()), opset=12),
    "opset 13 with a ratio": Case(partial(dropout, {"seed": 1}, ("ratio",)), opset=13),
    "training_mode false": Case(partial(dropout, {}, ("ratio", "off"))),
    "training_mode false without a ratio": Case(partial(dropout, {}, ("", "off"))),
    "opset 22": Case(partial(dropout, {}, ("ratio", "off")), opset=22),
}


@each(DROPOUTS)
def test_dropouts(case: Case) -> None:
    case.check()


# Pads.


def padded(
    mode: str, amounts: list[int], extra: tuple[str, ...], net: Net, x: str, attrs: bool = False
) -> str:
    """A Pad and a conv without one."""
    if attrs:
        y = net.node("Pad", x, mode=mode, pads=amounts)
    else:
        known = {"": "", "zero": net.const(0.0), "axes": net.ints(2, -1)}
        y = net.node("Pad", x, net.ints(*amounts), *(known[n] for n in extra), mode=mode)
    return net.conv(y, pads=[0, 0, 0, 0])


FOUR = [0, 0, 1, 2, 0, 0, 2, 1]
CROP = [0, 0, -1, -2, 0, 0, 0, -1]
PADS = {
    "attribute": Case(partial(padded, "constant", FOUR, (), attrs=True), opset=10),
    "input": Case(partial(padded, "constant", FOUR, ()), opset=11),
    "input and value": Case(partial(padded, "constant", FOUR, ("zero",))),
    "axes": Case(partial(padded, "constant", [1, 2, 2, 1], ("zero", "axes")), opset=18),
    "axes without a value": Case(partial(padded, "constant", [1, 2, 2, 1], ("", "axes")), opset=18),
    "negative, a crop of what a conv padded": Case(
        lambda n, x: n.bn(n.node("Pad", n.conv(x, pads=[2, 2, 2, 2]), n.ints(*CROP)))
    ),
    "reflect and its sum": Case(
        lambda n, x: n.add(padded("reflect", FOUR, (), n, x), padded("reflect", FOUR, (), n, x)),
        "Conv, Pad",
    ),
    "edge, attribute": Case(
        lambda n, x: n.add(
            padded("edge", FOUR, (), n, x, True), padded("edge", FOUR, (), n, x, True)
        ),
        "Conv, Pad",
        opset=9,
    ),
    "wrap": Case(
        lambda n, x: n.bn(n.add(padded("wrap", FOUR, (), n, x), padded("wrap", FOUR, (), n, x))),
        "Conv, Pad",
        opset=19,
    ),
    "reflect read once by two convs": Case(
        lambda n, x: n.add(
            n.conv(y := n.node("Pad", x, n.ints(*FOUR), mode="reflect")), n.conv(y, size=1)
        ),
        "Conv, Pad",
    ),
    "a conv that pads, and a Pad": Case(
        lambda n, x: n.conv(n.node("Pad", x, n.ints(0, 0, 1, 0, 0, 0, 0, 2)))
    ),
}


@each(PADS)
def test_pads(case: Case) -> None:
    case.check()


# Average pooling beside a conv, or before and behind a pointwise one.


def pool(net: Net, x: str, size: int = 3, **attrs: Any) -> str:
    return net.node("AveragePool", x, kernel_shape=[size, size], **attrs)


POOLS = {
    "counting its border": Case(
        lambda n, x: n.add(n.conv(x), pool(n, x, pads=[1] * 4, count_include_pad=1))
    ),
    "without a border": Case(lambda n, x: n.add(n.conv(x, pads=[0] * 4), pool(n, x))),
    "without a border, counting it": Case(
        lambda n, x: n.add(n.conv(x, pads=[0] * 4), pool(n, x, count_include_pad=1))
    ),
    "strides": Case(
        lambda n, x: n.add(
            n.conv(x, pads=[0] * 4, strides=[2, 2]), pool(n, x, strides=[2, 2], size=3)
        )
    ),
    "auto_pad": Case(
        lambda n, x: n.add(
            n.conv(x, auto_pad="SAME_UPPER"),
            pool(n, x, size=3, auto_pad="SAME_UPPER", count_include_pad=1),
        )
    ),
    "behind a conv and its batch norm, DBB": Case(
        lambda n, x: n.add(
            n.conv(x),
            n.bn(pool(n, n.bn(n.conv(x, size=1, pads=[1] * 4, bias=False)), size=3)),
        ),
    ),
}


@each(POOLS)
def test_pools(case: Case) -> None:
    case.check()


# Channels side by side, and some of them.


def halves(net: Net, x: str, op: str, *inputs: str, **attrs: Any) -> str:
    """Each half of the channels through a conv of its own: one grouped conv."""
    a, b = net.several(op, x, *inputs, count=2, **attrs)
    return net.node("Concat", net.conv(a, 4, 4), net.conv(b, 4, 4), axis=1)


def sliced(net: Net, x: str, opset: int, start: int, end: int) -> str:
    if opset < 10:
        return net.node("Slice", x, starts=[start], ends=[end], axes=[1])
    return net.node("Slice", x, net.ints(start), net.ints(end), net.ints(1))


PIECES = {
    "Concat": Case(lambda n, x: n.node("Concat", n.conv(x), n.conv(x, 8, 4), axis=1)),
    "Concat, axis from the end": Case(
        lambda n, x: n.node("Concat", n.conv(x), n.conv(x, 8, 4), axis=-3)
    ),
    "Concat of one": Case(lambda n, x: n.node("Concat", n.conv(x), axis=1)),
    "Concat before a pointwise conv": Case(
        lambda n, x: n.conv(n.node("Concat", n.conv(x), x, axis=1), 16, size=1)
    ),
    "Split by attribute": Case(lambda n, x: halves(n, x, "Split", axis=1, split=[4, 4]), opset=9),
    "Split by input": Case(lambda n, x: halves(n, x, "Split", n.ints(4, 4), axis=1)),
    "Split in equal parts": Case(lambda n, x: halves(n, x, "Split", axis=1)),
    "Split by num_outputs": Case(
        lambda n, x: halves(n, x, "Split", axis=-3, num_outputs=2), opset=18
    ),
    "Slice by attribute": Case(
        lambda n, x: n.conv(sliced(n, n.conv(x, size=1, bias=False), 9, 2, 6), 4, 8),
        "2 Conv",
        opset=9,
    ),
    "Slice by input": Case(
        lambda n, x: n.conv(sliced(n, n.conv(x, size=1, bias=False), 17, -6, 2**31 - 1), 6, 8),
        "2 Conv",
    ),
    "Slice in steps": Case(
        lambda n, x: n.conv(
            n.node("Slice", n.conv(x, size=1), n.ints(1), n.ints(99), n.ints(-3), n.ints(2)),
            4,
            8,
            size=1,
        )
    ),
    "Gather": Case(
        lambda n, x: n.node("Gather", n.conv(x), n.ints(3, -1, 0, 3), axis=1),
    ),
    "Gather before a conv": Case(
        lambda n, x: n.conv(n.node("Gather", x, n.ints(7, 6, 5, 4, 3, 2, 1, 0), axis=-3))
    ),
}


@each(PIECES)
def test_pieces(case: Case) -> None:
    case.check()


# Matrices.


def gemm(net: Net, x: str, c: tuple[int, ...] | None = None, **attrs: Any) -> str:
    """A Gemm from 8 to 6, and a factor that goes into it."""
    shape = (6, 8) if attrs.get("transB") else (8, 6)
    added = [] if c is None else [net.scale(*c)]
    return net.node("Mul", net.node("Gemm", x, net.weight(*shape), *added, **attrs), net.scale(6))


GEMMS = {
    "plain": Case(gemm, "Gemm", ROWS),
    "transB": Case(partial(gemm, transB=1), "Gemm", ROWS),
    "alpha and beta": Case(partial(gemm, c=(6,), alpha=0.5, beta=-2.0), "Gemm", ROWS),
    **{
        f"C of shape {shape}": Case(partial(gemm, c=shape, beta=0.5), "Gemm", ROWS)
        for shape in ((), (1,), (6,), (1, 1), (1, 6))
    },
    "a MatMul without a bias, where a Gemm needs one": Case(
        lambda n, x: n.node("MatMul", n.node("Mul", x, n.scale(8)), n.weight(8, 6)),
        "MatMul",
        ROWS,
        9,
    ),
    "two in series": Case(
        lambda n, x: n.node("Gemm", n.node("Gemm", x, n.weight(8, 64)), n.weight(64, 6)),
        "Gemm",
        ROWS,
    ),
    "a sum of two": Case(
        lambda n, x: n.add(
            n.node("Gemm", x, n.weight(8, 6), n.weight(6)), n.node("Gemm", x, n.weight(8, 6))
        ),
        "Gemm",
        ROWS,
    ),
}


def product(net: Net, x: str) -> str:
    """MatMul + Add, plus a low-rank update, plus the input."""
    main = net.node("Add", net.node("MatMul", x, net.weight(8, 8)), net.weight(8))
    update = net.node("MatMul", net.node("MatMul", x, net.weight(8, 2)), net.weight(2, 8))
    return net.node("Mul", net.add(net.add(main, update), x), net.scale(1))


MATMULS = {
    "2-D": Case(product, "Gemm", ROWS),
    "3-D": Case(product, "Add, MatMul", TOKENS),
    "4-D": Case(product, "Add, MatMul", ("N", "H", "W", 8)),
    "the constant first in its Add": Case(
        lambda n, x: n.node(
            "Mul",
            n.node("Add", n.weight(1, 1, 6), n.node("MatMul", x, n.weight(8, 6))),
            n.scale(6),
        ),
        "Add, MatMul",
        TOKENS,
    ),
    "without an Add": Case(
        lambda n, x: n.node("Mul", n.node("MatMul", x, n.weight(8, 6)), n.scale(6)),
        "MatMul",
        TOKENS,
    ),
    "the factor first": Case(
        lambda n, x: n.node("MatMul", n.node("Mul", x, n.scale(8)), n.weight(8, 6)),
        "MatMul",
        TOKENS,
    ),
    "q, k and v stay, each with its bias": Case(
        lambda n, x: tuple(
            n.node(
                "Mul", n.node("Add", n.node("MatMul", x, n.weight(8, 8)), n.weight(8)), n.scale()
            )
            for _ in range(3)
        ),
        "3 Add, 3 MatMul",
        TOKENS,
    ),
}


@each(GEMMS | MATMULS)
def test_matrices(case: Case) -> None:
    case.check()


# Weights that are computed. Each of these yields the weight (8, 8, 3, 3) of a conv.


def with_weight(make: Make, net: Net, x: str) -> str:
    weight = make(net, x)
    assert isinstance(weight, str)
    return net.bn(net.node("Conv", x, weight, net.weight(8), pads=[1, 1, 1, 1]))


def literal(net: Net) -> str:
    return net.literal(net.noise.standard_normal((8, 8, 3, 3)))


WEIGHTS: dict[str, Make] = {
    "an initializer": lambda n, x: n.weight(8, 8, 3, 3),
    "a Constant node": lambda n, x: literal(n),
    "Identity": lambda n, x: n.node("Identity", n.weight(8, 8, 3, 3)),
    "Identity of Identity": lambda n, x: n.node("Identity", n.node("Identity", literal(n))),
    "Transpose": lambda n, x: n.node("Transpose", n.weight(3, 8, 3, 8), perm=[1, 3, 0, 2]),
    "Reshape": lambda n, x: n.node("Reshape", n.weight(8, 72), n.ints(8, 8, 3, -1)),
    "Cast": lambda n, x: n.node(
        "Cast",
        n.node("Cast", n.weight(8, 8, 3, 3), to=TensorProto.DOUBLE),
        to=TensorProto.FLOAT,
    ),
    "CastLike": lambda n, x: n.node("CastLike", n.weight(8, 8, 3, 3), x),
    "Expand": lambda n, x: n.node("Expand", n.weight(8, 1, 3, 1), n.ints(8, 8, 3, 3)),
    "Expand to the shape of another": lambda n, x: n.node(
        "Expand", n.weight(8, 1, 3, 1), n.node("Shape", n.weight(8, 8, 3, 3))
    ),
    "Unsqueeze and Concat": lambda n, x: n.node(
        "Concat",
        *(n.node("Unsqueeze", n.weight(8, 3, 3), n.ints(1)) for _ in range(8)),
        axis=1,
    ),
    "a masked weight": lambda n, x: n.node("Mul", n.weight(8, 8, 3, 3), n.weight(8, 1, 3, 3)),
    "weight norm": lambda n, x: n.node(
        "Mul",
        n.scale(8, 1, 1, 1),
        n.node("Div", w := n.weight(8, 8, 3, 3), n.node("ReduceL2", w, axes=[1, 2, 3])),
    ),
    "a standardised weight": lambda n, x: n.node(
        "Sub", w := n.weight(8, 8, 3, 3), n.node("ReduceMean", w, axes=[1, 2, 3])
    ),
    "Where": lambda n, x: n.node(
        "Where",
        n.const(n.noise.random((8, 8, 3, 3)) > 0.5, elem=TensorProto.BOOL),
        w := n.weight(8, 8, 3, 3),
        n.node("Mul", w, n.const(0.1)),
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_computed_weights(name: str) -> None:
    Case(partial(with_weight, WEIGHTS[name])).check()


BIASES: dict[str, Make] = {
    "zeros, as the dynamo exporter writes them": lambda n, x: n.node(
        "Expand",
        n.node("CastLike", n.const(0.0), x),
        n.node("Slice", n.node("Shape", n.weight(8, 8, 3, 3)), n.ints(0), n.ints(1)),
    ),
    "ConstantOfShape": lambda n, x: n.node("ConstantOfShape", n.ints(8)),
    "value_floats": lambda n, x: n.node("Constant", value_floats=[0.5 * i for i in range(8)]),
    "by the static channels of the input": lambda n, x: n.node(
        "Expand", n.const(0.25), n.node("Shape", x, start=1, end=2)
    ),
}


@pytest.mark.parametrize("name", BIASES)
def test_computed_biases(name: str) -> None:
    def make(net: Net, x: str) -> str:
        bias = BIASES[name](net, x)
        assert isinstance(bias, str)
        return net.bn(net.node("Conv", x, net.weight(8, 8, 3, 3), bias, pads=[1] * 4))

    Case(make, "Conv", (2, 8, 7, 9) if name.startswith("by the") else ("N", 8, "H", "W")).check()
