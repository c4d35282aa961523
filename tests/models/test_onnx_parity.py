"""Exported networks: fused as far as the modules are, and to the same convs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto
from torch import nn

import repfuse
from tests.models.exports import KEEPS_NORMS, WAYS, counts, export
from tests.models.zoo import build, image

# Conv nodes after; no BatchNormalization is left. As many convs as in the fused module.
NETWORKS = {
    "repvgg_a0": 22,
    "mobileone_s0": 43,
    "fastvit_t8": 52,
    "repvit_m0_9": 103,
    "repghostnet_050": 95,
}
EPS = float(np.finfo(np.float32).eps)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_export_is_fused_as_the_module_is(name: str, tmp_path: Path) -> None:
    model = build(name).float()
    picture = image(64, batch=1).float()
    fused = repfuse.fuse(model)
    exported = export(model, picture, tmp_path / "model.onnx")
    expected = convs_of(export(fused, picture, tmp_path / "fused.onnx", "legacy eval"))
    expected_adds = sum(node.op_type == "Add" for node in expected["model"].graph.node)

    assert list(exported) == list(WAYS)
    for way, original in exported.items():
        before = original.SerializeToString(deterministic=True)
        result = repfuse.fuse(original)
        assert original.SerializeToString(deterministic=True) == before
        assert counts(result) == (NETWORKS[name], 0), way
        adds = sum(node.op_type == "Add" for node in result.graph.node)
        assert adds <= expected_adds, way
        onnx.checker.check_model(result, full_check=True)
        repfuse.assert_equivalent(original, result)
        same_convs(expected["convs"], convs(result), exact=way in KEEPS_NORMS)


def convs_of(exported: dict[str, ModelProto]) -> dict[str, Any]:
    (model,) = exported.values()
    return {"model": model, "convs": convs(model)}


def convs(model: ModelProto) -> list[tuple[dict[str, Any], list[np.ndarray]]]:
    """Settings and weights of every conv, in the order of execution."""
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type == "Conv":
            given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            given.pop("auto_pad", None)
            found.append((given, [tensors[name] for name in node.input[1:]]))
    return found


def same_convs(expected: list[Any], found: list[Any], *, exact: bool) -> None:
    """The same convs, with weights equal to one rounding; where the exporter folded batch norms
    itself, it did so in float32, and a branch that was rounded by itself shows in the sum."""
    assert len(expected) == len(found)
    for (settings, weights), (other_settings, others) in zip(expected, found, strict=True):
        assert settings == other_settings
        assert [w.shape for w in weights] == [w.shape for w in others]
        for one, other in zip(weights, others, strict=True):
            difference = np.abs(one.astype(np.float64) - other)
            if exact:
                assert (difference <= np.spacing(np.abs(one))).all()
            else:
                assert difference.max() <= 16 * EPS * np.abs(one).max()


def test_the_comparison_of_convs_can_fail() -> None:
    layer = nn.Conv2d(4, 4, 3)
    settings, weights = {"group": 1}, [layer.weight.detach().numpy()]
    same_convs([(settings, weights)], [(settings, weights)], exact=True)
    for factor, exact in ((1 + 4 * EPS, True), (1 + 64 * EPS, False)):
        changed = [(settings, [(weights[0] * np.float64(factor)).astype(np.float32)])]
        with pytest.raises(AssertionError):
            same_convs([(settings, weights)], changed, exact=exact)
    with pytest.raises(AssertionError):
        same_convs([(settings, weights)], [({"group": 2}, weights)], exact=True)
