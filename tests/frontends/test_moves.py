"""Work under permutes and on flattened tokens (A12), as modules and as files, in random chains."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import repfuse
from repfuse.layouts import Layout
from tests.frontends.onnx.evaluate import difference, evaluate
from tests.models.measure import exported
from tests.models.tokens import LinearBN
from tests.numerics import assert_same, randomize

KINDS = ("permute", "flatten", "unflatten", "linear", "conv", "bn", "scale", "tanh", "skip", "ln")


class Chain(nn.Module):
    """Random moves of the axes, and random work where the axes allow it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        self.tokens, self.layers = bool(seed % 2), nn.ModuleList()
        self.first = nn.Linear(3, 4) if self.tokens else nn.Conv2d(3, 4, 1)
        self.names = ("B", "N", "C") if self.tokens else ("B", "C", "H", "W")
        self.steps: list[tuple[Any, ...]] = []
        axes = list(self.names)
        for _ in range(draw.randint(3, 9)):
            axes = self._step(draw, draw.choice(KINDS), axes)

    def _step(self, draw: random.Random, kind: str, axes: list[str]) -> list[str]:
        place = axes.index("C")
        if kind == "permute":
            order = draw.sample(range(len(axes)), len(axes))
            self.steps.append(("permute", order))
            return [axes[axis] for axis in order]
        if kind == "flatten" and len(axes) > 2:
            first = draw.randrange(len(axes) - 1)
            if "C" not in axes[first : first + 2]:
                self.steps.append(("flatten", first))
                axes[first : first + 2] = ["*".join(axes[first : first + 2])]
        for index, name in enumerate(axes if kind == "unflatten" else ()):
            if "*" in name:
                self.steps.append(("unflatten", index, name.split("*"), place, len(axes)))
                return [*axes[:index], *name.split("*"), *axes[index + 1 :]]
        layer = self._layer(kind, axes)
        if layer is not None:
            self.layers.append(layer)
            self.steps.append(("layer", len(self.layers) - 1))
        elif kind == "scale":
            shape = [4 if axis == place else 1 for axis in range(place, len(axes))]
            self.layers.append(nn.ParameterList([torch.randn(shape)]))
            self.steps.append(("scale", len(self.layers) - 1))
        elif kind in ("tanh", "skip"):
            self.steps.append((kind, tuple(axes)))
        return axes

    @staticmethod
    def _layer(kind: str, axes: list[str]) -> nn.Module | None:
        count = len(axes)
        if axes[-1] == "C" and kind in ("linear", "ln"):
            return nn.Linear(4, 4) if kind == "linear" else nn.LayerNorm(4)
        if axes[1] != "C" or count > 4:
            return None
        if kind == "conv" and count > 2:
            return nn.Conv1d(4, 4, 1) if count == 3 else nn.Conv2d(4, 4, 1)
        if kind == "bn":
            return nn.BatchNorm1d(4) if count < 4 else nn.BatchNorm2d(4)
        return None

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        sizes = {name: x.shape[axis] for axis, name in enumerate(self.names)}
        before: dict[tuple[str, ...], Tensor] = {}
        for kind, *given in self.steps:
            if kind == "permute":
                x = x.permute(given[0])
            elif kind == "flatten":
                x = x.flatten(given[0], given[0] + 1)
            elif kind == "unflatten":
                index, parts, place, count = given
                shape = [4 if axis == place else x.shape[axis] for axis in range(count)]
                shape[index : index + 1] = [sizes[part] for part in parts]
                x = x.reshape(shape)
            elif kind == "layer":
                x = self.layers[given[0]](x)
            elif kind == "scale":
                x = x * self.layers[given[0]][0]
            elif kind == "tanh":
                x = torch.tanh(x)
            else:
                x, before[given[0]] = x + before.get(given[0], 0.0), x
        return x


def images(tokens: bool) -> list[Tensor]:
    noise = torch.Generator().manual_seed(2)
    shapes = ((2, 5, 3), (3, 4, 3)) if tokens else ((2, 3, 5, 7), (1, 3, 6, 2))
    return [torch.randn(shape, generator=noise, dtype=torch.float64) for shape in shapes]


def test_random_chains_of_moves_are_the_same_function() -> None:
    fused = 0
    for seed in range(160):
        model = randomize(Chain(seed).double().eval())
        plan = repfuse.plan(model, target="min-ops")
        merged = plan.apply()
        assert plan.report.errors == [] and plan.report.untraced == {}
        for x in images(model.tokens):
            assert_same(model, merged, x, bound=1e-10)
        assert repfuse.plan(merged, target="min-ops").report.regions == []
        fused += bool(plan.report.regions)
    assert fused > 60, "the chains hold nothing to merge"


def test_random_chains_of_moves_in_files() -> None:
    fused = 0
    for seed in range(60):
        model = randomize(Chain(seed).double().eval())
        x = images(model.tokens)[0]
        file = exported(model, x, "open" if seed % 3 else "fixed")
        plan = repfuse.plan(file, target="min-ops")
        merged = plan.apply()
        assert plan.report.errors == []
        onnx.checker.check_model(merged, full_check=True)
        feeds = {"image": x.numpy()}
        assert difference(evaluate(file, feeds), evaluate(merged, feeds)) <= 1e-10
        assert repfuse.plan(merged, target="min-ops").report.regions == []
        fused += bool(plan.report.regions)
    assert fused > 15, "the files hold nothing to merge"


class Code(nn.Module):
    """A body of one's own between layers."""

    def __init__(self, body: Any, **layers: nn.Module) -> None:
        super().__init__()
        self.body = body
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.body(self, x)
        return result


def levit(net: Any, x: Tensor) -> Any:
    return net.linear(F.relu(net.conv(x)).flatten(2).transpose(1, 2))


def norm_before(net: Any, x: Tensor) -> Any:
    return net.linear(net.norm(x).permute(0, 2, 3, 1))


def norm_before_two(net: Any, x: Tensor) -> Any:
    y = net.norm(x).permute(0, 2, 3, 1)
    return net.linear(y) + torch.tanh(net.other(y))


def token_conv(net: Any, x: Tensor) -> Any:
    y = F.relu(net.conv(x))
    tokens = y.flatten(2).transpose(1, 2)
    image = tokens.transpose(1, 2).reshape(y.shape[0], 8, y.shape[2], y.shape[3])
    return net.linear(tokens) + net.other(image).flatten(2).transpose(1, 2)


def channels_in_a_view(net: Any, x: Tensor) -> Any:
    """The numbers of channels stand in the views, so that these must not change there."""
    y = net.conv(x)
    y = y.view(y.shape[0], 8, -1).view(y.shape[0], 8, y.shape[2], y.shape[3])
    return net.wide(y)


def scale_of_tokens(net: Any, x: Tensor) -> Any:
    return net.scale[0] * net.conv(x).flatten(2).transpose(1, 2)


def view_is_read(net: Any, x: Tensor) -> Any:
    y = net.conv(x).flatten(2).transpose(1, 2)
    return net.linear(y) * y.sum(1, keepdim=True).mean(2, keepdim=True)


def sum_that_comes_back(net: Any, x: Tensor) -> Any:
    """Two Linears on moved data; what becomes of them stands where the axes are back."""
    y = torch.tanh(net.conv(x)).transpose(1, 3)
    return torch.tanh((net.linear(y) + net.other(y)).permute(0, 3, 2, 1))


def moved_afterwards(net: Any, x: Tensor) -> Any:
    """That the axes are moved afterwards does not matter to the convs before."""
    return torch.tanh(net.norm(net.narrow(net.wide(x))).transpose(1, 2))


BODIES: dict[str, tuple[Any, int]] = {
    "LeViT": (levit, 1),
    "a norm before a permute": (norm_before, 1),
    "a norm before a permute, two readers": (norm_before_two, 2),
    "a Linear on tokens and a conv on their image": (token_conv, 1),
    "numbers of channels in views": (channels_in_a_view, 0),
    "a scale of tokens": (scale_of_tokens, 1),
    "a view that is read": (view_is_read, 0),
    "a sum that comes back": (sum_that_comes_back, 1),
    "moved afterwards": (moved_afterwards, 1),
}


@pytest.mark.parametrize(("body", "regions"), BODIES.values(), ids=BODIES)
def test_bodies(body: Any, regions: int) -> None:
    torch.manual_seed(0)
    linear: nn.Module = LinearBN(8, 8) if body is levit else nn.Linear(8, 8)
    model = Code(
        body,
        conv=nn.Conv2d(8, 8, 3),
        norm=nn.BatchNorm2d(8),
        linear=linear,
        other=nn.Conv2d(8, 8, 1) if body is token_conv else nn.Linear(8, 8),
        wide=nn.Conv2d(8, 40, 1),
        narrow=nn.Conv2d(40, 8, 1),
        scale=nn.ParameterList([torch.randn(8)]),
    )
    randomize(model.double().eval())
    plan = repfuse.plan(model)
    fused = plan.apply()
    assert plan.report.errors == []
    assert len(plan.report.regions) == regions
    for shape in ((2, 8, 7, 5), (1, 8, 9, 11)):
        noise = torch.Generator().manual_seed(1)
        assert_same(model, fused, torch.randn(shape, generator=noise, dtype=torch.float64))
    assert repfuse.plan(fused).report.regions == []


def test_a_batch_norm_over_batch_statistics_of_tokens_stays() -> None:
    linear = LinearBN(8, 8)
    linear._modules["bn"] = nn.BatchNorm1d(8, track_running_stats=False)
    model = Code(levit, conv=nn.Conv2d(3, 8, 3), linear=linear).double().eval()
    plan = repfuse.plan(model)
    assert plan.report.regions == []
    assert "without running statistics" in plan.report.refusals[0].reason


def test_tokens_of_unknown_axes_stay() -> None:
    """With four axes the batch norm would be over axis 1 of three."""
    model = LinearBN(8, 8).double().eval()
    plan = repfuse.plan(model)
    assert plan.report.regions == []
    assert "number of axes is not known" in plan.report.refusals[0].reason


def there_and_transposed(net: Any, x: Tensor) -> Any:
    """The axes come back in another order; of square images only."""
    x = torch.tanh(net.conv(x))
    return torch.tanh(net.linear(x.permute(0, 3, 2, 1)).permute(0, 3, 1, 2) + net.other(x))


def tokens_and_transposed(net: Any, x: Tensor) -> Any:
    """The tokens of the transposed image, as an image."""
    x = torch.tanh(net.conv(x))
    y = net.linear(x.permute(0, 3, 2, 1).flatten(1, 2))
    y = y.transpose(1, 2).reshape(x.shape[0], 8, x.shape[2], x.shape[3])
    return torch.tanh(net.other(net.norm(y)))


def transposed_before(net: Any, x: Tensor) -> Any:
    """What is merged begins with data whose axes were moved before."""
    y = net.narrow(torch.tanh(net.conv(x)).permute(0, 3, 2, 1))
    z = net.wide(y).permute(0, 3, 1, 2)
    return torch.tanh(net.other(net.norm(z))) + torch.tanh(y).sum(3)[:, None]


def in_order(self: Layout, order: Any) -> Layout:
    """A recognition that is wrong: it keeps all axes but the channels in order."""
    place = list(order).index(self.place)
    rest = [group for axis, group in enumerate(self.groups) if axis != self.place]
    return replace(self, groups=(*rest[:place], self.groups[self.place], *rest[place:]))


@pytest.mark.parametrize("body", [there_and_transposed, tokens_and_transposed, transposed_before])
def test_a_wrong_recognition_of_moves_is_refused(body: Any, monkeypatch: Any) -> None:
    torch.manual_seed(0)
    model = Code(
        body,
        conv=nn.Conv2d(8, 8, 3, padding=1),
        linear=nn.Linear(8, 8),
        narrow=nn.Linear(8, 4),
        wide=nn.Linear(4, 8),
        norm=nn.BatchNorm2d(8),
        other=nn.Conv2d(8, 8, 1),
    )
    randomize(model.double().eval())
    monkeypatch.setattr(Layout, "permuted", in_order)
    plan = repfuse.plan(model, target="min-ops")
    merged = plan.apply()
    for shape in ((2, 8, 5, 5), (1, 8, 6, 6), (8, 8, 8, 8)):
        noise = torch.Generator().manual_seed(1)
        assert_same(model, merged, torch.randn(shape, generator=noise, dtype=torch.float64))
    assert any("does not move the axes" in error for error in plan.report.errors)
