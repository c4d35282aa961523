"""What of a model runs on once its methods are written again: nodes, modules, parameters."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx

from repfuse.frontends.torch.calls import Call
from repfuse.frontends.torch.edits import Region, Regions
from repfuse.frontends.torch.lowered import Lowered
from repfuse.graph import Value

__all__ = ["Fates", "Usage"]


@dataclass
class Usage:
    """What of the model is still used: modules, and who reads which parameter of a module.

    gone: the nodes that no method runs any more. bare: calls of norms that are given no weight and
    bias any more. inlined: calls of methods whose caller takes over
    what remains of them. named: the paths of the new layers of all groups. sources: the values
    that the new layers and sums read.
    """

    modules: set[int] = field(default_factory=set)
    readers: dict[str, list[fx.Node]] = field(default_factory=dict)
    gone: set[fx.Node] = field(default_factory=set)
    bare: set[fx.Node] = field(default_factory=set)
    inlined: set[Call] = field(default_factory=set)
    named: set[str] = field(default_factory=set)
    sources: set[Value] = field(default_factory=set)

    @classmethod
    def of(cls, lowered: Lowered, found: Regions, groups: list[list[Region]]) -> Usage:
        """groups: the regions that are written together."""
        usage, fates = cls(), Fates(lowered, found, groups)
        usage.gone = {node for node in found.removed if fates.is_gone(node)} | found.edited
        usage.inlined = fates.inlined
        usage.bare = {
            edit.node
            for region in found.regions
            for edit in region.edits
            if edit.bares and edit.call is not None
        }
        usage.sources = {
            term.source for region in found.regions for edit in region.edits for term in edit.terms
        }
        running: set[Call] = set()
        for trace in lowered.traces.traces:
            for node in trace.graph.nodes:
                if node.op == "get_attr":
                    owner = str(node.target).rpartition(".")[0]
                    usage.readers.setdefault(owner, []).append(node)
                if node not in lowered.value_of or "call" not in node.meta:
                    continue
                if node in usage.gone and node not in found.edited:
                    continue
                if node.op == "call_module":
                    usage.modules.add(id(lowered.modules[str(node.target)]))
                for call in node.meta["call"].chain():
                    if call in running:
                        break
                    running.add(call)
                    usage.modules.add(id(call.module))
        return usage


class Fates:
    """Which recorded calls a written method leaves out, takes over, or still makes."""

    def __init__(
        self, lowered: Lowered, found: Regions, groups: list[list[Region]] | None = None
    ) -> None:
        self.lowered = lowered
        self.removed = found.removed
        self.edits: dict[Call, set[fx.Node]] = {}
        self._group: dict[Call | fx.Node, int] = {}
        for index, group in enumerate([found.regions] if groups is None else groups):
            for region in group:
                self._group.update(dict.fromkeys(region.removed, index))
                for edit in region.edits:
                    if edit.call is not None:
                        self.edits.setdefault(edit.call, set()).add(edit.node)
                        self._group[edit.call] = index
        self.inlined: set[Call] = set()
        self._writer: dict[Call, tuple[Call | None, bool]] = {}

    def is_gone(self, node: fx.Node) -> bool:
        """Whether the new body does without it: what another group removes, a body still has."""
        writer = self.writer(node.meta["call"])[0]
        return writer is not None and self._group[writer] == self._group[node]

    def is_dropped(self, call: Call) -> bool:
        return self.writer(call)[1]

    def writer(self, call: Call) -> tuple[Call | None, bool]:
        """The call whose new body decides what of this one runs, and whether nothing does."""
        if call not in self._writer:
            self._writer[call] = self._find_writer(call)
        return self._writer[call]

    def _find_writer(self, call: Call) -> tuple[Call | None, bool]:
        if call in self.edits:
            return call, False
        writer, dropped = (None, False) if call.parent is None else self.writer(call.parent)
        if writer is None or dropped:
            return writer, dropped
        inside = [node for node in call.nodes() if node in self.lowered.value_of]
        if any(node in self.edits[writer] for node in inside):
            return writer, True
        if inside and all(node in self.removed for node in inside):
            return writer, True
        if _is_helper(writer, call) and any(node in self.removed for node in inside):
            self.inlined.add(call)
            return writer, False
        return None, False


def _is_helper(writer: Call, call: Call) -> bool:
    """A method of the same module, which its caller may hold instead of calling it."""
    own = call.module is writer.module and call.method != "forward"
    return own and not call.frozen and not call.unknown
