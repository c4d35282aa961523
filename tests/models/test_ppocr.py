"""Published networks with trained weights: PP-OCRv4's detector, recogniser and classifier."""

from __future__ import annotations

import onnx
import pytest
from onnx import ModelProto, NodeProto

import repfuse
from tests.models.ocr import NETWORKS, constants_of, load, page, read_text

ARITHMETIC = ("Add", "Mul", "Sub", "Div")
LINES = ["Structural", "reparameterization", "convolution", "HELLO", "2026"]

# (convs before a constant Add, Mul or BatchNormalization; pairs of such), before and after. The
# pairs that remain are a scale, then a shift, that a zero-padded conv or no conv at all reads.
FOLDED = {
    "detector": ((32, 77), (0, 14)),
    "recogniser": ((34, 89), (0, 21)),
    "classifier": ((35, 0), (0, 0)),
}


@pytest.mark.parametrize("role", NETWORKS)
def test_constant_arithmetic_is_folded(role: str) -> None:
    original = load(role)
    fused = repfuse.fuse(original)
    onnx.checker.check_model(fused, full_check=True)
    assert (affine_convs_and_pairs(original), affine_convs_and_pairs(fused)) == FOLDED[role]
    for first, second in affine_pairs(fused):
        assert (first.op_type, second.op_type) == ("Mul", "Add")
    assert fused.metadata_props == original.metadata_props
    assert fused.graph.input == original.graph.input
    assert fused.graph.output == original.graph.output
    repfuse.assert_equivalent(original, fused)
    assert repfuse.plan(fused).report.regions == []


def test_text_is_read_the_same() -> None:
    networks = load("detector"), load("recogniser")
    before = read_text(*networks, page(LINES))
    after = read_text(repfuse.fuse(networks[0]), repfuse.fuse(networks[1]), page(LINES))
    assert [text for text, _ in before] == LINES
    assert [text for text, _ in after] == LINES
    for (_, sure), (_, still) in zip(before, after, strict=True):
        assert sure > 0.9
        assert abs(sure - still) < 1e-4


def affine_convs_and_pairs(model: ModelProto) -> tuple[int, int]:
    constants, readers = constants_of(model), sole_readers(model)
    convs = [
        node
        for node in model.graph.node
        if node.op_type in ("Conv", "ConvTranspose")
        and (reader := readers.get(node.output[0])) is not None
        and is_affine(reader, constants)
    ]
    return len(convs), len(affine_pairs(model))


def affine_pairs(model: ModelProto) -> list[tuple[NodeProto, NodeProto]]:
    constants, readers = constants_of(model), sole_readers(model)
    return [
        (node, reader)
        for node in model.graph.node
        if is_affine(node, constants)
        and (reader := readers.get(node.output[0])) is not None
        and is_affine(reader, constants)
    ]


def is_affine(node: NodeProto, constants: set[str]) -> bool:
    if node.op_type == "BatchNormalization":
        return True
    return node.op_type in ARITHMETIC and sum(name in constants for name in node.input) == 1


def sole_readers(model: ModelProto) -> dict[str, NodeProto]:
    """The reader of every tensor that has exactly one."""
    found: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    for output in model.graph.output:
        found.setdefault(output.name, []).clear()
    return {name: nodes[0] for name, nodes in found.items() if len(nodes) == 1}
