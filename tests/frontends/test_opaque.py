"""What must be left alone, and the reason that the plan gives for it."""

from __future__ import annotations

import random
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.ao.nn import quantized
from torch.ao.quantization import quantize_dynamic
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import repfuse
from repfuse.frontends.torch import Plan
from tests.frontends import Net, conv, executed
from tests.numerics import randomize

Forward = Callable[[Any, Tensor], object]
# As wide and as high as it has channels: a constant of shape (8,) fits each of these axes.
IMAGE = (3, 8, 8, 8)


def norm() -> nn.BatchNorm2d:
    return nn.BatchNorm2d(8)


def reasons(plan: Plan) -> str:
    """All that the plan says about what it leaves, a line each."""
    found = plan.report.to_dict()
    lines = [entry["reason"] for kind in ("refusals", "kept") for entry in found[kind]]
    return "\n".join([*lines, *found["untraced"].values()])


def outputs(model: nn.Module, x: Tensor) -> list[Any]:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    with torch.no_grad():
        # Twice: a forward may change what the next one computes.
        return pytree.tree_leaves([model(x.clone()), model(x.clone())])


@dataclass(frozen=True)
class Left:
    """A model that stays as it is, and a part of the reason."""

    make: Callable[[], nn.Module]
    reason: str
    dtype: torch.dtype = torch.float64
    shape: tuple[int, ...] = IMAGE

    def check(self) -> None:
        model = self.make().eval()
        if self.dtype.is_floating_point:
            randomize(model.to(self.dtype))
        plan = repfuse.plan(model)
        assert self.reason in reasons(plan), str(plan)
        fused = plan.apply()
        assert plan.report.regions == []
        assert plan.report.errors == []
        assert type(fused) is type(model)
        assert list(map(type, fused.modules())) == list(map(type, model.modules()))
        x = torch.randn(self.shape).to(self.dtype)
        for ours, theirs in zip(outputs(model, x), outputs(fused, x), strict=True):
            assert torch.equal(ours, theirs)


def each(cases: dict[str, Left]) -> pytest.MarkDecorator:
    """One test per case, under its name."""
    return pytest.mark.parametrize("case", cases.values(), ids=list(cases))


# What stands between a conv and a batch norm, and is no affine map of single channels.


def between(forward: Forward, reason: str, **parts: Any) -> Left:
    """`forward` on what the conv `a` gives, before a batch norm; parts: made by functions."""

    def make() -> nn.Module:
        made = {name: part() for name, part in parts.items()}
        return Net(lambda n, x: n.bn(forward(n, n.a(x))), a=conv(), bn=norm(), **made)

    return Left(make, reason)


def module_between(make: Callable[[], nn.Module]) -> Left:
    name = type(make()).__name__
    return Left(lambda: nn.Sequential(conv(), make(), norm()), f"it follows 1 ({name})")


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * 2


double: Callable[[Tensor], Tensor] = Double.apply


class Clipped(nn.Conv2d):
    """A conv whose forward does more than a conv."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class ClippedInside(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.relu(super()._conv_forward(input, weight, bias))


def clip(self: nn.Module, x: Tensor) -> Tensor:
    return F.relu(nn.Conv2d.forward(self, x))  # type: ignore[arg-type]


def with_own_forward(module: nn.Module, forward: Any) -> nn.Module:
    module.forward = types.MethodType(forward, module)
    return module


def scripted(*layers: nn.Module) -> nn.Module:
    made: nn.Module = torch.jit.script(nn.Sequential(*layers).double().eval())
    return made


BETWEEN: dict[str, Left] = {
    "ReLU": module_between(nn.ReLU),
    "MaxPool2d": module_between(lambda: nn.MaxPool2d(3, 1, 1)),
    "GroupNorm": module_between(lambda: nn.GroupNorm(2, 8)),
    "InstanceNorm2d": module_between(lambda: nn.InstanceNorm2d(8, affine=True)),
    "F.relu": between(lambda n, y: F.relu(y), "it follows relu (relu)"),
    ".relu_()": between(lambda n, y: y.relu_(), "it follows relu_ (relu)"),
    "a squeeze-and-excite": between(
        lambda n, y: y * torch.sigmoid(n.b(y.mean((2, 3), keepdim=True))),
        "it follows mul (mul)",
        b=lambda: conv(size=1),
    ),
    "c / y": between(lambda n, y: 1.0 / (y * y + 1.0), "it follows truediv (truediv)"),
    "a buffer over y": between(
        lambda n, y: n.c / (y * y + 1.0),
        "it follows truediv (truediv)",
        c=lambda: torch.rand(8, 1, 1),
    ),
    "y / z": between(lambda n, y: y / (2 + torch.tanh(y)), "it follows truediv (truediv)"),
    "y * z": between(lambda n, y: y * (y + 1.0), "it follows mul (mul)"),
    "y // 2": between(lambda n, y: y // 2, "it follows floordiv (floordiv)"),
    "rounded division": between(
        lambda n, y: torch.div(y, 2, rounding_mode="trunc"), "it follows div (div)"
    ),
    "y ** 2": between(lambda n, y: y**2, "(pow)"),
    "a shift of shape (W,), W == C": between(
        lambda n, y: y + n.c, "it follows add (add)", c=lambda: torch.rand(8)
    ),
    "a scale of shape (W,), W == C": between(
        lambda n, y: y * n.c, "it follows mul (mul)", c=lambda: nn.Parameter(torch.rand(8))
    ),
    "a shift of shape (H, 1), H == C": between(
        lambda n, y: y - n.c, "it follows sub (sub)", c=lambda: torch.rand(8, 1)
    ),
    "a scale of shape (H, W)": between(
        lambda n, y: n.c * y, "it follows mul (mul)", c=lambda: torch.rand(8, 8)
    ),
    "a shift of shape (C, H, W)": between(
        lambda n, y: y + n.c, "it follows add (add)", c=lambda: torch.rand(8, 8, 8)
    ),
    "a scale of shape (N, 1, 1, 1)": between(
        lambda n, y: y * n.c, "it follows mul (mul)", c=lambda: torch.rand(3, 1, 1, 1)
    ),
    "F.dropout(training=True)": between(
        lambda n, y: F.dropout(y, 0.5, training=True),
        "it follows dropout (a dropout that may be active)",
    ),
    "F.dropout, which trains by default": between(
        lambda n, y: F.dropout(y), "it follows dropout (a dropout that may be active)"
    ),
    "F.dropout2d(training=True)": between(
        lambda n, y: F.dropout2d(y, 0.5, True),
        "it follows dropout2d (a dropout that may be active)",
    ),
    "an autograd function": between(lambda n, y: double(y), "enters a grad or autocast mode"),
    "a dtype": between(lambda n, y: y.float().double(), "it follows double (double)"),
    "a conv subclass with its own forward": Left(
        lambda: nn.Sequential(Clipped(8, 8, 3), norm()), "it follows 0.relu (relu)"
    ),
    "a conv subclass with its own _conv_forward": Left(
        lambda: nn.Sequential(ClippedInside(8, 8, 3), norm()), "it follows 0.relu (relu)"
    ),
    "a conv with its own forward": Left(
        lambda: nn.Sequential(conv(), with_own_forward(conv(), clip), norm()),
        "it follows 1.relu (relu)",
    ),
    "a TorchScript module": Left(
        lambda: nn.Sequential(conv(), scripted(conv(), norm()), norm()),
        "it follows 1 (a TorchScript module)",
    ),
}  # fmt: skip


@each(BETWEEN)
def test_between_a_conv_and_a_batch_norm(case: Left) -> None:
    case.check()


# Batch norms on the statistics of the batch.


BATCH_STATISTICS: dict[str, Left] = {
    "track_running_stats=False": Left(
        lambda: nn.Sequential(conv(), nn.BatchNorm2d(8, track_running_stats=False)),
        "a batch norm without running statistics",
    ),
    "momentum=None, track_running_stats=False": Left(
        lambda: nn.Sequential(
            conv(), nn.BatchNorm2d(8, momentum=None, track_running_stats=False, affine=False)
        ),
        "a batch norm without running statistics",
    ),
    "F.batch_norm(training=True)": Left(
        lambda: Net(lambda n, x: F.batch_norm(n.a(x), None, None, training=True), a=conv()),
        "a batch norm on the statistics of the batch",
    ),
    "F.batch_norm(training=True) that also updates": Left(
        lambda: Net(
            lambda n, x: F.batch_norm(n.a(x), n.mean, n.var, training=True),
            a=conv(), mean=torch.zeros(8), var=torch.ones(8),
        ),
        "a batch norm on the statistics of the batch",
    ),
    "a Linear, and axis 1 of an unknown number": Left(
        lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)),
        "whose number of axes is not known here", shape=(3, 8, 8),
    ),
}  # fmt: skip


@each(BATCH_STATISTICS)
def test_batch_norms(case: Left) -> None:
    case.check()


# Branches whose sum is not one conv.


def beside(*layers: Callable[[], nn.Module], reason: str) -> Left:
    def make() -> nn.Module:
        parts = nn.ModuleList([layer() for layer in layers])
        return Net(lambda n, x: n.parts[0](x) + n.parts[1](x), parts=parts)

    return Left(make, reason)


BRANCHES: dict[str, Left] = {
    "one channel beside many": beside(
        conv, lambda: conv(8, 1), reason="out_channels differs: 8 against 1"
    ),
    "one position beside many": beside(
        conv, lambda: nn.Conv2d(8, 8, 8), reason="the output sizes differ"
    ),
    "another border": beside(
        conv,
        lambda: conv(padding_mode="reflect"),
        reason="the borders differ: zeros against reflect",
    ),
    "an average that does not count its border": beside(
        conv,
        lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        reason="the average does not count the border",
    ),
    "an average with ceil_mode": beside(
        lambda: nn.Conv2d(8, 8, 2, 2),
        lambda: nn.AvgPool2d(2, 2, ceil_mode=True),
        reason="the pooling window may hang over the end (ceil_mode)",
    ),
    "F.avg_pool2d that does not count its border": Left(
        lambda: Net(lambda n, x: n.a(x) + F.avg_pool2d(x, 3, 1, 1, False, False), a=conv()),
        "the average does not count the border",
    ),
    "F.avg_pool2d with ceil_mode": Left(
        lambda: Net(
            lambda n, x: n.a(x) + F.avg_pool2d(x, 2, ceil_mode=True), a=nn.Conv2d(8, 8, 2, 2)
        ),
        "the pooling window may hang over the end (ceil_mode)",
    ),
}


@each(BRANCHES)
def test_branches(case: Left) -> None:
    case.check()


# Chains that are not one conv.


CHAINS: dict[str, Left] = {
    "a conv that pads after a conv": Left(
        lambda: nn.Sequential(conv(), conv()), "the second conv pads by"
    ),
    "a crop before a conv that pads": Left(
        lambda: Net(lambda n, x: n.a(F.pad(x, (-1, -1, -1, -1))), a=conv()),
        "the second conv pads by",
    ),
    "a batch norm before a conv that pads": Left(
        lambda: nn.Sequential(norm(), conv()),
        "the conv pads with zeros where the shift before it would stand",
    ),
    "padding on one side": Left(
        lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 8, 3, 2)), "times the MACs"
    ),
    "a depthwise conv and a pointwise conv": Left(
        lambda: nn.Sequential(conv(groups=8), conv(size=1)), "times the MACs"
    ),
    "a conv that two batch norms read": Left(
        lambda: Net(
            lambda n, x: n.second(F.relu(n.a(n.first(n.a(x))))),
            a=conv(), first=norm(), second=norm(),
        ),
        "a module is called 2 times, in different places",
    ),
    "complex convs": Left(
        lambda: nn.Sequential(
            nn.Conv2d(8, 8, 3, dtype=torch.complex128), nn.Conv2d(8, 8, 1, dtype=torch.complex128)
        ),
        "with weights of torch.complex128",
        torch.complex128,
    ),
    "a quantized conv": Left(
        lambda: nn.Sequential(conv(), quantized_conv(), norm()), "it follows 1.double (double)"
    ),
}  # fmt: skip


class Quantized(nn.Module):
    """A quantized conv between floating point ones."""

    def __init__(self) -> None:
        super().__init__()
        self.quantize = quantized.Quantize(0.1, 128, torch.quint8)
        self.conv = quantized.Conv2d(8, 8, 3, padding=1)
        self.dequantize = quantized.DeQuantize()

    def forward(self, x: Tensor) -> Tensor:
        return self.dequantize(self.conv(self.quantize(x.float()))).double()  # type: ignore[no-any-return]


def quantized_conv() -> nn.Module:
    return Quantized()


@each(CHAINS)
def test_chains(case: Left) -> None:
    case.check()


# Layers with hooks.


def hooked(register: Callable[[nn.Module], object], layer: int) -> Left:
    def make() -> nn.Module:
        model = nn.Sequential(conv(), norm())
        register(model[layer])
        return model

    return Left(make, f"{('Conv2d', 'BatchNorm2d')[layer]} with hooks")


def see(*values: Any) -> None:
    """A hook that changes nothing."""


REGISTER: dict[str, Callable[[nn.Module], object]] = {
    "forward": lambda layer: layer.register_forward_hook(see),
    "forward with keywords": lambda layer: layer.register_forward_hook(see, with_kwargs=True),
    "forward, always called": lambda layer: layer.register_forward_hook(see, always_call=True),
    "before forward": lambda layer: layer.register_forward_pre_hook(see),
    "backward": lambda layer: layer.register_full_backward_hook(see),
    "before backward": lambda layer: layer.register_full_backward_pre_hook(see),
}


@pytest.mark.parametrize("layer", [0, 1], ids=["conv", "norm"])
@pytest.mark.parametrize("kind", REGISTER)
def test_hooks(kind: str, layer: int) -> None:
    hooked(REGISTER[kind], layer).check()


# Methods that cannot be written again from what a trace saw of them.


def branches(forward: Forward, reason: str, **attributes: Any) -> Left:
    def make() -> nn.Module:
        net = Net(forward, a=conv(), b=conv(size=1), count=torch.tensor(1.0))
        for name, value in attributes.items():
            setattr(net, name, value)
        return net

    return Left(make, reason)


def under_autocast(net: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return net.a(x) + net.b(x)  # type: ignore[no-any-return]


def a_branch_under_no_grad(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = net.b(x)
    return net.a(x) + y  # type: ignore[no-any-return]


def a_counter(net: Any, x: Tensor) -> Tensor:
    net.calls += 1
    return net.a(x) + net.b(x) * net.calls  # type: ignore[no-any-return]


def a_counter_in_a_buffer(net: Any, x: Tensor) -> Tensor:
    net.count += 1
    return (net.a(x) + net.b(x)) * net.count  # type: ignore[no-any-return]


def a_cache(net: Any, x: Tensor) -> Tensor:
    if "scale" not in net.cache:
        net.cache["scale"] = 2.0
    return (net.a(x) + net.b(x)) * net.cache["scale"]  # type: ignore[no-any-return]


def a_cache_by_shape(net: Any, x: Tensor) -> Tensor:
    net.cache.setdefault(tuple(x.shape), len(net.cache))
    return net.a(x) + net.b(x)  # type: ignore[no-any-return]


def keeps_a_branch(net: Any, x: Tensor) -> Tensor:
    net.last = net.a(x)
    return net.last + net.b(x)  # type: ignore[no-any-return]


def collects_a_branch(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    net.cache.append(y)
    return y + net.b(x)  # type: ignore[no-any-return]


def returns_a_branch(net: Any, x: Tensor) -> object:
    y = net.a(x)
    return y, y + net.b(x)


def returns_a_branch_in_a_dict(net: Any, x: Tensor) -> object:
    y = net.a(x)
    return {"branch": y, "nested": {"sum": [y + net.b(x)]}}


class Many(Net):
    def forward(self, x: Tensor, *args: Tensor, **options: bool) -> object:
        return self.run(self, x)


class Scaled(Net):
    def forward(self, x: Tensor, scale: float = 2.0) -> object:
        return self.run(self, x * scale)


def two(kind: type[Net]) -> Callable[[], nn.Module]:
    return lambda: kind(lambda net, x: net.a(x) + net.b(x), a=conv(), b=conv(size=1))


MADE_ITSELF = "the trace holds a tensor that the method makes itself"
METHODS: dict[str, Left] = {
    "autocast": branches(under_autocast, "under autocast"),
    "no_grad around one branch": branches(
        a_branch_under_no_grad, "the method enters a grad or autocast mode"
    ),
    "random numbers": branches(lambda n, x: n.a(x) + n.b(x) + torch.rand(8, 1, 1), MADE_ITSELF),
    "a random number": branches(
        lambda n, x: (n.a(x) + n.b(x)) * torch.rand(()).item(), "the trace drew random numbers"
    ),
    "Python's random numbers": branches(
        lambda n, x: (n.a(x) + n.b(x)) * random.random(), "the trace drew random numbers"
    ),
    "NumPy's random numbers": branches(
        lambda n, x: (n.a(x) + n.b(x)) * np.random.rand(), "the trace drew random numbers"
    ),
    "a tensor of ones": branches(lambda n, x: (n.a(x) + n.b(x)) * torch.ones(8, 1, 1), MADE_ITSELF),
    "a tensor from a list": branches(
        lambda n, x: (n.a(x) + n.b(x)) * torch.tensor([0.5] * 8).view(8, 1, 1), MADE_ITSELF
    ),
    "a counter": branches(a_counter, "changes attributes of the module", calls=0),
    "a counter in a buffer": branches(a_counter_in_a_buffer, "changes attributes of the module"),
    "a cache": branches(a_cache, "changes attributes of the module", cache={}),
    "a cache by shape": branches(a_cache_by_shape, "cannot be iterated", cache={}),
    "a branch in an attribute": branches(
        keeps_a_branch, "forward keeps it in the attribute 'last'", last=None
    ),
    "a branch in a list": branches(
        collects_a_branch, "forward keeps it in the attribute 'cache'", cache=[]
    ),
    "a branch that is returned": branches(returns_a_branch, "it is an output of the model"),
    "a branch that is returned in a dict": branches(
        returns_a_branch_in_a_dict, "it is an output of the model"
    ),
    "a decision on data": branches(
        lambda n, x: n.a(x) + n.b(x) if x.sum() > 0 else n.a(x), "inputs to control flow"
    ),
    "any number of arguments": Left(two(Many), "forward takes **options"),
    "an argument with a default": Left(two(Scaled), "what scale=2.0 of forward decides is fixed"),
    "a forward of the instance": Left(
        lambda: with_own_forward(two(Net)(), lambda net, x: net.a(x) + net.b(x)),
        "its forward is an attribute of the instance",
    ),
}  # fmt: skip


@each(METHODS)
def test_methods(case: Left) -> None:
    case.check()


# Whatever forward changes or keeps, wherever that is, it does so after fusing as well.


def contents(store: Any) -> list[Any]:
    """The tensors and numbers in a container of any kind."""
    if store is None:
        return []
    if isinstance(store, dict):
        return [leaf for key in sorted(store) for leaf in contents(store[key])]
    if isinstance(store, list | tuple | deque):
        return [leaf for part in store for leaf in contents(part)]
    if isinstance(store, types.SimpleNamespace):
        return contents(vars(store))
    if isinstance(store, nn.Module):
        return contents([store.state_dict(), getattr(store, "last", None)])
    return [store]


def counts(net: Any, x: Tensor) -> Tensor:
    net.store["n"] += 1
    return (net.a(x) + net.b(x)) * net.store["n"]  # type: ignore[no-any-return]


def counts_inside(net: Any, x: Tensor) -> Tensor:
    net.store["calls"]["n"] += 1
    return (net.a(x) + net.b(x)) * net.store["calls"]["n"]  # type: ignore[no-any-return]


def counts_in_an_object(net: Any, x: Tensor) -> Tensor:
    net.store.n += 1
    return (net.a(x) + net.b(x)) * net.store.n  # type: ignore[no-any-return]


def appends(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    net.store.append(y)
    return y + net.b(x)  # type: ignore[no-any-return]


def appends_inside(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    net.store["features"].append(y)
    return y + net.b(x)  # type: ignore[no-any-return]


def keeps_in_an_object(net: Any, x: Tensor) -> Tensor:
    net.store.last = net.a(x)
    return net.store.last + net.b(x)  # type: ignore[no-any-return]


def keeps_the_sum(net: Any, x: Tensor) -> Tensor:
    y = net.a(x) + net.b(x)
    net.store.last = y.mean()
    return y * 2  # type: ignore[no-any-return]


def changes(change: Callable[[Any, Tensor], object]) -> Forward:
    """A forward that first changes the buffer `store`, and then scales two branches by it."""

    def forward(net: Any, x: Tensor) -> object:
        change(net, x)
        return (net.a(x) + net.b(x)) * net.store

    return forward


def changes_after_its_use(net: Any, x: Tensor) -> Tensor:
    y = (net.a(x) + net.b(x)) * net.store
    net.store.add_(1)
    return y  # type: ignore[no-any-return]


def set_item(net: Any, x: Tensor) -> None:
    net.store[0] = x.mean()


def scale() -> Tensor:
    return torch.rand(8, 1, 1)


STORES: dict[str, tuple[Forward, Callable[[], Any]]] = {
    "a number in a dict": (counts, lambda: {"n": 0}),
    "a number in an OrderedDict": (counts, lambda: OrderedDict(n=0)),
    "a number in a defaultdict": (counts, lambda: defaultdict(int, n=0)),
    "a number in a Counter": (counts, lambda: Counter(n=0)),
    "a number in a dict in a dict": (counts_inside, lambda: {"calls": {"n": 0}}),
    "a number in an object": (counts_in_an_object, lambda: types.SimpleNamespace(n=0)),
    "a value in a list": (appends, list),
    "a value in a deque": (appends, deque),
    "a value in a list in a dict": (appends_inside, lambda: {"features": []}),
    "a value in an object": (keeps_in_an_object, lambda: types.SimpleNamespace(last=None)),
    "a value in another module": (keeps_in_an_object, nn.Identity),
    "the sum in an object": (keeps_the_sum, lambda: types.SimpleNamespace(last=None)),
    "the sum in another module": (keeps_the_sum, nn.Identity),
    "a buffer by mul_": (changes(lambda n, x: n.store.mul_(2)), scale),
    "a buffer by add_, after its use": (changes_after_its_use, scale),
    "a buffer by copy_": (
        changes(lambda n, x: n.store.copy_(x.mean((0, 2, 3))[:, None, None])), scale
    ),
    "a buffer by out=": (changes(lambda n, x: torch.add(n.store, 1, out=n.store)), scale),
    "a buffer by lerp_": (changes(lambda n, x: n.store.lerp_(x.mean(), 0.5)), scale),
    "a buffer by slice assignment": (changes(set_item), scale),
    "a buffer by its view": (changes(lambda n, x: n.store[:4].zero_()), scale),
    "a buffer by .data": (changes(lambda n, x: n.store.data.add_(1)), scale),
}  # fmt: skip


@pytest.mark.parametrize("name", STORES)
def test_what_forward_keeps_is_kept(name: str) -> None:
    forward, make = STORES[name]
    store = make()
    model: Any = Net(forward, a=conv(), b=conv(size=1))
    if isinstance(store, Tensor):
        model.register_buffer("store", store)
    else:
        model.store = store
    randomize(model.double().eval())
    plan = repfuse.plan(model)
    fused: Any = plan.apply()
    assert plan.report.errors == []
    x = torch.randn(IMAGE, dtype=torch.float64)
    for ours, theirs in zip(outputs(model, x), outputs(fused, x), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9), str(plan)
    kept, also = contents(model.store), contents(fused.store)
    assert len(kept) == len(also) > 0
    for one, other in zip(kept, also, strict=True):
        assert torch.allclose(torch.as_tensor(one), torch.as_tensor(other), rtol=1e-9, atol=1e-9)


SEEN: list[Tensor] = []


def test_what_forward_keeps_outside_of_the_model_is_kept() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.a(x)
        SEEN.append(y)
        return y + net.b(x)  # type: ignore[no-any-return]

    model = randomize(Net(forward, a=conv(), b=conv(size=1)).double().eval())
    fused = repfuse.fuse(model)
    SEEN.clear()  # of what the trace put into it, which nobody can take out again
    x = torch.randn(IMAGE, dtype=torch.float64)
    for ours, theirs in zip(outputs(model, x), outputs(fused, x), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)
    assert len(SEEN) == 4


# Parts that resist, beside parts that are fused all the same.


def block() -> nn.Module:
    return nn.Sequential(conv(), norm())


def around(forward: Forward, becomes: str, **parts: Callable[[], Any]) -> Any:
    def make() -> nn.Module:
        made = {name: part() for name, part in parts.items()}
        return Net(forward, block=block(), **made)

    return make, becomes


class OnlyMany(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = block()

    def forward(self, *args: Tensor, **options: bool) -> object:
        return self.block(args[0])


def block_under_no_grad(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net.block(x)  # type: ignore[no-any-return]


def gated(net: Any, x: Tensor) -> Tensor:
    y = net.block(x) + x
    return y * torch.sigmoid(y.mean((2, 3), keepdim=True))  # type: ignore[no-any-return]


class KeepsBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.kept = block(), [torch.zeros(1)]

    def forward(self, x: Tensor) -> Tensor:
        self.kept[:] = [self.block(x)]
        return self.kept[0] * 2


def hooked_block() -> nn.Module:
    made = block()
    made.register_forward_hook(see)
    return made


class Doubled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Assigned(nn.Conv2d):
    """Writes a second kernel into a copy of the first."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.clone()
        weight[:, :, 1:2, 1:2] += weight[:, :, :1, :1]
        return F.conv2d(x, weight, self.bias, padding=1)


RESISTS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a decision on data": around(
        lambda n, x: n.block(x) if x.sum() > 1e9 else n.block(x + 1),
        "_local_scalar_dense, add, conv, gt, sum",
    ),
    "a decision on a shape": around(
        lambda n, x: n.block(x) if x.shape[-1] > 4 else n.block(x + 1), "conv"
    ),
    "any number of arguments": (OnlyMany, "conv"),
    "no_grad": around(block_under_no_grad, "conv"),
    "a gate after the sum": around(gated, "conv, mean, mul, sigmoid"),
    "random numbers of the input's shape": around(
        lambda n, x: n.block(x) * torch.zeros_like(x).bernoulli_(0.5),
        "bernoulli, conv, mul, zeros_like",
    ),
    "a hook on the block": (lambda: nn.Sequential(hooked_block(), nn.ReLU()), "conv, relu"),
    "a TorchScript module": around(
        lambda n, x: n.script(n.block(x)), "2 conv", script=lambda: scripted(conv())
    ),
    "what a block gives is kept": (lambda: KeepsBlock(), "conv, mul"),
    "padding with ones": (
        lambda: nn.Sequential(nn.ConstantPad2d(1, 1.0), nn.Conv2d(8, 8, 3), norm()),
        "constant_pad_nd, conv",
    ),
    "a weight that is changed in place": (
        lambda: nn.Sequential(Assigned(8, 8, 3), norm(), nn.ReLU(), block()),
        "add, clone, 2 conv, copy, norm, relu, 6 slice",
    ),
    "a conv subclass that only scales": (
        lambda: nn.Sequential(Doubled(8, 8, 3, padding=1), norm()), "conv"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RESISTS)
def test_the_rest_is_fused(name: str) -> None:
    make, becomes = RESISTS[name]
    model = randomize(make().double().eval())
    plan = repfuse.plan(model)
    fused = plan.apply()
    assert plan.report.errors == []
    x = torch.randn(IMAGE, dtype=torch.float64)
    assert executed(fused, x.clone()) == becomes, str(plan)
    for ours, theirs in zip(outputs(model, x), outputs(fused, x), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)


def test_a_quantized_linear_stays_and_the_convs_before_it_are_fused() -> None:
    model = nn.Sequential(block(), nn.Flatten(), nn.Linear(512, 8), nn.Linear(8, 4)).eval()
    model = quantize_dynamic(randomize(model), {nn.Linear})
    fused: Any = repfuse.fuse(model)
    assert isinstance(fused[0][1], nn.Identity)
    assert type(fused[2]) is type(model[2])
    x = torch.randn(IMAGE)
    assert torch.allclose(model(x), fused(x), rtol=0, atol=1e-4)


def test_a_complex_scale_is_not_read_as_a_real_one() -> None:
    model = Net(lambda net, x: (net.a(x) * net.scale).real, a=conv()).double().eval()
    model.register_buffer("scale", torch.rand(8, 1, 1, dtype=torch.complex128))
    plan = repfuse.plan(model)
    assert plan.report.regions == [] and plan.report.errors == []
    x = torch.randn(IMAGE, dtype=torch.float64)
    assert torch.equal(model(x), plan.apply()(x))


def test_the_dtype_of_the_output_stays() -> None:
    # A float64 tensor with an axis promotes; a merged float32 conv would not.
    scale = torch.rand(1, dtype=torch.float64)
    model = Net(lambda net, x: net.a(x) * net.scale, a=conv(), scale=scale).eval()
    x = torch.randn(IMAGE)
    assert model(x).dtype == torch.float64
    assert repfuse.fuse(model)(x).dtype == torch.float64
