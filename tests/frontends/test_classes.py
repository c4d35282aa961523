"""Classes that do something when they are copied, derived from, or set to a mode."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import repfuse
from tests.frontends import conv
from tests.frontends.test_code import images
from tests.numerics import assert_same, randomize

X = images(0)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = conv(), conv(size=1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.a(x) + self.b(x)))


class Tagged(Branches):
    tag: str

    def __init_subclass__(cls, *, tag: str) -> None:
        super().__init_subclass__()
        cls.tag = tag


class NeedsATag(Tagged, tag="some"):
    pass


class Registered(Branches):
    seen: ClassVar[dict[str, type]] = {}

    def __init_subclass__(cls) -> None:
        if cls.__name__ in Registered.seen:
            raise ValueError(f"{cls.__name__} is there already")
        Registered.seen[cls.__name__] = cls


class Once(Registered):
    pass


class AllowsNoSubclass(type):
    def __new__(mcs, name: str, bases: tuple[type, ...], space: dict[str, Any]) -> Any:
        if any(getattr(base, "final", False) for base in bases):
            raise TypeError(f"{bases} has no subclasses")
        return super().__new__(mcs, name, bases, space)


class Final(Branches, metaclass=AllowsNoSubclass):
    final = True


class Frozen(Branches):
    def __setattr__(self, name: str, value: Any) -> None:
        if "norm" in self.__dict__.get("_modules", {}) and name != "training":
            raise AttributeError(f"{name} is frozen")
        super().__setattr__(name, value)


@pytest.mark.parametrize("kind", [NeedsATag, Once, Final, Frozen])
def test_a_class_that_minds_its_subclasses(kind: type[Branches]) -> None:
    model = randomize(kind().double()).eval()
    plan = repfuse.plan(model)
    fused = plan.apply()
    assert len(plan.report.regions) == 1
    assert isinstance(fused, kind)
    assert_same(model, fused, X)
    assert_same(model, copy.deepcopy(fused), X)


def test_a_register_of_classes_keeps_its_class() -> None:
    repfuse.fuse(Once())
    assert Registered.seen["Once"] is Once


class WithSlots(Branches):
    __slots__ = ("more",)


def test_a_class_of_another_layout() -> None:
    model = randomize(WithSlots().double()).eval()
    assert_same(model, repfuse.fuse(model), X)


class OldSuper(Branches):
    def train(self, mode: bool = True) -> Any:
        return super(type(self), self).train(mode)


class NamedSelf(Branches):
    def forward(this, self: Tensor) -> Tensor:
        return torch.relu(this.norm(this.a(self) + this.b(self)))


class ForwardProperty(Branches):
    @property
    def forward(self) -> Any:  # type: ignore[override]
        return self.run

    def run(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.a(x) + self.b(x)))


@pytest.mark.parametrize("kind", [OldSuper, NamedSelf, ForwardProperty])
def test_a_class_that_is_not_derived_from(kind: type[Branches]) -> None:
    model = randomize(kind().double()).eval()
    assert_same(model, repfuse.fuse(model).eval(), X)


@pytest.mark.parametrize("inner", [False, True])
def test_a_copy_of_a_compiled_model_calls_itself(inner: bool) -> None:
    model: Any = randomize(nn.Sequential(Branches(), Branches()).double()).eval()
    (model[0] if inner else model).compile(backend="eager")
    fused: Any = repfuse.fuse(model)
    before = fused(X)
    for part in model[0].parameters():
        part.data.zero_()
    torch.testing.assert_close(fused(X), before)
    for part in fused[0].parameters():
        part.data.zero_()
    assert not torch.equal(fused(X), before)


class StaysInTrainMode(nn.Module):
    """Statistics of the batch, and dropout, after eval() as well."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.conv, self.layer, self.last = conv(), layer, conv(size=1)

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self.layer.train(True)
        return self

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.layer(self.conv(x)))
        return result


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Dropout2d(0.5), nn.SyncBatchNorm(8)]
)
def test_a_layer_that_stays_in_train_mode(layer: nn.Module) -> None:
    model = randomize(StaysInTrainMode(layer).double()).eval()
    plan = repfuse.plan(model)
    fused: Any = plan.apply()
    assert not plan.report.regions
    assert fused.layer.training
    if isinstance(layer, nn.SyncBatchNorm):
        return  # it computes with other processes only
    torch.manual_seed(3)
    expected = copy.deepcopy(model)(X)
    torch.manual_seed(3)
    torch.testing.assert_close(fused(X), expected)
