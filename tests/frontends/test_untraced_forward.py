"""A forward that cannot be traced looks into its children in all the ways of Python."""

from __future__ import annotations

import functools
import operator
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
MODELS: list[type[nn.Module]] = []


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = conv(), nn.BatchNorm2d(8)
        self.gain = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.inner(x)) * self.gain
        return result


class Decides(nn.Module):
    """What is done hangs on the data."""

    held: Any
    run: Any

    def __init__(self) -> None:
        super().__init__()
        self.child, self.rest = Scaled(), nn.Sequential(conv(), nn.BatchNorm2d(8))

    def body(self, x: Tensor) -> Tensor:
        x = self.rest(self.child(x))
        return x if x.sum() > -1e9 else x + 1


def note(kind: type[nn.Module]) -> type[nn.Module]:
    MODELS.append(kind)
    return kind


def inner_of(block: Any, x: Tensor) -> Any:
    return block.inner(x)


def inner_of_child(net: Any, x: Tensor) -> Any:
    return net.child.inner(x)


def scaled(block: Any, x: Tensor) -> Any:
    return x * block.gain


def first_of(block: Any, x: Tensor) -> Any:
    return next(iter(block.children()))(x)


def element(layers: Any, x: Tensor) -> Any:
    for layer in layers:
        return layer(x)
    return x


@note
class GivenToAFunction(Decides):
    def forward(self, x: Tensor) -> Any:
        return inner_of(self.child, self.body(x))


@note
class GivesItself(Decides):
    def forward(self, x: Tensor) -> Any:
        return inner_of_child(self, self.body(x))


@note
class ParameterInAFunction(Decides):
    def forward(self, x: Tensor) -> Any:
        return scaled(self.child, self.body(x))


@note
class ChildrenInAFunction(Decides):
    def forward(self, x: Tensor) -> Any:
        return first_of(self.child, self.body(x))


@note
class ElementInAFunction(Decides):
    def forward(self, x: Tensor) -> Any:
        return element(self.rest, self.body(x))


@note
class OwnHelper(Decides):
    def inner_of(self, block: Any, x: Tensor) -> Any:
        return block.inner(x)

    def forward(self, x: Tensor) -> Any:
        return self.inner_of(self.child, self.body(x))


@note
class StaticHelper(Decides):
    @staticmethod
    def inner_of(block: Any, x: Tensor) -> Any:
        return block.inner(x)

    def forward(self, x: Tensor) -> Any:
        return self.inner_of(self.child, self.body(x))


@note
class ByAName(Decides):
    mode = "inner"

    def run_inner(self, x: Tensor) -> Any:
        return self.child.inner(self.body(x))

    def forward(self, x: Tensor) -> Any:
        return getattr(self, "run_" + self.mode)(x)


@note
class ByANameInside(Decides):
    def forward(self, x: Tensor) -> Any:
        return getattr(self.child, "inner")(self.body(x))  # noqa: B009


@note
class ByAGetter(Decides):
    def forward(self, x: Tensor) -> Any:
        return operator.attrgetter("child.inner")(self)(self.body(x))


@note
class Either(Decides):
    def forward(self, x: Tensor) -> Any:
        x = self.body(x)
        return (self.child if x.shape[0] else self.rest).inner(x)  # type: ignore[operator]


@note
class InAList(Decides):
    def forward(self, x: Tensor) -> Any:
        return [self.child][0].inner(self.body(x))


@note
class HeldInAList(Decides):
    def __init__(self) -> None:
        super().__init__()
        self.held = [self.child]

    def forward(self, x: Tensor) -> Any:
        return self.held[0].inner(self.body(x))


@note
class Listed(Decides):
    def forward(self, x: Tensor) -> Any:
        x = self.body(x)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                x = module(x)
        return x


@note
class ByPath(Decides):
    def forward(self, x: Tensor) -> Any:
        return dict(self.named_modules())["child.inner"](self.body(x))


@note
class Penalty(Decides):
    def forward(self, x: Tensor) -> Any:
        return self.body(x).mean() + sum(p.pow(2).sum() for p in self.parameters())


@note
class AsksForAParameter(Decides):
    def forward(self, x: Tensor) -> Any:
        x = self.body(x)
        return x + 1 if self.child.gain is not None else x


@note
class AsksForAClass(Decides):
    def forward(self, x: Tensor) -> Any:
        x = self.body(x)
        return x + 1 if isinstance(self.rest[1], nn.BatchNorm2d) else x


@note
class Property(Decides):
    @functools.cached_property
    def first(self) -> Any:
        return self.child.inner

    def forward(self, x: Tensor) -> Any:
        return self.first(self.body(x))


@note
class Partial(Decides):
    def _run(self, x: Tensor, factor: float) -> Any:
        return self.child.inner(self.body(x)) * factor

    part = functools.partialmethod(_run, factor=2.0)

    def forward(self, x: Tensor) -> Any:
        return self.part(x)


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        return function(*args)

    return run


@note
class Decorated(Decides):
    @decorated
    def forward(self, x: Tensor) -> Any:
        return self.child.inner(self.body(x))


@note
class Delegates(Decides):
    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.child, name)

    def forward(self, x: Tensor) -> Any:
        return self.inner(self.body(x))


class Runner:
    def __init__(self, block: Any) -> None:
        self.block = block

    def __call__(self, x: Tensor) -> Any:
        return self.block.inner(x)


@note
class HelperObject(Decides):
    def __init__(self) -> None:
        super().__init__()
        self.run = Runner(self.child)

    def forward(self, x: Tensor) -> Any:
        return self.run(self.body(x))


@note
class NewHelperObject(Decides):
    def forward(self, x: Tensor) -> Any:
        return Runner(self.child)(self.body(x))


@note
class BoundMethod(Decides):
    def __init__(self) -> None:
        super().__init__()
        self.run = self._first

    def _first(self, x: Tensor) -> Any:
        return self.child.inner(x)

    def forward(self, x: Tensor) -> Any:
        return self.run(self.body(x))


@note
class BoundPartial(Decides):
    def __init__(self) -> None:
        super().__init__()
        self.run = functools.partial(inner_of, self.child)

    def forward(self, x: Tensor) -> Any:
        return self.run(self.body(x))


@note
class OtherName(Decides):
    def forward(self, x: Tensor) -> Any:
        me = self
        return me.child.inner(me.body(x))


@note
class Alias(Decides):
    def forward(self, x: Tensor) -> Any:
        block = self.child
        return block.inner(self.body(x))


@note
class PartOfAPart(Decides):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([self.rest])

    def forward(self, x: Tensor) -> Any:
        return self.stages[0][0](self.body(x))  # type: ignore[index]


@note
class AliasOfAList(Decides):
    def forward(self, x: Tensor) -> Any:
        layers = self.rest
        return layers[0](self.body(x))


@pytest.mark.parametrize("kind", MODELS)
def test_what_the_code_looks_into_stays(kind: Any) -> None:
    model = randomize(kind().double()).eval()
    plan = repfuse.plan(model)
    assert plan.report.untraced
    assert_same(model, plan.apply(), X)


class Ordinary(Decides):
    """All that it does with children is to call them, or to ask whether they are there."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Scaled(), nn.Sequential(conv(), nn.BatchNorm2d(8))])
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        x = self.body(x.to(next(self.parameters()).dtype))
        for layer in self.layers:
            x = layer(x)
        if self.rest is not None and self.child:
            x = torch.utils.checkpoint.checkpoint(self.child, x, use_reentrant=False)
        return x[:, 0]


def test_what_is_only_called_is_fused() -> None:
    model = randomize(Ordinary().double()).eval()
    plan = repfuse.plan(model)
    assert len(plan.report.regions) == 4
    assert_same(model, plan.apply(), X)
