"""Training-time blocks whose branches are added: the RepVGG family and what grew from it.

Each is written from its paper, as its authors structure it; an activation that follows the block
is left out, one inside stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "ACBlock",
    "ConvNorm",
    "DilatedReparam",
    "LargeKernel",
    "LinearAdd",
    "MobileOne",
    "MultiScale",
    "OmniShift",
    "QARepVGG",
    "RepCPE",
    "RepGhost",
    "RepMixer",
    "RepSPK",
    "RepVGG",
    "RepVGGDW",
    "TwoHeads",
    "WeightedRepVGG",
]

CONV: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORM: dict[int, type[nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
Size = int | tuple[int, ...]


class ConvNorm(nn.Sequential):
    """A conv and its batch norm; bias and affine are what the authors leave open."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        *,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = False,
        affine: bool = True,
        rank: int = 2,
    ) -> None:
        super().__init__()
        settings: Any = {"dilation": dilation, "groups": groups, "bias": bias}
        self.conv = CONV[rank](inputs, outputs, kernel_size, stride, padding, **settings)
        self.bn = NORM[rank](outputs, affine=affine)


class RepVGG(nn.Module):
    """3x3, 1x1 and identity, each with a batch norm. Ding et al., "RepVGG", CVPR 2021.

    rank 1 is its form for speech, rank 3 for video.
    """

    def __init__(
        self, inputs: int = 4, outputs: int = 4, stride: int = 1, groups: int = 1, **options: Any
    ) -> None:
        super().__init__()
        shared: dict[str, Any] = {"groups": groups, **options}
        rank, affine = options.get("rank", 2), options.get("affine", True)
        dilation = shared.pop("dilation", 1)
        self.rbr_dense = ConvNorm(inputs, outputs, 3, stride, dilation, dilation=dilation, **shared)
        self.rbr_1x1 = ConvNorm(inputs, outputs, 1, stride, **shared)
        same = inputs == outputs and stride == 1
        self.rbr_identity = NORM[rank](outputs, affine=affine) if same else None

    def forward(self, x: Tensor) -> Tensor:
        id_out = 0 if self.rbr_identity is None else self.rbr_identity(x)
        total: Tensor = self.rbr_dense(x) + self.rbr_1x1(x) + id_out
        return total


class WeightedRepVGG(nn.Module):
    """The 1x1 branch with a learnt factor. Xu et al., "PP-YOLOE", arXiv:2203.16250."""

    def __init__(self, channels: int = 4, stride: int = 1, **options: Any) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, 3, stride, 1, **options)
        self.conv2 = ConvNorm(channels, channels, 1, stride, **options)
        self.alpha = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.conv1(x) + self.alpha * self.conv2(x)
        return total


class QARepVGG(nn.Module):
    """The batch norm after the sum. Chu et al., "Make RepVGG Greater Again", AAAI 2024."""

    def __init__(
        self, inputs: int = 4, outputs: int = 4, stride: int = 1, groups: int = 1, **options: Any
    ) -> None:
        super().__init__()
        self.rbr_dense = ConvNorm(inputs, outputs, 3, stride, 1, groups=groups, **options)
        bias = options.get("bias", False)
        self.rbr_1x1 = nn.Conv2d(inputs, outputs, 1, stride, groups=groups, bias=bias)
        self.identity = inputs == outputs and stride == 1
        self.bn = nn.BatchNorm2d(outputs, affine=options.get("affine", True))

    def forward(self, x: Tensor) -> Tensor:
        total = self.rbr_dense(x) + self.rbr_1x1(x)
        if self.identity:
            total = total + x
        result: Tensor = self.bn(total)
        return result


class Scale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.view(1, -1, 1, 1)


class LinearAdd(nn.Module):
    """Convs with scales, a scaled identity, a norm after the sum. Ding et al.,
    "Re-parameterizing Your Optimizers rather than Architectures", ICLR 2023."""

    def __init__(
        self,
        inputs: int = 4,
        outputs: int = 4,
        stride: int = 1,
        affine: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        shared: Any = {"bias": False, **options}
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, **shared)
        self.scale_conv = Scale(outputs)
        self.conv_1x1 = nn.Conv2d(inputs, outputs, 1, stride, **shared)
        self.scale_1x1 = Scale(outputs)
        same = inputs == outputs and stride == 1
        self.scale_identity = Scale(outputs) if same else None
        self.bn = nn.BatchNorm2d(outputs, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        out = self.scale_conv(self.conv(x)) + self.scale_1x1(self.conv_1x1(x))
        if self.scale_identity is not None:
            out += self.scale_identity(x)
        result: Tensor = self.bn(out)
        return result


class Crop(nn.Module):
    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        if self.rows == 0:
            return x[:, :, :, self.columns : -self.columns]
        if self.columns == 0:
            return x[:, :, self.rows : -self.rows, :]
        return x[:, :, self.rows : -self.rows, self.columns : -self.columns]


class ACBlock(nn.Module):
    """A square kernel and its two skeletons. Ding et al., "ACNet", ICCV 2019.

    Where the square pads less than half of itself, its skeletons read a cropped input.
    """

    def __init__(
        self,
        inputs: int = 4,
        outputs: int = 4,
        kernel_size: int = 3,
        padding: int = 1,
        stride: int = 1,
        **options: Any,
    ) -> None:
        super().__init__()
        k, rest = kernel_size, padding - kernel_size // 2
        self.square = ConvNorm(inputs, outputs, k, stride, padding, **options)
        crop, pad = max(0, -rest), max(0, rest)
        self.crop_ver = Crop(0, crop) if crop else nn.Identity()
        self.crop_hor = Crop(crop, 0) if crop else nn.Identity()
        self.ver = ConvNorm(inputs, outputs, (k, 1), stride, (padding, pad), **options)
        self.hor = ConvNorm(inputs, outputs, (1, k), stride, (pad, padding), **options)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.square(x) + self.ver(self.crop_ver(x)) + self.hor(self.crop_hor(x))
        return total


class MultiScale(nn.Module):
    """Kernels of all shapes, also even ones. Ding et al., "Diverse Branch Block", CVPR 2021,
    transform VI; the uneven borders are those of Wu et al., "Convolution with Even-Sized Kernels
    and Symmetric Padding", NeurIPS 2019."""

    def __init__(
        self, sizes: Sequence[tuple[int, int]], inputs: int = 3, outputs: int = 4, **options: Any
    ) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.branches = nn.ModuleList(
            [ConvNorm(inputs, outputs, size, **options) for size in sizes]
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Any = 0
        for (height, width), branch in zip(self.sizes, self.branches, strict=True):
            rows, columns = height - 1, width - 1
            border = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
            out = out + branch(F.pad(x, border))
        total: Tensor = out
        return total


class MobileOne(nn.Module):
    """Several kxk branches, a 1x1 and a norm of the input. Vasu et al., "MobileOne", CVPR 2023."""

    def __init__(
        self,
        inputs: int = 4,
        outputs: int = 4,
        kernel_size: int = 3,
        stride: int = 1,
        groups: int = 1,
        branches: int = 3,
        **options: Any,
    ) -> None:
        super().__init__()
        shared: dict[str, Any] = {"groups": groups, **options}
        same = inputs == outputs and stride == 1
        affine = options.get("affine", True)
        self.rbr_skip = nn.BatchNorm2d(inputs, affine=affine) if same else None
        self.rbr_conv = nn.ModuleList(
            [
                ConvNorm(inputs, outputs, kernel_size, stride, kernel_size // 2, **shared)
                for _ in range(branches)
            ]
        )
        wide = kernel_size > 1 and branches > 0
        self.rbr_scale = ConvNorm(inputs, outputs, 1, stride, **shared) if wide else None

    def forward(self, x: Tensor) -> Tensor:
        scale_out = 0 if self.rbr_scale is None else self.rbr_scale(x)
        identity_out = 0 if self.rbr_skip is None else self.rbr_skip(x)
        out: Any = scale_out + identity_out
        for branch in self.rbr_conv:
            out = out + branch(x)
        result: Tensor = out
        return result


class LargeKernel(nn.Module):
    """A large depthwise kernel and a small one. Ding et al., "Scaling Up Your Kernels to 31x31",
    CVPR 2022."""

    def __init__(self, channels: int = 4, large: int = 13, stride: int = 1, **opts: Any) -> None:
        super().__init__()
        shared: Any = {"groups": channels, **opts}
        self.lkb_origin = ConvNorm(channels, channels, large, stride, large // 2, **shared)
        self.small_conv = ConvNorm(channels, channels, 5, stride, 2, **shared)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lkb_origin(x)
        out += self.small_conv(x)
        return out


class DilatedReparam(nn.Module):
    """Parallel dilated depthwise kernels, and a norm after their sum. Ding et al., "UniRepLKNet",
    CVPR 2024."""

    DILATIONS = ((5, 1), (5, 2), (3, 3), (3, 4))

    def __init__(self, channels: int = 4, **options: Any) -> None:
        super().__init__()
        shared: Any = {"groups": channels, **options}
        self.lk_origin = ConvNorm(channels, channels, 9, 1, 4, **shared)
        self.dilated = nn.ModuleList(
            [
                ConvNorm(channels, channels, k, 1, r * (k - 1) // 2, dilation=r, **shared)
                for k, r in self.DILATIONS
            ]
        )
        self.norm = nn.BatchNorm2d(channels, affine=options.get("affine", True))

    def forward(self, x: Tensor) -> Tensor:
        out = self.lk_origin(x)
        for branch in self.dilated:
            out = out + branch(x)
        result: Tensor = self.norm(out)
        return result


class RepMixer(nn.Module):
    """x + gamma * (M(x) - norm(x)). Vasu et al., "FastViT", ICCV 2023."""

    def __init__(self, channels: int = 4, kernel_size: int = 3, **options: Any) -> None:
        super().__init__()
        shared: Any = {"groups": channels, **options}
        self.norm = MobileOne(channels, channels, kernel_size, branches=0, **shared)
        self.mixer = MobileOne(channels, channels, kernel_size, branches=1, **shared)
        self.layer_scale = nn.Parameter(1e-5 * torch.ones((channels, 1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = x + self.layer_scale * (self.mixer(x) - self.norm(x))
        return total


class RepCPE(nn.Module):
    """A conditional position encoding. Vasu et al., "FastViT", ICCV 2023."""

    def __init__(self, channels: int = 4, bias: bool = True) -> None:
        super().__init__()
        self.pe = nn.Conv2d(channels, channels, 7, 1, 3, groups=channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.pe(x) + x
        return total


class RepVGGDW(nn.Module):
    """3x3, 1x1 and identity, all depthwise, a norm after. Wang et al., "RepViT", CVPR 2024."""

    def __init__(self, channels: int = 4, bias: bool = True, affine: bool = True) -> None:
        super().__init__()
        shared: Any = {"groups": channels, "affine": affine}
        self.conv = ConvNorm(channels, channels, 3, 1, 1, **shared)
        self.conv1 = nn.Conv2d(channels, channels, 1, groups=channels, bias=bias)
        self.bn = nn.BatchNorm2d(channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.bn((self.conv(x) + self.conv1(x)) + x)
        return result


class TwoHeads(nn.Module):
    """Two classifiers, each with its norm, averaged. Wang et al., "RepViT", CVPR 2024."""

    def __init__(
        self, channels: int = 4, classes: int = 5, bias: bool = True, affine: bool = True
    ) -> None:
        super().__init__()

        def head() -> nn.Sequential:
            norm = nn.BatchNorm1d(channels, affine=affine)
            return nn.Sequential(norm, nn.Linear(channels, classes, bias=bias))

        self.classifier, self.classifier_dist = head(), head()

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        total: Tensor = (self.classifier(x) + self.classifier_dist(x)) / 2
        return total


class RepGhost(nn.Module):
    """A cheap depthwise conv beside a norm of its input. Chen et al., "RepGhost",
    arXiv:2211.06088."""

    def __init__(self, inputs: int = 4, outputs: int = 6, **options: Any) -> None:
        super().__init__()
        self.primary_conv = nn.Sequential(ConvNorm(inputs, outputs, 1, **options), nn.ReLU(True))
        self.fusion_bn = nn.BatchNorm2d(outputs, affine=options.get("affine", True))
        self.cheap_operation = ConvNorm(outputs, outputs, 3, 1, 1, groups=outputs, **options)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.primary_conv(x)
        x2 = self.cheap_operation(x1)
        result: Tensor = x2 + self.fusion_bn(x1)
        return result


class RepSPK(nn.Module):
    """3x3 beside dilated 3x3. Ma et al., "Rep Works in Speaker Verification",
    arXiv:2110.09720."""

    def __init__(self, inputs: int = 4, outputs: int = 4, stride: int = 1, **options: Any) -> None:
        super().__init__()
        self.rbr_dense = ConvNorm(inputs, outputs, 3, stride, 1, **options)
        self.rbr_dilated = ConvNorm(inputs, outputs, 3, stride, 2, dilation=2, **options)
        same, affine = inputs == outputs and stride == 1, options.get("affine", True)
        self.rbr_identity = nn.BatchNorm2d(outputs, affine=affine) if same else None

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.rbr_dense(x) + self.rbr_dilated(x)
        return out if self.rbr_identity is None else out + self.rbr_identity(x)


class OmniShift(nn.Module):
    """Depthwise kernels with one learnt factor each. Yang et al., "Restore-RWKV",
    arXiv:2407.11087."""

    def __init__(self, channels: int = 4, bias: bool = False) -> None:
        super().__init__()
        shared: Any = {"groups": channels, "bias": bias}
        self.conv1x1 = nn.Conv2d(channels, channels, 1, **shared)
        self.conv3x3 = nn.Conv2d(channels, channels, 3, padding=1, **shared)
        self.conv5x5 = nn.Conv2d(channels, channels, 5, padding=2, **shared)
        self.alpha = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        out1x1, out3x3, out5x5 = self.conv1x1(x), self.conv3x3(x), self.conv5x5(x)
        alpha = self.alpha
        total: Tensor = alpha[0] * x + alpha[1] * out1x1 + alpha[2] * out3x3 + alpha[3] * out5x5
        return total
