"""Whether a region may be written: memory that others see, modules that are called again."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import fx

from repfuse.frontends.torch.calls import Call, calls_of, has_hooks, is_torch_class
from repfuse.frontends.torch.edits import Edit, Region, Regions
from repfuse.frontends.torch.lowered import Lowered
from repfuse.frontends.torch.untraced import Untraced
from repfuse.frontends.torch.usage import Fates
from repfuse.operators import Conv
from repfuse.select import is_skip

SIZED = ("in_channels", "out_channels", "kernel_size", "groups", "in_features", "out_features")
ALIKE = ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups")

__all__ = ["check_memory", "inconsistent", "signature_of"]


def check_memory(lowered: Lowered, region: Region) -> str | None:
    """In-place operations: none may vanish that others see, none may come in between."""
    gone = {lowered.value_of[node] for node in region.removed if node in lowered.value_of}
    removed = set(region.removed)
    first = min(lowered.order[node] for node in (*region.path, *region.through))
    last = max(lowered.order[node] for node in region.removed)
    sources = region.choice.reads
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
    made = {*region.removed, lowered.node_of[region.value]}
    for changer, name in lowered.seen_views():
        if changer in removed or name in made:
            return f"{name.name} sees memory that {changer.name} changes in place"
    return _check_names(lowered, region) or _check_sharing(lowered, region)


def _check_names(lowered: Lowered, region: Region) -> str | None:
    """What a call changes in place, its caller may go on to read by the name it had before."""
    names = set(lowered.names_of.get(region.value, ()))
    for edit in reversed(region.edits):  # what is edited here gives the value under its own name
        names.discard(edit.node)
        if not edit.passes:
            break
    if not names:
        return None
    changer, calls = lowered.node_of[region.value].name, set[Call]()
    for edit in region.edits:
        if edit.value == region.value and edit.call is not None:
            calls.add(edit.call)
    kept = {node for t in lowered.traces.traces for nodes in t.kept.values() for node in nodes}
    for name in names:
        readers = [r for r in name.users if lowered.reads.get(r, {}).get(name) == region.value]
        if name in kept or not all(_is_in(reader, calls) for reader in readers):
            return f"{changer} changes {name.name} in place, which others may read"
    return None


def _is_in(reader: fx.Node, calls: set[Call]) -> bool:
    """Whether one of the calls, which is written again, decides what the node reads."""
    if reader.op == "output":
        return any(call.parent is None for call in calls)
    return not calls.isdisjoint(reader.meta["call"].chain())


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


def signature_of(lowered: Lowered, region: Region) -> tuple[Any, ...]:
    """What the new operator is made of, the same for two calls of the same modules.

    A method may give other numbers to its operations from call to call, and connect them in
    another way; so a node counts with its arguments, and with all that its constants are made of.
    """
    norms = (lowered.node_of[norm] for norm in region.bare)
    every = {*region.path, *region.through, *region.removed, *norms}
    nodes = sorted(every, key=lowered.order.__getitem__)
    text = _Text(lowered, nodes)
    lines = tuple((*_place(lowered, node), text.of(node)) for node in nodes)
    read = tuple(text.names.get(lowered.node_of[term.source]) for term in region.choice.terms)
    return (*lines, *text.constants(), read)


def _place(lowered: Lowered, node: fx.Node) -> tuple[str, ...]:
    """Where the code of a node is; a layer may be called from different places."""
    if node.op == "call_module":
        return (str(lowered.modules[str(node.target)].__hash__()), "layer")
    call: Call = node.meta["call"]
    return (str(id(call.module)), call.method, str(lowered.place_in_call(node)))


class _Text:
    """Nodes as text, in which what they read is numbered in the order of reading."""

    def __init__(self, lowered: Lowered, nodes: list[fx.Node]) -> None:
        self.lowered = lowered
        self.names = {node: _Name(f"node {rank}") for rank, node in enumerate(nodes)}
        self.found: list[fx.Node] = []

    def of(self, node: fx.Node) -> str:
        target = "" if node.op == "call_module" else str(node.target)
        return f"{target}{fx.node.map_arg((node.args, node.kwargs), self._name)}"

    def constants(self) -> list[str]:
        """What the constants that were read are computed from."""
        lines = []
        while self.found:
            lines.append(self.of(self.found.pop()))
        return lines

    def _name(self, source: fx.Node) -> Any:
        if source.op == "get_attr":
            return _Name(str(source.target))
        if source not in self.names:
            constant = self.lowered.constants.is_constant(source)
            self.names[source] = _Name(f"{'constant' if constant else 'input'} {len(self.names)}")
            if constant:
                self.found.append(source)
        return self.names[source]


class _Name(str):
    """Prints without quotes: no string among the arguments looks like it."""

    def __repr__(self) -> str:
        return f"<{self}>"


def _largest(regions: list[Region], marks: list[list[Any]]) -> list[Region]:
    """Of the regions that some call lacks the largest: a smaller one may suit every call."""
    common = [mark for mark in marks[0] if all(mark in other for other in marks)]
    edits = {
        region: [(region.signature, edit.shape) for edit in region.edits] for region in regions
    }
    odd = [region for region in regions if any(mark not in common for mark in edits[region])]
    size = max((len(region.removed) for region in odd), default=0)
    return [region for region in odd if len(region.removed) == size] or regions


def _executions(lowered: Lowered, found: Regions) -> dict[tuple[int, str], list[Any]]:
    """The calls of each method and layer, but for those that a written method leaves out."""
    fates, executions = Fates(lowered, found), dict[tuple[int, str], list[Any]]()
    for trace in lowered.traces.traces:
        for call in calls_of(trace.call):
            if fates.is_dropped(call):
                continue
            executions.setdefault((id(call.module), call.method), []).append(call)
            for item in call.items:
                if isinstance(item, fx.Node) and item.op == "call_module":
                    if item in found.removed and fates.is_gone(item):
                        continue
                    module = lowered.modules[str(item.target)]
                    executions.setdefault((id(module), "layer"), []).append(item)
    return executions


def inconsistent(lowered: Lowered, found: Regions) -> list[tuple[Region, str]]:
    """Regions whose module is called several times, and not each time edited alike."""
    executions = _executions(lowered, found)
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
            marks.append((region.signature, edit.shape))
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
    _check_varying(found, bad)
    _check_reads(lowered, found, bad)
    _check_lists(lowered, found, bad)
    _check_other_methods(lowered, found, bad)
    return list(bad.items())


def _check_varying(found: Regions, bad: dict[Region, str]) -> None:
    """A method that keeps something may connect its layers by it in another way next time."""
    for region in found.regions:
        items: dict[Call, set[fx.Node | Call]] = {}
        counts = Counter[Call]()
        for node in region.removed:
            item: fx.Node | Call = node
            for call in node.meta["call"].chain():
                if call.varies:
                    items.setdefault(call, set()).add(item)
                    counts[call] += 1
                item = call
        for call, parts in items.items():
            if len(parts) > 1 or counts[call] < len(region.removed):
                bad.setdefault(region, str(call.varies))


def _check_lists(lowered: Lowered, found: Regions, bad: dict[Region, str]) -> None:
    """Code that lists the children of a module must find no new one, or be written again."""
    if not lowered.traces.lists:
        return
    written, fates = _written(found), Fates(lowered, found)
    for region in found.regions:
        for edit in region.edits:
            calls = lowered.traces.lists.get(id(edit.call.module), []) if edit.call else []
            for call in calls:
                again = (id(call.module), call.method) in written or fates.is_dropped(call)
                if not again and edit.call is not None:
                    names = (each.path or "the model" for each in (call, edit.call))
                    bad.setdefault(region, "{} lists the layers of {}".format(*names))


def _written(found: Regions) -> set[tuple[int, str]]:
    """The methods that are written again."""
    return {
        (id(edit.call.module), edit.call.method)
        for region in found.regions
        for edit in region.edits
        if edit.call is not None
    }


def _check_reads(lowered: Lowered, found: Regions, bad: dict[Region, str]) -> None:
    """Code that looks into a layer must find the same there, or be written again."""
    if not lowered.traces.reads:
        return
    written, fates = _written(found), Fates(lowered, found)
    gone = {node for node in found.removed if fates.is_gone(node)} | found.edited
    for region in found.regions:
        swapped = {
            edit.node: _same(lowered, edit)
            for edit in region.edits
            if edit.call is None and not (edit.passes or edit.bares)
        }
        for node in (*region.removed, *(lowered.node_of[norm] for norm in region.bare)):
            if node.op != "call_module":
                continue
            module = lowered.modules[str(node.target)]
            for read in lowered.traces.reads_of(module):
                kept = {"weight", "__class__"} if is_torch_class(type(module)) else {"weight"}
                same = node in swapped and read.name in kept
                if same and read.name == "weight" and _asks_size(read.node):
                    same = swapped[node] >= {n for n in SIZED if hasattr(module, n)}
                again = (id(read.call.module), read.call.method) in written
                again |= fates.is_dropped(read.call)
                if read.node is not None:
                    again &= gone.issuperset(lowered.fills.get(read.node, [read.node]))
                if not same and not again:
                    where = read.call.path or "the model"
                    bad.setdefault(region, f"{where} looks up {read.name} of {node.target}")


def _asks_size(node: fx.Node | None) -> bool:
    """Whether somebody asks a weight for its size."""
    return node is None or any(
        (user.target is getattr and user.args[1] in ("shape", "ndim")) or user.op == "call_method"
        for user in node.users
    )


def _same(lowered: Lowered, edit: Edit) -> set[str]:
    """The attributes of a layer that are the same in the new one."""
    layer, operator = lowered.modules[str(edit.node.target)], edit.terms[0].operator
    if len(edit.terms) != 1 or not isinstance(operator, Conv):
        return set()
    known = {name: getattr(operator, name) for name in ALIKE}
    known |= {"in_features": operator.in_channels, "out_features": operator.out_channels}
    return {name for name, value in known.items() if getattr(layer, name, None) == value}


def _check_other_methods(lowered: Lowered, found: Regions, bad: dict[Region, str]) -> None:
    """A method that forward does not call may use some of the layers of a region, not all, or look
    into a layer that is swallowed."""
    untraced = Untraced(lowered)
    for region in found.regions:
        swapped = {
            edit.node: {"weight", *_same(lowered, edit)}
            for edit in region.edits
            if edit.call is None and not (edit.passes or edit.bares)
        }
        for node in region.removed if lowered.looked_up else ():
            module = lowered.modules[str(node.target)] if node.op == "call_module" else None
            for where, name in sorted(lowered.looked_up.get(id(module), ())):
                if name not in swapped.get(node, ()):
                    bad.setdefault(region, f"{where} looks up {name} of {node.target}")
    for region in found.regions:
        if region not in bad:
            norms = (lowered.node_of[norm] for norm in region.bare)
            reason = untraced.refusal([*region.removed, *norms])
            if reason is not None:
                bad[region] = reason
