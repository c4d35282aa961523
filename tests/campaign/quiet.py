"""Nothing on the terminal from code that prints below Python, as the exporter does."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

__all__ = ["quiet"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What is written to the process's standard output meanwhile is lost."""
    sys.stdout.flush()
    kept = os.dup(1)
    with tempfile.TemporaryFile() as lost:
        os.dup2(lost.fileno(), 1)
        try:
            yield
        finally:
            sys.stdout.flush()
            os.dup2(kept, 1)
            os.close(kept)
