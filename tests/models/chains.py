"""Training-time blocks with operators in series, and with kernels that are merged on the way.

Each is written from its paper, as its authors structure it; an activation that follows the block
is left out, one inside stays.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.models.branches import ConvNorm

__all__ = [
    "OREPA",
    "SESR",
    "Conv3XC",
    "Decoder",
    "ExpandNet",
    "Implicit",
    "LCNetV3",
    "LoRAConv",
    "LoRALinear",
]


class Conv3XC(nn.Module):
    """Pad, 1x1, 3x3, 1x1, beside a 1x1. Wan et al., "Swift Parameter-free Attention Network",
    CVPRW 2024."""

    def __init__(
        self, inputs: int = 3, outputs: int = 4, stride: int = 1, gain: int = 2, bias: bool = True
    ) -> None:
        super().__init__()
        self.sk = nn.Conv2d(inputs, outputs, 1, stride, bias=bias)
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, inputs * gain, 1, bias=bias),
            nn.Conv2d(inputs * gain, outputs * gain, 3, stride, bias=bias),
            nn.Conv2d(outputs * gain, outputs, 1, bias=bias),
        )

    def forward(self, x: Tensor) -> Tensor:
        x_pad = F.pad(x, (1, 1, 1, 1), "constant", 0)
        total: Tensor = self.conv(x_pad) + self.sk(x)
        return total


class ExpandNet(nn.Module):
    """A conv as 1x1, kxk, 1x1 (CL), or as 3x3 convs in series (CK); the first one pads.
    Guo et al., "ExpandNets", NeurIPS 2020."""

    def __init__(
        self,
        kind: str = "CL",
        inputs: int = 4,
        outputs: int = 6,
        stride: int = 1,
        **options: Any,
    ) -> None:
        super().__init__()
        wide = 2 * inputs
        if kind == "CL":
            convs = [
                nn.Conv2d(inputs, wide, 1, padding=1, **options),
                nn.Conv2d(wide, 2 * outputs, 3, stride, **options),
                nn.Conv2d(2 * outputs, outputs, 1, **options),
            ]
        else:
            convs = [
                nn.Conv2d(inputs, wide, 3, padding=2, **options),
                nn.Conv2d(wide, outputs, 3, stride, **options),
            ]
        self.convs = nn.Sequential(*convs)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.convs(x)
        return result


class SESR(nn.Module):
    """kxk to many channels, 1x1 back, and a short residual. Bhardwaj et al., "Collapsible Linear
    Blocks for Super-Efficient Super Resolution", MLSys 2022."""

    def __init__(self, channels: int = 4, kernel_size: int = 3, bias: bool = False) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, 16, kernel_size, padding=kernel_size // 2, bias=bias)
        self.squeeze = nn.Conv2d(16, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.squeeze(self.expand(x)) + x
        return total


class OREPA(nn.Module):
    """The branches' kernels are merged in every forward. Hu et al., "Online Convolutional
    Re-parameterization", CVPR 2022."""

    avg: Tensor
    prior: Tensor
    identity: Tensor

    def __init__(
        self,
        inputs: int = 4,
        outputs: int = 4,
        stride: int = 1,
        groups: int = 1,
        size: int = 3,
        affine: bool = True,
    ) -> None:
        super().__init__()
        self.stride, self.padding, self.groups = stride, size // 2, groups
        share, wide = inputs // groups, 2 * inputs
        self.origin = nn.Parameter(torch.randn(outputs, share, size, size))
        self.avg_conv = nn.Parameter(torch.randn(outputs, share, 1, 1))
        self.pfir_conv = nn.Parameter(torch.randn(outputs, share, 1, 1))
        self.conv1 = nn.Parameter(torch.randn(outputs, share, 1, 1))
        self.idconv1 = nn.Parameter(torch.randn(wide, share, 1, 1))
        self.conv2 = nn.Parameter(torch.randn(outputs, wide // groups, size, size))
        self.dws_dw = nn.Parameter(torch.randn(inputs, 1, size, size))
        self.dws_pw = nn.Parameter(torch.randn(outputs, share, 1, 1))
        self.vector = nn.Parameter(torch.randn(6, outputs))
        self.register_buffer("avg", torch.full((size, size), 1.0 / size**2))
        steps = torch.arange(size) + 0.5
        waves = [torch.cos(math.pi * steps * (i + 1) / size) for i in range(2)]
        prior = torch.stack([torch.outer(waves[i % 2], waves[0]) for i in range(outputs)])
        self.register_buffer("prior", prior)
        self.bn = nn.BatchNorm2d(outputs, affine=affine)

    def merged(self) -> Tensor:
        groups = self.groups
        origin = torch.einsum("oihw,o->oihw", self.origin, self.vector[0])
        avg = torch.einsum(
            "oihw,o->oihw", torch.einsum("oi,hw->oihw", self.avg_conv[:, :, 0, 0], self.avg),
            self.vector[1],
        )  # fmt: skip
        prior = torch.einsum(
            "oihw,o->oihw", torch.einsum("oi,ohw->oihw", self.pfir_conv[:, :, 0, 0], self.prior),
            self.vector[2],
        )  # fmt: skip
        pad = [self.padding] * 4
        one = torch.einsum("oihw,o->oihw", F.pad(self.conv1, pad), self.vector[3])
        first = self.idconv1[:, :, 0, 0]
        o, ig, h, w = self.origin.size()
        t = first.reshape(groups, -1, ig)
        conv2 = self.conv2.reshape(groups, o // groups, -1, h, w)
        chain = torch.einsum("gti,gothw->goihw", t, conv2).reshape(o, ig, h, w)
        chain = torch.einsum("oihw,o->oihw", chain, self.vector[4])
        dw = self.dws_dw.reshape(groups, ig, h, w)
        pw = self.dws_pw[:, :, 0, 0].reshape(groups, o // groups, ig)
        separable = torch.einsum("gihw,goi->goihw", dw, pw).reshape(o, ig, h, w)
        separable = torch.einsum("oihw,o->oihw", separable, self.vector[5])
        return origin + avg + prior + one + chain + separable

    def forward(self, x: Tensor) -> Tensor:
        out = F.conv2d(
            x, self.merged(), None, stride=self.stride, padding=self.padding, groups=self.groups
        )
        result: Tensor = self.bn(out)
        return result


class LearnableAffine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0]))
        self.bias = nn.Parameter(torch.tensor([0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.bias


class LearnableRep(nn.Module):
    """Several convs, one learnt affine after their sum, one after the activation.
    PaddleOCR's PP-LCNetV3: Cui et al., "PP-OCRv4", 2023."""

    def __init__(
        self, inputs: int, outputs: int, kernel_size: int, stride: int = 1, **options: Any
    ) -> None:
        super().__init__()
        same, affine = inputs == outputs and stride == 1, options.get("affine", True)
        self.identity = nn.BatchNorm2d(inputs, affine=affine) if same else None
        pad, wide = kernel_size // 2, kernel_size > 1
        self.conv_kxk = nn.ModuleList(
            [ConvNorm(inputs, outputs, kernel_size, stride, pad, **options) for _ in range(4)]
        )
        self.conv_1x1 = ConvNorm(inputs, outputs, 1, stride, **options) if wide else None
        self.lab, self.act_lab = LearnableAffine(), LearnableAffine()
        self.act = nn.Hardswish() if stride != 2 else None

    def forward(self, x: Tensor) -> Tensor:
        out: Any = 0
        if self.identity is not None:
            out += self.identity(x)
        if self.conv_1x1 is not None:
            out += self.conv_1x1(x)
        for conv in self.conv_kxk:
            out += conv(x)
        out = self.lab(out)
        result: Tensor = out if self.act is None else self.act_lab(self.act(out))
        return result


class LCNetV3(nn.Module):
    """Depthwise, then pointwise, the last activation left out. PaddleOCR's PP-LCNetV3."""

    def __init__(
        self,
        inputs: int = 4,
        outputs: int = 6,
        stride: int = 1,
        kernel_size: int = 3,
        **options: Any,
    ) -> None:
        super().__init__()
        self.dw_conv = LearnableRep(inputs, inputs, kernel_size, stride, groups=inputs, **options)
        self.pw_conv = LearnableRep(inputs, outputs, 1, **options)
        self.pw_conv.act = None

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.pw_conv(self.dw_conv(x))
        return result


class Implicit(nn.Module):
    """Learnt numbers added before a conv and multiplied after it, behind the layer that feeds
    them. Wang et al., "YOLOv7", CVPR 2023."""

    def __init__(
        self, inputs: int = 4, outputs: int = 6, bias: bool = True, **options: Any
    ) -> None:
        super().__init__()
        self.neck = nn.Sequential(ConvNorm(inputs, inputs, 3, 1, 1, **options), nn.LeakyReLU(0.1))
        self.ia = nn.Parameter(torch.randn(1, inputs, 1, 1))
        self.m = nn.Conv2d(inputs, outputs, 1, bias=bias)
        self.im = nn.Parameter(torch.randn(1, outputs, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.im * self.m(self.ia + self.neck(x))
        return result


class LoRALinear(nn.Module):
    """A low-rank update beside a frozen layer. Hu et al., "LoRA", ICLR 2022."""

    def __init__(self, inputs: int = 6, outputs: int = 8, rank: int = 2, bias: bool = True) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs, bias=bias)
        self.lora_dropout = nn.Dropout(0.1)
        self.lora_a = nn.Linear(inputs, rank, bias=False)
        self.lora_b = nn.Linear(rank, outputs, bias=False)
        self.scaling = 16 / rank

    def forward(self, x: Tensor) -> Tensor:
        update = self.lora_b(self.lora_a(self.lora_dropout(x))) * self.scaling
        total: Tensor = self.base(x) + update
        return total


class LoRAConv(nn.Module):
    """The same beside a conv: kxk to a few channels, 1x1 back. Hu et al., "LoRA", ICLR 2022."""

    def __init__(
        self,
        inputs: int = 4,
        outputs: int = 6,
        stride: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.base = nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=bias)
        self.lora_a = nn.Conv2d(inputs, 2, 3, stride, 1, groups=groups, bias=False)
        self.lora_b = nn.Conv2d(2, outputs, 1, groups=groups, bias=False)
        self.scaling = 4.0

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.base(x) + self.lora_b(self.lora_a(x)) * self.scaling
        return total


class Decoder(nn.Module):
    """A transposed conv and a norm, as decoders have it: Xiao et al., "Simple Baselines for Human
    Pose Estimation", ECCV 2018; with more than one kernel size in parallel, as RepVGG."""

    def __init__(
        self,
        inputs: int = 4,
        outputs: int = 4,
        sizes: tuple[int, ...] = (4,),
        affine: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        shared: Any = {"bias": False, **options}
        self.deconvs = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(inputs, outputs, k, 2, (k - 1) // 2, k % 2, **shared),
                    nn.BatchNorm2d(outputs, affine=affine),
                )
                for k in sizes
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Any = 0
        for deconv in self.deconvs:
            out = out + deconv(x)
        total: Tensor = out
        return total
