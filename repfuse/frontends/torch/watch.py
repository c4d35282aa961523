"""What traced code does besides computing: it enters modes and asks for them.

A mode that is on already leaves no trace, and the answer to `torch.is_grad_enabled()` is another
one when the model is used. Both are noticed here, so that such a method is not written again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["from_torch", "watched"]

MODES: tuple[Any, ...] = (
    torch.no_grad, torch.enable_grad, torch.set_grad_enabled, torch.inference_mode, torch.autocast,
)  # fmt: skip
QUESTIONS = ("is_grad_enabled", "is_inference_mode_enabled", "is_autocast_enabled")


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
    def run(self: Any) -> Any:
        freeze("the method enters a grad or autocast mode")
        return enter(self)

    return run


def _asking(
    name: str, function: Callable[..., Any], freeze: Callable[[str], None]
) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not from_torch(sys._getframe(1)):
            freeze(f"the method asks {name}")
        return function(*args, **kwargs)

    return run


def from_torch(frame: Any) -> bool:
    """Whether a frame belongs to torch or to this tracer."""
    home = str(frame.f_globals.get("__name__", ""))
    return home.startswith(("torch.", "repfuse.")) or home == "torch"
