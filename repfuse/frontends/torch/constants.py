"""Constants: what a trace computes from parameters and buffers alone.

A frozen batch norm written out, a standardised weight, a scale of a parameter: none of it
depends on the input, so it is one array. Its shape comes from running the computation on the
meta device, its value from running it in float64 when a rewrite needs it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from repfuse.arrays import Array

__all__ = ["Constants", "to_array", "to_numpy"]

METADATA_CONSTANTS = ("dtype", "device")


class Constants:
    """Tells which nodes of the traces are constant, and turns them into arrays."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self._constant: dict[fx.Node, bool] = {}
        self._own: dict[fx.Node, Any] = {}
        self._excluded: dict[int, str] = {}
        self._meta: dict[fx.Node, Any] = {}

    def exclude(self, nodes: Iterable[fx.Node]) -> None:
        """These nodes lie in memory that is changed in place: they are no constants."""
        for node in nodes:
            self._constant[node] = False
            tensor = self.tensor(node)
            if tensor is not None:
                self.exclude_tensor(tensor, "change in place")

    def exclude_tensor(self, tensor: torch.Tensor, reason: str) -> None:
        """The parameter or buffer is no constant; reason: what its values do."""
        self._excluded.setdefault(id(tensor), reason)

    def why_excluded(self, tensors: Iterable[torch.Tensor]) -> str | None:
        """Why one of these parameters and buffers is no constant; None where all are."""
        if not self._excluded:
            return None
        reasons = (self._excluded.get(id(tensor)) for tensor in tensors)
        return next((reason for reason in reasons if reason is not None), None)

    def is_constant(self, node: fx.Node) -> bool:
        """Whether the node is a tensor that no input of the model has a part in."""
        if node not in self._constant:
            self._constant[node] = self._classify(node)
        return self._constant[node]

    def _classify(self, node: fx.Node) -> bool:
        if node.op == "get_attr":
            tensor = self.tensor(node)
            return isinstance(tensor, torch.Tensor) and id(tensor) not in self._excluded
        if node.op not in ("call_function", "call_method") or is_random(node):
            return False
        inputs = [source for source in node.all_input_nodes if not is_neutral(source)]
        return bool(inputs) and all(self.is_constant(source) for source in inputs)

    def tensor(self, node: fx.Node) -> torch.Tensor | None:
        """The parameter or buffer itself, where the node only reads it."""
        return self._tensors.get(str(node.target)) if node.op == "get_attr" else None

    def shape(self, node: fx.Node) -> tuple[int, ...] | None:
        """The shape, without touching a value; None where meta tensors do not tell it."""
        try:
            value = self._run(node, "meta", self._meta)
        except Exception:  # any operation may lack a meta form
            return None
        return tuple(value.shape) if isinstance(value, torch.Tensor) else None

    def dtype(self, node: fx.Node) -> torch.dtype | None:
        """The dtype that the model itself gives the constant; None where it depends on an input."""
        if (tensor := self.tensor(node)) is not None:
            return tensor.dtype
        try:
            value = self._run(node, "meta", self._own, own_dtype=True)
        except Exception:  # any operation may lack a meta form
            return None
        return value.dtype if isinstance(value, torch.Tensor) else None

    def array(self, node: fx.Node) -> Array | None:
        """The constant as a lazy float64 array; None where it is complex or its shape not known."""
        dtype = self.dtype(node)
        if dtype is not None and dtype.is_complex:
            return None
        tensor = self.tensor(node)
        if tensor is not None:
            return to_array(tensor)
        shape = self.shape(node)
        if shape is None:
            return None
        leaves = [leaf for leaf in self._leaves(node) if self._is_float(leaf)]

        def compute(*values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            given = {leaf: torch.from_numpy(v) for leaf, v in zip(leaves, values, strict=True)}
            return to_numpy(self._run(node, "cpu", given))

        return Array(shape, compute, tuple(to_array(self._tensors[str(n.target)]) for n in leaves))

    def _leaves(self, node: fx.Node) -> list[fx.Node]:
        """The parameters and buffers that a constant is computed from."""
        found, todo, seen = list[fx.Node](), [node], {node}
        while todo:
            last = todo.pop()
            if last.op == "get_attr":
                found.append(last)
            for source in last.all_input_nodes:
                if source not in seen and not is_neutral(source):
                    seen.add(source)
                    todo.append(source)
        return found

    def _is_float(self, leaf: fx.Node) -> bool:
        tensor = self.tensor(leaf)
        return tensor is not None and tensor.is_floating_point()

    def literal(self, argument: Any) -> Any:
        """The argument with the sizes of constants filled in: groups=weight.shape[0]."""

        def number(node: fx.Node) -> Any:
            try:
                value = self._run(node, "meta", self._meta) if self.is_constant(node) else node
            except Exception:  # any operation may lack a meta form
                return node
            return node if isinstance(value, torch.Tensor) else value

        return fx.node.map_arg(argument, number)

    def forget(self, names: Iterable[str]) -> None:
        """Let go of tensors that nobody folds any more."""
        for name in names:
            self._tensors.pop(name, None)

    def _run(
        self, node: fx.Node, device: str, memo: dict[fx.Node, Any], own_dtype: bool = False
    ) -> Any:
        if node in memo:
            return memo[node]

        def value_of(source: fx.Node) -> Any:
            if not is_neutral(source):
                return self._run(source, device, memo, own_dtype)
            if own_dtype and "dtype" in source.args:
                raise LookupError("the dtype of an input")
            return torch.float64 if "dtype" in source.args else torch.device(device)

        if node.op == "get_attr":
            tensor = self._tensors[str(node.target)].detach()
            kind = torch.float64 if tensor.is_floating_point() else tensor.dtype
            kind = tensor.dtype if own_dtype else kind
            if device == "meta":
                value: Any = torch.empty(tensor.shape, dtype=kind, device="meta")
            else:
                value = tensor.to(device, kind)
        else:
            args = fx.node.map_arg(node.args, value_of)
            kwargs = fx.node.map_arg(node.kwargs, value_of)
            with torch.no_grad():
                if node.op == "call_method":
                    value = getattr(args[0], str(node.target))(*args[1:], **kwargs)
                else:
                    value = node.target(*args, **kwargs)  # type: ignore[operator]
        memo[node] = value
        return value


def is_neutral(node: fx.Node) -> bool:
    """The dtype or the device of a value: no data, and float64 on the CPU while folding."""
    is_getattr = node.op == "call_function" and node.target is getattr
    return is_getattr and node.args[1] in METADATA_CONSTANTS


DRAWING = ("rand", "dropout", "bernoulli", "multinomial", "normal_", "rrelu", "poisson", "empty")
DRAWING_NAMES = {"normal", "binomial", "gumbel_softmax"}


def is_random(node: fx.Node) -> bool:
    """Whether the numbers are drawn, or whatever was in memory."""
    name = getattr(node.target, "__name__", str(node.target))
    return name in DRAWING_NAMES or any(part in name for part in DRAWING)


def to_array(tensor: torch.Tensor) -> Array:
    return Array(tuple(tensor.shape), lambda: to_numpy(tensor), origin=("tensor", id(tensor)))


def to_numpy(tensor: torch.Tensor) -> npt.NDArray[np.float64]:
    """A float64 copy; NumPy converts without waking torch's threads."""
    plain = tensor.detach().cpu()
    if plain.dtype is torch.bfloat16:
        plain = plain.float()
    return plain.numpy().astype(np.float64)
