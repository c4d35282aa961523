"""What docs/refusals.md tells a user to change: whoever does so gets the merge."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn

import repfuse
from docs.make_refusals import text


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(8, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x)  # type: ignore[no-any-return]


class CountsAround(nn.Module):
    """changes-attributes: the counter is in the module around the branches."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.calls = Branches(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.part(x)  # type: ignore[no-any-return]


class Draws(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part: nn.Module = Branches()

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x) * (1.0 + 0.0 * random.random())  # type: ignore[no-any-return]


class Transposed(nn.Module):
    """batch-norm-axis: the channels are on axis 1 around the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x).transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]


class Flattened(nn.Module):
    """batch-norm-axis: flattened, where a conv says how many axes there are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)
        self.linear, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(self.conv(x).relu().flatten(2).transpose(1, 2))
        return self.norm(y.flatten(0, 1)).reshape_as(y)  # type: ignore[no-any-return]


IMAGE, TOKENS = (3, 8, 7, 9), (3, 5, 8)
FOLLOWED = [(CountsAround, IMAGE), (Transposed, TOKENS), (Flattened, IMAGE)]


@pytest.mark.parametrize(
    ("kind", "shape"), FOLLOWED, ids=lambda given: getattr(given, "__name__", "")
)
def test_who_follows_the_advice_gets_the_merge(
    kind: type[nn.Module], shape: tuple[int, ...]
) -> None:
    model = kind().double().eval()
    plan = repfuse.plan(model)
    assert len(plan.report.regions) == 1, str(plan)
    assert not plan.report.refusals, str(plan)
    repfuse.assert_equivalent(model, plan.apply(), torch.randn(shape, dtype=torch.double))


def test_the_part_beside_random_numbers_can_be_fused_by_itself() -> None:
    model = Draws().double().eval()
    assert not repfuse.plan(model).report.regions
    x = torch.randn(IMAGE, dtype=torch.double)
    before = model(x)
    assert len(repfuse.plan(model.part).report.regions) == 1
    model.part = repfuse.fuse(model.part)
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)


def test_every_sentence_has_a_place() -> None:
    assert "()" not in {line.rsplit(" ", 1)[-1] for line in text().splitlines()}
