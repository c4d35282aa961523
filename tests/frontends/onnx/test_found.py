"""What people who tried to break it have found: wrong numbers, invalid models, slow plans."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

import repfuse
from repfuse.frontends.onnx.layout import Layout, lay_out
from repfuse.frontends.onnx.plan import plan_model
from tests.frontends.onnx.build import IMAGE, Dims, Net, operators
from tests.frontends.onnx.cases import fused, untouched
from tests.frontends.onnx.evaluate import assert_same, in_double
from tests.frontends.onnx.wrap import as_function

FLOAT, HALF, BFLOAT = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16


def with_weight(make: Callable[[Net], str], opset: int = 17) -> ModelProto:
    net = Net(opset)
    x = net.input("x", IMAGE)
    return net.model(net.bn(net.node("Conv", x, make(net), pads=[1] * 4)))


@pytest.mark.parametrize("narrow", [HALF, BFLOAT])
def test_a_weight_that_is_rounded_on_its_way_stays_rounded(narrow: int) -> None:
    def rounded(net: Net) -> str:
        return net.node("Cast", net.node("Cast", net.weight(8, 8, 3, 3), to=narrow), to=FLOAT)

    model = with_weight(rounded)
    result, _ = fused(model)
    assert operators(result) == "Conv"
    repfuse.assert_equivalent(model, result)


# Weights after a step: at half of one, float64 steps elsewhere than float32.
STEPS: dict[str, Callable[[Net], str]] = {
    "Round": lambda n: n.node("Round", n.node("Div", n.weight(8, 8, 3, 3), n.const(0.1))),
    "Floor": lambda n: n.node("Floor", n.node("Div", n.weight(8, 8, 3, 3), n.const(0.1))),
    "Sign": lambda n: n.node("Sign", n.weight(8, 8, 3, 3)),
    "a mask": lambda n: n.node(
        "Where",
        n.node("Greater", w := n.weight(8, 8, 3, 3), n.const(0.0)),
        w,
        n.node("Mul", w, n.const(0.1)),
    ),
    "a cast to whole numbers": lambda n: n.node(
        "Cast", n.node("Cast", n.weight(8, 8, 3, 3), to=TensorProto.INT32), to=FLOAT
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_weight_that_is_computed_in_steps_stays(name: str) -> None:
    model = with_weight(STEPS[name])
    result, report = fused(model)
    assert result.graph.node == model.graph.node
    assert report.refusals != []


def test_whole_numbers_may_pass_through_steps() -> None:
    def counted(net: Net) -> str:
        shape = net.node("Mod", net.ints(8, 8, 3, 3), net.ints(9, 9, 9, 9))
        return net.node("Expand", net.weight(8, 8, 1, 1), shape)

    assert operators(fused(with_weight(counted))[0]) == "Conv"


@pytest.mark.parametrize("elem", [TensorProto.FLOAT, TensorProto.DOUBLE])
def test_a_function_that_takes_its_type_from_its_input_stays(elem: int) -> None:
    body = Net(prefix="in_")
    weights = [body.node("CastLike", body.literal(np.ones((8, 8, 1, 1))), "a") for _ in range(2)]
    body.node("Add", *(body.node("Conv", "a", weight) for weight in weights), output="b")
    function = helper.make_function(
        "own", "Pair", ["a"], ["b"], body.nodes, [helper.make_opsetid("", 17)]
    )
    net = Net()
    net.imports["own"] = 1
    net.functions.append(function)
    out = net.node("Pair", net.input("x", IMAGE, elem), domain="own")
    model = net.model(out)
    model.graph.output[0].type.tensor_type.elem_type = elem
    result, report = fused(model)
    assert result.functions == model.functions
    assert any("takes its type from 'a'" in refusal.reason for refusal in report.refusals)


def test_a_file_with_functions_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from repfuse.cli.onnx import main

    body = Net(prefix="in_")
    body.node("Relu", "a", output="b")
    net = Net()
    net.imports["own"] = 1
    net.functions.append(
        helper.make_function("own", "F", ["a"], ["b"], body.nodes, [helper.make_opsetid("", 17)])
    )
    model = net.model(net.block(net.node("F", net.input("x", IMAGE), domain="own")))
    onnx.save(model, tmp_path / "in.onnx")
    arguments = ["repfuse-onnx", str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"), "-q"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    assert onnx.load(tmp_path / "out.onnx").functions == model.functions


@pytest.mark.parametrize("opset", [6])
def test_operators_from_before_broadcasting_stay(opset: int) -> None:
    net = Net(opset)
    x = net.input("x", (2, 8, 5, 5))
    scaled = net.node("Mul", net.conv(x), net.const([2.0, 3.0]), axis=0, broadcast=1)
    model = net.model(scaled, ir_version=4)
    result, report = fused(model)
    assert result.graph.node == model.graph.node
    assert any("opset 6" in refusal.reason for refusal in report.refusals)


def test_a_long_residual_stream_is_fused() -> None:
    """Longer than Python's stack is deep."""
    net = Net()
    value = net.input("x", ("N", 2, "H", "W"))
    for _ in range(300):
        branch = net.relu(net.add(net.conv(value, 2, 2), net.conv(value, 2, 2, size=1)))
        value = net.add(value, branch)
    result, report = fused(net.model(value))
    assert report.untraced == {}
    assert operators(result) == "300 Add, 300 Conv, 300 Relu"


def test_a_long_chain_of_constants_is_followed() -> None:
    def chain(net: Net) -> str:
        weight = net.weight(8, 8, 3, 3)
        for _ in range(1500):
            weight = net.node("Identity", weight)
        return weight

    assert operators(fused(with_weight(chain))[0]) == "Conv"


@pytest.mark.parametrize("in_body", [False, True])
def test_values_in_files_are_taken_along(tmp_path: Path, in_body: bool) -> None:
    """Of Constant nodes, and of the initializers of bodies; the main graph's may lie apart."""
    net = Net()
    x = net.input("x", IMAGE)
    if in_body:
        branches = {}
        for name in ("then_branch", "else_branch"):
            body = Net(prefix=f"{name}_")
            branches[name] = body.graph(body.block(x))
        net.inputs.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
        out = net.node("If", "c", **branches)
    else:
        out = net.block(net.node("Mul", x, net.literal(np.full((1, 8, 1, 1), 2.0))))
    path = tmp_path / "in.onnx"
    onnx.save_model(
        net.model(out),
        path,
        save_as_external_data=True,
        location="weights",
        size_threshold=0,
        convert_attribute=True,
    )
    result = repfuse.fuse(path)
    (tmp_path / "weights").unlink()
    onnx.checker.check_model(result, full_check=True)
    assert b"weights" not in result.SerializeToString()


def test_terms_without_a_source_in_common_are_not_paired(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wide sum is planned in proportion to its terms, not to their square."""
    tried: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        "repfuse.select._Chooser._merge", lambda self, value, terms: tried.append(terms)
    )
    net = Net()
    value = net.conv(net.input("x", ("N", 2, "H", "W")), 2, 2)
    relus = [net.relu(net.node("Mul", value, net.scale(2, 1, 1))) for _ in range(100)]
    repfuse.plan(net.model(net.node("Sum", *relus)))
    assert tried == []
    branches = [net.conv(value, 2, 2) for _ in range(4)]
    repfuse.plan(net.model(net.node("Sum", *relus, *branches)))
    assert len(set(tried)) == 6


def test_a_fresh_name_is_none_that_the_file_describes() -> None:
    net = Net()
    out = net.block(net.input("x", IMAGE))
    model = net.model(out)
    (last,) = [node.input[0] for node in model.graph.node if node.op_type == "Relu"]
    stale = helper.make_tensor_value_info(f"{last}.weight", TensorProto.INT64, [7])
    model.graph.value_info.append(stale)
    result, _ = fused(model)
    assert_same(model, result, 1e-5)
    onnx.checker.check_model(result, full_check=True)


@pytest.mark.parametrize("other", [("T", 8), (1, 8), ("N", 1, 8)], ids=str)
def test_tokens_and_a_value_that_broadcasts(other: Dims) -> None:
    net = Net()
    x, y = net.input("x", ("N", "T", 8)), net.input("y", other)
    first, second = (net.node("MatMul", part, net.weight(8, 8)) for part in (x, y))
    first = net.node("Mul", net.node("Add", first, net.weight(8)), net.scale(8))
    model = in_double(net.model(net.add(first, second)))
    result, _ = fused(model)
    assert operators(result) == "2 Add, 2 MatMul"
    assert_same(model, result, sizes=[{"N": 2, "T": 3}, {"N": 3, "T": 1}])


def test_more_channels_than_a_list_could_name() -> None:
    many = 2**40
    net = Net(20)
    x = net.relu(net.input("x", ("N", many, "H", "W")))
    parts = net.several("Split", x, count=2, axis=1, num_outputs=2)
    sliced = net.node("Slice", x, net.ints(0), net.ints(many // 2), net.ints(1))
    turned = net.node("Reshape", x, net.ints(1, 2, many // 2, 3, 3))
    turned = net.node("Transpose", turned, perm=[0, 2, 1, 3, 4])
    untouched(net.model(*map(net.relu, [*parts, sliced, turned])))


def test_an_image_that_is_made_of_tokens_and_goes_back_to_them() -> None:
    """A 3x3 conv reads what a Transpose and a Reshape make of tokens: both stay."""
    net = Net()
    x = net.node("MatMul", net.input("x", (2, 16, 8)), net.weight(8, 8))
    image = net.node("Reshape", net.node("Transpose", x, perm=[0, 2, 1]), net.ints(2, 8, 4, 4))
    worked = net.bn(net.conv(image, 8, 8))
    tokens = net.node("Transpose", net.node("Reshape", worked, net.ints(2, 8, 16)), perm=[0, 2, 1])
    model = in_double(net.model(net.relu(tokens)))
    result, _ = fused(model)
    assert operators(result) == "Conv, MatMul, Relu, 2 Reshape, 2 Transpose"
    onnx.checker.check_model(result, full_check=True)
    assert_same(model, result)


def test_axes_are_moved_far_before_the_end_of_a_network() -> None:
    """What follows may be deeper than Python nests calls."""
    net = Net()
    x = net.node("Transpose", net.conv(net.input("x", IMAGE), 8, 8), perm=[0, 2, 3, 1])
    worked = net.node("Add", net.node("Mul", x, net.scale(8)), net.weight(8))
    out = net.node("Transpose", worked, perm=[0, 3, 1, 2])
    for _ in range(1500):
        out = net.relu(out)
    result, report = fused(net.model(out))
    assert report.errors == []
    assert operators(result) == "Conv, 1500 Relu"


@pytest.mark.parametrize("opset", [9, 11, 12, 13, 18])
def test_a_shuffle_beside_sizes_that_are_unsqueezed(opset: int) -> None:
    """Until opset 12 the axes of an Unsqueeze are an attribute."""
    net = Net(opset)
    x = net.input("x", IMAGE)
    first = net.conv(x, size=1)
    shape = net.node("Shape", first)
    sizes = []
    for axis in (0, 2, 3):
        size = net.node("Gather", shape, net.const(axis, elem=TensorProto.INT64), axis=0)
        old = opset < 13
        made = (
            net.node("Unsqueeze", size, axes=[0])
            if old
            else net.node("Unsqueeze", size, net.ints(0))
        )
        sizes.append(made)
    split = net.node("Concat", sizes[0], net.ints(2), net.ints(4), *sizes[1:], axis=0)
    joined = net.node("Concat", sizes[0], net.ints(8), *sizes[1:], axis=0)
    turned = net.node("Transpose", net.node("Reshape", first, split), perm=[0, 2, 1, 3, 4])
    model = in_double(net.model(net.conv(net.node("Reshape", turned, joined), size=1)))
    result, report = fused(model)
    assert report.errors == []
    assert operators(result) == "Conv"
    assert_same(model, result)


def test_a_file_for_one_size_is_read_where_others_are_tried() -> None:
    """A border that is filled at fixed positions, and a shuffle, for which sizes are tried."""
    net = Net()
    x = net.input("x", ("N", 8, "H", "W"))
    shape = net.node("Shape", x)
    rows = net.node(
        "Expand", net.scale(1, 8, 1, 7), net.node("Slice", shape, net.ints(0), net.ints(4))
    )
    sizes = [net.node("Gather", shape, net.ints(axis), axis=0) for axis in (0, 2, 3)]
    split = net.node("Concat", sizes[0], net.ints(2), net.ints(4), *sizes[1:], axis=0)
    joined = net.node("Concat", sizes[0], net.ints(8), *sizes[1:], axis=0)
    turned = net.node("Transpose", net.node("Reshape", x, split), perm=[0, 2, 1, 3, 4])
    mixed = net.conv(net.node("Reshape", turned, joined), size=1)
    result, report = fused(net.model(net.add(mixed, rows)))
    assert report.errors == []
    onnx.checker.check_model(result, full_check=True)


def test_rows_of_which_a_function_knows_no_shape() -> None:
    """That they are rows follows from the Gemm alone, which is behind what reads them."""
    net = Net()
    rows = net.node("MatMul", net.input("x", ("N", 4)), net.weight(4, 8))
    rows = net.node("Mul", rows, net.node("Neg", rows))
    inner = net.node("Add", net.node("MatMul", rows, net.weight(8, 8)), rows)
    made = net.bn(net.node("Gemm", inner, net.weight(8, 8), net.weight(8)))
    model = as_function(net.model(made))
    result, _ = fused(in_double(model))
    assert_same(model, result, sizes=[{"N": 3}])


def test_an_image_minus_itself_beside_a_value_of_unknown_shape() -> None:
    net = Net()
    x = net.input("x")
    unknown = net.node("Sub", net.weight(8, 9, 6), net.conv(x))
    summed = net.node("Sum", x, net.node("Neg", x), unknown)
    model = as_function(net.model(net.conv(x), summed))
    result, _ = fused(in_double(model))
    assert_same(model, result, sizes=[{"N": 2, "H": 9, "W": 6}])


def test_channels_are_mixed_of_what_was_channels_last() -> None:
    """A shuffle reads another layout than the layers whose output it mixes."""
    net = Net()
    rows = net.node("Transpose", net.conv(net.input("x"), outputs=8), perm=[0, 2, 3, 1])
    parts = [net.node("MatMul", rows, net.weight(8, 8)) for _ in range(2)]
    x = net.node("Transpose", net.node("Add", *parts), perm=[0, 3, 1, 2])
    shape = net.node("Shape", x)
    sizes = [net.node("Gather", shape, net.ints(axis), axis=0) for axis in (0, 2, 3)]
    split = net.node("Concat", sizes[0], net.ints(2), net.ints(4), *sizes[1:], axis=0)
    turned = net.node("Transpose", net.node("Reshape", x, split), perm=[0, 2, 1, 3, 4])
    model = in_double(net.model(net.node("Reshape", turned, shape)))
    result, report = fused(model)
    assert report.errors == []
    assert operators(result) == "Conv"
    assert_same(model, result, sizes=[{"N": 3, "H": 9, "W": 6}])


def test_a_factor_that_was_moved_from_channels_last() -> None:
    """What computes it ends with a Transpose, which is no node of the value that it gives."""
    net = Net()
    x = net.input("x", (2, 8, 9, 6))
    rows = net.node("Transpose", x, perm=[0, 2, 3, 1])
    summed = net.add(*(net.node("MatMul", rows, net.weight(8, 8)) for _ in range(2)))
    factor = net.node("Transpose", summed, perm=[0, 3, 1, 2])
    model = in_double(net.model(net.node("Sub", x, net.node("Mul", factor, x))))
    result, report = fused(model)
    assert report.errors == []
    assert operators(result) == "MatMul, Mul, Sub, 2 Transpose"
    assert_same(model, result)


def test_where_nothing_is_merged_what_nobody_reads_stays() -> None:
    net = Net()
    x = net.input("x")
    rows = net.node("Transpose", x, perm=[0, 2, 3, 1])
    net.node("Transpose", net.node("MatMul", rows, net.weight(8, 8)), perm=[0, 3, 1, 2])
    model = in_double(net.model(net.relu(x)))
    result, report = fused(model)
    assert report.regions == []
    assert result == model


def test_a_graph_of_which_something_would_be_lost_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake in what is dropped is found before the graph is edited."""
    net = Net()
    y = net.bn(net.conv(net.input("x", IMAGE)))
    model = in_double(net.model(net.relu(net.node("Abs", y))))

    def careless(*given: Any) -> Layout:
        layout = lay_out(*given)
        layout.dropped.add(len(model.graph.node) - 2)
        return layout

    monkeypatch.setattr("repfuse.frontends.onnx.parts.lay_out", careless)
    plan = plan_model(model)
    assert plan.report.regions
    assert plan.apply() == model
    assert "cannot be ordered" in plan.report.errors[0]
    assert not plan.report.regions
