"""A method that forward does not call is followed through Python's own ways of keeping layers."""

from __future__ import annotations

import functools
import operator
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


def part() -> nn.Parameter:
    return nn.Parameter(torch.randn(8, 1, 1))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.n = (conv(), conv(size=1), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Any:
        return torch.relu(self.n(self.a(x) + self.b(x)))

    def weight_of(self) -> Any:
        return self.a.weight


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.n = (conv(), nn.BatchNorm2d(8))
        self.s = part()
        self.blocks: Any = nn.ModuleList([Block(), Block()])
        self.d: Any = nn.ModuleDict({"p": conv(), "q": nn.BatchNorm2d(8)})

    def forward(self, x: Tensor) -> Any:
        x = self.n(self.c(x) * self.s)
        for b in self.blocks:
            x = b(x)
        return self.d["q"](self.d["p"](x))


class While(Net):
    def raw(self, x: Tensor) -> Any:
        todo: list[Any] = [self.c]
        while todo:
            x = todo.pop()(x)
        return x


class Gen(Net):
    def layers(self) -> Any:
        yield self.c
        yield torch.relu

    def raw(self, x: Tensor) -> Any:
        for layer in self.layers():
            x = layer(x)
        return x


class Method(Net):
    def raw(self, x: Tensor) -> Any:
        return F.conv2d(x, self.blocks[0].weight_of())


class Method2(Net):
    def raw(self, x: Tensor) -> Any:
        return sum(F.conv2d(x, b.weight_of()) for b in self.blocks)


class DictGet(Net):
    def raw(self, x: Tensor) -> Any:
        return list(self.d.values())[1](x)


class AttrGetter(Net):
    def raw(self, x: Tensor) -> Any:
        return operator.attrgetter("c")(self)(x)


class VarsOf(Net):
    def raw(self, x: Tensor) -> Any:
        return vars(self)["_modules"]["c"](x)


class DictOf(Net):
    def raw(self, x: Tensor) -> Any:
        return self.__dict__["_modules"]["c"](x)


class Setattr(Net):
    def raw(self, x: Tensor) -> Any:
        name = "zz"
        setattr(self, name, [self.c])
        kept: Any = self.zz
        return kept[0](x)


class Cached(Net):
    @functools.cached_property
    def w(self) -> Any:
        return self.c.weight

    def raw(self, x: Tensor) -> Any:
        return F.conv2d(x, self.w)


class Lru(Net):
    @functools.lru_cache  # noqa: B019
    def _w(self) -> Any:
        return self.c.weight

    def raw(self, x: Tensor) -> Any:
        return F.conv2d(x, self._w())


class Ret(Net):
    def raw(self, x: Tensor) -> Any:
        return self.pick(1)(x)

    def pick(self, i: Any) -> Any:
        return [self.n, self.c][i]


class CM(Net):
    @classmethod
    def go(cls, m: Any, x: Tensor) -> Any:
        return m.c(x)

    def raw(self, x: Tensor) -> Any:
        return self.go(self, x)


class Iter(Net):
    def __iter__(self) -> Any:
        return iter([self.c])

    def raw(self, x: Tensor) -> Any:
        for layer in self:
            x = layer(x)
        return x


class Sorted(Net):
    def raw(self, x: Tensor) -> Any:
        return sorted([self.c], key=id)[0](x)


class GA(Net):
    def __getattr__(self, name: Any) -> Any:
        if name == "first":
            return self.c
        return super().__getattr__(name)

    def raw(self, x: Tensor) -> Any:
        return self.first(x)


class Glob(Net):
    def raw(self, x: Tensor) -> Any:
        return helper(self, x)


def helper(m: Any, x: Tensor) -> Any:
    return inner(m.c, x)


def inner(c: Any, x: Tensor) -> Any:
    return F.conv2d(x, c.weight)


class Stat(Net):
    @staticmethod
    def go(m: Any, x: Tensor) -> Any:
        return m.c(x)

    def raw(self, x: Tensor) -> Any:
        return self.go(self, x)


class Loss:
    def __init__(self, model: Any) -> None:
        self.m = model

    def __call__(self, x: Tensor) -> Any:
        return self.m.c(x)


class Crit(Net):
    def raw(self, x: Tensor) -> Any:
        return Loss(self)(x)


class CachedKeep(Net):
    def setup(self, x: Tensor) -> Any:
        self.keep = [self.c]
        return x

    def raw(self, x: Tensor) -> Any:
        if not hasattr(self, "keep"):
            self.setup(x)
        return self.keep[0](x)


KINDS: tuple[type[nn.Module], ...] = (
    While, Gen, Method, Method2, DictGet, AttrGetter, VarsOf, DictOf, Setattr, Cached, Lru, Ret,
    CM, Iter, Sorted, GA, Glob, Stat, Crit, CachedKeep,
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
