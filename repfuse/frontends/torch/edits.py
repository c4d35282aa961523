"""Regions and their edits: what goes from a model, and where the new operator stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import fx

from repfuse.frontends.torch.calls import Call
from repfuse.graph import Value
from repfuse.select import Choice, Term, in_groups, is_skip

__all__ = ["Edit", "Region", "Regions"]


@dataclass(eq=False)
class Edit:
    """One segment: `value` is from now on the sum of the terms, or its single source itself.

    node is the node that made the value; call is where it is edited, None for a layer that is
    exchanged. Without terms the node is a norm that is made without its weight and bias.
    """

    value: Value
    terms: tuple[Term, ...]
    node: fx.Node
    call: Call | None

    @property
    def shape(self) -> tuple[bool, ...]:
        """For each term whether it is a source as it is, without a layer."""
        return tuple(map(is_skip, self.terms))

    @property
    def passes(self) -> bool:
        return self.shape == (True,)

    @property
    def bares(self) -> bool:
        return not self.terms


@dataclass(eq=False)
class Region:
    """One rewritten value.

    removed: the nodes that are gone, the one that made the value among them. path: all nodes
    between the sources and the value, also those that stay because others need them. through: the
    nodes of sources through which another source is read. unseen:
    sources of single terms that the method which holds the sum cannot name. by_memory: whether a
    change in place blocks it, which a longer region may hold. bare: the norms among the sources
    that lose their weight and bias: what these make, and what stands before that; the choice reads
    what they make. node: the one that gives the value.
    """

    value: Value
    choice: Choice
    removed: list[fx.Node]
    path: list[fx.Node] = field(default_factory=list)
    through: list[fx.Node] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    signature: tuple[Any, ...] = ()
    unseen: set[Value] = field(default_factory=set)
    by_memory: bool = False
    bare: dict[Value, Value] = field(default_factory=dict)
    node: fx.Node | None = None

    @property
    def keys(self) -> set[tuple[Value, Value]]:
        """What to forbid where the region cannot be written: see `select`."""
        terms = self.choice.terms
        if len(terms) == 1:
            return {(self.value, self.bare.get(terms[0].source, terms[0].source))}
        if self.unseen and not any(is_skip(t) and t.source in self.unseen for t in terms):
            return {(self.value, in_groups(source)) for source in self.unseen}
        return {(self.value, -1)}


@dataclass
class Regions:
    """All regions, the nodes that they remove together, and those that cannot be written.

    removed leaves out the nodes that are edited: these stay, as something else.
    """

    regions: list[Region]
    removed: set[fx.Node]
    edited: set[fx.Node]
    blocked: list[tuple[Region, str]]
