"""What the tests measure with: random weights, float64 equality, counts of operators."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

Module = TypeVar("Module", bound=nn.Module)

NORM = ("running_mean", "running_var", "weight", "bias")
KINDS = {
    "aten::convolution": "conv",
    "aten::native_batch_norm": "batch_norm",
    "aten::cudnn_batch_norm": "batch_norm",
    "aten::addmm": "linear",
    "aten::mm": "linear",
    "aten::add": "add",
    "aten::add_": "add",
}


@torch.no_grad()
def randomize(model: Module, seed: int = 0) -> Module:
    """Give a model, in place, weights that hide no mistake; returns the model.

    Batch norm statistics (also frozen ones in buffers): means are normal, variances uniform in
    [0.5, 2]. Scales (every per-channel parameter that is no bias: norm weights, layer scales,
    branch factors): uniform in [0.5, 1.5] with a random sign. Biases: normal. Any other parameter
    stays, unless all its elements are equal (zero-initialised layers): then normal / sqrt(fan-in).
    """
    noise = torch.Generator().manual_seed(seed)

    def fill(tensor: Tensor, kind: str) -> None:
        values = torch.randn(tensor.shape, generator=noise, dtype=torch.float64)
        uniform = torch.rand(tensor.shape, generator=noise, dtype=torch.float64)
        if kind == "running_var":
            values = 0.5 + 1.5 * uniform
        elif kind == "scale":
            values = (0.5 + uniform) * values.sign()
        elif kind == "weight":
            values = values / max(1, tensor[0].numel()) ** 0.5
        tensor.copy_(values)

    done: set[int] = set()
    for module in model.modules():
        own: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
        buffers = dict(module.named_buffers(recurse=False))
        if "running_var" in buffers:
            own |= {name: buffers[name] for name in NORM if name in buffers}
        for name, tensor in own.items():
            if id(tensor) in done or nn.parameter.is_lazy(tensor):
                continue
            done.add(id(tensor))
            kind = _kind(module, name, tensor)
            if kind != "keep":
                fill(tensor, kind)
    return model


def _kind(module: nn.Module, name: str, tensor: Tensor) -> str:
    if name in ("running_mean", "running_var") or "bias" in name:
        return name
    matrix = isinstance(module, _ConvNd | nn.Linear) and name == "weight"
    if not matrix and sum(size > 1 for size in tensor.shape) <= 1:
        return "scale"
    constant = tensor.numel() > 0 and bool((tensor == tensor.flatten()[0]).all())
    return "weight" if constant else "keep"


def assert_same(
    reference: nn.Module, candidate: nn.Module, *inputs: Any, bound: float = 1e-9
) -> float:
    """Compare float64 copies in eval mode, and return the largest relative error.

    Relative means: to the largest absolute value of the reference's same output. Fails beyond the
    bound, on NaN and Inf anywhere, on other shapes or another structure, and where every output
    is zero, since equal zeros show nothing.
    """
    ours, mine = pytree.tree_flatten_with_path(_run(reference, inputs))
    theirs, other = pytree.tree_flatten_with_path(_run(candidate, inputs))
    assert mine == other, f"the reference returns {mine}, the candidate {other}"
    errors, peaks = [], []
    for (path, left), (_, right) in zip(ours, theirs, strict=True):
        place = f"output{pytree.keystr(path)}"
        if not isinstance(left, Tensor) or not isinstance(right, Tensor):
            assert left == right, f"{place}: {left} against {right}"
            continue
        assert left.shape == right.shape, f"{place}: {left.shape} against {right.shape}"
        assert left.dtype == right.dtype, f"{place}: {left.dtype} against {right.dtype}"
        assert left.isfinite().all(), f"{place}: the reference has NaN or Inf"
        assert right.isfinite().all(), f"{place}: the candidate has NaN or Inf"
        if not left.is_floating_point() and not left.is_complex():
            assert torch.equal(left, right), f"{place}: {left} against {right}"
            continue
        if not left.numel():
            continue
        peak, difference = left.abs().max().item(), (left - right).abs().max().item()
        error = difference / peak if peak else float("inf") if difference else 0.0
        assert error <= bound, f"{place}: relative error {error:.3g} is above {bound:g}"
        errors.append(error)
        peaks.append(peak)
    assert any(peaks), "no output has a value other than zero"
    return max(errors)


@torch.no_grad()
def _run(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    def double(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        # A clone each time: a model may write into its input.
        return leaf.clone().double() if leaf.is_floating_point() else leaf.clone()

    return copy.deepcopy(model).double().eval()(*pytree.tree_map(double, inputs))


@dataclass(frozen=True)
class OpCounts:
    """Modules that a model holds, and operators that one forward in eval mode executes.

    batch_norms: only those on running statistics. linears: products with a two-dimensional
    weight. adds: sums of two tensors of the same shape, so no scalars, shifts or biases.
    """

    conv_modules: int
    bn_modules: int
    linear_modules: int
    convs: int
    batch_norms: int
    linears: int
    adds: int


def count_ops(model: nn.Module, *inputs: Any) -> OpCounts:
    """Count in a copy of the model; a module used twice is one module and two operators."""

    def modules(*kinds: type[nn.Module]) -> int:
        return sum(isinstance(module, kinds) for module in model.modules())

    counter = _Counter()
    copied = copy.deepcopy(model).eval()
    copied_inputs = pytree.tree_map(copy.deepcopy, inputs)
    with torch.no_grad(), counter:
        copied(*copied_inputs)
    executed = (counter.seen[name] for name in ("conv", "batch_norm", "linear", "add"))
    return OpCounts(modules(_ConvNd), modules(_BatchNorm), modules(nn.Linear), *executed)


class _Counter(TorchDispatchMode):
    """Counts below autograd, where a module, a functional and a method are the same call."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kind = KINDS.get(func._schema.name, "")
        if kind == "batch_norm" and args[5]:  # on batch statistics: an instance norm, say
            kind = ""
        if kind == "add" and not _same_shape(*args[:2]):
            kind = ""
        self.seen[kind] += 1
        return func(*args, **(kwargs or {}))


def _same_shape(left: Any, right: Any) -> bool:
    return isinstance(left, Tensor) and isinstance(right, Tensor) and left.shape == right.shape
