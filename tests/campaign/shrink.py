"""Make a failing program small: leave out whatever it still fails without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.campaign.cutting import cut
from tests.campaign.program import Body, Program, names_in

__all__ = ["shrink"]

ROUNDS = 20


def shrink(program: Program, fails: Callable[[Program], bool]) -> Program:
    """The smallest program that was found by deletions; `fails` says whether one is as bad."""
    if program.text:
        plain = replace(program, text="")
        if not fails(plain):
            return _cut(program, fails)
        program = plain
    for _ in range(ROUNDS):
        smaller = next((one for one in _smaller(program) if fails(one)), None)
        if smaller is None:
            break
        program = _greedy(smaller, fails)
    return program


def _cut(program: Program, fails: Callable[[Program], bool]) -> Program:
    """Of a program that is only a text."""
    for shape in program.shapes:
        if len(program.shapes) > 1 and fails(smaller := replace(program, shapes=(shape,))):
            program = smaller
    text = cut(program.text, lambda text: fails(replace(program, text=text)))
    return replace(program, text=text)


def _greedy(program: Program, fails: Callable[[Program], bool]) -> Program:
    """One way through, from the last statement to the first."""
    for index in range(len(program.bodies)):
        place = len(program.bodies[index].statements)
        while place:
            place -= 1
            for body in _without(program.bodies[index], place):
                smaller = _with(program, index, body)
                if fails(smaller):
                    program = smaller
                    break
            place = min(place, len(program.bodies[index].statements))
    return program


def _smaller(program: Program) -> Iterator[Program]:
    for shape in program.shapes:
        if len(program.shapes) > 1:
            yield replace(program, shapes=(shape,))
    for index, body in enumerate(program.bodies):
        for value in sorted(names_in([body.result]) - {body.result}):
            yield _with(program, index, replace(body, result=value))
        for place in reversed(range(len(body.statements))):
            for smaller in _without(body, place):
                yield _with(program, index, smaller)
    used = names_in([program.bodies[-1].source()]) | {program.bodies[-1].source()}
    for index, body in enumerate(program.bodies[:-1]):
        if not any(f"{body.name}(" in text for text in used):
            yield replace(program, bodies=program.bodies[:index] + program.bodies[index + 1 :])


def _without(body: Body, place: int) -> Iterator[Body]:
    """A statement left out, with each of the values before it in the place of its own."""
    statement = body.statements[place]
    if not statement.target:
        yield body.without(place)
        return
    later = [str(one) for one in body.statements[place + 1 :]] + [body.result]
    if statement.target not in names_in(later):
        yield body.without(place)
        return
    before = {"x", *(one.target for one in body.statements[:place] if one.target)}
    reads = [name for name in names_in([statement.source]) if name in before]
    for name in sorted(reads) or ["x"]:
        yield body.without(place, name)


def _with(program: Program, index: int, body: Body) -> Program:
    bodies = list(program.bodies)
    bodies[index] = body
    return replace(program, bodies=tuple(bodies))
