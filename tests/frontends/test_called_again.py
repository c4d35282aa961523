"""Methods that are called several times, and do something else each time.

Which numbers a method gives to its operations, and how it connects them, may depend on its
arguments. One layer stands for all calls of a method, so such calls are not alike.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import repfuse
from repfuse.frontends.torch import consistency, regions
from tests.numerics import assert_same, randomize


class Part(nn.Module):
    """Layers and bare weights for one method; `do` is what it does with them, k what differs."""

    def __init__(self, do: Callable[[Part, Tensor, int], Tensor]) -> None:
        super().__init__()
        self.do = do
        self.a = nn.Conv2d(4, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.w = nn.Parameter(torch.randn(4, 4, 3, 3))
        self.v = nn.Parameter(torch.randn(4, 4, 3, 3))

    def forward(self, x: Tensor, k: int) -> Tensor:
        return self.do(self, x, k)


class Twice(nn.Module):
    def __init__(self, do: Callable[[Part, Tensor, int], Tensor], second: int) -> None:
        super().__init__()
        self.part = Part(do)
        self.second = second

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.part(torch.tanh(x), 1))
        return first + torch.relu(self.part(torch.sin(first), self.second))


class Own(Part):
    """The same as a method of the model itself, which a caller may use, too."""

    def __init__(self, do: Callable[[Part, Tensor, int], Tensor], second: int) -> None:
        super().__init__(do)
        self.second = second

    def part(self, x: Tensor, k: int) -> Tensor:
        return self.do(self, x, k)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        first = torch.relu(self.part(torch.tanh(x), 1))
        return first + torch.relu(self.part(torch.sin(first), self.second))


def batch_norm(m: Part, x: Tensor, eps: float) -> Tensor:
    bn = m.bn
    return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=eps)


def conv(x: Tensor, w: Tensor) -> Tensor:
    return F.conv2d(x, w, padding=1)


WAYS: dict[str, Callable[[Part, Tensor, int], Tensor]] = {
    "the scale of a sum": lambda m, x, k: torch.add(conv(x, m.w), conv(x, m.v), alpha=k),
    "a number in a tuple": lambda m, x, k: (
        F.conv2d(x, m.w, None, 1, (k, k), (k, k)) + F.conv2d(x, m.v, None, 1, (k, k), (k, k))
    ),
    "a number by its name": lambda m, x, k: (
        F.conv2d(x, m.w, padding=k, dilation=k) + F.conv2d(x, m.v, padding=k, dilation=k)
    ),
    "an epsilon": lambda m, x, k: batch_norm(m, conv(x, m.w), eps=float(k)),
    "padding": lambda m, x, k: F.conv2d(F.pad(x, (k, 2 - k, 1, 1)), m.w),
    "a weight that is computed": lambda m, x, k: conv(x, m.w * k) + conv(x, m.v),
    "a weight that is picked": lambda m, x, k: conv(x, m.w[:, [k, 0, 3, 2]]) + conv(x, m.v),
    "an argument that is left out": lambda m, x, k: (
        conv(x, m.w) + (conv(x, m.v) if k == 1 else F.conv2d(x, m.v, bias=m.bn.bias, padding=1))
    ),
    "the operands of a difference": lambda m, x, k: (lambda u, v: u - v if k == 1 else v - u)(
        m.a(x), m.b(x)
    ),
    "operands, then a norm": lambda m, x, k: m.bn(
        (lambda u, v: u - v if k == 1 else v - u)(m.a(x), m.b(x))
    ),
    "what is taken from what": lambda m, x, k: (
        lambda u, v, w: u - (v + w) if k == 1 else v - (u + w)
    )(m.a(x), m.b(x), m.bn(x)),
    "the order of layers": lambda m, x, k: (
        x + (m.bn(m.a(x)) if k == 1 else m.a(F.pad(m.bn(x), (0, 0, 0, 0))))
    ),
}


@pytest.mark.parametrize("kind", [Twice, Own])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("second", [1, 2])
def test_calls_that_differ_are_told_apart(kind: type[Twice | Own], way: str, second: int) -> None:
    model = randomize(kind(WAYS[way], second)).double().eval()
    for target in ("cpu", "min-ops"):
        plan = repfuse.plan(model, target=target)
        fused = plan.apply()
        assert plan.report.errors == []
        assert_same(model, fused, torch.randn(2, 4, 9, 7))
    if kind is Twice:
        alike = len(plan.report.regions)
        assert alike >= 2 if second == 1 else alike < 2


def test_a_layer_is_proved_for_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """If calls were taken for alike that are not, the probe of the second one would tell."""
    for module in (consistency, regions):
        if hasattr(module, "signature_of"):
            monkeypatch.setattr(module, "signature_of", lambda lowered, region: ("alike",))
    model = randomize(Twice(WAYS["the operands of a difference"], 2)).double().eval()
    plan = repfuse.plan(model, target="min-ops")
    fused = plan.apply()
    assert len(plan.report.errors) == 1
    assert_same(model, fused, torch.randn(2, 4, 9, 7))


class Toggled(nn.Module):
    """Every other call connects the layers in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.odd = False
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.odd = not self.odd
        return self._run(x, self.odd)

    def _run(self, x: Tensor, plain: bool) -> Tensor:
        return self.n(self.a(x)) if plain else self.a(self.n(x))  # type: ignore[no-any-return]


class Counted(Toggled):
    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(1)
        return self._run(x, len(self.seen) % 2 == 1)


class ToggledOutside(nn.Module):
    """The norm follows the part in every other call only."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Conv2d(4, 4, 1))
        self.n = nn.BatchNorm2d(4)
        self.odd = False

    def forward(self, x: Tensor) -> Tensor:
        self.odd = not self.odd
        x = self.part(x)
        return self.n(x if self.odd else torch.relu(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [Toggled, Counted, ToggledOutside])
@pytest.mark.parametrize("inside", [False, True])
def test_a_method_that_does_something_else_next_time(kind: type[nn.Module], inside: bool) -> None:
    part = kind()
    model = randomize(nn.Sequential(part) if inside else part).double().eval()
    plan = repfuse.plan(model)
    fused, x = plan.apply(), torch.randn(2, 4, 9, 7).double()
    assert "changes attributes of the module" in str([r.reason for r in plan.report.refusals])
    with torch.no_grad():
        for _ in range(3):
            assert torch.allclose(model(x), fused(x), rtol=1e-9, atol=1e-9)


class OnlyCounted(Toggled):
    """The counter decides nothing."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.shape = x.shape
        return self.n(self.a(x))  # type: ignore[no-any-return]


def test_a_method_that_only_counts_its_calls() -> None:
    model = randomize(OnlyCounted()).double().eval()
    plan = repfuse.plan(model)
    assert len(plan.report.regions) == 1
    assert_same(model, plan.apply(), torch.randn(2, 4, 9, 7))
