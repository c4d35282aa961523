"""A detector and a segmenter of torchvision: every batch norm folds, and every stage agrees.

The detector normalises with frozen statistics in buffers, in a module that is not torch's own. Its
last stages choose (the top k, non-maximum suppression), so that it is compared stage by stage, the
second half on the same proposals, and as a whole where the choice is clear.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.segmentation import deeplabv3_resnet50
from torchvision.ops.misc import FrozenBatchNorm2d

import repfuse
from tests.models.zoo import outputs_equal
from tests.numerics import assert_same, count_ops, randomize

# The norms of each backbone; all of them stand after a conv.
BACKBONES = {"resnet18": 20, "resnet50": 53}


@dataclass(frozen=True)
class Detectors:
    """A detector, the same fused, and a list of images for both."""

    model: FasterRCNN
    fused: FasterRCNN
    images: list[Tensor]
    before: dict[str, Tensor]


@cache
def detectors(backbone: str) -> Detectors:
    torch.manual_seed(0)
    model = FasterRCNN(
        resnet_fpn_backbone(
            backbone_name=backbone, weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
        ),
        num_classes=5,
        min_size=96,
        max_size=128,
        rpn_pre_nms_top_n_test=100,
        rpn_post_nms_top_n_test=50,
    )
    randomize(model.double().eval())
    before = copy.deepcopy(model.state_dict())
    plan = repfuse.plan(model)
    fused = plan.apply()
    assert plan.report.errors == []
    images = [torch.rand(3, height, 128, dtype=torch.float64) for height in (96, 112)]
    return Detectors(model, fused, images, before)


@pytest.fixture(params=BACKBONES)
def pair(request: pytest.FixtureRequest) -> Detectors:
    return detectors(request.param)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_no_frozen_batch_norm_is_executed(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pair, norms = detectors(backbone), BACKBONES[backbone]
    called: list[nn.Module] = []
    forward = FrozenBatchNorm2d.forward

    def counted(self: nn.Module, x: Tensor) -> Any:
        called.append(self)
        return forward(self, x)

    monkeypatch.setattr(FrozenBatchNorm2d, "forward", counted)
    with torch.no_grad():
        pair.model(pair.images)
        assert len(called) == norms
        called.clear()
        pair.fused(pair.images)
    assert called == []
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in pair.fused.modules())
    executed, fused = (count_ops(model, pair.images) for model in (pair.model, pair.fused))
    assert (fused.convs, fused.conv_modules) == (executed.convs, executed.conv_modules)


def test_the_detector_keeps_its_class_and_the_original_its_weights(pair: Detectors) -> None:
    assert type(pair.fused) is FasterRCNN
    assert type(pair.fused.backbone) is type(pair.model.backbone)
    after = pair.model.state_dict()
    assert after.keys() == pair.before.keys()
    assert all(torch.equal(pair.before[key], tensor) for key, tensor in after.items())
    # The first two stages of the backbone are frozen.
    trained = {name: weight.requires_grad for name, weight in pair.model.named_parameters()}
    own = {name: weight.requires_grad for name, weight in pair.fused.named_parameters()}
    assert set(trained.values()) == {True, False}
    assert trained == {name: own[name] for name in trained}
    assert repfuse.plan(pair.fused).report.regions == []


@torch.no_grad()
def test_every_stage_agrees_before_anything_is_chosen(pair: Detectors) -> None:
    model, fused = pair.model, pair.fused
    images, _ = model.transform(pair.images)
    features, own = model.backbone(images.tensors), fused.backbone(images.tensors)
    assert list(own) == list(features) == ["0", "1", "2", "3", "pool"]
    for name in features:
        outputs_equal(features[name], own[name])

    levels = list(features.values())
    objectness, deltas = model.rpn.head(levels)
    own_objectness, own_deltas = fused.rpn.head(list(own.values()))
    assert len(objectness) == len(deltas) == len(levels)
    for expected, found in zip(objectness + deltas, own_objectness + own_deltas, strict=True):
        outputs_equal(expected, found)

    proposals, _ = model.rpn(images, features)
    assert all(len(boxes) >= 10 for boxes in proposals)
    for expected, found in zip(
        second_half(model, features, proposals, images.image_sizes),
        second_half(fused, own, proposals, images.image_sizes),
        strict=True,
    ):
        outputs_equal(expected, found)


def second_half(
    model: FasterRCNN, features: dict[str, Tensor], proposals: list[Tensor], sizes: Any
) -> tuple[Tensor, Tensor]:
    """The class logits and box deltas of the proposals."""
    heads = model.roi_heads
    pooled = heads.box_roi_pool(features, proposals, sizes)
    logits, deltas = heads.box_predictor(heads.box_head(pooled))
    return logits, deltas


@torch.no_grad()
def test_the_detections_are_the_same(pair: Detectors) -> None:
    expected, found = pair.model(pair.images), pair.fused(pair.images)
    assert len(expected) == len(found) == len(pair.images)
    for detections, own in zip(expected, found, strict=True):
        scores = detections["scores"]
        assert len(scores) >= 1
        # Further apart than the error below, so that they have one order.
        assert (scores[:-1] - scores[1:] > 1e-6).all()
        assert torch.equal(detections["labels"], own["labels"])
        outputs_equal(scores, own["scores"])
        outputs_equal(detections["boxes"], own["boxes"])


def test_a_segmenter_has_no_batch_norm_left() -> None:
    model = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=5)
    randomize(model.double().eval())
    before = copy.deepcopy(model.state_dict())
    plan = repfuse.plan(model)
    fused = plan.apply()
    assert plan.report.errors == []
    assert plan.report.refusals == []
    assert len(plan.report.regions) == 60
    assert type(fused) is type(model)

    x = torch.randn(1, 3, 65, 65, dtype=torch.float64)
    unfused, counts = count_ops(model, x), count_ops(fused, x)
    assert (unfused.convs, unfused.batch_norms) == (61, 60)
    assert (counts.convs, counts.batch_norms, counts.bn_modules) == (61, 0, 0)
    assert counts.adds == unfused.adds
    assert_same(model, fused, x)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert repfuse.plan(fused).report.regions == []
