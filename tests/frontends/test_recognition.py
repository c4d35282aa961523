"""The ways to write something in PyTorch, and what is executed after it is fused."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm

import repfuse
from tests.frontends import Net, conv, executed
from tests.numerics import assert_same, randomize

Forward = Callable[[Any, Tensor], object]


@dataclass(frozen=True)
class Case:
    """A model, the shape of one input without its batch axis, and what its fused form executes."""

    make: Callable[[], nn.Module]
    becomes: str = "conv"
    shape: tuple[int, ...] = (8, 7, 9)

    def check(self) -> None:
        for kind, bound in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
            model = randomize(self.make().to(kind).eval())
            plan = repfuse.plan(model, target="min-ops")
            fused = plan.apply()
            assert plan.report.errors == []
            for batch in (1, 3):
                x = torch.randn(batch, *self.shape, dtype=kind)
                assert executed(fused, x.clone()) == self.becomes, str(plan)
                assert executed(model, x.clone()) != self.becomes, "there was nothing to fuse"
                assert_same(model, fused, x, bound=bound)


def each(cases: dict[str, Case]) -> pytest.MarkDecorator:
    """One test per case, under its name."""
    return pytest.mark.parametrize("case", cases.values(), ids=list(cases))


# Arithmetic on the branches `a` (3x3), `b` (1x1) and the batch norm `bn`.


def three(forward: Forward, becomes: str = "conv") -> Case:
    return Case(lambda: Net(forward, a=conv(), b=conv(size=1), bn=nn.BatchNorm2d(8)), becomes)


def add_in_place(net: Any, x: Tensor) -> Tensor:
    y: Tensor = net.a(x)
    y += net.b(x)
    return y


def subtract_in_place(net: Any, x: Tensor) -> Tensor:
    y: Tensor = net.a(x)
    y -= net.b(x)
    return y


def multiply_in_place(net: Any, x: Tensor) -> Tensor:
    y: Tensor = net.a(x)
    y *= 0.5
    return y


def divide_in_place(net: Any, x: Tensor) -> Tensor:
    y: Tensor = net.a(x)
    y /= 3.0
    return y


ARITHMETIC: dict[str, Forward] = {
    # two branches
    "x + y": lambda net, x: net.a(x) + net.b(x),
    "x - y": lambda net, x: net.a(x) - net.b(x),
    "x += y": add_in_place,
    "x -= y": subtract_in_place,
    "operator.add": lambda net, x: operator.add(net.a(x), net.b(x)),
    "operator.sub": lambda net, x: operator.sub(net.a(x), net.b(x)),
    "operator.iadd": lambda net, x: operator.iadd(net.a(x), net.b(x)),  # type: ignore[no-untyped-call]
    ".add": lambda net, x: net.a(x).add(net.b(x)),
    ".add by name": lambda net, x: net.a(x).add(other=net.b(x)),
    ".add with alpha": lambda net, x: net.a(x).add(net.b(x), alpha=2),
    ".add_": lambda net, x: net.a(x).add_(net.b(x)),
    ".add_ with alpha": lambda net, x: net.a(x).add_(net.b(x), alpha=0.25),
    ".sub": lambda net, x: net.a(x).sub(net.b(x)),
    ".sub_": lambda net, x: net.a(x).sub_(net.b(x)),
    ".subtract": lambda net, x: net.a(x).subtract(net.b(x)),
    "torch.add": lambda net, x: torch.add(net.a(x), net.b(x)),
    "torch.add by name": lambda net, x: torch.add(input=net.a(x), other=net.b(x)),
    "torch.add with alpha": lambda net, x: torch.add(net.a(x), net.b(x), alpha=-0.5),
    "torch.sub": lambda net, x: torch.sub(net.a(x), net.b(x)),
    "torch.sub with alpha": lambda net, x: torch.sub(net.a(x), net.b(x), alpha=3),
    "torch.subtract": lambda net, x: torch.subtract(net.a(x), net.b(x)),
    "torch.rsub": lambda net, x: torch.rsub(net.a(x), net.b(x)),
    "torch.rsub with alpha": lambda net, x: torch.rsub(net.a(x), net.b(x), alpha=2),
    "torch.rsub of a number": lambda net, x: torch.rsub(net.a(x), 2.0),
    # with a number
    "x + 2": lambda net, x: net.a(x) + 2,
    "2 + x": lambda net, x: 2 + net.a(x),
    "x - 0.5": lambda net, x: net.a(x) - 0.5,
    "2 - x": lambda net, x: 2 - net.a(x),
    "x * 2": lambda net, x: net.a(x) * 2,
    "0.5 * x": lambda net, x: 0.5 * net.a(x),
    "x / 4": lambda net, x: net.a(x) / 4,
    "-x": lambda net, x: -net.a(x),
    "+x": lambda net, x: +net.a(x) + net.b(x),
    "x *= 0.5": multiply_in_place,
    "x /= 3": divide_in_place,
    "operator.mul": lambda net, x: operator.mul(net.a(x), 3.0),
    "operator.truediv": lambda net, x: operator.truediv(net.a(x), 3.0),
    "operator.neg": lambda net, x: operator.neg(net.a(x)),
    ".add of a number": lambda net, x: net.a(x).add(1.5),
    ".add_ of a number": lambda net, x: net.a(x).add_(1.5),
    ".add of a number with alpha": lambda net, x: net.a(x).add(1.5, alpha=2),
    ".sub of a number": lambda net, x: net.a(x).sub(1.5),
    ".mul": lambda net, x: net.a(x).mul(0.5),
    ".mul by name": lambda net, x: net.a(x).mul(other=0.5),
    ".mul_": lambda net, x: net.a(x).mul_(0.5),
    ".multiply": lambda net, x: net.a(x).multiply(0.5),
    ".div": lambda net, x: net.a(x).div(4),
    ".div_": lambda net, x: net.a(x).div_(4),
    ".true_divide": lambda net, x: net.a(x).true_divide(4),
    ".divide": lambda net, x: net.a(x).divide(4),
    ".neg": lambda net, x: net.a(x).neg(),
    ".neg_": lambda net, x: net.a(x).neg_(),
    ".negative": lambda net, x: net.a(x).negative(),
    "torch.mul": lambda net, x: torch.mul(net.a(x), 0.5),
    "torch.multiply": lambda net, x: torch.multiply(net.a(x), 0.5),
    "torch.div": lambda net, x: torch.div(net.a(x), 4),
    "torch.divide": lambda net, x: torch.divide(net.a(x), 4),
    "torch.true_divide": lambda net, x: torch.true_divide(net.a(x), 4),
    "torch.neg": lambda net, x: torch.neg(net.a(x)),
    "torch.negative": lambda net, x: torch.negative(net.a(x)),
    # many branches
    "sum()": lambda net, x: sum([net.a(x), net.b(x), net.bn(x)]),
    "sum() of a generator": lambda net, x: sum(layer(x) for layer in (net.a, net.b, net.bn)),
    "stack and sum": lambda net, x: torch.stack([net.a(x), net.b(x), net.bn(x)]).sum(0),
    "stack and sum by name": lambda net, x: torch.stack((net.a(x), x), dim=0).sum(dim=0),
    "stack and torch.sum": lambda net, x: torch.sum(torch.stack([net.a(x), net.b(x)]), 0),
    "stack and mean": lambda net, x: torch.stack([net.a(x), net.b(x), net.bn(x)]).mean(0),
    "stack and torch.mean": lambda net, x: torch.mean(torch.stack([net.a(x), net.b(x)]), dim=0),
    "nested sums": lambda net, x: (net.a(x) + (net.b(x) + x)) + (net.bn(x) - (x - net.b(x))),
    "skip": lambda net, x: x + net.a(x),
    "scaled skip": lambda net, x: 0.1 * net.a(x) + x,
    "scaled and negated branches": lambda net, x: 2 * net.a(x) - net.b(x) / 3 + -net.bn(x),
    "scale of a sum": lambda net, x: (net.a(x) + net.b(x)) * 0.5 + 1,
    "a batch norm of a sum": lambda net, x: net.bn(net.a(x) + net.b(x)),
    "torch.relu after it": lambda net, x: net.a(x) + net.b(x),
}


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic(name: str) -> None:
    three(ARITHMETIC[name]).check()


# Constants: a scale or a shift of each shape that a channel can have.

SHAPES: tuple[tuple[int, ...], ...] = ((1, 8, 1, 1), (8, 1, 1), (1,), (1, 1, 1), (1, 1, 1, 1), ())
CONSTANT: dict[str, Forward] = {
    "y * c": lambda net, x: net.a(x) * net.c,
    "c * y": lambda net, x: net.c * net.a(x),
    "y / c": lambda net, x: net.a(x) / net.c,
    "y + c": lambda net, x: net.a(x) + net.c,
    "c - y": lambda net, x: net.c - net.a(x),
    "torch.sub(y, c, alpha=2)": lambda net, x: torch.sub(net.a(x), net.c, alpha=2),
    "x + c * y": lambda net, x: x + net.c * net.a(x),
}


def constant(forward: Forward, kind: Callable[[Tensor], Tensor], *shape: int) -> nn.Module:
    # Away from zero: it divides as well.
    return Net(forward, a=conv(), c=kind(0.5 + torch.rand(shape)))


CONSTANTS = {
    f"{text} with a {name} of shape {shape}".replace(",)", ")"): Case(
        partial(constant, forward, kind, *shape)
    )
    for text, forward in CONSTANT.items()
    for name, kind in (("parameter", nn.Parameter), ("buffer", torch.clone))
    for shape in SHAPES
}


@each(CONSTANTS)
def test_constants(case: Case) -> None:
    case.check()


class FrozenNorm(nn.Module):
    """A batch norm as arithmetic on buffers, as torchvision and detectron2 write it."""

    def __init__(self, channels: int, style: str) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(channels))
        self.eps, self.style = 1e-5, style

    def forward(self: Any, x: Tensor) -> Tensor:
        shape = (1, -1, 1, 1)
        y: Tensor
        if self.style == "reshape":
            scale = (
                self.weight.reshape(*shape) * (self.running_var.reshape(shape) + self.eps).rsqrt()
            )
            y = x * scale + (self.bias.reshape(shape) - self.running_mean.reshape(shape) * scale)
        elif self.style == "view":
            std = torch.sqrt(self.running_var + self.eps).view(shape)
            y = (x - self.running_mean.view(shape)) / std * self.weight.view(shape)
            y = y + self.bias.view(shape)
        elif self.style == "none":
            factor = (self.weight / (self.running_var + self.eps) ** 0.5)[None, :, None, None]
            shift = self.bias - self.running_mean * factor.flatten()
            y = torch.mul(x, factor).add_(shift[:, None, None])
        else:
            assert self.style == "unsqueeze"
            mean = self.running_mean.unsqueeze(-1).unsqueeze(-1)
            inverse = torch.rsqrt(self.running_var + self.eps).unsqueeze(-1).unsqueeze(-1)
            y = (x - mean) * inverse
        return y


@pytest.mark.parametrize("style", ["reshape", "view", "none", "unsqueeze"])
def test_a_frozen_batch_norm_as_arithmetic(style: str) -> None:
    Case(lambda: nn.Sequential(conv(), FrozenNorm(8, style))).check()
    Case(lambda: Net(lambda n, x: n.a(x) + n.bn(x), a=conv(), bn=FrozenNorm(8, style))).check()


# Layers as modules.


def branches(*parts: nn.Module) -> nn.Module:
    return Net(lambda net, x: sum(part(x) for part in net.parts), parts=nn.ModuleList(parts))


def normed(layer: Any) -> nn.Module:
    """The layer and the batch norm of its rank."""
    norm = {"1": nn.BatchNorm1d, "2": nn.BatchNorm2d, "3": nn.BatchNorm3d}
    return nn.Sequential(layer, norm[type(layer).__name__[-2]](layer.out_channels))


class NormAct(nn.BatchNorm2d):
    """A batch norm that also applies its activation, as timm's BatchNormAct2d."""

    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), act

    def forward(self, x: Tensor) -> Tensor:
        training = self.training or self.running_mean is None
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias,
            training, 0.1, self.eps,
        )  # fmt: skip
        return self.act(self.drop(x))  # type: ignore[no-any-return]


class CallsSuper(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class DropPath(nn.Module):
    """Stochastic depth, as timm writes it."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        kept = x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(1 - self.rate)
        return x * kept.div_(1 - self.rate)


IMAGE = (8, 7, 9)
MODULES: dict[str, Case] = {
    "Conv1d, BatchNorm1d": Case(lambda: normed(nn.Conv1d(8, 6, 3, padding=1)), shape=(8, 11)),
    "Conv2d, BatchNorm2d": Case(lambda: normed(nn.Conv2d(8, 6, 3, stride=2, padding=1))),
    "Conv3d, BatchNorm3d": Case(lambda: normed(nn.Conv3d(4, 6, 3, padding=1)), shape=(4, 5, 3, 5)),
    "ConvTranspose1d, BatchNorm1d": Case(
        lambda: normed(nn.ConvTranspose1d(8, 12, 4, 3, 1, output_padding=2, groups=4)), shape=(8, 7)
    ),
    "ConvTranspose2d, BatchNorm2d": Case(
        lambda: normed(nn.ConvTranspose2d(8, 12, (3, 4), 2, 1, output_padding=(1, 0), groups=2))
    ),
    "ConvTranspose3d, BatchNorm3d": Case(
        lambda: normed(nn.ConvTranspose3d(4, 6, 3, 2, 1, output_padding=1, groups=2)),
        shape=(4, 3, 2, 3),
    ),
    "parallel Conv1d": Case(
        lambda: branches(nn.Conv1d(8, 8, 5, padding=2), nn.Conv1d(8, 8, 1), nn.BatchNorm1d(8)),
        shape=(8, 11),
    ),
    "parallel Conv3d": Case(
        lambda: branches(nn.Conv3d(4, 4, 3, padding=1), nn.Conv3d(4, 4, 1), nn.BatchNorm3d(4)),
        shape=(4, 5, 3, 5),
    ),
    "parallel ConvTranspose1d": Case(
        lambda: branches(nn.ConvTranspose1d(8, 6, 4, 2, 1), nn.ConvTranspose1d(8, 6, 2, 2)),
        shape=(8, 7),
    ),
    "parallel ConvTranspose2d": Case(
        lambda: branches(
            nn.ConvTranspose2d(8, 6, 3, 2, 1, output_padding=1, groups=2),
            nn.ConvTranspose2d(8, 6, 3, 2, 1, output_padding=1),
        )
    ),
    "parallel ConvTranspose3d": Case(
        lambda: branches(nn.ConvTranspose3d(4, 4, 4, 2, 1), nn.ConvTranspose3d(4, 4, 2, 2)),
        shape=(4, 3, 2, 3),
    ),
    "parallel Linear": Case(
        lambda: branches(nn.Linear(8, 8), nn.Linear(8, 8, bias=False), nn.Identity()),
        "linear", (5, 8),
    ),
    "Linear, BatchNorm1d on matrices": Case(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6)), "linear", (3, 4)
    ),
    "BatchNorm1d, Linear on matrices": Case(
        lambda: nn.Sequential(nn.Flatten(1), nn.BatchNorm1d(12), nn.Linear(12, 6)), "linear", (3, 4)
    ),
    "AvgPool1d": Case(
        lambda: branches(nn.Conv1d(8, 8, 3, padding=1), nn.AvgPool1d(3, 1, 1)), shape=(8, 11)
    ),
    "AvgPool2d": Case(lambda: branches(conv(), nn.AvgPool2d(3, stride=1, padding=1))),
    "AvgPool2d after a pointwise conv": Case(
        lambda: branches(
            conv(),
            nn.Sequential(conv(size=1, bias=False), nn.AvgPool2d(3, 1, 1), nn.BatchNorm2d(8)),
        )
    ),
    "AvgPool2d with a divisor": Case(
        lambda: branches(
            conv(),
            nn.AvgPool2d((3, 1), 1, (1, 0), count_include_pad=False, divisor_override=2),
        )
    ),
    "AvgPool3d": Case(
        lambda: branches(nn.Conv3d(4, 4, 3, padding=1), nn.AvgPool3d(3, 1, 1)), shape=(4, 5, 3, 5)
    ),
    "Dropout": Case(lambda: nn.Sequential(conv(), nn.Dropout(), nn.BatchNorm2d(8))),
    "Dropout2d": Case(lambda: nn.Sequential(conv(), nn.Dropout2d(), nn.BatchNorm2d(8))),
    "AlphaDropout": Case(lambda: nn.Sequential(conv(), nn.AlphaDropout(), nn.BatchNorm2d(8))),
    "a drop path": Case(lambda: branches(nn.Sequential(conv(), DropPath(0.5)), nn.Identity())),
    "Identity": Case(lambda: nn.Sequential(conv(), nn.Identity(), nn.BatchNorm2d(8))),
    "Identity with arguments": Case(
        lambda: branches(conv(), nn.Identity(8, unused=True))
    ),
    "SyncBatchNorm": Case(lambda: nn.Sequential(conv(), nn.SyncBatchNorm(8))),
    "SyncBatchNorm, converted": Case(
        lambda: nn.SyncBatchNorm.convert_sync_batchnorm(branches(conv(), nn.BatchNorm2d(8)))
    ),
    "a batch norm with an activation": Case(
        lambda: nn.Sequential(conv(), NormAct(8, nn.ReLU())), "conv, relu"
    ),
    "a batch norm with an activation that does nothing": Case(
        lambda: nn.Sequential(conv(), NormAct(8, nn.Identity()))
    ),
    "a batch norm that calls its super class": Case(
        lambda: nn.Sequential(conv(), CallsSuper(8)), "conv, relu"
    ),
    "BatchNorm2d without weight and bias": Case(
        lambda: nn.Sequential(conv(), nn.BatchNorm2d(8, affine=False))
    ),
    "BatchNorm2d with its own eps": Case(lambda: branches(conv(), nn.BatchNorm2d(8, eps=0.1))),
    "BatchNorm2d with momentum=None": Case(
        lambda: nn.Sequential(conv(), nn.BatchNorm2d(8, momentum=None))
    ),
    "padding='same'": Case(lambda: branches(nn.Conv2d(8, 8, 5, padding="same"), conv(size=1))),
    "padding='same', dilated": Case(
        lambda: branches(nn.Conv2d(8, 8, 3, padding="same", dilation=2), conv(size=1))
    ),
    "padding='same', even": Case(
        lambda: branches(nn.Conv2d(8, 8, (2, 4), padding="same"), conv(size=1))
    ),
    "padding='valid'": Case(
        lambda: nn.Sequential(nn.Conv2d(8, 8, 3, padding="valid"), nn.BatchNorm2d(8))
    ),
    "padding_mode='reflect'": Case(
        lambda: branches(conv(padding_mode="reflect"), conv(size=1)), "conv, reflection_pad2d"
    ),
    "padding_mode='replicate'": Case(
        lambda: branches(conv(padding_mode="replicate"), conv(size=1)), "conv, replication_pad2d"
    ),
    "a batch norm before padding_mode='reflect'": Case(
        lambda: nn.Sequential(nn.BatchNorm2d(8), conv(padding_mode="reflect")),
        "conv, reflection_pad2d",
    ),
    "nested Sequential": Case(
        lambda: nn.Sequential(
            nn.Sequential(conv(), nn.Sequential()), nn.Sequential(nn.BatchNorm2d(8))
        )
    ),
    "ModuleList": Case(
        lambda: Net(
            lambda n, x: [norm(layer(x)) for layer, norm in zip(n.convs, n.norms, strict=True)],
            convs=nn.ModuleList([conv(), conv(size=1)]),
            norms=nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)]),
        ),
        "2 conv",
    ),
    "ModuleDict": Case(
        lambda: Net(
            lambda net, x: sum(layer(x) for layer in net.layers.values()) + net.layers["small"](x),
            layers=nn.ModuleDict({"large": conv(), "small": conv(size=1)}),
        )
    ),
    "ModuleDict by name": Case(
        lambda: Net(
            lambda net, x: net.layers["norm"](net.layers["conv"](x)),
            layers=nn.ModuleDict({"conv": conv(), "norm": nn.BatchNorm2d(8)}),
        )
    ),
}  # fmt: skip


@each(MODULES)
def test_modules(case: Case) -> None:
    case.check()


def test_circular_padding() -> None:
    # torch pads in several steps of its own here, so that only the convs are counted.
    model = randomize(branches(conv(padding_mode="circular"), conv(size=1)).double().eval())
    fused = repfuse.fuse(model)
    x = torch.randn(3, *IMAGE, dtype=torch.float64)
    assert executed(fused, x).split(", ").count("conv") == 1
    assert_same(model, fused, x)


# Layers as functions.


def number(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) / 4)


def functions(forward: Forward, rank: int = 2, becomes: str = "conv") -> Case:
    """A forward on loose weights of 3, 2 and 1 taps, grouped `g3`, transposed `t4` and `t2`."""

    def make() -> nn.Module:
        return Net(
            forward,
            w3=number(8, 8, *[3] * rank),
            w2=number(8, 8, *[2] * rank),
            w1=number(8, 8, *[1] * rank),
            g3=number(8, 2, *[3] * rank),
            t4=number(8, 4, *[4] * rank),
            t2=number(8, 4, *[2] * rank),
            u=number(8, 8),
            v=number(8),
            scale=number(8),
            mean=torch.randn(8),
            var=torch.rand(8) + 0.5,
        )

    return Case(make, becomes, ((5, 8), (8, 11), IMAGE, (8, 5, 3, 5))[rank])


def lost(y: Tensor, training: bool) -> Tensor:
    return F.dropout(y, 0.5, training)


FUNCTIONS: dict[str, Case] = {
    "F.conv1d": functions(
        lambda n, x: F.conv1d(x, n.w3, n.v, 1, 1) + F.conv1d(x, n.w1), 1
    ),
    "F.conv2d": functions(
        lambda n, x: F.conv2d(x, n.w3, n.v, 1, 1) + F.conv2d(x, n.w1)
    ),
    "F.conv3d": functions(
        lambda n, x: F.conv3d(x, n.w3, n.v, 1, 1) + F.conv3d(x, n.w1), 3
    ),
    "F.conv2d by name": functions(
        lambda n, x: F.conv2d(input=x, weight=n.w3, bias=None, stride=1, padding=1)
        + F.conv2d(x, weight=n.w1, bias=n.v)
    ),
    "F.conv2d with tuples": functions(
        lambda n, x: F.conv2d(x, n.w3, None, (2, 1), (1, 1), (1, 1))
        + F.conv2d(x, n.w1, n.v, stride=[2, 1])
    ),
    "F.conv2d, grouped and dilated": functions(
        lambda n, x: F.conv2d(x, n.g3, n.v, padding=2, dilation=2, groups=4)
        + F.conv2d(x, n.g3, None, 1, 1, 1, 4)
    ),
    "F.conv2d, padding='same'": functions(
        lambda n, x: F.conv2d(x, n.w3, n.v, padding="same") + F.conv2d(x, n.w1, padding="valid")
    ),
    "torch.conv2d": functions(
        lambda n, x: torch.conv2d(x, n.w3, n.v, padding=1) + torch.conv2d(x, n.w1)
    ),
    "F.conv_transpose1d": functions(
        lambda n, x: F.conv_transpose1d(x, n.t4, None, 2, 1) - F.conv_transpose1d(x, n.t2, None, 2),
        1,
    ),
    "F.conv_transpose2d": functions(
        lambda n, x: F.conv_transpose2d(x, n.t4, None, 2, 1) + F.conv_transpose2d(x, n.t2, stride=2)
    ),
    "F.conv_transpose2d, grouped": functions(
        lambda n, x: F.conv_transpose2d(x, n.t4, n.v, 2, 1, 1, 2) / 3
    ),
    "F.conv_transpose3d": functions(
        lambda n, x: F.conv_transpose3d(x, n.t4, None, 2, 1) - F.conv_transpose3d(x, n.t2, None, 2),
        3,
    ),
    "torch.conv_transpose2d": functions(
        lambda n, x: -torch.conv_transpose2d(x, n.t4, stride=2, output_padding=1)
    ),
    "F.linear": functions(
        lambda n, x: F.linear(x, n.u, n.v) + 2 * F.linear(x, n.u), 0, "linear"
    ),
    "F.linear by name": functions(
        lambda n, x: F.linear(input=x, weight=n.u, bias=n.v) - x, 0, "linear"
    ),
    "F.batch_norm": functions(
        lambda n, x: F.batch_norm(
            F.conv2d(x, n.w3, n.v, padding=1), n.mean, n.var, n.scale, n.v, False, 0.1, 1e-3
        )
    ),
    "F.batch_norm by name": functions(
        lambda n, x: F.batch_norm(
            F.conv2d(x, n.w3), running_mean=n.mean, running_var=n.var, weight=n.scale, eps=0.1
        )
    ),
    "F.batch_norm(training=net.training)": functions(
        lambda n, x: F.batch_norm(
            F.conv2d(x, n.w3), n.mean, n.var, None, n.v, training=n.training, momentum=0.0
        )
    ),
    "F.avg_pool1d": functions(
        lambda n, x: F.conv1d(x, n.w3, padding=1) + F.avg_pool1d(x, 3, 1, 1), 1
    ),
    "F.avg_pool2d": functions(
        lambda n, x: F.conv2d(x, n.w3, padding=1) + F.avg_pool2d(x, 3, 1, 1)
    ),
    "F.avg_pool2d by name": functions(
        lambda n, x: F.conv2d(x, n.w3, stride=2, padding=1)
        - F.avg_pool2d(x, kernel_size=(3, 3), stride=[2, 2], padding=1, count_include_pad=True)
    ),
    "F.avg_pool2d of its own stride": functions(
        lambda n, x: F.conv2d(x, n.w2, stride=2) + F.avg_pool2d(x, 2)
    ),
    "F.avg_pool3d": functions(
        lambda n, x: F.conv3d(x, n.w3, padding=1) + F.avg_pool3d(x, 3, 1, 1), 3
    ),
    "F.dropout(training=False)": functions(
        lambda n, x: F.dropout(F.conv2d(x, n.w3), 0.3, training=False) * 2
    ),
    "F.dropout(x, p, training)": functions(lambda n, x: lost(F.conv2d(x, n.w3), n.training) * 2),
    "F.dropout2d(training=net.training)": functions(
        lambda n, x: F.dropout2d(F.conv2d(x, n.w3), training=n.training) * 2
    ),
    "torch.dropout": functions(lambda n, x: torch.dropout(F.conv2d(x, n.w3), 0.5, False) * 2),
    "F.relu after it": functions(
        lambda n, x: F.relu(F.conv2d(x, n.w3, padding=1) + x), becomes="conv, relu"
    ),
}  # fmt: skip


@each(FUNCTIONS)
def test_functions(case: Case) -> None:
    case.check()


# Channels: slices, concatenation, shuffling.


def parts(forward: Forward) -> Case:
    """A forward on the 8 channels after a conv and an activation, which become one conv.

    `a` and `b` read and give 4 channels, `wide` 8; `p` and `q` are grouped pointwise convs.
    """

    def make() -> nn.Module:
        return Net(
            lambda net, x: forward(net, F.relu(net.stem(x))),
            stem=conv(),
            a=conv(4, 4),
            b=conv(4, 4),
            wide=conv(),
            other=conv(8, 6),
            p=conv(8, 8, 1, groups=2),
            q=conv(8, 8, 1, groups=2),
            dense=conv(8, 8, 1),
            bn=nn.BatchNorm2d(8),
            norms=nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)]),
        )

    return Case(make, "2 conv, relu")


def chunked(net: Any, x: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=1)
    return net.a(left) + net.b(right)  # type: ignore[no-any-return]


def chunked_and_joined(net: Any, x: Tensor) -> Tensor:
    left, right = torch.chunk(x, 2, 1)
    return torch.cat([net.a(left), net.b(right)], 1)


def split_by_number(net: Any, x: Tensor) -> Tensor:
    left, right = x.split(4, 1)
    return net.a(left) + net.b(right)  # type: ignore[no-any-return]


def split_by_sizes(net: Any, x: Tensor) -> Tensor:
    left, right = torch.split(x, [4, 4], dim=1)
    return net.a(left) - net.b(right)  # type: ignore[no-any-return]


def split_by_name(net: Any, x: Tensor) -> Tensor:
    pieces = torch.split(x, split_size_or_sections=4, dim=1)
    return net.a(pieces[0]) + net.b(pieces[1])  # type: ignore[no-any-return]


def split_by_sizes_and_joined(net: Any, x: Tensor) -> Tensor:
    layers = zip((net.a, net.b), net.norms, x.split([4, 4], 1), strict=True)
    return torch.cat([norm(layer(piece)) for layer, norm, piece in layers], 1)


def shuffle_by_view(x: Tensor, groups: int) -> Tensor:
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    return torch.transpose(x, 1, 2).contiguous().view(batch, -1, height, width)


def shuffle_by_reshape(x: Tensor, groups: int) -> Tensor:
    batch, channels, height, width = x.shape
    x = x.reshape(batch, groups, channels // groups, height, width)
    return x.permute(0, 2, 1, 3, 4).reshape(batch, channels, height, width)


def shuffle_by_flatten(x: Tensor, groups: int) -> Tensor:
    x = x.view(x.shape[0], groups, x.shape[1] // groups, x.shape[2], x.shape[3])
    return x.transpose(1, 2).flatten(1, 2)


def shuffle_by_numbers(x: Tensor, groups: int) -> Tensor:
    height, width = x.shape[-2:]
    x = x.reshape(-1, groups, 8 // groups, height, width)
    return x.transpose(1, 2).reshape(-1, 8, height, width)


CHANNELS: dict[str, Case] = {
    "slices, added": parts(lambda net, x: net.a(x[:, :4]) + net.b(x[:, 4:])),
    "slices over all axes": parts(
        lambda net, x: net.a(x[:, :4, :, :]) + net.b(x[:, 4:8, :, :])
    ),
    "slices with an ellipsis": parts(
        lambda net, x: net.a(x[:, :4, ...]) + net.b(x[:, -4:, ...])
    ),
    "overlapping slices": parts(
        lambda net, x: net.a(x[:, :4]) + net.b(x[:, 2:6]) + net.a(x[:, 4:])
    ),
    "slices with a step": parts(lambda net, x: net.a(x[:, ::2]) + net.b(x[:, 1::2])),
    "chunk": parts(chunked),
    "split by a number": parts(split_by_number),
    "split by sizes": parts(split_by_sizes),
    "split by name": parts(split_by_name),
    "slices, concatenated": parts(
        lambda net, x: torch.cat([net.a(x[:, :4]), net.b(x[:, 4:])], 1)
    ),
    "chunk, concatenated": parts(chunked_and_joined),
    "split, normalized, concatenated": parts(split_by_sizes_and_joined),
    "slices, concatenated, beside a branch": parts(
        lambda net, x: net.bn(torch.cat([net.a(x[:, :4]), net.b(x[:, 4:])], 1)) + net.p(x)
    ),
    "slices, put together again": parts(
        lambda net, x: net.wide(torch.cat([x[:, :4], x[:, 4:]], 1))
    ),
    "slices, exchanged": parts(lambda net, x: net.wide(torch.cat([x[:, 4:], x[:, :4]], 1))),
    "cat": parts(lambda net, x: torch.cat([net.wide(x), net.other(x)], 1)),
    "cat by name": parts(lambda net, x: torch.cat(tensors=(net.wide(x), net.other(x)), dim=1)),
    "cat from the last axis": parts(lambda net, x: torch.cat([net.wide(x), net.other(x)], -3)),
    "concat": parts(lambda net, x: torch.concat([net.wide(x), net.other(x)], dim=1)),
    "concatenate": parts(lambda net, x: torch.concatenate([net.wide(x), net.other(x)], dim=1)),
    "cat of slices, then a batch norm": parts(
        lambda net, x: net.bn(torch.cat([net.dense(x)[:, :4], net.dense(x)[:, 4:]], 1))
    ),
    "a shuffle by view": parts(lambda net, x: net.q(shuffle_by_view(net.p(x), 2))),
    "a shuffle by reshape": parts(lambda net, x: net.q(shuffle_by_reshape(net.p(x), 4))),
    "a shuffle by flatten": parts(lambda net, x: net.q(shuffle_by_flatten(net.p(x), 2))),
    "a shuffle by numbers": parts(lambda net, x: net.q(shuffle_by_numbers(net.p(x), 2))),
    "F.channel_shuffle": parts(lambda net, x: net.q(F.channel_shuffle(net.p(x), 2))),
    "ChannelShuffle": Case(
        lambda: nn.Sequential(
            conv(8, 8, 1, groups=2), nn.ChannelShuffle(2), conv(8, 8, 1, groups=2)
        )
    ),
    # Of these inputs the channels are known from the layers that read their pieces.
    "slices of the input": Case(
        lambda: Net(lambda net, x: net.a(x[:, :4]) + net.b(x[:, 4:]), a=conv(4), b=conv(4))
    ),
    "a split of the input by sizes": Case(lambda: Net(split_by_sizes, a=conv(4), b=conv(4))),
}  # fmt: skip


@each(CHANNELS)
def test_channels(case: Case) -> None:
    case.check()


# Zeros around the input of a conv.


def padded(pad: Callable[[Tensor], Tensor] | nn.Module, **options: Any) -> Case:
    return Case(lambda: Net(lambda net, x: net.layer(pad(x)), layer=nn.Conv2d(8, 6, 3, **options)))


PADDING: dict[str, Case] = {
    "F.pad": padded(lambda x: F.pad(x, (1, 1, 1, 1))),
    "F.pad with a list": padded(lambda x: F.pad(x, [2, 2])),
    "F.pad by name": padded(lambda x: F.pad(input=x, pad=(1, 1, 1, 1), mode="constant", value=0)),
    "F.pad by position": padded(lambda x: F.pad(x, (1, 1, 2, 2), "constant", 0.0)),
    "F.pad before a conv that pads": padded(lambda x: F.pad(x, (1, 1, 0, 0)), padding=1),
    "F.pad before a strided conv": padded(lambda x: F.pad(x, (1, 1, 1, 1)), stride=2),
    "F.pad before a dilated conv": padded(lambda x: F.pad(x, (2, 2, 2, 2)), dilation=2),
    "ZeroPad2d": Case(lambda: nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(8, 6, 3))),
    "ZeroPad2d of each side": Case(
        lambda: nn.Sequential(nn.ZeroPad2d((2, 2, 1, 1)), nn.Conv2d(8, 6, 3, padding=1))
    ),
    "ConstantPad2d": Case(lambda: nn.Sequential(nn.ConstantPad2d(1, 0.0), nn.Conv2d(8, 6, 3))),
    "ZeroPad1d": Case(
        lambda: nn.Sequential(nn.ZeroPad1d(2), nn.Conv1d(8, 6, 5)), shape=(8, 11)
    ),
    "ZeroPad3d": Case(
        lambda: nn.Sequential(nn.ZeroPad3d(1), nn.Conv3d(4, 4, 3)), shape=(4, 5, 3, 5)
    ),
    "beside another branch": Case(
        lambda: branches(nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(8, 8, 3)), conv(size=1))
    ),
    "between two convs": Case(
        lambda: nn.Sequential(conv(size=1, bias=False), nn.ZeroPad2d(1), nn.Conv2d(8, 6, 3))
    ),
    "with a conv and a batch norm after it": Case(
        lambda: nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6))
    ),
}  # fmt: skip


@each(PADDING)
def test_padding(case: Case) -> None:
    case.check()


# Weights that are computed from parameters.


class Centred(nn.Module):
    """A parametrization: weights whose mean is zero."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight - weight.mean((1, 2, 3), keepdim=True)


class Doubled(nn.Module):
    def forward(self, bias: Tensor) -> Tensor:
        return 2 * bias


class StandardConv(nn.Conv2d):
    """Weight standardization (Qiao et al., 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        weight = weight - weight.mean(dim=(1, 2, 3), keepdim=True)
        std = weight.std(dim=(1, 2, 3), keepdim=True) + 1e-5
        return F.conv2d(
            x, weight / std, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class NormedConv(nn.Conv2d):
    """Weight standardization by way of a batch norm, as timm's StdConv2d."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6)
        return F.conv2d(
            x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding,
            self.dilation, self.groups,
        )  # fmt: skip


class Sobel(nn.Module):
    """A fixed filter with a learned scale per channel, as in ECBSR."""

    def __init__(self, channels: int, groups: int | None) -> None:
        super().__init__()
        taps = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
        self.register_buffer("mask", taps.repeat(channels, 1, 1, 1))
        self.scale = nn.Parameter(torch.randn(channels, 1, 1, 1))
        self.bias, self.groups = nn.Parameter(torch.randn(channels)), groups

    def forward(self: Any, x: Tensor) -> Tensor:
        groups = self.groups or x.shape[1]
        return F.conv2d(x, self.scale * self.mask, self.bias, padding=1, groups=groups)


class Remerged(nn.Module):
    """Merges its kernels anew in each forward, in one of the ways that papers' code does it."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.w3, self.w1, self.v = number(8, 8, 3, 3), number(8, 8, 1, 1), number(8)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel(), self.v, padding=1)

    def kernel(self) -> Tensor:
        w3, w1 = self.w3, self.w1
        if self.way == "pad":
            return w3 + F.pad(w1, [1, 1, 1, 1])
        if self.way == "einsum":
            return torch.einsum("oi,ikhw->okhw", w1[:, :, 0, 0], w3)
        if self.way == "matmul":
            return (w1.flatten(1) @ w3.flatten(1)).view(8, 8, 3, 3)
        assert self.way == "conv2d"
        return F.conv2d(w3, w1.permute(1, 0, 2, 3))


def parametrized(name: str, function: nn.Module) -> nn.Module:
    layer = conv()
    parametrize.register_parametrization(layer, name, function)
    return layer


WEIGHTS: dict[str, Callable[[], nn.Module]] = {
    "parametrizations.weight_norm": lambda: parametrizations.weight_norm(conv()),
    "parametrizations.spectral_norm": lambda: parametrizations.spectral_norm(conv()),
    "utils.weight_norm": lambda: weight_norm(conv()),
    "utils.spectral_norm": lambda: spectral_norm(conv()),
    "a parametrization of the weight": lambda: parametrized("weight", Centred()),
    "a parametrization of the bias": lambda: parametrized("bias", Doubled()),
    "a standardized conv": lambda: StandardConv(8, 8, 3, padding=1),
    "a standardized conv by batch_norm": lambda: NormedConv(8, 8, 3, padding=1),
    "a Sobel filter": lambda: Sobel(8, 8),
    "a merge by F.pad": lambda: Remerged("pad"),
    "a merge by einsum": lambda: Remerged("einsum"),
    "a merge by matmul": lambda: Remerged("matmul"),
    "a merge by conv2d": lambda: Remerged("conv2d"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("layer", WEIGHTS.values(), ids=list(WEIGHTS))
@pytest.mark.parametrize("around", ["alone", "a batch norm after", "a branch beside"])
def test_computed_weights(layer: Callable[[], nn.Module], around: str) -> None:
    makes: dict[str, Callable[[], nn.Module]] = {
        "alone": lambda: nn.Sequential(layer()),
        "a batch norm after": lambda: nn.Sequential(layer(), nn.BatchNorm2d(8)),
        "a branch beside": lambda: branches(layer(), conv()),
    }
    Case(makes[around]).check()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_computed_weights_of_a_linear() -> None:
    def make(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
        return branches(wrap(nn.Linear(8, 8)), nn.Identity())

    for wrap in (
        weight_norm,
        spectral_norm,
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
    ):
        Case(partial(make, wrap), "linear", (8,)).check()


def test_groups_that_are_read_from_the_shape_of_the_input() -> None:
    # Only where the channels of the input are known: 4 of them would do for this weight as well.
    layers = (conv, nn.ReLU, lambda: Sobel(8, None), lambda: nn.BatchNorm2d(8))
    Case(lambda: nn.Sequential(*(make() for make in layers)), "2 conv, relu").check()


# Low precision. The numbers of it are in test_traps.py.


@pytest.mark.parametrize("norms_in_float32", [False, True], ids=["all", "but the norms"])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_low_precision(kind: torch.dtype, norms_in_float32: bool) -> None:
    model = branches(
        nn.Sequential(conv(), nn.BatchNorm2d(8)), nn.Sequential(conv(), nn.BatchNorm2d(8))
    )
    randomize(model.eval()).to(kind)
    if norms_in_float32:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.float()
    x = torch.randn(3, *IMAGE).to(kind)
    fused = repfuse.fuse(model)
    assert executed(fused, x) == "conv"
    assert {tensor.dtype for tensor in fused.state_dict().values()} == {kind}
    repfuse.assert_equivalent(model, fused, x)
