"""Let the CUDA build of torchvision work beside a CPU build of torch.

Importing this module imports torchvision. The compiled operators of torchvision's CUDA wheel do not
load without CUDA libraries, and then `import torchvision` (and with it `import timm`) raises that
the operator torchvision::nms does not exist. In that case, and in no other, nms is defined here,
and RoI align is torchvision's own Python form.
"""

import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec

import torch


def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """The indices of the boxes that overlap no kept box of a higher score, best score first.

    boxes is (N, 4) as x1, y1, x2, y2 and scores is (N,); to overlap is an IoU above the threshold.
    """
    order = scores.argsort(descending=True, stable=True)
    low, high = boxes[order].split(2, dim=1)
    area = (high - low).prod(dim=1)
    extent = torch.minimum(high[:, None], high) - torch.maximum(low[:, None], low)
    shared = extent.clamp(min=0).prod(dim=2)
    overlaps = shared / (area[:, None] + area - shared) > iou_threshold

    kept = torch.ones(len(order), dtype=torch.bool)
    for best in range(len(order)):
        if kept[best]:
            kept[best + 1 :] &= ~overlaps[best, best + 1 :]
    return order[kept]


def _compiled_operators_load() -> bool:
    package = find_spec("torchvision")
    assert package is not None, "torchvision is missing: it comes with the extra `test`"
    extension = PathFinder.find_spec("torchvision._C", package.submodule_search_locations)
    if extension is None or extension.origin is None:
        return False
    try:
        torch.ops.load_library(extension.origin)
    except OSError:
        return False
    return True


NATIVE = _compiled_operators_load()
if not NATIVE:
    # Kept in a name: the operators disappear with their library.
    _library = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):  # qnms, for quantized boxes, only has to exist
        _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.impl("nms", nms, "CPU")

import torchvision  # noqa: E402  (it needs the operators)

if not NATIVE:
    torchvision.extension._has_ops = lambda: True
    # torchvision compiles its Python form at the first call, which takes most of a minute.
    _roi_align = vars(sys.modules["torchvision.ops.roi_align"])
    _roi_align["_roi_align"] = _roi_align["_roi_align"].__wrapped__
