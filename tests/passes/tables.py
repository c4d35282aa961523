"""The two tables of a pass: what it fires on, and what it refuses.

A row of a `fires` table gives facts of the result by name: `padding=((1, 1),)`. The other
facts, and the numbers, are the business of the law, which every row is held to as well.
"""

from __future__ import annotations

from dataclasses import dataclass

from repfuse.operators import Operator
from repfuse.rules import Refusal, Rule
from tests.builders import sealed
from tests.laws import hold


@dataclass(frozen=True)
class Fires:
    rule: Rule
    operators: tuple[Operator, ...]
    facts: dict[str, object]

    def check(self) -> None:
        with sealed():
            result = self.rule(*self.operators)
        assert not isinstance(result, Refusal), result
        assert not any(result is operator for operator in self.operators), "nothing was done"
        assert {name: getattr(result, name) for name in self.facts} == self.facts
        hold(self.rule.form, self.operators, result)


@dataclass(frozen=True)
class Idle:
    """Nothing to do: the answer is the operand at this index."""

    rule: Rule
    operators: tuple[Operator, ...]
    index: int = 0

    def check(self) -> None:
        with sealed():
            result = self.rule(*self.operators)
        assert result is self.operators[self.index], result
        hold(self.rule.form, self.operators, result)


@dataclass(frozen=True)
class Refuses:
    rule: Rule
    operators: tuple[Operator, ...]
    reason: str

    def check(self) -> None:
        with sealed():
            result = self.rule(*self.operators)
        assert result == Refusal(self.rule.name, self.reason)


Row = Fires | Idle | Refuses


def fires(rule: Rule, *operators: Operator, **facts: object) -> Fires:
    return Fires(rule, operators, facts)


def idle(rule: Rule, *operators: Operator, index: int = 0) -> Idle:
    return Idle(rule, operators, index)


def refuses(rule: Rule, *operators: Operator, reason: str) -> Refuses:
    return Refuses(rule, operators, reason)
