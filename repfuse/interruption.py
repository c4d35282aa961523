"""Ctrl-C at any time: what was begun is undone, and short steps are done whole.

Python raises KeyboardInterrupt between any two operations of the main thread, in the middle of a
`finally` as well. So what changes something outside of the call (`undone`) says beforehand how it
is put back, that happens while signals wait (`uninterrupted`), and where an interruption came
before even that, the outermost call (`whole`) sees that something is still open.
"""

from __future__ import annotations

import functools
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, ParamSpec, TypeVar

__all__ = ["interruption", "undone", "uninterrupted", "whole"]

P = ParamSpec("P")
R = TypeVar("R")

# What handlers may raise errors for: Ctrl-C, requests to stop, a timer. Windows lacks some.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK", "SIGALRM", "SIGUSR1", "SIGUSR2")
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals that Python code handles wait until the block is done, and are handled then."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are handled in the main thread alone
        return
    pending: dict[int, None] = {}
    handlers: dict[int, Any] = {}

    def wait(number: int, frame: FrameType | None) -> None:
        pending[number] = None

    try:
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):
                handlers[number] = handler
                signal.signal(number, wait)
        yield
    finally:
        _put_back(handlers)
        for number in pending:
            signal.raise_signal(number)


def _put_back(handlers: dict[int, Any]) -> None:
    """All of them, also where the first raises an error at once."""
    try:
        while handlers:
            number = next(iter(handlers))
            signal.signal(number, handlers[number])
            del handlers[number]
    except BaseException:
        _put_back(handlers)
        raise


class _Open(threading.local):
    """What this thread has changed and not put back yet, the latest last."""

    def __init__(self) -> None:
        self.undos: list[_Undo] = []


class _Undo:
    def __init__(self, undo: Callable[[], object]) -> None:
        self.run = undo


OPEN = _Open()


@contextmanager
def undone(undo: Callable[[], object]) -> Iterator[None]:
    """Undo what the block changes, however it ends.

    undo: may be called before anything was changed, and twice.
    """
    own = _Undo(undo)
    try:
        OPEN.undos.append(own)
        yield
    except BaseException as error:
        if interruption(error) is not None:
            _leave_contexts(error)
        raise
    finally:
        with uninterrupted():
            if own in OPEN.undos:
                _undo(OPEN.undos.index(own))


def _undo(mark: int) -> None:
    """Undo what was changed since then, the latest first."""
    while len(OPEN.undos) > mark:
        OPEN.undos[-1].run()
        OPEN.undos.pop()


def _leave_contexts(error: BaseException) -> None:
    """Contexts that were entered or left by half are left now, and not at some later time."""
    with uninterrupted():
        traceback.clear_frames(error.__traceback__)


def whole(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which leaves nothing open: see above."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        mark, handled = len(OPEN.undos), sys.exception()
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            with uninterrupted():
                stopped = interruption(error, handled)
                if len(OPEN.undos) > mark or stopped is not None:
                    _leave_contexts(error)
                _undo(mark)
            if stopped is not None and stopped is not error:
                raise stopped from None
            raise

    return run


def interruption(
    error: BaseException, handled: BaseException | None = None
) -> BaseException | None:
    """What stopped the program, also where it is what led to another error, of an import, say.

    handled: an error whose handling the program was busy with before.
    """
    found: BaseException | None = error
    while found is not None and found is not handled:
        if not isinstance(found, Exception):
            return found
        found = found.__cause__ or found.__context__
    return None
