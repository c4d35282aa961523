"""What may go wrong while a rewrite is written."""

from __future__ import annotations

__all__ = ["CannotEmit"]


class CannotEmit(Exception):
    """The recorded method uses something that cannot be written as code."""
