"""Real timm networks: how many operators remain, and that the answer is the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import repfuse
from tests.models.zoo import build, equal, image, outputs_equal

NORM = nn.modules.batchnorm._BatchNorm
CONV = nn.modules.conv._ConvNd

# name: (image size, convs before, BNs before, convs after, BNs after, own class kept)
# forward_intermediates of the ghostnets may return what the first conv gives, which therefore stays
# as it is.
NETWORKS = {
    "repvgg_a0": (64, 44, 61, 22, 0),
    "mobileone_s0": (64, 191, 226, 43, 0),
    "fastvit_t8": (64, 68, 70, 52, 0),
    "repvit_m0_9": (64, 126, 108, 103, 0),
    "ghostnetv3_050": (64, 309, 326, 137, 1),
    "lcnetv2_small": (64, 46, 37, 36, 0),
    "repghostnet_050": (64, 95, 112, 95, 1),
    "iformer_t": (224, 74, 75, 74, 0),
    "shvit_s1": (224, 77, 74, 77, 0),
    "efficientvim_m1": (224, 66, 38, 66, 0),
    "resnet18": (64, 20, 20, 20, 0),
    "densenet121": (64, 120, 121, 120, 62),
    "mobilenetv3_small_050": (64, 53, 34, 53, 0),
    "regnetx_002": (64, 44, 44, 44, 0),
    "inception_v3": (128, 94, 94, 94, 0),
    "hrnet_w18_small": (64, 91, 91, 91, 0),
    "convmixer_768_32": (28, 65, 65, 65, 65),
    "vit_tiny_patch16_224": (224, 1, 0, 1, 0),
    "tiny_vit_5m_224": (224, 27, 27, 27, 0),
    "efficientvit_m0": (224, 116, 113, 116, 0),
    "mobilevit_xxs": (64, 35, 32, 35, 0),
}


def count(model: nn.Module, kind: type) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_counts_and_equality(name: str) -> None:
    size, convs, norms, convs_after, norms_after = NETWORKS[name]
    model = build(name)
    assert (count(model, CONV), count(model, NORM)) == (convs, norms)
    before = copy.deepcopy(model.state_dict())

    plan = repfuse.plan(model)
    fused = plan.apply()

    assert plan.report.errors == []
    assert (count(fused, CONV), count(fused, NORM)) == (convs_after, norms_after)
    assert isinstance(fused, type(model))
    equal(model, fused, image(size))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert repfuse.plan(fused).report.regions == []
    for refusal in plan.report.refusals:
        assert refusal.reason
    named = {refusal.where.removesuffix(".batch_norm") for refusal in plan.report.refusals}
    if norms_after:
        assert len(named) >= norms_after


@pytest.mark.parametrize("name", ["repvgg_a0", "fastvit_t8", "densenet121"])
def test_parts_of_the_model_work_by_themselves(name: str) -> None:
    model, x = build(name), image(64)
    fused = repfuse.fuse(model)
    assert type(fused) is type(model)
    with torch.no_grad():
        features, fused_features = model.forward_features(x), fused.forward_features(x)  # type: ignore[operator]
        outputs_equal(features, fused_features)
        outputs_equal(model.forward_head(features), fused.forward_head(fused_features))  # type: ignore[operator]
    assert type(fused.get_classifier()) is type(model.get_classifier())  # type: ignore[operator]


@pytest.mark.parametrize("name", ["repvgg_a0", "repghostnet_050"])
def test_the_plan_needs_no_weights(name: str) -> None:
    import timm

    with torch.device("meta"):
        hollow = timm.create_model(name).eval()
    assert repfuse.plan(hollow).report.to_dict() == repfuse.plan(build(name)).report.to_dict()


def test_a_fused_state_dict_loads_into_a_fused_model() -> None:
    import timm

    model = build("repvgg_a0")
    fused = repfuse.fuse(model)
    with torch.device("meta"):
        hollow = timm.create_model("repvgg_a0").eval()
    again = repfuse.fuse(hollow)
    again.load_state_dict(fused.state_dict(), assign=True)
    equal(fused, again, image(64), bound=0.0)
