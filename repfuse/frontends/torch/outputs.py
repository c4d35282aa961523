"""The outputs of a module, however nested, as named NumPy arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from repfuse.comparison import Output

__all__ = ["named_outputs"]


def named_outputs(value: object, name: str) -> Iterator[Output]:
    """The leaves of a nested output, each named by the path that leads to it."""
    for path, leaf in pytree.tree_flatten_with_path(value)[0]:
        place = name + pytree.keystr(path)
        parts = _parts(leaf)
        if isinstance(leaf, Tensor):
            yield _output(leaf, place)
        elif leaf is None:
            continue  # no output here; if the other model has one, that shows
        elif parts is None:
            values = np.asarray(leaf)
            yield Output(place, values, "" if values.dtype.kind in "bifc" else type(leaf).__name__)
        else:
            for key, part in parts.items():
                yield from named_outputs(part, place + key)


def _parts(leaf: object) -> dict[str, object] | None:
    """What a container holds that pytree does not know; None for any other object."""
    if isinstance(leaf, Mapping):
        return {f"[{key!r}]": part for key, part in leaf.items()}
    if isinstance(leaf, list | tuple):
        return {f"[{index}]": part for index, part in enumerate(leaf)}
    if is_dataclass(leaf) and not isinstance(leaf, type):
        return {f".{field.name}": getattr(leaf, field.name) for field in fields(leaf)}
    if isinstance(leaf, type) or not getattr(leaf, "__dict__", None):
        return None
    return {f".{key}": part for key, part in vars(leaf).items()}


def _output(tensor: Tensor, name: str) -> Output:
    dense = tensor.detach()
    dense = dense.dequantize() if dense.is_quantized else dense
    dense = dense.to_dense() if dense.layout != torch.strided else dense
    dtype = str(dense.dtype).removeprefix("torch.")
    if dense.dtype == torch.complex32:
        dense = dense.to(torch.complex64)
    elif dense.is_floating_point() and dense.dtype.itemsize < 4:
        dense = dense.float()
    # A copy: the model may reuse the memory for its next output.
    return Output(name, dense.cpu().resolve_conj().resolve_neg().numpy().copy(), dtype)
