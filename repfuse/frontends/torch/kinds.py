"""What a recorded value is, where that is sure: a size, a number, a dtype, and so on.

Python code may ask for the class of a value, and branch by the answer. Of what is known here the
answer is the true one; of anything else it is not given.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.fx.proxy import Attribute

__all__ = ["ABSENT", "DEVICE_INDEX", "MAY_BE_NONE", "NAMES", "TENSOR", "SizeNumber", "sample_of"]

TENSOR = torch.empty(0)
ABSENT = object()


class SizeNumber(int):
    """A size of an axis: a symbol where a model is exported, a tensor where it is traced by jit."""


SIZES = torch.Size([2])  # of which each is a SizeNumber
NUMBERS = {
    "size", "stride", "dim", "ndimension", "numel", "nelement", "element_size", "storage_offset",
}  # fmt: skip
ARITHMETIC = {
    operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.neg,
}  # fmt: skip
PLAIN = (
    "shape", "dtype", "device", "layout", "ndim", "itemsize", "nbytes", "requires_grad", "is_leaf",
    "is_cuda", "is_sparse", "is_meta", "is_quantized",
)  # fmt: skip
RAISES = ("H", "mH", "mT", "T", "imag", "volatile")  # for some tensors


def _may_be_none() -> frozenset[str]:
    members = vars(torch._C.TensorBase).items()
    names = [n for n, member in members if type(member).__name__ == "getset_descriptor"]
    return frozenset(n for n in names if n not in RAISES and getattr(TENSOR, n, ABSENT) is None)


ATTRIBUTES = {name: getattr(TENSOR, name) for name in PLAIN} | {"shape": SIZES}
DEVICE_INDEX = "index"
MAY_BE_NONE = _may_be_none() | {DEVICE_INDEX}
NAMES = frozenset(dir(torch.Tensor)) - MAY_BE_NONE  # what every tensor has


def sample_of(value: Any) -> Any:
    """Something of the same class as what a proxy stands for; ABSENT where that is not sure."""
    if issubclass(type(value), Attribute) and value._node is None:
        return _attribute(sample_of(value.root), value.attr)
    return _of_node(value.node)


def _attribute(owner: Any, name: str) -> Any:
    if owner is not ABSENT:
        return getattr(owner, name, ABSENT)
    method = callable(getattr(torch.Tensor, name, None))
    return getattr(TENSOR, name) if method else ATTRIBUTES.get(name, ABSENT)


def _of_node(argument: Any) -> Any:
    if not isinstance(argument, fx.Node):
        return argument if type(argument) is int else ABSENT
    target, args = argument.target, argument.args
    if argument.op == "call_method" and target in NUMBERS:
        if target in ("size", "stride") and len(args) == 1:
            return SIZES if target == "size" and not argument.kwargs else ABSENT
        return 2 if target in ("dim", "ndimension", "element_size") else SizeNumber(2)
    if argument.op != "call_function" or argument.kwargs:
        return ABSENT
    if target is getattr and len(args) == 2:
        return _attribute(_of_node(args[0]), str(args[1]))
    if target is operator.getitem and type(_of_node(args[0])) is torch.Size:
        kind = type(args[1])
        return SIZES if kind is slice else SizeNumber(2) if kind is int else ABSENT
    if target in ARITHMETIC:
        parts = [_of_node(each) for each in args]
        if all(type(part) in (int, SizeNumber) for part in parts):
            return SizeNumber(2) if SizeNumber in map(type, parts) else 2
    return ABSENT
