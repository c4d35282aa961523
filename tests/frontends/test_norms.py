"""The scale and shift of a norm (A14): all that read it absorb it, or none does."""

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
from tests.models.tokens import (
    Attention,
    ChannelsFirst,
    NormBeforeConv,
    Permuted,
    PreNormMLP,
    RootMeanSquare,
    functional_norm,
)
from tests.numerics import assert_same, randomize

Norm = Callable[[int], nn.Module]


class Net(nn.Module):
    """A norm, three Linears, and a forward of one's own."""

    def __init__(self, forward: Callable[[Net, Tensor], object], norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.run = norm, forward
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor) -> object:
        return self.run(self, x)


def tokens(*shape: int) -> Tensor:
    noise = torch.Generator().manual_seed(3)
    return torch.randn(*(shape or (2, 9, 16)), generator=noise, dtype=torch.float64)


def build(forward: Callable[[Any, Tensor], object], norm: nn.Module | None = None) -> Any:
    torch.manual_seed(0)
    model = Net(forward, nn.LayerNorm(16) if norm is None else norm)
    randomize(model.double().eval())
    return model


def qkv(net: Any, x: Tensor) -> object:
    y = net.norm(x)
    return net.q(y) + torch.sigmoid(net.k(y)) * torch.tanh(net.v(y))


LAYERS: dict[str, nn.Module] = {
    "LayerNorm": nn.LayerNorm(16),
    "without bias": nn.LayerNorm(16, bias=False),
    "RMSNorm": nn.RMSNorm(16),
    "a forward of its own": functional_norm(16),
}


@pytest.mark.parametrize("norm", LAYERS.values(), ids=LAYERS)
def test_every_reader_absorbs_the_affine(norm: nn.Module) -> None:
    model = build(qkv, copy.deepcopy(norm))
    before = copy.deepcopy(model.state_dict())
    plan = repfuse.plan(model)
    fused: Any = plan.apply()
    assert plan.report.errors == [] and plan.report.refusals == []
    assert {region.where for region in plan.report.regions} == {"q", "k", "v"}
    assert_same(model, fused, tokens())
    kept: Any = fused.norm
    assert isinstance(kept, type(norm))
    assert list(kept.parameters()) == []
    assert kept.normalized_shape == (16,) and kept.eps == model.norm.eps
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert repfuse.plan(fused).report.regions == []


@pytest.mark.parametrize("norm", LAYERS.values(), ids=LAYERS)
def test_a_norm_that_lost_its_affine_is_still_printed(norm: nn.Module) -> None:
    """What prints a norm asks for the bias, also where its own forward read it."""
    fused: Any = repfuse.fuse(build(qkv, copy.deepcopy(norm)))
    assert type(norm).__name__ in str(fused)
    assert fused.norm.weight is None and getattr(fused.norm, "bias", None) is None
    assert not any(name.startswith("norm.") for name in fused.state_dict())


def build_mlp(norm: nn.Module) -> nn.Module:
    return randomize(PreNormMLP(16, lambda _: copy.deepcopy(norm)).double().eval())


@pytest.mark.parametrize("norm", LAYERS.values(), ids=LAYERS)
def test_a_fused_block_is_copied_pickled_and_loaded(norm: nn.Module) -> None:
    model = build_mlp(norm)
    fused: Any = repfuse.fuse(model)
    for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert_same(model, other, tokens())
    with torch.device("meta"):
        hollow = PreNormMLP(
            16, lambda _: type(norm)(16, bias=False) if _bare(norm) else type(norm)(16)
        )
    again = repfuse.fuse(hollow.double().eval())
    again.load_state_dict(fused.state_dict(), assign=True)
    assert_same(fused, again, tokens(), bound=0.0)


def _bare(norm: nn.Module) -> bool:
    return isinstance(norm, nn.LayerNorm) and norm.bias is None


def residual_too(net: Any, x: Tensor) -> object:
    y = net.norm(x)
    return torch.relu(net.q(y)) + y


def returned_too(net: Any, x: Tensor) -> object:
    y = net.norm(x)
    return [y, net.q(y), net.k(y)]


def activated_too(net: Any, x: Tensor) -> object:
    y = net.norm(x)
    return [net.q(y), torch.relu(y)]


def called_twice(net: Any, x: Tensor) -> object:
    return net.k(net.norm(torch.relu(net.q(net.norm(x)))))


def head_is_tied(net: Any, x: Tensor) -> object:
    return net.k(net.norm(torch.relu(net.q(x))))


def weight_is_read(net: Any, x: Tensor) -> object:
    return net.q(net.norm(x)) * net.norm.weight.sum()


def dtype_is_read(net: Any, x: Tensor) -> object:
    return net.q(net.norm(x.to(net.norm.weight.dtype)))


def weight_is_also_used_by_code(net: Any, x: Tensor) -> object:
    y = net.norm(x)
    return net.q(y) + torch.tanh(F.linear(x, net.q.weight))


def changed_in_place(net: Any, x: Tensor) -> object:
    y = net.norm(x)
    a = net.q(y)
    y += 1.0
    return [a, net.k(y), torch.tanh(y)]


STAYS: dict[str, tuple[Callable[[Net, Tensor], object], str]] = {
    "a residual": (residual_too, "reads it too"),
    "an output": (returned_too, "it is an output of the model"),
    "an activation": (activated_too, "relu (relu) reads it too"),
    "called twice": (called_twice, "called 2 times"),
    "used by code": (weight_is_also_used_by_code, ""),
    "changed in place": (changed_in_place, ""),
}


@pytest.mark.parametrize(("forward", "reason"), STAYS.values(), ids=STAYS)
def test_one_reader_that_cannot_keeps_it(
    forward: Callable[[Net, Tensor], object], reason: str
) -> None:
    model = build(forward)
    plan = repfuse.plan(model)
    fused: Any = plan.apply()
    assert plan.report.errors == [] and plan.report.regions == []
    assert len(list(fused.norm.parameters())) == 2
    assert any(reason in refusal.reason for refusal in plan.report.refusals) or not reason
    assert_same(model, fused, tokens(), bound=0.0)


def test_a_tied_weight_keeps_it() -> None:
    model = build(head_is_tied)
    model.q.weight = model.k.weight
    plan = repfuse.plan(model)
    assert plan.report.regions == []
    assert [refusal.reason for refusal in plan.report.refusals] == [
        "the weight of k, which reads it, is used elsewhere as well"
    ]
    fused: Any = plan.apply()
    assert fused.q.weight is fused.k.weight
    assert_same(model, fused, tokens(), bound=0.0)


def test_a_norm_whose_weight_code_reads_keeps_it() -> None:
    model = build(weight_is_read)
    fused: Any = repfuse.fuse(model)
    assert len(list(fused.norm.parameters())) == 2
    assert_same(model, fused, tokens())


def test_code_that_asks_for_the_dtype_of_the_weight_still_runs() -> None:
    model = build(dtype_is_read)
    assert_same(model, repfuse.fuse(model), tokens())


class Head(nn.Module):
    """A language model's head, which is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(11, 16), nn.LayerNorm(16)
        self.head = nn.Linear(16, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.norm(self.embed(x)))
        return result


def test_a_tied_embedding_keeps_it() -> None:
    model = randomize(Head().double().eval())
    plan = repfuse.plan(model)
    fused: Any = plan.apply()
    assert plan.report.regions == []
    assert "is used elsewhere" in plan.report.refusals[0].reason
    assert fused.head.weight is fused.embed.weight


@pytest.mark.parametrize("shape", [(9, 16), (16, 1)])
def test_several_axes_are_not_the_channels(shape: tuple[int, int]) -> None:
    def body(net: Any, x: Tensor) -> object:
        return net.q(net.norm(x.reshape(2, *shape)).reshape(2, -1, 16))

    model = build(body, nn.LayerNorm(shape))
    plan = repfuse.plan(model)
    assert plan.report.regions == []
    assert_same(model, plan.apply(), tokens(2, *shape), bound=0.0)


def test_the_width_of_an_image_is_no_channel_axis() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.LayerNorm(8), nn.Conv2d(8, 4, 1))
    randomize(model.double().eval())
    plan = repfuse.plan(model)
    assert plan.report.regions == []
    assert_same(model, plan.apply(), tokens(2, 3, 5, 8), bound=0.0)


def test_hooks_on_the_norm_keep_it() -> None:
    model = build(qkv)
    model.norm.register_forward_hook(lambda module, given, result: result * 2)
    plan = repfuse.plan(model)
    assert plan.report.regions == []
    assert_same(model, plan.apply(), tokens(), bound=0.0)


class Peeked(nn.Module):
    """A method that forward does not call uses the norm by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc(self.norm(x))
        return result

    def features(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(x)
        return result


def test_a_norm_that_another_method_calls_stays() -> None:
    model: Any = randomize(Peeked().double().eval())
    fused: Any = repfuse.fuse(model)
    assert_same(model, fused, tokens())
    assert torch.equal(model.features(tokens()), fused.features(tokens()))


def test_a_norm_in_train_mode_is_as_good() -> None:
    model = build(qkv)
    model.train()
    assert len(repfuse.plan(model).report.regions) == 3


def test_functional_norms_without_weight_and_with_several() -> None:
    model = build(lambda net, x: net.q(F.layer_norm(x, (16,), None, net.k.bias)))
    assert repfuse.plan(model).report.regions == []
    assert_same(model, repfuse.fuse(model), tokens(), bound=0.0)


CONVS: dict[str, Norm] = {
    "written out": ChannelsFirst,
    "by way of channels-last": Permuted,
    "GroupNorm": lambda channels: nn.GroupNorm(2, channels),
    "InstanceNorm": lambda channels: nn.InstanceNorm2d(channels, affine=True),
}


@pytest.mark.parametrize("norm", CONVS.values(), ids=CONVS)
def test_a_1x1_conv_absorbs_it(norm: Norm) -> None:
    model = randomize(NormBeforeConv(norm).double().eval())
    plan = repfuse.plan(model)
    fused: Any = plan.apply()
    assert plan.report.errors == []
    assert [region.where for region in plan.report.regions] == ["conv"]
    assert list(fused.norm.parameters()) == []
    assert_same(model, fused, tokens(2, 4, 7, 5))


def test_a_padded_conv_does_not() -> None:
    model = nn.Sequential(nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 3, padding=1))
    randomize(model.double().eval())
    plan = repfuse.plan(model)
    assert plan.report.regions == []
    assert "pads with zeros" in plan.report.refusals[0].reason


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_folded_in_float64_and_rounded_once(dtype: torch.dtype) -> None:
    model = randomize(PreNormMLP().eval()).to(dtype)
    exact = copy.deepcopy(model).double()
    fused: Any = repfuse.fuse(model)
    folded = repfuse.fuse(exact)
    for name in ("fc1", "fc2"):
        wanted: Any = getattr(folded, name)
        got: Any = getattr(fused, name)
        assert got.weight.dtype is dtype
        assert torch.equal(got.weight, wanted.weight.to(dtype))
        assert torch.equal(got.bias, wanted.bias.to(dtype))


def test_attention_of_an_rms_norm_written_out_in_code() -> None:
    embed = nn.Linear(16, 16)
    model = nn.Sequential(embed, Attention(norm=RootMeanSquare))
    randomize(model.double().eval())
    plan = repfuse.plan(model)
    fused: Any = plan.apply()
    assert len(plan.report.regions) == 3
    assert list(fused[1].norm.parameters()) == []
    assert_same(model, fused, tokens())
