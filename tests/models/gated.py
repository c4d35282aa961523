"""Branches with factors that are computed from the input: what the papers train, minimal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Bank", "ChannelGates", "GatedBranches", "ScaledInputs", "SharedNorm"]


def conv(channels: int, size: int, bias: bool, **settings: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, size, padding=size // 2, bias=bias, **settings)


class GatedBranches(nn.Module):
    """A RepVGG block with branch weights by attention over the branches, as dynamic convolution
    has it over kernels: Chen et al., "Dynamic Convolution", CVPR 2020.

    way: how code takes the factors out of what the attention gives.
    """

    def __init__(
        self,
        way: str = "index",
        channels: int = 4,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        norms: bool = False,
    ) -> None:
        super().__init__()
        self.way = way
        settings = {"stride": stride, "groups": groups}
        self.skips = stride == 1
        count = 3 if self.skips else 2
        self.gate = nn.Linear(channels, count)
        self.conv3 = conv(channels, 3, bias, **settings)
        self.conv1 = conv(channels, 1, bias, **settings)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(count if norms else 0))

    def forward(self, x: Tensor) -> Tensor:
        g, way = torch.softmax(self.gate(x.mean((2, 3))), 1), self.way
        count = 3 if self.skips else 2
        if way == "chunk" and self.skips:
            a, b, c = g[:, :, None, None].chunk(3, 1)
        elif way == "split" and self.skips:
            a, b, c = torch.split(g.view(x.shape[0], -1, 1, 1), [1, 1, 1], dim=1)
        elif way == "unbind" and self.skips:
            a, b, c = g.unbind(1)
            a, b, c = (one.view(-1, 1, 1, 1) for one in (a, b, c))
        elif way == "reshape":
            a, b, c = (g[:, i : i + 1].reshape(-1, 1, 1, 1) for i in (0, 1, count - 1))
        else:
            g = g[:, :, None, None, None]
            a, b, c = g[:, 0], g[:, 1], g[:, -1]
        terms = [self.conv3(x), self.conv1(x), x][:count]
        if self.norms:
            terms = [norm(term) for norm, term in zip(self.norms, terms, strict=True)]
        total = a * terms[0] + b * terms[1]
        result: Tensor = total + c * terms[2] if self.skips else total
        return result


class SharedNorm(nn.Module):
    """Two sigmoid gates from layers of their own, a branch without a gate, a norm after the sum."""

    def __init__(self, channels: int = 4, bias: bool = True, mode: str = "zeros") -> None:
        super().__init__()
        self.first = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 1, 1), nn.Sigmoid())
        self.second = nn.Conv2d(channels, 1, 1)
        self.conv3 = conv(channels, 3, bias, padding_mode=mode)
        self.conv1 = conv(channels, 1, bias)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        second = torch.sigmoid(self.second(x.mean((2, 3), keepdim=True)))
        total = self.first(x) * self.conv3(x) - self.conv1(x) * second + x
        result: Tensor = self.norm(total)
        return result


class ChannelGates(nn.Module):
    """Attention over branches for each channel: Li et al., "Selective Kernel Networks", CVPR
    2019."""

    def __init__(self, channels: int = 4, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.channels = channels
        self.down, self.up = nn.Linear(channels, 3), nn.Linear(3, 2 * channels)
        settings = {"stride": stride, "groups": groups}
        self.wide = conv(channels, 5, False, **settings)
        self.thin = conv(channels, 3, True, **settings)

    def forward(self, x: Tensor) -> Tensor:
        z = self.up(torch.relu(self.down(x.mean((2, 3)))))
        a, b = torch.softmax(z.view(-1, 2, self.channels), 1).unbind(1)
        total: Tensor = a[..., None, None] * self.wide(x) + b[..., None, None] * self.thin(x)
        return total


class Bank(nn.Module):
    """A bank of convs of one size, weighted by attention and added up: Yang et al., "CondConv",
    NeurIPS 2019, with the branches written out."""

    def __init__(self, count: int = 4, channels: int = 4, size: int = 3, **settings: Any) -> None:
        super().__init__()
        self.gate = nn.Linear(channels, count)
        bias = settings.pop("bias", False)
        self.convs = nn.ModuleList(conv(channels, size, bias, **settings) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        g = torch.sigmoid(self.gate(x.mean((2, 3))))
        total: Tensor = sum(
            g[:, index, None, None, None] * part(x) for index, part in enumerate(self.convs)
        )
        return total


class ScaledInputs(nn.Module):
    """The factors before the convs."""

    def __init__(self, channels: int = 4, stride: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, channels, 1)
        self.gate = nn.Linear(channels, 2)
        self.conv3 = conv(channels, 3, True, stride=stride)
        self.conv1 = conv(channels, 1, False, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        g = torch.softmax(self.gate(x.mean((2, 3))), 1)
        left, right = g[:, :1, None, None] * x, g[:, 1:, None, None] * x
        total: Tensor = self.conv3(left) + self.conv1(right)
        return total
