"""Blocks on tokens and on channels-last data: norms before Linears, Linears beside convs.

Each is written from its paper, as its authors structure it; an activation that follows the block
is left out, one inside stays.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "Attention",
    "ChannelsFirst",
    "ConvNeXt",
    "LinearBeside",
    "LinearNorm",
    "NormBeforeConv",
    "NormedTokens",
    "Permuted",
    "PreNormMLP",
    "RootMeanSquare",
    "RootedLinear",
    "functional_norm",
]


class RootMeanSquare(nn.Module):
    """Zhang and Sennrich, "Root Mean Square Layer Normalization", NeurIPS 2019."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        root = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        result: Tensor = x * root * self.weight
        return result


class FunctionalNorm(nn.LayerNorm):
    """A LayerNorm with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class ChannelsFirst(nn.Module):
    """The norm between ConvNeXt's stages: Liu et al., "A ConvNet for the 2020s", CVPR 2022."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Permuted(nn.LayerNorm):
    """A LayerNorm of the channels of an image, by way of channels-last."""

    def forward(self, input: Tensor) -> Tensor:
        x = input.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


def functional_norm(channels: int) -> nn.Module:
    return FunctionalNorm(channels)


class PreNormMLP(nn.Module):
    """Norm, Linear, GELU, Linear, layer scale, and the skip. Dosovitskiy et al., "An Image is Worth
    16x16 Words", ICLR 2021; Touvron et al., "Going deeper with Image Transformers", ICCV 2021."""

    def __init__(
        self,
        channels: int = 16,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.fc1 = nn.Linear(channels, 24, bias)
        self.fc2 = nn.Linear(24, channels, bias)
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = x + self.gamma * self.fc2(F.gelu(self.fc1(self.norm(x))))
        return total


class RootedLinear(nn.Module):
    """A root mean square norm of channels-last data, then a Linear."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 3, padding=1)
        self.norm = RootMeanSquare(8)
        self.linear = nn.Linear(8, 6, bias)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(self.norm(self.stem(x).permute(0, 2, 3, 1)))
        return result


class Attention(nn.Module):
    """One head, with a Linear for each of q, k and v; q has no bias, as some have it."""

    def __init__(
        self,
        channels: int = 16,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        functional: bool = False,
    ) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q = nn.Linear(channels, 8, bias=False)
        self.k = nn.Linear(channels, 8)
        self.v = nn.Linear(channels, channels)
        self.functional = functional

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        if self.functional:
            q, k = F.linear(y, self.q.weight), F.linear(y, self.k.weight, self.k.bias)
            v = F.linear(y, self.v.weight, self.v.bias)
        else:
            q, k, v = self.q(y), self.k(y), self.v(y)
        return torch.softmax(q @ k.transpose(-2, -1), -1) @ v


class NormBeforeConv(nn.Module):
    """A norm of the channels, then a 1x1 conv."""

    def __init__(
        self, norm: Callable[[int], nn.Module] = ChannelsFirst, inputs: int = 4, outputs: int = 6
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(inputs, 8, 3, padding=1)
        self.norm = norm(8)
        self.conv = nn.Conv2d(8, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(self.norm(self.stem(x)))
        return result


class ConvNeXt(nn.Module):
    """Depthwise, then channels-last: norm, two Linears, layer scale. Liu et al., "A ConvNet for
    the 2020s", CVPR 2022."""

    def __init__(self, channels: int = 4, scale: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels, bias=bias)
        self.norm = nn.LayerNorm(channels, eps=1e-6, bias=bias)
        self.pwconv1 = nn.Linear(channels, 4 * channels, bias)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * channels, channels, bias)
        self.gamma = nn.Parameter(torch.ones(channels)) if scale else None

    def forward(self, x: Tensor) -> Tensor:
        skip = x
        x = self.dwconv(x)
        x = x.permute(0, 2, 3, 1)
        x = self.norm(x)
        x = self.pwconv1(x)
        x = self.act(x)
        x = self.pwconv2(x)
        if self.gamma is not None:
            x = self.gamma * x
        x = x.permute(0, 3, 1, 2)
        return skip + x


class LinearBN(nn.Sequential):
    """LeViT's Linear_BN: Graham et al., "LeViT", ICCV 2021."""

    def __init__(self, inputs: int, outputs: int, affine: bool = True, bias: bool = False) -> None:
        super().__init__()
        self.add_module("c", nn.Linear(inputs, outputs, bias=bias))
        self.add_module("bn", nn.BatchNorm1d(outputs, affine=affine))

    def forward(self, x: Tensor) -> Tensor:
        linear, norm = self._modules.values()
        assert linear is not None and norm is not None
        x = linear(x)
        result: Tensor = norm(x.flatten(0, 1)).reshape_as(x)
        return result


class LinearNorm(nn.Module):
    """A Linear with a batch norm on tokens that an embedding makes."""

    def __init__(self, affine: bool = True, bias: bool = False) -> None:
        super().__init__()
        self.embed = nn.Conv1d(4, 8, 1)
        self.linear = LinearBN(8, 6, affine, bias)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(F.relu(self.embed(x)).transpose(1, 2))
        return result


class NormedTokens(nn.Module):
    """A Linear, then a batch norm of its channels by way of a transposition."""

    def __init__(self, affine: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 6, bias=bias)
        self.norm = nn.BatchNorm1d(6, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.linear(x).transpose(1, 2)).transpose(1, 2)
        return result


class LinearBeside(nn.Module):
    """A Linear on channels-last data, beside a 1x1 conv and a batch norm."""

    def __init__(self, channels: int = 4, bias: bool = True, functional: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels, bias=bias)
        self.conv = nn.Conv2d(channels, channels, 1, bias=bias)
        self.norm = nn.BatchNorm2d(channels)
        self.functional = functional

    def forward(self, x: Tensor) -> Tensor:
        y = x.permute(0, 2, 3, 1)
        if self.functional:
            y = F.linear(y, self.linear.weight, self.linear.bias)
            beside = F.conv2d(x, self.conv.weight, self.conv.bias)
        else:
            y, beside = self.linear(y), self.conv(x)
        total: Tensor = y.permute(0, 3, 1, 2) + beside + self.norm(x)
        return total
