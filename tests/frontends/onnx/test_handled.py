"""What a model file can hold: every opset and precision, bodies, functions, names, notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import GraphProto, ModelProto, TensorProto, TypeProto, helper

from tests.frontends.onnx.build import IMAGE, Dims, Net, bodies, nodes_of, operators
from tests.frontends.onnx.cases import Make, all_of, fused, same_interface, untouched
from tests.frontends.onnx.evaluate import SIZES, Sizes, assert_same, in_double

FLOAT, BOOL, INT = TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64


def check(model: ModelProto, becomes: str, sizes: tuple[Sizes, ...] = SIZES) -> ModelProto:
    """Fuse in float64 and as it is; returns the latter."""
    onnx.checker.check_model(model, full_check=True)
    result = model
    for given, bound in ((in_double(model), 1e-9), (model, 1e-5)):
        result, report = fused(given)
        assert operators(result) == becomes, str(report)
        onnx.checker.check_model(result, full_check=True)
        same_interface(given, result)
        assert_same(given, result, bound, sizes)
        again, _ = fused(result)
        assert nodes_of(again) == nodes_of(result)
    return result


def check_net(make: Make, becomes: str, dims: Dims = IMAGE, opset: int = 17) -> ModelProto:
    net = Net(opset)
    outputs = make(net, net.input("x", dims))
    model = net.model(*([outputs] if isinstance(outputs, str) else outputs))
    return check(model, becomes)


def array(model: ModelProto, name: str) -> np.ndarray:
    (tensor,) = [t for t in model.graph.initializer if t.name == name]
    return onnx.numpy_helper.to_array(tensor)


# Versions and precisions.


@pytest.mark.parametrize("opset", range(9, onnx.defs.onnx_opset_version() + 1))
def test_opsets(opset: int) -> None:
    check_net(lambda net, x: net.block(net.block(x)), "2 Conv, 2 Relu", opset=opset)


KINDS = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


def cast(model: ModelProto, elem: int) -> ModelProto:
    """The model in another precision."""
    made = ModelProto()
    made.CopyFrom(model)
    for tensor in made.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            values = values.astype(helper.tensor_dtype_to_np_dtype(elem))
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for value in (*made.graph.input, *made.graph.output, *made.graph.value_info):
        if value.type.tensor_type.elem_type == FLOAT:
            value.type.tensor_type.elem_type = elem
    return made


def folded(model: ModelProto) -> np.ndarray:
    """The weight of a conv and its batch norm, in float64."""
    conv, norm = model.graph.node
    weight = array(model, conv.input[1]).astype(np.float64)
    scale, variance = (array(model, norm.input[i]).astype(np.float64) for i in (1, 4))
    epsilon = np.float64(np.float32(1e-5))
    return weight * (scale / np.sqrt(variance + epsilon)).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("name", KINDS)
def test_low_precision_is_rounded_once(name: str) -> None:
    net = Net(22)
    model = cast(net.model(net.bn(net.conv(net.input(), 32, 32, bias=False), 32)), KINDS[name])
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 32
    onnx.checker.check_model(model, full_check=True)
    result, _ = fused(model)
    assert operators(result) == "Conv"
    onnx.checker.check_model(result, full_check=True)
    weight, exact = array(result, result.graph.node[0].input[1]), folded(model)
    assert weight.dtype.name == name
    gap = np.abs(weight.astype(np.float64) - exact)
    for step in (-1, 1):  # no neighbour is nearer
        neighbour = (weight.view(np.int16) + np.int16(step)).view(weight.dtype)
        assert (gap <= np.abs(neighbour.astype(np.float64) - exact)).all()


def test_bfloat16_needs_the_single_rounding() -> None:
    """Rounding to float32 first would take this value to a tie, and from there the wrong way."""
    exact = np.float64(1.0 + 2.0**-8 + 2.0**-40)
    assert exact.astype(np.float32).astype(ml_dtypes.bfloat16) == 1.0
    net = Net(22)
    weight = net.const(np.full((1, 1, 1, 1), 1.0))
    first = net.node("Conv", net.input("x", ("N", 1, "H", "W")), weight)
    # As a fold: (1 + 2^-8 + 2^-40) is no bfloat16, the sum of three convs is.
    terms = [first]
    for value in (2.0**-8, 2.0**-40):
        terms.append(net.node("Conv", "x", net.const(np.full((1, 1, 1, 1), value))))
    model = cast(net.model(net.add(*terms)), TensorProto.BFLOAT16)
    result, _ = fused(model)
    assert operators(result) == "Conv"
    assert float(array(result, result.graph.node[0].input[1]).ravel()[0]) == 1.0 + 2.0**-7


def test_double_is_not_rounded() -> None:
    net = Net()
    model = in_double(net.model(net.bn(net.conv(net.input(), bias=False))))
    result, _ = fused(model)
    weight = array(result, result.graph.node[0].input[1])
    assert weight.dtype == np.float64
    np.testing.assert_allclose(weight, folded(model), rtol=5e-16)


def test_a_float16_model() -> None:
    net = Net(22)
    model = cast(net.model(net.block(net.block(net.input()))), TensorProto.FLOAT16)
    result, _ = fused(model)
    assert operators(result) == "2 Conv, 2 Relu"
    assert {t.data_type for t in result.graph.initializer} == {TensorProto.FLOAT16}
    onnx.checker.check_model(result, full_check=True)
    assert_same(model, result, 1e-2)


def test_folded_weights_that_overflow_are_refused() -> None:
    net = Net(22)
    y = net.node("Conv", net.input(), net.const(np.full((8, 8, 3, 3), 6e4)))
    model = cast(net.model(net.node("Mul", y, net.const(4.0), output="big")), TensorProto.FLOAT16)
    report = untouched(model)
    assert [(r.where, r.reason) for r in report.refusals] == [
        ("big", "the folded weights overflow float16")
    ]


BROKEN: dict[str, Callable[[Net, str], str]] = {
    "NaN": lambda net, x: net.bn(net.node("Conv", x, net.const(np.full((8, 8, 1, 1), np.nan)))),
    "infinity": lambda net, x: net.bn(
        net.node("Conv", x, net.const(np.full((8, 8, 1, 1), np.inf)))
    ),
    "a negative variance": lambda net, x: net.node(
        "BatchNormalization", net.conv(x), *net.statistics()[:3], net.const([-1.0] * 8)
    ),
    "division by zero": lambda net, x: net.node("Div", net.conv(x), net.const(np.zeros((8, 1, 1)))),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_broken_weights_are_refused(name: str) -> None:
    net = Net()
    y = BROKEN[name](net, net.input())
    net.nodes[-1].name = "broken"
    report = untouched(net.model(net.relu(y)))
    assert [(r.where, r.reason) for r in report.refusals] == [
        ("broken", "the weights hold NaN, infinity or a negative variance")
    ]


def test_broken_weights_do_not_stop_the_others() -> None:
    net = Net()
    y = net.block(net.input())
    bad = net.node("Conv", y, net.const(np.full((8, 8, 1, 1), np.nan)))
    result, report = fused(net.model(net.relu(net.bn(bad))))
    assert operators(result) == "BatchNormalization, 2 Conv, 2 Relu"
    assert len(report.refusals) == 1


# Bodies.


def body(prefix: str, make: Callable[[Net], str], *inputs: tuple[str, Dims, int]) -> GraphProto:
    net = Net(prefix=prefix, seed=len(prefix))
    for name, dims, elem in inputs:
        net.input(name, dims, elem)
    return net.graph(make(net))


def typed(model: ModelProto, *dims: int | str) -> ModelProto:
    """The model with the shape of its first output set, which inference does not find."""
    kind = helper.make_tensor_type_proto(FLOAT, dims)
    model.graph.output[0].type.CopyFrom(kind)
    return model


def test_blocks_inside_an_if() -> None:
    net = Net()
    x, shared = net.input(), net.weight(8, 8, 1, 1)
    cond = net.input("cond", (), BOOL)

    def then(inner: Net) -> str:
        return inner.bn(inner.add(inner.conv(x), inner.node("Conv", x, shared)))

    y = net.node(
        "If",
        cond,
        then_branch=body("then_", then),
        else_branch=body("else_", lambda inner: inner.node("Conv", inner.relu(x), shared)),
    )
    model = typed(net.model(net.relu(y)), *IMAGE)  # type: ignore[arg-type]
    result = check(model, "2 Conv, If, 2 Relu")
    assert shared in {t.name for t in result.graph.initializer}, "the other branch reads it"


def test_outer_constants_that_only_a_body_read_go() -> None:
    net = Net()
    x, cond = net.input(), net.input("cond", (), BOOL)
    weight = net.node("Identity", net.literal(net.noise.standard_normal((8, 8, 1, 1))))
    y = net.node(
        "If",
        cond,
        then_branch=body("then_", lambda inner: inner.bn(inner.node("Conv", x, weight))),
        else_branch=body("else_", lambda inner: inner.relu(x)),
    )
    result = check(typed(net.model(y), *IMAGE), "Conv, If, Relu")  # type: ignore[arg-type]
    assert [node.op_type for node in result.graph.node] == ["If"]


def test_outer_values_that_a_body_reads_survive() -> None:
    net = Net()
    y = net.conv(net.input())
    cond = net.input("cond", (), BOOL)
    both = {
        "then_branch": body("then_", lambda inner: inner.relu(y)),
        "else_branch": body("else_", lambda inner: inner.node("Sigmoid", y)),
    }
    model = typed(net.model(net.node("Mul", net.bn(y), net.node("If", cond, **both))), *IMAGE)  # type: ignore[arg-type]
    onnx.checker.check_model(model, full_check=True)
    report = untouched(model)
    assert any("If" in r.reason or y in r.reason for r in report.refusals), report.refusals


def test_blocks_inside_a_loop() -> None:
    net = Net()

    def turn(inner: Net) -> str:
        made = inner.block("state")
        inner.node("Identity", "go", output="again")
        return made

    inner = Net(prefix="loop_")
    inner.input("i", (), INT)
    inner.input("go", (), BOOL)
    inner.input("state", IMAGE)
    graph = inner.graph("again", turn(inner))
    graph.output[0].type.tensor_type.elem_type = BOOL
    true = net.const(True, elem=BOOL)
    count = net.const(3, elem=INT)
    y = net.node("Loop", count, true, net.relu(net.input()), body=graph)
    model = typed(net.model(net.relu(y)), *IMAGE)  # type: ignore[arg-type]
    check(model, "Conv, Identity, Loop, 3 Relu")


def test_blocks_inside_a_scan() -> None:
    net = Net()
    inner = Net(prefix="scan_")
    inner.input("state", IMAGE)
    inner.input("item", IMAGE)
    total = inner.add("state", inner.block("item"))
    graph = inner.graph(total, inner.node("Identity", total))
    x = net.input("x", (2, *IMAGE))
    start = net.input("start", IMAGE)
    last, _ = net.several("Scan", start, x, count=2, body=graph, num_scan_inputs=1)
    model = typed(net.model(net.relu(last)), *IMAGE)  # type: ignore[arg-type]
    check(model, "Add, Conv, Identity, 2 Relu, Scan")


def test_a_body_inside_a_body() -> None:
    net = Net()
    x, cond = net.input(), net.input("cond", (), BOOL)
    outer = net.weight(8, 8, 1, 1)

    def deep(inner: Net) -> str:
        return inner.bn(inner.add(inner.node("Conv", x, outer), x))

    def then(inner: Net) -> str:
        return inner.node(
            "If",
            cond,
            then_branch=body("deep_then_", deep),
            else_branch=body("deep_else_", lambda n: n.relu(x)),
        )

    y = net.node(
        "If",
        cond,
        then_branch=body("then_", then),
        else_branch=body("else_", lambda inner: inner.relu(x)),
    )
    result = check(typed(net.model(y), *IMAGE), "Conv, 2 If, 2 Relu")  # type: ignore[arg-type]
    assert outer not in {t.name for t in result.graph.initializer}


# Functions.


def in_function(make: Make, *extra: str, attributes: tuple[str, ...] = ()) -> Net:
    """A model that calls a function on x; its weights are Constant nodes."""
    inner = Net(prefix="f_")
    output = make(inner, "x")
    assert isinstance(output, str)
    stored = [
        helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in inner.weights
    ]
    function = helper.make_function(
        "local",
        "Part",
        ["x", *extra],
        [output],
        [*stored, *inner.nodes],
        [helper.make_opsetid("", 17)],
        attributes,
    )
    net = Net()
    net.imports["local"] = 1
    net.functions.append(function)
    return net


FUNCTIONS: dict[str, tuple[Make, str]] = {
    "a block": (lambda n, x: n.block(x), "Conv, Part, Relu"),
    "a batch norm first": (
        lambda n, x: n.conv(n.bn(n.conv(x, size=1)), pads=[0, 0, 0, 0]),
        "Conv, Part",
    ),
    "constants": (
        lambda n, x: n.node("Mul", n.node("Add", n.conv(x), n.scale(8, 1, 1)), n.scale()),
        "Conv, Part",
    ),
    "channels": (
        lambda n, x: n.node("Concat", n.conv(x), n.conv(x, 8, 4), axis=1),
        "Conv, Part",
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_blocks_inside_a_function(name: str) -> None:
    make, becomes = FUNCTIONS[name]
    net = in_function(make)
    model = net.model(net.node("Part", net.input(), domain="local"))
    check(model, becomes)


def test_a_function_of_float16() -> None:
    net = in_function(lambda n, x: n.bn(n.node("Identity", n.conv(x))))
    (function,) = net.functions
    for node in function.node:
        for attribute in node.attribute:
            if node.op_type == "Constant":
                values = onnx.numpy_helper.to_array(attribute.t).astype(np.float16)
                attribute.t.CopyFrom(onnx.numpy_helper.from_array(values))
    model = net.model(net.node("Part", net.input("x", IMAGE, TensorProto.FLOAT16), domain="local"))
    result, _ = fused(model)
    assert operators(result) == "Conv, Part"
    kinds = {a.t.data_type for n in nodes_of(result) for a in n.attribute if a.name == "value"}
    assert kinds == {TensorProto.FLOAT16}
    onnx.checker.check_model(result, full_check=True)


def test_axis_1_of_tokens_is_not_taken_for_their_last_one() -> None:
    net = in_function(lambda n, x: n.bn(n.node("MatMul", x, n.weight(8, 8))))
    report = untouched(net.model(net.node("Part", net.input("x", ("N", 8, 8)), domain="local")))
    assert any("number of axes is not known" in r.reason for r in report.refusals)


def test_attribute_references_are_opaque() -> None:
    def make(net: Net, x: str) -> str:
        y = net.bn(net.conv(x))
        attribute = onnx.AttributeProto(name="epsilon", type=onnx.AttributeProto.FLOAT)
        attribute.ref_attr_name = "eps"
        net.nodes[-1].attribute.append(attribute)
        return y

    net = in_function(make, attributes=("eps",))
    untouched(net.model(net.node("Part", net.input(), domain="local", eps=0.5)))


def test_weights_that_a_function_is_given_are_refused() -> None:
    net = in_function(lambda n, x: n.bn(n.node("Conv", n.relu(n.bn(n.conv(x))), "w")), "w")
    result, report = fused(
        net.model(net.node("Part", net.input(), net.weight(8, 8, 1, 1), domain="local"))
    )
    assert operators(result) == "BatchNormalization, 2 Conv, Part, Relu"
    assert "its weight is no constant" in {r.reason for r in report.refusals}


# Where weights are stored.


def test_ir_version_3() -> None:
    """Every initializer has to be an input there, so that only Constant nodes are constant."""
    net = in_function(lambda n, x: n.block(x))
    function = net.functions.pop()
    net = Net(9)
    net.nodes = list(function.node)
    model = net.model(function.output[0], ir_version=3) if net.input() else ModelProto()
    result = check(model, "Conv, Relu")
    assert not result.graph.initializer


def test_ir_version_3_with_initializers() -> None:
    net = Net(9)
    model = net.model(net.block(net.input()))
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    onnx.checker.check_model(model, full_check=True)
    report = untouched(model)
    assert "is also a graph input" in report.refusals[0].reason


def test_shared_weights_stay_for_their_other_reader() -> None:
    net = Net()
    x, weight, shift = net.input(), net.weight(8, 8, 3, 3), net.weight(8)
    pair = [net.node("Conv", x, weight, shift) for _ in range(2)]
    result = check(net.model(net.bn(pair[0]), net.relu(pair[1])), "2 Conv, Relu")
    assert {weight, shift} <= {tensor.name for tensor in result.graph.initializer}


def test_weights_that_nobody_reads_any_more_go() -> None:
    net = Net()
    model = net.model(net.block(net.input()))
    result, _ = fused(model)
    assert len(result.graph.initializer) == 2


def _low_rank(net: Net) -> str:
    update = net.node("MatMul", net.weight(24, 4), net.weight(4, 24))
    return net.node(
        "Add", net.weight(8, 8, 3, 3), net.node("Reshape", update, net.ints(8, 8, 3, 3))
    )


def test_a_weight_that_is_computed_from_weights_becomes_one() -> None:
    """Also where nothing else is merged with its conv: a low-rank update of a kernel, say."""
    result = check_net(lambda net, x: net.node("Conv", x, _low_rank(net)), "Conv")
    assert [tuple(tensor.dims) for tensor in result.graph.initializer] == [(8, 8, 3, 3)]
    check_net(lambda net, x: net.node("ConvTranspose", x, _low_rank(net)), "ConvTranspose")


def test_a_weight_that_is_only_moved_is_not_stored_again() -> None:
    def transposed(net: Net, x: str) -> str:
        weight = net.node("Transpose", net.weight(8, 8, 3, 3), perm=[1, 0, 2, 3])
        return net.node("Conv", x, weight)

    check_net(transposed, "Conv, Transpose")


def test_a_computed_weight_of_several_convs_is_not_stored_for_each() -> None:
    def shared(net: Net, x: str) -> tuple[str, str]:
        weight = _low_rank(net)
        y = net.relu(net.node("Conv", x, weight))
        return y, net.node("Conv", y, weight)

    check_net(shared, "Add, 2 Conv, MatMul, Relu, Reshape")


# Names.


def test_fresh_names_do_not_collide() -> None:
    net = Net()
    x, cond = net.input(), net.input("cond", (), BOOL)
    y = net.node("BatchNormalization", net.conv(x), *net.statistics(), output="y")
    net.node("Relu", y, output="y.weight")
    both = {
        name: body(f"{name}_", lambda inner: inner.node("Add", "y.weight", "y.bias_1"))
        for name in ("then_branch", "else_branch")
    }
    net.const(1.0, "y.bias_1")
    net.const(1.0, "y.bias")
    result = check(
        typed(net.model(net.node("If", cond, **both)), *IMAGE),  # type: ignore[arg-type]
        "2 Add, Conv, If, Relu",
    )
    made = [name for node in nodes_of(result) for name in node.output]
    stored = [tensor.name for tensor in result.graph.initializer]
    assert max(Counter(made + stored).values()) == 1


def test_duplicated_and_empty_node_names() -> None:
    net = Net()
    y = net.block(net.input())
    for node in net.nodes:
        node.name = "same"
    z = net.block(y)
    for node in net.nodes[-7:]:
        node.name = ""
    check(net.model(z), "2 Conv, 2 Relu")


def test_a_new_node_takes_over_a_name() -> None:
    net = Net()
    y = net.bn(net.conv(net.input()))
    net.nodes[0].name, net.nodes[1].name = "conv", "norm"
    result, _ = fused(net.model(y))
    assert [node.name for node in result.graph.node] == ["norm"]


# What a file says beside its nodes.


def test_an_empty_graph() -> None:
    net = Net()
    model = net.model(net.input())
    onnx.checker.check_model(model, full_check=True)
    untouched(model)


def test_unused_weights_and_nodes_stay() -> None:
    net = Net()
    x = net.input()
    unused = [net.weight(3), net.literal([1.0, 2.0]), net.node("Sigmoid", x)]
    result = check(net.model(net.block(x)), "Conv, Relu, Sigmoid")
    names = {tensor.name for tensor in result.graph.initializer}
    names |= {name for node in result.graph.node for name in node.output}
    assert set(unused) <= names


def annotated() -> tuple[ModelProto, str]:
    """A model with notes wherever a file can hold them; and the name of a tensor that goes."""
    net = Net()
    x = net.input()
    y = net.node("Sigmoid", net.block(net.node("Tanh", x, output="tanh")), output="y")
    model = net.model(y)
    gone = model.graph.node[1].output[0]
    model.doc_string, model.producer_name, model.domain = "a model", "tests", "com.example"
    model.model_version = 7
    model.graph.doc_string = "a graph"
    helper.set_model_props(model, {"stride": "32", "names": "{0: 'cat'}"})
    model.graph.metadata_props.add(key="graph", value="note")
    for node in model.graph.node:
        node.doc_string = f"makes {node.output[0]}"
        node.metadata_props.add(key="pkg", value=node.output[0])
    model.graph.input[0].doc_string = "an image"
    for name in ("tanh", gone):
        value = helper.make_tensor_value_info(name, FLOAT, list(IMAGE))
        value.doc_string = "noted"
        model.graph.value_info.append(value)
    note = model.graph.quantization_annotation.add(tensor_name="tanh")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.full((), 0.5, np.float32), "s"))
    return model, gone


def test_notes_stay() -> None:
    model, gone = annotated()
    result, _ = fused(model)
    assert operators(result) == "Conv, Relu, Sigmoid, Tanh"
    same_interface(model, result)
    onnx.checker.check_model(result, full_check=True)
    noted = {value.name: value for value in result.graph.value_info}
    assert noted["tanh"] == next(v for v in model.graph.value_info if v.name == "tanh")
    assert gone not in noted, "there is no such tensor any more"


def test_untouched_nodes_keep_their_bytes() -> None:
    model, _ = annotated()
    result, _ = fused(model)
    before, after = (
        Counter(node.SerializeToString(deterministic=True) for node in given.graph.node)
        for given in (model, result)
    )
    new = after - before
    assert sum(new.values()) == 1, "the conv"
    kept = [
        n.op_type for n in result.graph.node if n.SerializeToString(deterministic=True) not in new
    ]
    assert kept == ["Tanh", "Relu", "Sigmoid"]


# Readers of a shape or of a type.

READERS: dict[str, tuple[Make, str, str]] = {
    "Shape of what is merged": (
        lambda n, x: (n.bn(y := n.conv(x)), n.node("Shape", y)),
        "Conv, Shape",
        "x",  # which has the same shape, and is there before
    ),
    "Shape of a branch, which a later one has": (
        lambda n, x: (n.node("Shape", y := n.conv(x, outputs=4, strides=[2, 2])), n.bn(y, 4)),
        "Conv, Shape",
        "t9",
    ),
    "Size": (lambda n, x: (n.bn(y := n.conv(x)), n.node("Size", y)), "Conv, Size", "x"),
    "CastLike": (
        lambda n, x: (
            n.bn(y := n.conv(x)),
            n.node("CastLike", n.input("ids", (4,), INT), y),
        ),
        "CastLike, Conv",
        "",
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_readers_of_metadata_move(name: str) -> None:
    make, becomes, reads = READERS[name]
    result = check_net(make, becomes)
    (node,) = [n for n in result.graph.node if n.op_type in ("Shape", "Size", "CastLike")]
    made = {n for node in result.graph.node for n in node.output} | {"x", "ids"}
    assert set(node.input) <= made
    assert not reads or list(node.input) == [reads]


def test_a_shape_that_nothing_else_has_keeps_its_value() -> None:
    def make(net: Net, x: str) -> tuple[str, ...]:
        y = net.conv(x, outputs=32, strides=[2, 2])
        return net.relu(net.conv(y, 32, 8, 1)), net.node("Shape", y)

    net = Net()
    model = net.model(*make(net, net.input()))
    report = untouched(model)
    assert any("its shape or type is read" in r.reason for r in all_of(report))


def test_a_shape_inside_of_a_region() -> None:
    """As exporters write a reshape: the shape goes into another branch."""

    def make(net: Net, x: str) -> str:
        y = net.conv(x)
        flat = net.node("Reshape", net.bn(y), net.ints(0, 0, -1))
        return net.relu(net.node("Reshape", flat, net.node("Shape", y)))

    check_net(make, "Conv, Relu, 2 Reshape, Shape")


# Values that are read several times.

TWICE: dict[str, tuple[Make, str, Dims]] = {
    "x + x": (lambda n, x: n.conv(n.add(x, x)), "Conv", IMAGE),
    "y + y": (lambda n, x: n.add(y := n.conv(x), y), "Conv", IMAGE),
    "y - y": (lambda n, x: n.relu(n.node("Sub", y := n.conv(x), y)), "Conv, Relu", IMAGE),
    "three times": (lambda n, x: n.add(y := n.conv(x), y, y), "Conv", IMAGE),
    "a difference inside of a sum": (
        lambda n, x: n.add(n.node("Sub", n.conv(x), n.relu(x)), n.conv(x, size=1)),
        "Add, Conv, Mul, Relu",
        IMAGE,
    ),
    "two of three share a source": (
        lambda n, x: n.add(n.conv(x), n.relu(x), n.conv(x, size=1)),
        "Add, Conv, Relu",
        IMAGE,
    ),
    "MatMul and an Add that is read twice": (
        lambda n, x: n.node(
            "Mul",
            n.node("Sigmoid", y := n.node("Add", n.node("MatMul", x, n.weight(8, 8)), n.weight(8))),
            n.node("Mul", y, n.scale(8)),
        ),
        "Add, MatMul, 2 Mul, Sigmoid",
        ("N", "W", 8),
    ),
    "MatMul that an Add and another read": (
        lambda n, x: (
            n.node(
                "Mul",
                n.node("Add", y := n.node("MatMul", x, n.weight(8, 8)), n.weight(8)),
                n.scale(),
            ),
            n.relu(y),
        ),
        "Add, MatMul, Mul, Relu",
        ("N", "W", 8),
    ),
}


def test_a_mean_and_itself() -> None:
    """The sum inside of a Mean has no name, and no other node can read it."""
    net = Net()
    x = net.relu(net.input())
    mean = net.node("Mean", x, x)
    model = in_double(net.model(net.add(mean, mean, net.relu(x))))
    result, _ = fused(model)
    assert_same(model, result)


def test_sources_that_follow_from_each_other() -> None:
    """One conv reads z, and another one x for the terms that are y and z: both agree where z is
    what x makes of it, and nowhere else."""
    net = Net()
    x = net.input()
    y = net.conv(x, size=1)
    z = net.bn(y)
    shift = net.node("Sub", net.scale(8, 1, 1), x)
    branch = net.bn(net.conv(z, group=2, dilations=[2, 2], pads=[2] * 4, bias=False))
    outer = net.add(net.node("Sigmoid", x), z, shift)
    total = net.node("Sum", y, outer, outer, branch)
    model = in_double(net.model(total, net.relu(z), net.relu(shift)))
    result, report = fused(model, target="min-ops")
    assert len(report.regions) > 1
    assert_same(model, result)


@pytest.mark.parametrize("name", TWICE)
def test_values_read_twice(name: str) -> None:
    make, becomes, dims = TWICE[name]
    net = Net()
    outputs = make(net, net.input("x", dims))
    model = net.model(*([outputs] if isinstance(outputs, str) else outputs))
    result, report = fused(in_double(model))
    assert operators(result) == becomes, str(report)
    assert_same(in_double(model), result)


def test_the_border_of_a_diverse_branch_block() -> None:
    """BN-and-pad as an exporter writes it: a Pad, and the border put in by ScatterND."""
    net = Net()
    y = net.bn(net.conv(net.input("x", (2, 8, 4, 5)), size=1, bias=False))
    fill = net.noise.standard_normal(8)
    padded = net.node("Pad", y, net.ints(0, 0, 1, 1, 0, 0, 1, 1))
    inside = np.zeros((2, 8, 6, 7), bool)
    inside[:, :, 1:-1, 1:-1] = True
    where = np.argwhere(~inside)
    border = net.node("ScatterND", padded, net.const(where, elem=INT), net.const(fill[where[:, 1]]))
    z = net.conv(border, pads=[0, 0, 0, 0])
    model = in_double(net.model(net.relu(z)))
    result, _ = fused(model)
    assert "BatchNormalization" not in operators(result)
    assert_same(model, result)
    onnx.checker.check_model(result, full_check=True)


def test_types_of_other_kinds() -> None:
    """Sequences and optional values have no shape, and are in nobody's way."""
    net = Net()
    x = net.input()
    several = net.node("SequenceConstruct", net.conv(x), x)
    item = net.node("SequenceAt", several, net.const(0, elem=INT))
    model = typed(net.model(net.relu(net.bn(item))), *IMAGE)  # type: ignore[arg-type]
    result, _ = fused(model)
    assert isinstance(result.graph.input[0].type, TypeProto)
    assert operators(result) == operators(model)
    assert [graph.name for graph in bodies(result)] == ["net"]
