"""Weights that code without a source may compute with, by their names."""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType

import torch
from torch import nn

__all__ = ["METADATA", "names_in", "tensors_named"]

METADATA = {
    "dtype", "device", "shape", "ndim", "requires_grad", "is_cuda", "is_meta", "size", "dim",
    "numel",
}  # fmt: skip
TABLES = {"parameters", "named_parameters", "buffers", "named_buffers", "state_dict"}


def names_in(code: CodeType) -> set[str]:
    """All that code without a source may look up: names, and strings that getattr may be given."""
    names = {*code.co_names}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= names_in(constant)
        elif isinstance(constant, str):
            names.update(constant.split("."))
    return names


def tensors_named(module: nn.Module, code: CodeType) -> Iterator[torch.Tensor]:
    """The parameters and buffers whose names occur in code that is given something."""
    if code.co_argcount < 2:
        return
    names = names_in(code)
    for owner in module.modules():
        for name, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is not None and (name in names or TABLES & names):
                yield tensor
