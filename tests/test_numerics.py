"""The measuring helpers themselves: they fail on what is wrong, and count what they say."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops.misc import FrozenBatchNorm2d

from tests.numerics import OpCounts, assert_same, count_ops, randomize


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def conv_bn() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())


WRONG: dict[str, Callable[[Tensor], Any]] = {
    "is above 1e-09": lambda x: 1.001 * x,
    "has NaN or Inf": lambda x: torch.where(x == x.max(), torch.nan, x),
    "relative error": lambda x: x[:, [1, 0, 2]],
    r"Size\(\[2, 3, 5, 5\]\) against torch.Size\(\[2, 3, 5, 4\]\)": lambda x: x[..., :4],
    "reference returns": lambda x: (x, x),
    "torch.float64 against torch.float32": lambda x: x.float(),
}


@pytest.mark.parametrize("message", WRONG)
def test_assert_same_fails_on(message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_same(Apply(lambda x: x), Apply(WRONG[message]), torch.randn(2, 3, 5, 5))


def test_assert_same_fails_on_a_missing_output() -> None:
    two, one = Apply(lambda x: {"a": x, "b": x}), Apply(lambda x: {"a": x})
    with pytest.raises(AssertionError, match="the reference returns"):
        assert_same(two, one, torch.randn(2, 3))


def test_assert_same_fails_on_nan_in_both() -> None:
    model = Apply(lambda x: x / 0.0 * 0.0)
    with pytest.raises(AssertionError, match="the reference has NaN"):
        assert_same(model, model, torch.randn(2, 3))


def test_assert_same_fails_on_zeros_alone() -> None:
    model = Apply(lambda x: [0.0 * x, x[:0]])
    with pytest.raises(AssertionError, match="no output has a value other than zero"):
        assert_same(model, model, torch.randn(2, 3))


def test_assert_same_fails_on_an_index_or_a_constant() -> None:
    with pytest.raises(AssertionError, match="against"):
        assert_same(
            Apply(lambda x: (x, x.argmax())), Apply(lambda x: (x, x.argmin())), torch.eye(2)
        )
    with pytest.raises(AssertionError, match="1 against 2"):
        assert_same(Apply(lambda x: (x, 1)), Apply(lambda x: (x, 2)), torch.eye(2))


def test_assert_same_measures_each_output_by_its_own_maximum() -> None:
    reference = Apply(lambda x: (x * 1e6, x))
    with pytest.raises(AssertionError, match=r"output\[1\]"):
        assert_same(reference, Apply(lambda x: (x * 1e6, x + 1e-6)), torch.randn(2, 3))


def test_assert_same_returns_the_error_and_compares_eval_forms_in_float64() -> None:
    model = randomize(conv_bn())
    x = torch.randn(2, 3, 8, 8)
    assert assert_same(model, model, x) == 0.0
    scaled = Apply(lambda x: x * (1 + 1e-12))
    assert 1e-13 < assert_same(Apply(lambda x: x), scaled, x) < 2e-12
    assert model.training
    assert model[0].weight.dtype == torch.float32


def test_assert_same_gives_each_model_its_own_input() -> None:
    x = torch.randn(2, 3)
    kept = x.clone()
    relu = Apply(lambda x: x.relu_())
    assert_same(relu, Apply(lambda x: x.clamp(min=0)), x)
    assert torch.equal(x, kept)
    with pytest.raises(AssertionError, match="is above"):
        assert_same(relu, Apply(lambda x: x), x)


def test_randomize_leaves_no_default_value() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.bn = nn.BatchNorm2d(4)
            self.frozen = FrozenBatchNorm2d(4)
            self.gamma = nn.Parameter(torch.full((4, 1, 1), 1e-6))
            self.alpha = nn.Parameter(torch.ones(1))
            self.last = nn.Linear(4, 5)
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

    model = Scaled()
    before = copy.deepcopy(model.state_dict())
    assert randomize(model, seed=1) is model
    after = model.state_dict()
    same = {name for name in after if torch.equal(after[name], before[name])}
    assert same == {"conv.weight", "bn.num_batches_tracked"}
    for norm in (model.bn, model.frozen):
        assert norm.running_var is not None
        assert 0.5 <= norm.running_var.min() <= norm.running_var.max() <= 2.0
    assert 0.5 <= model.gamma.abs().min() <= model.gamma.abs().max() <= 1.5

    again = randomize(Scaled(), seed=1).state_dict()
    other = randomize(Scaled(), seed=2).state_dict()
    assert torch.equal(after["bn.running_mean"], again["bn.running_mean"])
    assert not torch.equal(after["bn.running_mean"], other["bn.running_mean"])


def test_count_ops_counts_modules_and_what_runs() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")
            self.unused = nn.ConvTranspose1d(3, 3, 3)
            self.bn = nn.BatchNorm2d(3)
            self.norm = nn.InstanceNorm2d(3)
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.bn(self.conv(self.conv(x)))
            y = F.batch_norm(y, self.bn.running_mean, self.bn.running_var)
            y = self.norm(F.conv2d(y, self.conv.weight)) + 1.0
            y += y
            y = torch.add(y, y, alpha=2) + self.bn.weight.view(1, -1, 1, 1)
            z: Tensor = self.head(y.mean((2, 3))) + F.linear(y.mean((2, 3)), self.head.weight)
            return z

    model = Net()
    counts = count_ops(model, torch.randn(2, 3, 6, 6))
    assert counts == OpCounts(
        conv_modules=2, bn_modules=1, linear_modules=1, convs=3, batch_norms=2, linears=2, adds=3
    )
    assert model.training


def test_count_ops_does_not_take_the_bias_of_a_linear_for_a_branch() -> None:
    tokens = nn.Sequential(Apply(lambda x: x.transpose(1, 2)), nn.Linear(4, 8))
    counts = count_ops(tokens, torch.randn(2, 4, 5))
    assert (counts.linears, counts.adds) == (1, 0)
