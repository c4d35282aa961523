"""The layer of a conv whose kernel is mixed for each sample."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repfuse.arrays import evaluate
from repfuse.frontends.torch.modules import parameter
from repfuse.mixing import recipe_of
from repfuse.operators import Conv, Mixed

__all__ = ["MixedConv", "build_mixed"]

CONVS = (None, F.conv1d, F.conv2d, F.conv3d)


class MixedConv(nn.Module):
    """conv(x) with the kernel sum_i factor_i * weight[i], another one for each sample.

    weight: (branches, out_channels, in_channels / groups, *kernel_size), bias: (branches,
    out_channels) or None. constant_weight and constant_bias have no factor, or are None.
    forward takes x and the factors: one tensor whose pieces they are, (batch, branches, channels,
    1, ...), or one tensor for each branch, (batch, channels, 1, ...), where channels is 1 or
    out_channels. All samples are run as the groups of one conv, in the dtype of the weight; the
    result has the dtype of its products with the factors. A batch of 1, of x or of the factors, is
    broadcast.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    constant_weight: nn.Parameter | None
    constant_bias: nn.Parameter | None

    def __init__(self, conv: Conv, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.widths = widths
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.padding = tuple(low for low, _ in conv.padding)
        self.groups, self.padding_mode = conv.groups, conv.border
        for name in ("weight", "bias", "constant_weight", "constant_bias"):
            self.register_parameter(name, None)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"groups={self.groups}, branches={len(self.widths)}"
        )

    def forward(self, x: Tensor, *factors: Tensor) -> Tensor:
        own = self.weight.dtype
        result = self._run(x, self._mix(tuple(factor.to(own) for factor in factors)))
        for factor in factors:
            if isinstance(factor, Tensor) and factor.dtype != result.dtype:
                result = result.to(torch.promote_types(factor.dtype, result.dtype))
        return result

    def _run(self, x: Tensor, mix: Tensor) -> Tensor:
        kernels = self._sum(mix, self.weight.flatten(2), self.constant_weight)
        kernels = kernels.reshape(-1, self.in_channels // self.groups, *self.kernel_size)
        bias = None
        if self.bias is not None:
            bias = self._sum(mix, self.bias.unsqueeze(2), self.constant_bias).reshape(-1)
        padding = self.padding
        if self.padding_mode != "zeros":
            sides = [side for side in self.padding[::-1] for _ in range(2)]
            x, padding = F.pad(x, sides, mode=self.padding_mode), (0,) * len(padding)
        if torch.onnx.is_in_onnx_export():  # there the number of groups is no tensor
            return self._product(x, kernels, bias, padding)
        rank, samples = len(self.kernel_size), mix.shape[0]
        if isinstance(samples, int):
            if samples == 1:  # also of another input than x, which may have several
                return self._conv(x, kernels, bias, padding)
            if x.dim() > rank + 1 and x.shape[0] == 1:
                x = x.expand(samples, *x.shape[1:])
            if samples == 0:  # no conv has no groups, and any kernel gives nothing
                return self._conv(x, self.weight[0], None, padding)
        joined = x.reshape(1, -1, *self._sizes(x))
        result = self._conv(joined, kernels, bias, padding, samples)
        return self._shaped(result, x, result)

    def _conv(
        self,
        x: Tensor,
        kernels: Tensor,
        bias: Tensor | None,
        padding: tuple[int, ...],
        samples: Any = 1,
    ) -> Tensor:
        run: Any = CONVS[len(self.kernel_size)]
        groups = samples * self.groups
        result: Tensor = run(x, kernels, bias, self.stride, padding, self.dilation, groups)
        return result

    def _mix(self, factors: tuple[Tensor, ...]) -> Tensor:
        """(batch, branches), or (batch, branches, out_channels)."""
        branches, width = len(self.widths), max(self.widths)
        if width == 1:
            columns = [factor.reshape(-1, branches // len(factors)) for factor in factors]
            return torch.cat(columns, 1) if len(columns) > 1 else columns[0]
        if len(factors) < branches:
            return factors[0].reshape(-1, branches, width)
        rows = [f.reshape(-1, own) for f, own in zip(factors, self.widths, strict=True)]
        return torch.stack([row.expand(-1, width) for row in rows], 1)

    def _sum(self, mix: Tensor, parts: Tensor, constant: Tensor | None) -> Tensor:
        """The parts (branches, out_channels, numbers), mixed for each sample."""
        if max(self.widths) > 1:
            total = mix[:, 0].unsqueeze(-1) * parts[0]
            if constant is not None:
                total = total + constant.reshape(self.out_channels, -1)
            for index in range(1, len(self.widths)):
                total = total.addcmul_(mix[:, index].unsqueeze(-1), parts[index])
            return total
        if constant is None:
            return mix @ parts.flatten(1)
        return torch.addmm(constant.reshape(1, -1), mix, parts.flatten(1))

    def _product(
        self, x: Tensor, kernels: Tensor, bias: Tensor | None, padding: tuple[int, ...]
    ) -> Tensor:
        """The conv as a product with the patches of the input."""
        taps, rank = math.prod(self.kernel_size), len(self.kernel_size)
        each = torch.eye(taps, dtype=x.dtype, device=x.device).reshape(taps, 1, *self.kernel_size)
        each = each.repeat(self.in_channels, *[1] * (rank + 1))
        run: Any = CONVS[rank]
        patches = run(x, each, None, self.stride, padding, self.dilation, self.in_channels)
        rows = self.out_channels // self.groups
        columns = self.in_channels // self.groups * taps
        left = kernels.reshape(-1, self.groups, rows, columns)
        result = left @ patches.reshape(-1, self.groups, columns, math.prod(self._sizes(patches)))
        result = self._shaped(result, x, patches)
        if bias is not None:
            result = result + bias.reshape(-1, self.out_channels, *[1] * rank)
        return result

    def _sizes(self, x: Tensor) -> list[Any]:
        """The spatial sizes; x may have no axis for a batch."""
        return [x.shape[axis] for axis in range(-len(self.kernel_size), 0)]

    def _shaped(self, result: Tensor, source: Tensor, like: Tensor) -> Tensor:
        """The result with the batch of the source, and the spatial sizes of another tensor."""
        sizes = (self.out_channels, *self._sizes(like))
        shaped: Tensor = result.reshape(source.shape[: -len(sizes)] + sizes)
        return shaped


def build_mixed(mixed: Mixed, device: torch.device | str) -> MixedConv:
    """A float64 module for aligned terms; on the meta device nothing is computed."""
    recipe = recipe_of(mixed)
    widths = tuple(gate.channels for gate in recipe.gates)
    layer = MixedConv(recipe.convs[0], widths).train(False)
    stacked = {"weight": [conv.weight for conv in recipe.convs]}
    constant = recipe.constant
    if recipe.has_bias:
        stacked["bias"] = [conv.bias for conv in recipe.convs]
    single = {} if constant is None else {"constant_weight": constant.weight}
    if constant is not None and recipe.has_bias:
        single["constant_bias"] = constant.bias
    if torch.device(device).type == "meta":
        for name, parts in stacked.items():
            layer._parameters[name] = _empty((len(parts), *parts[0].shape))
        for name, part in single.items():
            layer._parameters[name] = _empty(part.shape)
        return layer
    for name, parts in stacked.items():
        layer._parameters[name] = parameter(np.stack(evaluate(*parts)))
    for name, part in single.items():
        layer._parameters[name] = parameter(evaluate(part)[0])
    return layer


def _empty(shape: tuple[int, ...]) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=torch.float64, device="meta"))
