"""Hostile files by name: each case writes what it is about into the folders of a `Place`.

A case returns the arguments of repfuse-onnx where they are not IN and OUT.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from tests.hostile import files, graphs, weights
from tests.hostile.runner import Place

__all__ = ["CASES", "ENDLESS", "Case"]

Case: TypeAlias = Callable[[Place], Sequence[str] | None]

CASES: dict[str, Case] = {**files.CASES, **graphs.CASES, **weights.CASES}

# What has no end, or a very late one, and cannot be told from what has: the command gives up after
# the time that it is allowed.
ENDLESS = {
    "a loop without an end",
    "bomb: a string of repeats",
    "in is a pipe without a writer",
}
