"""Borders that a file fills by ScatterND: the same ones as in modules, with the same answers."""

from __future__ import annotations

import onnx
import pytest
import torch
from onnx import ModelProto, helper
from torch import Tensor
from torch.nn import functional as F

import repfuse
from tests.frontends.onnx.evaluate import difference, evaluate
from tests.frontends.test_fills import (
    FUSED,
    IMAGES,
    STAYS,
    Bordered,
    Fill,
    around,
    norm_read_for_more,
    seen_through_a_view,
)
from tests.models.measure import exported
from tests.numerics import randomize

# What a file says of these is a border of numbers, and nothing else.
BECOMES_CONSTANT = (seen_through_a_view, norm_read_for_more)


LARGER = torch.randn(2, 3, 23, 31, dtype=torch.float64)


def check(model: ModelProto, *images: Tensor) -> ModelProto:
    before = model.SerializeToString(deterministic=True)
    plan = repfuse.plan(model, target="min-ops")
    fused = plan.apply()
    assert plan.report.errors == []
    assert model.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(fused, full_check=True)
    for image in images or IMAGES[:1]:
        feeds = {"image": image.numpy()}
        assert difference(evaluate(model, feeds), evaluate(fused, feeds)) <= 1e-10
    return fused


def as_file(fill: Fill, way: str = "fixed") -> ModelProto:
    return exported(randomize(Bordered(fill).double().eval()), IMAGES[0], way)


def ops(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node if node.op_type != "Constant"]


@pytest.mark.parametrize("fill", FUSED.values(), ids=list(FUSED))
def test_a_border_of_what_the_conv_makes_of_zeros(fill: Fill) -> None:
    assert ops(check(as_file(fill))) == ["Conv"]


@pytest.mark.parametrize("fill", STAYS.values(), ids=list(STAYS))
def test_any_other_border_stays(fill: Fill) -> None:
    fused = check(as_file(fill))
    assert fill in BECOMES_CONSTANT or ops(fused).count("Conv") == 2


@pytest.mark.parametrize("fill", FUSED.values(), ids=list(FUSED))
def test_a_border_of_any_size_of_the_input(fill: Fill) -> None:
    assert ops(check(as_file(fill, "dynamo"), *IMAGES, LARGER)) == ["Conv"]


def far_from_the_start(block: Bordered, y: Tensor, b: Tensor) -> Tensor:
    y = around(F.pad(y, [1, 1, 1, 1]), b)
    y[:, :, 20:, :] = b
    return y


def all_but_a_few(block: Bordered, y: Tensor, b: Tensor) -> Tensor:
    y = F.pad(y, [1, 1, 1, 1])
    y[:, :, :-5][:, :, :1] = b
    y[:, :, -1:] = b
    y[:, :, :, :1] = b
    y[:, :, :, -1:] = b
    return y


def where_the_axis_is_short(block: Bordered, y: Tensor, b: Tensor) -> Tensor:
    y = around(F.pad(y, [1, 1, 1, 1]), b)
    y[:, :, -3:3] = b
    return y


def of_the_first_samples(block: Bordered, y: Tensor, b: Tensor) -> Tensor:
    y = F.pad(y, [1, 1, 1, 1])
    around(y[:3], b)
    return y


def one_row_of_two(block: Bordered, y: Tensor, b: Tensor) -> Tensor:
    y = F.pad(y, [1, 1, 2, 1])
    return around(y, b)


def of_what_is_inside(block: Bordered, y: Tensor, b: Tensor) -> Tensor:
    y = around(F.pad(y, [1, 1, 1, 1]), b)
    y[:, :, :1] = y[:, :, 1:2]
    return y


SOME = ("another number on one side", "zeros on one side", "some channels", "read when half done")
OPEN: dict[str, Fill] = {
    **{name: STAYS[name] for name in SOME},
    "a row that only a large input has": far_from_the_start,
    "a side that only a large input has": all_but_a_few,
    "rows that only a small input has": where_the_axis_is_short,
    "the samples that a small batch has": of_the_first_samples,
    "a row too few": one_row_of_two,
    "a side that holds the image": of_what_is_inside,
}


@pytest.mark.parametrize("fill", OPEN.values(), ids=list(OPEN))
def test_any_other_border_stays_at_any_size_of_the_input(fill: Fill) -> None:
    fused = check(as_file(fill, "dynamo"), *IMAGES[:2], LARGER)
    assert ops(fused).count("Conv") == 2


def test_positions_that_are_counted_along_another_axis() -> None:
    """Right where the input is a square."""
    model = as_file(FUSED["sides in turn"], "dynamo")
    made = {node.output[0]: node for node in model.graph.node}

    def counts_along(node: onnx.NodeProto) -> int:
        axis = made[node.input[1]].attribute[0]
        return int(onnx.numpy_helper.to_array(axis.t))

    counts = [made[node.input[1]] for node in model.graph.node if node.op_type == "Range"]
    (columns, *_) = (node.input[1] for node in counts if counts_along(node) == 3)
    changed = [node for node in counts if counts_along(node) == 2]
    assert changed
    for node in changed:
        node.input[1] = columns
    plan = repfuse.plan(model, target="min-ops")
    assert ops(plan.apply()).count("Conv") == 2
    assert plan.report.errors == []


@pytest.mark.parametrize("kind", ["ScatterND", "Shape", "Pad"])
def test_what_is_also_an_output_stays(kind: str) -> None:
    model = as_file(FUSED["sides in turn"])
    (pad,) = (node for node in model.graph.node if node.op_type == "Pad")
    around = [node for node in model.graph.node if pad.output[0] in (*node.input, *node.output)]
    node = next(node for node in around if node.op_type == kind)
    elem = onnx.TensorProto.INT64 if kind == "Shape" else onnx.TensorProto.DOUBLE
    sizes: list[int | None] = [4] if kind == "Shape" else [None] * 4
    model.graph.output.append(helper.make_tensor_value_info(node.output[0], elem, sizes))
    fused = check(model)
    assert node.output[0] in {name for made in fused.graph.node for name in made.output}


def test_a_shape_that_something_else_needs_stays() -> None:
    model = as_file(FUSED["sides in turn"])
    pad = next(node for node in model.graph.node if node.op_type == "Pad")
    added = [
        helper.make_node("Shape", [pad.output[0]], ["sizes"]),
        helper.make_node("Cast", ["sizes"], ["floats"], to=onnx.TensorProto.DOUBLE),
        helper.make_node("ReduceMax", ["floats"], ["widest"], keepdims=0),
        helper.make_node("Mul", [model.graph.output[0].name, "widest"], ["scaled"]),
    ]
    model.graph.node.extend(added)
    model.graph.output.append(
        helper.make_tensor_value_info("scaled", onnx.TensorProto.DOUBLE, [None] * 4)
    )
    check(model)
