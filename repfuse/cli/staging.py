"""Files that appear only when they are finished: written in a folder of their own, then renamed."""

from __future__ import annotations

import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from repfuse.errors import RepfuseError

__all__ = ["Staging", "staging", "terminable"]


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
    except OSError as error:
        reason = error.strerror or str(error)
        raise RepfuseError(f"{folder} cannot be written: {reason}; choose another OUT") from error
    try:
        yield Staging(made)
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the block is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pending.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pending:
            raise KeyboardInterrupt


@contextmanager
def terminable() -> Iterator[None]:
    """A request to terminate cleans up like Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
