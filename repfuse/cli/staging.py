"""Files that appear only when they are finished: written in a folder of their own, then renamed."""

from __future__ import annotations

import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from repfuse.cli.isolation import remember
from repfuse.errors import RepfuseError

__all__ = ["STOPPING", "Staging", "handled", "staging", "terminable"]

# What ends a process unless it is handled; Windows has no SIGHUP.
STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Staging:
    """A folder beside the final files, so that a rename is all that is left to do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, final: Path) -> Path:
        """Where to write what will be `final`."""
        return self.folder / final.name

    def publish(self, *finals: Path) -> None:
        """Put the files in their places, the one that refers to the others last."""
        with _uninterrupted():
            for final in finals:
                self.path(final).replace(final)


@contextmanager
def staging(folder: Path) -> Iterator[Staging]:
    """A staging folder inside `folder`; nothing of it is left, however the block ends."""
    try:
        made = Path(tempfile.mkdtemp(prefix=".repfuse-", dir=folder))
        remember(made)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RepfuseError(f"{folder} cannot be written: {reason}; choose another OUT") from error
    try:
        yield Staging(made)
    finally:
        with _uninterrupted():
            shutil.rmtree(made, ignore_errors=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C, and what `terminable` makes of it, wait until the block is done."""
    pending: list[int] = []
    with handled((signal.SIGINT, *STOPPING), lambda number, frame: pending.append(number)):
        yield
    if pending:
        raise KeyboardInterrupt


@contextmanager
def terminable() -> Iterator[None]:
    """A request to terminate, or a closed terminal, cleans up like Ctrl-C does; once."""
    numbers = (signal.SIGINT, *STOPPING)

    def stop(number: int, frame: FrameType | None) -> None:
        for other in numbers:  # the same again, from a terminal and from who waits
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt

    with handled(numbers, stop):
        yield


@contextmanager
def handled(
    numbers: Iterable[int], handler: Callable[[int, FrameType | None], object]
) -> Iterator[None]:
    """Handle signals in the block; one that is ignored, as by nohup, stays so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}
    try:
        for number in numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
