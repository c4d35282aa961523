"""The Python around the arithmetic of a random module: methods, blocks, names, containers, state.

A program of today's moves is changed as a syntax tree, a few times. What it computes may become
something else by that; it only has to run.
"""

from __future__ import annotations

import ast
import random
import warnings
from collections.abc import Callable
from dataclasses import replace

import torch

from tests.campaign.gaps import outputs
from tests.campaign.program import Program
from tests.campaign.state import State

__all__ = ["restructured", "with_structure"]


def with_structure(dice: random.Random, program: Program) -> Program:
    """The program, changed as often as it runs at all of its sizes."""
    exact = replace(program, options=replace(program.options, dtype="float64"))
    inputs = program.inputs()

    def runs(text: str) -> bool:
        try:
            model = replace(exact, text=text).build()
            found = [outputs(model, x) for x in inputs]
            tensors = [one for each in found for one in each if isinstance(one, torch.Tensor)]
            return bool(tensors) and all(one.numel() and one.abs().max() < 1e6 for one in tensors)
        except Exception:
            return False

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return replace(program, text=restructured(dice, program.source(), runs))


def restructured(dice: random.Random, source: str, runs: Callable[[str], bool]) -> str:
    """Source code of the same classes, changed in one to six ways; `runs` says what may stay."""
    wanted, done = dice.choice((1, 2, 3, 3, 4, 6)), list[str]()
    for _ in range(3 * wanted):
        if len(done) == wanted:
            break
        changed, name = _changed(dice, source)
        if changed != source and runs(changed):
            source = changed
            done.append(name)
    return source


def _changed(dice: random.Random, source: str) -> tuple[str, str]:
    code = _Structure(ast.parse(source), dice)
    moves = code.moves()
    move = dice.choices(list(moves), list(moves.values()))[0]
    if not move():
        return source, ""
    ast.fix_missing_locations(code.tree)
    return ast.unparse(code.tree) + "\n", move.__name__


class _Structure(State):
    """All changes, each with its weight."""

    def moves(self) -> dict[Callable[[], bool], float]:
        return {
            self.method: 4,
            self.again: 4,
            self.outside: 1.5,
            self.closure: 1,
            self.block: 3,
            self.inherit: 1.2,
            self.beside: 1.5,
            self.twin: 1,
            self.loop: 1.2,
            self.alias: 1.2,
            self.contain: 1.2,
            self.tie: 0.5,
            self.hook: 0.5,
            self.read: 1,
            self.keep: 1,
            self.change: 2.5,
            self.rename: 1.5,
            self.wrap: 1.5,
        }
