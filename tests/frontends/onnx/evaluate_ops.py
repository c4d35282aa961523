"""Operators that torch or NumPy compute in place of onnx.reference. Padding is explicit, so that
every form of it is the same here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from onnx.reference.op_run import OpRun
from torch.nn import functional as F

__all__ = ["OWN"]


def _auto(
    kind: str | None, sides: list[int], x: Any, reach: list[int], stride: list[int]
) -> list[tuple[int, int]]:
    rank = len(reach)
    if kind in (None, "NOTSET"):
        return list(zip(sides[:rank], sides[rank:], strict=True))
    if kind == "VALID":
        return [(0, 0)] * rank
    found = []
    for size, step, span in zip(x.shape[2:], stride, reach, strict=True):
        total = max(0, (-(-size // step) - 1) * step + span - size)
        small, large = total // 2, total - total // 2
        found.append((small, large) if kind == "SAME_UPPER" else (large, small))
    return found


def _padded(x: Any, sides: list[tuple[int, int]], value: float = 0.0) -> torch.Tensor:
    return F.pad(
        torch.from_numpy(np.ascontiguousarray(x)),
        [n for side in sides[::-1] for n in side],
        value=value,
    )


CONVS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED: dict[int, Any] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


class Conv(OpRun):
    def _run(self, x: Any, weight: Any, bias: Any = None, **attrs: Any) -> tuple[Any]:
        rank, kernel = x.ndim - 2, weight.shape[2:]
        dilation = attrs["dilations"] or [1] * rank
        stride = attrs["strides"] or [1] * rank
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        sides = _auto(attrs["auto_pad"], attrs["pads"] or [0] * 2 * rank, x, reach, stride)
        made = CONVS[rank](
            _padded(x, sides),
            torch.tensor(weight),
            None if bias is None else torch.tensor(bias),
            stride,
            0,
            dilation,
            attrs["group"] or 1,
        )
        return (made.numpy(),)


class ConvTranspose(OpRun):
    def _run(self, x: Any, weight: Any, bias: Any = None, **attrs: Any) -> tuple[Any]:
        rank = x.ndim - 2
        extra = attrs["output_padding"] or [0] * rank
        made = TRANSPOSED[rank](
            torch.tensor(x),
            torch.tensor(weight),
            None,
            attrs["strides"] or [1] * rank,
            0,
            0,
            attrs["group"] or 1,
            attrs["dilations"] or [1] * rank,
        )
        sides = _crop(attrs, x.shape[2:], made.shape[2:], extra)
        # What the crop takes from the high side, output_padding gives back, with zeros beyond.
        made = F.pad(
            made, [n for i in range(rank)[::-1] for n in (-sides[i], extra[i] - sides[rank + i])]
        )
        if bias is not None:
            made = made + torch.tensor(bias).reshape(-1, *[1] * rank)
        return (made.numpy(),)


def _crop(attrs: Mapping[str, Any], size: Any, full: Any, extra: list[int]) -> list[int]:
    """What a ConvTranspose takes away on each side; the odd one on the low side, unless it pads as
    SAME_UPPER."""
    rank, kind = len(extra), attrs["auto_pad"] or "NOTSET"
    wanted = attrs["output_shape"]
    if wanted is None and kind in ("NOTSET", "VALID"):
        return list(attrs["pads"] or [0] * 2 * rank) if kind == "NOTSET" else [0] * 2 * rank
    if wanted is None:
        wanted = [s * n for s, n in zip(attrs["strides"] or [1] * rank, size, strict=True)]
    total = [a + b - c for a, b, c in zip(full, extra, wanted, strict=True)]
    small = [n // 2 for n in total]
    large = [n - less for n, less in zip(total, small, strict=True)]
    return [*small, *large] if kind == "SAME_UPPER" else [*large, *small]


class BatchNormalization(OpRun):
    def _run(self, x: Any, *parameters: Any, **attrs: Any) -> tuple[Any, ...]:
        scale, shift, mean, variance = (p.reshape(-1, *[1] * (x.ndim - 2)) for p in parameters)
        running: list[Any] = []
        if attrs.get("training_mode"):
            places = (0, *range(2, x.ndim))
            own = x.mean(places, keepdims=True)[0], x.var(places, keepdims=True)[0]
            keep = attrs["momentum"]
            running = [
                (old * keep + new * (1 - keep)).reshape(-1)
                for old, new in zip((mean, variance), own, strict=True)
            ]
            mean, variance = own
        made = (x - mean) / np.sqrt(variance + attrs["epsilon"]) * scale + shift
        return (made, *running[: len(self.onnx_node.output) - 1])


class AveragePool(OpRun):
    def _run(self, x: Any, **attrs: Any) -> tuple[Any]:
        kernel = attrs["kernel_shape"]
        rank = len(kernel)
        dilation = attrs.get("dilations") or [1] * rank
        stride = attrs["strides"] or [1] * rank
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        sides = _auto(attrs["auto_pad"], attrs["pads"] or [0] * 2 * rank, x, reach, stride)
        assert not attrs.get("ceil_mode")
        border = _padded(np.ones(x.shape), sides, float(bool(attrs["count_include_pad"])))
        taps = torch.ones(x.shape[1], 1, *kernel, dtype=torch.float64)
        total, count = (
            CONVS[rank](values, taps, None, stride, 0, dilation, x.shape[1])
            for values in (_padded(x, sides), border)
        )
        return ((total / count).numpy(),)


class Dropout(OpRun):
    def _run(
        self, x: Any, ratio: Any = None, training: Any = False, **attrs: Any
    ) -> tuple[Any, ...]:
        assert not training
        return (x, np.ones(x.shape, bool))[: len(self.onnx_node.output)]


class Pad(OpRun):
    def _run(
        self, x: Any, amounts: Any = None, fill: Any = None, axes: Any = None, **attrs: Any
    ) -> tuple[Any]:
        amounts = attrs["pads"] if amounts is None else [int(n) for n in amounts]
        axes = range(x.ndim) if axes is None else [int(n) % x.ndim for n in axes]
        pairs = dict(
            zip(axes, zip(amounts[: len(axes)], amounts[len(axes) :], strict=True), strict=True)
        )
        sides = [pairs.get(axis, (0, 0)) for axis in range(x.ndim)]
        if attrs["mode"] in (None, "constant"):
            return (_padded(x, sides, float(fill or attrs.get("value") or 0.0)).numpy(),)
        return (np.pad(x, sides, attrs["mode"]),)


class Mean(OpRun):
    def _run(self, *inputs: Any) -> tuple[Any]:
        return (sum(inputs) / len(inputs),)


class QuantizeLinear(OpRun):
    def _run(self, x: Any, step: Any, zero: Any, **attrs: Any) -> tuple[Any]:
        return (np.clip(np.rint(x / step) + zero, -128, 127).astype(np.int8),)


class DequantizeLinear(OpRun):
    def _run(self, x: Any, step: Any, zero: Any, **attrs: Any) -> tuple[Any]:
        shape = [-1 if step.ndim and i == attrs.get("axis", 1) else 1 for i in range(x.ndim)]
        return ((x.astype(np.float32) - zero.reshape(shape)) * step.reshape(shape),)


class Twist(OpRun):
    """Of a domain that only these tests know."""

    op_domain = "odd.domain"

    def _run(self, x: Any) -> tuple[Any]:
        return (np.sin(x),)


OWN = [
    Twist,
    QuantizeLinear,
    DequantizeLinear,
    Conv,
    ConvTranspose,
    BatchNormalization,
    AveragePool,
    Dropout,
    Pad,
    Mean,
]
