"""Factors that no kernel is mixed of, asked for: each with its own sentence, bit by bit.

Every block is planned as a module and as the file that torch exports of it, with dynamic=True.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repfuse
from repfuse.reasons import id_of
from tests.frontends import Net, conv
from tests.frontends.onnx.cases import untouched
from tests.models.measure import exported
from tests.numerics import assert_same, randomize

IMAGE = (2, 8, 9, 9)


def gate(net: Any, x: Tensor) -> Tensor:
    """(batch, 1 or channels, 1, 1)"""
    return torch.sigmoid(net.gate(x.mean((2, 3), keepdim=True)))


def own_output(net: Any, x: Tensor) -> object:
    y = net.a(x)
    return gate(net, y) * y + net.b(x)


def spatial(net: Any, x: Tensor) -> object:
    return torch.sigmoid(net.gate(x)) * net.a(x) + net.b(x)


def after(net: Any, x: Tensor) -> object:
    return gate(net, x) * net.a(x) + net.b(x)


def both_after(net: Any, x: Tensor) -> object:
    return gate(net, x) * net.a(x) + torch.tanh(gate(net, x)) * net.b(x)


def before(net: Any, x: Tensor) -> object:
    factor = gate(net, net.stem(x))
    return net.a(factor * x) + net.b(torch.tanh(factor) * x)


def strided(size: int, stride: int) -> nn.Conv2d:
    """Of 9 x 9 the kernels of size 3 and 6 make 4 x 4."""
    return nn.Conv2d(8, 8, size, stride, bias=False)


def up() -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(8, 8, 2, stride=2)


@dataclass(frozen=True)
class Refused:
    make: Callable[[], nn.Module]
    name: str
    reason: str


OWN = "the factor is computed from the output of its own branch, which has to exist"
POSITION = "the factor differs from position to position"
TRANSPOSED = "a transposed conv is not run with another kernel for each sample"
STRIDES = "stride differs: (2, 2) against (1, 1)"


def refused(name: str, reason: str, run: Callable[[Any, Tensor], object], **parts: Any) -> Refused:
    """parts: functions that make the layers."""
    return Refused(lambda: Net(run, **{key: make() for key, make in parts.items()}), name, reason)


def one() -> nn.Conv2d:
    return nn.Conv2d(8, 1, 1)


def each() -> nn.Conv2d:
    return nn.Conv2d(8, 8, 1)


BLOCKS = {
    "squeeze-and-excite": refused(
        "factor-from-its-branch", OWN, own_output, a=conv, b=each, gate=each
    ),
    "squeeze-and-excite, one number": refused(
        "factor-from-its-branch", OWN, own_output, a=conv, b=each, gate=one
    ),
    "a spatial gate": refused("factor-not-per-sample", POSITION, spatial, a=conv, b=each, gate=one),
    "a gate of all positions and channels": refused(
        "factor-not-per-sample", POSITION, spatial, a=conv, b=each, gate=each
    ),
    "before different strides": refused(
        "strides-differ",
        STRIDES,
        before,
        a=lambda: strided(3, 2),
        b=lambda: strided(6, 1),
        stem=each,
        gate=one,
    ),
    "after different strides": refused(
        "strides-differ",
        STRIDES,
        both_after,
        a=lambda: strided(3, 2),
        b=lambda: strided(6, 1),
        gate=one,
    ),
    "a transposed conv": refused("factors-not-mixed", TRANSPOSED, after, a=up, b=up, gate=one),
    "transposed convs": refused("factors-not-mixed", TRANSPOSED, both_after, a=up, b=up, gate=each),
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomize(BLOCKS[name].make().double().eval())


def image() -> Tensor:
    return torch.randn(IMAGE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("target", ["cpu", "gpu", "min-macs", "min-ops"])
def test_a_module_says_why_and_stays(name: str, target: str) -> None:
    model, block = build(name), BLOCKS[name]
    plan = repfuse.plan(model, dynamic=True, target=target)
    fused = plan.apply()
    assert plan.report.regions == [] and plan.report.errors == []
    reasons = [entry.reason for entry in plan.report.refusals]
    assert reasons.count(block.reason) == 1, reasons
    assert id_of(block.reason) == block.name
    assert list(map(type, fused.modules())) == list(map(type, model.modules()))
    with torch.no_grad():
        assert torch.equal(model(image()), fused(image()))


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("way", ["open", "fixed"])
@pytest.mark.filterwarnings("ignore")
def test_a_file_says_why_and_stays(name: str, way: str) -> None:
    report = untouched(exported(build(name), image(), way), dynamic=True)
    reasons = [entry.reason for entry in report.refusals]
    assert reasons.count(BLOCKS[name].reason) == 1, reasons


# What docs/refusals.md says to change: whoever does so gets one conv.
ADVICE: dict[str, tuple[Callable[[Any, Tensor], object], Callable[[], nn.Module]]] = {
    "a gate from the input": (after, each),
    "a gate after the sum": (lambda net, x: gate(net, x) * (net.a(x) + net.b(x)), one),
    "a spatial gate after the sum": (
        lambda net, x: torch.sigmoid(net.gate(x)) * (net.a(x) + net.b(x)),
        one,
    ),
    "gates multiplied first": (
        lambda net, x: (gate(net, x) * torch.tanh(gate(net, x))) * net.a(x) + net.b(x),
        one,
    ),
    "one factor before a conv": (lambda net, x: net.c(gate(net, x) * net.a(x) + net.b(x)), one),
}


@pytest.mark.parametrize("name", ADVICE)
def test_who_follows_the_advice_gets_one_conv(name: str) -> None:
    run, layer = ADVICE[name]
    torch.manual_seed(0)
    model = randomize(Net(run, a=conv(), b=each(), c=each(), gate=layer()).double().eval())
    plan = repfuse.plan(model, dynamic=True, target="min-ops")
    (region,) = plan.report.regions
    assert len(region.after) == 1
    assert_same(model, plan.apply(), image())
