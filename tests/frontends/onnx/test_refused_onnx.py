"""What is left alone, byte for byte, and the reason that the report gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from tests.frontends.onnx.build import IMAGE, Dims, Net
from tests.frontends.onnx.cases import Make, all_of, untouched

INT = TensorProto.INT64
BOOL = TensorProto.BOOL


@dataclass(frozen=True)
class Refused:
    """A graph on one input; `reason` is a part of a refusal, or of why something is kept."""

    make: Make
    reason: str = ""
    dims: Dims = IMAGE
    opset: int = 17

    def check(self) -> None:
        net = Net(self.opset)
        outputs = self.make(net, net.input("x", self.dims))
        model = net.model(*([outputs] if isinstance(outputs, str) else outputs))
        onnx.checker.check_model(model, full_check=True)
        report = untouched(model)
        reasons = [r.reason for r in all_of(report)]
        assert not self.reason or any(self.reason in reason for reason in reasons), reasons


def overridable(net: Net, name: str, *shape: int) -> str:
    """An initializer that is also a graph input."""
    net.input(name, shape)
    return net.weight(*shape, name=name)


def given(net: Net, name: str, *shape: int) -> str:
    return net.input(name, shape)


def after(op: str, *shape: int, first: bool = False) -> Make:
    """A constant of some shape after a conv to 8 channels."""

    def make(net: Net, x: str) -> str:
        pair = [net.conv(x), net.scale(*shape)]
        return net.node(op, *(pair[::-1] if first else pair))

    return make


def squeeze_excite(net: Net, x: str) -> str:
    y = net.conv(x)
    gate = net.node("Sigmoid", net.conv(net.node("GlobalAveragePool", y), size=1))
    return net.node("Mul", y, gate)


def training_bn(net: Net, x: str) -> str:
    outputs = net.several(
        "BatchNormalization", net.conv(x), *net.statistics(), count=3, training_mode=1
    )
    return outputs[0]


def bn_with_statistics(net: Net, x: str) -> str:
    return net.several("BatchNormalization", net.conv(x), *net.statistics(), count=5)[0]


def dropped(net: Net, x: str, mode: str) -> str:
    return net.bn(net.node("Dropout", net.conv(x), net.const(0.5), mode))


def padded(net: Net, x: str, *value: str, mode: str = "constant") -> str:
    return net.conv(net.node("Pad", x, net.ints(0, 0, 1, 1, 0, 0, 1, 1), *value, mode=mode))


SAME = "the padding of auto_pad depends on the size of the input"
BATCH = "a batch norm on the statistics of the batch"
IS_INPUT = "is also a graph input, so that a caller may set it"
DEPENDS = "the crop of a ConvTranspose with auto_pad or output_shape depends on the input"

CASES: dict[str, Refused] = {
    # What is no constant.
    "an overridable weight": Refused(
        lambda n, x: n.bn(n.node("Conv", x, overridable(n, "w", 8, 8, 3, 3))), f"'w' {IS_INPUT}"
    ),
    "an overridable bias": Refused(
        lambda n, x: n.bn(n.node("Conv", x, n.weight(8, 8, 3, 3), overridable(n, "b", 8))),
        f"'b' {IS_INPUT}",
    ),
    "an overridable weight behind Identity": Refused(
        lambda n, x: n.bn(n.node("Conv", x, n.node("Identity", overridable(n, "w", 8, 8, 3, 3)))),
        f"'w' {IS_INPUT}",
    ),
    "overridable statistics": Refused(
        lambda n, x: n.node(
            "BatchNormalization", n.conv(x), *n.statistics()[:3], overridable(n, "v", 8)
        ),
        f"'v' {IS_INPUT}",
    ),
    "an overridable factor": Refused(
        lambda n, x: n.node("Mul", n.conv(x), overridable(n, "c", 8, 1, 1)), f"'c' {IS_INPUT}"
    ),
    "an overridable shift": Refused(
        lambda n, x: n.node("Add", n.conv(x), overridable(n, "c", 8, 1, 1)), f"'c' {IS_INPUT}"
    ),
    "an overridable matrix": Refused(
        lambda n, x: n.node("Mul", n.node("MatMul", x, overridable(n, "w", 8, 6)), n.const(2.0)),
        f"'w' {IS_INPUT}",
        ("N", 5, 8),
    ),
    "an overridable Gemm": Refused(
        lambda n, x: n.node("Mul", n.node("Gemm", x, overridable(n, "w", 8, 6)), n.const(2.0)),
        f"'w' {IS_INPUT}",
        ("N", 8),
    ),
    "a weight that is an input": Refused(
        lambda n, x: n.bn(n.node("Conv", x, given(n, "w", 8, 8, 3, 3))), "its weight is no constant"
    ),
    "a weight that is computed": Refused(
        lambda n, x: n.bn(
            n.node("Conv", x, n.node("Mul", n.weight(8, 8, 3, 3), given(n, "g", 8, 1, 1, 1)))
        ),
        "its weight is no constant",
    ),
    "a transposed weight that is computed": Refused(
        lambda n, x: n.bn(
            n.node(
                "ConvTranspose", x, n.node("Mul", n.weight(8, 8, 3, 3), given(n, "g", 8, 1, 1, 1))
            )
        ),
        "its weight is no constant",
    ),
    "a matrix that is computed": Refused(
        lambda n, x: n.node("Mul", n.node("MatMul", x, given(n, "w", 8, 6)), n.const(2.0)),
        dims=("N", 5, 8),
    ),
    # Attributes that no probe can be made for, or that mean nothing.
    "a stride beyond any input": Refused(lambda n, x: n.bn(n.conv(x, strides=[2**40] * 2))),
    "a border beyond any input": Refused(lambda n, x: n.bn(n.conv(x, pads=[10**6] * 4))),
    "an average that counts its border twice": Refused(
        lambda n, x: n.bn(
            n.node("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=2)
        )
    ),
    # Constants that are no number per channel.
    "Add of shape (W,) with W = channels": Refused(
        after("Add", 8), "a constant of shape (8,)", (2, 8, 5, 8)
    ),
    "Mul of shape (W,) with W = channels": Refused(
        after("Mul", 8), "a constant of shape (8,)", (2, 8, 5, 8)
    ),
    "Add of shape (H, W)": Refused(after("Add", 5, 7), "a constant of shape (5, 7)", (2, 8, 5, 7)),
    "Sub of shape (8, 1)": Refused(after("Sub", 8, 1), "a constant of shape (8, 1)", (2, 8, 8, 7)),
    "Add per position": Refused(
        after("Add", 8, 5, 7), "a constant of shape (8, 5, 7)", (2, 8, 5, 7)
    ),
    "Add per sample": Refused(
        after("Add", 2, 8, 1, 1), "a constant of shape (2, 8, 1, 1)", (2, 8, 5, 7)
    ),
    "Div per sample": Refused(
        after("Div", 2, 1, 1, 1), "a constant of shape (2, 1, 1, 1)", (2, 8, 5, 7)
    ),
    "Add that repeats the batch": Refused(
        after("Add", 3, 8, 1, 1), "a constant of shape (3, 8, 1, 1)", (1, 8, 5, 7)
    ),
    "Mul that adds an axis": Refused(
        after("Mul", 1, 1, 8, 1, 1), "a constant of shape (1, 1, 8, 1, 1)"
    ),
    "Add that widens the channels": Refused(
        lambda n, x: n.node("Add", n.conv(x, outputs=1), n.scale(8, 1, 1)),
        "a constant of shape (8, 1, 1)",
    ),
    "Add that widens the positions": Refused(
        lambda n, x: n.node(
            "Add", n.conv(n.node("GlobalAveragePool", x), size=1), n.scale(8, 3, 3)
        ),
        "a constant of shape (8, 3, 3)",
    ),
    "Add that widens rows": Refused(
        lambda n, x: n.node("Add", n.node("MatMul", x, n.weight(8, 6)), n.scale(5, 6)),
        "a constant of shape (5, 6)",
        ("N", 5, 8),
    ),
    "a Gemm with another number for each row": Refused(
        lambda n, x: n.node("Mul", n.node("Gemm", x, n.weight(8, 6), n.weight(3, 6)), n.const(2.0)),
        "another number",
        (3, 8),
    ),
    "a Gemm with one number for each row": Refused(
        lambda n, x: n.node("Mul", n.node("Gemm", x, n.weight(8, 8), n.weight(8, 1)), n.const(2.0)),
        "another number",
        (8, 8),
    ),
    "a Gemm of the transposed input": Refused(
        lambda n, x: n.node("Mul", n.node("Gemm", x, n.weight(5, 6), transA=1), n.const(2.0)),
        "transposed",
        (5, 8),
    ),
    "c / x": Refused(after("Div", 8, 1, 1, first=True), "not linear"),
    # Layers.
    "a batch norm in training": Refused(training_bn, BATCH),
    "a batch norm of opset 9 that gives its statistics": Refused(
        bn_with_statistics, BATCH, opset=9
    ),
    "a batch norm over the tokens": Refused(
        lambda n, x: n.bn(n.node("MatMul", x, n.weight(4, 4))),
        "a batch norm over axis 1, where the channels are axis 2",
        ("N", 8, 4),
    ),
    "a stack of matrices": Refused(
        lambda n, x: n.node("MatMul", n.bn(x), n.weight(8, 5, 4)),
        "its second matrix has 3 axes",
        ("N", 8, 7, 5),
    ),
    "dropout in training": Refused(
        lambda n, x: dropped(n, x, n.const(True, elem=BOOL)), "a dropout that may be active"
    ),
    "dropout that may be in training": Refused(
        lambda n, x: dropped(n, x, n.input("training", (), BOOL)), "a dropout that may be active"
    ),
    "average pooling that does not count its border": Refused(
        lambda n, x: n.add(n.conv(x), n.node("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4)),
        "border",
    ),
    "ceil_mode": Refused(
        lambda n, x: n.add(
            n.conv(x, strides=[2, 2], pads=[0] * 4),
            n.node("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
        ),
        "ceil",
        (2, 8, 7, 9),
    ),
    "dilated average pooling": Refused(
        lambda n, x: n.add(
            n.conv(x, dilations=[2, 2], pads=[0] * 4),
            n.node("AveragePool", x, kernel_shape=[3, 3], dilations=[2, 2]),
        ),
        "a dilated average pooling",
        opset=19,
    ),
    "auto_pad with a stride": Refused(
        lambda n, x: n.bn(n.conv(x, auto_pad="SAME_UPPER", strides=[2, 2])), SAME
    ),
    "auto_pad of a pooling with a stride": Refused(
        lambda n, x: n.bn(
            n.node("AveragePool", x, kernel_shape=[3, 3], auto_pad="SAME_LOWER", strides=[2, 2])
        ),
        SAME,
    ),
    "ConvTranspose with auto_pad": Refused(
        lambda n, x: n.bn(n.conv_transpose(x, auto_pad="SAME_UPPER", strides=[2, 2])), DEPENDS
    ),
    "ConvTranspose with output_shape": Refused(
        lambda n, x: n.bn(n.conv_transpose(x, output_shape=[9, 13], strides=[2, 2])),
        DEPENDS,
        (2, 8, 5, 7),
    ),
    "a Pad of ones": Refused(lambda n, x: padded(n, x, n.const(1.0)), "a border of 1"),
    "a Pad of an unknown number": Refused(
        lambda n, x: padded(n, x, n.input("fill", ())), "a border whose value is not known here"
    ),
    "a Pad of unknown width": Refused(
        lambda n, x: n.bn(n.node("Pad", n.conv(x), n.input("width", (8,), INT))),
        "a border whose width is not known here",
    ),
    "a Pad of the channels": Refused(
        lambda n, x: n.conv(n.node("Pad", x, n.ints(0, 1, 0, 0, 0, 1, 0, 0)), inputs=10),
        "a border along the channels or the batch",
    ),
    # What does not merge.
    "an activation between": Refused(
        lambda n, x: n.add(n.relu(n.conv(x)), n.conv(x, size=1)),
    ),
    "a padded conv behind a padded conv": Refused(
        lambda n, x: n.conv(n.conv(x)), "where the first would give its bias or taps"
    ),
    "squeeze and excitation": Refused(squeeze_excite),
    "an intermediate that is an output": Refused(
        lambda n, x: (y := n.conv(x), n.bn(y)), "it is an output of the graph"
    ),
    "two sources": Refused(lambda n, x: n.add(n.conv(x), n.relu(x))),
    # Whole numbers.
    "integers": Refused(
        lambda n, x: n.node(
            "Mul",
            n.node("Add", n.input("ids", IMAGE, INT), n.ints(2)),
            n.node("Sub", n.node("Neg", "ids"), n.ints(3)),
        )
    ),
    "channels of integers": Refused(
        lambda n, x: n.node(
            "Gather",
            n.node("Gather", n.input("ids", IMAGE, INT), n.ints(3, 1, 0), axis=1),
            n.ints(1, 0),
            axis=1,
        )
    ),
    "parts of integers": Refused(
        lambda n, x: n.node(
            "Concat",
            *n.several("Split", n.node("Identity", n.input("ids", IMAGE, INT)), count=2, axis=1)[
                ::-1
            ],
            axis=1,
        )
    ),
    "a border around integers": Refused(
        lambda n, x: n.node(
            "Pad",
            n.node("Pad", n.input("ids", IMAGE, INT), n.ints(0, 0, 1, 1, 0, 0, 1, 1)),
            n.ints(0, 0, 1, 1, 0, 0, 1, 1),
        )
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_refused(case: Refused) -> None:
    case.check()


# Quantized graphs.


def quantize(net: Net, y: str) -> str:
    return net.node("QuantizeLinear", y, net.const(0.02), net.const(0, elem=TensorProto.INT8))


def dequantize(net: Net, q: str) -> str:
    return net.node("DequantizeLinear", q, net.const(0.02), net.const(0, elem=TensorProto.INT8))


def qdq_weight(net: Net, *shape: int) -> str:
    values = net.noise.integers(-100, 100, shape)
    return dequantize(net, net.const(values, elem=TensorProto.INT8))


def qdq(net: Net, x: str) -> str:
    y = net.node("Conv", dequantize(net, quantize(net, x)), qdq_weight(net, 8, 8, 3, 3))
    return net.bn(dequantize(net, quantize(net, net.bn(y))))


def qlinear(net: Net, x: str) -> str:
    q = quantize(net, x)
    scale, zero = net.const(0.02), net.const(0, elem=TensorProto.INT8)
    weight = net.const(net.noise.integers(-100, 100, (8, 8, 3, 3)), elem=TensorProto.INT8)
    y = net.node("QLinearConv", q, scale, zero, weight, scale, zero, scale, zero)
    return net.bn(dequantize(net, y))


def integer(net: Net, x: str) -> str:
    weight = net.const(net.noise.integers(-100, 100, (8, 8, 3, 3)), elem=TensorProto.INT8)
    y = net.node("ConvInteger", quantize(net, x), weight)
    return net.bn(net.node("Cast", y, to=TensorProto.FLOAT))


QUANTIZED: dict[str, tuple[Make, str]] = {
    "QDQ": (qdq, "is dequantized from integers"),
    "QLinearConv": (qlinear, "a quantized operator"),
    "ConvInteger": (integer, "a quantized operator"),
}


def test_a_sum_of_a_value_that_is_left_out() -> None:
    """No valid model; the checker does not look for it inside of functions."""
    net = Net()
    x = net.input("x", IMAGE)
    model = net.model(net.node("Sum", net.conv(x), "", x))
    assert untouched(model).errors == []


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_graphs(name: str) -> None:
    make, reason = QUANTIZED[name]
    net = Net()
    output = make(net, net.input())
    assert isinstance(output, str)
    report = untouched(net.model(output))
    assert any(reason in refusal.reason for refusal in report.refusals), report.refusals


# Domains that are not ONNX's own.


def private(change: Callable[[Net], None]) -> ModelProto:
    net = Net()
    net.imports["com.example"] = 1
    change(net)
    model = net.model(net.nodes[-1].output[0])
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, ("N", 8, "H", "W"))
    model.graph.output[0].type.CopyFrom(kind)
    return model


def private_conv(net: Net) -> None:
    y = net.node("Conv", net.input(), net.weight(8, 8, 3, 3), domain="com.example")
    net.node("Relu", net.bn(net.relu(y)))


def private_norm(net: Net) -> None:
    y = net.node("BatchNormalization", net.conv(net.input()), domain="com.example")
    net.node("Relu", y)


def private_reader(net: Net) -> None:
    y = net.conv(net.input())
    net.node("Relu", net.add(net.bn(y), net.node("Shape", y, domain="com.example")))


@pytest.mark.parametrize("change", [private_conv, private_norm, private_reader])
def test_private_domains_are_opaque(change: Callable[[Net], None]) -> None:
    untouched(private(change))
