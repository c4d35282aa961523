"""How far two answers are apart, beside the largest value inside of the network."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from repfuse.comparison import Comparison

__all__ = ["BOUND", "FLOOR", "fresh", "gap", "largest", "outputs", "refused"]

BOUND = 1e-9
FLOOR = 1e-3  # of the largest value inside, below which an output is the rest of a cancellation


def outputs(model: nn.Module, x: Tensor) -> list[Any]:
    """Everything that it returns, in order; the input may be changed by it."""
    with torch.no_grad():
        return list(pytree.tree_leaves(fresh(model)(x.clone())))


def fresh(model: nn.Module) -> nn.Module:
    """The model, or a copy of one that keeps something in attributes called `kept`."""
    keeps = any(name[:4] == "kept" for m in model.modules() for name in (*vars(m), *m._buffers))
    return copy.deepcopy(model) if keeps else model


def gap(left: list[Any], right: list[Any], scale: float = 0.0) -> float:
    """The largest difference, relative to each output's largest finite value; infinite where the
    outputs are not of the same kind, or one of them is not finite where the other one is."""
    if len(left) != len(right):
        return float("inf")
    worst = 0.0
    for mine, theirs in zip(left, right, strict=True):
        if not isinstance(mine, Tensor) or not isinstance(theirs, Tensor):
            worst = max(worst, 0.0 if mine == theirs else float("inf"))
            continue
        if (mine.shape, mine.dtype) != (theirs.shape, theirs.dtype):
            return float("inf")
        differs = (mine != theirs) & ~(mine.isnan() & theirs.isnan())  # one infinity is another
        if not differs.any():
            continue
        finite = mine[mine.isfinite()].abs()
        peak = max(finite.max().item() if finite.numel() else 0.0, FLOOR * scale, 1e-300)
        apart = (mine - theirs)[differs].abs().max().item() / peak
        worst = max(worst, apart if apart == apart else float("inf"))
    return worst


def largest(model: nn.Module, inputs: list[Tensor]) -> float:
    """The largest number that any layer or product inside of it gives."""
    seen: list[float] = [1.0]

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            found = function(*args, **(kwargs or {}))
            if isinstance(found, Tensor) and found.is_floating_point() and found.numel():
                with torch._C.DisableTorchFunction():
                    seen.append(found.abs().max().item())
            return found

    with Watch():
        for x in inputs:
            outputs(model, x)
    return max(seen)


def refused(found: Comparison, slack: float) -> str:
    """What a comparison does not accept, but for outputs without a finite value, for what is left
    where all cancels: rounding alone makes it anything below `slack`, and for outputs that rounding
    alone moves by more than their values, as a division by almost nothing does."""
    for output in found.outputs:
        if output.passed or not output.compared:
            continue
        if not output.max_abs <= max(slack, output.tolerance):
            return str(output)
    return ""
