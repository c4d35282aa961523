"""A method that forward does not call finds the parameters that it reads, in whatever way."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import repfuse
from tests.frontends import conv
from tests.numerics import randomize

X = torch.randn(2, 8, 9, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def part() -> nn.Parameter:
    return nn.Parameter(torch.randn(8, 1, 1))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.n = conv(), conv(size=1), nn.BatchNorm2d(8)
        self.p, self.s0 = part(), part()

    def forward(self, x: Tensor) -> Any:
        return self.n(self.a(x) * self.s0 + self.p + self.b(x))


class NestedFunction(Net):
    def embed(self, x: Tensor) -> Any:

        def add(t: Tensor) -> Any:
            return t + self.p

        return add(x)


class Lambda(Net):
    def embed(self, x: Tensor) -> Any:
        return (lambda t: t + self.p)(x)


class Getter(Net):
    def _pos(self) -> Any:
        return self.p

    def embed(self, x: Tensor) -> Any:
        return x + self._pos()


class Property(Net):
    @property
    def pos(self) -> Any:
        return self.p * 2

    def embed(self, x: Tensor) -> Any:
        return x + self.pos


class Index(Net):
    def embed(self, x: Tensor) -> Any:
        return self.p[x.argmax(1)]


class IndexNumber(Net):
    def embed(self, x: Tensor) -> Any:
        return self.p[x.shape[0]]


class Comparison(Net):
    def embed(self, x: Tensor) -> Any:
        return (x > self.p).double()


class Assignment(Net):
    def embed(self, x: Tensor) -> Any:
        y = x.clone()
        y[:] = self.p
        return y


class Expand(Net):
    def embed(self, x: Tensor) -> Any:
        return self.p.expand(x.shape[0], -1, -1, -1)


class To(Net):
    def embed(self, x: Tensor) -> Any:
        return self.p.to(x.dtype)


class ReturnsIt(Net):
    def embed(self, x: Tensor) -> Any:
        return (x + 1, self.p)


class GetattrName(Net):
    def embed(self, x: Tensor, name: Any = "s0") -> Any:
        return x * getattr(self, name)


class GetattrFormat(Net):
    def embed(self, x: Tensor, i: Any = 0) -> Any:
        return x * getattr(self, f"s{i}")


class GetParameter(Net):
    def embed(self, x: Tensor) -> Any:
        return x + self.get_parameter("p")


class Splat(Net):
    def embed(self, x: Tensor) -> Any:
        args = (x, self.p)
        return torch.add(*args)


class Reduce(Net):
    def embed(self, x: Tensor) -> Any:
        return functools.reduce(torch.add, [x, self.p])


class OtherName(Net):
    def embed(self, x: Tensor) -> Any:
        me = self
        return x + me.p


class KeepsInput(Net):
    def _go(self) -> Any:
        return self.x + self.p

    def embed(self, x: Tensor) -> Any:
        self.x = x
        return self._go()


class ByClass(Net):
    def _add(self, x: Tensor) -> Any:
        return x + self.p

    def embed(self, x: Tensor) -> Any:
        return type(self)._add(self, x)


class ByTable(Net):
    def _add(self, x: Tensor) -> Any:
        return x + self.p

    def embed(self, x: Tensor) -> Any:
        return {"add": self._add}["add"](x)


class PartialMethod(Net):
    def _add(self, x: Tensor, k: Any) -> Any:
        return x + self.p * k

    embed = functools.partialmethod(_add, k=2)


def decorated(f: Any) -> Any:

    def run(*args: Any) -> Any:
        return f(*args)

    return run


class Decorated(Net):
    @decorated
    def embed(self, x: Tensor) -> Any:
        return x + self.p


class Dunder(Net):
    def __getitem__(self, x: Tensor) -> Any:
        return x + self.p


class Dtype(Net):
    def embed(self, x: Tensor) -> Any:
        return x.to(self.p.dtype)


class Shape(Net):
    def embed(self, x: Tensor) -> Any:
        return x.flatten(2).view(-1, self.p.shape[0], 99)


class Device(Net):
    def embed(self, x: Tensor) -> Any:
        return x.to(self.p.device)


class IsNotNone(Net):
    def embed(self, x: Tensor) -> Any:
        return x + 1 if self.p is not None else x


class RequiresGrad(Net):
    def embed(self, x: Tensor) -> Any:
        return x + 1 if self.p.requires_grad else x


class NormInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(11, 11)
        self.w, self.v = (nn.Parameter(torch.randn(11)) for _ in range(2))

    def forward(self, x: Tensor) -> Any:
        return self.l(F.layer_norm(x, (11,), self.w, self.v))

    def embed(self, x: Tensor) -> Any:
        def norm(t: Tensor) -> Any:
            return F.layer_norm(t, (11,), self.w, self.v)

        return norm(x)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.n, self.s = conv(), nn.BatchNorm2d(8), part()

    def forward(self, x: Tensor) -> Any:
        return self.n(self.c(x))


class S(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.ones(()))

    def forward(self, w: Any) -> Any:
        return w * self.s


class Parametrized(Scaled):
    def __init__(self) -> None:
        super().__init__()
        parametrize.register_parametrization(self.c, "weight", S())

    def embed(self, x: Tensor) -> Any:
        return F.conv2d(x, self.c.weight)


class TracedHelper(Scaled):
    def _w(self) -> Any:
        return self.s * 2

    def forward(self, x: Tensor) -> Any:
        return self.n(self.c(x) * self._w())

    def embed(self, x: Tensor) -> Any:
        return x * self._w()


class TracedHelper2(Scaled):
    def _w(self, x: Tensor) -> Any:
        return x * self.s * 2

    def forward(self, x: Tensor) -> Any:
        return self.n(self._w(self.c(x)))

    def embed(self, x: Tensor) -> Any:
        return self._w(x)


KINDS: tuple[type[nn.Module], ...] = (
    NestedFunction, Lambda, Getter, Property, Index, IndexNumber, Comparison, Assignment,
    Expand, To, ReturnsIt, GetattrName, GetattrFormat, GetParameter, Splat, Reduce, OtherName,
    KeepsInput, ByClass, ByTable, PartialMethod, Decorated, Dtype, Shape, Device, IsNotNone,
    RequiresGrad, NormInside, Parametrized, TracedHelper, TracedHelper2,
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
        before, after = (values_of(each.embed(X.clone())) for each in (model, fused))
    for one, other in zip(before, after, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-9)


def test_a_method_of_python_is_one_of_the_user() -> None:
    model: Any = randomize(Dunder().double()).eval()
    fused: Any = repfuse.fuse(model)
    with torch.no_grad():
        assert torch.equal(model[X], fused[X])
