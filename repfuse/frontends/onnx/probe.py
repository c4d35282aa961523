"""Prove one rewrite: the original nodes against the new ones, in float64, borders included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from onnx import NodeProto, helper

from repfuse.frontends.onnx.emit import Emitted, terms_of
from repfuse.frontends.onnx.lowering import Lowered
from repfuse.frontends.onnx.numeric import Runner
from repfuse.graph import Value
from repfuse.operators import Conv
from repfuse.probing import BOUND, probe_sizes, source_sizes
from repfuse.select import Choice, Term

__all__ = ["path_of", "probe"]

# x - x is zero, or nearly: what cancels leaves errors of what it was, a few last bits of a double.
CANCELS = 1e-5
OPEN = 7


def path_of(lowered: Lowered, value: Value, choice: Choice) -> list[Value]:
    """The values from the sources of a choice up to the value itself, sources left out."""
    ends = {term.source for term in terms_of(lowered, choice)}
    found, todo = {value}, [value]
    while todo:
        for operand in lowered.graph.operands(todo.pop()):
            if operand not in ends and operand not in found:
                found.add(operand)
                todo.append(operand)
    return sorted(found)


def probe(
    lowered: Lowered,
    value: Value,
    choice: Choice,
    new: Emitted,
    arrays: dict[str, np.ndarray],
) -> str | None:
    """Compare on random inputs; a text that says where the two disagree, or None.

    arrays: the float64 constants of the new nodes. Sizes as `repfuse.probing` has them.
    """
    terms = terms_of(lowered, choice)
    inner = _between(lowered, {term.source for term in terms})
    drawn = [term for term in terms if term.source not in inner]
    path = sorted({*path_of(lowered, value, choice), *inner})
    indices = sorted({index for member in path for index in lowered.made_by[member]})
    nodes = [_explicit(lowered, index) for index in indices]
    made = {name for node in nodes for name in node.output}
    constants = {
        name: lowered.constants.value(name)
        for node in nodes
        for name in node.input
        if name and name not in made and name in lowered.constants
    }
    opset, name = lowered.scope.opset, lowered.names[value]
    old_runner, new_runner = Runner(nodes, opset), Runner(new.nodes, opset)
    noise = np.random.default_rng(len(path))
    fixed = not lowered.fixed.isdisjoint(path)
    for size in [()] if fixed else _sizes(lowered, value, terms):
        try:
            feeds = _feeds(lowered, drawn, size, noise, fixed)
            values = old_runner.run({**constants, **feeds})
            feeds |= {n: values[n] for n in (lowered.names[term.source] for term in terms)}
            got = new_runner.run({**new.exact, **arrays, **feeds})[name]
        except Exception as error:  # whatever onnx.reference makes of a size that is too small
            if max(size, default=9) < 4:
                continue  # smaller than this region accepts
            return f"it does not run on an input of size {size}: {error}"
        old = values[name]
        if old.shape != got.shape:
            return f"shapes {old.shape} and {got.shape} at input size {size}"
        scale, gap = _largest(old), _largest(old - got)
        around = CANCELS * max(_largest(values[n]) for n in made.union(feeds) if n in values)
        if not gap <= BOUND * max(scale, around):
            return f"difference {gap:.3g} of {scale:.3g} at input size {size}"
        if size and max(size) < 4:
            break  # the smallest legal size
    return None


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values).max(initial=0.0))


def _between(lowered: Lowered, sources: set[Value]) -> set[Value]:
    """The sources that follow from other ones, with what is between them.

    One term may read y, and another one x with the y = a(x) in it: they add up where y is a(x).
    """
    graph, found = lowered.graph, set[Value]()
    for source in sources:
        todo, seen = [source], set[Value]()
        while todo and all(map(graph.is_linear, todo)):
            value = todo.pop()
            seen.add(value)
            todo += [v for v in graph.operands(value) if v not in sources | seen]
        if not todo:
            found |= seen
    return found


def _sizes(lowered: Lowered, value: Value, terms: Sequence[Term]) -> Iterator[tuple[int, ...]]:
    convs = [t.operator for t in terms if isinstance(t.operator, Conv)]
    if not convs:
        rank = lowered.graph.nodes[value].rank or 0
        yield tuple(5 + axis for axis in range(rank))
    else:
        yield from probe_sizes(convs)


def _feeds(
    lowered: Lowered,
    terms: Sequence[Term],
    size: tuple[int, ...],
    noise: np.random.Generator,
    fixed: bool = False,
) -> dict[str, np.ndarray]:
    """Random values of the sources. A skip beside convs has the shape of their outputs, also where
    nothing is known of it. fixed: of the only size at which the nodes run."""
    feeds: dict[str, np.ndarray] = {}
    if fixed:
        for term in terms:
            dims = lowered.kinds[term.source].dims
            assert dims is not None
            free = (2, *[OPEN] * (len(dims) - 1))  # the batch, and an axis of any size
            given = [d if isinstance(d, int) else f for d, f in zip(dims, free, strict=True)]
            feeds[lowered.names[term.source]] = noise.standard_normal(given)
        return feeds
    convs = [(t.source, t.operator) for t in terms if isinstance(t.operator, Conv)]
    sizes, result = source_sizes(convs, size) if convs else ({}, size)
    for term in terms:
        channels, rank = term.operator.in_channels, term.operator.rank
        if not channels and convs:
            channels, rank = convs[0][1].out_channels, convs[0][1].rank
        ndim = lowered.kinds[term.source].ndim or 3
        batch = (2,) if rank else (2, 3, 2)[: ndim - 1]
        shape = (*batch, channels, *sizes.get(term.source, result))
        name = lowered.names[term.source]
        if name not in feeds:
            feeds[name] = noise.standard_normal(shape)
    return feeds


def _explicit(lowered: Lowered, index: int) -> NodeProto:
    """A node with the padding that it has in its model spelled out, or the sizes of a tensor that
    is at hand."""
    node = lowered.scope.protos[index]
    if index in lowered.instead:
        turned = NodeProto()
        turned.CopyFrom(node)
        turned.input[0] = lowered.instead[index]
        return turned
    if index not in lowered.pads:
        return node  # type: ignore[no-any-return]
    spelled = NodeProto()
    spelled.CopyFrom(node)
    kept = [a for a in node.attribute if a.name not in ("auto_pad", "pads")]
    del spelled.attribute[:]
    spelled.attribute.extend([*kept, helper.make_attribute("pads", lowered.pads[index])])
    return spelled
