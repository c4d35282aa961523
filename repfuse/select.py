"""The cheapest graph that still yields every value that must exist.

Values that opaque nodes read are anchors. Everything between them is chosen: the original
node, one operator from an ancestor, or, for a sum, a partition of its terms into merged
groups. Shared values count once: after a first choice that treats every anchor by itself,
each value with several readers is tried as one more anchor and kept where that is cheaper; then
each of those is left out again, since what was added after it may have made it needless.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations

from repfuse.compiler import Alternatives
from repfuse.cost import CPU, EXACTLY, MARGIN, Cost, Target
from repfuse.graph import Graph, Sum, Value
from repfuse.operators import Affine, Conv, Mixed, Operator, Pad, Pool
from repfuse.rules import Refusal

__all__ = ["Choice", "Selection", "Term", "in_groups", "is_skip", "select"]

EXACT_TERMS = 6
TRIALS = 64
SETTLING = 8
SAVING = 1000.0
SKIP = Cost(launches=1)  # a node that only gives another name


@dataclass(frozen=True)
class Term:
    """One operator applied to one value."""

    operator: Operator
    source: Value


def is_skip(term: Term) -> bool:
    """Whether the term is its source itself."""
    return isinstance(term.operator, Affine) and term.operator.is_identity


def in_groups(source: Value) -> Value:
    """What stands for a source in a key that forbids it to groups of a sum's terms only."""
    return -2 - source


@dataclass(frozen=True)
class Choice:
    """How a value is made: by its original node (no terms), or as the sum of the terms.

    total and macs are those of everything that has to be computed for it. before: the same, as
    a merge of this value with others is measured against it: what was only chosen because the
    cheapest way has too many MACs makes no difference there.
    """

    total: float
    terms: tuple[Term, ...] = ()
    macs: float = 0.0
    standing: tuple[float, float] | None = None

    @property
    def before(self) -> tuple[float, float]:
        return self.standing or (self.total, self.macs)

    @property
    def original(self) -> bool:
        return not self.terms

    @property
    def reads(self) -> set[Value]:
        """The values that the terms are computed from: their sources, and their factors."""
        found = {term.source for term in self.terms}
        for term in self.terms:
            if isinstance(term.operator, Mixed):
                found.update(gate.value for gate in term.operator.gates)
        return found


@dataclass(frozen=True)
class Selection:
    """choices: for every value that is made, how."""

    choices: dict[Value, Choice]

    def rewritten(self) -> dict[Value, Choice]:
        return {value: choice for value, choice in self.choices.items() if not choice.original}


def select(
    found: Alternatives,
    forbidden: frozenset[tuple[Value, Value]] = frozenset(),
    target: Target = CPU,
) -> Selection:
    """Choose how each needed value is made.

    (value, -1) forbids to regroup the terms of a sum, (value, in_groups(source)) to read the
    source for some of the terms.
    """
    graph = found.graph
    anchors = graph.anchors()
    chosen: dict[Value, Choice] = {}
    for component in _components(graph, anchors):
        ends = {value for value in component if value in anchors}
        weights = target if _at_stake(found, component) else replace(target, clock=None)
        chooser = _Chooser(found, anchors, forbidden, weights)
        shared = [
            value for value in component if value not in anchors and len(graph.readers(value)) > 1
        ]
        chooser, best = _settle(chooser, ends, shared)
        for value in shared[:TRIALS]:
            if value in best:
                continue
            trial, attempt = _settle(chooser.given({value}), ends, shared)
            if trial.cost(attempt) < chooser.cost(best) * (1 - 1e-9):
                chooser, best = trial, attempt
        standing = chooser.standing(ends)
        if not chooser.within(best, standing):  # readers compute more than what they share
            chooser, best = _settle(chooser.given(set(shared)), ends, shared)
        todo = sorted(chooser.free - anchors)[:TRIALS]
        while todo:
            value = todo.pop()
            trial, attempt = _settle(chooser.without(value), ends, shared)
            cheaper = trial.cost(attempt) < chooser.cost(best) * (1 - 1e-9)
            if cheaper and trial.within(attempt, standing):
                chooser, best = trial, attempt
                todo = sorted(chooser.free - anchors)[:TRIALS]
        chosen.update(best)
    return Selection(chosen)


def _settle(
    chooser: _Chooser, ends: set[Value], shared: list[Value]
) -> tuple[_Chooser, dict[Value, Choice]]:
    """Solve until no shared value is both made for one reader and made good for by another."""
    best = chooser.solve(ends)
    for _ in range(SETTLING):
        made = {value for value in shared if value in best} - chooser.free
        if not made:
            break
        chooser = chooser.given(made)
        best = chooser.solve(ends)
    return chooser, best


class _Chooser:
    """Dynamic programming over one component, given the values that exist anyway."""

    def __init__(
        self,
        found: Alternatives,
        free: set[Value],
        forbidden: frozenset[tuple[Value, Value]],
        target: Target,
        before: _Chooser | None = None,
    ) -> None:
        self.found = found
        self.anchors: set[Value] = before.anchors if before else free
        self.forbidden = forbidden
        self.target = target
        self.price = target.price
        self.graph = found.graph
        self.free = free
        self._best: dict[Value, Choice] = {}
        self._merged: dict[tuple[tuple[Value, ...], Value], Operator | None] = (
            before._merged if before else {}
        )
        self._costs: dict[tuple[int, Value], Cost] = before._costs if before else {}

    def given(self, values: set[Value]) -> _Chooser:
        """A chooser for which these values exist anyway, too."""
        return _Chooser(self.found, self.free | values, self.forbidden, self.target, self)

    def without(self, value: Value) -> _Chooser:
        """A chooser for which this value does not exist anyway."""
        return _Chooser(self.found, self.free - {value}, self.forbidden, self.target, self)

    def solve(self, ends: set[Value]) -> dict[Value, Choice]:
        """The choices for the ends and for what they need, up to values that must exist anyway."""
        chosen: dict[Value, Choice] = {}
        todo = sorted(ends)
        while todo:
            value = todo.pop()
            elsewhere = value in self.anchors and value not in ends
            if value in chosen or elsewhere or not self.graph.is_linear(value):
                continue
            choice = chosen[value] = self.best(value)
            if choice.original:
                todo.extend(self.graph.operands(value))
            else:
                todo.extend(term.source for term in choice.terms)
        return chosen

    def cost(self, chosen: dict[Value, Choice]) -> float:
        """What the chosen values cost together, each once."""
        return sum(self.price(self._own_cost(value, choice)) for value, choice in chosen.items())

    def standing(self, ends: set[Value]) -> tuple[float, float]:
        """(price, MACs) of all that makes the ends today, each value once."""
        seen, todo, total = set[Value](), sorted(ends), Cost()
        while todo:
            value = todo.pop()
            elsewhere = value in self.anchors and value not in ends
            if value not in seen and not elsewhere and self.graph.is_linear(value):
                seen.add(value)
                total += self._own_cost(value, Choice(0.0))
                todo.extend(self.graph.operands(value))
        return self.price(total), total.macs

    def within(self, chosen: dict[Value, Choice], standing: tuple[float, float]) -> bool:
        """Whether the target lets the MACs of what is rewritten rise so far together: each choice
        by itself does not know of the others that compute the same values."""
        kept = made = Cost()
        parallel = False
        for value, choice in chosen.items():
            own = self._own_cost(value, choice)
            kept, made = (kept + own, made) if choice.original else (kept, made + own)
            sums = isinstance(self.graph.nodes[value].producer, Sum)
            parallel = parallel or (sums and not choice.original)
        before = standing[0] - self.price(kept), standing[1] - kept.macs
        return self.target.allows(parallel, before, (self.price(made), made.macs))

    def best(self, value: Value) -> Choice:
        """The cheapest way to make a value; what already exists is free."""
        if value not in self._best:
            for earlier in self._unsolved(value):
                self._best[earlier] = self._search(earlier)
        return self._best[value]

    def _unsolved(self, value: Value) -> list[Value]:
        """The value and all that its search may ask for, in an order in which no search has to
        wait for another: a chain may be longer than Python's stack is deep."""
        found, todo = {value}, [value]
        while todo:
            current = todo.pop()
            for other in (*self.graph.operands(current), *self.found.of(current)):
                known = other in self._best or other in self.free or other in found
                if not known and self.graph.is_linear(other):
                    found.add(other)
                    todo.append(other)
        return sorted(found)

    def _need(self, value: Value) -> Choice:
        free = value in self.free or not self.graph.is_linear(value)
        return Choice(0.0) if free else self.best(value)

    def _search(self, value: Value) -> Choice:
        producer = self.graph.nodes[value].producer
        needs = [self._need(operand) for operand in set(self.graph.operands(value))]
        own = self._own_cost(value, Choice(0.0))
        best = original = Choice(
            self.price(own) + sum(need.total for need in needs),
            macs=own.macs + sum(need.macs for need in needs),
            standing=(
                self.price(own) + sum(need.before[0] for need in needs),
                own.macs + sum(need.before[1] for need in needs),
            ),
        )
        if isinstance(producer, Pool | Pad):
            return original  # cheaper than any conv; a sum or the next conv absorbs it
        for source, operator in self.found.of(value).items():
            unchanged = operator is producer and not self.graph.nodes[value].computed
            if unchanged or not self._writes(value, operator, source):
                continue
            if isinstance(operator, Conv) and self._is_border(value):
                continue  # and where the input is smaller than a crop, a conv does not run
            cost, need = self._cost(operator, source), self._need(source)
            cost += self._skip_cost((Term(operator, source),))
            total, macs = self.price(cost) + need.total, cost.macs + need.macs
            choice = Choice(total, (Term(operator, source),), macs)
            cheap = isinstance(operator, Affine) or self._allowed(value, original, choice)
            if cheap and total < best.total - SAVING:
                best = choice
        if isinstance(producer, Sum) and (value, -1) not in self.forbidden:
            return self._partition(value, best, original)
        return best

    def _partition(self, value: Value, best: Choice, original: Choice) -> Choice:
        """The terms of a sum in groups, each group one operator; one group was tried already."""
        terms = self._flat_terms(value)
        singles = {term: self._single(value, term) for term in terms}
        bound = max(single[0] for single in singles.values())
        if not best.original and best.total <= bound + SAVING:
            return best
        width = self.graph.nodes[value].channels or 0
        add = self.price(self.target.cost(Sum(), self.graph.nodes[value].area, (width, width)))
        groups = self._groups(value, terms)
        if not groups:
            return best
        macs = {term: self._macs((single[1],)) for term, single in singles.items()}
        # The cheapest way may have more MACs than the target allows: then the next best with less.
        for attempt in range(3):

            def fits(group: tuple[int, ...], merged: Term, attempt: int = attempt) -> bool:
                before = [macs[terms[index]] for index in group]
                limit = (math.inf, self.target.allowance * sum(before), max(before))[attempt]
                return limit == math.inf or self._macs((merged,)) <= limit * EXACTLY

            some = {group: best for group, best in groups.items() if fits(group, best[1])}
            if len(terms) <= EXACT_TERMS:
                total, parts = self._exact(terms, singles, some, add)
            else:
                total, parts = self._greedy(value, terms, singles, some, add, fits)
            if len(parts) == len(terms) or total >= best.total - SAVING:
                break
            choice = Choice(total, parts, self._macs(parts))
            if self._allowed(value, original, choice):
                return replace(choice, standing=best.before) if attempt else choice
        return best

    def _is_border(self, value: Value) -> bool:
        """Whether a value is another name of what Pool or Pad makes."""
        producer = self.graph.nodes[value].producer
        while isinstance(producer, Affine) and producer.is_identity:
            (value,) = self.graph.operands(value)
            producer = self.graph.nodes[value].producer
        return isinstance(producer, Pool | Pad)

    def _allowed(self, value: Value, original: Choice, choice: Choice) -> bool:
        """Whether the target lets MACs rise so far; only parallel branches may, as a rule."""
        if any(isinstance(term.operator, Mixed) for term in choice.terms) and (
            choice.total > (1 - MARGIN) * original.total
        ):
            return False  # what is made anew for each sample has to be worth it
        parallel = isinstance(self.graph.nodes[value].producer, Sum)
        return self.target.allows(parallel, original.before, (choice.total, choice.macs))

    def _macs(self, terms: tuple[Term, ...]) -> float:
        return sum(
            self._cost(term.operator, term.source).macs + self._need(term.source).macs
            for term in terms
        )

    def _flat_terms(self, value: Value) -> tuple[Value, ...]:
        """The terms, inner sums that nobody else reads opened."""
        flat: list[Value] = []
        todo = list(reversed(self.graph.operands(value)))
        while todo:
            operand = todo.pop()
            inner = isinstance(self.graph.nodes[operand].producer, Sum)
            if inner and operand not in self.free and len(self.graph.readers(operand)) == 1:
                todo.extend(reversed(self.graph.operands(operand)))
            else:
                flat.append(operand)
        return tuple(flat)

    def _single(self, value: Value, term: Value) -> tuple[float, Term]:
        """A term by itself: its cost, and what stands for it in the sum."""
        node = self.graph.nodes[term]
        if term in self.free or not self.graph.is_linear(term):
            return 0.0, Term(Affine.identity(node.channels or 0, node.rank or 0), term)
        choice = self.best(term)
        if len(choice.terms) == 1 and self._may_read(value, choice.terms[0].source):
            return choice.total, choice.terms[0]
        return choice.total, Term(Affine.identity(node.channels or 0, node.rank or 0), term)

    def _groups(
        self, value: Value, terms: tuple[Value, ...]
    ) -> dict[tuple[int, ...], tuple[float, Term]]:
        """Every group of two or more terms that merges, with its cheapest operator."""
        found: dict[tuple[int, ...], tuple[float, Term]] = {}
        groups: list[tuple[int, ...]] = list(self._pairs(terms))
        if len(terms) <= EXACT_TERMS:
            for size in range(3, len(terms) + 1):
                groups += combinations(range(len(terms)), size)
        for group in groups:
            best = self._merge(value, tuple(terms[index] for index in group))
            whole = len(group) == len(terms)
            if best is not None and not (whole and (value, best[1].source) in self.forbidden):
                found[group] = best
        return found

    def _pairs(self, terms: tuple[Value, ...]) -> list[tuple[int, int]]:
        """The pairs of terms that have a source in common; in a wide sum most have none."""
        places: dict[Value, list[int]] = {}
        for index, term in enumerate(terms):
            for source in {term, *self.found.of(term)}:
                places.setdefault(source, []).append(index)
        return sorted({pair for same in places.values() for pair in combinations(same, 2)})

    def _may_read(self, value: Value, source: Value) -> bool:
        return (value, in_groups(source)) not in self.forbidden

    def _merge(self, value: Value, terms: tuple[Value, ...]) -> tuple[float, Term] | None:
        best = None
        for source in self.found.common(terms):
            if not self._may_read(value, source):
                continue
            key = (terms, source)
            if key not in self._merged:
                merged = self.found.merge("siblings", terms, source)
                self._merged[key] = None if isinstance(merged, Refusal) else merged
            operator = self._merged[key]
            if operator is not None and self._writes(value, operator, source):
                total = self.price(self._cost(operator, source)) + self._need(source).total
                if best is None or total < best[0]:
                    best = total, Term(operator, source)
        return best

    def _exact(
        self,
        terms: tuple[Value, ...],
        singles: dict[Value, tuple[float, Term]],
        groups: dict[tuple[int, ...], tuple[float, Term]],
        add: float,
    ) -> tuple[float, tuple[Term, ...]]:
        @cache
        def solve(rest: tuple[int, ...]) -> tuple[float, tuple[Term, ...]]:
            if not rest:
                return -add, ()
            cost, term = singles[terms[rest[0]]]
            total, parts = solve(rest[1:])
            best = cost + add + total, (term, *parts)
            for group, (cost, term) in groups.items():
                if group[0] == rest[0] and set(group) <= set(rest):
                    total, parts = solve(tuple(index for index in rest if index not in group))
                    best = min(best, (cost + add + total, (term, *parts)), key=lambda b: b[0])
            return best

        return solve(tuple(range(len(terms))))

    def _greedy(
        self,
        value: Value,
        terms: tuple[Value, ...],
        singles: dict[Value, tuple[float, Term]],
        groups: dict[tuple[int, ...], tuple[float, Term]],
        add: float,
        fits: Callable[[tuple[int, ...], Term], bool],
    ) -> tuple[float, tuple[Term, ...]]:
        """Best saving first: join two groups of terms while that makes the sum cheaper."""
        parts: dict[tuple[int, ...], tuple[float, Term]] = {
            (index,): singles[term] for index, term in enumerate(terms)
        }
        joined = dict(groups)
        while joined:
            savings = {
                pair: add + sum(parts[part][0] for part in parts if set(part) <= set(pair)) - cost
                for pair, (cost, _) in joined.items()
            }
            pair = max(savings, key=savings.__getitem__)
            if savings[pair] <= 0:
                break
            merged = joined[pair]
            for part in [part for part in parts if set(part) <= set(pair)]:
                del parts[part]
            joined = {}
            parts[pair] = merged
            for left, right in combinations(parts, 2):
                union = tuple(sorted(left + right))
                best = self._merge(value, tuple(terms[index] for index in union))
                if best is not None and fits(union, best[1]):
                    joined[union] = best
        total = sum(cost for cost, _ in parts.values()) + add * (len(parts) - 1)
        return total, tuple(term for _, term in parts.values())

    def _own_cost(self, value: Value, choice: Choice) -> Cost:
        node = self.graph.nodes[value]
        if choice.original:
            skips = isinstance(node.producer, Affine) and node.producer.is_identity
            if skips and self.found.engine.forms.identity:
                return SKIP
            cost = self.target.own(self.graph, value)
            return cost + Cost(0.0, 2.0 * cost.parameters, 0, 1) if node.computed else cost
        width = node.channels or 0
        total, terms = Cost(), (width,) * len(choice.terms)
        if choice.terms[1:]:
            total = self.target.cost(Sum(), node.area, terms)
        for term in choice.terms:
            total += self._cost(term.operator, term.source)
        return total + self._skip_cost(choice.terms)

    def _skip_cost(self, terms: tuple[Term, ...]) -> Cost:
        """What is to be paid where a value is another one: a node, if the framework needs one."""
        alone = len(terms) == 1 and is_skip(terms[0])
        return SKIP if alone and self.found.engine.forms.identity else Cost()

    def _writes(self, value: Value, operator: Operator, source: Value) -> bool:
        """Whether one operator is written for the value, and no border that stands there already
        once more: a framework may make a border of the input in a node of its own only."""
        if not self.found.engine.emits(operator):
            return False
        if self.found.engine.forms.borders or not isinstance(operator, Conv):
            return True
        if operator.border == "zeros" or not operator.pads:
            return True
        return not any(
            isinstance(self.graph.nodes[padded].producer, Pad)
            and self.graph.operands(padded) == (source,)
            for padded in self.found.of(value)
        )

    def _cost(self, operator: Operator, source: Value) -> Cost:
        if isinstance(operator, Affine) and operator.is_identity:
            return Cost()
        key = (id(operator), source)
        if key not in self._costs:
            plain = self.found.engine.in_full(operator)
            producer = operator if isinstance(plain, Refusal) else plain
            cost = self.target.on(self.graph.nodes[source], producer)
            if isinstance(operator, Affine) and not (
                operator.scale.is_one or operator.shift.is_zero
            ):
                cost += cost  # a multiplication, then an addition
            self._costs[key] = cost
        return self._costs[key]


def _at_stake(found: Alternatives, component: list[Value]) -> bool:
    """Whether there is a choice: what has none need not be timed."""
    nodes = found.graph.nodes
    return any(
        operator is not nodes[value].producer
        for value in component
        for operator in found.of(value).values()
    )


def _components(graph: Graph, anchors: set[Value]) -> list[list[Value]]:
    """The linear values, cut at the anchors: each piece can be chosen by itself."""
    piece: dict[Value, int] = {}
    members: dict[int, list[Value]] = {}
    for value in graph.nodes:
        if not graph.is_linear(value):
            continue
        joined = {
            piece[operand]
            for operand in graph.operands(value)
            if operand in piece and operand not in anchors
        }
        home = min(joined, default=value)
        members.setdefault(home, [])
        for other in joined - {home}:
            for member in members.pop(other):
                piece[member] = home
                members[home].append(member)
        piece[value] = home
        members[home].append(value)
    return [sorted(values) for values in members.values()]
