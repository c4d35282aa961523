"""The default target raises MACs no further than it says, on published blocks and networks."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

import repfuse
from repfuse.cost import ALLOWANCE, MARGIN
from repfuse.report import Report
from tests.models.blocks import FRONTENDS, Block, Case, cases
from tests.models.branches import RepSPK
from tests.models.measure import exported, images
from tests.models.test_timm import NETWORKS

EXACTLY = 1 + 1e-9


def check(report: Report) -> None:
    before, after = (
        sum(getattr(region, name) for region in report.regions)
        for name in ("price_before", "price_after")
    )
    assert after < before or not report.regions
    for region in report.regions:
        before, after = region.cost_before.macs, region.cost_after.macs
        # What several regions share (a norm's scale and shift) is counted in the first one's row.
        assert region.price_after <= region.price_before, region
        if after > before * EXACTLY:
            assert after <= ALLOWANCE * before * EXACTLY, region
            assert region.price_after <= (1 - MARGIN) * region.price_before, region


@pytest.mark.parametrize("case", list(cases()), ids=str)
@pytest.mark.parametrize("frontend", FRONTENDS)
def test_a_block_keeps_to_the_allowance(case: Case, frontend: str) -> None:
    """Also a block that is merged wholly for the fewest operators only."""
    x = next(images(case)).float()
    model: Any = case.build().eval()
    check(
        repfuse.plan(
            model if frontend == "module" else exported(model, x, case.block.export)
        ).report
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_no_network_has_more_macs(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    report = repfuse.plan(model).report
    check(report)
    assert report.cost_after.macs <= report.cost_before.macs * EXACTLY


def test_a_merge_beyond_the_allowance_is_found() -> None:
    """The check sees one that was made for another target."""
    model = Case("RepSPK", "", Block(RepSPK)).build().eval()
    report = repfuse.plan(model, target="min-ops").report
    assert report.cost_after.macs > report.cost_before.macs
    with pytest.raises(AssertionError):
        check(repfuse.plan(_Wide().eval(), target="min-ops").report)


class _Wide(torch.nn.Sequential):
    """A depthwise and a pointwise conv: one dense conv has 8.6 times the MACs."""

    def __init__(self) -> None:
        depthwise = torch.nn.Conv2d(64, 64, 3, groups=64)
        super().__init__(depthwise, torch.nn.Conv2d(64, 64, 1))
