"""Files that appear only when they are finished: written in a folder of their own, then renamed."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from repfuse.errors import RepfuseError
from repfuse.interruption import undone, uninterrupted

__all__ = ["Staging", "staging", "terminable"]

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
        """Put the files in their places, the one that refers to the others last.

        Files that belong together come together: others wait, and where a later one cannot be put
        there, those before it are taken back. Raises OSError then.
        """
        with uninterrupted(), _in_turn(self.folder.parent):
            *others, last = finals
            before: list[tuple[Path, Path | None]] = []
            try:
                for final in others:
                    before.append((final, self._kept(final)))
                    self.path(final).replace(final)
                self.path(last).replace(last)
            except OSError:
                for final, kept in reversed(before):
                    if kept is None:
                        final.unlink(missing_ok=True)
                    else:
                        kept.replace(final)
                raise

    def _kept(self, final: Path) -> Path | None:
        """What is in the place of a file now, by another name; None where there is nothing."""
        kept = self.folder / f"{final.name}.before"
        try:
            os.link(final, kept)
        except FileNotFoundError:
            return None
        except OSError:  # a file system without links
            final.replace(kept)
        return kept


@contextmanager
def staging(folder: Path) -> Iterator[Staging]:
    """A staging folder inside `folder`; nothing of it is left, however the block ends."""
    made: list[str] = []

    def remove() -> None:
        for path in made:
            shutil.rmtree(path, ignore_errors=True)

    with undone(remove):
        try:
            with uninterrupted():
                made.append(tempfile.mkdtemp(prefix=".repfuse-", dir=folder))
        except OSError as error:
            reason = error.strerror or str(error)
            fault = f"{folder} cannot be written: {reason}; choose another OUT"
            raise RepfuseError(fault) from error
        yield Staging(Path(made[0]))


@contextmanager
def _in_turn(folder: Path) -> Iterator[None]:
    """One process at a time, where the system knows locks of folders."""
    handle = None
    with suppress(ImportError, OSError):
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)  # until the handle is closed
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


@contextmanager
def terminable() -> Iterator[None]:
    """A request to terminate, or a closed terminal, cleans up like Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handled(STOPPING, stop):
        yield


@contextmanager
def _handled(
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
