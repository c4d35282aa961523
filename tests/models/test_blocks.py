"""Every published block, on both frontends: its fewest operators, and the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from docs import make_support
from tests.models.blocks import FRONTENDS, Block, Case, cases
from tests.models.measure import Measured, measure, operators

CASES = list(cases())
COMMITTED = make_support.cells_of(make_support.PAGE)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("frontend", FRONTENDS)
def test_a_block_has_its_fewest_operators(case: Case, frontend: str) -> None:
    found = measure(case, frontend)
    assert found.after == case.expected(frontend), found
    assert found.error <= 1e-10
    cells = COMMITTED[str(case)]
    counts, _, bound = cells[FRONTENDS.index(frontend)].partition(", < ")
    assert make_support.cell(found).startswith(f"{counts},"), "run: python -m docs.make_support"
    assert passes_of(cells[-1], frontend) == found.passes, "run: python -m docs.make_support"
    assert found.error < float(bound)
    gap = case.block.gaps.get((case.option, frontend))
    if gap is not None:
        assert gap.reaches > case.smallest(frontend), "this is no gap any more"
        assert gap.reason in found.reasons


def passes_of(cell: str, frontend: str) -> tuple[str, ...]:
    """The passes that the page names for a frontend."""
    by_frontend = dict(part.split(": ") for part in cell.split("; ")) if ": " in cell else {}
    names = by_frontend.get(frontend, cell)
    return () if names == "none" else tuple(names.split(", "))


def test_the_page_has_every_block_and_no_other() -> None:
    assert list(COMMITTED) == [str(case) for case in CASES]


def test_every_block_has_three_sizes_one_sample_and_several() -> None:
    for case in CASES:
        assert len(set(case.block.sizes)) >= 3
        assert set(case.block.gaps) <= {(o, f) for o in case.block.options for f in FRONTENDS}


def test_the_count_tells_a_branch_from_none() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)).eval()
    assert operators(model, torch.randn(1, 3, 5, 5)) == 2
    assert operators(model[0], torch.randn(1, 3, 5, 5)) == 1


class Broken(nn.Module):
    """An activation between two convs."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.convs(x)
        return result


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_a_block_that_cannot_be_one_operator_is_not(frontend: str) -> None:
    found: Measured = measure(Case("broken", "", Block(Broken)), frontend)
    assert (found.before, found.after) == (3, 3)
