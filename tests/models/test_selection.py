"""What the cost model must choose."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import repfuse
from repfuse.frontends.torch import Plan
from tests.numerics import assert_same, randomize


class Apply(nn.Module):
    """A module whose forward is one of the small graphs below."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


class LowRank(Apply):
    def forward(self: Any, x: Tensor) -> Tensor:
        total: Tensor = self.w(x) + self.b(self.a(x))
        return total


class Shared(Apply):
    def forward(self: Any, x: Tensor) -> list[Tensor]:
        low = self.a(x)
        q, k, v = self.q(x) + self.bq(low), self.k(x) + self.bk(low), self.v(x) + self.bv(low)
        return [torch.relu(q), k, v]


class Partial(Apply):
    def forward(self: Any, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return torch.relu(torch.cat([self.conv(x[:, :16]), x[:, 16:]], 1))


class ThreeBranches(Apply):
    def forward(self: Any, x: Tensor) -> Tensor:
        return torch.relu(self.dw3(x) + self.pw(x) + self.dw5(x))


class Sliced(Apply):
    """Equal branches on the halves of the channels."""

    def forward(self: Any, x: Tensor) -> Tensor:
        left, right = x[:, :8], x[:, 8:]
        return torch.cat([self.conv1(left) + self.skip(left), self.norm(self.conv2(right))], 1)


def layers(model: nn.Module) -> list[str]:
    return [str(m) for m in model.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]


def check(model: nn.Module, x: Tensor) -> tuple[Plan, nn.Module]:
    randomize(model.double().eval())
    plan = repfuse.plan(model)
    fused = plan.apply()
    assert plan.report.errors == []
    assert_same(model, fused, x.double())
    return plan, fused


def test_a_low_rank_update_becomes_one_linear() -> None:
    model = LowRank(w=nn.Linear(64, 64), a=nn.Linear(64, 4, bias=False), b=nn.Linear(4, 64))
    _, fused = check(model, torch.randn(3, 5, 64))
    assert layers(fused) == ["Linear(in_features=64, out_features=64, bias=True)"]


def test_three_linears_share_a_low_rank_factor() -> None:
    wide = {name: nn.Linear(64, 64) for name in ("q", "k", "v")}
    thin = {name: nn.Linear(4, 64, bias=False) for name in ("bq", "bk", "bv")}
    _, fused = check(Shared(a=nn.Linear(64, 4, bias=False), **wide, **thin), torch.randn(3, 5, 64))
    assert layers(fused) == ["Linear(in_features=64, out_features=64, bias=True)"] * 3


def test_a_thin_product_is_kept() -> None:
    sizes = [(256, 256), (256, 4), (4, 256)]
    _, fused = check(nn.Sequential(*(nn.Linear(*size) for size in sizes)), torch.randn(3, 256))
    kept = [m.weight.shape for m in fused.modules() if isinstance(m, nn.Linear)]
    assert kept == [(4, 256), (256, 4)]


def test_a_partial_conv_stays() -> None:
    model = Partial(stem=nn.Conv2d(3, 64, 1), conv=nn.Conv2d(16, 16, 3, padding=1))
    plan, fused = check(model, torch.randn(2, 3, 9, 9))
    assert plan.report.regions == []
    assert any("times the MACs" in kept.reason for kept in plan.report.kept)
    assert len(layers(fused)) == 2


def test_depthwise_then_pointwise_stays() -> None:
    depthwise = nn.Conv2d(32, 32, 7, padding=3, groups=32)
    plan, fused = check(nn.Sequential(depthwise, nn.Conv2d(32, 32, 1)), torch.randn(2, 32, 9, 9))
    assert plan.report.regions == []
    assert "times the MACs" in plan.report.kept[0].reason
    assert len(layers(fused)) == 2


def test_depthwise_branches_merge_beside_a_pointwise_one() -> None:
    model = ThreeBranches(
        dw3=nn.Conv2d(64, 64, 3, padding=1, groups=64),
        pw=nn.Conv2d(64, 64, 1),
        dw5=nn.Conv2d(64, 64, 5, padding=2, groups=64),
    )
    _, fused = check(model, torch.randn(2, 64, 9, 9))
    found = [m for m in fused.modules() if isinstance(m, nn.Conv2d)]
    assert sorted((m.kernel_size, m.groups) for m in found) == [((1, 1), 1), ((5, 5), 64)]


def test_equal_convs_on_slices_become_groups() -> None:
    model = Sliced(
        conv1=nn.Conv2d(8, 12, 3, padding=1),
        skip=nn.Conv2d(8, 12, 1),
        conv2=nn.Conv2d(8, 12, 3, padding=1),
        norm=nn.BatchNorm2d(12),
    )
    _, fused = check(model, torch.randn(2, 16, 9, 7))
    (conv,) = [m for m in fused.modules() if isinstance(m, nn.Conv2d)]
    assert (conv.in_channels, conv.out_channels, conv.groups) == (16, 24, 2)


class TwoSources(nn.Module):
    """Two branches of stride 2 on one input, two of stride 1 on another, smaller one."""

    def __init__(self) -> None:
        super().__init__()
        self.down3, self.down1 = nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(4, 8, 1, 2)
        self.same3, self.same1 = nn.Conv2d(6, 8, 3, 1, 1), nn.Conv2d(6, 8, 1)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        x, z = x.relu(), z.relu()
        total: Tensor = self.down3(x) + self.down1(x) + self.same3(z) + self.same1(z)
        return total


def test_a_sum_of_sources_of_other_sizes_merges_by_source() -> None:
    model = randomize(TwoSources().double().eval())
    plan = repfuse.plan(model)
    fused = plan.apply()
    assert plan.report.errors == []
    images = torch.randn(2, 4, 9, 7).double(), torch.randn(2, 6, 5, 4).double()
    assert_same(model, fused, *images)
    assert len(layers(fused)) == 2


def test_a_long_chain_of_pointwise_convs_is_one() -> None:
    chain = nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(50)))
    _, fused = check(chain, torch.randn(2, 4, 3, 5))
    assert len(layers(fused)) == 1
