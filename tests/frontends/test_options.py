"""Options of a method, which code that was not traced may give any value."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repfuse
from repfuse.frontends.torch.instructions import only_tested
from tests.frontends import conv
from tests.numerics import randomize

X = torch.randn(2, 8, 9, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Child(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(), conv(size=1)

    def forward(self, x: Tensor, double: Any = False) -> Any:
        y = self.a(x) + self.b(x) + x
        if double:
            y = torch.relu(y)
        return y


class Passing(Child):
    """What it does with its option is not only to ask whether it is true."""

    def forward(self, x: Tensor, double: Any = False) -> Any:
        y = self.a(x) + self.b(x) + x
        return y, double


class Twice(nn.Module):
    def __init__(self, child: type[nn.Module]) -> None:
        super().__init__()
        self.child = child()


class TensorFlag(Twice):
    def forward(self, x: Tensor) -> Any:
        return self.child(x, x.mean() > 0)


class SizeFlag(Twice):
    def forward(self, x: Tensor) -> Any:
        return self.child(x, x.shape[0] % 3)


class Untraced(Twice):
    def forward(self, x: Tensor) -> Any:
        flag = x.mean() > 0
        return self.child(x, flag) if flag else self.child(x, double=x.shape[0])


class Often(Twice):
    def forward(self, x: Tensor) -> Any:
        return self.child(x), self.child(x, True), self.child(x, x.shape[0] - 2)


class Starred(Twice):
    def forward(self, x: Tensor) -> Any:
        options = [x.sum()] if x.sum() > 0 else [3]
        return self.child(x, *options)


class OnlyData(Twice):
    def forward(self, x: Tensor) -> Any:
        return self.child(x) if x.sum() > -1e9 else x


class InAList(nn.Module):
    def __init__(self, child: type[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([child(), child()])

    def forward(self, x: Tensor) -> Any:
        for layer in self.layers:
            x = layer(x, x.sum())
            x = x[0] if isinstance(x, tuple) else x
        return x if x.sum() > -1e9 else -x


def same(left: Any, right: Any) -> bool:
    if isinstance(left, tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, Tensor):
        return torch.allclose(left, right, rtol=1e-10, atol=1e-10)
    return bool(left == right)


@pytest.mark.parametrize("child", (Child, Passing))
@pytest.mark.parametrize(
    "parent", (TensorFlag, SizeFlag, Untraced, Often, Starred, OnlyData, InAList)
)
def test_an_option_may_be_anything(parent: Any, child: type[nn.Module]) -> None:
    model = randomize(parent(child).double()).eval()
    fused = repfuse.fuse(model)
    again = repfuse.fuse(fused)
    for x in (X, -X, X[:1]):
        with torch.no_grad():
            assert same(fused(x), model(x))
            assert same(again(x), model(x))


def test_a_child_that_gets_data_alone_is_fused() -> None:
    plan = repfuse.plan(randomize(OnlyData(Passing).double()).eval())
    assert len(plan.report.regions) == 1


@pytest.mark.parametrize("flag", (torch.tensor(True), torch.tensor(0.0), 3, None, "", [0]))
def test_an_option_that_is_only_asked_for_its_truth_may_be_anything(flag: Any) -> None:
    model = randomize(Child().double()).eval()
    plan = repfuse.plan(model)
    assert plan.report.regions
    fused = plan.apply()
    with torch.no_grad():
        assert same(fused(X, flag), model(X, flag))


class Factor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(), conv(size=1)

    def forward(self, x: Tensor, o: Any) -> Any:
        return (self.a(x) + self.b(x) + x) * o


class ManyFactors(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.k, self.h, self.n = Factor(), conv(), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Any:
        first = self.n(self.h(self.k(x, 2)))
        return first + self.k(x, x) + self.k(x, 0.5) + self.k(x, x.shape[1])


def test_a_method_that_was_written_again_is_called_in_all_ways_after_a_second_fuse() -> None:
    model = randomize(ManyFactors().double()).eval()
    fused = repfuse.fuse(model)
    again = repfuse.fuse(fused)
    with torch.no_grad():
        assert same(fused(X), model(X))
        assert same(again(X), model(X))


def _asks(x: Any, a: bool, b: bool, c: bool, d: bool, e: bool, f: bool, unused: bool) -> Any:
    if a and not b:
        return [y for y in x if c]
    while d is True:
        x = e or x
    return x if f == 1 else -x


def test_which_parameters_are_only_asked_for_their_truth() -> None:
    assert only_tested(_asks) == {"a", "b", "unused"}
