"""The forms of a pass and the law that each form keeps.

A pass is a pure function on operators. Its form says what it rewrites:

    alone(a)        f(a)(x)    = a(x)
    chain(a, b)     f(a, b)(x) = b(a(x))
    siblings(a, b)  f(a, b)(x) = a(x) + b(x)
    beside(a, b)    f(a, b)(x) = a(x), asked for because b(x) is added to it
    stacked(a, b)   f(a, b)(x) = concat(a(x), b(x)) along the channels

The parameter annotations are the pattern. A pass answers with another operator (it fired),
with the very object it was given (nothing to do), or, through `require`, with a `Refusal`.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from dataclasses import dataclass

from repfuse.operators import Operator

__all__ = ["Refusal", "Rule", "alone", "beside", "chain", "require", "siblings", "stacked"]


class _Refused(Exception):
    """Carries a reason from a `require` to the rule that contains it."""


@dataclass(frozen=True)
class Refusal:
    """Why a pass leaves its operators alone: present-tense facts with numbers."""

    rule: str
    reason: str


@dataclass(frozen=True)
class Rule:
    """A pass with its form; called with operators that fit its pattern."""

    name: str
    form: str
    patterns: tuple[tuple[type, ...], ...]
    function: Callable[..., Operator]

    def matches(self, *operators: Operator) -> bool:
        if len(operators) != len(self.patterns):
            return False
        for operator, pattern in zip(operators, self.patterns, strict=True):
            if not isinstance(operator, pattern):
                return False
        return True

    def __call__(self, *operators: Operator) -> Operator | Refusal:
        try:
            return self.function(*operators)
        except _Refused as refused:
            return Refusal(self.name, str(refused))


def require(condition: bool, reason: str) -> None:
    """Refuse, with the reason, unless the condition of exactness holds."""
    if not condition:
        raise _Refused(reason)


def _rule(form: str, function: Callable[..., Operator]) -> Rule:
    hints = typing.get_type_hints(function)
    hints.pop("return")
    patterns = tuple(
        typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        for hint in hints.values()
    )
    return Rule(function.__name__, form, patterns, function)


def alone(function: Callable[..., Operator]) -> Rule:
    """One operator written as another."""
    return _rule("alone", function)


def chain(function: Callable[..., Operator]) -> Rule:
    """Two operators in series."""
    return _rule("chain", function)


def siblings(function: Callable[..., Operator]) -> Rule:
    """Two terms of a sum, on the same source."""
    return _rule("siblings", function)


def beside(function: Callable[..., Operator]) -> Rule:
    """One term of a sum, made conformable to another one on the same source."""
    return _rule("beside", function)


def stacked(function: Callable[..., Operator]) -> Rule:
    """Two parts of a concat, on the same source."""
    return _rule("stacked", function)
