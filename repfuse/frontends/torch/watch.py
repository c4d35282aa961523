"""What traced code does besides computing: it enters modes and asks for them.

A mode that is on already leaves no trace, and the answer to `torch.is_grad_enabled()` is another
one when the model is used. Both are noticed here, so that such a method is not written again. What
is replaced for that is replaced for all threads, and does what it always did in the other ones.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import fx, nn

from repfuse.frontends.torch.alone import MODES, QUESTIONS, usual_methods
from repfuse.frontends.torch.calls import is_leaf
from repfuse.frontends.torch.proxies import RecordingProxy

__all__ = ["ELSEWHERE", "attribute_reads", "from_torch", "watched"]

ELSEWHERE = "the method computes in a thread of its own"
TENSOR = torch.empty(0)
KEPT = ("training", "forward")


@contextmanager
def watched(freeze: Callable[[str], None]) -> Iterator[None]:
    """Call `freeze` with a reason whenever user code enters a mode or asks for one."""
    enters = [(mode, mode.__enter__) for mode in MODES]
    asks = [(name, getattr(torch, name)) for name in QUESTIONS]
    try:
        for mode, enter in enters:
            mode.__enter__ = _entering(enter, freeze)
        for name, function in asks:
            setattr(torch, name, _asking(name, function, freeze))
        yield
    finally:
        for mode, enter in enters:
            mode.__enter__ = enter
        for name, function in asks:
            setattr(torch, name, function)


def _entering(enter: Callable[..., Any], freeze: Callable[[str], None]) -> Callable[..., Any]:
    owner = get_ident()

    def run(self: Any) -> Any:
        if get_ident() == owner:
            freeze("the method enters a grad or autocast mode")
        return enter(self)

    return run


def _asking(
    name: str, function: Callable[..., Any], freeze: Callable[[str], None]
) -> Callable[..., Any]:
    owner = get_ident()

    def run(*args: Any, **kwargs: Any) -> Any:
        if get_ident() == owner and not from_torch(sys._getframe(1)):
            freeze(f"the method asks {name}")
        return function(*args, **kwargs)

    return run


@contextmanager
def attribute_reads(
    model: nn.Module,
    note: Callable[[nn.Module, str, Any], None],
    ask: Callable[[fx.Node], None],
) -> Iterator[None]:
    """Call `note` for every attribute of a layer that user code looks up, `ask` for every value
    whose type it asks for.

    The plain attributes of torch's layers are put aside, so that Python asks `__getattr__`, which
    torch.fx has replaced already. isinstance is replaced to see who asks for the type of a layer
    or of a value, which it calls a tensor.
    """
    hidden: dict[int, dict[str, Any]] = {}
    aside: list[tuple[nn.Module, dict[str, Any]]] = []  # all attributes, in their order
    for module in model.modules():
        if is_leaf(module) and not isinstance(module, torch.jit.ScriptModule):
            table = vars(module)
            names = [name for name in table if not name.startswith("_") and name not in KEPT]
            aside.append((module, dict(table)))
            hidden[id(module)] = {name: table.pop(name) for name in names}
    lookup, call, owner = nn.Module.__getattr__, nn.Module.__call__, get_ident()
    usual_call, usual_lookup = usual_methods()
    traced = {id(module) for module in model.modules()}

    def watching(self: nn.Module, name: str) -> Any:
        if get_ident() != owner:
            return usual_lookup(self, name)
        own = hidden.get(id(self))
        if own is None:
            return lookup(self, name)
        value = own[name] if name in own else lookup(self, name)
        note(self, name, value)
        return value

    def calling(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if get_ident() == owner:
            return call(self, *args, **kwargs)
        if id(self) in traced:
            raise NotImplementedError(ELSEWHERE)
        return usual_call(self, *args, **kwargs)

    layers = {id(module) for module in model.modules() if _may_be_swapped(module)}
    kinds = {type(module) for module in model.modules() if id(module) in layers}
    is_instance = isinstance

    def asking(thing: Any, kind: Any) -> bool:
        if get_ident() != owner:
            return is_instance(thing, kind)
        if type(thing) is RecordingProxy and _is_asked_by_user(sys._getframe(1)):
            ask(thing.node)
            return is_instance(TENSOR, kind) or is_instance(thing, kind)
        if type(thing) in kinds and id(thing) in layers and not from_torch(sys._getframe(1)):
            note(thing, "__class__", None)
        return is_instance(thing, kind)

    try:
        nn.Module.__call__ = calling  # type: ignore[method-assign]
        nn.Module.__getattr__ = watching  # type: ignore[method-assign]
        builtins.isinstance = asking
        yield
    finally:
        if nn.Module.__call__ is calling:  # else it was interrupted, and is put back already
            builtins.isinstance = is_instance
            nn.Module.__getattr__ = lookup  # type: ignore[method-assign]
            nn.Module.__call__ = call  # type: ignore[method-assign]
        for module, attributes in aside:
            now = dict(vars(module))
            put_back = {
                name: now.get(name, value)
                for name, value in attributes.items()
                if name in now or name in hidden[id(module)]
            }
            vars(module).clear()
            vars(module).update(put_back | now)


def _may_be_swapped(module: nn.Module) -> bool:
    return is_leaf(module) or isinstance(module, nn.modules.batchnorm._BatchNorm)


def _is_asked_by_user(frame: Any) -> bool:
    by_name = frame.f_code is torch.is_tensor.__code__
    return not from_torch(frame.f_back if by_name else frame)


def from_torch(frame: Any) -> bool:
    """Whether a frame belongs to torch or to this tracer."""
    home = str(frame.f_globals.get("__name__", ""))
    return home.startswith(("torch.", "repfuse.")) or home == "torch"
