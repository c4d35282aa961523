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
from typing import TypeAlias

import torch

from tests.campaign.gaps import outputs
from tests.campaign.program import Program
from tests.campaign.state import State
from tests.swarm import preferring

__all__ = ["restructured", "with_structure"]


Move: TypeAlias = Callable[[State], bool]
# All changes, each with its weight.
WEIGHTS: dict[Move, float] = {
    State.method: 4,
    State.again: 4,
    State.outside: 1.5,
    State.closure: 1,
    State.block: 3,
    State.inherit: 1.2,
    State.beside: 1.5,
    State.twin: 1,
    State.loop: 1.2,
    State.alias: 1.2,
    State.contain: 1.2,
    State.tie: 0.5,
    State.hook: 0.5,
    State.read: 1,
    State.keep: 1,
    State.change: 2.5,
    State.rename: 1.5,
    State.wrap: 1.5,
}


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
        # Where it is put then depends on how its memory happens to be laid out.
        warnings.filterwarnings("error", "An output with one or more elements was resized")
        return replace(program, text=restructured(dice, program.source(), runs))


def restructured(dice: random.Random, source: str, runs: Callable[[str], bool]) -> str:
    """Source code of the same classes, changed in one to six ways; `runs` says what may stay."""
    wanted, done = dice.choice((1, 2, 3, 3, 4, 6)), list[str]()
    weights = preferring(dice, WEIGHTS)
    for _ in range(3 * wanted):
        if len(done) == wanted:
            break
        changed, name = _changed(dice, source, weights)
        if changed != source and runs(changed):
            source = changed
            done.append(name)
    return source


def _changed(dice: random.Random, source: str, weights: dict[Move, float]) -> tuple[str, str]:
    code = State(ast.parse(source), dice)
    (move,) = dice.choices(list(weights), list(weights.values()))
    if not move(code):
        return source, ""
    ast.fix_missing_locations(code.tree)
    return ast.unparse(code.tree) + "\n", move.__name__
