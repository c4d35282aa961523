"""Small models that were once answered wrongly, by what was wrong.

Each is fused, compared with the original in float64 on every call that is listed, and planned
again: a second fuse finds nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import repfuse
from tests.frontends import conv, executed
from tests.frontends.test_code import images
from tests.numerics import assert_same, randomize

X, Y = images(0), images(1)
SQUARE = X[..., :8, :8]
Build = Callable[[], nn.Module]
CASES: dict[str, tuple[Build, int, tuple[tuple[Any, ...], ...]]] = {}


def case(regions: int, *calls: tuple[Any, ...]) -> Callable[[Build], Build]:
    """A model, how many regions are rewritten in it, and the arguments of its calls."""

    def note(build: Build) -> Build:
        CASES[build.__name__] = (build, regions, calls or ((X,),))
        return build

    return note


class Base(nn.Module):
    """Two branches and a norm, which every case uses in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.bn = conv(), conv(size=1), nn.BatchNorm2d(8)


def untraceable(x: Tensor) -> bool:
    return bool(x.sum() > 1e9)


@case(1)
class ACallReadsWhatWasChangedInPlace(Base):
    """The call is kept as it is, and reads the name of a tensor that became another one."""

    class Activated(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sigmoid()

    def __init__(self) -> None:
        super().__init__()
        self.activated = self.Activated()

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y.sub_(y, alpha=0.5)
        result: Tensor = self.activated(y)
        return result


class TokenNorms(nn.Module):
    """A norm over the channels of tokens stands between moves, and what moves back is returned."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(8, 6), nn.Linear(8, 6), nn.BatchNorm1d(6)


SAMPLES = torch.randn(2, 5, 8, dtype=torch.float64)


@case(1, (SAMPLES,))
class AReturnedNormAfterASum(TokenNorms):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x) + self.b(x)
        return self.norm(y.transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]


@case(1, (SAMPLES,))
class AReturnedNormAfterAFunction(TokenNorms):
    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.a.weight + self.b.weight)
        return self.norm(y.transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.after = conv(), nn.BatchNorm2d(8), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        bn = self.bn
        statistics = bn.running_mean, bn.running_var
        return self.after(F.batch_norm(self.conv(x), *statistics, bn.weight, bn.bias))  # type: ignore[no-any-return]


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


@case(1)
class AnIdentityBetweenTwoModules(nn.Module):
    """It stands outside of the module whose norm is merged."""

    def __init__(self) -> None:
        super().__init__()
        self.normed, self.between, self.scaled = Normed(), nn.Identity(), Scaled()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.scaled(self.between(self.normed(x))))


@case(2, (X[:, :8],))
class ALayerThatOneRegionLeavesOut(nn.Module):
    """A sum reads what is before it, so that a norm in another module goes into it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.block = conv(size=1), conv(), nn.Sequential(nn.BatchNorm2d(8))
        self.block.append(nn.ReLU())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.one(x)
        return torch.relu(y + self.other(x)), self.block(y)


@case(1)
class ANormBehindAScaledBranch(nn.Module):
    """How many axes a product with a parameter has tells that the mean of it is a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gamma = conv(), nn.Parameter(torch.randn(8, 1, 1))
        self.bn, self.head = nn.BatchNorm1d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.sigmoid() + self.gamma * torch.relu(self.conv(x))
        return self.head(self.bn(x.mean((2, 3))))  # type: ignore[no-any-return]


# Names, methods and their arguments.


@case(2)
class TwoMethodsWithALayerEach(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.randn(8, 8, 3, 3)) for _ in range(2))

    def stem(self, x: Tensor) -> Any:
        return torch.relu(F.conv2d(x, self.a / self.a.norm(), padding=1))

    def forward(self, x: Tensor) -> Any:
        return F.conv2d(self.stem(x), self.b / self.b.norm(), padding=1)


@case(2)
class TwoMethodsThatSwallowOneChild(Base):
    def _middle(self, x: Tensor) -> Any:
        y = self.a(x) + self.b(x)
        return y, y.relu()

    def forward(self, x: Tensor) -> Any:
        y, z = self._middle((self.a(x) + self.b(x) + x).relu())
        return y * z


@case(2)
class ACallThatLooksFurtherBack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.skip = SkipsWithoutActivation()

    def forward(self, x: Tensor) -> Any:
        y = self.skip(x, x)
        return self.skip(x, y), y


class SkipsWithoutActivation(Base):
    def forward(self, x: Tensor, skip: Tensor) -> Any:
        return self.a(x) + self.b(x) + skip


class Skips(Base):
    def forward_head(self, x: Tensor, skip: Tensor) -> Any:
        return torch.relu(self.a(x) + self.b(x) + skip)

    def forward(self, x: Tensor) -> Any:
        return self.forward_head(x, x * 0.5)


class Skip(Base):
    def forward(self, x: Tensor, skip: Tensor) -> Any:
        return torch.relu(self.a(x) + self.b(x) + skip)


class CallsSkip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.skip = Skip()

    def forward(self, x: Tensor) -> Any:
        return self.skip(x, x * 0.5)


@case(1)
class APartThatIsAlsoCalledFromOutside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = CallsSkip()

    def forward(self, x: Tensor) -> Any:
        y = self.part(x)
        return y if untraceable(y) else self.part.skip(x, y)


def test_a_method_that_users_call_reads_all_its_arguments() -> None:
    model = randomize(Skips()).double().eval()
    fused: Any = repfuse.fuse(model)
    assert executed(fused, X) == "add, conv, mul, relu"
    with torch.no_grad():
        wanted, got = model.forward_head(X, Y), fused.forward_head(X, Y)
    assert (wanted - got).abs().max() < 1e-9


@case(1)
class AHelperMethodInASum(Base):
    def _branch(self, x: Tensor) -> Any:
        return self.a(x)

    def forward(self, x: Tensor) -> Any:
        return torch.relu(self._branch(x) + self.b(x))


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.rand(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Any:
        return x * self.g


@case(1)
class AChildThatIsSwallowedAtOneCall(Base):
    def __init__(self) -> None:
        super().__init__()
        self.scale = Scale()

    def forward(self, x: Tensor) -> Any:
        return self.scale(torch.relu(self.a(x) + self.scale(x)))


class Weighted(Base):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(8, 8, 3, 3))


@case(1)
class AHelperMethodWithTwoResults(Weighted):
    def _stem(self, x: Tensor) -> Any:
        x = torch.relu(x)
        return x, F.conv2d(x, self.w, padding=1)

    def forward(self, x: Tensor) -> Any:
        x, y = self._stem(x)
        return y + self.b(x)


@case(1)
class AHelperMethodOfAHelperMethod(Weighted):
    def _wide(self, x: Tensor) -> Any:
        return F.conv2d(x, self.w, padding=1), x.sigmoid()

    def _stem(self, x: Tensor) -> Any:
        y, z = self._wide(x)
        return self.a(x) + y, z

    def forward(self, x: Tensor) -> Any:
        y, z = self._stem(x)
        return (y + self.b(x)).relu() * z


@case(1)
class AHelperMethodThatIsCalledTwice(Weighted):
    def _wide(self, x: Tensor) -> Any:
        return F.conv2d(x, self.w, padding=1), x.sigmoid()

    def forward(self, x: Tensor) -> Any:
        y, z = self._wide(x)
        return self._wide((y + self.b(x)).relu() * z)


class TwoSums(Base):
    def forward(self, x: Tensor, y: Tensor) -> Any:
        return torch.relu(self.a(x) + self.b(x)), torch.relu(self.a(y) + self.b(y))


@case(4)
class CallsWithDifferentNumbersOfTerms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.two = TwoSums()

    def forward(self, x: Tensor) -> Any:
        return self.two(*self.two(x, x * 2))


def test_a_helper_method_that_is_written_into_its_caller_leaves_no_weights() -> None:
    fused = repfuse.fuse(AHelperMethodWithTwoResults().eval())
    assert executed(fused, torch.randn(1, 8, 5, 5)) == "conv, relu"
    assert "w" not in dict(fused.named_parameters())


# What keeps the channels of its input, and what does not.


def then_a_sum(middle: Callable[[], nn.Module], outputs: int) -> Build:
    class ThenASum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.middle = conv(8, outputs), middle()

        def forward(self, x: Tensor) -> Any:
            y = self.middle(self.c(x))
            return torch.relu(y * 2 + F.avg_pool2d(y, 3, 1, 1))

    return ThenASum


class Calls(nn.Module):
    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run
        self.register_buffer("low", torch.rand(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


MIDDLES: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "a_gated_linear_unit": (lambda: nn.GLU(1), 8, 0),
    "a_functional_glu": (lambda: Calls(lambda n, x: F.glu(x, 1)), 8, 0),
    "a_border_of_channels": (lambda: Calls(lambda n, x: F.pad(x, (0, 0, 0, 0, 2, 2))), 8, 0),
    "a_padding_layer_of_channels": (lambda: nn.ZeroPad3d((0, 0, 0, 0, 2, 2)), 8, 0),
    "a_reflected_border_of_channels": (lambda: nn.ReflectionPad3d((0, 0, 0, 0, 2, 2)), 8, 0),
    "a_maximum_of_channels": (lambda: nn.MaxPool3d((2, 1, 1)), 8, 0),
    "a_functional_maximum": (lambda: Calls(lambda n, x: F.max_pool3d(x, (2, 1, 1))), 8, 0),
    "a_mean_of_channels": (lambda: nn.AvgPool3d((2, 1, 1)), 8, 0),
    "an_adaptive_mean": (lambda: nn.AdaptiveAvgPool3d((4, 9, 10)), 8, 0),
    "a_lower_bound": (lambda: Calls(lambda n, x: torch.clamp(x, min=n.low)), 1, 0),
    "a_bound_by_position": (lambda: Calls(lambda n, x: x.clip(n.low)), 1, 0),
    "a_bound": (lambda: Calls(lambda n, x: torch.clamp(x, min=0.5)), 8, 1),
    "a_maximum_of_places": (lambda: nn.MaxPool2d(2), 8, 1),
    "a_border": (lambda: Calls(lambda n, x: F.pad(x, (1, 1), value=1.0)), 8, 1),
}
for _name, (_middle, _outputs, _regions) in MIDDLES.items():
    CASES[f"a_sum_behind_{_name}"] = (then_a_sum(_middle, _outputs), _regions, ((X,),))


@case(1)
class OnlyBuffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(8, affine=False)

    def forward(self, x: Tensor) -> Any:
        return torch.relu(self.bn(x) + F.avg_pool2d(x, 3, 1, 1))


# The order of arguments.


class Statistics(Base):
    def __init__(self) -> None:
        super().__init__()
        for name in ("w", "s", "m", "v"):
            self.register_buffer(name, torch.rand(8) + 0.5)


def arguments(call: Callable[[Any, Tensor], Any]) -> Build:
    class Arguments(Statistics):
        def forward(self, x: Tensor) -> Any:
            return call(self, x)

    return Arguments


ORDERS: dict[str, tuple[Callable[[Any, Tensor], Any], int]] = {
    "add": (lambda n, x: torch.add(n.a(x), 2, n.b(x)), 1),
    "sub": (lambda n, x: torch.sub(n.a(x), 2, n.b(x)), 1),
    "add_": (lambda n, x: n.a(x).add_(2, n.b(x)).relu(), 1),
    "batch_norm": (
        lambda n, x: torch.batch_norm(n.a(x), n.w, n.s, n.m, n.v, False, 0.1, 1e-5, False),
        1,
    ),
    "functional_batch_norm": (
        lambda n, x: F.batch_norm(n.a(x), n.m, n.v, n.w, n.s, False, 0.1, 1e-3),
        1,
    ),
}
for _name, (_call, _regions) in ORDERS.items():
    CASES[f"the_order_of_{_name}"] = (arguments(_call), _regions, ((X,),))


# What a second fuse found.


@case(2)
class AThinBranchInASequential(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.thin = nn.Sequential(conv(8, 2, 1), conv(2, 16), nn.BatchNorm2d(16))
        self.a, self.b = conv(8, 16), conv(8, 16)

    def forward(self, x: Tensor) -> Any:
        return torch.relu(self.a(x) + self.thin(x) + self.b(x))


@case(1)
class TwoChangesThatCancel(Base):
    def forward(self, x: Tensor) -> Any:
        y = self.a(x)
        y.mul_(0.5)
        y *= 2
        return y


@case(2)
class ANormThatIsUsedTwice(Base):
    def __init__(self) -> None:
        super().__init__()
        self.c = conv()

    def forward(self, x: Tensor) -> Any:
        y = self.a(x) + self.bn(x)
        return self.bn(self.c(y.relu()))


@case(1)
class ANormThatIsUsedTwiceAndStays(Base):
    def forward(self, x: Tensor) -> Any:
        y = self.a(x) + self.bn(x)
        return self.bn(y.relu())


# What was not seen at all.


class LowRank(nn.Module):
    """As in microsoft/LoRA."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(32, 32), nn.Dropout(0.1)
        self.first = nn.Parameter(torch.randn(2, 32))
        self.second = nn.Parameter(torch.randn(32, 2))


def low_rank(forward: Callable[[Any, Tensor], Any]) -> Build:
    class Case(LowRank):
        def forward(self, x: Tensor) -> Any:
            return forward(self, x)

    return Case


PRODUCTS: dict[str, Callable[[Any, Tensor], Any]] = {
    "operators": lambda n, x: (
        n.linear(x) + (n.drop(x) @ n.first.transpose(0, 1) @ n.second.transpose(0, 1)) * 2.0
    ),
    "functions": lambda n, x: n.linear(x) + torch.matmul(torch.matmul(x, n.first.T), n.second.t()),
    "methods": lambda n, x: n.linear(x) + x.matmul(n.first.T).matmul(n.second.T) / 2,
    "one_matrix": lambda n, x: n.linear(x) + x @ (n.second @ n.first),
}
TOKENS = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(2)).double()
for _name, _product in PRODUCTS.items():
    CASES[f"a_low_rank_update_by_{_name}"] = (low_rank(_product), 1, ((TOKENS,), (TOKENS[0],)))


@case(0, (TOKENS,))
class AProductThatIsNoLinear(LowRank):
    def forward(self, x: Tensor) -> Any:
        return self.second @ x[:, :2], x @ self.first.T


@case(1)
class BehindAGatedLinearUnit(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(conv(8, 16), nn.GLU(1), nn.BatchNorm2d(8), conv(size=1))


def test_a_public_method_in_a_sum_is_a_reason() -> None:
    class Helps(Base):
        def branch(self, x: Tensor) -> Any:
            return self.a(x)

        def forward(self, x: Tensor) -> Any:
            return torch.relu(self.branch(x) + self.b(x))

    plan = repfuse.plan(Helps().eval())
    (refusal,) = plan.report.refusals
    assert refusal.where == "add"
    assert "branch, which can be called by itself" in refusal.reason


# Weights that are read from a table.


def reads(read: Callable[[Any, Tensor], Any]) -> Build:
    class Reads(Base):
        def forward(self, x: Tensor) -> Any:
            return self.bn(self.a(x)) + 0.1 * read(self, x)

    return Reads


TABLES: dict[str, Callable[[Any, Tensor], Any]] = {
    "parameters": lambda n, x: sum(p.pow(2).sum() for p in n.parameters()),
    "a_recorded_operation": lambda n, x: next(n.a.parameters()).mean((0, 2, 3))[:, None, None] * x,
    "an_operator": lambda n, x: x * next(iter(n.bn.parameters()))[:, None, None],
    "named_parameters": lambda n, x: dict(n.named_parameters())["a.weight"].sum(),
    "a_number": lambda n, x: next(n.parameters()).sum().item(),
    "buffers": lambda n, x: sum(b.sum() for b in n.bn.buffers()),
    "state_dict": lambda n, x: n.state_dict()["a.weight"].sum(),
    "the_table": lambda n, x: n.a._parameters["weight"].sum(),
    "the_table_by_get": lambda n, x: n.bn._buffers.get("running_var").sum(),
    "how_many_numbers": lambda n, x: sum(p.numel() for p in n.bn.parameters()),
    "how_many": lambda n, x: len(list(n.parameters())),
    "how_many_by_the_table": lambda n, x: len(n.bn._parameters) + len(n.bn._buffers.keys()),
    "a_shape": lambda n, x: next(n.bn.parameters()).shape[0],
    "a_vector": lambda n, x: nn.utils.parameters_to_vector(n.a.parameters()).sum(),
}
for _name, _read in TABLES.items():
    CASES[f"weights_read_by_{_name}"] = (reads(_read), 0, ((X,),))


class CountsLayers(nn.Module):
    """A merge of its own operations would put a new layer beside the one that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.weight = nn.ReLU(), nn.Parameter(torch.randn(8, 8))

    def part(self, x: Tensor) -> Any:
        return x + F.conv2d(x, self.weight[..., None, None])

    def count(self) -> int:
        return len(self._modules)

    def forward(self, x: Tensor) -> Any:
        return self.part(self.act(x)) * self.count()


@case(0)
class CountsLayersByTheTable(CountsLayers):
    pass


@case(0)
class CountsLayersInAList(CountsLayers):
    def count(self) -> int:
        return len(list(self.modules()))


@case(0)
class RunsItsChildren(CountsLayers):
    def forward(self, x: Tensor) -> Any:
        for child in self.children():
            x = child(x) * 2
        return self.part(x)


@case(1)
class OnlyTheDtypeIsRead(Base):
    def forward(self, x: Tensor) -> Any:
        first = next(self.parameters())
        y = torch.zeros(1, dtype=first.dtype, device=first.device)
        return self.bn(self.a(x.to(dtype=first.dtype))) + y


# Memory: what may be changed, what may be a copy.


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return x.sigmoid() if untraceable(x) else x.tanh()


@case(1)
class AfterAnUntraceableModule(Base):
    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()

    def forward(self, x: Tensor) -> Any:
        gate = self.gate(x)
        y = self.a(x) + self.b(x)
        return gate * y.relu()


@case(1)
class AfterAHookedModule(Base):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.act.register_forward_hook(lambda *given: None)

    def forward(self, x: Tensor) -> Any:
        act = self.act(x)
        y = self.a(x) + self.b(x)
        return act + y.relu()


@case(1)
class AfterAHookedModuleThatChangesItsInput(Base):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.Sequential(nn.ReLU(inplace=True), nn.Sigmoid())
        self.act.register_forward_hook(lambda *given: None)

    def forward(self, x: Tensor) -> Any:
        y = x * 1.0
        act = self.act(y)
        return act + (self.a(y) + self.b(y)).relu()


@case(0)
class AHookedModuleBetweenTheBranches(Base):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.Sequential(nn.ReLU(inplace=True), nn.Sigmoid())
        self.act.register_forward_hook(lambda *given: None)

    def forward(self, x: Tensor) -> Any:
        y = x * 1.0
        first = self.a(y)
        act = self.act(y)
        return act + (first + self.b(y)).relu()


@case(1)
class SeveralTensorsThatChange(Base):
    def forward(self, x: Tensor) -> Any:
        y, z = x.sin(), x.cos()
        torch._foreach_add_([y, z], 1.0)
        return (self.a(y) + self.b(y)).relu() + z


class Rectifies(nn.Module):
    def forward(self, x: Tensor) -> None:
        x.relu_()


@case(1)
class AChangeInAChild(Base):
    def __init__(self) -> None:
        super().__init__()
        self.act = Rectifies()

    def forward(self, x: Tensor) -> Any:
        y = x.sin()
        self.act(y)
        return (self.a(y) + self.b(y)).relu() + y


def copied(copy_of: Callable[[Tensor], Any]) -> Callable[[], Build]:
    """A copy of y, which is changed afterwards; whether it is one may depend on y."""

    class Copied(Base):
        def forward(self, x: Tensor) -> Any:
            y = torch.sin(x).transpose(2, 3)
            z = copy_of(y)
            y.relu_()
            return (self.a(z) + self.b(z)).relu() + y

    return Copied


COPIES: dict[str, Callable[[Tensor], Any]] = {
    "times_one": lambda y: y * 1,
    "plus_zero": lambda y: y + 0,
    "sum_of_one": lambda y: sum([y]),
    "contiguous": lambda y: y.contiguous(),
    "contiguous_twice": lambda y: y.contiguous().contiguous(),
}
for _name, _copy_of in COPIES.items():
    CASES[f"a_copy_by_{_name}"] = (copied(_copy_of), 1, ((X,),))  # type: ignore[assignment]


@case(1)
class AChangedCopy(Base):
    def forward(self, x: Tensor) -> Any:
        y = torch.sin(x).transpose(2, 3)
        z = y.contiguous()
        z.relu_()
        return (self.a(y) + self.b(y)).relu() + z


# What the probe of a right rewrite has to make good for.


BORDERS: dict[str, nn.Module] = {
    "a_wide_reflected_border": nn.Conv2d(8, 8, 3, padding=4, padding_mode="reflect"),
    "a_wide_circular_border": nn.Conv2d(8, 8, 3, padding=5, padding_mode="circular"),
    "a_border_wider_than_one_side": nn.Conv2d(8, 8, (1, 3), padding=(2, 1), padding_mode="reflect"),
}
for _name, _layer in BORDERS.items():
    CASES[_name] = (partial(nn.Sequential, _layer, nn.BatchNorm2d(8)), 1, ((X,),))


@case(1)
class TermsThatCancel(Base):
    def forward(self, x: Tensor) -> Any:
        y = self.a(x)
        return self.b(x) + (y / 3 + y * 2 / 3 - y)


def test_a_sum_that_is_nothing_is_no_fault() -> None:
    class Nothing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Any:
            return self.a(x) / 3 + self.a(x) * 2 / 3 - self.a(x)

    plan = repfuse.plan(Nothing().eval())
    plan.apply()
    assert plan.report.errors == [] and len(plan.report.regions) == 1


@case(1)
class SourcesThatDependOnEachOther(Base):
    def __init__(self) -> None:
        super().__init__()
        self.c = conv(bias=False)

    def forward(self, x: Tensor) -> Any:
        v = self.c(x)
        w = self.c(v)
        return w + w + v + self.bn(x) + x, v


class Counts(nn.Module):
    def __init__(self, assigns: bool) -> None:
        super().__init__()
        self.n: Tensor
        self.assigns = assigns
        self.register_buffer("n", torch.ones(()))

    def forward(self, weight: Tensor) -> Any:
        if self.assigns:
            self.n = self.n + 1
        else:
            self.n += 1
        return weight * self.n


@pytest.mark.parametrize("assigns", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_parametrization_that_changes_a_buffer(assigns: bool, dtype: torch.dtype) -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(8)).to(dtype)
    counts = Counts(assigns).to(dtype)
    parametrize.register_parametrization(model[0], "weight", counts)
    model.eval()
    before = counts.n.item()
    plan = repfuse.plan(model)
    fused = plan.apply()
    assert counts.n.item() == before
    assert plan.report.errors == []
    assert "changes a buffer" in str(plan)
    assert_same(model, fused, X)


# Found by random networks.


@case(1)
class TwoChangesOfOneName(nn.Module):
    """The name of a conv's result means its double, and then the positive part of that."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.last = nn.Parameter(torch.randn(8, 8, 1, 1)), conv()

    def forward(self, x: Tensor) -> Any:
        y = F.conv2d(x, self.weight)
        y.add_(y)
        y.relu_()
        return y, self.last(y)


@case(1)
class ABorderOfASmallImage(nn.Module):
    """A branch reads an image with a reflected border, which is wider than that was small."""

    def __init__(self) -> None:
        super().__init__()
        self.even, self.odd = nn.Conv2d(8, 8, 4, dilation=2), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        y = self.even(F.pad(x, (3, 3, 3, 3), mode="reflect")) + 0.7
        return torch.stack([y, self.odd(x), x, x]).sum(dim=0)


@case(1)
class AListOfStrides(Base):
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d([3, 3], [2, 1])  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Any:
        return self.pool(x), self.bn(self.a(self.pool(x)))


class Tokens(nn.Module):
    """Two layers on the last axis, which every case gives the axes in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(), nn.Linear(8, 8), nn.Linear(8, 8)

    def rows(self, x: Tensor) -> tuple[Tensor, int, int, int]:
        y: Tensor = self.stem(x).permute(0, 2, 3, 1)
        return y, y.size(0), y.size(1), y.size(2)


@case(1, (SQUARE,))
class AnAxisThatIsTornAndJoinedToAnother(Tokens):
    """Half of the rows joined to the columns, and then cut as if it were all of the rows."""

    def forward(self, x: Tensor) -> Any:
        y, batch, height, width = self.rows(x)
        y = y.reshape(batch, 2, height // 2, width, 8).flatten(2, 3)
        y = y.view(batch, y.size(1), height, -1, 8).flatten(1, 2)
        return (self.a(y) + self.b(y)).permute(0, 3, 1, 2)


@case(1, (SQUARE,))
class AnAxisThatIsTornInTwoWays(Tokens):
    """Sizes of an axis that was cut into four, for one that was cut into two."""

    def forward(self, x: Tensor) -> Any:
        y, batch, height, width = self.rows(x)
        halves = y.reshape(batch, 2, height // 2, width, 8)
        quarters = y.reshape(batch, 4, height // 4, width, 8)
        y = halves.reshape(batch, quarters.size(1), halves.size(2), -1, 8).flatten(1, 2)
        return (self.a(y) + self.b(y)).permute(0, 3, 1, 2)


@case(1)
class PairsOfSamples(Tokens):
    """Every sample of the batch with every other one: (1, batch) and (batch, 1)."""

    def forward(self, x: Tensor) -> Any:
        y, batch, height, width = self.rows(x)
        y = self.a(y) + self.b(y)
        left = self.a(y.reshape(1, batch, height, width, 8))
        return left + self.b(y.reshape(batch, 1, height, width, 8))


@case(1, (SQUARE,))
class TheSameWindowsTwice(Tokens):
    """Two views of the same sizes are added as one."""

    def forward(self, x: Tensor) -> Any:
        y, batch, height, width = self.rows(x)
        left = self.a(y.reshape(batch, height // 2, 2, width, 8))
        return left + self.b(y.reshape(batch, height // 2, 2, width, 8))


@case(1)
class BranchesOnWhatIsRead(Tokens):
    """Both branches read a layer on tokens that something else reads, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        y = self.first(self.stem(x).flatten(2).transpose(1, 2))
        return self.a(y) + self.b(y), y.relu()


class Weighed(nn.Module):
    """Its forward is written again for a sum that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(8, 3, 2, stride=(2, 1), padding=(1, 0), bias=False)
        self.weight, self.layer = nn.Parameter(torch.randn(8, 1, 1)), conv(size=1)

    def forward(self, x: Tensor) -> Any:
        y = self.down(x)
        y = sum([y, y])
        return self.weight * x


class WeighedByALayer(Weighed):
    def forward(self, x: Tensor) -> Any:
        y = self.down(x)
        y = sum([y, y])
        return self.layer(x)


class AResultThatNobodyReads(nn.Module):
    """What the part gives is merged into a sum outside of it, which is not read either."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(6, 8, (2, 3), stride=(2, 1), padding=(1, 0), bias=False)
        self.one, self.other, self.part = nn.BatchNorm2d(8), nn.BatchNorm2d(8), part

    def forward(self, x: Tensor) -> Any:
        y = self.first(x)
        z = self.one(y)
        _ = self.other(y) + self.part(z)
        return z


@pytest.mark.parametrize("part", [Weighed, WeighedByALayer])
@pytest.mark.parametrize("target", ["cpu", "min-ops"])
def test_what_another_region_removes_still_runs_in_a_method_of_its_own(
    part: Callable[[], nn.Module], target: str
) -> None:
    model = randomize(AResultThatNobodyReads(part())).double().eval()
    assert_same(model, repfuse.fuse(model, target=target), X[:, :6])


# What layers are read for beside their call.


@case(0)
class AWeightThatIsReturned(Base):
    def forward(self, x: Tensor) -> Any:
        return self.bn(self.a(x)), self.bn.weight


@case(1)
class AWeightOfAnotherLayerThatIsReturned(Base):
    def forward(self, x: Tensor) -> Any:
        return self.bn(self.a(x)), self.b.weight


class TwoNormsOfOneLinear(nn.Module):
    """As functions, in which no layer tells them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.LayerNorm(8), nn.LayerNorm(8)
        self.layer, self.more = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        one, other = (
            F.layer_norm(x, (8,), norm.weight, norm.bias) for norm in (self.one, self.other)
        )
        return self.layer(one), self.more(one), self.layer(other)


@pytest.mark.parametrize("target", ["cpu", "gpu", "min-ops"])
def test_one_linear_after_two_norms_that_are_functions(target: str) -> None:
    model = randomize(TwoNormsOfOneLinear()).double().eval()
    plan = repfuse.plan(model, target=target)
    assert_same(model, plan.apply(), torch.randn(2, 5, 8, dtype=torch.float64))
    assert plan.report.errors == []


# Methods that forward does not call.


class Doubled(Base):
    def forward(self, x: Tensor) -> Any:
        return self.a(x) * 2

    def head(self, x: Tensor) -> Any:
        return self.a(x)


class AddedToTheInput(Doubled):
    def forward(self, x: Tensor) -> Any:
        return torch.relu(self.a(x) + x)


class AfterAScale(Doubled):
    def forward(self, x: Tensor) -> Any:
        return self.a(x * 2)


class BothLayers(Doubled):
    def forward(self, x: Tensor) -> Any:
        return torch.relu(self.a(x) + self.b(x))

    def head(self, x: Tensor) -> Any:
        return self.b(x) - self.a(x)


class ScaledInBetween(Doubled):
    def forward(self, x: Tensor) -> Any:
        return self.bn(self.a(x) * 2)

    def head(self, x: Tensor) -> Any:
        return self.bn(self.a(x))


class OfAPart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Any:
        return self.stem(x) * 2

    def head(self, x: Tensor) -> Any:
        return self.stem(x)


METHODS: tuple[type[nn.Module], ...] = (
    Doubled, AddedToTheInput, AfterAScale, BothLayers, ScaledInBetween, OfAPart,
)  # fmt: skip


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("inside", [False, True])
def test_a_method_that_forward_does_not_call_means_what_it_meant(
    kind: type[nn.Module], inside: bool
) -> None:
    model = kind()
    whole: Any = randomize(nn.Sequential(model) if inside else model).double().eval()
    plan = repfuse.plan(whole)
    fused: Any = plan.apply()
    assert plan.report.errors == []
    assert "which is not traced, calls" in str([entry.reason for entry in plan.report.refusals])
    assert_same(whole, fused, X)
    before, after = (each[0] if inside else each for each in (whole, fused))
    with torch.no_grad():
        assert torch.allclose(before.head(X), after.head(X), rtol=1e-9, atol=1e-9)


# Found by the networks of timm.


@case(2)
class NormsAfterTokensThatAreReshapedAsOthers(nn.Module):
    """LeViT: what is reshaped as another tensor has as many axes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.linear, self.bn = conv(), nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.one = nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 4))
        self.other = nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Any:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        y = self.linear(tokens)
        pooled = (tokens + self.bn(y.flatten(0, 1)).reshape_as(y).relu()).mean(dim=1)
        return (self.one(pooled) + self.other(pooled)) / 2


class ALayerAfterNorms(nn.Module):
    """CoaT: norms of their own before layers that are shared."""

    def __init__(self, norms: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(norms))
        self.mlp = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Any:
        return self.mlp(self.norms[0](x)), self.mlp(self.norms[-1](x + 1))


@case(0, (X.flatten(2).transpose(1, 2),))
def another_norm_before_each_call_of_a_layer() -> nn.Module:
    return ALayerAfterNorms(2)


@case(2, (X.flatten(2).transpose(1, 2),))
def the_same_norm_before_each_call_of_a_layer() -> nn.Module:
    return ALayerAfterNorms(1)


# All of them.


@pytest.mark.parametrize("name", CASES)
def test_the_fused_model_answers_as_the_original(name: str) -> None:
    build, regions, calls = CASES[name]
    model = randomize(build()).double().eval()
    plan = repfuse.plan(model)
    fused = plan.apply()
    assert plan.report.errors == []
    assert len(plan.report.regions) == regions, plan
    for given in calls:
        assert_same(model, fused, *given)
    again = repfuse.plan(fused)
    assert again.report.regions == [] and again.report.errors == [], again


class AProductOfMatricesAlone(nn.Module):
    """`torch.mm` takes no tokens: its probe takes none either."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.mm(x, self.weight) * 0.5


def test_a_product_of_matrices_is_proved_on_matrices() -> None:
    model = AProductOfMatricesAlone().double()
    plan = repfuse.plan(model)
    fused = plan.apply()
    assert plan.report.errors == []
    assert len(plan.report.regions) == 1
    assert_same(model, fused, torch.randn(5, 4))


class CodeWithoutReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        twice = x + x
        nobody = x + twice  # noqa: F841
        return torch.relu(self.large(twice) + self.small(twice))


def test_code_whose_result_nobody_reads_is_seen_by_the_second_call_too() -> None:
    """It keeps a sum from being merged; without it a second call merged more."""
    model = randomize(CodeWithoutReaders().double()).eval()
    plan = repfuse.plan(model)
    fused = plan.apply()
    assert len(plan.report.regions) == 1 and plan.report.errors == []
    assert_same(model, fused, torch.randn(2, 4, 6, 7))
    again = repfuse.plan(fused)
    assert again.report.regions == [], str(again)


def test_a_bias_that_a_norm_takes_away_again() -> None:
    """Where all taps are in the border, what is left of bias - mean is a few millionths."""
    layer, norm = nn.Conv2d(4, 8, 2, padding=1, dilation=2), nn.BatchNorm2d(8)
    model = randomize(nn.Sequential(layer, norm).double()).eval()
    with torch.no_grad():
        assert layer.bias is not None and norm.running_mean is not None
        norm.running_mean.copy_(layer.bias + 1e-8 * torch.randn(8).double())
        norm.bias.zero_()
    plan = repfuse.plan(model)
    fused = plan.apply()
    assert plan.report.errors == []
    assert len(plan.report.regions) == 1
    assert_same(model, fused, torch.randn(2, 4, 6, 7))


class ProductOfMatrices(nn.Module):
    """mm takes two axes; where its result is returned it stays, and the probe runs it as well."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.down, self.up = nn.Linear(8, 8), nn.Linear(8, 2), nn.Linear(2, 8)
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.a(x) + self.up(self.down(x))
        part = torch.mm(y[..., :4], self.weight)
        return part, torch.cat([y, part], -1)


def test_a_matrix_is_read_by_what_stays() -> None:
    model = randomize(ProductOfMatrices().double()).eval()
    plan = repfuse.plan(model, target="min-ops")
    fused = plan.apply()
    assert plan.report.errors == [] and plan.report.regions
    assert_same(model, fused, torch.randn(3, 8))


class TurnedOutsideOfItsMethod(nn.Module):
    """A method takes a value that its caller has moved, and moves it there and back again."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.other = nn.BatchNorm1d(8), nn.Linear(8, 8)
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x.transpose(1, 2)).transpose(1, 2)
        (given,) = checkpoint(self.part, (self.other(x), y), use_reentrant=False)
        made: Tensor = 8 + given @ self.weight
        return made

    def part(self, given: tuple[Tensor, Tensor]) -> tuple[Tensor]:
        return (given[1].transpose(1, 2).transpose(1, 2),)


def test_a_probe_starts_at_the_value_that_a_method_was_given() -> None:
    model = randomize(TurnedOutsideOfItsMethod().double()).eval()
    plan = repfuse.plan(model)
    fused = plan.apply()
    assert plan.report.errors == [] and len(plan.report.regions) == 1
    assert_same(model, fused, torch.randn(2, 7, 8))
    x = torch.randn(2, 7, 8).double()
    assert torch.equal(fused.part((x, x))[0], x)  # type: ignore[operator]


class AfterALayer(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.large, self.small = layer, conv(4, 4), conv(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        total: Tensor = self.large(y) + self.small(y)
        return total


class Doubles(nn.Identity):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x if x.sum() < 1e9 else x


def _hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda module, given, output: output + given[0])
    return layer


def _hooked_before(layer: nn.Module) -> nn.Module:
    layer.register_forward_pre_hook(lambda module, given: (2 * given[0],))
    return layer


def _forward_of_its_own(layer: nn.Module) -> nn.Module:
    layer.forward = lambda x: 2 * x if x.sum() < 1e9 else x
    return layer


OTHERWISE: dict[str, Callable[[], nn.Module]] = {
    "an Identity": nn.Identity,
    "a Dropout": nn.Dropout,
    "a ChannelShuffle": partial(nn.ChannelShuffle, 2),
    "a norm": partial(nn.BatchNorm2d, 4),
    "a conv": partial(nn.Conv2d, 4, 4, 1),
}


@pytest.mark.parametrize("change", [_hooked, _hooked_before, _forward_of_its_own])
@pytest.mark.parametrize("name", OTHERWISE)
def test_a_layer_of_torch_that_does_more_than_its_own(
    name: str, change: Callable[[nn.Module], nn.Module]
) -> None:
    """Hooks and another forward of the layer itself: a hooked Identity was taken for none."""
    layer = change(OTHERWISE[name]())
    model = randomize(AfterALayer(layer).double()).eval()
    plan = repfuse.plan(model)
    fused = plan.apply()
    assert len(plan.report.regions) == 1 and plan.report.errors == []
    assert_same(model, fused, torch.randn(2, 4, 6, 7))


def test_an_identity_whose_class_does_more() -> None:
    model = randomize(AfterALayer(Doubles()).double()).eval()
    fused = repfuse.fuse(model)
    assert_same(model, fused, torch.randn(2, 4, 6, 7))


@pytest.mark.parametrize("layer", [nn.ReLU(), nn.Identity(), nn.MaxPool2d(1), nn.Flatten(0, 0)])
def test_a_hook_that_moves_the_axes(layer: nn.Module) -> None:
    """What is behind it does not have the shape of what is before."""
    layer.register_forward_hook(lambda module, given, output: output.transpose(1, 3))

    class Moved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.layer = nn.Conv2d(4, 6, 1), layer
            self.linear, self.scale = nn.Linear(6, 4), nn.Parameter(torch.randn(6))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.linear(self.scale * self.layer(self.first(x))))

    model = randomize(Moved().double()).eval()
    plan = repfuse.plan(model)
    fused = plan.apply()
    assert plan.report.errors == []
    assert_same(model, fused, torch.randn(2, 4, 6, 7))


class OddSizesOnly(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.large = kind(4, 6, 3, stride=2, padding=1)
        self.small = kind(4, 6, 2, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.large(x) + self.small(x) + self.large(x) + self.small(x)
        return total


class OneBranchForOddSizesOnly(OddSizesOnly):
    """What stays beside the merged branches lets few sizes through."""

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = (large := self.large(x)) + self.small(x) + large
        return total


@pytest.mark.parametrize("kind", [OddSizesOnly, OneBranchForOddSizesOnly])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_sum_that_runs_at_odd_sizes_only_is_proved_at_those(kind: Any, rank: int) -> None:
    model = randomize(kind((nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]).double()).eval()
    plan = repfuse.plan(model, target="min-macs")
    assert_same(model, plan.apply(), torch.randn(2, 4, *(11, 7, 5)[:rank]))
    assert plan.report.regions and plan.report.errors == []


class DeadNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(6, 8) for _ in range(3))
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = x.add(x)
        total: Tensor = self.a(y) + self.b(y)
        self.norm(self.c(y).transpose(1, 2)).transpose(1, 2)
        return total


@pytest.mark.parametrize("target", ["cpu", "min-ops"])
def test_a_dead_norm_between_transpositions_reads_what_it_read(target: str) -> None:
    """What it reads was made in a merged form, and the fused model raised."""
    model = randomize(DeadNorm().double()).eval()
    plan = repfuse.plan(model, target=target)
    assert_same(model, plan.apply(), torch.randn(2, 5, 6))
    assert plan.report.regions and plan.report.errors == []


class Reads(nn.Module):
    def __init__(self, kept: Any) -> None:
        super().__init__()
        self.kept = kept

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = x + (self.kept["x"] if isinstance(self.kept, dict) else self.kept[-1])
        return total


class SharesAnEmptyContainer(nn.Module):
    def __init__(self, kept: Any) -> None:
        super().__init__()
        self.kept, self.large, self.small = kept, conv(4, 4), conv(4, 4, 1)
        self.child = Reads(self.kept)

    def forward(self, x: Tensor) -> Tensor:
        y = self.large(x) + self.small(x)
        if isinstance(self.kept, dict):
            self.kept["x"] = y
        else:
            self.kept.append(y)
        total: Tensor = self.child(x)
        return total


@pytest.mark.parametrize("kept", [{}, []])
def test_modules_that_share_a_container_share_it_afterwards(kept: Any) -> None:
    """An empty one was copied for each: the fused model did not find what it had kept."""
    model = randomize(SharesAnEmptyContainer(kept).double()).eval()
    fused: Any = repfuse.fuse(model)
    assert fused.kept is fused.child.kept and fused.kept is not kept
    assert_same(model, fused, torch.randn(2, 4, 6, 7))


class CopiesAChild(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = AfterALayer(nn.ReLU()), AfterALayer(nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.one(x) + copy.deepcopy(self.other)(x)
        return total


def test_a_child_that_is_copied_takes_nothing_else_with_it() -> None:
    model = randomize(CopiesAChild().double()).eval()
    plan = repfuse.plan(model)
    assert_same(model, plan.apply(), torch.randn(2, 4, 6, 7))
    assert [region.where for region in plan.report.regions] == ["one.add"]


class ReadElsewhere(Base):
    """A parameter that another method reads is a branch of its own: the sum still has it."""

    def __init__(self, joined: str) -> None:
        super().__init__()
        self.shift, self.joined = nn.Parameter(torch.rand(8, 1, 1)), joined

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor
        if self.joined == "with a norm":
            result = self.bn(self.a(x) + self.shift + x)
        elif self.joined == "between layers":
            result = self.a(x) + self.shift + self.b(x)
        else:
            result = self.a(x) + (self.shift - self.b(x))
        return result

    def shifted(self, x: Tensor) -> Tensor:
        return x - self.shift


@pytest.mark.parametrize("joined", ["with a norm", "between layers", "less a layer"])
def test_a_parameter_that_the_new_sum_reads_is_kept(joined: str) -> None:
    model = randomize(ReadElsewhere(joined).double()).eval()
    plan = repfuse.plan(model)
    fused: Any = plan.apply()
    assert len(plan.report.regions) == 1
    assert_same(model, fused, X)
    assert torch.equal(fused.shifted(X), model.shifted(X))


class MeanOfAChange(nn.Module):
    """The mean over a stack that is not read as a sum, since one part is no image for sure."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Identity(), nn.Conv1d(4, 4, 1, bias=False), nn.ReLU(inplace=True)]
        )

    def forward(self, x: Tensor) -> Tensor:
        total = x
        for layer in self.layers:
            total = total + layer(total)
        torch.stack([total, x]).mean(dim=0)
        return total


def test_what_is_left_of_an_attempt_is_no_region() -> None:
    model = randomize(MeanOfAChange().double()).eval()
    assert_same(model, repfuse.fuse(model), torch.randn(2, 4, 9).double())


class Scales(nn.Module):
    def forward(self, x: Tensor, by: float = 2.0) -> Tensor:
        return x * by


class GivesANumber(nn.Module):
    """The scale goes into the layer before it; the block is called with the number still."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scales = conv(), Scales()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.scales(self.layer(x), 0.5)
        return result


def test_a_block_without_work_takes_the_arguments_that_it_took() -> None:
    model = randomize(GivesANumber().double()).eval()
    plan = repfuse.plan(model)
    assert len(plan.report.regions) == 1
    assert_same(model, plan.apply(), X)


class AsksItsWeights(Base):
    """What dtype they have, and where they are: today, and after they were moved."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "a dtype":
            x = x.to(next(self.parameters()).dtype)
        elif self.how == "a property":
            x = x.to(self.dtype)
        elif self.how == "a device":
            x = x.to(next(self.parameters()).device)
        else:
            x = x + next(self.parameters()).new_zeros(1)
        result: Tensor = self.bn(self.a(x) + self.b(x))
        return result


@pytest.mark.parametrize("how", ["a dtype", "a property", "a device", "new_zeros"])
def test_what_is_asked_of_listed_weights_is_asked_again(how: str) -> None:
    model = randomize(AsksItsWeights(how)).eval()
    fused = repfuse.fuse(model)
    for dtype in (torch.float64, torch.bfloat16):
        x = X.to(torch.float32 if how in ("a dtype", "a property") else dtype)
        assert fused.to(dtype)(x).dtype is model.to(dtype)(x).dtype is dtype
    assert fused.to("meta")(X.to(dtype)).is_meta if how == "a device" else True


class AsksForASize(nn.Module):
    """Two layers become one in the place of the first, whose weight has another size then."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.how = nn.Linear(8, 2), nn.Linear(2, 4), how

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weight = self.a.weight
        size = {
            "shape": lambda: weight.shape[0],
            "size": lambda: weight.size(0),
            "numel": lambda: weight.numel(),
            "len": lambda: self.a.out_features,
        }[self.how]()
        return self.b(self.a(x)), x + size


@pytest.mark.parametrize("how", ["shape", "size", "numel", "len"])
def test_the_size_of_a_weight_is_not_that_of_the_new_one(how: str) -> None:
    model = randomize(AsksForASize(how).double()).eval()
    x = torch.randn(3, 8).double()
    assert_same(model, repfuse.fuse(model, target="min-ops"), x)


class AsksForASizeThatStays(Base):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.bn(self.a(x))
        return result + self.a.weight.shape[0]


def test_the_size_of_a_weight_may_stay() -> None:
    model = randomize(AsksForASizeThatStays().double()).eval()
    plan = repfuse.plan(model)
    assert len(plan.report.regions) == 1
    assert_same(model, plan.apply(), X)
