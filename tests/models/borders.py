"""Training-time blocks with a border between two operators, of what the first makes of zeros.

Each is written from its paper, as its authors structure it; an activation that follows the block
is left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.models.branches import ConvNorm

__all__ = ["DiverseBranch", "EdgeOriented", "SpikeRepConv"]


class NormAndPad(nn.Module):
    """A batch norm, and around it what it makes of zeros. Ding et al., "Diverse Branch Block",
    CVPR 2021."""

    def __init__(self, channels: int, rows: int, columns: int, affine: bool = True) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels, affine=affine)
        self.rows, self.columns = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.bn(x)
        rows, columns, bn = self.rows, self.columns, self.bn
        if rows or columns:
            assert bn.running_mean is not None and bn.running_var is not None
            if bn.affine:
                spread = torch.sqrt(bn.running_var + bn.eps)
                pad = bn.bias.detach() - bn.running_mean * bn.weight.detach() / spread
            else:
                pad = -bn.running_mean / torch.sqrt(bn.running_var + bn.eps)
            output = F.pad(output, [columns, columns, rows, rows])
            pad = pad.view(1, -1, 1, 1)
            if rows:
                output[:, :, 0:rows, :] = pad
                output[:, :, -rows:, :] = pad
            if columns:
                output[:, :, :, 0:columns] = pad
                output[:, :, :, -columns:] = pad
        return output


class IdentityConv(nn.Conv2d):
    """A 1x1 conv that starts as the identity. Ding et al., "Diverse Branch Block", CVPR 2021."""

    id_tensor: Tensor

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(channels, channels, 1, groups=groups, bias=False)
        share = channels // groups
        identity = torch.zeros(channels, share, 1, 1)
        identity[torch.arange(channels), torch.arange(channels) % share] = 1
        self.register_buffer("id_tensor", identity)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight + self.id_tensor.to(self.weight.device).type_as(self.weight)
        return F.conv2d(x, kernel, None, stride=1, groups=self.groups)


class DiverseBranch(nn.Module):
    """kxk, 1x1, 1x1-kxk and 1x1-average. Ding et al., "Diverse Branch Block", CVPR 2021."""

    def __init__(
        self,
        inputs: int = 4,
        outputs: int = 4,
        kernel_size: int | tuple[int, int] = 3,
        stride: int = 1,
        groups: int = 1,
        inner: int | None = None,
        affine: bool = True,
    ) -> None:
        super().__init__()
        size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        rows, columns = size[0] // 2, size[1] // 2
        shared: Any = {"groups": groups, "affine": affine}
        self.dbb_origin = ConvNorm(inputs, outputs, size, stride, (rows, columns), **shared)
        self.dbb_avg = nn.Sequential()
        pool = nn.AvgPool2d(size, stride, (rows, columns))
        if groups < outputs:
            conv = nn.Conv2d(inputs, outputs, 1, groups=groups, bias=False)
            self.dbb_avg.add_module("conv", conv)
            self.dbb_avg.add_module("bn", NormAndPad(outputs, rows, columns, affine))
            pool = nn.AvgPool2d(size, stride)
            self.dbb_1x1 = ConvNorm(inputs, outputs, 1, stride, **shared)
        self.dbb_avg.add_module("avg", pool)
        self.dbb_avg.add_module("avgbn", nn.BatchNorm2d(outputs, affine=affine))
        inner = (inputs if groups < outputs else 2 * inputs) if inner is None else inner
        first: nn.Module = IdentityConv(inputs, groups)
        if inner != inputs:
            first = nn.Conv2d(inputs, inner, 1, groups=groups, bias=False)
        self.dbb_1x1_kxk = nn.Sequential(
            first,
            NormAndPad(inner, rows, columns, affine),
            ConvNorm(inner, outputs, size, stride, **shared),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dbb_origin(x)
        if hasattr(self, "dbb_1x1"):
            out += self.dbb_1x1(x)
        out += self.dbb_avg(x)
        out += self.dbb_1x1_kxk(x)
        return out


class SpikeRepConv(nn.Module):
    """1x1, border, depthwise 3x3, 1x1, norm. Yao et al., "Spike-driven Transformer V2",
    ICLR 2024."""

    def __init__(
        self, inputs: int = 2, outputs: int = 2, bias: bool = False, affine: bool = True
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, inputs, 1, bias=False),
            NormAndPad(inputs, 1, 1, affine),
            nn.Sequential(
                nn.Conv2d(inputs, inputs, 3, groups=inputs, bias=bias),
                nn.Conv2d(inputs, outputs, 1, bias=bias),
                nn.BatchNorm2d(outputs, affine=affine),
            ),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.body(x)
        return result


SOBEL = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))
LAPLACE = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


class SeqConv(nn.Module):
    """A biased 1x1 conv, its bias around the result, then a 3x3: learnt, or a scaled filter.
    Zhang et al., "Edge-oriented Convolution Block", ACM MM 2021."""

    mask: Tensor

    def __init__(self, kind: str, inputs: int, outputs: int, inner: int) -> None:
        super().__init__()
        self.kind = kind
        width = inner if kind == "conv3x3" else outputs
        conv0 = nn.Conv2d(inputs, width, 1)
        self.k0, self.b0 = conv0.weight, conv0.bias
        if kind == "conv3x3":
            conv1 = nn.Conv2d(width, outputs, 3)
            self.k1, self.b1 = conv1.weight, conv1.bias
            return
        filters = {"sobelx": SOBEL, "sobely": list(zip(*SOBEL, strict=True)), "laplacian": LAPLACE}
        self.scale = nn.Parameter(torch.randn(outputs, 1, 1, 1))
        self.bias = nn.Parameter(torch.randn(outputs))
        mask = torch.tensor(filters[kind]).expand(outputs, 1, 3, 3).clone()
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        assert self.b0 is not None
        y0 = F.conv2d(x, self.k0, self.b0, stride=1)
        y0 = F.pad(y0, (1, 1, 1, 1), "constant", 0)
        b0_pad = self.b0.view(1, -1, 1, 1)
        y0[:, :, 0:1, :] = b0_pad
        y0[:, :, -1:, :] = b0_pad
        y0[:, :, :, 0:1] = b0_pad
        y0[:, :, :, -1:] = b0_pad
        if self.kind == "conv3x3":
            return F.conv2d(y0, self.k1, self.b1, stride=1)
        kernel = self.scale * self.mask
        return F.conv2d(y0, kernel, self.bias, stride=1, groups=kernel.shape[0])


class EdgeOriented(nn.Module):
    """ECBSR's block. Zhang et al., "Edge-oriented Convolution Block", ACM MM 2021."""

    def __init__(self, inputs: int = 4, outputs: int = 4, idt: bool = True) -> None:
        super().__init__()
        self.idt = idt and inputs == outputs
        self.conv3x3 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv1x1_3x3 = SeqConv("conv3x3", inputs, outputs, 2 * outputs)
        self.conv1x1_sbx = SeqConv("sobelx", inputs, outputs, -1)
        self.conv1x1_sby = SeqConv("sobely", inputs, outputs, -1)
        self.conv1x1_lpl = SeqConv("laplacian", inputs, outputs, -1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv3x3(x)
        for branch in (self.conv1x1_3x3, self.conv1x1_sbx, self.conv1x1_sby, self.conv1x1_lpl):
            y = y + branch(x)
        if self.idt:
            y += x
        return y
