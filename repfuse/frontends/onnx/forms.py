"""How a term is written where its source or its value has its axes in another order.

    MatMul(Transpose(BatchNormalization(x)))  =  MatMul'(Transpose(x))

The operator works on the moved tensor where it can, otherwise before the axes are moved. Nodes
that move the source itself are read as they are, others are written once more.
"""

from __future__ import annotations

from dataclasses import dataclass

from repfuse.frontends.onnx.lowering import Lowered
from repfuse.graph import Value
from repfuse.layouts import Layout, at_rank
from repfuse.operators import Affine, Conv, Operator
from repfuse.select import Term

__all__ = ["Way", "way_of"]


@dataclass(frozen=True)
class Way:
    """A term as it is written. tensor: what is read; kept: the nodes that make it of the source's
    own tensor; copied: those that are written once more, after the operator where it is first."""

    operator: Operator
    tensor: str
    kept: tuple[int, ...] = ()
    copied: tuple[int, ...] = ()
    first: bool = False


def way_of(lowered: Lowered, value: Value, term: Term) -> Way | None:
    """How a term of a value is written; None where it cannot be."""
    given, wanted = lowered.forms.get(term.source), lowered.forms.get(value)
    tensor = lowered.names[term.source]
    if _alike(given, wanted):
        operator = _in_layout(term.operator, wanted)
        return None if operator is None else Way(operator, tensor)
    moves = _moves_between(lowered, term.source, value)
    if moves is None:
        return None
    moves = _without_round_trips(lowered, moves, given is None)
    kept = list[int]()
    for index in moves:
        node = lowered.scope.protos[index]
        if node.input[0] != tensor:
            break
        kept.append(index)
        tensor = node.output[0]
    copied, channels = moves[len(kept) :], lowered.graph.nodes[term.source].channels
    operator = _in_layout(term.operator, wanted)
    if operator is not None and _fit(lowered, copied, channels):
        return Way(operator, tensor, tuple(kept), tuple(copied))
    operator = _in_layout(term.operator, given)
    if operator is not None and _fit(lowered, moves, lowered.graph.nodes[value].channels):
        return Way(operator, lowered.names[term.source], (), tuple(moves), True)
    return None


def _without_round_trips(lowered: Lowered, moves: list[int], from_start: bool) -> list[int]:
    """Nodes that move a tensor, without those that end where they began, all axes in place: what
    comes between two of them may change the sizes, which they could hold as numbers.

    from_start: whether the axes are in place before the first one.
    """
    ends = [n for n, index in enumerate(moves, 1) if lowered.moves[index].after.is_original]
    if not ends:
        return moves
    first = 0 if from_start else ends[0]
    return [*moves[:first], *moves[ends[-1] :]]


def _alike(given: Layout | None, wanted: Layout | None) -> bool:
    if given is None or wanted is None:
        return given is wanted
    return (given.groups, given.splits) == (wanted.groups, wanted.splits)


def _in_layout(operator: Operator, layout: Layout | None) -> Operator | None:
    """The operator for data in a layout; None for one that does not work position by position, or
    where a conv would slide along the samples, of which there may be none."""
    if layout is None:
        return operator
    if isinstance(operator, Conv) and layout.rank and not layout.samples_first:
        return None
    moved = at_rank(operator, layout.rank) if isinstance(operator, Conv | Affine) else None
    return moved if isinstance(moved, Conv | Affine) else None


def _fit(lowered: Lowered, moves: list[int], channels: int | None) -> bool:
    """Whether the nodes move data of so many channels as they moved theirs."""
    return all(
        lowered.graph.nodes[lowered.moves[index].value].channels == channels
        for index in moves
        if lowered.scope.protos[index].op_type == "Reshape"
    )


def _moves_between(lowered: Lowered, source: Value, value: Value) -> list[int] | None:
    """The nodes that move axes on a way from a source to a value, in their order."""
    graph, above, todo = lowered.graph, {value}, [value]
    while todo:
        for operand in graph.operands(todo.pop()):
            if operand >= source and operand not in above:
                above.add(operand)
                todo.append(operand)
    found: dict[Value, list[int]] = {source: []}
    for current in sorted(above - {source}):
        for operand in graph.operands(current):
            if operand in found and current not in found:
                steps = lowered.steps.get(current, {}).get(operand, lowered.back.get(operand, ()))
                found[current] = [*found[operand], *steps]
    return found.get(value)
