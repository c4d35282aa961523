"""From a selection to edits of the model: which nodes go, and where the new operator stands.

A rewritten value is a region: the nodes between its sources and itself that nobody else
needs. The region is cut into segments at the values that everything passes through; one
segment gets the new operator, the others let their input pass. A segment that is one layer is
an edit of that layer, any other an edit of the method whose call holds it.
"""

from __future__ import annotations

from collections import Counter

from torch import fx, nn

from repfuse.frontends.torch.calls import Call
from repfuse.frontends.torch.consistency import check_memory, inconsistent, signature_of
from repfuse.frontends.torch.edits import Edit, Region, Regions
from repfuse.frontends.torch.lowered import Lowered
from repfuse.graph import Concat, Sum, Value
from repfuse.operators import Affine, Conv, Mixed
from repfuse.select import Choice, Selection, Term

__all__ = ["find_regions"]


def find_regions(lowered: Lowered, selection: Selection) -> Regions:
    """The regions of a selection, each with its edits or with the reason why there are none."""
    made = dict(selection.choices)
    found = Regions([], set(), set(), [])
    names = _names(lowered)
    _lift(lowered, made, found)
    regions = [
        Region(
            value,
            choice,
            _between(lowered, value, choice, set(made), names),
            _between(lowered, value, choice, set(), names),
        )
        for value, choice in made.items()
        if not choice.original
    ]
    _take_apart(lowered, regions)
    uses = Counter(node for region in regions for node in region.removed)
    for region in regions:
        removed = region.removed
        reason = _edit(lowered, region, made, uses)
        if reason is None:
            reason = check_memory(lowered, region)
            region.by_memory = reason is not None
        region.signature = signature_of(lowered, region)
        if reason is not None:
            found.blocked.append((region, reason))
        else:
            found.regions.append(region)
            found.removed.update(removed)
            found.edited.update(edit.node for edit in region.edits)
    found.removed -= found.edited
    for region, reason in inconsistent(lowered, found):
        found.regions.remove(region)
        found.blocked.append((region, reason))
    return found


def _take_apart(lowered: Lowered, regions: list[Region]) -> None:
    """A stack, a split, a view whose pieces are all gone goes with them."""
    gone = {node for region in regions for node in region.removed}
    todo = list(gone)
    while todo:
        for source in todo.pop().all_input_nodes:
            value = lowered.value_of.get(source)
            if value is None or source in gone or not lowered.graph.is_only_taken_apart(value):
                continue
            if all(user in gone for user in source.users):
                gone.add(source)
                todo.append(source)
                for region in regions:
                    if not region.removed or not set(source.users).isdisjoint(region.removed):
                        region.removed.append(source)
    for region in regions:
        region.removed.sort(key=lowered.order.__getitem__)


def _lift(lowered: Lowered, made: dict[Value, Choice], found: Regions) -> None:
    """Choices for a value inside a node (the -y of x - y) move to the value that it makes."""
    graph = lowered.graph
    for value, choice in list(made.items()):
        node = lowered.node_of.get(value)
        if choice.original or node is None or lowered.value_of[node] == value:
            continue
        (reader,) = graph.readers(value)
        outer = made.get(reader)
        liftable = outer is not None and outer.original
        if not liftable or not isinstance(graph.nodes[reader].producer, Sum):
            found.blocked.append((Region(value, choice, []), f"it is a part of {node.name}"))
            del made[value]
            continue
        terms: list[Term] = []
        for operand in graph.operands(reader):
            if operand == value:
                terms.extend(choice.terms)
            else:
                known = graph.nodes[operand]
                skip = Affine.identity(known.channels or 0, known.rank or 0)
                terms.append(Term(skip, operand))
        made[reader] = Choice(choice.total, tuple(terms))
        del made[value]


def _names(lowered: Lowered) -> dict[Value, list[fx.Node]]:
    names: dict[Value, list[fx.Node]] = {}
    for node, value in lowered.value_of.items():
        names.setdefault(value, []).append(node)
    return names


def _between(
    lowered: Lowered,
    value: Value,
    choice: Choice,
    kept: set[Value],
    names: dict[Value, list[fx.Node]],
) -> list[fx.Node]:
    """The nodes of the values between the sources and the value, up to those that are kept."""
    graph, sources = lowered.graph, choice.reads
    nodes: list[fx.Node] = [lowered.node_of[value]]
    todo, seen = list(graph.operands(value)), {value}
    while todo:
        operand = todo.pop()
        if operand in seen or operand in sources or operand in kept:
            continue
        if not graph.is_linear(operand):
            continue
        seen.add(operand)
        nodes.extend(names.get(operand, []))
        nodes.append(lowered.node_of[operand])
        todo.extend(graph.operands(operand))
    nodes += [before for node in nodes for before in lowered.built_on.get(node, ())]
    return sorted(set(nodes), key=lowered.order.__getitem__)


def _segments(lowered: Lowered, value: Value, source: Value) -> list[tuple[Value, Value]]:
    """(input, output) of each piece between the values that everything passes through."""
    graph = lowered.graph
    pieces: list[tuple[Value, Value]] = []
    end = value
    while end != source:
        frontier = set(graph.operands(end))
        while len(frontier) > 1:
            latest = max(frontier)
            frontier.remove(latest)
            if latest == source or not graph.is_linear(latest):
                return [(source, value)]
            frontier.update(graph.operands(latest))
        begin = frontier.pop()
        if begin < source:
            return [(source, value)]
        pieces.append((begin, end))
        end = begin
    return pieces[::-1]


def _edit(
    lowered: Lowered, region: Region, made: dict[Value, Choice], uses: Counter[fx.Node]
) -> str | None:
    """Fill in the edits of a region; a reason where it cannot be written back."""
    terms = region.choice.terms
    if len(terms) > 1 or isinstance(terms[0].operator, Mixed):
        return _edit_method(lowered, region, region.value, terms, region.removed)
    term = terms[0]
    pieces = _with_code(lowered, _segments(lowered, region.value, term.source))
    if any(end in made or uses[lowered.node_of[end]] > 1 for _, end in pieces[:-1]):
        return _edit_method(lowered, region, region.value, terms, region.removed)
    if any(_is_looked_into(lowered, begin, end) for begin, end in pieces):
        return _edit_method(lowered, region, region.value, terms, region.removed)
    place = _place(lowered, pieces)
    for index, (begin, end) in enumerate(pieces):
        node = lowered.node_of[end]
        if index == place:
            wanted: tuple[Term, ...] = (Term(term.operator, begin),)
        else:
            known = lowered.graph.nodes[begin]
            wanted = (Term(Affine.identity(known.channels or 0, known.rank or 0), begin),)
        if _is_layer(lowered, begin, end):
            region.edits.append(Edit(end, wanted, node, None))
            continue
        inside = [
            node
            for node in region.removed
            if node in lowered.value_of and begin < lowered.value_of[node] <= end
        ]
        reason = _edit_method(lowered, region, end, wanted, inside)
        if reason is not None:
            return reason
    return None


def _with_code(lowered: Lowered, pieces: list[tuple[Value, Value]]) -> list[tuple[Value, Value]]:
    """The pieces, a layer that the code after it looks into in one piece with this code."""
    joined: list[tuple[Value, Value]] = []
    for begin, end in pieces:
        before = joined[-1] if joined else None
        if (
            before is not None
            and _is_looked_into(lowered, *before)
            and not _is_layer(lowered, begin, end)
            and lowered.node_of[before[1]].meta["call"] is lowered.node_of[end].meta["call"]
        ):
            joined[-1] = (before[0], end)
        else:
            joined.append((begin, end))
    return joined


def _is_layer(lowered: Lowered, begin: Value, end: Value) -> bool:
    node = lowered.node_of[end]
    return node.op == "call_module" and lowered.graph.operands(end) == (begin,)


def _place(lowered: Lowered, pieces: list[tuple[Value, Value]]) -> int:
    """The segment that gets the operator: a diamond, else the layer with the most weights."""

    def rank(index: int) -> tuple[int, int]:
        begin, end = pieces[index]
        producer = lowered.graph.nodes[end].producer
        size = producer.weight.size if isinstance(producer, Conv) else 0
        if isinstance(producer, Sum | Concat):
            return 2, size
        return int(_is_layer(lowered, begin, end) and size > 0), size

    return max(range(len(pieces)), key=rank)


def _edit_method(
    lowered: Lowered,
    region: Region,
    value: Value,
    terms: tuple[Term, ...],
    inside: list[fx.Node],
) -> str | None:
    """An edit of the smallest call that holds all the nodes."""
    node = lowered.node_of[value]
    nodes = [*inside, node]
    inner: Call = node.meta["call"]
    while not all(inner in other.meta["call"].chain() for other in nodes):
        assert inner.parent is not None
        inner = inner.parent
    missing: list[set[Value]] = []
    for call in inner.chain():
        unseen = _unseen(lowered, call, value, terms)
        if unseen is not None:
            missing.append(unseen)
        if unseen == set():
            break
    region.unseen = min(missing, key=len, default=set())
    reason = call.frozen or _not_rewritable(lowered, call)
    if reason is not None:
        return f"{call.path or 'the model'}.{call.method} is not written again: {reason}"
    if unseen != set():
        return "the merged layer would read a value that only exists inside another module"
    region.edits.append(Edit(value, terms, node, call))
    return None


def _is_looked_into(lowered: Lowered, begin: Value, end: Value) -> bool:
    """Whether the code around a layer asks for its type or attributes, and must be replaced."""
    node = lowered.node_of[end]
    if not _is_layer(lowered, begin, end):
        return False
    reads = lowered.traces.reads_of(lowered.modules[str(node.target)])
    return node.meta["call"].asks_types or any(read.node is None for read in reads)


def _not_rewritable(lowered: Lowered, call: Call) -> str | None:
    module = call.module
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        return "a Sequential runs its children one after the other"
    if "forward" in vars(module) and call.method == "forward":
        return "its forward is an attribute of the instance"
    if isinstance(module, fx.GraphModule) and type(module.graph._codegen) is not fx.graph.CodeGen:
        return "a GraphModule with a calling convention of its own"
    if isinstance(module, nn.ModuleList):
        return "a ModuleList has no forward"
    return call.unknown


def _unseen(
    lowered: Lowered, call: Call, value: Value, terms: tuple[Term, ...]
) -> set[Value] | None:
    """The sources that the body of a call cannot name; None where the value is not made there."""
    names, values = lowered.visible_in(call)
    if lowered.node_of[value] not in names:
        return None
    return Choice(0.0, terms).reads - values
