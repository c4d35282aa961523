"""What a node of a trace is to the lowering: a value, pieces of values, a constant, metadata."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from repfuse.graph import Value

__all__ = [
    "CONSTANT",
    "METADATA",
    "Channels",
    "Compound",
    "Constant",
    "Entry",
    "Metadata",
    "Parts",
    "whole",
]


class Constant:
    """A node that depends on parameters only."""


class Metadata:
    """A node that depends on the shape, dtype or device of values, not on their data."""


@dataclass(frozen=True)
class Compound:
    """A node that is read in pieces; whole: its value for anybody who reads it as it is."""

    whole: Value


@dataclass(frozen=True)
class Parts(Compound):
    """Several values in one Python object: a stack along a new axis, or the pieces of a split."""

    values: tuple[Value | None, ...]
    stacked: bool
    axis: int = 0


@dataclass(frozen=True)
class Channels(Compound):
    """The channels of `source` along several axes from axis 1 on: index holds their numbers."""

    source: Value
    index: np.ndarray


Entry: TypeAlias = Value | Compound | Constant | Metadata
CONSTANT, METADATA = Constant(), Metadata()


def whole(entry: Value | Compound) -> Value:
    """The value itself, or the one of which parts are known."""
    return entry.whole if isinstance(entry, Compound) else entry
