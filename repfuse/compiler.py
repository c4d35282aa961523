"""The dataflow: which single operators could produce each value, and what stands in the way.

A firing removes nothing. It adds an alternative producer to a value, keyed by the ancestor
value that it reads; every key holds one operator. Selection picks from these.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from repfuse import mixing
from repfuse.graph import Concat, Gated, Graph, Opaque, Sum, Value
from repfuse.operators import Affine, Conv, Mixed, Operator
from repfuse.passes import PASSES
from repfuse.rules import Refusal, Rule

__all__ = ["Alternatives", "Blocked", "Engine", "Forms", "compile_graph"]

ANCESTORS = 16
OWN_OUTPUT = "the factor is computed from the output of its own branch, which has to exist"
TOO_FAR = "the factor is computed from more values than are looked through"


@dataclass(frozen=True)
class Forms:
    """What a framework can write down, beside a conv with equal padding on both sides.

    uneven_padding: convs whose padding differs from side to side. affine: a scale and shift.
    identity: a value that is another one takes a node, which moves nothing. borders: a conv whose
    border is made of the input is one node; otherwise two.
    """

    uneven_padding: bool = False
    affine: bool = False
    identity: bool = False
    borders: bool = True

    def has(self, conv: Conv) -> bool:
        """Whether the padding of the conv can be written as it is."""
        if not self.uneven_padding:
            return False
        if not conv.transposed:
            return all(low >= 0 and high >= 0 for low, high in conv.padding)
        room = map(max, conv.stride, conv.dilation)
        return all(
            low >= 0 and -high < most for (low, high), most in zip(conv.padding, room, strict=True)
        )


class Engine:
    """Applies the passes by their form; the only caller of a pass."""

    def __init__(self, passes: tuple[Rule, ...] = PASSES, forms: Forms | None = None) -> None:
        self.forms = forms or Forms()
        self._forms: dict[str, list[Rule]] = {}
        for rule in passes:
            self._forms.setdefault(rule.form, []).append(rule)
        self._by_types: dict[tuple[str, type, type], list[Rule]] = {}
        self._made: dict[Operator, tuple[Rule, tuple[Operator, ...]]] = {}
        self._emitted: dict[Operator, bool] = {}

    def passes_of(self, operators: Iterable[Operator]) -> list[str]:
        """The passes that made the operators from those of the model, in the pipeline's order."""
        names, todo = set[str](), list(operators)
        seen = set(todo)
        while todo:
            rule, parts = self._made.get(todo.pop(), (None, ()))
            if rule is None:
                continue
            names.add(rule.name)
            read = parts[:1] if rule.form == "beside" else parts  # the second one is only looked at
            fresh = [part for part in read if part not in seen]
            seen.update(fresh)
            todo += fresh
        return [rule.name for rules in self._forms.values() for rule in rules if rule.name in names]

    def _fire(self, rule: Rule, *operators: Operator) -> Operator | Refusal:
        """Ask a pass, and remember what it makes of which operators."""
        result = rule(*operators)
        if not isinstance(result, Refusal) and all(result is not given for given in operators):
            self._made.setdefault(result, (rule, operators))
        return result

    def _rules(self, form: str, left: Operator, right: Operator) -> list[Rule]:
        key = (form, type(left), type(right))
        if key not in self._by_types:
            rules = self._forms.get(form, ())
            self._by_types[key] = [rule for rule in rules if rule.matches(left, right)]
        return self._by_types[key]

    def as_conv(self, operator: Operator) -> Operator | Refusal:
        """A pooling or selection as a conv; any other operator as it is."""
        if isinstance(operator, Conv | Affine | Mixed):
            return operator
        for rule in self._forms.get("alone", ()):
            if rule.matches(operator):
                return self._fire(rule, operator)
        return operator

    def plain(self, conv: Conv) -> Operator | Refusal:
        """The conv in a form that the framework has; in all of them, equal padding >= 0."""
        if self.forms.has(conv):
            return conv
        result: Operator | Refusal = conv
        for rule in self._forms.get("alone", ()):
            if isinstance(result, Conv) and rule.matches(result):
                result = self._fire(rule, result)
        return result

    def in_full(self, operator: Operator) -> Operator | Refusal:
        """A conv, or one with a mixed kernel, in a form that the framework has."""
        if isinstance(operator, Mixed):
            return mixing.aligned(self, operator)
        return self.plain(operator) if isinstance(operator, Conv) else operator

    def emits(self, operator: Operator) -> bool:
        """Whether the framework has the operator: a conv, a skip, perhaps a scale and shift."""
        if operator not in self._emitted:
            self._emitted[operator] = self._emits(operator)
        return self._emitted[operator]

    def _emits(self, operator: Operator) -> bool:
        if isinstance(operator, Conv):
            fully_connected = operator.groups == 1 or bool(operator.rank)
            return fully_connected and isinstance(self.plain(operator), Conv)
        if isinstance(operator, Mixed):
            return len(operator.terms) > 1 and isinstance(mixing.aligned(self, operator), Mixed)
        return isinstance(operator, Affine) and (self.forms.affine or operator.is_identity)

    def chain(self, first: Operator, second: Operator) -> Operator | Refusal | None:
        """One operator for second(first(x)); None where no pass knows the pair."""
        if isinstance(first, Mixed) or isinstance(second, Mixed):
            return mixing.chain(self, first, second)
        return self._binary("chain", first, second)

    def add(self, left: Operator, right: Operator) -> Operator | Refusal | None:
        """One operator for left(x) + right(x)."""
        if isinstance(left, Mixed) or isinstance(right, Mixed):
            return mixing.add(self, left, right)
        if self._rules("siblings", left, right) and not isinstance(left, Conv):
            return self._binary("siblings", left, right)
        pair = self.conform(left, right)
        return pair if isinstance(pair, Refusal) else self._binary("siblings", *pair)

    def stack(self, left: Operator, right: Operator) -> Operator | Refusal | None:
        """One operator for concat(left(x), right(x))."""
        if isinstance(left, Mixed) or isinstance(right, Mixed):
            return None
        direct = self._apply("stacked", left, right)
        if direct is not None and not isinstance(direct, Refusal):
            return direct
        pair = self.conform(left, right)
        return pair if isinstance(pair, Refusal) else self._binary("stacked", *pair)

    def _apply(self, form: str, left: Operator, right: Operator) -> Operator | Refusal | None:
        rules = self._rules(form, left, right)
        return self._fire(rules[0], left, right) if rules else None

    def _binary(self, form: str, left: Operator, right: Operator) -> Operator | Refusal | None:
        """The pair as one operator; poolings and selections also as the convs that they are."""
        direct = self._apply(form, left, right)
        if direct is not None and not isinstance(direct, Refusal):
            return direct
        first, second = self.as_conv(left), self.as_conv(right)
        if first is left and second is right:
            return direct
        for side in (first, second):
            if isinstance(side, Refusal):
                return side if direct is None else direct
        return self._apply(form, first, second)  # type: ignore[arg-type]

    def conform(self, left: Operator, right: Operator) -> tuple[Operator, Operator] | Refusal:
        """Two terms on the same source, brought to the same geometry by the `beside` passes."""
        terms = [self.as_conv(left), self.as_conv(right)]
        for term in terms:
            if isinstance(term, Refusal):
                return term
        changed = True
        while changed:
            changed = False
            for mine, theirs in ((0, 1), (1, 0)):
                for rule in self._forms.get("beside", ()):
                    if not rule.matches(terms[mine], terms[theirs]):  # type: ignore[arg-type]
                        continue
                    result = self._fire(rule, terms[mine], terms[theirs])  # type: ignore[arg-type]
                    if isinstance(result, Refusal):
                        return result
                    changed |= result is not terms[mine]
                    terms[mine] = result
        return terms[0], terms[1]  # type: ignore[return-value]


@dataclass(frozen=True)
class Blocked:
    """A pass that refused at a value: (value, what it was tried with)."""

    value: Value
    other: Value
    refusal: Refusal


@dataclass
class Alternatives:
    """For each value the operators that produce it, by the ancestor that they read."""

    graph: Graph
    engine: Engine
    operators: dict[Value, dict[Value, Operator]] = field(default_factory=dict)
    blocked: list[Blocked] = field(default_factory=list)
    capped: list[Value] = field(default_factory=list)

    def of(self, value: Value) -> dict[Value, Operator]:
        return self.operators.get(value, {})

    def options(self, value: Value) -> dict[Value, Operator]:
        """The alternatives, and the skip: the value as an operator of itself."""
        node = self.graph.nodes[value]
        found = dict(self.of(value))
        if node.channels is not None and node.rank is not None:
            found[value] = Affine.identity(node.channels, node.rank)
        return found

    def merge(
        self, form: str, terms: tuple[Value, ...], source: Value
    ) -> Operator | Refusal | None:
        """All terms, as operators of `source`, added or stacked into one operator."""
        join = self.engine.add if form == "siblings" else self.engine.stack
        total: Operator | Refusal | None = self.options(terms[0])[source]
        for term in terms[1:]:
            if total is None or isinstance(total, Refusal):
                break
            total = join(total, self.options(term)[source])
        return total

    def common(self, terms: tuple[Value, ...]) -> list[Value]:
        """The values that every term can be computed from, nearest first."""
        shared = [self.options(term) for term in terms]
        return [
            source
            for source in shared[0]
            if all(source in other for other in shared[1:])
            and (source in terms or not self.graph.nodes[source].inner)
        ]


def compile_graph(
    graph: Graph, engine: Engine, forbidden: frozenset[tuple[Value, Value]] = frozenset()
) -> Alternatives:
    """Find the alternatives of every value, in one sweep over the graph.

    forbidden: keys (value, ancestor) that must not be used, because the result could not be
    written back into the user's model.
    """
    found = Alternatives(graph, engine)
    for value, node in graph.nodes.items():
        operands = graph.operands(value)
        producer = node.producer
        if isinstance(producer, Opaque):
            continue
        if isinstance(producer, Gated):
            _gate(found, value, producer, operands[0])
        elif isinstance(producer, Sum | Concat):
            _combine(found, value, operands)
        else:
            _extend(found, value, producer, operands[0])
        kept = found.of(value)
        for source in list(kept):
            hidden = graph.nodes[source].inner and source not in operands
            if hidden or (value, source) in forbidden:
                del kept[source]
        if len(kept) > ANCESTORS:
            # The farthest as well as the nearest: only by them a long chain becomes one operator.
            found.capped.append(value)
            near, far = ANCESTORS // 2, ANCESTORS - ANCESTORS // 2
            sources = sorted(kept, reverse=True)
            found.operators[value] = {s: kept[s] for s in (*sources[:near], *sources[-far:])}
    norms = [value for value, node in graph.nodes.items() if node.within]
    reasons = {(b.value, b.other): b.refusal.reason for b in found.blocked} if norms else {}
    for value in norms:
        _share(found, value, reasons)
    return found


def _share(found: Alternatives, value: Value, reasons: dict[tuple[Value, Value], str]) -> None:
    """A scale and shift within another operation is absorbed by all its readers or by none.

    What stands before it does not exist by itself as long as anybody reads the value.
    """
    graph, (before,) = found.graph, found.graph.operands(value)
    taken, todo = set[Value](), [value]
    while todo:
        for reader in graph.readers(todo.pop()):
            if reader not in taken and before in found.of(reader):
                taken.add(reader)
                todo.append(reader)
    reason = _why_needed(found, value, before, reasons) if taken else None
    if reason is not None:
        if any(found.engine.emits(found.of(reader)[before]) for reader in taken):
            found.blocked.append(Blocked(value, before, Refusal("absorb_affine", reason)))
        for reader in taken:
            del found.operators[reader][before]


def _why_needed(
    found: Alternatives, value: Value, before: Value, reasons: dict[tuple[Value, Value], str]
) -> str | None:
    """Why a value is still made where all that can read what stands before it do so."""
    graph, todo, seen = found.graph, [value], {value}
    while todo:
        current = todo.pop()
        if current in graph.pinned:
            return f"one of its readers cannot absorb it: {graph.pinned[current]}"
        for reader in graph.readers(current):
            if graph.is_only_taken_apart(reader):
                continue
            node, operator = graph.nodes[reader], found.of(reader).get(before)
            emits = operator is not None and found.engine.emits(operator)
            if operator is None or not (emits or graph.readers(reader)):
                reason = reasons.get((reader, current), "it cannot absorb it")
                return f"{node.label} ({graph.describe(reader)}) reads it too: {reason}"
            if node.tied:
                return f"the weight of {node.label}, which reads it, is used elsewhere as well"
            if not emits and reader not in seen:
                seen.add(reader)
                todo.append(reader)
    return None


def _extend(found: Alternatives, value: Value, operator: Operator, operand: Value) -> None:
    produced = found.operators.setdefault(value, {})
    produced[operand] = operator
    for source, before in found.of(operand).items():
        result = found.engine.chain(before, operator)
        if isinstance(result, Refusal):
            found.blocked.append(Blocked(value, operand, result))
        elif result is not None:
            produced[source] = result


def _combine(found: Alternatives, value: Value, operands: tuple[Value, ...]) -> None:
    form = "siblings" if isinstance(found.graph.nodes[value].producer, Sum) else "stacked"
    produced = found.operators.setdefault(value, {})
    for source in found.common(operands):
        result = _through(found, produced, source) or found.merge(form, operands, source)
        if isinstance(result, Refusal):
            found.blocked.append(Blocked(value, source, result))
        elif result is not None:
            produced[source] = result


def _gate(found: Alternatives, value: Value, gated: Gated, operand: Value) -> None:
    """A product with a factor of the sample, from whatever the other operand is made of."""
    produced = found.operators.setdefault(value, {})
    needed = found.graph.above(gated.gate.value, min(found.of(operand), default=operand))
    for source, operator in found.options(operand).items():
        reason = None
        if needed is None:
            reason = TOO_FAR
        elif not needed.isdisjoint(_inside(found.graph, operand, source)):
            reason = OWN_OUTPUT
        elif isinstance(operator, Mixed):
            reason = "a branch with a factor of its own has another one"
        if reason is None:
            produced[source] = mixing.gated(operator, gated.gate)
        else:
            found.blocked.append(Blocked(value, source, Refusal(mixing.PASS, reason)))


def _inside(graph: Graph, value: Value, source: Value) -> set[Value]:
    """The linear values from a source, left out, to a value."""
    found, todo = set[Value](), [value]
    while todo:
        current = todo.pop()
        if current > source and current not in found and graph.is_linear(current):
            found.add(current)
            todo += graph.operands(current)
    return found


def _through(
    found: Alternatives, produced: dict[Value, Operator], source: Value
) -> Operator | None:
    """All terms by way of a nearer value that they have in common, which `source` produces."""
    for middle, merged in produced.items():
        before = found.of(middle).get(source)
        result = None if before is None else found.engine.chain(before, merged)
        if result is not None and not isinstance(result, Refusal):
            return result
    return None
