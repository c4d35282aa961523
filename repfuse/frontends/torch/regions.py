"""From a selection to edits of the model: which nodes go, and where the new operator stands.

A rewritten value is a region: the nodes between its sources and itself that nobody else
needs. The region is cut into segments at the values that everything passes through; one
segment gets the new operator, the others let their input pass. A segment that is one layer is
an edit of that layer, any other an edit of the method whose call holds it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from repfuse.frontends.torch.calls import Call
from repfuse.frontends.torch.consistency import check_memory, inconsistent, signature_of
from repfuse.frontends.torch.edits import Edit, Region, Regions
from repfuse.frontends.torch.lowered import Lowered
from repfuse.frontends.torch.uses import asks_super_of_type
from repfuse.graph import Concat, Graph, Sum, Value
from repfuse.layouts import Layout, at_rank
from repfuse.operators import Affine, Conv, Mixed, Operator
from repfuse.select import Choice, Selection, Term

__all__ = ["find_regions", "settle"]


def find_regions(lowered: Lowered, selection: Selection) -> Regions:
    """The regions of a selection, each with its edits or with the reason why there are none."""
    made = dict(selection.choices)
    found = Regions([], set(), set(), [])
    names = _names(lowered)
    norms = {bare: norm for norm, bare in lowered.bare.items()}
    _lift(lowered, made, found)
    regions, kept = [], set(made)
    for value, chosen in made.items():
        if chosen.original:
            continue
        choice, bare = _on_norms(norms, chosen)
        region = Region(
            value,
            choice,
            _between(lowered, value, choice, kept, names),
            _between(lowered, value, choice, set(), names),
            through=_crossed(lowered, choice.reads),
            bare=bare,
            node=lowered.node_of[value],
        )
        if len(choice.terms) > 1 or not _is_layer(lowered, *_last_piece(lowered, region)):
            _edit_where_returned(lowered, region)
        regions.append(region)
    _take_apart(lowered, regions)
    uses = Counter(node for region in regions for node in region.removed)
    taken: dict[fx.Node, bool] = {}
    for region in regions:
        removed = region.removed
        reason = _edit(lowered, region, made, uses, taken) or _strip(lowered, region, made)
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
    _drop_moves(lowered, found.regions)
    found.removed.update(node for region in found.regions for node in region.removed)
    found.removed -= found.edited
    for region, reason in inconsistent(lowered, found):
        found.regions.remove(region)
        found.blocked.append((region, reason))
    return found


def settle(lowered: Lowered, found: Regions) -> None:
    """Block what is not alike in every call once the blocked regions stay as they are."""
    while True:
        found.edited = {edit.node for region in found.regions for edit in region.edits}
        removed = {node for region in found.regions for node in region.removed}
        found.removed = removed - found.edited
        odd = inconsistent(lowered, found)
        if not odd:
            return
        found.blocked += odd
        gone = {id(region) for region, _ in odd}
        found.regions = [region for region in found.regions if id(region) not in gone]


def _last_piece(lowered: Lowered, region: Region) -> tuple[Value, Value]:
    return _segments(lowered, region.value, region.choice.terms[0].source)[-1]


def _edit_where_returned(lowered: Lowered, region: Region) -> None:
    """A value that its node gives in a moved form is edited where it is moved back."""
    node, value = lowered.node_of[region.value], region.value
    if region.node is not node or value not in lowered.rooted or value not in lowered.returned:
        return
    if lowered.graph.is_only_taken_apart(lowered.value_of[node]):
        region.node = lowered.returned[value]
        region.removed.append(region.node)


def _on_norms(norms: dict[Value, Value], choice: Choice) -> tuple[Choice, dict[Value, Value]]:
    """The choice on what norms make, where it is one on what they make without their weights.

    norms: by what they make without them.
    """
    bare = {norms[t.source]: t.source for t in choice.terms if t.source in norms}
    if not bare:
        return choice, bare
    terms = tuple(Term(t.operator, norms.get(t.source, t.source)) for t in choice.terms)
    return Choice(choice.total, terms, choice.macs), bare


def _strip(lowered: Lowered, region: Region, made: dict[Value, Choice]) -> str | None:
    """Edits that take the weight and the bias of the norms that the region reads bare."""
    for norm in region.bare:
        node = lowered.node_of[norm]
        if norm in made:
            return f"{node.name} is also read by something that needs its weight and bias"
        call: Call | None = None
        if node.op != "call_module":
            call = node.meta["call"]
            reason = call.frozen or _not_rewritable(lowered, call)
            if reason is not None:
                return f"{call.path or 'the model'}.{call.method} is not written again: {reason}"
        region.edits.append(Edit(norm, (), node, call))
    return None


def _take_apart(lowered: Lowered, regions: list[Region]) -> None:
    """A stack, a split, a view whose pieces are all gone goes with them."""
    gone = {node for region in regions for node in region.removed}

    def vanishes(node: fx.Node, value: Value) -> bool:
        return node not in lowered.layouts and lowered.graph.is_only_taken_apart(value)

    _remove_with_readers(lowered, regions, gone, vanishes)


def _drop_moves(lowered: Lowered, regions: list[Region]) -> None:
    """A permutation that nobody reads any more goes, when it is known who reads what."""
    gone = {node for region in regions for node in region.removed}
    named: set[Value] = set()
    read: set[tuple[Value, Layout]] = set()
    for edit in [edit for region in regions for edit in region.edits]:
        moved = edit.node in lowered.root_of
        if moved and isinstance(lowered.graph.nodes[edit.value].producer, Sum):
            read.add((edit.terms[0].source, lowered.rooted[edit.value]))
        elif moved or edit.call is None:  # it reads what it read
            gone.discard(edit.node)
        else:
            named.update(term.source for term in edit.terms)

    def vanishes(node: fx.Node, value: Value) -> bool:
        if node not in lowered.layouts or lowered.layouts[node] in read:
            return False
        kept = value in lowered.graph.pinned or value in named
        return lowered.graph.is_only_taken_apart(value) if value in lowered.moved else not kept

    _remove_with_readers(lowered, regions, gone, vanishes)


def _remove_with_readers(
    lowered: Lowered,
    regions: list[Region],
    gone: set[fx.Node],
    vanishes: Callable[[fx.Node, Value], bool],
) -> None:
    """Nodes of which all readers are gone go with them, into the regions of these."""
    todo = list(gone)
    while todo:
        for source in todo.pop().all_input_nodes:
            value = lowered.value_of.get(source)
            if value is None or source in gone or not vanishes(source, value):
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
        if value in lowered.rooted:
            continue  # its node gives a moved form of it
        readers = graph.readers(value)
        if not readers:  # left of an attempt to read the node as several
            del made[value]
            continue
        reader = readers[0]
        outer = made.get(reader)
        liftable = len(readers) == 1 and outer is not None and outer.original
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
        nodes.extend(node for node in names.get(operand, []) if node not in lowered.layouts)
        nodes.append(lowered.node_of[operand])
        todo.extend(graph.operands(operand))
    nodes += [before for node in nodes for before in lowered.built_on.get(node, ())]
    return sorted(set(nodes), key=lowered.order.__getitem__)


def _crossed(lowered: Lowered, sources: set[Value]) -> list[fx.Node]:
    """The nodes of sources that are made of other sources, and of what lies between these."""
    graph, first = lowered.graph, min(sources)
    todo, above = [source for source in sources if source != first], set[Value]()
    while todo:
        one = todo.pop()
        if one in above or one < first or not graph.is_linear(one):
            continue
        above.add(one)
        todo.extend(graph.operands(one))
    crossed: set[Value] = set()
    for one in sorted(above):
        if any(operand in sources or operand in crossed for operand in graph.operands(one)):
            crossed.add(one)
    return sorted({lowered.node_of[one] for one in crossed}, key=lowered.order.__getitem__)


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
    lowered: Lowered,
    region: Region,
    made: dict[Value, Choice],
    uses: Counter[fx.Node],
    taken: dict[fx.Node, bool],
) -> str | None:
    """Fill in the edits of a region; a reason where it cannot be written back.

    uses: how many regions remove a node; taken: those of several that one of them edits, and
    whether they let their input pass from then on.
    """
    terms = region.choice.terms
    if len(terms) > 1 or isinstance(terms[0].operator, Mixed):
        return _edit_method(lowered, region, region.value, terms, region.removed)
    term = terms[0]
    pieces = _with_code(lowered, _segments(lowered, region.value, term.source))
    shared = {end for _, end in pieces[:-1] if uses[lowered.node_of[end]] > 1}
    alone = not any(end in made for _, end in pieces[:-1])
    if not alone or any(_is_looked_into(lowered, begin, end) for begin, end in pieces):
        return _edit_whole(lowered, region)
    nodes = {lowered.node_of[end] for end in shared}
    if not _all_pass(lowered, pieces, shared) or not all(taken.get(node, True) for node in nodes):
        reason = _edit_whole(lowered, region)
        if reason is None or not nodes.isdisjoint(taken):
            return reason
        region.unseen, shared = set(), set()
    reason = _edit_pieces(lowered, region, pieces, shared)
    if reason is None:
        taken.update((edit.node, edit.passes) for edit in region.edits if edit.node in nodes)
    return reason


def _edit_whole(lowered: Lowered, region: Region) -> str | None:
    """An edit of the call that holds all of a region."""
    _edit_where_returned(lowered, region)
    return _edit_method(lowered, region, region.value, region.choice.terms, region.removed)


def _edit_pieces(
    lowered: Lowered, region: Region, pieces: list[tuple[Value, Value]], shared: set[Value]
) -> str | None:
    """An edit for each piece: one gets the operator, the others let their input pass."""
    (term,) = region.choice.terms
    place = _place(lowered, pieces, term.operator, shared)
    if place is None:
        return ASKED if any(end in lowered.asked for _, end in pieces[:-1]) else MOVED
    for index, (begin, end) in enumerate(pieces):
        node = lowered.node_of[end]
        if index == place:
            back = region.node is lowered.returned.get(end) and not _is_layer(lowered, begin, end)
            operator = term.operator if back else _as_layer(lowered, term.operator, end)
            wanted: tuple[Term, ...] = (Term(operator, begin),)
        else:
            known = lowered.graph.nodes[begin]
            wanted = (Term(Affine.identity(known.channels or 0, known.rank or 0), begin),)
        if _is_layer(lowered, begin, end):
            region.edits.append(Edit(end, wanted, node, None))
            continue
        if node in lowered.root_of and region.node is not lowered.returned.get(end):
            reason = _edit_moved(lowered, region, Edit(end, wanted, node, node.meta["call"]))
            if reason is not None:
                return reason
            continue
        inside = [  # not what only passes the value on afterwards
            other
            for other in region.removed
            if other in lowered.value_of
            and begin < lowered.value_of[other] <= end
            and lowered.order[other] <= lowered.order[node]
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


ASKED = "the code asks for the size of a value in between, which would be another one"
MOVED = "the value is only at hand with its axes in another order"


def _as_layer(lowered: Lowered, operator: Operator, end: Value) -> Operator:
    """The operator for data as the node of a value reads it."""
    layout = lowered.rooted.get(end)
    if layout is None or not isinstance(operator, Conv | Affine):
        return operator
    moved = at_rank(operator, layout.rank)
    return moved if isinstance(moved, Conv | Affine) else operator


def _all_pass(lowered: Lowered, pieces: list[tuple[Value, Value]], shared: set[Value]) -> bool:
    """Whether what several regions read is, in each of them, a scale and shift that lets its
    input pass."""
    graph = lowered.graph
    return all(
        isinstance(graph.nodes[end].producer, Affine) and graph.operands(end) == (begin,)
        for begin, end in pieces
        if end in shared
    )


def _place(
    lowered: Lowered, pieces: list[tuple[Value, Value]], operator: Operator, shared: set[Value]
) -> int | None:
    """The segment that gets the operator: a diamond, else the layer with the most weights.

    Where axes are moved in between, all other segments keep the number of channels.
    """
    nodes = lowered.graph.nodes
    between = {end for _, end in pieces[:-1]}
    moves = any(end in lowered.rooted for _, end in pieces) or bool(between & lowered.turned)

    def fits(index: int) -> bool:
        begin, end = pieces[index]
        others = [piece for piece in pieces if piece != (begin, end)]
        if moves and any(nodes[b].channels != nodes[e].channels for b, e in others):
            return False
        layout = lowered.rooted.get(end)
        if end in shared or not _sizes_stay(lowered, pieces, index):
            return False
        return layout is None or at_rank(operator, layout.rank) is not None

    def rank(index: int) -> tuple[int, int]:
        begin, end = pieces[index]
        producer = nodes[end].producer
        size = producer.weight.size if isinstance(producer, Conv) else 0
        if isinstance(producer, Sum | Concat) and end not in lowered.rooted:
            return 2, size
        return int(_is_layer(lowered, begin, end) and size > 0), size

    return max(filter(fits, range(len(pieces))), key=rank, default=None)


def _sizes_stay(lowered: Lowered, pieces: list[tuple[Value, Value]], place: int) -> bool:
    """Whether what the code asks for the sizes of still has them: the pieces before the place of
    the operator give their input, and those after it what the operator makes."""
    keeps = [_keeps_sizes(lowered.graph, *piece) for piece in pieces]
    return all(
        all(keeps[: index + 1] if index < place else keeps[index + 1 :])
        for index, (_, end) in enumerate(pieces[:-1])
        if end in lowered.asked
    )


def _keeps_sizes(graph: Graph, begin: Value, end: Value) -> bool:
    """Whether a piece makes values of the size of what it reads."""
    while end != begin:
        producer = graph.nodes[end].producer
        if isinstance(producer, Conv):
            same = producer.in_channels == producer.out_channels and not producer.transposed
            if not same or set(producer.stride) | {1} != {1} or any(producer.slack):
                return False
        elif not isinstance(producer, Affine | Sum):
            return False
        end = graph.operands(end)[0]
    return True


def _edit_method(
    lowered: Lowered,
    region: Region,
    value: Value,
    terms: tuple[Term, ...],
    inside: list[fx.Node],
) -> str | None:
    """An edit of the smallest call that holds all the nodes."""
    node = region.node if value == region.value else lowered.node_of[value]
    assert node is not None
    if lowered.root_of.get(node) is not None:
        return MOVED
    nodes = [*inside, node]
    inner: Call = node.meta["call"]
    while not all(inner in other.meta["call"].chain() for other in nodes):
        assert inner.parent is not None
        inner = inner.parent
    missing: list[set[Value]] = []
    for call in inner.chain():
        unseen = _unseen(lowered, call, node, terms)
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


def _edit_moved(lowered: Lowered, region: Region, edit: Edit) -> str | None:
    """An edit of a node that gives a moved form of its value, and reads one of its operand."""
    call = edit.call
    assert call is not None
    if lowered.graph.operands(edit.value) != (edit.terms[0].source,):
        wanted = edit.terms[0].source, lowered.rooted[edit.value]
        names, _ = lowered.visible_in(call)
        inside = all(call in node.meta["call"].chain() for node in region.removed)
        if not inside or all(lowered.form(name) != wanted for name in names):
            return MOVED
    reason = call.frozen or _not_rewritable(lowered, call)
    if reason is not None:
        return f"{call.path or 'the model'}.{call.method} is not written again: {reason}"
    region.edits.append(edit)
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
    kind: Any = type(module)
    if asks_super_of_type(kind):  # that is the class itself, where it has a subclass
        return "its class asks for super(type(self), self)"
    return call.unknown


def _unseen(
    lowered: Lowered, call: Call, node: fx.Node, terms: tuple[Term, ...]
) -> set[Value] | None:
    """The sources that the body of a call cannot name; None where the value is not made there."""
    names, values = lowered.visible_in(call)
    if node not in names:
        return None
    return Choice(0.0, terms).reads - values
