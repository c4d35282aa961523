"""What no rewrite touches comes back as it was: patch(lower(model)) changes nothing."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils import _pytree as pytree

import repfuse
from repfuse.compiler import Engine
from repfuse.frontends.torch import Plan
from repfuse.frontends.torch.assemble import assemble
from repfuse.frontends.torch.copies import structure_of
from repfuse.frontends.torch.lower import lower
from repfuse.frontends.torch.regions import find_regions
from repfuse.frontends.torch.trace import trace_model
from repfuse.report import Report
from repfuse.select import Choice, Selection
from tests.frontends import Net, conv
from tests.numerics import randomize

PLAIN = (type(None), bool, int, float, str)


def images(size: int = 9, channels: int = 8) -> Tensor:
    return torch.randn(2, channels, size, size)


def assert_untouched(before: nn.Module, after: nn.Module, *inputs: Any) -> None:
    """The same classes, structure, attributes, tensors and outputs, bit by bit."""
    ours, theirs = (list(model.named_modules(remove_duplicate=False)) for model in (before, after))
    assert [name for name, _ in ours] == [name for name, _ in theirs]
    assert sharing(module for _, module in ours) == sharing(module for _, module in theirs)
    for (name, one), (_, other) in zip(ours, theirs, strict=True):
        assert type(one) is type(other), name
        assert one is not other, name
        assert_attributes(name, one, other)
    assert repr(before) == repr(after)
    assert_tensors(before, after)
    with torch.no_grad():
        torch.manual_seed(1)
        expected = pytree.tree_leaves(before(*copy.deepcopy(inputs)))
        torch.manual_seed(1)
        given = pytree.tree_leaves(after(*copy.deepcopy(inputs)))
    assert expected
    for left, right in zip(expected, given, strict=True):
        assert torch.equal(left, right)


def assert_attributes(name: str, one: nn.Module, other: nn.Module) -> None:
    assert list(vars(one)) == list(vars(other)), name
    assert not other.training
    for key, value in vars(one).items():
        found = vars(other)[key]
        assert type(value) is type(found), f"{name}.{key}"
        if isinstance(value, PLAIN):
            assert value == found, f"{name}.{key}"
        elif isinstance(value, Tensor):
            assert torch.equal(value, found), f"{name}.{key}"
        elif isinstance(value, OrderedDict | dict | list | tuple | set):
            assert len(value) == len(found), f"{name}.{key}"
    assert one._non_persistent_buffers_set == other._non_persistent_buffers_set


def assert_tensors(before: nn.Module, after: nn.Module) -> None:
    left, right = before.state_dict(), after.state_dict()
    assert list(left) == list(right)
    for name in left:
        assert torch.equal(left[name], right[name]), name
    for kind in ("named_parameters", "named_buffers"):
        ours = list(getattr(before, kind)(remove_duplicate=False))
        theirs = list(getattr(after, kind)(remove_duplicate=False))
        assert [name for name, _ in ours] == [name for name, _ in theirs]
        assert sharing(tensor for _, tensor in ours) == sharing(tensor for _, tensor in theirs)
        for (name, one), (_, other) in zip(ours, theirs, strict=True):
            assert type(one) is type(other), name
            assert one.dtype is other.dtype, name
            assert one.stride() == other.stride(), name
            assert one.requires_grad is other.requires_grad, name
            assert one.data_ptr() != other.data_ptr() or not one.numel(), name


def sharing(things: Iterable[object]) -> list[int]:
    """Which of them are the same object: for each the place of its first occurrence."""
    first: dict[int, int] = {}
    return [first.setdefault(id(thing), place) for place, thing in enumerate(list(things))]


# Models in which nothing is to fuse.


class Tied(nn.Module):
    """A language model: an embedding whose weights are those of the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(11, 8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.embedding(tokens))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(F.gelu(x))  # type: ignore[no-any-return]


class Rich(nn.Module):
    """Attributes of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.same = conv(), nn.ReLU()
        self.again = self.same
        self.scales = nn.ParameterList([nn.Parameter(torch.rand(3)), nn.Parameter(torch.rand(()))])
        self.register_buffer("steps", torch.arange(4), persistent=False)
        self.register_buffer("absent", None)
        self.register_parameter("missing", None)
        self.layer.weight.requires_grad_(False)
        self.loose, self.function, self.names = torch.rand(2), torch.tanh, ["a", {"b": (1, 2)}]
        self.computed = self.scales[0] * 2  # no leaf: copy.deepcopy refuses to copy it
        self.kind, self.empty = torch.float32, OrderedDict[str, int]()

    def forward(self, x: Tensor) -> Tensor:
        y = self.again(self.layer(self.same(x)))
        return y + self.function(y * y) * self.scales[1]  # type: ignore[no-any-return]

    def helper(self, x: Tensor) -> Tensor:
        return x + 1


class Stubborn(nn.Module):
    """No part of it can be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = conv(), [0]

    def forward(self, x: Tensor) -> Tensor:
        while x.abs().max() > 1:
            x = x / 2
        return self.layer(x)  # type: ignore[no-any-return]


class Unet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = conv(8, 12, stride=2), nn.ConvTranspose2d(12, 8, 3, 2, 1)
        self.last = conv(16, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        low = F.silu(self.down(x))
        up = F.silu(self.up(low))
        return {"low": low, "map": self.last(torch.cat([up, F.silu(x)], 1))}


def hooked() -> nn.Module:
    model = nn.Sequential(conv(), nn.BatchNorm2d(8))
    model[1].register_forward_hook(lambda module, args, output: output * 2)
    model[0].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    return model


def channels_last() -> nn.Module:
    model: nn.Module = nn.Sequential(conv(), nn.ReLU(), conv())
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def tokens() -> Tensor:
    return torch.arange(10).reshape(2, 5)


def recurrent() -> nn.Module:
    return nn.LSTM(8, 6, num_layers=2, batch_first=True)


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "one conv": (conv, images),
    "convs and activations": (lambda: nn.Sequential(conv(), nn.ReLU(inplace=True), conv()), images),
    "channels last": (channels_last, images),
    "a conv that pads after a conv": (lambda: nn.Sequential(conv(), conv()), images),
    "a depthwise separable conv": (
        lambda: nn.Sequential(conv(64, 64, groups=64), conv(64, 64, 1)),
        lambda: images(5, 64),
    ),
    "a batch norm between activations": (
        lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(8), nn.ReLU()), images
    ),
    "a batch norm on the batch": (
        lambda: nn.Sequential(conv(), nn.BatchNorm2d(8, track_running_stats=False)), images
    ),
    "a u-net": (Unet, images),
    "tied weights": (Tied, tokens),
    "attributes": (Rich, images),
    "what cannot be traced": (Stubborn, images),
    "hooks": (hooked, images),
    "a LSTM": (recurrent, lambda: torch.randn(2, 5, 8)),
    "a transformer": (encoder, lambda: torch.randn(2, 5, 8)),
    "dropout": (lambda: nn.Sequential(conv(), nn.Dropout(), nn.ReLU(), nn.AlphaDropout()), images),
    "no parameters": (lambda: nn.Sequential(nn.ReLU(), nn.AvgPool2d(3)), images),
    "nothing at all": (nn.Sequential, images),
    "an identity": (nn.Identity, images),
    "random numbers": (lambda: Net(lambda n, x: n.a(x) * torch.rand(1), a=conv()), images),
    "no gradients": (lambda: nn.Sequential(conv(), nn.ReLU()).requires_grad_(False), images),
}  # fmt: skip

# Models in which something is; here the selection is left empty.
FUSIBLE: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "a batch norm": (lambda: nn.Sequential(conv(), nn.BatchNorm2d(8), nn.ReLU()), images),
    "branches": (
        lambda: Net(
            lambda n, x: F.relu(n.a(x) + n.b(x) + n.c * x),
            a=conv(), b=conv(size=1), c=nn.Parameter(torch.rand(8, 1, 1)),
        ),
        images,
    ),
    "a computed weight": (
        lambda: nn.Sequential(parametrizations.weight_norm(conv()), nn.BatchNorm2d(8)), images
    ),
    "a shared layer": (
        lambda: Net(lambda n, x: n.bn(n.a(x)) + n.bn(n.a(x + 1)), a=conv(), bn=nn.BatchNorm2d(8)),
        images,
    ),
}  # fmt: skip


def build(make: Callable[[], nn.Module]) -> nn.Module:
    return randomize(make().eval())


@pytest.mark.parametrize("name", MODELS)
def test_where_nothing_is_to_fuse_the_model_comes_back(name: str) -> None:
    make, inputs = MODELS[name]
    model = build(make)
    plan = repfuse.plan(model)
    assert plan.report.regions == [], str(plan)
    for fused in (plan.apply(), repfuse.fuse(model)):
        assert_untouched(model, fused, inputs())


@pytest.mark.parametrize("name", [*MODELS, *FUSIBLE])
def test_patch_of_lower_changes_nothing(name: str) -> None:
    make, inputs = {**MODELS, **FUSIBLE}[name]
    model = build(make)
    skeleton = structure_of(model)
    lowered = lower(skeleton, trace_model(skeleton))
    selection = Selection({value: Choice(0.0) for value in lowered.graph.nodes})
    regions = find_regions(lowered, selection)
    patches = assemble(lowered, regions, Engine().plain)
    assert (regions.regions, regions.blocked, patches) == ([], [], [])
    plan = Plan(model, lowered, patches, Report(type(model).__name__))
    assert_untouched(model, plan.apply(), inputs())
    # `fuse` goes on with the copy that was traced.
    assert_untouched(model, plan._write(skeleton, inplace=False, probe=True), inputs())


@pytest.mark.parametrize("name", FUSIBLE)
def test_a_fused_model_is_not_fused_again(name: str) -> None:
    make, inputs = FUSIBLE[name]
    once = repfuse.fuse(build(make))
    plan = repfuse.plan(once)
    assert plan.report.regions == [], str(plan)
    assert_untouched(once, plan.apply(), inputs())


def test_what_stands_beside_a_rewrite_is_untouched() -> None:
    children = {"block": FUSIBLE["branches"][0](), "attributes": Rich(), "last": Unet()}
    model = build(lambda: nn.Sequential(OrderedDict(children)))
    fused: Any = repfuse.fuse(model)
    assert type(fused) is nn.Sequential
    assert type(fused.block) is not Net
    assert isinstance(fused.block, Net)
    for name in ("attributes", "last"):
        assert_untouched(model.get_submodule(name), fused.get_submodule(name), images())


def test_in_place_nothing_is_copied() -> None:
    model = build(Rich)
    parts, tensors = list(model.modules()), list(model.parameters())
    assert repfuse.fuse(model, inplace=True) is model
    for old, new in ((parts, model.modules()), (tensors, model.parameters())):
        assert [id(thing) for thing in old] == [id(thing) for thing in new]
