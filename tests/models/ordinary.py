"""What ordinary networks hold beside their convs, each in the ways in which people write it."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PATTERNS", "Pattern", "module"]

CHANNELS = 8


@dataclass(frozen=True)
class Pattern:
    """smallest: the fewest operators of the module, its activations included; ways: how it is
    written, each by what makes its module. shape: that of the input. nodes: the fewest of a file,
    where these are others."""

    smallest: int
    ways: Mapping[str, Callable[[], nn.Module]]
    shape: tuple[int, ...] = (2, CHANNELS, 9, 7)
    nodes: int | None = None


class Written(nn.Module):
    """Layers, parameters, buffers and numbers by name; each class has a forward of its own."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        super().__init__()
        for name, part in given.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)


def module(forward: Callable[..., Any], **given: Any) -> nn.Module:
    """A module with this forward."""
    made: nn.Module = type("Written", (Written,), {"forward": forward})(given)
    return made


def way(forward: Callable[..., Any], **make: Callable[[], Any]) -> Callable[[], nn.Module]:
    return lambda: module(forward, **{name: build() for name, build in make.items()})


def conv(size: int = 3, outputs: int = CHANNELS, inputs: int = CHANNELS, **more: Any) -> Any:
    padding = more.pop("padding", size // 2)
    return lambda: nn.Conv2d(inputs, outputs, size, padding=padding, **more)


def linear(inputs: int = CHANNELS, outputs: int = CHANNELS) -> Any:
    return lambda: nn.Linear(inputs, outputs)


def norm(channels: int = CHANNELS) -> Any:
    return lambda: nn.BatchNorm2d(channels)


def scale(*shape: int) -> Any:
    return lambda: nn.Parameter(torch.ones(shape))


def heads(count: int = 3) -> Any:
    return lambda: nn.ModuleList(nn.Linear(CHANNELS, 5) for _ in range(count))


def before(self: Any, x: Tensor) -> Any:
    return self.conv(self.norm(x.relu()))


def before_functional(self: Any, x: Tensor) -> Any:
    n = self.norm
    x = F.batch_norm(x.relu(), n.running_mean, n.running_var, n.weight, n.bias, False, 0.1, n.eps)
    return F.conv2d(x, self.conv.weight, self.conv.bias)


def before_padded(self: Any, x: Tensor) -> Any:
    return self.conv(self.pad(self.norm(x.relu())))


def before_head(self: Any, x: Tensor) -> Any:
    return self.head(self.norm(self.stem(x).relu().mean((2, 3))))


def before_head_functional(self: Any, x: Tensor) -> Any:
    n = self.norm
    x = self.stem(x).relu().mean((2, 3))
    x = F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias, eps=n.eps)
    return F.linear(x, self.head.weight, self.head.bias)


def before_two(self: Any, x: Tensor) -> Any:
    x = self.norm(x.relu())
    return self.conv(x).relu() + self.other(x).sigmoid()


def dense(self: Any, x: Tensor) -> Any:
    x = x.relu()
    x = torch.cat([x, self.first(x).relu()], 1)
    return self.conv(self.norm(x))


def dense_list(self: Any, x: Tensor) -> Any:
    features = [x.relu()]
    features.append(self.first(features[0]).relu())
    return self.conv(self.norm(torch.cat(features, dim=-3)))


def scaled(self: Any, x: Tensor) -> Any:
    return x + self.gamma * self.conv(x.relu())


def scaled_after(self: Any, x: Tensor) -> Any:
    return x + self.conv(x.relu()) * self.gamma


def scaled_mul(self: Any, x: Tensor) -> Any:
    return torch.add(x, torch.mul(self.gamma, self.conv(x.relu())))


def scaled_in_place(self: Any, x: Tensor) -> Any:
    y = self.conv(x.relu())
    y *= self.gamma
    y += x
    return y


def scaled_methods(self: Any, x: Tensor) -> Any:
    return self.conv(x.relu()).mul_(self.gamma).add_(x)


def scaled_view(self: Any, x: Tensor) -> Any:
    return x + self.gamma.view(1, -1, 1, 1) * self.conv(x.relu())


def scaled_reshape(self: Any, x: Tensor) -> Any:
    return x + self.gamma.reshape(-1, 1, 1) * self.conv(x.relu())


def scaled_index(self: Any, x: Tensor) -> Any:
    return x + self.gamma[:, None, None] * self.conv(x.relu())


def scaled_squeeze(self: Any, x: Tensor) -> Any:
    return x + self.gamma.unsqueeze(-1).unsqueeze(-1) * self.conv(x.relu())


def scaled_alpha(self: Any, x: Tensor) -> Any:
    return torch.add(x, self.conv(x.relu()), alpha=self.gamma)


def scaled_divided(self: Any, x: Tensor) -> Any:
    return x + self.conv(x.relu()) / self.gamma


def scaled_addcmul(self: Any, x: Tensor) -> Any:
    return torch.addcmul(x, self.conv(x.relu()), self.gamma)


def scaled_less(self: Any, x: Tensor) -> Any:
    return x - self.gamma * self.conv(x.relu())


def mlp(self: Any, x: Tensor) -> Any:
    return x + self.gamma * self.second(F.relu(self.first(x)))


def convnext(self: Any, x: Tensor) -> Any:
    y = self.depthwise(x).permute(0, 2, 3, 1)
    y = self.second(F.relu(self.first(y)))
    y = self.gamma * y
    return x + y.permute(0, 3, 1, 2)


def between(self: Any, x: Tensor) -> Any:
    return self.depthwise(self.norm(self.conv(x.relu())).relu() * self.gamma)


def norm_between(self: Any, x: Tensor) -> Any:
    return self.depthwise(self.norm(self.conv(x)).relu())


def norm_valid(self: Any, x: Tensor) -> Any:
    return self.depthwise(self.norm(x.relu()))


def mean_sum(self: Any, x: Tensor) -> Any:
    return sum(head(x) for head in self.heads) / len(self.heads)


def mean_stack(self: Any, x: Tensor) -> Any:
    return torch.stack([head(x) for head in self.heads]).mean(0)


def mean_stack_last(self: Any, x: Tensor) -> Any:
    return torch.stack([head(x) for head in self.heads], dim=-1).mean(dim=-1)


def mean_stack_first(self: Any, x: Tensor) -> Any:
    return torch.mean(torch.stack([head(x) for head in self.heads], 1), 1)


def mean_reduce(self: Any, x: Tensor) -> Any:
    return functools.reduce(operator.add, [head(x) for head in self.heads]) * (1 / 3)


def mean_weighted(self: Any, x: Tensor) -> Any:
    return 0.5 * self.heads[0](x) + 0.25 * self.heads[1](x) + 0.25 * self.heads[2](x)


def mean_in_place(self: Any, x: Tensor) -> Any:
    total = self.heads[0](x)
    for head in list(self.heads)[1:]:
        total += head(x)
    total /= len(self.heads)
    return total


def mean_stack_sum(self: Any, x: Tensor) -> Any:
    return torch.stack([head(x) for head in self.heads]).sum(dim=0).div(3)


def mean_zeros(self: Any, x: Tensor) -> Any:
    total: Any = 0
    for weight, head in zip((0.2, 0.3, 0.5), self.heads, strict=True):
        total = total + weight * head(x)
    return total


def skip(self: Any, x: Tensor) -> Any:
    return (x + self.gamma * self.conv(x)).relu()


def skip_alpha(self: Any, x: Tensor) -> Any:
    return x.add(self.conv(x), alpha=self.gamma).relu()


def skip_both(self: Any, x: Tensor) -> Any:
    return (self.gamma * x + self.conv(x) * self.beta).relu()


def skip_dropped(self: Any, x: Tensor) -> Any:
    y = self.conv(x)
    if self.training:
        y = y * (torch.rand(()) < 0.5)
    return (x + y * self.gamma).relu()


def stacked(self: Any, x: Tensor) -> Any:
    x = x.relu()
    return torch.cat([self.first(x), self.second(x), self.third(x)], 1).relu()


def stacked_norms(self: Any, x: Tensor) -> Any:
    x = x.relu()
    parts = [self.norm1(self.first(x)), self.norm2(self.second(x)), self.norm3(self.third(x))]
    return F.relu(torch.concat(parts, dim=1))


def shuffled(self: Any, x: Tensor) -> Any:
    x = self.first(x.relu())
    b, c, h, w = x.shape
    x = x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, c, h, w)
    return self.second(x.relu())


def shuffled_reshape(self: Any, x: Tensor) -> Any:
    x = self.first(x.relu())
    b, c, h, w = x.size()
    x = x.reshape(b, 2, c // 2, h, w).permute(0, 2, 1, 3, 4).reshape(b, c, h, w)
    return self.second(x.relu())


def shuffled_flatten(self: Any, x: Tensor) -> Any:
    x = self.first(x.relu())
    b, c, h, w = x.size()
    x = torch.transpose(x.view(b, 2, c // 2, h, w), 1, 2).flatten(1, 2)
    return self.second(x.relu())


def shuffled_module(self: Any, x: Tensor) -> Any:
    return self.second(self.shuffle(self.first(x.relu())).relu())


def shuffled_before(self: Any, x: Tensor) -> Any:
    return self.second(self.shuffle(self.first(x).relu()))


def shuffled_index(self: Any, x: Tensor) -> Any:
    return self.second(self.first(x).relu()[:, [3, 1, 0, 2, 7, 6, 5, 4]])


def shuffled_flip(self: Any, x: Tensor) -> Any:
    return self.second(self.first(x).relu().flip(1))


def chunked(self: Any, x: Tensor) -> Any:
    left, right = self.stem(x).relu().chunk(2, 1)
    return torch.cat([self.first(left), self.second(right)], 1)


def chunked_split(self: Any, x: Tensor) -> Any:
    left, right = torch.split(self.stem(x).relu(), CHANNELS // 2, dim=1)
    return torch.cat((self.first(left), self.second(right)), dim=1)


def chunked_slices(self: Any, x: Tensor) -> Any:
    x = self.stem(x).relu()
    return torch.cat([self.first(x[:, :4]), self.second(x[:, 4:])], 1)


def chunked_ellipsis(self: Any, x: Tensor) -> Any:
    x = self.stem(x).relu()
    return torch.cat([self.first(x[..., :4, :, :]), self.second(x[..., 4:, :, :])], -3)


def chunked_narrow(self: Any, x: Tensor) -> Any:
    x = self.stem(x).relu()
    return torch.cat([self.first(x.narrow(1, 0, 4)), self.second(x.narrow(1, 4, 4))], 1)


def chunked_tensor_split(self: Any, x: Tensor) -> Any:
    left, right = torch.tensor_split(self.stem(x).relu(), 2, dim=1)
    return torch.cat([self.first(left), self.second(right)], 1)


def chunked_steps(self: Any, x: Tensor) -> Any:
    x = self.stem(x).relu()
    return self.first(x[:, ::2]) + self.second(x[:, 1::2])


def chunked_sum(self: Any, x: Tensor) -> Any:
    left, right = self.stem(x).relu().chunk(2, 1)
    return self.first(left) + self.second(right)


def bordered(self: Any, x: Tensor) -> Any:
    return self.wide(x) + self.narrow(x) + self.point(x) + x


def bordered_functional(self: Any, x: Tensor) -> Any:
    y = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.narrow.weight, self.narrow.bias)
    y += F.conv2d(F.pad(x, (2, 2, 2, 2), "reflect"), self.wide.weight, self.wide.bias)
    return y + self.point(x) + x


def padded(self: Any, x: Tensor) -> Any:
    return self.conv(self.pad(self.stem(x).relu() * self.gamma))


def padded_norm(self: Any, x: Tensor) -> Any:
    return self.conv(self.norm(self.pad(x)))


def shifted(self: Any, x: Tensor) -> Any:
    return self.conv(self.pad(self.norm(x)))


def branches(rank: int, mode: str, **more: Any) -> dict[str, Callable[[], Any]]:
    kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]

    def make(size: int, border: str) -> Callable[[], Any]:
        return lambda: kind(8, 8, size, padding=size // 2, padding_mode=border, **more)

    return {"wide": make(5, mode), "narrow": make(3, mode), "point": make(1, "zeros")}


def mixed(one: str, other: str) -> dict[str, Callable[[], Any]]:
    return branches(2, one) | {"narrow": branches(2, other)["narrow"]}


HEAD = {"stem": conv(), "norm": lambda: nn.BatchNorm1d(8), "head": linear()}
HALF = {"stem": conv(1), "first": conv(3, 4, 4), "second": conv(3, 4, 4)}
WHOLE = {"stem": conv(1), "first": conv(1, 8, 4), "second": conv(1, 8, 4)}
ONES = {name: conv(1, width) for name, width in (("first", 4), ("second", 6), ("third", 2))}
ONES_NORM = {**ONES, "norm1": norm(4), "norm2": norm(6), "norm3": norm(2)}
SHUFFLED = {"first": conv(1), "second": conv(1)}
RESIDUAL = {"conv": conv()}

PATTERNS: dict[str, Pattern] = {
    "norm before a conv": Pattern(
        2,
        {
            "1x1": way(before, norm=norm(), conv=conv(1)),
            "1x1, no bias": way(before, norm=norm(), conv=conv(1, bias=False)),
            "1x1, grouped": way(before, norm=norm(), conv=conv(1, groups=2)),
            "1x1, stride 2": way(before, norm=norm(), conv=conv(1, stride=2)),
            "3x3 without padding": way(before, norm=norm(), conv=conv(3, padding=0)),
            "functional": way(before_functional, norm=norm(), conv=conv(1)),
        },
    ),
    "norm before a conv with a border of its input": Pattern(
        3,
        {
            "reflect": way(before, norm=norm(), conv=conv(3, padding_mode="reflect")),
            "replicate": way(before, norm=norm(), conv=conv(3, padding_mode="replicate")),
            "pad, then norm": way(
                before_padded,
                norm=norm(),
                conv=conv(3, padding=0),
                pad=lambda: nn.ReflectionPad2d(1),
            ),
        },
    ),
    "norm before two convs": Pattern(
        7,
        {
            "": way(
                before_two,
                norm=norm(),
                conv=conv(1),
                other=conv(3, padding_mode="reflect"),
            )
        },
    ),
    "norm before a Linear": Pattern(
        4,
        {
            "mean": way(before_head, **HEAD),
            "functional": way(before_head_functional, **HEAD),
        },
    ),
    "norm of a concat": Pattern(
        5,
        {
            "cat": way(dense, first=conv(3, 4), norm=norm(12), conv=conv(1, 4, 12)),
            "list": way(dense_list, first=conv(3, 4), norm=norm(12), conv=conv(1, 4, 12)),
        },
    ),
    "layer scale": Pattern(
        3,
        {
            "before": way(scaled, gamma=scale(8, 1, 1), **RESIDUAL),
            "after": way(scaled_after, gamma=scale(1, 8, 1, 1), **RESIDUAL),
            "torch.mul": way(scaled_mul, gamma=scale(8, 1, 1), **RESIDUAL),
            "in place": way(scaled_in_place, gamma=scale(8, 1, 1), **RESIDUAL),
            "methods": way(scaled_methods, gamma=scale(8, 1, 1), **RESIDUAL),
            "view": way(scaled_view, gamma=scale(8), **RESIDUAL),
            "reshape": way(scaled_reshape, gamma=scale(8), **RESIDUAL),
            "index": way(scaled_index, gamma=scale(8), **RESIDUAL),
            "unsqueeze": way(scaled_squeeze, gamma=scale(8), **RESIDUAL),
            "divided": way(scaled_divided, gamma=scale(8, 1, 1), **RESIDUAL),
            "addcmul": way(scaled_addcmul, gamma=scale(8, 1, 1), **RESIDUAL),
            "subtracted": way(scaled_less, gamma=scale(8, 1, 1), **RESIDUAL),
        },
    ),
    "a number times a branch": Pattern(
        3,
        {
            "float": way(scaled, gamma=lambda: 0.2, **RESIDUAL),
            "parameter": way(scaled, gamma=scale(), **RESIDUAL),
            "one element": way(scaled_after, gamma=scale(1), **RESIDUAL),
            "buffer": way(scaled_mul, gamma=lambda: torch.tensor(0.2), **RESIDUAL),
            "in place": way(scaled_in_place, gamma=lambda: 0.2, **RESIDUAL),
            "methods": way(scaled_methods, gamma=lambda: 0.1, **RESIDUAL),
            "alpha": way(scaled_alpha, gamma=lambda: 0.2, **RESIDUAL),
            "divided": way(scaled_divided, gamma=lambda: 2**0.5, **RESIDUAL),
        },
    ),
    "layer scale after a Linear": Pattern(
        4,
        {"": way(mlp, first=linear(8, 16), second=linear(16, 8), gamma=scale(8))},
        (3, 8),
    ),
    "layer scale, channels last": Pattern(
        7,
        {
            "": way(
                convnext,
                depthwise=conv(7, groups=8),
                first=linear(8, 16),
                second=linear(16, 8),
                gamma=scale(8),
            )
        },
        nodes=10,
    ),
    "a scale between conv and depthwise conv": Pattern(
        4,
        {
            "": way(
                between,
                conv=conv(1),
                norm=norm(),
                gamma=scale(8, 1, 1),
                depthwise=conv(3, groups=8),
            )
        },
    ),
    "a norm between conv and depthwise conv": Pattern(
        3, {"": way(norm_between, conv=conv(1), norm=norm(), depthwise=conv(3, groups=8))}
    ),
    "a norm before a depthwise conv": Pattern(
        2, {"": way(norm_valid, norm=norm(), depthwise=conv(3, groups=8, padding=0))}
    ),
    "averaged heads": Pattern(
        1,
        {
            "sum": way(mean_sum, heads=heads()),
            "stack": way(mean_stack, heads=heads()),
            "stack, last axis": way(mean_stack_last, heads=heads()),
            "stack, axis 1": way(mean_stack_first, heads=heads()),
            "stack and sum": way(mean_stack_sum, heads=heads()),
            "reduce": way(mean_reduce, heads=heads()),
            "weighted": way(mean_weighted, heads=heads()),
            "in place": way(mean_in_place, heads=heads()),
            "from zero": way(mean_zeros, heads=heads()),
        },
        (3, 8),
    ),
    "a scaled branch beside a skip": Pattern(
        2,
        {
            "float": way(skip, gamma=lambda: 0.2, **RESIDUAL),
            "parameter": way(skip, gamma=scale(), **RESIDUAL),
            "buffer": way(skip, gamma=lambda: torch.tensor(0.2), **RESIDUAL),
            "alpha": way(skip_alpha, gamma=lambda: 0.2, **RESIDUAL),
            "both": way(skip_both, gamma=scale(), beta=scale(1), **RESIDUAL),
            "dropped while training": way(skip_dropped, gamma=lambda: 0.8, **RESIDUAL),
        },
    ),
    "concat of 1x1 convs": Pattern(
        3,
        {"": way(stacked, **ONES), "norms": way(stacked_norms, **ONES_NORM)},
    ),
    "shuffle after a conv": Pattern(
        4,
        {
            "view": way(shuffled, **SHUFFLED),
            "reshape": way(shuffled_reshape, **SHUFFLED),
            "flatten": way(shuffled_flatten, **SHUFFLED),
            "ChannelShuffle": way(
                shuffled_module, shuffle=lambda: nn.ChannelShuffle(2), **SHUFFLED
            ),
        },
    ),
    "shuffle before a conv": Pattern(
        3,
        {
            "ChannelShuffle": way(
                shuffled_before, shuffle=lambda: nn.ChannelShuffle(4), **SHUFFLED
            ),
            "list": way(shuffled_index, **SHUFFLED),
            "flip": way(shuffled_flip, **SHUFFLED),
        },
    ),
    "equal convs on halves": Pattern(
        3,
        {
            "chunk": way(chunked, **HALF),
            "split": way(chunked_split, **HALF),
            "slices": way(chunked_slices, **HALF),
            "ellipsis": way(chunked_ellipsis, **HALF),
            "narrow": way(chunked_narrow, **HALF),
            "tensor_split": way(chunked_tensor_split, **HALF),
        },
    ),
    "sum of convs on parts": Pattern(
        3, {"steps": way(chunked_steps, **WHOLE), "chunk": way(chunked_sum, **WHOLE)}
    ),
    "branches with a border of their input": Pattern(
        2,
        {
            "reflect": way(bordered, **branches(2, "reflect")),
            "replicate": way(bordered, **branches(2, "replicate")),
            "depthwise": way(bordered, **branches(2, "reflect", groups=8)),
            "functional": way(
                bordered_functional, wide=conv(5, padding=0), narrow=conv(padding=0), point=conv(1)
            ),
        },
    ),
    "branches with a border of their input, 1-D": Pattern(
        2,
        {mode: way(bordered, **branches(1, mode)) for mode in ("reflect", "replicate")},
        (2, 8, 9),
    ),
    "branches with a border of their input, 3-D": Pattern(
        2, {"replicate": way(bordered, **branches(3, "replicate"))}, (2, 8, 5, 7, 6)
    ),
    "branches with two kinds of border": Pattern(
        5,
        {
            "reflect, replicate": way(bordered, **mixed("reflect", "replicate")),
            "replicate, reflect": way(bordered, **mixed("replicate", "reflect")),
        },
    ),
    "a border of zeros": Pattern(
        3,
        {
            "a scale before": way(
                padded,
                stem=conv(1),
                gamma=scale(8, 1, 1),
                pad=lambda: nn.ZeroPad2d(1),
                conv=conv(padding=0),
            ),
        },
    ),
    "a border of a number": Pattern(
        2,
        {
            "a norm after": way(
                padded_norm, pad=lambda: nn.ConstantPad2d(1, 0.5), norm=norm(), conv=conv(padding=0)
            ),
        },
    ),
    "a shift before a border of zeros": Pattern(
        2, {"": way(shifted, norm=norm(), pad=lambda: nn.ZeroPad2d(1), conv=conv(padding=0))}
    ),
}
