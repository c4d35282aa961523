"""Times one operator in PyTorch's eager mode, for the target "measured"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repfuse.measured import Work, quickest
from repfuse.timings import processor

__all__ = ["Timer"]

CONVS: dict[tuple[int, bool], Any] = {
    (1, False): nn.Conv1d,
    (2, False): nn.Conv2d,
    (3, False): nn.Conv3d,
    (1, True): nn.ConvTranspose1d,
    (2, True): nn.ConvTranspose2d,
    (3, True): nn.ConvTranspose3d,
}
POOLS: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class Timer:
    """Runs a work with the dtype of a model, on its device; a model without weights on the CPU.

    Layers are run by their forward: the user's hooks for all modules are not for these.
    """

    def __init__(self, model: nn.Module) -> None:
        tensors = [*model.parameters(), *model.buffers()]
        floats = [tensor for tensor in tensors if tensor.is_floating_point()]
        self.dtype = floats[0].dtype if floats else torch.float32
        device = floats[0].device if floats else torch.device("cpu")
        self.device = torch.device("cpu") if device.type == "meta" else device
        self._generator = torch.Generator().manual_seed(0)  # the caller's stays as it is

    @property
    def machine(self) -> str:
        """What the times hold for."""
        name = processor() if self.device.type == "cpu" else self._device_name()
        threads = torch.get_num_threads()
        return f"torch {torch.__version__}, {name}, {threads} threads, {self.dtype}"

    def _device_name(self) -> str:
        cuda = self.device.type == "cuda"
        return torch.cuda.get_device_name(self.device) if cuda else self.device.type

    def __call__(self, work: Work) -> float | None:
        """Seconds of one run; None for what is not timed."""
        with torch.no_grad():
            run = self._prepared(work)
            if run is None:
                return None
            if self.device.type == "cpu":
                return quickest(run)

            def finished() -> None:
                run()
                torch.accelerator.synchronize(self.device)

            return quickest(finished)

    def _noise(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self._generator).to(self.device, self.dtype)

    def _layer(self, kind: Any, *args: Any, **settings: Any) -> nn.Module:
        """A layer with random weights."""
        layer: nn.Module = nn.utils.skip_init(
            kind, *args, **settings, device=self.device, dtype=self.dtype
        )  # what it is filled with otherwise is drawn from the generator of all
        for parameter in layer.parameters():
            parameter.copy_(self._noise(*parameter.shape))
        return layer

    def _prepared(self, work: Work) -> Callable[[], object] | None:
        inputs = [self._noise(work.batch, count, *work.sizes) for count in work.channels]
        x = inputs[0]
        if work.kind == "linear":
            shape = (work.batch, *work.sizes, work.channels[0])
            tokens = self._noise(*shape)
            layer = self._layer(nn.Linear, work.channels[0], work.out_channels, work.bias)
            return lambda: layer.forward(tokens)
        if work.kind == "affine":
            norm: Any = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}.get(
                len(work.sizes), nn.BatchNorm1d
            )
            layer = norm(work.channels[0], device=self.device, dtype=self.dtype).eval()
            return lambda: layer.forward(x)
        if work.kind == "concat":
            return lambda: torch.cat(inputs, 1)
        if work.kind == "sum":

            def add() -> Tensor:
                total = inputs[0]
                for term in inputs[1:]:
                    total = total + term
                return total

            return add
        if any(low != high for low, high in work.padding):
            return None
        padding = tuple(low for low, _ in work.padding)
        if work.kind == "pool":
            pool = POOLS[len(work.sizes)]
            return lambda: pool(x, work.kernel_size, work.stride, padding)
        conv = self._layer(
            CONVS[len(work.sizes), work.transposed],
            work.channels[0],
            work.out_channels,
            work.kernel_size,
            work.stride,
            padding,
            dilation=work.dilation,
            groups=work.groups,
            bias=work.bias,
        )
        return lambda: conv.forward(x)
