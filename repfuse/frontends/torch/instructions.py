"""What the instructions of a function decide without asking the objects they are about.

`a is b` and the patterns of `match` are answered by Python alone, and an error that a handler
catches leaves no trace. Read here is where a function does so, to be looked at when it runs.
"""

from __future__ import annotations

import builtins
import dis
from dataclasses import dataclass
from functools import cache
from types import CodeType, FrameType, ModuleType
from typing import Any

from torch import nn

__all__ = ["UNKNOWN", "Facts", "evaluated_at", "facts_of"]

UNKNOWN = object()
LOADS = ("LOAD_FAST", "LOAD_DEREF", "LOAD_NAME", "LOAD_GLOBAL", "LOAD_CLASSDEREF")
PATTERNS = ("MATCH_SEQUENCE", "MATCH_MAPPING")
Operand = tuple[tuple[str, Any], ...]
NOTHING = (("LOAD_CONST", None),)


@dataclass(frozen=True)
class Facts:
    """names: the global names that are read. tests: the operands of each `is`, by its place, but
    of those with None. patterns: what is matched with a sequence or a dict. guarded: the places,
    from and to, whose errors are caught and not raised again."""

    names: tuple[str, ...]
    tests: dict[int, tuple[Operand, Operand]]
    patterns: dict[int, Operand]
    guarded: tuple[tuple[int, int], ...]

    @property
    def tricky(self) -> bool:
        return bool(self.tests or self.patterns or self.guarded)

    def is_guarded(self, place: int) -> bool:
        return any(begin <= place < end for begin, end in self.guarded)


@cache
def facts_of(code: CodeType) -> Facts:
    steps = [step for step in dis.get_instructions(code) if step.opname != "CACHE"]
    names = {s.argval for s in steps if s.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    tests: dict[int, tuple[Operand, Operand]] = {}
    patterns: dict[int, Operand] = {}
    for index, step in enumerate(steps):
        if step.opname == "IS_OP":
            right = _before(steps, index)
            left = _before(steps, index - len(right)) if right else ()
            if NOTHING not in (left, right):
                tests[step.offset] = left, right
        elif step.opname in PATTERNS:
            last = index - 1 if steps[index - 1].opname == "COPY" else index
            patterns[step.offset] = _before(steps, last)
    return Facts(tuple(sorted(names)), tests, patterns, _guarded(code, steps))


def _before(steps: list[dis.Instruction], index: int) -> Operand:
    """The instructions that make what lies on the stack before the one at the index; none where
    they are not in a row."""
    total, found = 0, list[tuple[str, Any]]()
    for step in reversed(steps[:index]):
        if step.opcode in dis.hasjrel or step.opcode in dis.hasjabs or step.is_jump_target:
            return ()
        total += dis.stack_effect(step.opcode, step.arg)
        found.append((step.opname, step.argval))
        if total == 2 and isinstance(step.argval, tuple) and len(found) == 1:
            return ((step.opname, step.argval[1]),)  # two names at once
        if total == 1:
            return tuple(reversed(found))
        if total > 1:
            return ()
    return ()


def evaluated_at(frame: FrameType, operand: Operand) -> Any:
    """What an operand is when its frame runs, where looking it up runs no code."""
    stack: list[Any] = []
    for name, argument in operand:
        if name == "LOAD_CONST":
            stack.append(argument)
        elif name.startswith(LOADS) and isinstance(argument, str):
            tables = (frame.f_locals, frame.f_globals, vars(builtins))
            stack.append(next((each[argument] for each in tables if argument in each), UNKNOWN))
        elif name == "LOAD_ATTR" and stack:
            stack.append(_attribute(stack.pop(), argument))
        elif name == "BINARY_SUBSCR" and len(stack) > 1:
            key, owner = stack.pop(), stack.pop()
            stack.append(_element(owner, key))
        else:
            return UNKNOWN
    return stack[0] if len(stack) == 1 else UNKNOWN


def _attribute(owner: Any, name: str) -> Any:
    if isinstance(owner, ModuleType | type):
        return getattr(owner, name, UNKNOWN)
    if isinstance(owner, nn.Module):
        tables = (vars(owner), owner._modules, owner._buffers, owner._parameters)
        return next((table[name] for table in tables if name in table), UNKNOWN)
    return getattr(owner, "__dict__", {}).get(name, UNKNOWN)


def _element(owner: Any, key: Any) -> Any:
    known = type(owner) in (tuple, list) or isinstance(owner, nn.ModuleList | nn.Sequential)
    if known and type(key) is int and -len(owner) <= key < len(owner):
        return owner[key]
    return UNKNOWN


def _guarded(code: CodeType, steps: list[dis.Instruction]) -> tuple[tuple[int, int], ...]:
    places = {step.offset: index for index, step in enumerate(steps)}
    entries: Any = getattr(dis.Bytecode(code), "exception_entries", ())
    return tuple(
        (entry.start, entry.end)
        for entry in entries
        if entry.target in places and _goes_on(steps, places, entry.target)
    )


def _goes_on(steps: list[dis.Instruction], places: dict[int, int], target: int) -> bool:
    """Whether a handler may end without an error. What `with` does with one it is told by an
    object."""
    begin = places[target]
    if any(step.opname == "WITH_EXCEPT_START" for step in steps[begin : begin + 3]):
        return False
    todo, seen = [begin], set[int]()
    while todo:
        index = todo.pop()
        if index in seen or index >= len(steps):
            continue
        seen.add(index)
        step = steps[index]
        if step.opname == "POP_EXCEPT":
            if not steps[index + 1].opname.startswith("RERAISE"):
                return True
            continue
        if step.opname.startswith(("RERAISE", "RAISE_VARARGS", "RETURN_")):
            continue
        if step.opcode in dis.hasjrel or step.opcode in dis.hasjabs:
            todo.append(places[step.argval])
        if step.opname not in ("JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT"):
            todo.append(index + 1)
    return False
