"""Look at each function of the model as it starts, for what no object would be asked.

`type(x)`, `a is b`, a pattern of `match` and a caught error are decided without a word to the
values that are recorded. So what a function reads as `type` is replaced before it reads it, and
the few functions that have one of the others are followed step by step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

import torch
from torch.fx.proxy import Proxy

from repfuse.frontends.torch.askers import from_user, instruction_of
from repfuse.frontends.torch.instructions import UNKNOWN, Facts, evaluated_at, facts_of
from repfuse.interruption import undone

__all__ = ["HARMLESS", "followed"]

# What a value that is recorded, or an attribute of it, never is.
SAME = (torch.Tensor, torch.dtype, torch.device, torch.layout, torch.memory_format, bool, int,
        float, str, tuple)  # fmt: skip
HARMLESS = (ImportError, AttributeError, LookupError, StopIteration, GeneratorExit)

IDENTITY = "it asks whether a value is the same object as another one"
PATTERN = "it matches a value with a pattern"
CAUGHT = "it goes on after an error that real tensors may not raise"


@contextmanager
def followed(
    replaced: dict[int, tuple[Any, Any]],
    fault: Callable[[str, Any], None],
    owner: Callable[[], Any],
    guards: list[tuple[Any, Callable[[], bool]]],
) -> Iterator[None]:
    """Follow what the functions of the model do in this thread.

    replaced: (object, what stands for it) by the id of the object, which the functions may know
    by any name. fault: is told what cannot be answered, and for whom. owner: who runs. guards:
    gets an entry for each function that runs and catches errors, (who runs, whether it is inside).
    """
    follower = _Follower(replaced, fault, owner, guards)
    with undone(follower.end):
        follower.begin()
        yield


class _Follower:
    def __init__(self, replaced: Any, fault: Any, owner: Any, guards: Any) -> None:
        self.replaced, self.fault, self.owner, self.guards = replaced, fault, owner, guards
        self.facts: dict[int, tuple[CodeType, Facts | None]] = {}
        self.names: list[tuple[dict[str, Any], str, Any]] = []
        self.frames: dict[FrameType, tuple[Any, Facts]] = {}
        self.profile: Any = sys.getprofile()
        self.trace: Any = sys.gettrace()
        self.by_trace = self.profile is not None and not _is_python(self.profile)

    def begin(self) -> None:
        if self.by_trace:  # somebody's profiler in C cannot be called from here
            sys.settrace(self._starting)
        else:
            sys.setprofile(self._called)

    def end(self) -> None:
        if self.by_trace:
            sys.settrace(self.trace)
        else:
            sys.setprofile(self.profile)
            if self.frames:
                sys.settrace(self.trace)
        for table, name, value in reversed(self.names):
            if value is UNKNOWN:
                table.pop(name, None)
            else:
                table[name] = value
        self.names.clear()
        self.frames.clear()

    def _called(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            self._start(frame)
        if self.profile is not None:
            self.profile(frame, event, argument)

    def _starting(self, frame: FrameType, event: str, argument: Any) -> Any:
        self._start(frame)
        if frame in self.frames:
            return self._followed
        return None if self.trace is None else self.trace(frame, event, argument)

    def _start(self, frame: FrameType) -> None:
        found = self.facts.get(id(frame.f_code))
        if found is None:
            facts = facts_of(frame.f_code) if from_user(frame) else None
            if facts is not None:
                self._replace(frame.f_globals, facts.names)
            found = frame.f_code, facts if facts is not None and facts.tricky else None
            self.facts[id(frame.f_code)] = found
        facts, owner = found[1], self.owner()
        if facts is not None and owner is not None and frame not in self.frames:
            self._follow(frame, facts, owner)

    def _replace(self, table: dict[str, Any], names: tuple[str, ...]) -> None:
        home = table.get("__builtins__", {})
        usual = home if isinstance(home, dict) else vars(home)
        for name in names:
            value = table.get(name, usual.get(name))
            known, other = self.replaced.get(id(value), (UNKNOWN, None))
            if known is value:
                self.names.append((table, name, table.get(name, UNKNOWN)))
                table[name] = other

    def _follow(self, frame: FrameType, facts: Facts, owner: Any) -> None:
        if not self.frames and not self.by_trace:
            self.trace = sys.gettrace()
            sys.settrace(_nothing)
        self.frames[frame] = owner, facts
        frame.f_trace = self._followed
        frame.f_trace_opcodes = bool(facts.tests or facts.patterns)
        if facts.guarded and not any(_is_of(inside, frame) for _, inside in self.guards):
            self.guards.append((owner, _Guard(frame, facts)))

    def _followed(self, frame: FrameType, event: str, argument: Any) -> Any:
        owner, facts = self.frames.get(frame, (None, None))
        if facts is None:
            return None
        if event == "opcode":
            if frame.f_lasti in facts.tests:
                self._compare(frame, owner, facts)
            elif frame.f_lasti in facts.patterns:
                value = evaluated_at(frame, facts.patterns[frame.f_lasti])
                if value is UNKNOWN or issubclass(type(value), Proxy):
                    self.fault(PATTERN, owner)
        elif event == "exception":
            if facts.is_guarded(frame.f_lasti) and not issubclass(argument[0], HARMLESS):
                self.fault(CAUGHT, owner)
        elif event == "return":
            self._leave(frame, instruction_of(frame) == "YIELD_VALUE")
        return self._followed

    def _compare(self, frame: FrameType, owner: Any, facts: Facts) -> None:
        sides = [evaluated_at(frame, operand) for operand in facts.tests[frame.f_lasti]]
        recorded = [side is UNKNOWN or issubclass(type(side), Proxy) for side in sides]
        others = [side for side, is_one in zip(sides, recorded, strict=True) if not is_one]
        if any(recorded) and all(issubclass(type(side), SAME) for side in others):
            self.fault(IDENTITY, owner)

    def _leave(self, frame: FrameType, waits: bool) -> None:
        """waits: the function will go on, and still catches what is raised where it waits."""
        del self.frames[frame]
        if not waits:
            self.guards[:] = [each for each in self.guards if not _is_of(each[1], frame)]
        if not self.frames and not self.by_trace:
            sys.settrace(self.trace)


class _Guard:
    """Whether a function is at a place whose errors it catches."""

    def __init__(self, frame: FrameType, facts: Facts) -> None:
        self.frame, self.facts = frame, facts

    def __call__(self) -> bool:
        return self.facts.is_guarded(self.frame.f_lasti)


def _is_of(inside: Callable[[], bool], frame: FrameType) -> bool:
    return isinstance(inside, _Guard) and inside.frame is frame


def _is_python(function: Any) -> bool:
    return hasattr(function, "__code__")


def _nothing(frame: FrameType, event: str, argument: Any) -> None:
    """Traces no other function."""
