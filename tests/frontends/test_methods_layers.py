"""A method that forward does not call runs the layers that it ran, however it reaches them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import repfuse
from tests.frontends import conv
from tests.numerics import randomize

X = torch.randn(2, 8, 9, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.n = conv(), nn.BatchNorm2d(8)
        self.stem: Any = nn.Sequential(conv(), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks: Any = nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor) -> Any:
        x = self.n(self.c(self.stem(x)))
        for b in self.blocks:
            x = b(x)
        return x


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.n = (conv(), conv(size=1), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Any:
        return torch.relu(self.n(self.a(x) + self.b(x)))


class Slice(Net):
    def raw(self, x: Tensor) -> Any:
        return self.stem[:1](x)


class Unpacked(Net):
    def raw(self, x: Tensor) -> Any:
        c, _, _ = self.stem
        return c(x)


class NextIter(Net):
    def raw(self, x: Tensor) -> Any:
        return next(iter(self.stem))(x)


class FilteredList(Net):
    def raw(self, x: Tensor) -> Any:
        for c in [m for m in self.stem if isinstance(m, nn.Conv2d)]:
            x = c(x)
        return x


class Splat(Net):
    def raw(self, x: Tensor) -> Any:
        return nn.Sequential(*self.stem[:1])(x)


class Modules(Net):
    def raw(self, x: Tensor) -> Any:
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                x = m(x)
        return x


class GetattrOfElements(Net):
    def raw(self, x: Tensor) -> Any:
        for b in self.blocks:
            x = getattr(b, "aa"[:1])(x)
        return x


class FirstOfWeights(Net):
    def raw(self, x: Tensor) -> Any:
        convs = [b.a for b in self.blocks]
        return F.conv2d(x, convs[0].weight)


class ReduceWeights(Net):
    def raw(self, x: Tensor) -> Any:
        return functools.reduce(lambda t, b: F.conv2d(t, b.a.weight, padding=1), self.blocks, x)


class NestedWeight(Net):
    def raw(self, x: Tensor) -> Any:

        def run(t: Tensor) -> Any:
            return F.conv2d(t, self.c.weight, padding=1)

        return run(x)


class PropertyLayer(Net):
    @property
    def first(self) -> Any:
        return self.c

    def raw(self, x: Tensor) -> Any:
        return self.first(x)


class PropertyWeight(Net):
    @property
    def w(self) -> Any:
        return self.c.weight

    def raw(self, x: Tensor) -> Any:
        return F.conv2d(x, self.w)


class GetterLayer(Net):
    def get(self) -> Any:
        return self.c

    def raw(self, x: Tensor) -> Any:
        return self.get()(x)


class GetterWeight(Net):
    def _get(self) -> Any:
        return (self.c.weight, self.c.bias)

    def raw(self, x: Tensor) -> Any:
        return F.conv2d(x, *self._get())


class GetterSequential(Net):
    def trunk(self) -> Any:
        return nn.Sequential(self.c, nn.ReLU())

    def raw(self, x: Tensor) -> Any:
        return self.trunk()(x)


class IfExpression(Net):
    def raw(self, x: Tensor) -> Any:
        return (self.c if x.shape[0] else self.n)(x)


class InATable(Net):
    def raw(self, x: Tensor) -> Any:
        return {"c": self.c}["c"](x)


class ByTable(Net):
    def _run(self, x: Tensor) -> Any:
        return self.c(x)

    def raw(self, x: Tensor) -> Any:
        return {"run": self._run}["run"](x)


class ByLoop(Net):
    def _one(self, x: Tensor) -> Any:
        return self.c(x)

    def raw(self, x: Tensor) -> Any:
        for f in (self._one, torch.relu):
            x = f(x)
        return x


class ByType(Net):
    def _run(self, x: Tensor) -> Any:
        return self.c(x)

    def raw(self, x: Tensor) -> Any:
        return type(self)._run(self, x)


class ByClassName(Net):
    def _run(self, x: Tensor) -> Any:
        return self.c(x)

    def raw(self, x: Tensor) -> Any:
        return ByClassName._run(self, x)


class PartialWeight(Net):
    def raw(self, x: Tensor) -> Any:
        return functools.partial(F.conv2d, weight=self.c.weight)(x)


class PartialMethod(Net):
    def _run(self, x: Tensor, k: Any) -> Any:
        return self.c(x) * k

    raw = functools.partialmethod(_run, k=2)


def decorated(f: Any) -> Any:

    def run(*args: Any) -> Any:
        return f(*args)

    return run


class Decorated(Net):
    @decorated
    def raw(self, x: Tensor) -> Any:
        return self.c(x)


class NamedModules(Net):
    def raw(self, x: Tensor) -> Any:
        return dict(self.named_modules())["c"](x)


class GetParameter(Net):
    def raw(self, x: Tensor) -> Any:
        return F.conv2d(x, self.get_parameter("c.weight"))


class Penalty(Net):
    def raw(self, x: Tensor) -> Any:
        return x.mean() + sum(
            m.weight.pow(2).sum() for m in self.modules() if isinstance(m, nn.Conv2d)
        )


class PenaltyMethod(Net):
    def _penalty(self) -> Any:
        return sum(p.pow(2).sum() for p in self.parameters())

    def raw(self, x: Tensor) -> Any:
        return self(x).mean() + self._penalty()


class IsInstance(Net):
    def raw(self, x: Tensor) -> Any:
        return x + 1 if isinstance(self.n, nn.BatchNorm2d) else x


class HookInside(Net):
    def raw(self, x: Tensor) -> Any:
        seen = []
        hook = self.c.register_forward_hook(lambda m, i, o: seen.append(o))
        self(x)
        hook.remove()
        return seen[0]


KINDS: tuple[type[nn.Module], ...] = (
    Slice, Unpacked, NextIter, FilteredList, Splat, Modules, GetattrOfElements, FirstOfWeights,
    ReduceWeights, NestedWeight, PropertyLayer, PropertyWeight, GetterLayer, GetterWeight,
    GetterSequential, IfExpression, InATable, ByTable, ByLoop, ByType, ByClassName,
    PartialWeight, PartialMethod, Decorated, NamedModules, GetParameter, Penalty, PenaltyMethod,
    IsInstance, HookInside,
)  # fmt: skip


def values_of(answer: Any) -> list[Any]:
    return list(answer) if isinstance(answer, tuple | list) else [answer]


@pytest.mark.parametrize("kind", KINDS)
def test_a_method_that_no_trace_has_seen_gives_what_it_gave(kind: Callable[[], nn.Module]) -> None:
    model: Any = randomize(kind().double()).eval()
    plan = repfuse.plan(model)
    fused: Any = plan.apply()
    assert plan.report.errors == []
    with torch.no_grad():
        assert torch.allclose(model(X), fused(X), rtol=1e-9, atol=1e-9)
        before, after = (values_of(each.raw(X.clone())) for each in (model, fused))
    for one, other in zip(before, after, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-9)
