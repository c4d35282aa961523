"""What a merge would get wrong: refused with a reason of its own, on both frontends, bit by bit.

Every block is fused as a module and as the file that torch exports of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import repfuse
from repfuse.reasons import id_of
from tests.frontends import Net, conv
from tests.frontends.onnx.cases import all_of, untouched
from tests.models.measure import exported
from tests.numerics import assert_same, randomize

Make = Callable[[], nn.Module]


@dataclass(frozen=True)
class Held:
    """A block, and the reason for leaving it in a module and in a file. shape: of its input.
    export: as in `tests.models.blocks`."""

    make: Make
    module: str
    file: str
    shape: tuple[int, ...] = (2, 8, 9, 7)
    export: str = "open"


def same(reason: str, make: Make, shape: tuple[int, ...] = (2, 8, 9, 7)) -> Held:
    return Held(make, reason, reason, shape)


def squeeze_and_excite(net: Any, x: Tensor) -> object:
    y = net.a(x)
    gate = torch.sigmoid(net.up(F.relu(net.down(y.mean((2, 3), keepdim=True)))))
    return y * gate + net.b(x)


def low_rank(net: Any, x: Tensor) -> object:
    return net.full(x) + net.up(F.dropout(net.down(x), 0.5, training=True))


def also_an_output(net: Any, x: Tensor) -> object:
    y = net.a(x)
    return y, y + net.b(x)


def in_place(net: Any, x: Tensor) -> object:
    x = x * 1.0  # the model's own input is the caller's
    y = net.a(x)
    return y + net.b(net.act(x))


BLOCKS: dict[str, Held] = {
    "a padded kxk after a padded kxk": same(
        "the second conv pads by ((1, 1), (1, 1)) where the first would give its bias or taps",
        lambda: nn.Sequential(conv(), conv()),
    ),
    "a padded pooling that does not count the border": same(
        "the average does not count the border, so that its divisor changes there",
        lambda: Net(
            lambda n, x: n.a(x) + n.b(x), a=conv(), b=nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        ),
    ),
    "squeeze-and-excite inside a branch": same(
        "a branch is multiplied by a factor that depends on the input",
        lambda: Net(
            squeeze_and_excite, a=conv(), b=conv(size=1), down=conv(8, 2, 1), up=conv(2, 8, 1)
        ),
    ),
    "an active dropout between low-rank halves": same(
        "a dropout that may be active",
        lambda: Net(
            low_rank,
            full=nn.Linear(8, 8),
            down=nn.Linear(8, 2, bias=False),
            up=nn.Linear(2, 8, bias=False),
        ),
        (5, 8),
    ),
    "a batch norm without running statistics": Held(
        lambda: nn.Sequential(conv(), nn.BatchNorm2d(8, track_running_stats=False)),
        "a batch norm without running statistics",
        "a batch norm on the statistics of the batch",
        export="fixed",
    ),
    "a branch that is also an output": Held(
        lambda: Net(also_an_output, a=conv(), b=conv(size=1)),
        "must exist: it is an output of the model",
        "must exist: it is an output of the graph",
    ),
    "a ReLU between branches": Held(
        lambda: Net(lambda n, x: n.a(x) + F.relu(n.b(x)), a=conv(), b=conv(size=1)),
        "a branch passes through relu, across which nothing is merged",
        "a branch passes through Relu, across which nothing is merged",
    ),
    "an activation in place on the shared input": Held(
        lambda: Net(in_place, a=conv(), b=conv(size=1), act=nn.ReLU(inplace=True)),
        "ReLU changes the input of the branches in place between them",
        "a branch passes through Relu, across which nothing is merged",  # files have no memory
    ),
}


def build(block: Held) -> nn.Module:
    torch.manual_seed(0)
    return randomize(block.make().double().eval())


def called(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The outputs, of the same random numbers."""
    torch.manual_seed(1)
    with torch.no_grad():
        found = model(x.clone())
    return list(found) if isinstance(found, tuple) else [found]


@pytest.mark.parametrize("name", BLOCKS)
def test_a_module_says_why_and_stays(name: str) -> None:
    block = BLOCKS[name]
    model = build(block)
    plan = repfuse.plan(model)
    found = plan.report.to_dict()
    reasons = [entry["reason"] for kind in ("refusals", "kept") for entry in found[kind]]
    assert any(reason.endswith(block.module) for reason in reasons), reasons
    fused = plan.apply()
    assert plan.report.regions == [] and plan.report.errors == []
    state = model.state_dict()
    assert fused.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in fused.state_dict().items())
    assert list(map(type, fused.modules())) == list(map(type, model.modules()))
    x = torch.randn(block.shape, dtype=torch.float64)
    for ours, theirs in zip(called(model, x), called(fused, x), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.filterwarnings("ignore")
def test_a_file_says_why_and_stays(name: str) -> None:
    block = BLOCKS[name]
    report = untouched(exported(build(block), torch.rand(block.shape).double(), block.export))
    reasons = [entry.reason for entry in all_of(report)]
    assert any(reason.endswith(block.file) for reason in reasons), reasons


def test_every_block_has_a_reason_of_its_own() -> None:
    names = [id_of(block.module) for block in BLOCKS.values() if "must exist" not in block.module]
    assert len({*names, "is-output"}) == len(BLOCKS) and "" not in names


def test_a_module_in_train_mode_is_fused_as_its_eval_form() -> None:
    model = randomize(nn.Sequential(conv(), nn.BatchNorm2d(8), nn.Dropout(0.5), conv(size=1)))
    model.double().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = repfuse.plan(model)
    fused = plan.apply()
    assert model.training and not fused.training
    assert len(plan.report.regions) == 1 and plan.report.refusals == []
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert_same(model.eval(), fused, torch.randn(2, 8, 9, 7, dtype=torch.float64))


def test_only_what_reads_a_common_input_is_called_a_branch() -> None:
    other = Net(lambda n, x: n.a(x) + n.b(F.relu(n.c(F.relu(x)))), a=conv(), b=conv(), c=conv())
    assert repfuse.plan(other).report.refusals == []


def test_the_last_in_place_change_is_no_change_between_branches() -> None:
    model = Net(lambda n, x: n.a(x) + n.b(x).relu_(), a=conv(), b=conv(size=1))
    (refusal,) = repfuse.plan(model).report.refusals
    assert refusal.reason == "a branch passes through relu, across which nothing is merged"
