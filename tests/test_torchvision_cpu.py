"""The stand-ins for torchvision's compiled operators do what those do."""

import pytest
import torch
import torchvision

from tests.torchvision_cpu import nms


def test_nms_drops_what_a_better_box_overlaps() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 30], [9, 0, 19, 10.0]])
    scores = torch.tensor([0.5, 0.9, 0.1, 0.3])

    assert nms(boxes, scores, 0.9).tolist() == [1, 0, 3, 2]
    assert nms(boxes, scores, 0.5).tolist() == [1, 3, 2]
    assert nms(boxes, scores, 0.1).tolist() == [1, 2]


def test_a_dropped_box_drops_no_other() -> None:
    chain = torch.tensor([[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10.0]])

    assert nms(chain, torch.tensor([3.0, 2.0, 1.0]), 0.4).tolist() == [0, 2]


@pytest.mark.parametrize("boxes", [torch.zeros(0, 4), torch.zeros(2, 4)])
def test_empty_boxes_are_kept(boxes: torch.Tensor) -> None:
    assert nms(boxes, torch.ones(len(boxes)), 0.5).tolist() == list(range(len(boxes)))


def test_torchvision_uses_an_nms_that_agrees() -> None:
    corner = torch.rand(200, 2, dtype=torch.float64)
    boxes = torch.cat([corner, corner + torch.rand(200, 2, dtype=torch.float64)], dim=1)
    scores = torch.rand(200, dtype=torch.float64)

    kept = torchvision.ops.nms(boxes, scores, 0.3)

    assert 1 < len(kept) < 200
    assert kept.tolist() == nms(boxes, scores, 0.3).tolist()


def test_a_detector_runs() -> None:
    model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, rpn_post_nms_top_n_test=20, box_score_thresh=0.0
    )

    with torch.no_grad():
        [found] = model.eval()([torch.rand(3, 64, 96)])

    assert 0 < len(found["boxes"]) == len(found["scores"])
