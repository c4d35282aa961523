"""Text files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from repfuse.interruption import undone, uninterrupted

__all__ = ["write_whole"]


def write_whole(path: Path, text: str, prefix: str = ".repfuse-") -> None:
    """Write a text beside its place, under a name that begins with `prefix`, then rename it.

    Raises OSError where it cannot be written; what was there stays then, also where the work is
    interrupted, and nothing is left beside it.
    """
    made: list[Path] = []

    def remove() -> None:
        for temporary in made:
            with suppress(OSError):  # it has its own name by now
                temporary.unlink()

    with undone(remove):
        with uninterrupted():
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix)
            made.append(Path(name))
            os.close(handle)
        made[0].write_text(text, "utf-8")
        umask = os.umask(0)
        os.umask(umask)
        made[0].chmod(0o666 & ~umask)
        made[0].replace(path)
