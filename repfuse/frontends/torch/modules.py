"""torch modules for operators: plain Conv, ConvTranspose and Linear layers."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

from repfuse.arrays import evaluate
from repfuse.errors import RepfuseError
from repfuse.operators import Conv
from repfuse.rounding import rounded

__all__ = ["KINDS", "Merged", "ValueFault", "build", "convert", "parameter"]

KINDS = {
    False: (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    True: (None, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
}


class ValueFault(Exception):
    """The weights of a region hold numbers that cannot be folded."""


class Merged(nn.Module):
    """Stands where a layer was that is now part of another one; it cannot be called."""

    def __init__(self, into: str) -> None:
        super().__init__()
        self.into = into

    def extra_repr(self) -> str:
        return f"into {self.into!r}"

    def forward(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RepfuseError(f"this layer was merged into {self.into!r} and cannot be called")


def build(conv: Conv, device: torch.device | str = "cpu") -> nn.Module:
    """A float64 module for a conv with plain padding; on the meta device nothing is computed."""
    kind = KINDS[conv.transposed][conv.rank]
    assert kind is not None
    settings: dict[str, Any] = {}
    if conv.rank:
        settings = {
            "kernel_size": conv.kernel_size,
            "stride": conv.stride,
            "padding": tuple(low for low, _ in conv.padding),
            "dilation": conv.dilation,
            "groups": conv.groups,
            "padding_mode": conv.border,
        }
    if conv.transposed:
        settings["output_padding"] = tuple(low - high for low, high in conv.padding)
    settings |= {"bias": conv.has_bias, "device": torch.device("meta"), "dtype": torch.float64}
    layer: Any = kind
    module: nn.Module = layer.__new__(layer)
    vars(module)["reset_parameters"] = _nothing  # there is no need to draw weights
    layer.__init__(module, conv.in_channels, conv.out_channels, **settings)
    del vars(module)["reset_parameters"]
    module.train(False)
    if torch.device(device).type == "meta":
        return module
    weight, bias = evaluate(conv.weight, conv.bias)
    module._parameters["weight"] = parameter(_layout(weight, conv))
    if conv.has_bias:
        module._parameters["bias"] = parameter(bias)
    return module


def _nothing() -> None:
    """Instead of the first weights of a layer."""


def convert(module: nn.Module, originals: list[torch.Tensor]) -> None:
    """Round the weights once, to the dtype of the originals, on their device, in their layout."""
    like = originals[0]
    requires_grad = any(tensor.requires_grad for tensor in originals)
    last = any(tensor.dim() == 4 and is_channels_last(tensor) for tensor in originals)
    for name, parameter in list(module.named_parameters()):
        tensor = parameter.detach()
        limit = torch.finfo(like.dtype).max
        if not tensor.is_meta and like.dtype is not torch.float64:
            values = tensor.numpy()
            if max(values.max(initial=0), -values.min(initial=0)) > limit:
                raise ValueFault(f"the folded weights overflow {like.dtype}")
            tensor = _rounded(values, like.dtype)
        tensor = tensor.to(like.device, like.dtype)
        if last and tensor.dim() == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        module._parameters[name] = nn.Parameter(tensor, requires_grad=requires_grad)


def _rounded(values: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """The values rounded once."""
    name = str(dtype).removeprefix("torch.")
    if name not in ("float16", "bfloat16", "float32"):
        return torch.from_numpy(values)
    return torch.from_numpy(rounded(values, name))


def _layout(weight: np.ndarray, conv: Conv) -> np.ndarray:
    """The weight as torch stores it: (in, out / groups, ...) for a transposed conv."""
    if not conv.transposed:
        return weight
    rows, columns = conv.out_channels // conv.groups, weight.shape[1]
    grouped = weight.reshape(conv.groups, rows, columns, *conv.kernel_size)
    return grouped.swapaxes(1, 2).reshape(conv.groups * columns, rows, *conv.kernel_size)


def parameter(array: np.ndarray) -> nn.Parameter:
    """The array as a parameter; ValueFault where it holds what is no number."""
    if not np.isfinite(array).all():
        raise ValueFault("the weights hold NaN, infinity or a negative variance")
    return nn.Parameter(torch.from_numpy(np.ascontiguousarray(array)))


def is_channels_last(tensor: torch.Tensor) -> bool:
    """Whether the layout is channels-last and could not be read as the usual one."""
    last = tensor.is_contiguous(memory_format=torch.channels_last)
    return last and not tensor.is_contiguous()
