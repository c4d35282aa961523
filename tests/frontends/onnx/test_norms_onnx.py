"""The scale and bias of a norm in a file (A14), and round trips of axes (A12)."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from repfuse.frontends.onnx.plan import plan_model
from tests.frontends.onnx.build import Dims, Net, operators
from tests.frontends.onnx.cases import Case, each, fused, untouched

TOKENS: Dims = ("N", 131, 16)


def norm(net: Net, x: str, channels: int = 16, bias: bool = True, axis: int = -1) -> str:
    extra = [net.weight(channels)] if bias else []
    return net.node("LayerNormalization", x, net.scale(channels), *extra, axis=axis)


def linear(net: Net, x: str, weight: str = "", bias: bool = True) -> str:
    product = net.node("MatMul", x, weight or net.weight(16, 16))
    return net.node("Add", product, net.weight(16)) if bias else product


def one_reader(net: Net, x: str) -> str:
    return linear(net, norm(net, x))


def three_readers(net: Net, x: str) -> tuple[str, ...]:
    y = norm(net, x)
    return tuple(linear(net, y) for _ in range(3))


def no_bias_at_all(net: Net, x: str) -> str:
    return net.relu(linear(net, norm(net, x, bias=False), bias=False))


def residual_is_composed(net: Net, x: str) -> str:
    y = norm(net, x)
    return net.relu(net.add(linear(net, y), y))


def last_axis_by_number(net: Net, x: str) -> str:
    return linear(net, norm(net, x, axis=2))


def root_mean_square(net: Net, x: str) -> str:
    y = net.node("RMSNormalization", x, net.scale(16), axis=-1)
    return linear(net, y)


def over_flattened_tokens(net: Net, x: str) -> str:
    y = net.node("Reshape", linear(net, x, bias=False), net.ints(-1, 16))
    return net.relu(net.node("Reshape", net.bn(y, 16), net.ints(-1, 131, 16)))


def over_transposed_tokens(net: Net, x: str) -> str:
    y = net.node("Transpose", linear(net, x, bias=False), perm=[0, 2, 1])
    return net.relu(net.node("Transpose", net.bn(y, 16), perm=[0, 2, 1]))


def beside_a_conv(net: Net, x: str) -> str:
    y = net.node("MatMul", net.node("Transpose", x, perm=[0, 2, 3, 1]), net.weight(8, 8))
    back = net.node("Transpose", y, perm=[0, 3, 1, 2])
    return net.relu(net.add(back, net.conv(x, size=1)))


def no_bias(net: Net, x: str) -> str:
    return net.relu(linear(net, norm(net, x), bias=False))


def one_without_bias(net: Net, x: str) -> tuple[str, ...]:
    y = norm(net, x)
    return tuple(linear(net, y, bias=bias) for bias in (True, False, True))


def a_matrix(net: Net, x: str) -> str:
    """Its MatMul becomes a Gemm, which has a bias."""
    y = norm(net, x, channels=2048)
    return net.relu(net.node("MatMul", y, net.weight(2048, 16)))


@each(
    {
        "one reader": Case(one_reader, "Add, LayerNormalization, MatMul", TOKENS),
        "axis 2": Case(last_axis_by_number, "Add, LayerNormalization, MatMul", TOKENS),
        "three readers": Case(three_readers, "3 Add, LayerNormalization, 3 MatMul", TOKENS),
        "no bias": Case(no_bias_at_all, "LayerNormalization, MatMul, Relu", TOKENS),
        "a matrix": Case(a_matrix, "Gemm, LayerNormalization, Relu", (5, 2048)),
        "a skip": Case(residual_is_composed, "Add, LayerNormalization, MatMul, Relu", TOKENS),
        "flattened": Case(over_flattened_tokens, "Add, MatMul, Relu", TOKENS),
        "transposed": Case(over_transposed_tokens, "Add, MatMul, Relu", TOKENS),
        "beside a conv": Case(beside_a_conv, "Conv, Relu"),
    }
)
def test_fires(case: Case) -> None:
    model = case.model()
    result, report = fused(model)
    assert operators(result) == case.becomes, str(report)
    onnx.checker.check_model(result, full_check=True)
    assert untouched(result).regions == []
    x = drawn(*(5 if isinstance(size, str) else size or 0 for size in case.dims))
    assert largest_difference(model, result, x) <= 2e-5


def drawn(*shape: int) -> np.ndarray:
    values: np.ndarray = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return values


def largest_difference(model: onnx.ModelProto, result: onnx.ModelProto, x: np.ndarray) -> float:
    pairs = zip(run(model, x), run(result, x), strict=True)
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)


def run(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    results: list[np.ndarray] = session.run(None, {"x": x})
    return results


def test_the_node_gets_ones_that_all_share_and_no_bias() -> None:
    net = Net()
    y = linear(net, norm(net, net.input("x", TOKENS)))
    model = net.model(linear(net, norm(net, net.relu(y), bias=False)))
    result, _ = fused(model)
    norms = [node for node in result.graph.node if node.op_type == "LayerNormalization"]
    assert [len(node.input) for node in norms] == [2, 2]
    assert norms[0].input[1] == norms[1].input[1]
    (ones,) = [t for t in result.graph.initializer if t.name == norms[0].input[1]]
    assert (onnx.numpy_helper.to_array(ones) == np.ones(16, np.float32)).all()
    assert len(result.graph.initializer) == 5, "weights that nobody reads are still there"


def written_out(net: Net, x: str) -> str:
    """As exporters write it, below opset 17."""
    mean = net.node("ReduceMean", x, axes=[-1])
    centred = net.node("Sub", x, mean)
    power = net.node("Pow", centred, net.const(2.0))
    variance = net.node("ReduceMean", power, axes=[-1])
    root = net.node("Sqrt", net.node("Add", variance, net.const(1e-5)))
    normed = net.node("Div", centred, root)
    return net.node("Add", net.node("Mul", normed, net.scale(16)), net.weight(16))


def read_by_a_skip(net: Net, x: str) -> tuple[str, ...]:
    y = norm(net, x)
    return linear(net, y), net.relu(y)


def is_an_output(net: Net, x: str) -> tuple[str, ...]:
    y = norm(net, x)
    return linear(net, y), y


def weight_is_tied(net: Net, x: str) -> tuple[str, ...]:
    weight = net.weight(16, 16, name="tied")
    return linear(net, norm(net, x), weight), net.relu(linear(net, x, weight))


def over_two_axes(net: Net, x: str) -> str:
    scale, bias = net.scale(131, 16), net.weight(131, 16)
    return linear(net, net.node("LayerNormalization", x, scale, bias, axis=1))


def norm_is_written_out(net: Net, x: str) -> str:
    return linear(net, written_out(net, x))


def scale_is_an_input(net: Net, x: str) -> str:
    net.input("scale", (16,))
    y = net.node("LayerNormalization", x, "scale", net.weight(16))
    return linear(net, y)


def mean_is_read(net: Net, x: str) -> tuple[str, ...]:
    weights = net.scale(16), net.weight(16)
    y, mean = net.several("LayerNormalization", x, *weights, count=2)
    return linear(net, y), mean


def tokens_do_not_come_back(net: Net, x: str) -> str:
    y = net.node("Reshape", linear(net, x, bias=False), net.ints(-1, 16))
    return net.node("Tanh", net.bn(y, 16))


def the_view_is_read(net: Net, x: str) -> tuple[str, ...]:
    y = net.node("Reshape", linear(net, x, bias=False), net.ints(-1, 16))
    return net.node("Reshape", net.bn(y, 16), net.ints(-1, 131, 16)), net.relu(y)


def other_rows(net: Net, x: str) -> str:
    """Not the tokens: 131 * 16 numbers in rows of 8."""
    y = net.node("Reshape", linear(net, x, bias=False), net.ints(-1, 8))
    return net.node("Reshape", net.bn(y, 8), net.ints(-1, 131, 16))


STAYS = {
    "an activation reads it": (read_by_a_skip, "reads it too"),
    "it is an output": (is_an_output, "it is an output of the graph"),
    "a tied weight": (weight_is_tied, "is used elsewhere as well"),
    "two axes": (over_two_axes, ""),
    "written out": (norm_is_written_out, "runtimes run it as one kernel"),
    "a scale from outside": (scale_is_an_input, ""),
    "its mean is read": (mean_is_read, ""),
}


@pytest.mark.parametrize(("make", "reason"), STAYS.values(), ids=STAYS)
def test_stays(make: object, reason: str) -> None:
    net = Net(opset=17)
    outputs = make(net, net.input("x", TOKENS))  # type: ignore[operator]
    report = untouched(net.model(*([outputs] if isinstance(outputs, str) else outputs)))
    assert any(reason in refusal.reason for refusal in report.refusals) or not reason


@pytest.mark.parametrize("target", ["cpu", "gpu", "min-macs", "min-ops"])
@pytest.mark.parametrize("make", [no_bias, one_without_bias])
def test_a_bias_that_takes_a_node_of_its_own_is_not_free(make: object, target: str) -> None:
    """Adding the bias of the norm after a MatMul is a pass over memory; in the norm it is none."""
    net = Net(opset=17)
    outputs = make(net, net.input("x", TOKENS))  # type: ignore[operator]
    model = net.model(*([outputs] if isinstance(outputs, str) else outputs))
    plan = plan_model(model, target=target)
    assert operators(plan.apply()) == operators(model), str(plan)
    assert plan.report.kept, "the report does not say what the merge would cost"


@pytest.mark.parametrize("make", [tokens_do_not_come_back, the_view_is_read, other_rows])
def test_what_does_not_come_back_is_the_same(make: object) -> None:
    net = Net(opset=17)
    outputs = make(net, net.input("x", TOKENS))  # type: ignore[operator]
    model = net.model(*([outputs] if isinstance(outputs, str) else outputs))
    result, _ = fused(model)
    assert largest_difference(model, result, drawn(2, 131, 16)) <= 2e-5


def test_a_root_mean_square_norm() -> None:
    net = Net(opset=23)
    model = net.model(root_mean_square(net, net.input("x", TOKENS)))
    result, report = fused(model)
    assert len(report.regions) == 1, str(report)
    (node,) = [node for node in result.graph.node if node.op_type == "RMSNormalization"]
    assert "ones" in node.input[1]


def test_low_precision() -> None:
    net = Net(opset=17)
    model = net.model(one_reader(net, net.input("x", TOKENS)))
    half = onnx.ModelProto()
    half.CopyFrom(model)
    for tensor in half.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    result, report = fused(half)
    assert len(report.regions) == 1
    kinds = {tensor.data_type for tensor in result.graph.initializer}
    assert kinds == {onnx.TensorProto.FLOAT16}
    x = np.random.default_rng(0).standard_normal((2, 131, 16)).astype(np.float16)
    (before,), (after,) = run(half, x), run(result, x)
    gap = np.abs(before.astype(np.float64) - after).max() / np.abs(before).max()
    assert gap <= 5e-3
