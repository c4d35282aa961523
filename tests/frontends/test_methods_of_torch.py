"""What torch calls of every module works afterwards; what only lists layers costs no merges."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import repfuse
from tests.frontends import conv
from tests.numerics import assert_same, randomize

X = torch.randn(2, 8, 9, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Rep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.an = conv(), nn.BatchNorm2d(8)
        self.b, self.bb = conv(size=1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Any:
        return torch.relu(self.an(self.a(x)) + self.bb(self.b(x)))


class Trains(Rep):
    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self.bb.weight.requires_grad_(False)
        return self


class TrainsThroughAHelper(Rep):
    def _freeze(self) -> None:
        for layer in (self.an, self.bb):
            layer.weight.requires_grad_(False)

    def train(self, mode: bool = True) -> Any:
        self._freeze()
        return super().train(mode)


class Shows(Rep):
    def extra_repr(self) -> str:
        return f"kernel {self.b.kernel_size}, eps {self.bb.eps}"


class Keeps(Rep):
    def __getstate__(self) -> Any:
        return {**self.__dict__, "width": self.b.out_channels, "eps": self.bb.eps}


class Moves(Rep):
    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        module: Any = super()
        module._apply(fn, recurse)
        self.bb.weight.data = self.bb.weight.data.clone()
        return self


CALLS: tuple[Callable[[Any], Any], ...] = (
    lambda model: model.train(), lambda model: model.eval(), repr, copy.deepcopy, pickle.dumps,
    lambda model: model.to(torch.float64), repfuse.fuse,
)  # fmt: skip


@pytest.mark.parametrize("kind", [Trains, TrainsThroughAHelper, Shows, Keeps, Moves])
def test_what_torch_calls_of_a_module_works_afterwards(kind: type[Rep]) -> None:
    model = randomize(kind().double()).eval()
    fused = repfuse.fuse(model)
    assert_same(model, fused, X)
    for call in CALLS:
        call(fused)


class Freezes(Rep):
    """As detectors freeze their first stages."""

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        for layer in (self.an, self.bb):
            layer.eval()
            layer.requires_grad_(False)
            for weight in layer.parameters():
                weight.requires_grad = False
        for part in self.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.requires_grad_(False)
        return self


class Merges(Rep):
    def kernel(self, verbose: bool = False) -> Any:
        return self.a.weight + F.pad(self.b.weight, (1, 1, 1, 1)) * self.bb.weight.view(-1, 1, 1, 1)

    def fuse(self) -> Any:
        self.a.weight.data.copy_(self.kernel())
        return self

    def norms(self, scale: int) -> list[Any]:
        return [layer for layer in self.modules() if isinstance(layer, nn.BatchNorm2d)]


class AsksWhereItIs(Rep):
    def head(self, x: Tensor) -> Any:
        weight = next(self.parameters())
        return self(x.to(weight.device, weight.dtype))


class MakesALoss:
    def __init__(self, model: nn.Module) -> None:
        self.device, self.eps = next(model.parameters()).device, 1e-3

    def __call__(self, y: Tensor) -> Any:
        return y.to(self.device) * self.eps


class HasALoss(Rep):
    def loss(self, x: Tensor) -> Any:
        self.criterion = MakesALoss(self)
        return self.criterion(self(x))


class Lists(Rep):
    def reset(self, classes: int, pool: str = "avg") -> Any:
        self.last = nn.ModuleList([self.an, self.bb])
        return [name for name, _ in self.named_parameters()]


@pytest.mark.parametrize("kind", [Freezes, Merges, AsksWhereItIs, HasALoss, Lists])
def test_what_only_lists_or_sets_layers_keeps_nothing_from_being_merged(kind: type[Rep]) -> None:
    model: Any = randomize(kind().double()).eval()
    plan = repfuse.plan(model)
    fused: Any = plan.apply()
    assert len(plan.report.regions) == 1
    for call in CALLS:
        call(fused)
    assert_same(model, fused.eval(), X)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.n = conv(), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Any:
        return self.features(x).relu()

    def features(self, x: Tensor) -> Any:
        return self.n(self.c(x))


class ForAFlag(Plain):
    def features(self, x: Tensor, raw: bool = False) -> Any:
        if raw:
            return F.conv2d(x, self.c.weight)
        return self.n(self.c(x))


class ForAnotherInput(Plain):
    def features(self, x: Tensor, other: Any = None) -> Any:
        return self.n(self.c(x)) if other is None else F.conv2d(other, self.c.weight)


class BehindAReturn(Plain):
    def features(self, x: Tensor, raw: bool = False) -> Any:
        if not raw:
            return self.n(self.c(x))
        weight = self.c.weight
        return F.conv2d(x, weight)


@pytest.mark.parametrize("kind", [ForAFlag, ForAnotherInput, BehindAReturn])
def test_a_method_that_was_traced_has_the_weights_of_its_other_options(kind: type[Plain]) -> None:
    model: Any = randomize(kind().double()).eval()
    fused: Any = repfuse.fuse(model)
    option = X if kind is ForAnotherInput else True
    with torch.no_grad():
        assert torch.equal(model.features(X, option), fused.features(X, option))
        assert torch.allclose(model.features(X), fused.features(X), rtol=1e-9, atol=1e-9)


class Auxiliary(nn.Module):
    """Its auxiliary part shares layers with what forward runs."""

    def __init__(self, summed: bool) -> None:
        super().__init__()
        self.a, self.b, self.n = conv(), conv(size=1), nn.BatchNorm2d(8)
        self.aux = nn.Sequential(self.a, self.n if summed else nn.ReLU())
        self.summed = summed

    def forward(self, x: Tensor) -> Any:
        y = self.a(x)
        return self.n(y + self.b(x) if self.summed else y)


@pytest.mark.parametrize("summed", [False, True])
def test_a_sequential_that_forward_does_not_run_gives_what_it_gave(summed: bool) -> None:
    model = randomize(Auxiliary(summed).double()).eval()
    fused: Any = repfuse.fuse(model)
    with torch.no_grad():
        assert torch.allclose(model.aux(X), fused.aux(X), rtol=1e-9, atol=1e-9)


def test_a_sequential_that_runs_the_same_layers_is_no_other_use() -> None:
    model = randomize(Plain().double()).eval()
    model.block = nn.Sequential(model.c, model.n, nn.ReLU())
    plan = repfuse.plan(model)
    fused: Any = plan.apply()
    assert len(plan.report.regions) == 1
    with torch.no_grad():
        assert torch.allclose(model(X), fused.block(X), rtol=1e-9, atol=1e-9)


class AsksForItsClass(Plain):
    def raw(self, x: Tensor) -> Any:
        layer: nn.Module = self.c
        return x + 1 if isinstance(layer, nn.Conv2d) else x


def test_the_class_of_a_layer_may_be_asked_for_where_it_stays() -> None:
    model: Any = randomize(AsksForItsClass().double()).eval()
    plan = repfuse.plan(model)
    fused: Any = plan.apply()
    assert len(plan.report.regions) == 1
    assert torch.equal(model.raw(X), fused.raw(X))


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.n = conv(), conv(size=1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Any:
        return self.n(self.a(x) + self.b(x))


class KeepsTheKernel(Branches):
    def raw(self, x: Tensor) -> Any:
        half = self.b.kernel_size[0] // 2 + 1
        return F.pad(x, (half, half))


class KeepsTheFeatures(Branches):
    def raw(self, x: Tensor) -> Any:
        channels = self.n.num_features
        return x.view(-1, channels, 99)


class KeepsTheType(Branches):
    def raw(self, x: Tensor) -> Any:
        dtype = self.b.weight.dtype
        return x.to(dtype)


class AsksForABias(Branches):
    def raw(self, x: Tensor) -> Any:
        if self.b.bias is not None:
            x = x + 1
        return x


class AsksForTheClass(Branches):
    def raw(self, x: Tensor) -> Any:
        norm: nn.Module = self.n
        return x if isinstance(norm, nn.Identity) else x + 1


ATTRIBUTES = (KeepsTheKernel, KeepsTheFeatures, KeepsTheType, AsksForABias, AsksForTheClass)


@pytest.mark.parametrize("kind", ATTRIBUTES)
def test_an_attribute_of_a_layer_in_a_local_name_is_there_afterwards(kind: type[Branches]) -> None:
    model: Any = randomize(kind().double()).eval()
    fused: Any = repfuse.fuse(model)
    assert_same(model, fused, X)
    assert torch.equal(model.raw(X), fused.raw(X))


class Frozen(nn.Module):
    """A norm of fixed numbers, which prints how many there are."""

    gain: Tensor
    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gain", torch.rand(8) + 0.5)
        self.register_buffer("offset", torch.rand(8))

    def extra_repr(self) -> str:
        return f"{self.gain.shape[0]} channels"

    def forward(self, x: Tensor) -> Any:
        return x * self.gain.view(1, -1, 1, 1) + self.offset.view(1, -1, 1, 1)


class PrintsItself(nn.Module):
    """A scale of its own, of which it prints the size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.gain = conv(), conv(size=1), nn.Parameter(torch.rand(8, 1, 1) + 0.5)

    def __repr__(self) -> str:
        return f"{len(self.gain)} channels"

    def forward(self, x: Tensor) -> Any:
        return (self.a(x) + self.b(x)) * self.gain


@pytest.mark.parametrize("make", [lambda: nn.Sequential(conv(), Frozen()), PrintsItself])
def test_what_a_module_prints_of_itself_is_merged_and_printed(make: Any) -> None:
    model = randomize(make().double()).eval()
    plan = repfuse.plan(model)
    fused = plan.apply()
    assert len(plan.report.regions) == 1
    assert "8" in repr(fused)
    assert_same(model, fused, X)


class SaysWhatItIs(nn.Module):
    """Not data is what it is given, but a word."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = conv(), nn.BatchNorm2d(8)

    def feature_info(self, location):  # type: ignore[no-untyped-def]
        if location in ("expansion", "start"):
            return {"channels": self.norm.num_features}
        return {"channels": self.a.out_channels, "end": location == "end"}

    def forward(self, x: Tensor) -> Any:
        return self.norm(self.a(x))


def test_a_method_that_is_given_a_word_describes_the_module() -> None:
    model = randomize(SaysWhatItIs().double()).eval()
    plan = repfuse.plan(model)
    assert len(plan.report.regions) == 1
    assert_same(model, plan.apply(), X)
