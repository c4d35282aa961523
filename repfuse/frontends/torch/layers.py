"""What torch's layers and functions are as operators: the facts of the framework.

Every function returns an operator, or an `Opaque` with the reason why there is none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from repfuse.arrays import Array
from repfuse.frontends.torch.calls import is_weight_hook
from repfuse.frontends.torch.constants import to_array
from repfuse.frontends.torch.copies import in_double
from repfuse.frontends.torch.modules import ValueFault
from repfuse.graph import Opaque
from repfuse.operators import Affine, Conv, Pad, Padding, Pool

__all__ = ["batch_norm", "conv", "layer", "linear", "pad", "pool"]

BORDERS = {"zeros", "reflect", "replicate", "circular"}
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = {nn.BatchNorm1d: None, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3, nn.SyncBatchNorm: None}
POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)

PADS = {
    "ZeroPad": "constant",
    "ConstantPad": "constant",
    "ReflectionPad": "reflect",
    "ReplicationPad": "replicate",
    "CircularPad": "circular",
}


def layer(module: nn.Module, rank: int | None) -> Conv | Affine | Pool | Pad | Opaque | None:
    """The operator of one of torch's layers; None for a layer that is no affine map.

    rank: the number of spatial axes of the input, where it is known.
    """
    if isinstance(module, CONVS + TRANSPOSED):
        return _conv_module(module)
    if isinstance(module, nn.Linear):
        return linear(weight_of(module, "weight"), bias_of(module))
    for kind, own_rank in NORMS.items():
        if isinstance(module, kind):
            return _norm_module(module, own_rank if own_rank is not None else rank)
    if isinstance(module, POOLS):
        return _pool_module(module)
    for name, mode in PADS.items():
        if type(module).__name__.startswith(name) and hasattr(module, "padding"):
            return pad(module.padding, mode, getattr(module, "value", 0.0))
    return None


def weight_of(module: nn.Module, name: str) -> Array | Opaque:
    """A weight as an array, also one that is computed from parameters whenever it is read."""
    if name in module._parameters:
        parameter = module._parameters[name]
        assert parameter is not None
        if not parameter.is_floating_point():
            return Opaque(f"{type(module).__name__} with weights of {parameter.dtype}")
        return to_array(parameter)

    def compute() -> Any:
        return _computed(module, name)

    if isinstance(module, CONVS + TRANSPOSED):
        first, second = module.out_channels, module.in_channels // module.groups
        if isinstance(module, TRANSPOSED):
            first, second = module.in_channels, module.out_channels // module.groups
        return Array((first, second, *module.kernel_size), compute)
    assert isinstance(module, nn.Linear)
    return Array((module.out_features, module.in_features), compute)


def bias_of(module: Any) -> Array | None:
    if "bias" in module._parameters:
        bias = module._parameters["bias"]
        return None if bias is None else to_array(bias)
    channels = getattr(module, "out_channels", None) or module.out_features

    return Array((channels,), lambda: _computed(module, "bias"))


def _computed(module: nn.Module, name: str) -> Any:
    """A weight or bias that is computed whenever it is read, in float64."""
    layer = in_double(module)
    before = [(buffer, buffer._version) for buffer in layer.buffers()]
    with torch.no_grad():
        for hook in layer._forward_pre_hooks.values():
            if is_weight_hook(hook):
                hook(layer, None)
        value = getattr(layer, name).detach().numpy()
    for (old, version), new in zip(before, layer.buffers(), strict=True):
        if old is not new or new._version != version:
            raise ValueFault(f"the {name} is computed by code that changes a buffer")
    return value


def _conv_module(module: Any) -> Conv | Opaque:
    weight = weight_of(module, "weight")
    if isinstance(weight, Opaque):
        return weight
    return conv(
        weight,
        bias_of(module),
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
        border=module.padding_mode,
        transposed=isinstance(module, TRANSPOSED),
        output_padding=module.output_padding,
    )


def conv(
    weight: Array,
    bias: Array | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    *,
    border: str = "zeros",
    transposed: bool = False,
    output_padding: Any = 0,
) -> Conv | Opaque:
    """A conv as torch describes it; a transposed weight is (in, out / groups, ...) there."""
    rank = len(weight.shape) - 2
    if border not in BORDERS:
        return Opaque(f"a conv with padding_mode {border!r}")
    strides, dilations = _each(stride, rank), _each(dilation, rank)
    kernel_size = weight.shape[2:]
    sides: Padding
    if isinstance(padding, str):
        pairs = zip(dilations, kernel_size, strict=True)
        totals = [d * (k - 1) if padding == "same" else 0 for d, k in pairs]
        sides = tuple((total // 2, total - total // 2) for total in totals)
    else:
        sides = tuple((side, side) for side in _each(padding, rank))
    if transposed:
        extra = _each(output_padding, rank)
        sides = tuple((low, high - more) for (low, high), more in zip(sides, extra, strict=True))
        weight = _transposed_weight(weight, groups)
    out_channels = weight.shape[0]
    return Conv(
        weight=weight,
        bias=Array.full((out_channels,), 0.0) if bias is None else bias,
        stride=strides,
        padding=sides,
        dilation=tuple(d if k > 1 else 1 for d, k in zip(dilations, kernel_size, strict=True)),
        groups=groups,
        border=border,
        transposed=transposed,
    )


def _transposed_weight(weight: Array, groups: int) -> Array:
    inputs, columns, *kernel_size = weight.shape
    rows, share = columns * groups, inputs // groups

    def turn(value: Any) -> Any:
        grouped = value.reshape(groups, share, columns, *kernel_size)
        return grouped.swapaxes(1, 2).reshape(rows, share, *kernel_size)

    return weight.apply((rows, share, *kernel_size), turn)


def linear(weight: Array | Opaque, bias: Array | None) -> Conv | Opaque:
    """A fully connected layer on the last axis: a conv with an empty kernel."""
    if isinstance(weight, Opaque) or len(weight.shape) != 2:
        return Opaque("linear") if not isinstance(weight, Opaque) else weight
    shift = Array.full((weight.shape[0],), 0.0) if bias is None else bias
    return Conv(weight, shift, (), (), ())


def _norm_module(module: Any, rank: int | None) -> Affine | Opaque:
    if module.running_mean is None or module.running_var is None:
        return Opaque("a batch norm without running statistics")
    if rank is None:
        return Opaque("a batch norm over axis 1 of an input whose number of axes is not known here")
    mean, variance = to_array(module.running_mean), to_array(module.running_var)
    scale, shift = (
        None if parameter is None else to_array(parameter)
        for parameter in (module.weight, module.bias)
    )
    return batch_norm(mean, variance, scale, shift, module.eps, rank)


def batch_norm(
    mean: Array, variance: Array, weight: Array | None, bias: Array | None, eps: float, rank: int
) -> Affine:
    """A batch norm on running statistics, each of shape (channels,)."""
    scale = variance.apply(variance.shape, lambda v: 1.0 / (v + eps) ** 0.5)
    if weight is not None:
        scale = scale * weight
    shift = mean.apply(mean.shape, lambda m, s: -m * s, scale)
    if bias is not None:
        shift = shift + bias
    return Affine(scale, shift, rank)


def _pool_module(module: Any) -> Pool:
    return pool(
        module.kernel_size,
        module.stride,
        module.padding,
        module.ceil_mode,
        module.count_include_pad,
        getattr(module, "divisor_override", None),
        rank=POOLS.index(next(kind for kind in POOLS if isinstance(module, kind))) + 1,
    )


def pool(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: float | None = None,
    *,
    rank: int,
) -> Pool:
    """An average pooling; its channels are those of the input, filled in by the reader."""
    sizes = _each(kernel_size, rank)
    return Pool(
        channels=0,
        kernel_size=sizes,
        stride=sizes if stride is None or stride == [] else _each(stride, rank),
        padding=tuple((side, side) for side in _each(padding, rank)),
        counts_border=count_include_pad,
        ceil_mode=ceil_mode,
        divisor=divisor_override,
    )


def pad(amounts: Any, mode: str, value: float | None = None) -> Pad | Opaque:
    """A border as torch describes it: (low, high) of the last axis first."""
    if not isinstance(amounts, tuple | list) or len(amounts) % 2:
        return Opaque("pad")
    pairs = list(zip(amounts[::2], amounts[1::2], strict=True))
    if not all(isinstance(side, int) for side in amounts):
        return Opaque("a border whose width is not known here")
    if mode != "constant":
        return Pad(0, tuple(pairs[::-1]), mode)
    filled = Array.full((), value) if value else None
    return Pad(0, tuple(pairs[::-1]), "zeros", filled)


def _each(value: Any, rank: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    return values * rank if len(values) == 1 else values
