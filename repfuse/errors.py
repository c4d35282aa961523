"""The errors that repfuse raises."""

__all__ = ["NotEquivalentError", "RepfuseError"]


class RepfuseError(Exception):
    """The base of every error that repfuse raises: one line on what was given and what would do."""


class NotEquivalentError(RepfuseError, AssertionError):
    """A candidate is further from the float64 answer than rounding explains; carries the table."""
