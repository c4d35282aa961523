"""Sums of branches with factors that depend on the sample: one conv with a mixed kernel (A17).

    sum_i g_i (W_i * x + b_i)  =  (sum_i g_i W_i) * x + sum_i g_i b_i

A factor is one number per sample, or one per sample and output channel. For one sample both sides
are convs, so that whatever brings branches to one geometry does it here, too: the passes of the
form `beside` work on the operators of the terms, and the factors wait.

Source: Chen et al., "Dynamic Convolution: Attention over Convolution Kernels", CVPR 2020; Yang et
al., "CondConv", NeurIPS 2019.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from repfuse.arrays import Array
from repfuse.graph import describe
from repfuse.operators import Affine, Conv, Gate, Mixed, Operator
from repfuse.rules import Refusal

if TYPE_CHECKING:
    from repfuse.compiler import Engine

__all__ = ["PASS", "Recipe", "add", "aligned", "chain", "gated", "gates_of", "recipe_of"]

PASS = "mix_kernels"
# What convs must have in common so that their kernels add up.
GEOMETRY = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups",
    "border",
)  # fmt: skip
Terms = tuple[tuple[Gate | None, Operator], ...]


def gated(operator: Operator, gate: Gate) -> Mixed:
    """The operator times a factor."""
    return Mixed(((gate, operator),), operator)


def add(engine: Engine, left: Operator, right: Operator) -> Operator | Refusal | None:
    """The terms of both; those with the same factor, or with none, are added."""
    terms = list(_terms(left))
    for gate, operator in _terms(right):
        place = next((i for i, (other, _) in enumerate(terms) if gate == other), None)
        if place is None:
            terms.append((gate, operator))
            continue
        total = engine.add(terms[place][1], operator)
        if total is None or isinstance(total, Refusal):
            return total
        terms[place] = (gate, total)
    return _mixed(engine, tuple(terms))


def chain(engine: Engine, first: Operator, second: Operator) -> Operator | Refusal | None:
    """second(first(x)), where first has factors: these commute with all that is linear.

    What second adds for itself (a shift, a bias) has no factor.
    """
    if not isinstance(first, Mixed) or not isinstance(second, Affine | Conv):
        return None
    if isinstance(second, Conv) and first.per_channel:
        return Refusal(PASS, "the factors differ from channel to channel, which a conv mixes")
    zeros = Array.full((second.out_channels,), 0.0)
    shift = second.shift if isinstance(second, Affine) else second.bias
    linear = (
        replace(second, shift=zeros) if isinstance(second, Affine) else replace(second, bias=zeros)
    )
    terms: list[tuple[Gate | None, Operator]] = []
    for gate, operator in first.terms:
        result = engine.chain(operator, linear)
        if result is None or isinstance(result, Refusal):
            return result
        terms.append((gate, result))
    if shift.is_zero:
        return _mixed(engine, tuple(terms))
    place = next((i for i, (gate, _) in enumerate(terms) if gate is None), None)
    scale = Array.full((second.out_channels,), 0.0 if place is None else 1.0)
    moved = engine.chain(terms[place or 0][1], Affine(scale, shift, second.rank))
    if moved is None or isinstance(moved, Refusal):
        return moved
    if place is None:
        terms.append((None, moved))
    else:
        terms[place] = (None, moved)
    return _mixed(engine, tuple(terms))


def aligned(engine: Engine, mixed: Mixed) -> Mixed | Refusal:
    """The terms as convs of one geometry that the framework has."""
    together = engine.as_conv(mixed.together)
    if not isinstance(together, Conv):
        return Refusal(PASS, "no branch is a conv")
    if together.transposed or not together.rank:
        kind = "a transposed conv" if together.transposed else "a Linear"
        return Refusal(PASS, f"{kind} is not run with another kernel for each sample")
    target = engine.plain(together)
    if not isinstance(target, Conv):
        return target if isinstance(target, Refusal) else Refusal(PASS, "no branch is a conv")
    terms = []
    for gate, operator in mixed.terms:
        pair = engine.conform(operator, target)
        if isinstance(pair, Refusal):
            return pair
        if not isinstance(pair[0], Conv):
            kind = describe(pair[0])
            return Refusal(PASS, f"{kind} is not run with another kernel for each sample")
        for name in GEOMETRY:
            mine, theirs = getattr(pair[0], name), getattr(target, name)
            if mine != theirs:
                return Refusal(PASS, f"{name} differs: {mine} against {theirs}")
        terms.append((gate, pair[0]))
    return Mixed(tuple(terms), target)


@dataclass(frozen=True)
class Recipe:
    """How a mixed kernel is computed: the convs in the order of their gates, and what has none.

    base: the value that holds all factors in this order, where there is one.
    """

    gates: tuple[Gate, ...]
    convs: tuple[Conv, ...]
    constant: Conv | None
    base: int | None

    @property
    def width(self) -> int:
        """Factors per sample and branch."""
        return max(gate.channels for gate in self.gates)

    @property
    def has_bias(self) -> bool:
        constant = self.constant is not None and self.constant.has_bias
        return constant or any(conv.has_bias for conv in self.convs)


def recipe_of(mixed: Mixed) -> Recipe:
    """The recipe of aligned terms."""
    gates, base = gates_of(mixed)
    convs: dict[Gate | None, Conv] = {}
    for gate, operator in mixed.terms:
        assert isinstance(operator, Conv)
        convs[gate] = operator
    return Recipe(gates, tuple(convs[gate] for gate in gates), convs.get(None), base)


def gates_of(mixed: Mixed) -> tuple[tuple[Gate, ...], int | None]:
    """The gates in the order of the stacked kernels, and the value that holds all of them."""
    gates = sorted(mixed.gates, key=lambda gate: gate.index)
    first = gates[0]
    alike = {(gate.base, gate.channels) for gate in gates} == {(first.base, first.channels)}
    whole = [gate.index for gate in gates] == list(range(first.pieces))
    return tuple(gates), first.base if alike and whole else None


def _terms(operator: Operator) -> Terms:
    return operator.terms if isinstance(operator, Mixed) else ((None, operator),)


def _mixed(engine: Engine, terms: Terms) -> Mixed | Refusal | None:
    together: Operator | Refusal | None = terms[0][1]
    for _, operator in terms[1:]:
        if together is None or isinstance(together, Refusal):
            return together
        together = engine.add(together, operator)
    if together is None or isinstance(together, Refusal):
        return together
    return Mixed(terms, together)
