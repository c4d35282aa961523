"""Prove one rewrite: the original nodes against the new ones, in float64, borders included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from onnx import NodeProto, helper

from repfuse.frontends.onnx.emit import Emitted, batch_of, terms_of
from repfuse.frontends.onnx.lowering import Lowered, Move
from repfuse.frontends.onnx.norms import bare_node
from repfuse.frontends.onnx.numeric import Misread, Runner
from repfuse.graph import Value
from repfuse.layouts import told_apart
from repfuse.mixing import gates_of
from repfuse.operators import Conv, Mixed
from repfuse.probing import BOUND, CANCELS, SMALL, chances, probe_sizes, source_sizes, unproved
from repfuse.select import Choice, Term

__all__ = ["path_of", "probe"]


def path_of(lowered: Lowered, value: Value, choice: Choice) -> list[Value]:
    """The values from the sources of a choice up to the value itself, sources left out."""
    ends = {term.source for term in terms_of(lowered, choice)} | choice.reads
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
    norms = {lowered.names[v]: v for v in lowered.bare.keys() & {t.source for t in terms}}
    fed = {lowered.names[term.source] for term in drawn}
    fed |= {lowered.scope.protos[lowered.made_by[v][-1]].input[0] for v in norms.values()}
    nodes, chosen = _nodes(lowered, path, fed)
    made = {name for node in nodes for name in node.output}
    constants = {
        name: lowered.constants.value(name)
        for node in nodes
        for name in node.input
        if name and name not in made and name in lowered.constants
    }
    constants |= {name: value for name, value in lowered.expanded.items() if name not in made}
    constants |= chosen
    opset, name = lowered.scope.opset, lowered.names[value]
    outputs = {lowered.scope.protos[i].output[0]: move for i, move in lowered.moves.items()}
    moves = {name: outputs[name] for name in made & outputs.keys()}
    kept = [lowered.scope.protos[index] for index in sorted(new.kept)]
    again = {node.output[0] for node in kept}
    shapes = {
        name: lowered.constants.value(name)
        for node in [*new.nodes, *kept]
        if node.output[0] in outputs.keys() | new.moves.keys()
        for name in node.input
        if name in lowered.constants
    }
    turned = bool(moves or new.moves)
    old_runner = Runner(nodes, opset, moves)
    moved = {node.output[0]: outputs[node.output[0]] for node in kept} | new.moves
    reads = _read(new, moved) - again
    new_runner = Runner([*kept, *new.nodes], opset, moved)
    noise = np.random.default_rng(len(path))
    fixed = not lowered.fixed.isdisjoint(path)
    convs = [conv for _, conv in _convs(terms)]
    proved: set[bool] = set()  # of which sizes it was: large ones, and the smallest
    failed: dict[bool, str] = {}
    ndim = next((n for v in (value, *path) if (n := lowered.kinds[v].ndim)), 3)
    for size in [()] if fixed else _sizes(lowered, value, terms, proved):
        size = told_apart(convs, size) if turned and not fixed else size
        large = max(size, default=SMALL) >= SMALL
        for tried in chances(convs, size) if convs else [size]:
            runs = False
            try:
                batch = batch_of(lowered, value)
                feeds = _feeds(lowered, drawn, tried, noise, fixed, batch, ndim, turned)
                feeds |= _factors(lowered, terms, noise, batch)
                bare = dict(
                    _normalised(lowered, output, norm, feeds) for output, norm in norms.items()
                )
                values = old_runner.run({**constants, **feeds})
                runs = True
                feeds |= {n: values[n] for n in (lowered.names[term.source] for term in terms)}
                feeds |= {n: values[n] for n in reads if n in values}
                got = new_runner.run({**new.exact, **arrays, **shapes, **feeds, **bare})[name]
                break
            except Misread as error:
                return f"{error}, at input size {tried}"
            except Exception as error:  # whatever onnx.reference makes of a size that is too small
                text = f"it does not run on an input of size {tried}: {error}"
                if runs and large:  # where the original gives nothing, the new may not run
                    return text
        else:
            failed.setdefault(large, text)
            continue  # smaller than the original accepts, or of another residue
        proved.add(large)
        old = values[name]
        if old.shape != got.shape:
            return f"shapes {old.shape} and {got.shape} at input size {tried}"
        scale, gap = _largest(old), _largest(old - got)
        around = CANCELS * max(_largest(values[n]) for n in made.union(feeds) if n in values)
        if not gap <= BOUND * max(scale, around):
            return f"difference {gap:.3g} of {scale:.3g} at input size {tried}"
        if not large:
            break  # the smallest legal size
    return unproved(proved, failed)


def _read(new: Emitted, moved: dict[str, Move]) -> set[str]:
    """What new nodes read, and what tells the sizes of those that move axes."""
    read = {name for node in new.nodes for name in node.input}
    return (read | {move.root for move in moved.values()}) - new.arrays.keys()


def _nodes(
    lowered: Lowered, path: Sequence[Value], sources: set[str]
) -> tuple[list[NodeProto], dict[str, np.ndarray]]:
    """The nodes that make the values, without those that compute shapes for round trips; those that
    run at certain sizes only as a Gather, and the indices that it reads."""
    last = {index for member in path for index in lowered.made_by[member]}
    shapes = {i for index in last for i in lowered.around.get(index, ())}
    made: dict[int, NodeProto] = {}
    indices = {}
    for member in path:
        if member not in lowered.selects:
            indices_of = set(lowered.made_by[member]) - shapes
            made.update((i, _explicit(lowered, i)) for i in indices_of)
            continue
        (source,), name = lowered.graph.operands(member), lowered.names[member]
        indices[f"{name}.channels"] = np.array(lowered.selects[member])
        protos = [lowered.scope.protos[i] for i in lowered.made_by[member]]
        read = next(x for proto in protos for x in proto.input if lowered.value_of.get(x) == source)
        reads = [read, f"{name}.channels"]  # as it is laid out there
        gather = helper.make_node("Gather", reads, [name], axis=1)
        made[lowered.made_by[member][-1]] = gather
    return [made[index] for index in sorted(_with_moves(lowered, sources, made))], indices


def _with_moves(
    lowered: Lowered, sources: set[str], made: dict[int, NodeProto]
) -> dict[int, NodeProto]:
    """The nodes, and those that move axes for them, as far as the tensors of the sources."""
    makers = {lowered.scope.protos[index].output[0]: index for index in lowered.free}
    todo = list(made.values())
    while todo:
        for name in todo.pop().input:
            index = makers.get(name)
            if index is not None and index not in made and name not in sources:
                made[index] = lowered.scope.protos[index]
                todo.append(made[index])
    return made


def _normalised(
    lowered: Lowered, output: str, value: Value, feeds: dict[str, np.ndarray]
) -> tuple[str, np.ndarray]:
    """What a norm makes without its scale and bias; its operand is fed what was drawn for this."""
    proto = lowered.scope.protos[lowered.made_by[value][-1]]
    drawn = feeds.pop(output)
    x = feeds.setdefault(proto.input[0], drawn)
    ones = f"{output}.ones"
    run = Runner([bare_node(proto, ones)], lowered.scope.opset).run
    return output, run({proto.input[0]: x, ones: np.ones(drawn.shape[-1])})[output]


def _largest(values: np.ndarray | list[np.ndarray]) -> float:
    """Of a tensor, or of all in a sequence."""
    if isinstance(values, list):
        return max(map(_largest, values), default=0.0)
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


def _sizes(
    lowered: Lowered, value: Value, terms: Sequence[Term], proved: set[bool]
) -> Iterator[tuple[int, ...]]:
    convs = [conv for _, conv in _convs(terms)]
    if not convs:
        rank = lowered.graph.nodes[value].rank or max(term.operator.rank for term in terms)
        yield tuple(5 + axis for axis in range(rank))
    else:
        yield from probe_sizes(convs, proved)


def _feeds(
    lowered: Lowered,
    terms: Sequence[Term],
    size: tuple[int, ...],
    noise: np.random.Generator,
    fixed: bool = False,
    batch_size: int | None = None,
    ndim: int = 3,
    turned: bool = False,
) -> dict[str, np.ndarray]:
    """Random values of the sources. A skip beside convs has the shape of their outputs, also where
    nothing is known of it, and one beside other skips theirs. fixed: of the only size at which the
    nodes run; ndim: of a source of which no more is known than what is made of it; turned: axes are
    moved, so that no two are as long as each other."""
    if fixed:
        shapes = {lowered.names[t.source]: lowered.kinds[t.source].static for t in terms}
        assert None not in shapes.values()
        drawn = {name: noise.standard_normal(shape) for name, shape in shapes.items()}
        return _in_their_forms(lowered, terms, drawn)
    convs = _convs(terms)
    mixes = any(isinstance(term.operator, Mixed) for term in terms)
    sizes, result = source_sizes(convs, size) if convs else ({}, size)
    feeds: dict[str, np.ndarray] = {}
    for term in terms:
        channels, rank = term.operator.in_channels, term.operator.rank
        if not channels and convs:
            channels, rank = convs[0][1].out_channels, convs[0][1].rank
        elif not channels:
            channels, rank = max((t.operator.in_channels or 1, t.operator.rank) for t in terms)
        leading = (lowered.kinds[term.source].ndim or ndim) - 1
        # The same from the end, so that a value with fewer axes broadcasts.
        batch = (2,) if rank else tuple(2 + axis % 2 for axis in range(leading))[::-1]
        batch = (batch_size,) if mixes and batch_size else batch
        if turned:
            batch = tuple(range(2, 2 + max(leading - rank, 1)))
        shape = (*batch, channels, *sizes.get(term.source, result))
        name = lowered.names[term.source]
        if name not in feeds:
            feeds[name] = noise.standard_normal(shape)
    return _in_their_forms(lowered, terms, feeds)


def _in_their_forms(
    lowered: Lowered, terms: Sequence[Term], feeds: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Tensors as they are laid out in the graph; beside them, what tells their sizes."""
    for source in {term.source: None for term in terms}:  # once, however many terms read it
        if source in lowered.forms:
            layout, name = lowered.forms[source], lowered.names[source]
            x, order = feeds[name], layout.order()
            feeds[name] = x.transpose(order).reshape(layout.sizes(x.shape))
            root = lowered.roots[lowered.value_of[name]]
            feeds.setdefault(root, np.broadcast_to(0.0, x.shape))
    return feeds


def _convs(terms: Sequence[Term]) -> list[tuple[Value, Conv]]:
    """The convs by their sources; a mixed kernel stands for a conv of its geometry."""
    found = []
    for term in terms:
        operator = term.operator
        operator = operator.together if isinstance(operator, Mixed) else operator
        if isinstance(operator, Conv):
            found.append((term.source, operator))
    return found


def _factors(
    lowered: Lowered, terms: Sequence[Term], noise: np.random.Generator, batch: int | None
) -> dict[str, np.ndarray]:
    """Random factors, other ones for each sample, and the tensors whose pieces they are."""
    feeds: dict[str, np.ndarray] = {}
    for term in terms:
        if not isinstance(term.operator, Mixed):
            continue
        (gates, base), ones = gates_of(term.operator), (1,) * term.operator.rank
        for gate in gates:
            name = lowered.names[gate.value]
            if name not in feeds:
                feeds[name] = noise.standard_normal((batch or 2, gate.channels, *ones))
        if base is not None:
            pieces = [feeds[lowered.names[gate.value]] for gate in gates]
            feeds[lowered.names[base]] = np.concatenate(pieces, 1)
    return feeds


def _explicit(lowered: Lowered, index: int) -> NodeProto:
    """A node with the padding that it has in its model spelled out."""
    node = lowered.scope.protos[index]
    if index not in lowered.pads:
        return node  # type: ignore[no-any-return]
    spelled = NodeProto()
    spelled.CopyFrom(node)
    kept = [a for a in node.attribute if a.name not in ("auto_pad", "pads")]
    del spelled.attribute[:]
    spelled.attribute.extend([*kept, helper.make_attribute("pads", lowered.pads[index])])
    return spelled
