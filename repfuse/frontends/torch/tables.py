"""Parameters and buffers that traced code gets from a table: parameters(), state_dict(), _buffers.

torch.fx sees `self.weight`. Who lists the parameters of a module gets the tensors themselves, and
what is computed from them is a number of the moment of the trace. Mostly that is their dtype or
device; a tensor of which more is asked is no constant.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from repfuse.frontends.torch.proxies import RecordingProxy
from repfuse.frontends.torch.snapshot import is_same_table

__all__ = ["listed_tensors"]

ATTRIBUTES = {
    "device", "dtype", "is_cpu", "is_cuda", "is_leaf", "is_meta", "is_sparse", "itemsize",
    "layout", "names", "nbytes", "ndim", "requires_grad", "shape",
}  # fmt: skip
METHODS = {
    "__len__", "dim", "element_size", "get_device", "is_complex", "is_contiguous",
    "is_floating_point", "nelement", "numel", "size", "stride",
}  # fmt: skip


@contextmanager
def listed_tensors(
    model: nn.Module, listed: dict[int, torch.Tensor], note: Callable[[torch.Tensor, bool], None]
) -> Iterator[None]:
    """Fill `listed` with what user code takes from a table, and call `note` when it is used.

    The second argument of note: whether a recorded operation reads it, and not Python itself.
    """
    with ExitStack() as stack:

        def hand_out(tensors: list[Any]) -> None:
            if not listed:
                stack.enter_context(_Uses(listed, note))
            listed.update((id(tensor), tensor) for tensor in tensors if tensor is not None)

        tables: list[tuple[dict[str, Any], str, dict[str, Any]]] = []
        for module in model.modules():
            for name in ("_parameters", "_buffers"):
                table = vars(module)[name]
                if table and type(table) is dict:
                    tables.append((vars(module), name, table))
                    vars(module)[name] = _Table(table, hand_out)
        try:
            yield
        finally:
            for attributes, name, table in tables:
                now = attributes[name]
                if type(now) is _Table:
                    attributes[name] = table
                    items = tuple(dict.items(now))
                    if not is_same_table(table, items):
                        table.clear()
                        table.update(items)


class _Table(dict[str, Any]):
    """A table of tensors that tells what user code takes out of it."""

    def __init__(self, table: dict[str, Any], hand_out: Callable[[list[Any]], None]) -> None:
        super().__init__(table)
        self._hand_out = hand_out

    def __getitem__(self, name: str) -> Any:
        return self._one(super().__getitem__(name))

    def get(self, name: str, default: Any = None) -> Any:
        return self._one(super().get(name, default))

    def _one(self, value: Any) -> Any:
        if not _home(sys._getframe(2)).startswith(("torch", "repfuse.")):
            self._hand_out([value])
        return value

    def _listed(self) -> _Table:
        if _is_asked_by_user(sys._getframe(2)):
            self._hand_out(list(super().values()))
        return self

    def items(self) -> Any:
        return dict.items(self._listed())

    def values(self) -> Any:
        return dict.values(self._listed())

    def __iter__(self) -> Iterator[str]:
        return dict.__iter__(self._listed())

    def copy(self) -> dict[str, Any]:
        return dict(self.items())


class _Uses(TorchFunctionMode):
    """Notes what is computed from the listed tensors."""

    def __init__(
        self, listed: dict[int, torch.Tensor], note: Callable[[torch.Tensor, bool], None]
    ) -> None:
        super().__init__()
        self.listed = listed
        self.note = note

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not _asks_about(function):
            parts = list(_parts((args, kwargs)))
            recorded = any(type(part) is RecordingProxy for part in parts)
            for part in parts:
                if id(part) in self.listed:
                    self.note(part, recorded)
        return function(*args, **kwargs)


def _asks_about(function: Any) -> bool:
    """Whether a function asks for the dtype, the size and the like, and for no value."""
    name = getattr(function, "__name__", "")
    if name == "__get__":
        return getattr(function.__self__, "__name__", "") in ATTRIBUTES
    return name in METHODS or name.startswith("new_") or name.endswith("_like")


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        for part in value:
            yield from _parts(part)
    else:
        yield value


def _home(frame: Any) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _is_asked_by_user(frame: Any) -> bool:
    """Whether the code around torch's own is neither torch's nor the tracer's."""
    while frame is not None and _home(frame).startswith("torch"):
        frame = frame.f_back
    return frame is not None and not _home(frame).startswith("repfuse.")
