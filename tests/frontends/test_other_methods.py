"""Methods that forward does not call: after the merge they give what they gave before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import repfuse
from tests.numerics import assert_same, randomize

X = torch.randn(2, 4, 9, 7, dtype=torch.float64)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Any:
        return self.n(self.a(x))


class WithSomethingInBetween(Base):
    def head(self, x: Tensor) -> Any:
        return self.n(torch.relu(self.a(x)))


class InTheOtherOrder(Base):
    def head(self, x: Tensor) -> Any:
        return self.a(self.n(x))


class ThroughAMethodOfForward(Base):
    def _part(self, x: Tensor) -> Any:
        return self.a(x)

    def forward(self, x: Tensor) -> Any:
        return self.n(self._part(x))

    def head(self, x: Tensor) -> Any:
        return torch.relu(self._part(x))


class ThroughAMethodOfItsOwn(Base):
    def _part(self, x: Tensor) -> Any:
        return self.n(torch.relu(self.a(x)))

    def head(self, x: Tensor) -> Any:
        return self._part(x)


class ByNames(Base):
    def head(self, x: Tensor) -> Any:
        one, other = "a", "n"
        return getattr(self, other)(torch.relu(getattr(self, one)(x)))


class UnderAnotherName(Base):
    def head(self, x: Tensor) -> Any:
        layer = self.a
        return layer(x)


class InAFunction(Base):
    def head(self, x: Tensor) -> Any:
        def inner(y: Tensor) -> Any:
            return self.a(y)

        return inner(x)


class PassedOn(Base):
    def head(self, x: Tensor) -> Any:
        return checkpoint(self.a, x, use_reentrant=False)


class ReadTwice(Base):
    def head(self, x: Tensor) -> Any:
        y = self.a(x)
        z = self.n(y)
        return y + z


class ReadInBetween(Base):
    def head(self, x: Tensor) -> Any:
        x = self.a(x)
        y = x * 2
        x = self.n(x)
        return x + y


class Sometimes(Base):
    def head(self, x: Tensor) -> Any:
        x = self.a(x)
        return self.n(x) if len(x) == 1 else x


class OverItsChildren(Base):
    def head(self, x: Tensor) -> Any:
        for _, layer in self.named_children():
            x = torch.relu(layer(x))
        return x


class OverAProperty(Base):
    @property
    def layers(self) -> list[nn.Module]:
        return [self.a, self.n]

    def head(self, x: Tensor) -> Any:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


class OfTheBase(WithSomethingInBetween):
    def head(self, x: Tensor) -> Any:
        return super().head(x)


class TheConvInAnotherModule(Base):
    def __init__(self) -> None:
        super().__init__()
        self.other = InsideAModule(self.a)

    def head(self, x: Tensor) -> Any:
        return self.other(x=x)


class InsideAModule(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)


class TheConvAlone(Base):
    def forward(self, x: Tensor) -> Any:
        return self.a(x)


class TheForwardOfTheBase(TheConvAlone):
    def forward(self, x: Tensor) -> Any:
        return self.n(super().forward(x))

    def head(self, x: Tensor) -> Any:
        return torch.relu(super().forward(x))


class TheForwardOfTorch(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Any:
        return self[1](self[0](x)) + x

    def head(self, x: Tensor) -> Any:
        return super().forward(x)  # type: ignore[no-untyped-call]


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body: Any = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x: Tensor) -> Any:
        return self.body(x)

    def head(self, x: Tensor) -> Any:
        for layer in self.body:
            x = torch.sin(layer(x))
        return x


class SequenceInTurn(Sequence):
    def head(self, x: Tensor) -> Any:
        kept = []
        for place, layer in enumerate(self.body[: len(self.body)]):
            x = layer(x)
            if place == 2:
                kept.append(x)
        return kept[0]


class EverySecondOfASequence(Sequence):
    def head(self, x: Tensor) -> Any:
        for layer in self.body[::2]:
            x = layer(x)
        return x


class SequenceBackwards(Sequence):
    def head(self, x: Tensor) -> Any:
        for layer in reversed(self.body):
            x = layer(x)
        return x


class FirstOfASequence(Sequence):
    def head(self, x: Tensor) -> Any:
        return self.body[0](x)


class InsideAPart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part: Any = Base()

    def forward(self, x: Tensor) -> Any:
        return self.part(x)

    def head(self, x: Tensor) -> Any:
        return self.part.n(torch.relu(self.part.a(x)))


class InsideSomeParts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts: Any = nn.Sequential(Base(), nn.ReLU(), Base())

    def forward(self, x: Tensor) -> Any:
        return self.parts(x)

    def head(self, x: Tensor) -> Any:
        for part in self.parts[::2]:
            x = part.n(torch.relu(part.a(x)))
        return x


class Keeping(Base):
    def forward(self, x: Tensor) -> Any:
        self.x = x
        return self.n(self.a(x))

    @property
    def first(self) -> Any:
        return self.a(self.x)

    def head(self, x: Tensor) -> Any:
        self(x)
        return self.first


class Called(Base):
    def __call__(self, x: Tensor) -> Any:
        return super().__call__(x) + self.a(x)

    def head(self, x: Tensor) -> Any:
        return self(x)


OTHERWISE: tuple[type[nn.Module], ...] = (
    WithSomethingInBetween, InTheOtherOrder, ThroughAMethodOfForward, ThroughAMethodOfItsOwn,
    ByNames, UnderAnotherName, InAFunction, PassedOn, ReadTwice, ReadInBetween, Sometimes,
    OverItsChildren, OverAProperty, OfTheBase, Sequence, FirstOfASequence, InsideAPart,
    EverySecondOfASequence, SequenceBackwards,
    InsideSomeParts, Keeping, Called, TheForwardOfTheBase, TheForwardOfTorch,
    TheConvInAnotherModule,
)  # fmt: skip


class InTheSameOrder(Base):
    def head(self, x: Tensor) -> Any:
        return torch.relu(self.n(self.a(x)))


class InSteps(Base):
    def head(self, x: Tensor) -> Any:
        given = x
        x = self.a(x)
        x = self.n(x)
        if len(given) == 2:
            x = x + given
        return x


class Returned(Base):
    def head(self, x: Tensor) -> Any:
        y = self.a(x)
        return self.n(y)


class ThroughForward(Base):
    def head(self, x: Tensor) -> Any:
        return torch.relu(self.forward(x)) + self(x)


class APart(InsideAPart):
    def head(self, x: Tensor) -> Any:
        part = self.part
        return part(x) + checkpoint(self.part, x, use_reentrant=False)


class SomeParts(InsideSomeParts):
    def head(self, x: Tensor) -> Any:
        return sum(part(x) for part in self.parts)


class LooksAtItsLayers(Base):
    def head(self, x: Tensor) -> Any:
        for layer in self.children():
            layer.eval()
        return self(x) * len([layer for layer in (self.a, self.n) if layer is not None])


class TheSameForward(Base):
    def head(self, x: Tensor) -> Any:
        return torch.relu(super().forward(x))


ALIKE: tuple[type[nn.Module], ...] = (
    InTheSameOrder, InSteps, Returned, ThroughForward, APart, SomeParts, LooksAtItsLayers,
    SequenceInTurn, TheSameForward,
)  # fmt: skip


@pytest.mark.parametrize("kind", [*OTHERWISE, *ALIKE])
@pytest.mark.parametrize("inside", [False, True])
def test_the_method_gives_what_it_gave(kind: Callable[[], nn.Module], inside: bool) -> None:
    part = kind()
    model: Any = randomize(nn.Sequential(part) if inside else part).double().eval()
    plan = repfuse.plan(model)
    fused: Any = plan.apply()
    assert plan.report.errors == []
    assert_same(model, fused, X)
    assert bool(plan.report.regions) == (kind in ALIKE)
    refused = str([entry.reason for entry in plan.report.refusals])
    if kind not in (Called, Keeping):  # which are refused for what they do besides
        assert ("which is not traced, calls" in refused) == (kind in OTHERWISE)
    before, after = (each[0] if inside else each for each in (model, fused))
    with torch.no_grad():
        assert torch.allclose(before.head(X), after.head(X), rtol=1e-9, atol=1e-9)


def test_a_method_without_source_may_use_all_that_it_names() -> None:
    """Code of a notebook's cell or of a compiled file: names, and strings that getattr takes."""
    text = """
class Looks(nn.Module):
    def __init__(self):
        super().__init__()
        self.box = nn.ModuleDict({"a": nn.Conv2d(4, 4, 1), "n": nn.BatchNorm2d(4)})

    def forward(self, x):
        return self.box["n"](self.box["a"](x))

    def head(self, x):
        return [torch.relu(getattr(self, "box")[name](x)) for name in ("a",)][0]
"""
    space: dict[str, Any] = {"nn": nn, "torch": torch, "__name__": __name__}
    exec(text, space)
    model = randomize(space["Looks"]().double()).eval()
    plan = repfuse.plan(model)
    fused: Any = plan.apply()
    assert plan.report.regions == [] and plan.report.errors == []
    with torch.no_grad():
        assert torch.equal(model.head(X), fused.head(X))


class AsksTheNorm(Base):
    def head(self, x: Tensor) -> Any:
        return x * getattr(self.n, "eps", 3.0)


class AsksForAnAttribute(Base):
    def head(self, x: Tensor) -> Any:
        return x * self.n.num_features


class AsksForASize(Base):
    def head(self, x: Tensor) -> Any:
        return x * self.a.weight.shape[0]


class AsksForItsOutputs(Base):
    def head(self, x: Tensor) -> Any:
        return x * self.a.out_channels + self.a.in_channels - self.a.stride[0]


class AsksForADtype(Base):
    def head(self, x: Tensor) -> Any:
        return x.to(self.a.weight.dtype)


class DescribesALayer(Base):
    def head(self, which: str) -> Any:
        return {"channels": self.n.num_features if which == "norm" else self.a.out_channels}


class OnlySets(Base):
    def head(self, x: Tensor) -> Any:
        if hasattr(self.n, "eps"):
            self.n.eps = 1e-3


@pytest.mark.parametrize(
    ("kind", "regions"),
    [
        (AsksTheNorm, 0), (AsksForAnAttribute, 0), (AsksForASize, 0), (AsksForADtype, 1),
        (AsksForItsOutputs, 1),
        (DescribesALayer, 1), (OnlySets, 1),
    ],
)  # fmt: skip
def test_a_method_that_looks_into_a_layer_finds_it(kind: type[Base], regions: int) -> None:
    model: Any = randomize(kind()).double().eval()
    plan = repfuse.plan(model)
    fused: Any = plan.apply()
    assert len(plan.report.regions) == regions
    assert_same(model, fused, X)
    if kind not in (DescribesALayer, OnlySets):
        assert torch.equal(model.head(X), fused.head(X))
