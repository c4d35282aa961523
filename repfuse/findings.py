"""What every plan reports: regions with their costs, refusals that still matter, what was kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from repfuse.compiler import Alternatives, Engine, compile_graph
from repfuse.cost import Cost, Target
from repfuse.graph import ARGUMENT, Graph, Opaque, Sum, Value, describe
from repfuse.mixing import PASS
from repfuse.operators import Affine, Conv, Mixed, Operator
from repfuse.report import KeptReport, RefusalReport, RegionReport, Report
from repfuse.rules import Refusal
from repfuse.select import Selection, Term, is_skip

__all__ = ["add_mixtures", "add_refusals", "region_report"]

FACTOR = "a branch is multiplied by a factor that depends on the input"


def region_report(
    found: Alternatives,
    value: Value,
    terms: tuple[Term, ...],
    removed: Iterable[Value],
    counted: set[Value],
    target: Target,
) -> RegionReport:
    """One rewritten value: `removed` are the values that are gone with it.

    counted: values whose cost stands in an earlier row already; those of this row are added.
    target: what the prices are of.
    """
    graph, before, after, names = found.graph, Cost(), Cost(), []
    for gone in sorted({*removed, value}):
        producer = graph.nodes[gone].producer
        names.append(describe(producer))
        if gone not in counted:
            counted.add(gone)
            before += target.own(graph, gone)
    results, made = list[str](), list[Operator]()
    for term in terms:
        operator = term.operator
        if is_skip(term):
            results.append(graph.nodes[term.source].label)
            continue
        plain = found.engine.in_full(operator)
        assert isinstance(plain, Conv | Affine | Mixed)
        made.append(plain)
        results.append(describe(plain))
        after += target.on(graph.nodes[term.source], plain)
    if len(results) > 1:
        node = graph.nodes[value]
        after += target.cost(Sum(), node.area, (node.channels,) * len(results))
    return RegionReport(
        graph.nodes[value].label,
        names,
        results,
        before,
        after,
        target.price(before),
        target.price(after),
        *((0.0, 0.0) if target.clock is None else _milliseconds(target, before, after)),
        passes=tuple(found.engine.passes_of(made)),
    )


def _milliseconds(target: Target, before: Cost, after: Cost) -> tuple[float, float]:
    assert target.clock is not None
    unit = 1e3 / target.clock.rate
    return target.price(before) * unit, target.price(after) * unit


def add_refusals(found: Alternatives, selection: Selection, report: Report, target: Target) -> None:
    """For everything that is still computed as it was: why."""
    graph = found.graph
    by_value: dict[Value, list[tuple[str, str]]] = {}
    for blocked in found.blocked:
        entry = (blocked.refusal.rule, blocked.refusal.reason)
        if entry not in by_value.setdefault(blocked.value, []):
            by_value[blocked.value].append(entry)
    for value, choice in sorted(selection.choices.items()):
        node = graph.nodes[value]
        if not choice.original or node.inner or isinstance(node.producer, Opaque):
            continue
        if isinstance(node.producer, Affine) and node.producer.is_identity:
            continue
        reasons = list(by_value.get(value, []))
        if node.within and not reasons:
            continue  # no operator reads it that could absorb it
        if isinstance(node.producer, Affine) and not reasons:
            reasons.append(("fold_affine", _why_affine(graph, value, by_value)))
        if isinstance(node.producer, Sum) and not reasons:
            whys = _why_sum(found, value) or _why_branches(found, value)
            reasons += [("merge_branch_sum", reason) for reason in whys]
        kept = _kept(found, value, target) if not reasons else None
        if not reasons and kept is None:
            reasons += _unwritten(found, value)
        for rule, reason in reasons:
            what = graph.describe(value)
            report.refusals.append(RefusalReport(node.label, what, rule, reason))
        if kept is not None:
            report.kept.append(KeptReport(node.label, describe(node.producer), kept))
    for node in graph.nodes.values():
        reason = node.producer.reason if isinstance(node.producer, Opaque) else ""
        if " " in reason:  # a sentence; what is merely not linear has a name of one word
            report.refusals.append(RefusalReport(node.label, "opaque", "lower", reason))


def add_mixtures(graph: Graph, engine: Engine, report: Report) -> None:
    """Sums that could be one conv with a kernel per sample, if that was asked for."""
    factors = [value for value, node in graph.nodes.items() if isinstance(node.factor, tuple)]
    readers = {reader for value in factors for reader in graph.readers(value)}
    if all(isinstance(graph.nodes[reader].producer, Opaque) for reader in readers):
        return
    found = compile_graph(graph.opened(), engine)
    possible: dict[Value, Mixed] = {}
    for value, operators in found.operators.items():
        mixtures = [one for one in operators.values() if isinstance(one, Mixed)]
        mixtures = [one for one in mixtures if one.gates and engine.emits(one)]
        if isinstance(graph.nodes[value].producer, Sum) and mixtures:
            possible[value] = max(mixtures, key=lambda one: len(one.terms))
    for value, mixed in possible.items():
        if any(reader in possible for reader in graph.readers(value)):
            continue  # a part of a larger sum
        node = graph.nodes[value]
        report.refusals = [  # for which this is the better reason
            refusal
            for refusal in report.refusals
            if (refusal.where, refusal.reason) != (node.label, FACTOR)
        ]
        reason = (
            "its factors depend on the input: dynamic=True (--dynamic) makes it one "
            f"{describe(mixed)} where that is cheaper"
        )
        report.refusals.append(RefusalReport(node.label, describe(node.producer), PASS, reason))


def _why_affine(graph: Graph, value: Value, by_value: dict[Value, list[tuple[str, str]]]) -> str:
    """A scale and shift stays where neither side of it can take it."""
    (operand,) = graph.operands(value)
    readers = []
    for reader in graph.readers(value):
        node = graph.nodes[reader]
        if isinstance(node.producer, Opaque):
            readers.append(f"{node.label} ({node.producer.reason}), which is not linear")
        elif reader in by_value:
            readers.append(f"{node.label}: {by_value[reader][0][1]}")
        else:
            readers.append(f"{node.label} ({graph.describe(reader)})")
    before = graph.nodes[operand]
    parts = [f"it follows {before.label} ({graph.describe(operand)})"]
    if operand in graph.pinned and graph.is_linear(operand):
        parts[0] += f", which must exist: {graph.pinned[operand]},"
    if readers or value not in graph.pinned:
        parts.append(f"is read by {'; '.join(dict.fromkeys(readers)) or 'nothing'}")
    if value in graph.pinned:
        parts.append(graph.pinned[value])
    return " and ".join(parts)


def _why_sum(found: Alternatives, value: Value) -> list[str]:
    """Branches of what a method was given, and of the same outside of it, are not merged."""
    graph, sources = found.graph, Counter[Value]()
    operands = sorted(set(graph.operands(value)))
    for operand in operands:
        sources.update({_before_calls(graph, source) for source in found.of(operand)})
    shared = {source for source, count in sources.items() if count > 1}
    return [
        f"{graph.nodes[operand].label} must exist: {graph.pinned[operand]}"
        for operand in operands
        if operand in graph.pinned
        and any(
            source not in shared and _before_calls(graph, source) in shared
            for source in found.of(operand)
        )
    ]


def _why_branches(found: Alternatives, value: Value) -> list[str]:
    """A branch is not merged with another one where a single step of it is no affine map of
    what both of them read."""
    graph, operands = found.graph, found.graph.operands(value)
    reads = {operand: {operand, *found.of(operand)} for operand in operands}
    counts = Counter(source for operand in operands for source in reads[operand])
    reasons: dict[str, None] = {}
    for operand in operands:
        for step in sorted(reads[operand]):
            producer = graph.nodes[step].producer
            if not isinstance(producer, Opaque) or producer == ARGUMENT or counts[step] > 1:
                continue
            if " " in producer.reason:  # which is told by itself
                continue
            before = graph.operands(step)
            behind = {source for inner in before for source in (inner, *found.of(inner))}
            shared = {s for s in behind if counts[s] > (s in reads[operand])}
            if shared:
                reasons[_why_step(producer, before[0] in shared)] = None
    return list(reasons)


def _why_step(step: Opaque, on_shared: bool) -> str:
    """What a step does that keeps its branch apart; on_shared: it reads what all branches read."""
    if step.nature == "product":
        return FACTOR
    if step.nature == "in place" and on_shared:
        return f"{step.reason} changes the input of the branches in place between them"
    return f"a branch passes through {step.reason}, across which nothing is merged"


def _before_calls(graph: Graph, source: Value) -> Value:
    """The value that was passed to a method, where the source is what the method was given."""
    while graph.nodes[source].producer == ARGUMENT:
        (source,) = graph.operands(source)
    return source


def _unwritten(found: Alternatives, value: Value) -> list[tuple[str, str]]:
    """Why the framework has no layer for what the value could be made with."""
    sums = isinstance(found.graph.nodes[value].producer, Sum)  # a product alone is no mixture
    kinds = (Conv, Mixed) if sums else (Conv,)
    operators = [one for one in found.of(value).values() if isinstance(one, kinds)]
    answers = map(found.engine.in_full, operators)
    whys = [(answer.rule, answer.reason) for answer in answers if isinstance(answer, Refusal)]
    return list(dict.fromkeys(whys))


def _kept(found: Alternatives, value: Value, target: Target) -> str | None:
    """What the cheapest alternative would cost against what stands there."""
    graph = found.graph
    best: tuple[float, str] | None = None
    for source, operator in found.of(value).items():
        if operator is graph.nodes[value].producer or not isinstance(operator, Conv | Mixed):
            continue
        plain = found.engine.in_full(operator) if found.engine.emits(operator) else None
        if not isinstance(plain, Conv | Mixed):
            continue
        cost = target.on(graph.nodes[source], plain)
        price, between = target.price(cost), _between(found, value, source, target)
        if best is None or price < best[0]:
            text = (
                f"merged from {graph.nodes[source].label} on it is one {describe(plain)}: "
                f"{cost.macs / max(between.macs, 1):.3g} times the MACs, "
                f"{price / max(target.price(between), 1):.3g} times the price"
            )
            best = price, text
    if best is None:
        return None
    needed = _needed(found, value)
    return best[1] if needed is None else f"{best[1]}, and {needed}"


def _needed(found: Alternatives, value: Value) -> str | None:
    """A part of the value that has to exist anyway, which a merge would compute twice."""
    graph = found.graph
    for operand in graph.operands(value):
        if operand in graph.pinned and graph.is_linear(operand):
            return f"{graph.nodes[operand].label} must exist: {graph.pinned[operand]}"
    return None


def _between(found: Alternatives, value: Value, source: Value, target: Target) -> Cost:
    """What is computed today for the value, from the source on."""
    graph, total = found.graph, target.own(found.graph, value)
    todo, seen = list(graph.operands(value)), {value}
    while todo:
        operand = todo.pop()
        if operand == source or operand in seen or operand < source:
            continue
        seen.add(operand)
        if graph.is_linear(operand):
            total += target.own(graph, operand)
            todo.extend(graph.operands(operand))
    return total
