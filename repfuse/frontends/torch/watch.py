"""What traced code does besides computing: it enters modes and asks for them.

A mode that is on already leaves no trace, and the answer to `torch.is_grad_enabled()` is another
one when the model is used. Both are noticed here, so that such a method is not written again. What
is replaced for that is replaced for all threads, and does what it always did in the other ones.
"""

from __future__ import annotations

import builtins
import contextlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import nn

from repfuse.frontends.torch.alone import MODES, QUESTIONS, usual_methods
from repfuse.frontends.torch.answers import Answers
from repfuse.frontends.torch.askers import from_torch
from repfuse.frontends.torch.calls import is_leaf
from repfuse.frontends.torch.proxies import RecordingAttribute, RecordingProxy

__all__ = ["ELSEWHERE", "attribute_reads", "suppressed", "watched"]

ELSEWHERE = "the method computes in a thread of its own"
KEPT = ("training", "forward")
NEVER = ("is_fx_tracing", "is_fx_symbolic_tracing")  # but in the trace that asks
PASSES_ON = ("torch.jit", "torch._jit_internal")  # torch.jit.isinstance
RECORDED = (RecordingProxy, RecordingAttribute)
Replaced = dict[int, tuple[Any, Any]]


@contextmanager
def watched(
    freeze: Callable[[str], None], ask: Callable[[str], None], replaced: Replaced
) -> Iterator[None]:
    """Call `freeze` with a reason whenever user code enters a mode, `ask` when it asks for one.

    replaced: gets the functions that answer, and what stands for them meanwhile.
    """
    enters = [(mode, mode.__enter__) for mode in MODES]
    asks = [(owner, name, getattr(owner, name)) for owner, name in QUESTIONS]
    try:
        for mode, enter in enters:
            mode.__enter__ = _entering(enter, freeze)
        for owner, name, function in asks:
            asking = _asking(name, function, ask)
            setattr(owner, name, asking)
            replaced[id(function)] = function, asking
        yield
    finally:
        for mode, enter in enters:
            mode.__enter__ = enter
        for owner, name, function in asks:
            setattr(owner, name, function)


def _entering(enter: Callable[..., Any], freeze: Callable[[str], None]) -> Callable[..., Any]:
    owner = get_ident()

    def run(self: Any) -> Any:
        if get_ident() == owner:
            freeze("the method enters a grad or autocast mode")
        return enter(self)

    return run


def _asking(
    name: str, function: Callable[..., Any], ask: Callable[[str], None]
) -> Callable[..., Any]:
    owner = get_ident()

    def run(*args: Any, **kwargs: Any) -> Any:
        if get_ident() == owner and not from_torch(sys._getframe(1)):
            ask(f"the method asks {name}")
            if name in NEVER:
                return False
        return function(*args, **kwargs)

    return run


@contextmanager
def suppressed(
    owner: Callable[[], Any],
    guards: list[tuple[Any, Callable[[], bool]]],
    fault: Callable[[str, Any], None],
    harmless: tuple[type[BaseException], ...],
    reason: str,
) -> Iterator[None]:
    """Note where user code lets errors pass, by contextlib.suppress: see starts.followed."""
    kind: Any = contextlib.suppress
    enter, leave, thread = kind.__enter__, kind.__exit__, get_ident()
    inside: dict[int, tuple[Any, Callable[[], bool]]] = {}

    def entering(self: Any) -> Any:
        who = owner() if get_ident() == thread and not from_torch(sys._getframe(1)) else None
        if who is not None:
            inside[id(self)] = who, lambda: True
            guards.append(inside[id(self)])
        return enter(self)

    def leaving(self: Any, error: Any, *rest: Any) -> Any:
        passes = leave(self, error, *rest)
        entry = inside.pop(id(self), None) if get_ident() == thread else None
        if entry is not None:
            guards[:] = [each for each in guards if each is not entry]
            if passes and not issubclass(error, harmless):
                fault(reason, entry[0])
        return passes

    try:
        kind.__enter__, kind.__exit__ = entering, leaving
        yield
    finally:
        kind.__enter__, kind.__exit__ = enter, leave


@contextmanager
def attribute_reads(
    model: nn.Module,
    note: Callable[[nn.Module, str, Any], None],
    answers: Answers,
    replaced: Replaced,
) -> Iterator[None]:
    """Call `note` for every attribute of a layer that user code looks up, and let `answers` say
    what kind of value a recorded one is.

    The plain attributes of torch's layers are put aside, so that Python asks `__getattr__`, which
    torch.fx has replaced already. isinstance and callable are replaced to see who asks for the
    type of a layer or of a value. replaced: see `watched`.
    """
    hidden: dict[int, dict[str, Any]] = {}
    aside: list[tuple[nn.Module, dict[str, Any]]] = []  # all attributes, in their order
    layers, kinds = set[int](), set[type]()
    for module in model.modules():
        leaf = is_leaf(module)
        if leaf or isinstance(module, nn.modules.batchnorm._BatchNorm):  # it may be swapped
            layers.add(id(module))
            kinds.add(type(module))
        if leaf and not isinstance(module, torch.jit.ScriptModule):
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

    is_instance: Callable[[Any, Any], bool] = isinstance
    is_callable: Callable[[Any], bool] = callable

    def asking(thing: Any, kind: Any) -> bool:
        if get_ident() != owner:
            return is_instance(thing, kind)
        if type(thing) in RECORDED and _is_asked_by_user(sys._getframe(1)):
            return is_instance(answers.like(thing), kind)
        if type(thing) in kinds and id(thing) in layers and not from_torch(sys._getframe(1)):
            note(thing, "__class__", None)
        return is_instance(thing, kind)

    def asking_callable(thing: Any) -> bool:
        known = type(thing) in RECORDED and get_ident() == owner
        if known and _is_asked_by_user(sys._getframe(1)):
            return is_callable(answers.like(thing))
        return is_callable(thing)

    for function, other in (
        (is_instance, asking), (is_callable, asking_callable), (type, answers.type_of(owner)),
    ):  # fmt: skip
        replaced[id(function)] = function, other
    try:
        nn.Module.__call__ = calling  # type: ignore[method-assign]
        nn.Module.__getattr__ = watching  # type: ignore[method-assign]
        builtins.isinstance = asking
        builtins.callable = asking_callable  # type: ignore[assignment]
        yield
    finally:
        if nn.Module.__call__ is calling:  # else it was interrupted, and is put back already
            builtins.isinstance = is_instance
            builtins.callable = is_callable  # type: ignore[assignment]
            nn.Module.__getattr__ = lookup  # type: ignore[method-assign]
            nn.Module.__call__ = call  # type: ignore[method-assign]
        for module, attributes in aside:
            now, own = dict(vars(module)), hidden[id(module)]
            same = len(now) + len(own) == len(attributes) and all(
                name not in own and attributes.get(name, now) is value
                for name, value in now.items()
            )
            put_back = attributes if same else {
                name: now.get(name, value)
                for name, value in attributes.items()
                if name in now or name in own
            } | now  # fmt: skip
            vars(module).clear()
            vars(module).update(put_back)


def _is_asked_by_user(frame: Any) -> bool:
    """Whether user code asks by itself, or by a function of torch that only passes it on."""
    while frame is not None and (
        frame.f_code is torch.is_tensor.__code__ or frame.f_globals.get("__name__") in PASSES_ON
    ):
        frame = frame.f_back
    return frame is not None and not from_torch(frame)
