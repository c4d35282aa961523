"""Borders that a file fills by ScatterND: the same ones as in modules, with the same answers."""

from __future__ import annotations

import onnx
import pytest
from onnx import ModelProto, helper

import repfuse
from tests.frontends.onnx.evaluate import difference, evaluate
from tests.frontends.test_fills import (
    FUSED,
    IMAGES,
    STAYS,
    Bordered,
    Fill,
    norm_read_for_more,
    seen_through_a_view,
)
from tests.models.measure import exported
from tests.numerics import randomize

# What a file says of these is a border of numbers, and nothing else.
BECOMES_CONSTANT = (seen_through_a_view, norm_read_for_more)


def check(model: ModelProto) -> ModelProto:
    before = model.SerializeToString(deterministic=True)
    plan = repfuse.plan(model, target="min-ops")
    fused = plan.apply()
    assert plan.report.errors == []
    assert model.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(fused, full_check=True)
    feeds = {"image": IMAGES[0].numpy()}
    assert difference(evaluate(model, feeds), evaluate(fused, feeds)) <= 1e-10
    return fused


def as_file(fill: Fill) -> ModelProto:
    return exported(randomize(Bordered(fill).double().eval()), IMAGES[0], "fixed")


def ops(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node if node.op_type != "Constant"]


@pytest.mark.parametrize("fill", FUSED.values(), ids=list(FUSED))
def test_a_border_of_what_the_conv_makes_of_zeros(fill: Fill) -> None:
    assert ops(check(as_file(fill))) == ["Conv"]


@pytest.mark.parametrize("fill", STAYS.values(), ids=list(STAYS))
def test_any_other_border_stays(fill: Fill) -> None:
    fused = check(as_file(fill))
    assert fill in BECOMES_CONSTANT or ops(fused).count("Conv") == 2


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
