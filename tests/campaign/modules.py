"""Seeded random modules: linear operators in every spelling, and what stands between them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch

from tests.campaign.control import Control
from tests.campaign.program import Options, Program
from tests.campaign.structure import with_structure
from tests.campaign.writing import CHANNELS

__all__ = ["random_program"]

# The last size is one at which nothing was written.
SIZES: dict[int, tuple[tuple[int, ...], ...]] = {
    0: ((5,), (4,), (7,)),
    1: ((11,), (8,), (15,)),
    2: ((9, 7), (6, 8), (5, 11)),
    3: ((5, 6, 7), (4, 5, 4), (7, 5, 6)),
}
BATCHES = (1, 3, 2)
STATEMENTS = (4, 5, 6, 6, 8, 8, 10, 14)
DTYPES = ("float64",) * 22 + ("float32", "float32", "float16")
PLAIN = 0.35  # of the networks are methods of statements only
TARGETS = ("cpu",) * 6 + ("gpu", "min-ops", "min-macs")


def random_program(dice: random.Random, statements: int = 0) -> Program:
    """A network of about that many statements, and how to fuse it."""
    rank = dice.choice((0, 0, 1, 2, 2, 2, 2, 2, 2, 3))
    channels, sizes = dice.choice(CHANNELS), SIZES[rank]
    if not rank:
        sizes = dice.choice((sizes, sizes, ((), (), ()), SIZES[2]))
    if dice.random() < 0.25:  # constants may then have the size of the image
        sizes = (dice.choice(sizes),) * len(sizes)
    if dice.random() < 0.1:  # a size that is the number of the channels by accident
        sizes = tuple((channels,) * len(size) for size in sizes)
    shapes = tuple(
        (batch, channels, *size) if rank else (batch, *size, channels)
        for batch, size in zip(BATCHES, sizes, strict=True)
    )
    with torch.no_grad():
        inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
        writer = _Network(dice, rank, inputs, [])
        writer.write(statements or dice.choice(STATEMENTS))
        body = writer.body("Net", writer.returned())
    program = Program(
        (*writer.classes, body), shapes, dice.randrange(1 << 30), _options(dice, shapes)
    )
    return program if dice.random() < PLAIN else with_structure(dice, program)


def _options(dice: random.Random, shapes: tuple[tuple[int, ...], ...]) -> Options:
    return Options(
        target=dice.choice(TARGETS),
        shapes=dice.choice(shapes) if dice.random() < 0.2 else None,
        dynamic=dice.random() < 0.15,
        inplace=dice.random() < 0.1,
        dtype=dice.choice(DTYPES),
    )


class _Network(Control):
    """All moves, each with its weight."""

    def moves(self) -> dict[Callable[[], object], float]:
        both: dict[Callable[[], object], float] = {
            self.block: 2.5,
            self.branches: 4,
            self.same: 3,
            self.norm: 2.5,
            self.constant: 2.5,
            self.join: 3,
            self.plain: 1.7,
            self.concat: 1.2,
            self.part: 1.2,
            self.partial: 0.7,
            self.spread: 0.4,
            self.shared: 0.8,
            self.inplace: 0.7,
            self.gate: 0.4,
            self.turns: 0.7,
            self.odd: 0.7,
            self.fork: 0.7,
            self.several: 0.9,
            self.attention: 0.3 if self.rank else 1,
        }
        if not self.rank:
            return both
        return {
            **both,
            self.conv: 2,
            self.strided: 0.8,
            self.shuffle: 0.5,
            self.transposed: 0.8,
            self.pool: 1,
            self.pad: 0.8,
            self.crop: 0.4,
            self.border: 0.4,
            self.computed: 0.9,
            self.gated: 0.5,
            self.into_tokens: 1.2,
            self.out_of_tokens: 0.6,
        }


def example(seed: int) -> Any:
    """The program of one seed."""
    return random_program(random.Random(seed))
