"""What Python code around the layers may do: look into them, ask for types, be called otherwise.

Whatever is written in forward and in the modules around, the fused model answers as the original
does, for every way of calling it that is tried here.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import repfuse
from tests.frontends import conv
from tests.numerics import randomize


class Base(nn.Module):
    """Two branches and a norm, which every case uses in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.bn = conv(), conv(size=1), nn.BatchNorm2d(8)


def images(seed: int = 0) -> Tensor:
    return torch.randn(2, 8, 9, 10, generator=torch.Generator().manual_seed(seed)).double()


X, Y = images(0), images(1)
Calls = tuple[tuple[Any, ...], ...]
CASES: dict[str, tuple[Callable[[], nn.Module], Calls, int]] = {}


def case(
    *calls: tuple[Any, ...], regions: int = 0
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """A model, the arguments of the calls that are compared, and how many regions it has."""

    def note(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        CASES[build.__name__] = (build, calls or ((X,),), regions)
        return build

    return note


# Arguments.


@case((X, Y), (X, None), regions=1)
class RequiredButMaybeNone(Base):
    def forward(self, x: Tensor, mask: Tensor | None) -> Any:
        y = self.a(x) + self.b(x)
        return y.relu() if mask is None else (y * mask).relu()


@case((X,), ([X, Y],))
class AListOrATensor(Base):
    def forward(self, x: Any) -> Any:
        if isinstance(x, list | tuple):
            x = x[0] + x[1]
        return (self.a(x) + self.b(x)).relu()


@case((X,), ([X, Y],))
class ATensorOrAList(Base):
    def forward(self, x: Any) -> Any:
        x = x if torch.is_tensor(x) else x[1]
        return self.bn(self.a(x)).relu()


@case((X,), regions=1)
class PositionalOnly(Base):
    def forward(self, x: Tensor, /) -> Any:
        return (self.a(x) + self.b(x)).relu()


class Two(Base):
    def forward(self, x: Tensor, y: Tensor) -> Any:
        return (self.a(x) + self.b(x)).relu() + y.relu()


@case((X,), regions=2)
class TheSameTensorTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Two()

    def forward(self, x: Tensor) -> Any:
        return self.block(self.block(x, x), x)


class Several(Base):
    def forward(self, parts: list[Tensor]) -> Any:
        y = self.a(parts[0]) + self.b(parts[0])
        for part in parts[1:]:
            y = y.relu() + part.relu()
        return y.relu()


@case((X,), regions=2)
class ListsOfTwoLengths(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Several()

    def forward(self, x: Tensor) -> Any:
        y = self.block([x, x.relu()])
        return self.block([y, x, x.sigmoid()])


@case()
class AnAttributeDecides(Base):
    def __init__(self) -> None:
        super().__init__()
        self.acts = nn.ModuleList(nn.PReLU(8) for _ in range(3))
        self.index = 0

    def step(self, x: Tensor) -> Any:
        return self.acts[self.index](self.a(x) + self.b(x))

    def forward(self, x: Tensor) -> Any:
        for self.index in range(3):
            x = self.step(x)
        return x


@case(regions=2)
class ALiteralInATuple(Base):
    def step(self, pair: tuple[Tensor, int]) -> Any:
        return (self.a(pair[0]) + self.b(pair[0])).relu() * pair[1]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.step((x, 2)), self.step((x, 3))


@case(regions=2)
class KeysOfADict(Base):
    def step(self, given: dict[str, Tensor]) -> Any:
        y = (self.a(given["x"]) + self.b(given["x"])).relu()
        return y * given["mask"] if "mask" in given else y

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.step({"x": x}), self.step({"x": x, "mask": x})


# Looking into layers.


@case()
class AWeightIsReadAsWell(Base):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.bn(self.a(x)).relu(), self.a.weight.norm()


@case()
class AWeightIsUsedTwice(Base):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.bn(self.a(x)).relu(), F.conv2d(x, self.a.weight, padding=1)


@case(regions=1)
class ANumberOfFeatures(Base):
    def forward(self, x: Tensor) -> Any:
        x = self.bn(self.a(x)).relu()
        return x.reshape(x.shape[0], self.bn.num_features, -1)


@case()
class ADtypeOfANorm(Base):
    def forward(self, x: Tensor) -> Any:
        return self.bn(self.a(x.to(self.bn.weight.dtype))).relu()


@case(regions=1)
class ADtypeOfAConv(Base):
    def forward(self, x: Tensor) -> Any:
        return self.bn(self.a(x.to(self.a.weight.dtype))).relu()


@case(regions=1)
class TheTypeOfALayer(Base):
    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        x = self.bn(x) if isinstance(self.bn, nn.BatchNorm2d) else x * 0.5
        return x.relu()


@case(regions=2)
class TypesInALoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        block = [conv(), nn.BatchNorm2d(8), nn.ReLU()]
        self.layers = nn.ModuleList([*block, conv(), nn.BatchNorm2d(8)])

    def forward(self, x: Tensor) -> list[Tensor]:
        kept = []
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.BatchNorm2d):
                kept.append(x)
        return kept


@case(regions=1)
class TheExactTypeOfALayer(Base):
    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        x = self.bn(x) if type(self.bn) is nn.BatchNorm2d else x * 0.5
        return x.relu()


@case()
class StatisticsThatMove(Base):
    def forward(self, x: Tensor) -> Any:
        mean: Any = self.bn.running_mean
        mean.mul_(0.9)
        return self.bn(self.a(x)).relu()


@case()
class LayersInAList(Base):
    def __init__(self) -> None:
        super().__init__()
        self.order = [self.a, self.bn]

    def forward(self, x: Tensor) -> Any:
        for layer in self.order:
            x = layer(x)
        return x.relu()


@case()
class ALayerInAListAndByName(Base):
    def __init__(self) -> None:
        super().__init__()
        self.after = {"norm": (self.bn,)}

    def forward(self, x: Tensor) -> Any:
        return self.after["norm"][0](self.a(x)).relu()


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.PReLU(8)

    def forward(self, x: Tensor) -> Any:
        return self.act(x)

    def __call__(self, x: Tensor) -> Any:
        return super().__call__(x) * 2


@case()
class ACallOfItsOwn(Base):
    def __init__(self) -> None:
        super().__init__()
        self.act = Doubled()

    def forward(self, x: Tensor) -> Any:
        return self.act(self.a(x) + self.b(x)).relu()


# Modules that cannot be traced reach into others.


def untraceable(x: Tensor) -> bool:
    return bool(x.mean() > 1e9)


class Chain(Base):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(1, 8, 1, 1) + 0.5)

    def encode(self, x: Tensor) -> Any:
        return self.a(x)

    def forward(self, x: Tensor) -> Any:
        return (self.bn(self.encode(x)) * self.scale).relu()


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Chain()


@case()
class ReachesALayer(Outer):
    def forward(self, x: Tensor) -> Any:
        return x if untraceable(x) else self.net.a(x).relu() + self.net(x)


@case()
class ReachesAMethod(Outer):
    def forward(self, x: Tensor) -> Any:
        return x if untraceable(x) else self.net.encode(x).relu() + self.net(x)


@case(regions=1)
class ReadsAParameter(Outer):
    def forward(self, x: Tensor) -> Any:
        return x if untraceable(x) else self.net(x) * self.net.scale.sum()


@case()
class ReadsTheWeightOfANorm(Outer):
    def forward(self, x: Tensor) -> Any:
        return x if untraceable(x) else self.net(x) * self.net.bn.weight.sum()


@case(regions=1)
class OnlyCalls(Outer):
    def forward(self, x: Tensor) -> Any:
        return x if untraceable(x) else self.net(x)


class Steps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.Sequential(conv(), nn.BatchNorm2d(8), nn.ReLU(), conv())


@case()
class ASliceOfASequential(Steps):
    def forward(self, x: Tensor) -> Any:
        return self.steps[:1](x) if not untraceable(x) else x


@case()
class ALoopOverASequential(Steps):
    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for step in self.steps:
            x = step(x)
            found.append(x)
        return [] if untraceable(x) else found


@case()
class ChildrenOfASequential(Steps):
    def forward(self, x: Tensor) -> Any:
        for _, step in self.steps.named_children():
            x = step(x).relu()
        return x * 0 if untraceable(x) else x


class Decays(nn.Module):
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x: Tensor) -> Any:
        if not untraceable(x):
            self.scale.mul_(0.9)
        return x.relu()


@case((X,), (X,))
class ABufferThatAnUntracedChildChanges(Base):
    def __init__(self) -> None:
        super().__init__()
        self.decays = Decays()

    def forward(self, x: Tensor) -> Any:
        return (self.a(self.decays(x)) * self.decays.scale).relu()


# Memory.


class Between(Base):
    """Something happens to y between its two readers."""

    def happens(self, y: Tensor) -> None:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Any:
        y = x.sigmoid()
        first = self.a(y)
        self.happens(y)
        return (first + self.b(y)).relu()


@case()
class ForEach(Between):
    def happens(self, y: Tensor) -> None:
        torch._foreach_add_([y], 1.0)


@case()
class ThroughData(Between):
    def happens(self, y: Tensor) -> None:
        y.data += 1.0


@case()
class ThroughANamedData(Between):
    def happens(self, y: Tensor) -> None:
        data = y.data
        data *= 2.0


@case()
class AnotherData(Between):
    def happens(self, y: Tensor) -> None:
        y.data = y.data * 2.0


@case()
class InAHookedSequential(Between):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.ReLU(inplace=True), nn.Hardtanh(-0.2, 0.2, inplace=True))
        self.inner.register_forward_hook(lambda module, args, result: None)

    def happens(self, y: Tensor) -> None:
        self.inner(y.sub_(0.5))


class Rectified(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return x.sub_(0.5).relu_()


@case()
class InDataParallel(Between):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.DataParallel(Rectified())

    def happens(self, y: Tensor) -> None:
        self.inner(y)


@case()
class AViewOfWhatChanges(Base):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.b(x)
        view = y[:, :1]
        y.add_(1.0)
        return y.relu(), view.relu()


@case()
class IntoGivenMemory(Base):
    def forward(self, x: Tensor) -> Any:
        memory = x.new_empty(x.shape[0], 16, x.shape[2], x.shape[3])
        torch.cat([self.a(x), self.b(x)], 1, out=memory)
        return memory.relu()


# Axes, dtypes, literals, results.


@case(
    (torch.rand(2, 5, 6, 3, 3).double(),),
    (torch.rand(2, 6, 3, 3).double(),),
)
class AMeanOfFiveAxes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(6, 5), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Any:
        return self.norm(self.linear(x.mean((-2, -1)))).relu()


@case((torch.rand(3, 4, 6).double(),), (torch.rand(4, 6).double(),))
class AScaleThatMayAddAnAxis(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(6, 5), nn.Parameter(torch.ones(1, 1, 5))

    def forward(self, x: Tensor) -> Any:
        return (self.linear(x) * self.scale).relu()


@case((torch.rand(2, 8, 4, 4).double(),), regions=1)
class AScaleOfTokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = conv(), nn.Linear(8, 5)
        self.scale = nn.Parameter(torch.rand(1, 1, 5))

    def forward(self, x: Tensor) -> Any:
        tokens = self.conv(x).relu().flatten(2).permute(0, 2, 1)
        return (self.linear(tokens) * self.scale).relu()


@case((X.float(),))
class ASumOfAnotherDtype(Base):
    def forward(self, x: Tensor) -> Any:
        branches = torch.stack([self.a(x.double()), self.b(x.double())])
        return branches.sum(0, dtype=torch.float32).relu()


@case(regions=1)
class ANumpyScalar(Base):
    def __init__(self) -> None:
        super().__init__()
        self.scale = 1 / np.sqrt(64)

    def forward(self, x: Tensor) -> Any:
        return (self.a(x) + self.b(x)).relu() * self.scale


@case(regions=1)
class ADifferenceByName(Base):
    def forward(self, x: Tensor) -> Any:
        return torch.rsub(self.a(x) + self.b(x), other=1.0).relu()


@case(regions=1)
class NamesThatAreKeywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({"class": conv(), "global": conv(size=1)})

    def forward(self, x: Tensor) -> Any:
        return (self.heads["class"](x) + self.heads["global"](x)).relu()


@case()
class AnOrderedDict(Base):
    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict(out=(self.a(x) + self.b(x)).relu())


def assert_equal(wanted: Tensor, got: Tensor, bound: float = 1e-9) -> None:
    assert (wanted - got).abs().max() <= bound * wanted.abs().max()


def tensors(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [part for item in value.values() for part in tensors(item)]
    if isinstance(value, list | tuple):
        return [part for item in value for part in tensors(item)]
    return [value]


def check_call(model: nn.Module, fused: nn.Module, given: tuple[Any, ...]) -> None:
    with torch.no_grad():
        wanted = model(*copy.deepcopy(given))
        got = fused(*copy.deepcopy(given))
    assert type(got) is type(wanted)
    for one, other in zip(tensors(wanted), tensors(got), strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert_equal(one, other)


@pytest.mark.parametrize("name", CASES)
def test_the_fused_model_answers_as_the_original(name: str) -> None:
    build, calls, regions = CASES[name]
    model = randomize(build()).double().eval()
    plan = repfuse.plan(model)
    assert plan.report.errors == []
    assert len(plan.report.regions) == regions, plan
    fused = plan.apply()
    for given in calls:
        check_call(model, fused, given)


# Ways to use a model that are not a call.


def test_a_method_that_forward_does_not_call() -> None:
    class Embeds(Base):
        def embed(self, x: Tensor) -> Any:
            return self.a(x)

        def forward(self, x: Tensor) -> Any:
            return self.bn(self.a(x)).relu()

    model = randomize(Embeds()).double().eval()
    plan = repfuse.plan(model)
    fused: Any = plan.apply()
    assert_equal(fused.embed(X), model.embed(X))
    assert "embed, which is not traced, calls a alone" in str(plan.report.to_dict())


def test_tensors_in_a_list_stay_those_of_the_model() -> None:
    class Listed(Base):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(8, 8, 1, 1))
            self.weights = [(self.weight,)]

        def forward(self, x: Tensor) -> Any:
            return F.conv2d(self.bn(self.a(x)).relu(), self.weights[0][0])

    model = randomize(Listed()).double().eval()
    fused: Any = repfuse.fuse(model)
    assert fused.weights[0][0] is fused.weight
    assert fused.weight.data_ptr() != model.weight.data_ptr()
    assert_equal(fused.float()(X.float()).double(), model(X), 1e-5)


def test_counters_count_calls_only() -> None:
    class Counts(Base):
        def __init__(self) -> None:
            super().__init__()
            self.array, self.tensor = np.zeros(1), torch.zeros(1)

        def forward(self, x: Tensor) -> Any:
            self.array += 1
            self.tensor.add_(1)
            return self.bn(self.a(x)).relu()

    model: Any = randomize(Counts()).eval()
    fused: Any = repfuse.fuse(model)
    assert (model.array[0], fused.array[0], fused.tensor[0]) == (0, 0, 0)
    fused(X.float())
    fused(X.float())
    assert (model.array[0], fused.array[0], fused.tensor[0]) == (0, 2, 2)


def test_modes_that_are_on_already_stay() -> None:
    class Modes(Base):
        def forward(self, x: Tensor) -> Any:
            with torch.enable_grad(), torch.autocast("cpu", enabled=False):
                return (self.a(x) + self.b(x)).relu()

    fused = repfuse.fuse(randomize(Modes()).eval())
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        result = fused(X.float())
    assert result.requires_grad and result.dtype is torch.float32


def test_a_question_for_the_grad_mode_stays() -> None:
    class Asks(Base):
        def forward(self, x: Tensor) -> Any:
            y = self.a(x) + self.b(x)
            return y.relu() if torch.is_grad_enabled() else y.sigmoid()

    model = randomize(Asks()).double().eval()
    fused = repfuse.fuse(model)
    assert_equal(fused(X), model(X))
    with torch.no_grad():
        assert_equal(fused(X), model(X))


@pytest.mark.parametrize("draw", ["gumbel", "normal", "poisson", "empty"])
def test_drawn_weights_are_drawn_again(draw: str) -> None:
    class Draws(Base):
        def forward(self, x: Tensor) -> Any:
            if draw == "gumbel":
                weight = F.gumbel_softmax(self.b.weight, dim=0)
            elif draw == "normal":
                weight = torch.normal(self.b.weight, self.b.weight.abs())
            elif draw == "poisson":
                weight = torch.poisson(self.b.weight.abs() * 10)
            else:
                weight = torch.empty_like(self.b.weight).copy_(self.b.weight)
            return (self.a(x) + F.conv2d(x, weight)).relu()

    plan = repfuse.plan(randomize(Draws()).eval())
    assert plan.report.errors == [] and plan.report.regions == []


def test_nothing_of_the_watch_stays() -> None:
    """isinstance, modes and the look-up of attributes are torch's and Python's own again."""
    before = (isinstance, torch.is_grad_enabled, torch.no_grad.__enter__, nn.Module.__getattr__)
    model = CASES["TypesInALoop"][0]()
    kept = [list(vars(module)) for module in model.modules()]
    repfuse.plan(model)
    repfuse.fuse(model)
    after = (isinstance, torch.is_grad_enabled, torch.no_grad.__enter__, nn.Module.__getattr__)
    assert before == after and isinstance.__module__ == "builtins"
    assert [list(vars(module)) for module in model.modules()] == kept
