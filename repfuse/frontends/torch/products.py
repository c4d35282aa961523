"""Convolutions of probes as matrix products."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["FastConvs"]


class FastConvs(TorchFunctionMode):
    """Float64 convolutions as one batched product: torch's own take ten times as long.

    Entered around layers that convolve only: it sees whatever torch is asked for.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.conv2d:
            given = CONV2D | dict(zip(CONV2D, args, strict=False)) | kwargs
            if not isinstance(given["padding"], str) and given["input"].dim() == 4:
                return _as_product(*given.values())
        return function(*args, **kwargs)


CONV2D: dict[str, Any] = {
    "input": None, "weight": None, "bias": None, "stride": 1, "padding": 0, "dilation": 1,
    "groups": 1,
}  # fmt: skip


def _as_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> torch.Tensor:
    kernel_size = tuple(weight.shape[2:])
    patches = torch.nn.functional.unfold(x, kernel_size, dilation, padding, stride)
    batch, positions = x.shape[0], patches.shape[-1]
    # The few positions as rows: a matrix product reads the many weights faster from the right.
    rows = patches.reshape(batch, groups, -1, positions).permute(1, 0, 3, 2).flatten(1, 2)
    columns = weight.reshape(groups, weight.shape[0] // groups, -1).transpose(1, 2)
    result = (rows @ columns).reshape(groups, batch, positions, -1)
    result = result.permute(1, 0, 3, 2).reshape(batch, weight.shape[0], positions)
    if bias is not None:
        result = result + bias[:, None]
    pads = padding if isinstance(padding, tuple | list) else (padding,) * 2
    strides = stride if isinstance(stride, tuple | list) else (stride,) * 2
    dilations = dilation if isinstance(dilation, tuple | list) else (dilation,) * 2
    height, width = (
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, p, d, k, s in zip(x.shape[2:], pads, dilations, kernel_size, strides, strict=True)
    )
    return result.reshape(batch, weight.shape[0], height, width)
