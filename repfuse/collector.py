"""Python's garbage collector, paused while much is made that lives on."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from repfuse.interruption import undone, uninterrupted

__all__ = ["collector_paused"]


class _Pauses:
    """Who wants no collection, in whatever thread: the first turns it off, the last on again."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.wanted: list[object] = []
        self.was_enabled = False

    def begin(self, pause: object) -> None:
        with uninterrupted(), self.lock:
            if not self.wanted:
                self.was_enabled = gc.isenabled()
            self.wanted.append(pause)
            gc.disable()

    def end(self, pause: object) -> None:
        with uninterrupted(), self.lock:
            if pause in self.wanted:
                self.wanted.remove(pause)
                if self.was_enabled and not self.wanted:
                    gc.enable()


PAUSES = _Pauses()


@contextmanager
def collector_paused() -> Iterator[None]:
    """No garbage collection: planning makes many objects that live on, and little garbage."""
    pause = object()
    with undone(lambda: PAUSES.end(pause)):
        PAUSES.begin(pause)
        yield
