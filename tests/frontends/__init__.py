"""What the tests of the frontends share: a small model, and what one forward executes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Net", "conv", "executed"]

NAMES = {"convolution": "conv", "native_batch_norm": "norm", "addmm": "linear", "mm": "linear"}
# Bookkeeping around a matrix product, and the empty results of a batch norm in eval mode.
IGNORED = {"t", "view", "_unsafe_view", "expand", "detach", "alias", "empty", "lift_fresh"}


class Net(nn.Module):
    """Parts by name, and a forward of one's own; a plain tensor becomes a buffer."""

    def __init__(
        self, run: Callable[[Any, Tensor], object], /, **parts: nn.Module | Tensor
    ) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if isinstance(part, nn.Module | nn.Parameter):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, x: Tensor) -> object:
        return self.run(self, x)


def conv(inputs: int = 8, outputs: int = 8, size: int = 3, **options: Any) -> nn.Conv2d:
    """A conv that keeps the size of its input."""
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


def executed(model: nn.Module, *inputs: Any) -> str:
    """The operations of one forward below autograd: "conv, relu", "2 conv, add".

    There a module, a function and a method are the same, and `+=` is an addition.
    """
    counter = _Counter()
    with torch.no_grad(), counter:
        model(*inputs)
    seen = sorted(counter.seen.items())
    return ", ".join(f"{count} {name}" if count > 1 else name for name, count in seen)


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        if name not in IGNORED:
            self.seen[NAMES.get(name, name)] += 1
        return func(*args, **(kwargs or {}))
