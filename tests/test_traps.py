"""The traps: each has a small model that a careless rewrite gets wrong."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import repfuse
from tests.numerics import assert_same, randomize


def conv(inputs: int = 8, outputs: int = 8, size: int = 3, **options: int | bool) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)  # type: ignore[arg-type]


class Net(nn.Module):
    """Three layers and a forward of one's own."""

    def __init__(self, forward: Callable[[Net, Tensor], object]) -> None:
        super().__init__()
        self.a, self.b, self.bn = conv(), conv(size=1), nn.BatchNorm2d(8)
        self.run = forward

    def forward(self, x: Tensor) -> object:
        return self.run(self, x)


def relu_on_a_shared_input(net: Net, x: Tensor) -> object:
    x = x * 1.5
    before = net.a(x)
    after = F.relu(x, inplace=True)
    return before + net.b(x) + after


def add_to_an_alias_of_the_input(net: Net, x: Tensor) -> object:
    y = x
    y += net.a(x)
    return net.b(x) + net.a(y)


def slice_assignment(net: Net, x: Tensor) -> object:
    y = net.a(x)
    y[:, :4] = 0.0
    return net.bn(y) + net.b(x)


def a_view_that_changes(net: Net, x: Tensor) -> object:
    y = net.a(x)
    half = y[:, :4]
    half += 1.0
    return net.bn(y)


def conv_called_twice(net: Net, x: Tensor) -> object:
    return net.bn(net.a(net.a(x)))


def conv_called_twice_alike(net: Net, x: Tensor) -> object:
    return [net.bn(net.a(x)), net.bn(net.a(x + 1.0))]


def intermediate_is_returned(net: Net, x: Tensor) -> object:
    y = net.a(x)
    return [y, net.bn(y)]


def x_plus_x(net: Net, x: Tensor) -> object:
    y = net.a(x)
    return torch.relu(y + y)


def sum_from_zero(net: Net, x: Tensor) -> object:
    return torch.relu(sum([net.a(x), net.b(x), net.bn(x)]))


def broadcast_add(net: Net, x: Tensor) -> object:
    return torch.relu(net.a(x) + x.mean(1, keepdim=True))


def one_channel_beside_many(net: Net, x: Tensor) -> object:
    return net.a(x) + net.b(x)[:, :1]


def width_constant(net: Net, x: Tensor) -> object:
    return net.bn(net.a(x) + torch.arange(8, dtype=x.dtype) / 4.0)


def constant_made_in_forward(net: Net, x: Tensor) -> object:
    return net.bn(net.a(x)) + torch.ones(1, 8, 1, 1, dtype=torch.float64)


def divided_by_data(net: Net, x: Tensor) -> object:
    return 1.0 / (net.bn(net.a(x)) + 100.0)


def constant_minus_data(net: Net, x: Tensor) -> object:
    return torch.relu(2.0 - net.bn(net.a(x)) / 4.0)


def added_with_alpha(net: Net, x: Tensor) -> object:
    return torch.relu(torch.add(net.a(x), net.b(x), alpha=-0.5))


def mean_of_branches(net: Net, x: Tensor) -> object:
    return torch.relu(torch.stack([net.a(x), net.b(x), x]).mean(0))


def dead_code(net: Net, x: Tensor) -> object:
    y = net.a(x)
    net.b(y)
    return net.bn(y)


FORWARDS = [
    relu_on_a_shared_input, add_to_an_alias_of_the_input, slice_assignment, a_view_that_changes,
    conv_called_twice, conv_called_twice_alike, intermediate_is_returned, x_plus_x, sum_from_zero,
    broadcast_add, one_channel_beside_many, width_constant, constant_made_in_forward,
    divided_by_data, constant_minus_data, added_with_alpha, mean_of_branches, dead_code,
]  # fmt: skip


@pytest.mark.parametrize("forward", FORWARDS, ids=lambda forward: forward.__name__)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_answer_is_the_same(forward: Callable[[Net, Tensor], object], batch: int) -> None:
    model = randomize(Net(forward).double().eval())
    state = copy.deepcopy(model.state_dict())
    plan = repfuse.plan(model)
    fused = plan.apply()
    assert plan.report.errors == []
    assert_same(model, fused, torch.randn(batch, 8, 7, 8, dtype=torch.float64))
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.bn = conv(), conv(size=1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor, mask: Tensor | None = None, twice: bool = False) -> Tensor:
        y = self.a(x) + self.b(x)
        if mask is not None:
            y = y * mask
        return torch.relu(self.bn(y) * (2.0 if twice else 1.0))


def test_optional_arguments_keep_their_meaning() -> None:
    model = randomize(Optional().double().eval())
    plan = repfuse.plan(model)
    fused = plan.apply()
    assert plan.report.regions, str(plan)
    x = torch.randn(2, 8, 7, 8, dtype=torch.float64)
    for arguments in ((x,), (x, x), (x, None, True), (x, x, True)):
        with torch.no_grad():
            assert torch.allclose(model(*arguments), fused(*arguments), rtol=0, atol=1e-9)


def test_hooks_keep_running() -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(8))
    seen: list[int] = []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    fused = repfuse.fuse(randomize(model.double().eval()))
    assert_same(model, fused, torch.randn(2, 8, 5, 5, dtype=torch.float64))
    assert seen
    assert "hooks" in str(repfuse.plan(model))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_faulty_weights_stay(value: float) -> None:
    model = randomize(nn.Sequential(conv(), nn.BatchNorm2d(8), nn.ReLU()).eval())
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = value  # type: ignore[operator]
    plan = repfuse.plan(model)
    fused = plan.apply()
    assert isinstance(fused[1], nn.BatchNorm2d)  # type: ignore[index]
    assert any("NaN" in refusal.reason for refusal in plan.report.refusals)


def test_batch_norms_that_are_not_affine_stay() -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(8, track_running_stats=False))
    plan = repfuse.plan(model)
    assert plan.report.regions == []
    assert "without running statistics" in plan.report.refusals[0].reason


def test_train_mode_is_fused_as_its_eval_form() -> None:
    model = randomize(nn.Sequential(conv(), nn.BatchNorm2d(8)).double().train())
    fused = repfuse.fuse(model)
    assert model.training
    assert not fused.training
    assert_same(copy.deepcopy(model).eval(), fused, torch.randn(2, 8, 5, 5, dtype=torch.float64))


def test_lazy_modules_stay() -> None:
    model = nn.Sequential(nn.LazyConv2d(8, 3), nn.BatchNorm2d(8))
    reasons = [refusal.reason for refusal in repfuse.plan(model).report.refusals]
    assert any("not initialised" in reason for reason in reasons), reasons
    assert isinstance(repfuse.fuse(model)[0], nn.LazyConv2d)  # type: ignore[index]


@pytest.mark.parametrize("thing", [None, 3, nn.Conv2d, [nn.ReLU()]])
def test_what_is_no_model_is_refused_in_one_line(thing: Any) -> None:
    with pytest.raises(repfuse.RepfuseError, match=r"a torch\.nn\.Module, .* is needed, not"):
        repfuse.fuse(thing)


def test_a_text_is_the_path_of_an_onnx_file() -> None:
    with pytest.raises(repfuse.RepfuseError, match="no_such_model does not exist"):
        repfuse.fuse("no_such_model")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_low_precision_is_rounded_once(kind: torch.dtype) -> None:
    model = randomize(nn.Sequential(conv(), nn.BatchNorm2d(8)).eval()).to(kind)
    fused = repfuse.fuse(model)
    exact = repfuse.fuse(copy.deepcopy(model).double())
    for mine, theirs in zip(fused.parameters(), exact.parameters(), strict=True):
        assert torch.equal(mine, theirs.to(kind))


def test_grouped_transposed_conv_and_norm() -> None:
    layer = nn.ConvTranspose2d(8, 12, 4, stride=2, padding=1, groups=4)
    model = randomize(nn.Sequential(layer, nn.BatchNorm2d(12)).double().eval())
    fused = repfuse.fuse(model)
    assert isinstance(fused[1], nn.Identity)  # type: ignore[index]
    assert_same(model, fused, torch.randn(2, 8, 5, 6, dtype=torch.float64))


def test_unbatched_input() -> None:
    model = randomize(Net(lambda net, x: torch.relu(net.a(x) + net.b(x) + x)).double().eval())
    fused = repfuse.fuse(model)
    assert_same(model, fused, torch.randn(8, 5, 6, dtype=torch.float64))


def test_a_layer_shared_by_two_paths() -> None:
    shared = conv()
    model = nn.Sequential(shared, nn.BatchNorm2d(8), nn.ReLU(), shared, nn.BatchNorm2d(8))
    randomize(model.double().eval())
    assert_same(model, repfuse.fuse(model), torch.randn(2, 8, 5, 6, dtype=torch.float64))


class Undecided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(conv(), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = x + 1.0
        return self.block(x)  # type: ignore[no-any-return]


def test_children_of_what_cannot_be_traced_are_fused() -> None:
    model = randomize(Undecided().double().eval())
    fused = repfuse.fuse(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert_same(model, fused, torch.randn(2, 8, 5, 6, dtype=torch.float64))


def test_a_rewritten_model_survives_pickle_and_deepcopy() -> None:
    model = randomize(Optional().double().eval())
    fused = repfuse.fuse(model)
    x = torch.randn(2, 8, 7, 8, dtype=torch.float64)
    for other in (pickle.loads(pickle.dumps(fused)), copy.deepcopy(fused)):
        assert isinstance(other, Optional)
        with torch.no_grad():
            assert torch.equal(other(x), fused(x))


@pytest.mark.parametrize("strict", [True, False])
def test_a_rewritten_model_exports(strict: bool) -> None:
    fused = repfuse.fuse(randomize(Optional().double().eval()))
    x = torch.randn(2, 8, 7, 8, dtype=torch.float64)
    program = torch.export.export(fused, (x,), strict=strict)
    assert torch.allclose(program.module()(x), fused(x))


class WrittenKernel(nn.Module):
    """A kernel that every forward puts together in place, in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.w3 = nn.Parameter(torch.randn(8, 8, 3, 3))
        self.w1 = nn.Parameter(torch.randn(8, 8, 1, 1))
        self.bn = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(F.conv2d(x, self.kernel(), padding=1)))

    def kernel(self) -> Tensor:
        total = torch.zeros_like(self.w3) if self.way == "zeros" else self.w3.clone()
        if self.way == "view":
            total[:, :, 1:2, 1:2].add_(self.w1)
        elif self.way == "mul_":
            total.mul_(2.0)
        else:
            total[:, :, 1:2, 1:2] += self.w1
        return total


@pytest.mark.parametrize("way", ["zeros", "view", "mul_", "slice"])
def test_a_constant_changed_in_place_is_none(way: str) -> None:
    model = randomize(WrittenKernel(way).double().eval())
    x = torch.randn(2, 8, 7, 9, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(model(x), repfuse.fuse(model)(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "forward",
    [
        lambda n, x: (F.relu_(x * 1), n.a(x))[1],
        lambda n, x: (F.relu_(n.a(x) + 0), n.b(x))[1],
        lambda n, x: [y := n.a(x), z := y * 1, torch.relu_(y), z][2:],
        lambda n, x: [y := n.a(x), z := torch.stack([y, y]).mean(0), torch.relu_(z), y][2:],
        lambda n, x: [y := n.a(x), z := y - 0, z.mul_(2.0), n.b(y)],
    ],
)
def test_a_copy_is_not_taken_for_its_source(forward: Callable[[Net, Tensor], object]) -> None:
    model = randomize(Net(forward).double().eval())
    x = torch.randn(2, 8, 7, 8, dtype=torch.float64)
    assert_same(model, repfuse.fuse(model), x)


def test_an_output_is_no_other_name_of_the_input() -> None:
    fused = repfuse.fuse(Net(lambda n, x: x * 1).eval())
    x = torch.randn(2, 8, 7, 8)
    fused(x).zero_()
    assert x.any()
