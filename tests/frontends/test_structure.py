"""Python around the arithmetic that was once answered wrongly: what methods take, keep and give.

Each small model is fused, compared with the original in float64, and planned again.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repfuse
from tests.frontends import conv
from tests.frontends.test_code import images
from tests.numerics import assert_same, randomize

X = images(0)
Build = Callable[[], nn.Module]
CASES: dict[str, tuple[Build, int]] = {}


def case(regions: int) -> Callable[[Build], Build]:
    """A model, and how many regions are rewritten in it."""

    def note(build: Build) -> Build:
        CASES[build.__name__] = (build, regions)
        return build

    return note


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(), conv(size=1)


class Outputs(list[Tensor]):
    def first(self) -> Tensor:
        return self[0]


class Inner(Base):
    """It gives something else beside its sum."""

    def __init__(self, beside: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.beside = beside
        self.held = [nn.Conv2d(8, 8, 1)]

    def forward(self, x: Tensor) -> Any:
        return self.beside(self, self.a(x) + self.b(x))


class Outer(nn.Module):
    def __init__(self, beside: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.inner = Inner(beside)

    def forward(self, x: Tensor) -> Tensor:
        given = self.inner(x)
        result: Tensor = given.first() if isinstance(given, Outputs) else given[0]
        return result


BESIDE: dict[str, Callable[[Any, Tensor], Any]] = {
    "a layer": lambda m, y: (y, m.a),
    "a layer of no table": lambda m, y: (y, m.held[0]),
    "the module": lambda m, y: (y, m),
    "a function": lambda m, y: (y, torch.relu),
    "an object": lambda m, y: (y, object()),
    "a tensor": lambda m, y: (y, torch.ones(2)),
    "a list of a class": lambda m, y: Outputs([y]),
}


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("kind", [Outer, Inner])
def test_what_a_method_returns_beside_tensors_is_what_it_was(name: str, kind: type) -> None:
    model = randomize(kind(BESIDE[name]).double()).eval()
    plan = repfuse.plan(model)
    fused = plan.apply()
    assert plan.report.regions == []
    assert plan.report.refusals or kind is Inner  # a model whose output cannot be recorded
    expected, found = model(X), fused(X)
    if isinstance(expected, Tensor):
        assert torch.equal(expected, found)
    else:
        assert type(expected) is type(found)
        assert torch.equal(expected[0], found[0])


@case(1)
class GarbageHoldsAValue(Base):
    """A list that holds itself lives until the next collection, and the value in it as well."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x) + self.b(x)
        cycle: list[Any] = [y]
        cycle.append(cycle)
        return torch.relu(y)


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 12, 3), nn.Conv2d(12, 8, 1)


@case(0)
class TheChannelsInBetweenAreAskedFor(Chain):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(y) * y.shape[1]  # type: ignore[no-any-return]


@case(0)
class TheSizeInBetweenIsAskedForInAnotherLayout(Chain):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        rows = y.flatten(2).transpose(1, 2)
        return self.b(y) * rows.size(1)  # type: ignore[no-any-return]


@case(1)
class TheSizeOfALayerIsAskedForThatMaySum(nn.Module):
    """The sum may become the layer, and not the layer the sum: what it gives would be larger."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        result: Tensor = (y + y) * y.shape[2]
        return result


class Adding(nn.Module):
    """It adds, and changes something else that it is given."""

    def forward(self, a: Tensor, b: Tensor, other: Tensor) -> Tensor:
        other.add_(1)
        return a + b


@case(0)
class ABlockThatAddsChangesAnArgument(Base):
    def __init__(self) -> None:
        super().__init__()
        self.add = Adding()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.sigmoid()
        return self.add(self.a(x), self.b(x), y), y


@case(0)
class AMethodThatAddsChangesAnArgument(Base):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.sigmoid()
        return self._sum(self.a(x), self.b(x), y), y

    def _sum(self, a: Tensor, b: Tensor, other: Tensor) -> Tensor:
        other += 1
        return a + b


def _weights(m: Any, x: Tensor) -> Tensor:
    return torch.conv2d(x, m.a.weight, m.a.bias, padding=1)


def _a_parameter(m: Any, x: Tensor) -> Any:
    return x * m.scale


def _statistics(m: Any, x: Tensor) -> Any:
    return x - m.bn.running_mean.view(1, -1, 1, 1)


def _all_weights(m: Any, x: Tensor) -> Any:
    return x * sum(p.sum() for p in m.a.parameters())


def _of_a_name(m: Any, x: Tensor) -> Any:
    layer = m.a
    weight = layer.weight
    return torch.conv2d(x, weight, padding=1)


READING: dict[str, Callable[[Any, Tensor], Any]] = {
    "weights": _weights,
    "a parameter": _a_parameter,
    "statistics": _statistics,
    "all weights": _all_weights,
    "a layer that has a name": _of_a_name,
    "no source": lambda m, x: x * m.a.weight.sum(),  # a line of its own is none
}


class Read(Base):
    """Users call a method beside forward, which reads weights by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(8)
        self.scale = nn.Parameter(torch.randn(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.bn((self.a(x) + self.b(x)) * self.scale)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", READING)
def test_weights_that_another_method_computes_with_stay(name: str) -> None:
    kind = type(Read.__name__, (Read,), {"features": READING[name]})
    model = randomize(kind().double()).eval()
    plan = repfuse.plan(model)
    fused = plan.apply()
    assert_same(model, fused, X)
    assert torch.equal(model.features(X), fused.features(X))
    assert any("read by features as well" in one.reason for one in plan.report.refusals)


def _initialise(m: Any, std: float = 0.02, *layers: nn.Module) -> None:
    for layer in (m.a, *layers):
        nn.init.normal_(layer.weight, std=std)
    m.scale.data.fill_(std)
    m.dtype = m.a.weight.to(std).dtype


def test_a_method_that_only_writes_weights_keeps_nothing() -> None:
    kind = type(Read.__name__, (Read,), {"init_weights": _initialise})
    model = randomize(kind().double()).eval()
    assert len(repfuse.plan(model).report.regions) == 1


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = conv(), nn.BatchNorm2d(8)


class Features(Normed):
    """A public method with an option, of which forward shows one value."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.features(x))

    def features(self, x: Tensor, option: Any = None) -> Any:
        raise NotImplementedError


class AFlag(Features):
    def features(self, x: Tensor, option: Any = None) -> Any:
        y = self.conv(x)
        if option:
            return y
        return self.bn(y)


class ACount(Features):
    def features(self, x: Tensor, option: Any = 1) -> Any:
        y = self.conv(x)
        for _ in range(option):
            y = self.bn(y)
        return y


class ASkip(Features):
    def features(self, x: Tensor, option: Any = None) -> Any:
        y = self.conv(x)
        y = y if option is None else y + option
        return self.bn(y)


class OfABlock(Features):
    def __init__(self) -> None:
        super().__init__()
        self.block = AFlag()

    def features(self, x: Tensor, option: Any = False) -> Any:
        return self.block.features(x, option)


class Untraced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = TheBlock()

    def forward(self, x: Tensor) -> Any:
        return torch.relu(self.block(x))

    def features(self, x: Tensor, option: Any = True) -> Any:
        return self.block(x, option)


class TheBlock(Normed):
    def forward(self, x: Tensor, option: bool = False) -> Any:
        y = self.conv(x)
        return y if option else self.bn(y)


OPTIONS: dict[type, tuple[Any, ...]] = {
    AFlag: (None, True), ACount: (1, 0, 2), ASkip: (None, X), OfABlock: (False, True),
    Untraced: (False, True),
}  # fmt: skip


@pytest.mark.parametrize("kind", OPTIONS)
def test_another_option_of_a_method_means_what_it_meant(kind: type) -> None:
    model = randomize(kind().double()).eval()
    fused = repfuse.fuse(model)
    assert_same(model, fused, X)
    for option in OPTIONS[kind]:
        torch.testing.assert_close(fused.features(X, option), model.features(X, option))


class AScale(Features):
    def features(self, x: Tensor, option: Any = 1.0) -> Any:
        return self.bn(self.conv(x)) * option


def test_an_option_that_decides_on_nothing_keeps_nothing() -> None:
    model = randomize(AScale().double()).eval()
    plan = repfuse.plan(model)
    assert len(plan.report.regions) == 1
    fused = plan.apply()
    assert_same(model, fused, X)
    call: Any = fused.features
    for other in (2.0, X):
        with pytest.raises(repfuse.RepfuseError, match="call it with those"):
            call(X, other)


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(8, 8, 1, 1))

    def forward(self, values: Tensor) -> Tensor:
        return torch.conv2d(values, self.weight)  # type: ignore[arg-type]


@case(1)
class ABlockThatIsSwallowedIsCalledByAKeyword(nn.Module):
    """nn.Identity in its place would take no argument of that name."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Weighted()

    def forward(self, x: Tensor) -> Any:
        return torch.utils.checkpoint.checkpoint(self._twice, x[:, :8], use_reentrant=False)

    def _twice(self, values: Tensor) -> Any:
        y = self.block(values=values)
        return y + y


class Tangled(nn.Module):
    """Its regions are found out of place one after the other, for more rounds than there are."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 1, bias=False), nn.Conv2d(4, 8, 4, bias=False)
        self.both = nn.ModuleList([self.a, nn.Dropout(0.5)])
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x
        for layer in list(self.both):
            y = y + layer(y)
        y = (x + x + y + (x + 0))[:, :4]
        return sum(norm(y) for norm in self.norms), self.b(y)

    def features(self, x: Tensor) -> Any:
        return self.both[1](x)


@pytest.mark.parametrize("target", ["cpu", "min-ops", "gpu"])
def test_what_is_blocked_in_the_last_round_stays(target: str) -> None:
    model = randomize(Tangled().double()).eval()
    assert_same(model, repfuse.fuse(model, target=target), X)


@pytest.mark.parametrize("name", CASES)
def test_the_fused_model_answers_as_the_original(name: str) -> None:
    build, regions = CASES[name]
    model = randomize(build().double()).eval()
    gc.disable()
    try:
        plan = repfuse.plan(model)
    finally:
        gc.enable()
    fused = plan.apply()
    assert len(plan.report.regions) == regions, str(plan)
    assert plan.report.errors == []
    assert_same(model, fused, X)
    again = repfuse.plan(fused)
    assert again.report.regions == [], str(again)
