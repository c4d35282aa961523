"""The constructors of each zoo: their names, how one is built, and an input that suits it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from tests.sweep.counts import on_meta

__all__ = ["FAMILIES", "Subject", "build", "names"]

SMALL = 64
SEED = 1


@dataclass(frozen=True)
class Subject:
    """A model, its inputs, and what to compare where that is not simply what it returns."""

    model: nn.Module
    inputs: tuple[Any, ...]
    home: str  # the file of the zoo that it comes from
    call: Callable[..., Any] | None = None


def names(family: str) -> list[str]:
    """All constructors, in the zoo's own order."""
    if family == "timm":
        return list(timm.list_models())
    return list(torchvision.models.list_models())


def build(family: str, name: str) -> Any:
    """The model, with random weights."""
    if family == "timm":
        return timm.create_model(name, pretrained=False)
    home = _home(name)
    options: dict[str, Any] = {"weights": None}
    if home.startswith(("detection.", "segmentation.")):
        options |= {"weights_backbone": None}
    if home.startswith("detection.") and "ssd" not in name:
        options |= {"min_size": 96, "max_size": 128}
    if home.rpartition(".")[2] in ("inception", "googlenet"):
        options |= {"init_weights": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torchvision.models.get_model_builder(name)(**options)


def _home(name: str) -> str:
    """The file of torchvision that a constructor comes from."""
    builder = torchvision.models.get_model_builder(name)
    return str(builder.__module__).removeprefix("torchvision.models.")


def _timm(name: str) -> Subject:
    model = build("timm", name)
    channels, *size = model.default_cfg.get("input_size", (3, 224, 224))
    home = type(model).__module__.rpartition(".")[2]
    for height, width in ((SMALL, SMALL), tuple(size)):
        inputs = _images(2 if height == SMALL else 1, channels, height, width)
        if (height, width) == tuple(size) or _runs(model, inputs):
            break
    return Subject(model, inputs, home)


def _torchvision(name: str) -> Subject:
    model, home = build("torchvision", name), _home(name)
    kind, _, _ = home.partition(".")
    if kind == "detection":
        return Subject(model, ([image[0] for image in _images(1, 3, 96, 128)],), home, _stages)
    if kind == "optical_flow":
        images = (*_images(1, 3, 128, 128), *_images(1, 3, 128, 128, seed=2))
        return Subject(model, images, home, _flow_stages)
    sizes = [(8, SMALL, SMALL), (16, 224, 224)] if kind == "video" else [(SMALL,) * 2, (224,) * 2]
    for size in (*sizes, (299, 299)):
        inputs = _images(2 if size[-1] == SMALL else 1, 3, *size)
        if _runs(model, inputs):
            break
    return Subject(model, inputs, home)


FAMILIES: dict[str, Callable[[str], Subject]] = {"timm": _timm, "torchvision": _torchvision}


def _images(batch: int, *shape: int, seed: int = SEED) -> tuple[Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return (torch.randn(batch, *shape, generator=noise, dtype=torch.float64),)


def _runs(model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether the model takes inputs of that size; nothing is computed."""
    try:
        on_meta(model, inputs)
    except Exception:
        return False
    return True


def _flow_stages(model: Any, first: Tensor, second: Tensor) -> Any:
    """The networks of RAFT one by one; between them it computes in float32 whatever it is given."""
    features = model.feature_encoder(torch.cat([first, second]))
    context = model.context_encoder(first)
    size = model.update_block.hidden_state_size
    hidden, rest = context.split([size, context.shape[1] - size], dim=1)
    noise = torch.Generator().manual_seed(SEED)
    shape = (1, model.corr_block.out_channels, *context.shape[2:])
    matches = torch.randn(shape, generator=noise, dtype=torch.float64)
    flow = torch.randn(1, 2, *context.shape[2:], generator=noise, dtype=torch.float64)
    hidden, change = model.update_block(hidden.tanh(), rest.relu(), matches, flow)
    mask = model.mask_predictor(hidden) if model.mask_predictor is not None else change
    return features, context, hidden, change, mask


def _stages(model: Any, images: list[Tensor]) -> Any:
    """A detector up to where it chooses boxes: a choice is no function that can be compared."""
    batch, _ = model.transform(images)
    features = model.backbone(batch.tensors)
    levels = [features] if isinstance(features, Tensor) else list(features.values())
    if not hasattr(model, "rpn"):
        return levels, model.head(levels)
    boxes = torch.tensor([[4.0, 4.0, 60.0, 50.0], [10.0, 20.0, 90.0, 80.0]], dtype=torch.float64)
    heads, shapes = model.roi_heads, batch.image_sizes
    found = [levels, model.rpn.head(levels)]
    named = features if isinstance(features, dict) else {"0": features}
    found.append(heads.box_predictor(heads.box_head(heads.box_roi_pool(named, [boxes], shapes))))
    for part in ("mask", "keypoint"):
        if getattr(heads, f"{part}_roi_pool", None) is not None:
            pooled = getattr(heads, f"{part}_roi_pool")(named, [boxes], shapes)
            head, predictor = getattr(heads, f"{part}_head"), getattr(heads, f"{part}_predictor")
            found.append(predictor(head(pooled)))
    return found
