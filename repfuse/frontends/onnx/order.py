"""What is computed of what in the graph that is going to be written.

A node that asks for the shape of a tensor which goes may ask a later one of the same shape, but
none that is computed of its answer.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from repfuse.frontends.onnx.emit import on_tensor
from repfuse.frontends.onnx.forms import way_of
from repfuse.frontends.onnx.lowering import Lowered
from repfuse.graph import Value
from repfuse.select import Choice, Selection

__all__ = ["Order"]


class Order:
    """The order that a selection asks for. dropped: the nodes that go."""

    def __init__(self, lowered: Lowered, selection: Selection, dropped: set[int]) -> None:
        self._lowered, self._selection, self._dropped = lowered, selection, dropped
        self._moved: dict[str, set[str]] = {}

    def move(self, index: int, value: Value) -> None:
        """From now on a node reads this value."""
        made = self._lowered.scope.protos[index].output
        self._moved.setdefault(self._lowered.names[value], set()).update(filter(None, made))

    def after(self, index: int) -> set[str]:
        """The tensors that are computed of what a node gives."""
        lowered, protos = self._lowered, self._lowered.scope.protos
        todo = [name for name in protos[index].output if name]
        found = set(todo)
        while todo:
            name = todo.pop()
            made = {*self._new.get(name, ()), *self._moved.get(name, ())}
            for reader in lowered.readers.get(name, ()):
                made.update(protos[reader].output if reader not in self._dropped else ())
            todo += made - found - {""}
            found |= made
        return found

    @functools.cached_property
    def _new(self) -> dict[str, set[str]]:
        """By a tensor, what new nodes make of it."""
        found: dict[str, set[str]] = {}
        for value, choice in self._selection.rewritten().items():
            for name in self._reads(value, choice) if value in self._lowered.names else ():
                found.setdefault(name, set()).add(self._lowered.names[value])
        return found

    def _reads(self, value: Value, choice: Choice) -> Iterator[str]:
        lowered = self._lowered
        for read in choice.reads:
            yield lowered.names.get(read, "")
        for term in choice.terms:
            on = on_tensor(lowered, term)
            way = (
                way_of(lowered, value, on)
                if on is not None and on.source in lowered.names
                else None
            )
            if way is not None:
                yield way.tensor
                for index in (*way.kept, *way.copied):
                    yield from lowered.scope.protos[index].input
