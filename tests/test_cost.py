"""The cost model: what an operator costs, what targets choose, how far MACs may rise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import repfuse
from repfuse.areas import batch_of, input_area
from repfuse.arrays import Array
from repfuse.cost import (
    ALLOWANCE,
    MARGIN,
    TARGETS,
    VECTOR,
    Cost,
    Target,
    cost_of,
    target_named,
)
from repfuse.errors import RepfuseError
from repfuse.graph import Concat, Sum
from repfuse.operators import Conv, Pool
from repfuse.report import Report

RUNTIMES = tuple(TARGETS)


def conv(inputs: int, outputs: int, size: int = 3, groups: int = 1, **settings: Any) -> Conv:
    weight = Array.full((outputs, inputs // groups, size, size), 1.0)
    padding = ((size // 2,) * 2,) * 2
    return Conv(weight, Array.full((outputs,), 0.0), (1, 1), padding, (1, 1), groups, **settings)


def test_the_cost_of_a_conv_is_what_one_computes_by_hand() -> None:
    cost = cost_of(conv(32, 64), 100.0, ())
    assert cost.macs == 64 * 32 * 9 * 100
    assert cost.elements == (32 + 64) * 100 + 64 * 32 * 9
    assert (cost.parameters, cost.launches, cost.idle_macs) == (64 * 32 * 9, 1, 0)


@pytest.mark.parametrize(("outputs", "lanes"), [(1, 16), (8, 16), (16, 16), (17, 32), (48, 48)])
def test_lanes_without_a_channel_idle(outputs: int, lanes: int) -> None:
    assert VECTOR == 16
    cost = cost_of(conv(4, outputs), 10.0, ())
    assert cost.macs + cost.idle_macs == pytest.approx(lanes * 4 * 9 * 10)


def test_a_group_idles_by_itself_and_a_depthwise_conv_as_a_whole() -> None:
    grouped, depthwise = cost_of(conv(32, 32, groups=4), 1, ()), cost_of(conv(32, 32, 3, 32), 1, ())
    assert (grouped.idle_macs, grouped.depthwise_macs) == (grouped.macs, 0)
    assert (depthwise.idle_macs, depthwise.depthwise_macs) == (0, depthwise.macs)
    assert cost_of(conv(4, 4, 3, 4), 1, ()).idle_macs == 3 * 4 * 9


def test_sums_read_two_and_write_one_at_a_time() -> None:
    assert cost_of(Sum(), 10.0, (4, 4)) == Cost(elements=3 * 40, launches=1)
    assert cost_of(Sum(), 10.0, (4, 4, 4)) == Cost(elements=2 * 3 * 40, launches=2)
    assert cost_of(Concat(), 10.0, (4, 8)) == Cost(elements=2 * 120, launches=1)


def test_a_pooling_is_an_operation_like_others() -> None:
    cost = cost_of(Pool(8, (2, 2), (2, 2), ((0, 0), (0, 0))), 100.0, ())
    assert (cost.macs, cost.elements, cost.launches) == (8 * 4 * 25, 8 * 125, 1)


def test_transposed_convs_and_borders_have_their_price() -> None:
    plain, turned = (cost_of(conv(16, 16, transposed=flag), 9.0, ()) for flag in (False, True))
    assert (plain.transposed_macs, turned.transposed_macs) == (0, turned.macs)
    assert cost_of(conv(16, 16, border="reflect"), 9.0, ()).launches == 2
    for runtime in RUNTIMES:
        target = target_named("cpu", runtime)
        assert target.price(turned) > target.price(plain)


def test_a_target_that_is_none_is_named_with_those_that_are() -> None:
    with pytest.raises(RepfuseError) as caught:
        target_named("fast")
    assert str(caught.value) == (
        "there is no target 'fast': choose one of cpu, gpu, min-macs, min-ops, measured"
    )
    for verb in (repfuse.fuse, repfuse.plan):
        with pytest.raises(RepfuseError, match="there is no target 'CPU'"):
            verb(nn.Identity(), target="CPU")
    wrong: Any
    for wrong in (None, ["cpu"], {"cpu"}, 3):
        with pytest.raises(RepfuseError, match="there is no target"):
            repfuse.plan(nn.Identity(), target=wrong)


def test_both_runtimes_have_the_same_targets() -> None:
    assert set(TARGETS["torch"]) == set(TARGETS["onnx"])
    assert target_named("measured", "onnx") == target_named("cpu", "onnx")


def test_macs_rise_only_for_a_price_that_falls_by_the_margin() -> None:
    target = target_named("cpu")
    just = 1 - MARGIN
    assert target.allows(True, (100.0, 10.0), (99.9, 10.0))
    assert target.allows(True, (100.0, 10.0), (100 * just, 10.0 * ALLOWANCE))
    assert not target.allows(True, (100.0, 10.0), (100 * just + 0.1, 11.0))
    assert not target.allows(True, (100.0, 10.0), (1.0, 10.1 * ALLOWANCE))
    assert not target.allows(False, (100.0, 10.0), (1.0, 10.1))
    assert target_named("min-ops").allows(False, (100.0, 10.0), (99.0, 1e9))
    assert not target_named("min-macs").allows(True, (100.0, 10.0), (1.0, 10.1))


class Branches(nn.Module):
    """A depthwise 3x3 beside a pointwise conv."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dw = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.pw = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.dw(x) + self.pw(x))


class Series(nn.Sequential):
    """A conv to few channels and one back."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__(nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1), nn.ReLU())


CHOICES: list[tuple[nn.Module, tuple[int, ...], dict[str, int]]] = [
    # few channels and positions: launches count; 5.8 times the MACs
    (Branches(16), (1, 16, 14, 14), {"cpu": 1, "gpu": 1, "min-macs": 2, "min-ops": 1}),
    # as many positions as an image: MACs count on a CPU, memory on a GPU
    (Branches(16), (1, 16, 224, 224), {"cpu": 2, "gpu": 1, "min-macs": 2, "min-ops": 1}),
    # 9.1 times the MACs
    (Branches(8 * 16), (1, 128, 7, 7), {"cpu": 2, "gpu": 2, "min-macs": 2, "min-ops": 1}),
    # a thin product has fewer MACs than the conv that it is
    (Series(32, 8), (1, 32, 7, 7), {"cpu": 2, "gpu": 2, "min-macs": 2, "min-ops": 1}),
    (Series(32, 24), (1, 32, 7, 7), dict.fromkeys(("cpu", "gpu", "min-macs", "min-ops"), 1)),
]


@pytest.mark.parametrize("row", range(len(CHOICES)))
@pytest.mark.parametrize("target", ["cpu", "gpu", "min-macs", "min-ops"])
def test_targets_choose_differently(row: int, target: str) -> None:
    model, shape, convs = CHOICES[row]
    fused = repfuse.fuse(model.eval(), target=target, shapes=shape)
    assert sum(isinstance(one, nn.Conv2d) for one in fused.modules()) == convs[target]


class Depthwise(nn.Module):
    """Depthwise convs beside a pointwise one: one dense conv is quicker where launches count."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.thin = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, groups=8) for _ in range(count))
        self.dense = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        total = self.dense(x)
        for conv in self.thin:
            total = total + conv(x)
        return torch.relu(total)


@pytest.mark.parametrize("count", [2, 4, 7])
def test_what_raises_no_macs_merges_where_the_cheapest_way_would_raise_them(count: int) -> None:
    model = Depthwise(count).eval()
    fused = repfuse.fuse(model, target="min-macs", shapes=(1, 8, 10, 10))
    kinds = [one.groups for one in fused.modules() if isinstance(one, nn.Conv2d)]
    assert sorted(kinds) == [1, 8]
    repfuse.assert_equivalent(model, fused, torch.randn(2, 8, 7, 9))


class Shared(nn.Module):
    """One conv for several readers: each could take it in, and would compute it for itself."""

    def __init__(self, groups: int, ends: int) -> None:
        super().__init__()
        self.shared = nn.Conv2d(8, 8, 3, padding=1, groups=groups)
        self.ends = nn.ModuleList(nn.Conv2d(8, 8, 1, groups=groups) for _ in range(ends))
        self.beside = nn.Conv2d(8, 8, 3, padding=1, groups=groups)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        shared, beside = self.shared(x), self.beside(x)
        return tuple(torch.relu(end(shared) + beside) for end in self.ends)


@pytest.mark.parametrize("target", ["cpu", "gpu", "min-macs"])
@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("ends", [2, 3, 12])
def test_what_readers_share_counts_once_when_macs_rise(target: str, groups: int, ends: int) -> None:
    model = Shared(groups, ends).eval()
    fused = repfuse.fuse(model, target=target, shapes=(1, 8, 10, 10))
    x = torch.randn(1, 8, 10, 10)
    limit = 1.0 if target == "min-macs" else ALLOWANCE
    assert flops(fused, x) <= limit * flops(model, x)
    for mine, theirs in zip(model(x), fused(x), strict=True):
        torch.testing.assert_close(mine, theirs)


def flops(model: nn.Module, x: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return int(counter.get_total_flops())


def test_given_shapes_tell_the_costs() -> None:
    def macs(shapes: Any) -> tuple[float, str]:
        report: Report = repfuse.plan(Series(32, 24).eval(), shapes=shapes).report
        return report.cost_after.macs, report.basis

    assert macs(None) == (1024 * 224 * 224, "for a 224 x 224 image")
    assert macs((2, 32, 7, 5)) == (1024 * 70, "for an input of 2 x 32 x 7 x 5")
    assert macs({"input": (1, 32, 7, 5)}) == (1024 * 35, "for an input of input 1 x 32 x 7 x 5")
    unused = "for a 224 x 224 image; not used: 2 x 3 x 7 x 5"
    assert macs((2, 3, 7, 5)) == (1024 * 224 * 224, unused)  # it fits no input
    assert macs({"": (2, 32, 7, 5)}) == (1024 * 70, "for an input of 2 x 32 x 7 x 5")
    assert macs(np.zeros((2, 32, 7, 5)).shape)[0] == macs(np.array((2, 32, 7, 5)).tolist())[0]
    assert macs([np.int64(2), np.int32(32), 7, 5]) == macs((2, 32, 7, 5))


def test_a_shape_of_an_input_that_is_none_is_an_error() -> None:
    with pytest.raises(RepfuseError) as caught:
        repfuse.fuse(Series(32, 24).eval(), shapes={"image": (1, 32, 7, 7)})
    assert str(caught.value) == "Series has no input 'image': its inputs are 'input'"


class Loop(nn.Module):
    """The name of the input of what is traced is another one than its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Series(32, 24)

    def forward(self, image: Tensor) -> Tensor:
        return self.body(image) if image.sum() > 0 else image


class Anything(nn.Module):
    """Nobody knows what the names of its inputs are."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Series(32, 24)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.body(*args, **kwargs)


def test_a_name_that_may_be_an_input_is_none_to_complain_about() -> None:
    for name in ("image", "input"):
        repfuse.plan(Loop().eval(), shapes={name: (1, 32, 7, 7)})
    repfuse.plan(Anything().eval(), shapes={"image": (1, 32, 7, 7)})


@pytest.mark.parametrize("wrong", [[[0.5] * 9] * 9, {1: (1, 2)}, torch.zeros(1, 3, 9, 9)])
def test_what_is_far_from_a_shape_is_named_in_one_line(wrong: Any) -> None:
    with pytest.raises(RepfuseError) as caught:
        repfuse.plan(nn.Identity(), shapes=wrong)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "wrong",
    [
        *((1, 3, 0), (1, 2.5), "1x3", 224, {"x": (1, -1)}, {"x": 3}),
        *("", b"abcd", (True, 3, 9, 9), (1, 3, None, None), {"x": "ab"}, (3, 2**62), [(1, 3)]),
    ],
)
def test_a_shape_that_is_none_is_an_error(wrong: Any) -> None:
    given = wrong["x"] if isinstance(wrong, dict) else wrong
    with pytest.raises(RepfuseError) as caught:
        repfuse.plan(nn.Identity(), shapes=wrong)
    assert str(caught.value) == (
        "shapes are whole numbers above 0, as (1, 3, 224, 224), or a dict of such by the names of "
        f"the inputs, not {given!r}"
    )


def test_areas_of_inputs() -> None:
    shapes = {"image": (2, 3, 4, 5), "tokens": (2, 7, 16)}
    assert input_area("image", 3, 2, shapes) == 40
    assert input_area("tokens", 16, 0, shapes) == 14
    assert input_area("other", 3, 2, shapes) is None
    assert input_area("any", 3, 2, {"": (1, 3, 4, 5)}) == 20
    assert batch_of(shapes) == 2
    assert batch_of({"boxes": (300, 5), **shapes}) == 2
    assert batch_of(()) == batch_of({}) == 1


def test_what_is_left_is_priced_for_the_target_that_was_asked_for() -> None:
    """A depthwise 7x7 and a pointwise conv: the launch that a merge saves weighs more on a GPU."""
    channels = 32
    model = nn.Sequential(
        nn.Conv2d(channels, channels, 7, padding=3, groups=channels),
        nn.Conv2d(channels, channels, 1),
    ).eval()
    reasons = {}
    for target in ("cpu", "gpu"):
        (kept,) = repfuse.plan(model, target=target, shapes=(1, channels, 9, 9)).report.kept
        head, times, price = kept.reason.rpartition(" times the MACs, ")
        assert times
        assert head.endswith(": 19.4")
        reasons[target] = float(price.removesuffix(" times the price"))
    assert reasons["gpu"] < reasons["cpu"]


def test_a_report_says_what_each_region_saves() -> None:
    report = repfuse.plan(Series(32, 24).eval(), shapes=(1, 32, 7, 7)).report
    (region,) = report.regions
    target = target_named("cpu")
    assert region.price_before == target.price(region.cost_before)
    assert region.price_after == target.price(region.cost_after)
    saved = f"{1 - region.price_after / region.price_before:.0%}"
    assert f" {saved} │" in str(report)
    assert f"{saved} of the price for 'cpu' saved" in " ".join(str(report).split())
    assert "2 -> 1" in str(report)
    assert "ms" not in str(report).split("Merged")[0]


def test_prices_are_monotone() -> None:
    """More of anything never costs less, for every target."""
    for targets in TARGETS.values():
        for target in targets.values():
            assert isinstance(target, Target)
            for cost in (Cost(macs=1), Cost(elements=1), Cost(launches=1), Cost(idle_macs=1)):
                assert target.price(cost) > 0
            assert target.price(Cost(macs=1, depthwise_macs=1)) >= target.price(Cost(macs=1))
