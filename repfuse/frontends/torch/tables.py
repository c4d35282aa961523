"""Parameters, buffers and modules that traced code gets from a table: parameters(), state_dict(),
_buffers, children().

torch.fx sees `self.weight`. Who lists the parameters of a module gets the tensors themselves, and
what is computed from them is a number of the moment of the trace. Mostly that is the dtype or
device of the first one; a tensor of which more is asked is no constant, nor are those of a table
that was listed to its end: somebody may count them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from repfuse.frontends.torch.calls import LISTS, is_leaf
from repfuse.frontends.torch.proxies import RecordingProxy
from repfuse.frontends.torch.snapshot import is_same_table

__all__ = ["listed_tensors"]

ATTRIBUTES = {
    "device", "dtype", "is_cpu", "is_cuda", "is_leaf", "is_meta", "is_sparse", "itemsize",
    "layout", "requires_grad",
}  # fmt: skip
STAYS = {"is_leaf", "is_sparse", "layout", "requires_grad"}  # wherever a model is moved to
METHODS = {"element_size", "get_device", "is_complex", "is_floating_point"}


@contextmanager
def listed_tensors(
    model: nn.Module,
    listed: dict[int, torch.Tensor],
    note: Callable[[torch.Tensor, bool], None],
    note_modules: Callable[[nn.Module], None],
    note_kind: Callable[[], None],
) -> Iterator[None]:
    """Fill `listed` with what user code takes from a table, and call `note` when it is used.

    The second argument of note: whether a recorded operation reads it, and not Python itself.
    note_modules: called with every module whose children user code lists. note_kind: called when
    it asks one of the tensors for its dtype or device, which may be another one later.
    """
    with ExitStack() as stack:

        def hand_out(tensors: list[Any]) -> None:
            if not listed:
                stack.enter_context(_Uses(listed, note, note_kind))
            listed.update((id(tensor), tensor) for tensor in tensors if tensor is not None)

        def counted(tensors: list[Any]) -> None:
            for tensor in tensors:
                if tensor is not None:
                    note(tensor, False)

        tables: list[tuple[dict[str, Any], str, dict[str, Any]]] = []
        for module in model.modules():
            for name in ("_parameters", "_buffers"):
                table = vars(module)[name]
                if table and type(table) is dict:
                    tables.append((vars(module), name, table))
                    vars(module)[name] = _Table(table, hand_out, counted)
            table = vars(module)["_modules"]
            if not is_leaf(module) and type(module).forward not in LISTS and type(table) is dict:
                tables.append((vars(module), "_modules", table))
                vars(module)["_modules"] = _Children(table, partial(note_modules, module))
        try:
            yield
        finally:
            for attributes, name, table in tables:
                now = attributes[name]
                if type(now) in (_Table, _Children):
                    attributes[name] = table
                    items = tuple(dict.items(now))
                    if not is_same_table(table, items):
                        table.clear()
                        table.update(items)


class _Table(dict[str, Any]):
    """A table of tensors that tells what user code takes out of it."""

    def __init__(
        self,
        table: dict[str, Any],
        hand_out: Callable[[list[Any]], None],
        counted: Callable[[list[Any]], None],
    ) -> None:
        super().__init__(table)
        self._hand_out = hand_out
        self._counted = counted

    def __getitem__(self, name: str) -> Any:
        return self._one(super().__getitem__(name))

    def get(self, name: str, default: Any = None) -> Any:
        return self._one(super().get(name, default))

    def _one(self, value: Any) -> Any:
        if not _home(sys._getframe(2)).startswith(("torch", "repfuse.")):
            self._hand_out([value])
        return value

    def _listed(self, view: Any) -> Any:
        if not _is_asked_by_user(sys._getframe(2)):
            return view
        tensors = list(super().values())
        self._hand_out(tensors)
        return _View(view, lambda: self._counted(tensors))

    def items(self) -> Any:
        return self._listed(super().items())

    def values(self) -> Any:
        return self._listed(super().values())

    def keys(self) -> Any:
        return self._listed(super().keys())

    def __iter__(self) -> Iterator[str]:
        return iter(self._listed(super().keys()))

    def __len__(self) -> int:
        return len(self._listed(super().keys()))

    def copy(self) -> dict[str, Any]:
        return dict(self.items())


class _View:
    """A view of a table that tells when it was listed to its end, or counted."""

    def __init__(self, view: Any, counted: Callable[[], None]) -> None:
        self.view = view
        self.counted = counted

    def __len__(self) -> int:
        self.counted()
        return len(self.view)

    def __iter__(self) -> Iterator[Any]:
        yield from self.view
        self.counted()

    def __contains__(self, part: Any) -> bool:
        return part in self.view


class _Children(dict[str, Any]):
    """The table of a module's children; tells when user code lists or counts them."""

    def __init__(self, table: dict[str, Any], note: Callable[[], None]) -> None:
        super().__init__(table)
        self._note = note

    def _listed(self) -> _Children:
        if _is_asked_by_user(sys._getframe(2)):
            self._note()
        return self

    def items(self) -> Any:
        return dict.items(self._listed())

    def values(self) -> Any:
        return dict.values(self._listed())

    def keys(self) -> Any:
        return dict.keys(self._listed())

    def __iter__(self) -> Iterator[str]:
        return dict.__iter__(self._listed())

    def __len__(self) -> int:
        return dict.__len__(self._listed())

    def __reduce__(self) -> Any:
        """A copy is a plain table: not of the tracer, nor of all that is around the module."""
        return dict, (tuple(dict.items(self)),)


class _Uses(TorchFunctionMode):
    """Notes what is computed from the listed tensors."""

    def __init__(
        self,
        listed: dict[int, torch.Tensor],
        note: Callable[[torch.Tensor, bool], None],
        note_kind: Callable[[], None],
    ) -> None:
        super().__init__()
        self.listed = listed
        self.note, self.note_kind = note, note_kind

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        parts = list(_parts((args, kwargs)))
        if _asks_about(function):
            if _name(function) not in STAYS and any(id(part) in self.listed for part in parts):
                self.note_kind()
        else:
            recorded = any(type(part) is RecordingProxy for part in parts)
            for part in parts:
                if id(part) in self.listed:
                    self.note(part, recorded)
        return function(*args, **kwargs)


def _asks_about(function: Any) -> bool:
    """Whether a function asks for the dtype, the device and the like, which no merge changes."""
    name = _name(function)
    return name in ATTRIBUTES or name in METHODS or name.startswith("new_")


def _name(function: Any) -> str:
    """Of a method, or of the attribute that it gets."""
    name = str(getattr(function, "__name__", ""))
    return str(getattr(function.__self__, "__name__", "")) if name == "__get__" else name


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
