"""Random tests that each prefer some of their moves, so that rare ones meet one another.

Where every test draws all moves with the same weights, two rare ones nearly never come together;
see Groce, Zhang, Eide, Chen, Regehr, Swarm Testing (ISSTA 2012).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

__all__ = ["preferring"]

PREFERRED, TIMES = 3, 5.0  # how many moves, and how often they come instead of once
M = TypeVar("M", bound=Callable[..., Any])


def preferring(dice: random.Random, moves: Mapping[M, float]) -> dict[M, float]:
    """The moves with their weights; in every second test some have a larger one."""
    weights = dict(moves)
    if dice.random() < 0.5:
        for move in dice.sample(list(moves), PREFERRED):
            weights[move] *= TIMES
    return weights
