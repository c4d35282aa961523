"""Every rule keeps the law of its form, bit by bit, whatever the size of the input.

Weights and inputs are small integers, so that float64 is exact and laws hold with `==`. While
a rule works its weights are sealed: it knows shapes only. Each test counts what it saw, and
fails if one of its rules has hardly fired (`pytest -s tests/test_laws.py` shows the counts).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from repfuse.compiler import Engine
from repfuse.operators import Affine, Conv, Operator
from repfuse.passes import PASSES
from repfuse.rules import Refusal, Rule
from tests.builders import affine, conv, sealed, select
from tests.combinations import branches, chains, parts, ranges_of_channels, series, sums
from tests.laws import hold
from tests.strategies import convs, operators

Answer: TypeAlias = Operator | Refusal | None

FIRINGS = 20
EXAMPLES = {"alone": 1000, "chain": 1500, "siblings": 500, "beside": 900, "stacked": 1200}
DRAWN: dict[str, st.SearchStrategy[tuple[Operator, ...]]] = {
    "alone": operators().map(lambda operator: (operator,)),
    "chain": series(),
    "siblings": branches(),
    "beside": branches(),
    "stacked": st.one_of(branches(), ranges_of_channels()),
}

# What differs from refusal to refusal of one kind: numbers, tuples of them, names of modes.
DETAIL = re.compile(r"\(\) ?|\(*-?\d[-(), \d]*|zeros|reflect|replicate|circular|True|False")

patient = settings(suppress_health_check=[HealthCheck.too_slow])


class Tally:
    """How often each rule fired, had nothing to do, or refused, and why."""

    def __init__(self) -> None:
        self.seen: dict[str, Counter[str]] = defaultdict(Counter)

    def count(
        self, name: str, result: Operator | Refusal | None, terms: tuple[Operator, ...]
    ) -> None:
        if isinstance(result, Refusal):
            answer = "refused: " + DETAIL.sub("…", result.reason)
        elif result is None:
            answer = "not known to any pass"
        else:
            answer = "idle" if any(result is term for term in terms) else "fired"
        self.seen[name][answer] += 1

    def fired(self, name: str) -> int:
        return self.seen[name]["fired"]

    def __str__(self) -> str:
        return "\n".join(
            f"{name:18} {number:6} {what}"
            for name, counter in self.seen.items()
            for what, number in counter.most_common()
        )


def check(rule: Rule, terms: tuple[Operator, ...], tally: Tally) -> None:
    with sealed():
        result = rule(*terms)
    tally.count(rule.name, result, terms)
    if isinstance(result, Refusal):
        return
    if rule.form not in ("alone", "beside"):
        hold(rule.form, terms, result)
    elif result is not terms[0]:
        hold(rule.form, terms, result)
        again = rule(result, *terms[1:]) if rule.matches(result, *terms[1:]) else result
        assert again is result, f"{rule.name} would fire for ever on {terms}"


@pytest.mark.parametrize("form", EXAMPLES)
def test_every_rule_keeps_its_law(form: str) -> None:
    rules = [rule for rule in PASSES if rule.form == form]
    tally = Tally()

    @settings(patient, max_examples=EXAMPLES[form])
    @given(DRAWN[form])
    def try_all(terms: tuple[Operator, ...]) -> None:
        for rule in rules:
            for order in {terms, terms[::-1]} if form in ("siblings", "beside") else {terms}:
                if rule.matches(*order):
                    check(rule, order, tally)

    try_all()
    print(f"\n{tally}")
    for rule in rules:
        assert tally.fired(rule.name) >= FIRINGS, f"{rule.name} has hardly fired:\n{tally}"


def test_all_forms_are_tried() -> None:
    assert {rule.form for rule in PASSES} == set(EXAMPLES)


@pytest.mark.parametrize(
    ("form", "drawn"), [("siblings", sums()), ("chain", chains()), ("stacked", parts())]
)
def test_several_operators_become_one(
    form: str, drawn: st.SearchStrategy[tuple[Operator, ...]]
) -> None:
    """The engine's n-ary composites keep the law of their form."""
    engine, tally = Engine(), Tally()
    join = {"siblings": engine.add, "chain": engine.chain, "stacked": engine.stack}[form]

    @settings(patient, max_examples=250)
    @given(drawn)
    def try_all(terms: tuple[Operator, ...]) -> None:
        with sealed():
            total: Answer = terms[0]
            for term in terms[1:]:
                if total is not None and not isinstance(total, Refusal):
                    total = join(total, term)
        tally.count(form, total, ())
        if total is not None and not isinstance(total, Refusal):
            hold(form, terms, total)
        if form == "siblings":
            refused = not isinstance(total, Conv | Affine)
            assert refused == (not addable(terms)), f"{terms}: {total}"

    try_all()
    print(f"\n{tally}")
    assert tally.fired(form) >= 80, f"hardly any {form} became one operator:\n{tally}"


def addable(terms: tuple[Operator, ...]) -> bool:
    """The exact condition of A3: what must be equal for a sum to be one operator."""
    borders, facts = set(), set()
    skip = next((term for term in terms if isinstance(term, Affine)), None)
    for term in terms:
        if isinstance(term, Conv):
            channels = (term.in_channels, term.out_channels)
            facts.add((term.rank, channels, term.stride, term.slack, term.transposed))
            borders |= {term.border} if term.pads and not term.transposed else set()
    if skip and facts:
        width = (skip.in_channels, skip.out_channels)
        ones, zeros = (1,) * skip.rank, (0,) * skip.rank
        flips = {fact[-1] for fact in facts}
        facts |= {(skip.rank, width, ones, zeros, flip) for flip in flips}
    return len(facts) <= 1 and len(borders) <= 1


@settings(patient, max_examples=300)
@given(convs())
def test_plain_padding(branch: Conv) -> None:
    """What `Engine.plain` gives is what frameworks have, and still the same conv."""
    result = Engine().plain(branch)
    if isinstance(result, Refusal):
        assert branch.border != "zeros"
        return
    assert isinstance(result, Conv)
    for (low, high), stride, dilation in zip(
        result.padding, result.stride, result.dilation, strict=True
    ):
        assert low >= 0
        if branch.transposed:
            assert 0 <= low - high < max(stride, dilation), "no legal output_padding"
        else:
            assert low == high
    hold("alone", (branch,), result)


@pytest.mark.parametrize(
    ("terms", "wrong"),
    [
        ((conv(padding=1),), conv(padding=1, seed=5)),
        ((conv(padding=1),), conv(padding=1, border="replicate")),
        ((conv(4, 4, (2, 3)),), conv(4, 4, (3, 2))),
        ((conv(stride=2),), conv(stride=2, padding=((0, 1), (0, 1)))),
        ((select([0, 1, 2, 3]),), select([1, 0, 2, 3])),
        ((affine(),), affine(seed=1)),
    ],
)
def test_a_broken_law_is_seen(terms: tuple[Operator, ...], wrong: Operator) -> None:
    with pytest.raises(AssertionError):
        hold("alone", terms, wrong)
