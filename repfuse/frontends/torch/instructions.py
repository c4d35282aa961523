"""What the instructions of a function decide without asking the objects they are about.

`a is b` and the patterns of `match` are answered by Python alone, and an error that a handler
catches leaves no trace. Read here is where a function does so, to be looked at when it runs.
"""

from __future__ import annotations

import builtins
import dis
import inspect
from dataclasses import dataclass
from functools import cache
from types import CodeType, FrameType, ModuleType
from typing import Any

from torch import nn

__all__ = ["UNKNOWN", "Facts", "evaluated_at", "facts_of", "is_only_told", "only_tested"]

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


@cache
def is_only_told(code: CodeType, place: int) -> bool:
    """Whether the text that the instruction at a place makes decides nothing.

    It goes, perhaps as a part of a longer one, into a call whose result nobody wants, or into an
    error: it is told to somebody. Or it is the key of a memo: it is looked for in a table, put
    there, and read from there.
    """
    steps = [step for step in dis.get_instructions(code) if step.opname != "CACHE"]
    index = next(index for index, step in enumerate(steps) if step.offset >= place)
    reader = _reader(steps, index)
    while reader is not None:
        step = steps[reader]
        if step.opname in ("POP_TOP", "RAISE_VARARGS"):
            return True
        if step.opname == "STORE_FAST":
            return _is_key(steps, step.argval)
        if step.opname not in JOINS and not step.opname.startswith("CALL"):
            return False
        reader = _reader(steps, reader)
    return False


def only_tested(function: Any) -> frozenset[str]:
    """The parameters of which a function only asks whether they are true."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return frozenset() if code is None else _only_tested(code)


@cache
def _only_tested(code: CodeType) -> frozenset[str]:
    names = set(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    names -= set(code.co_cellvars)
    steps = [step for step in dis.get_instructions(code) if step.opname != "CACHE"]
    for index, step in enumerate(steps):
        used = set(step.argval) if isinstance(step.argval, tuple) else {step.argval}
        for name in names & {each for each in used if isinstance(each, str)}:
            reader = _reader(steps, index) if step.opname.startswith("LOAD_FAST") else None
            tests = reader is not None and step.argval == name and _tests(steps[reader].opname)
            if not tests and step.opname != "LOAD_CONST":
                names.discard(name)
    return frozenset(names)


def _tests(opname: str) -> bool:
    jumps = opname.startswith("POP_JUMP_") and opname.endswith(("IF_TRUE", "IF_FALSE"))
    return jumps or opname in ("UNARY_NOT", "TO_BOOL")


def _is_key(steps: list[dis.Instruction], name: str) -> bool:
    """Whether a local variable only is the key of a memo."""
    readers: set[str] = set()
    for index, step in enumerate(steps):
        if step.argval == name and step.opname.startswith("LOAD_"):
            reader = _reader(steps, index)
            readers.add("" if reader is None else steps[reader].opname)
    return "STORE_SUBSCR" in readers and readers <= {"STORE_SUBSCR", "BINARY_SUBSCR", "CONTAINS_OP"}


def _reader(steps: list[dis.Instruction], index: int) -> int | None:
    """Where what an instruction makes is taken from the stack."""
    above = 0  # how many values lie on it
    for later in range(index + 1, len(steps)):
        step = steps[later]
        if _taken(step) > above:
            return later
        if step.opcode in dis.hasjrel or step.opcode in dis.hasjabs:
            return None
        above += dis.stack_effect(step.opcode, step.arg)
    return None


JOINS = {
    "BUILD_STRING", "BUILD_TUPLE", "BINARY_OP", "FORMAT_VALUE", "FORMAT_WITH_SPEC",
}  # fmt: skip


def _taken(step: dis.Instruction) -> int:
    """How many values an instruction takes from the stack, at most."""
    effect = dis.stack_effect(step.opcode, step.arg)
    if step.opname in ("PRECALL", "KW_NAMES", "NOP", "RESUME", "EXTENDED_ARG"):
        return 0
    if step.opname in ("POP_TOP", "RAISE_VARARGS", "STORE_FAST", "LOAD_ATTR", "LOAD_METHOD"):
        return 1
    if step.opname == "STORE_SUBSCR":
        return 3
    if step.opname in ("COPY", "SWAP"):
        return step.arg or 0
    return 0 if effect > 0 else 1 - effect


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
