"""From a selection to edits of the model: which nodes go, and where the new operator stands.

A rewritten value is a region: the nodes between its sources and itself that nobody else
needs. The region is cut into segments at the values that everything passes through; one
segment gets the new operator, the others let their input pass. A segment that is one layer is
an edit of that layer, any other an edit of the method whose call holds it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from repfuse.frontends.torch.lower import Lowered
from repfuse.frontends.torch.trace import Call, calls_of, has_hooks
from repfuse.graph import Concat, Sum, Value
from repfuse.operators import Affine, Conv
from repfuse.select import Choice, Selection, Term

__all__ = ["Edit", "Region", "Regions", "find_regions"]


@dataclass(eq=False)
class Edit:
    """One segment: `value` is from now on the sum of the terms, or its single source itself.

    node is the node that made the value; call is where it is edited, None for a layer that is
    exchanged.
    """

    value: Value
    terms: tuple[Term, ...]
    node: fx.Node
    call: Call | None

    @property
    def passes(self) -> bool:
        return len(self.terms) == 1 and is_skip(self.terms[0])


@dataclass(eq=False)
class Region:
    """One rewritten value.

    removed: the nodes that are gone, the one that made the value among them. path: all nodes
    between the sources and the value, also those that stay because others need them.
    """

    value: Value
    choice: Choice
    removed: list[fx.Node]
    path: list[fx.Node] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    signature: tuple[Any, ...] = ()

    @property
    def key(self) -> tuple[Value, Value]:
        """What to forbid where the region cannot be written: (value, source)."""
        terms = self.choice.terms
        return self.value, terms[0].source if len(terms) == 1 else -1


@dataclass
class Regions:
    """All regions, the nodes that they remove together, and those that cannot be written.

    removed leaves out the nodes that are edited: these stay, as something else.
    """

    regions: list[Region]
    removed: set[fx.Node]
    edited: set[fx.Node]
    blocked: list[tuple[Region, str]]


def is_skip(term: Term) -> bool:
    return isinstance(term.operator, Affine) and term.operator.is_identity


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
        reason = _edit(lowered, region, made, uses) or _check_memory(lowered, region)
        region.signature = _signature(lowered, region)
        if reason is not None:
            found.blocked.append((region, reason))
        else:
            found.regions.append(region)
            found.removed.update(removed)
            found.edited.update(edit.node for edit in region.edits)
    found.removed -= found.edited
    for region, reason in _inconsistent(lowered, found):
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
    graph, sources = lowered.graph, {term.source for term in choice.terms}
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
    if len(terms) > 1:
        return _edit_method(lowered, region, region.value, terms, region.removed)
    term = terms[0]
    pieces = _segments(lowered, region.value, term.source)
    if any(end in made or uses[lowered.node_of[end]] > 1 for _, end in pieces[:-1]):
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
    call: Call = node.meta["call"]
    while not all(call in other.meta["call"].chain() for other in nodes):
        assert call.parent is not None
        call = call.parent
    while call.parent is not None and not _sees(lowered, call, value, terms):
        call = call.parent
    reason = call.frozen or _not_rewritable(lowered, call)
    if reason is not None:
        return f"{call.path or 'the model'}.{call.method} is not written again: {reason}"
    if not _sees(lowered, call, value, terms):
        return "the merged layer would read a value that only exists inside another module"
    region.edits.append(Edit(value, terms, node, call))
    return None


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


def _sees(lowered: Lowered, call: Call, value: Value, terms: tuple[Term, ...]) -> bool:
    names, values = lowered.visible_in(call)
    return lowered.node_of[value] in names and all(term.source in values for term in terms)


def _check_memory(lowered: Lowered, region: Region) -> str | None:
    """In-place operations: none may vanish that others see, none may come in between."""
    gone = {lowered.value_of[node] for node in region.removed if node in lowered.value_of}
    removed = set(region.removed)
    first = min(lowered.order[node] for node in region.path)
    last = max(lowered.order[node] for node in region.removed)
    sources = {term.source for term in region.choice.terms}
    for position, changed in lowered.changes_between(first, last):
        changer = lowered.node_at(position)
        if changer in removed:
            if lowered.value_of.get(changed) not in gone:
                return f"{changer.name} changes {changed.name} in place, which others may read"
            continue
        storage = lowered.storage[changed]
        if any(
            lowered.storage.get(node) is storage
            for source in sources
            for node in (lowered.node_of.get(source),)
            if node is not None
        ):
            return f"{changer.name} changes the source of the sum in place in between"
    return _check_sharing(lowered, region)


def _check_sharing(lowered: Lowered, region: Region) -> str | None:
    """A region that passes its source on shares its memory, where the original had its own."""
    (term, *more) = region.choice.terms
    if more or not is_skip(term):
        return None
    pinned, source = lowered.graph.pinned, lowered.node_of[term.source]
    if region.value in pinned and (term.source in pinned or source.op == "placeholder"):
        return f"{pinned[region.value]}, in memory of its own"
    storages = {lowered.storage.get(node) for node in (source, lowered.node_of[region.value])}
    for position, changed in lowered.changes:
        if lowered.storage[changed] in storages:
            changer = lowered.node_at(position)
            return f"{changer.name} changes {changed.name} in place, which would share its memory"
    return None


def _signature(lowered: Lowered, region: Region) -> tuple[Any, ...]:
    """What the region is made of, the same for two calls of the same modules."""
    return tuple(sorted(_key(lowered, node) for node in region.removed))


def _key(lowered: Lowered, node: fx.Node) -> tuple[str, ...]:
    if node.op == "call_module":
        return (str(lowered.modules[str(node.target)].__hash__()), "layer")
    call: Call = node.meta["call"]
    constants: list[str] = []

    def note(source: fx.Node) -> None:
        if source.op == "get_attr":
            constants.append(str(source.target))
        elif lowered.constants.is_constant(source):
            fx.node.map_arg((source.args, source.kwargs), note)

    fx.node.map_arg((node.args, node.kwargs), note)
    numbers = [str(arg) for arg in node.args if not isinstance(arg, fx.Node | tuple | list)]
    place = str(lowered.place_in_call(node))
    return (str(id(call.module)), call.method, place, str(node.target), *constants, *numbers)


def _largest(regions: list[Region], marks: list[list[Any]]) -> list[Region]:
    """Of the regions that some call lacks the largest: a smaller one may suit every call."""
    common = [mark for mark in marks[0] if all(mark in other for other in marks)]
    edits = {
        region: [(region.signature, edit.passes) for edit in region.edits] for region in regions
    }
    odd = [region for region in regions if any(mark not in common for mark in edits[region])]
    size = max((len(region.removed) for region in odd), default=0)
    return [region for region in odd if len(region.removed) == size] or regions


def _inconsistent(lowered: Lowered, found: Regions) -> list[tuple[Region, str]]:
    """Regions whose module is called several times, and not each time edited alike."""
    executions: dict[tuple[int, str], list[Any]] = {}
    for trace in lowered.traces.traces:
        for call in calls_of(trace.call):
            executions.setdefault((id(call.module), call.method), []).append(call)
            for item in call.items:
                if isinstance(item, fx.Node) and item.op == "call_module":
                    module = lowered.modules[str(item.target)]
                    executions.setdefault((id(module), "layer"), []).append(item)
    touched: dict[tuple[int, str], dict[Any, list[tuple[Any, ...]]]] = {}
    owners: dict[tuple[int, str], list[Region]] = {}
    for region in found.regions:
        for edit in region.edits:
            execution: fx.Node | Call = edit.call or edit.node
            if edit.call is None:
                key = (id(lowered.modules[str(edit.node.target)]), "layer")
            else:
                key = (id(edit.call.module), edit.call.method)
            marks = touched.setdefault(key, {}).setdefault(execution, [])
            marks.append((region.signature, edit.passes))
            owners.setdefault(key, []).append(region)
    bad: dict[Region, str] = {}
    for key, marks_of in touched.items():
        everywhere = executions.get(key, [])
        if key[1] == "layer" and key[0] in lowered.traces.loose:
            for region in owners[key]:
                bad[region] = "a layer is also called by a module that cannot be traced"
        alike = [sorted(marks_of.get(execution, []), key=str) for execution in everywhere]
        if any(mark != alike[0] for mark in alike):
            reason = f"a module is called {len(everywhere)} times, in different places"
            bad.update(dict.fromkeys(_largest(owners[key], alike), reason))
    for region in found.regions:
        for edit in region.edits:
            parent = edit.node.meta["call"] if edit.call is None else None
            if parent is not None and parent.unknown:
                bad.setdefault(region, parent.unknown)
            module = (
                lowered.modules[str(edit.node.target)] if edit.call is None else edit.call.module
            )
            if edit.call is None and has_hooks(module):
                bad.setdefault(region, f"{edit.node.target} has hooks")
    return list(bad.items())
