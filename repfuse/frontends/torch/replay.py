"""Run the original nodes of a region in float64, those that move axes among them.

What a permute or a view does is not taken from its recognition: the node itself runs, with its own
arguments, and what it gives has to be what the recognition says.
"""

from __future__ import annotations

import operator
from contextlib import nullcontext, suppress
from math import prod
from typing import Any

import torch
from torch import fx, nn

from repfuse.frontends.torch.copies import in_double
from repfuse.frontends.torch.edits import Region
from repfuse.frontends.torch.lowered import Lowered
from repfuse.frontends.torch.norms import bare_arguments, bare_layer
from repfuse.frontends.torch.products import FastConvs
from repfuse.graph import Sum, Value
from repfuse.layouts import Layout

__all__ = ["Misread", "Replay", "largest"]

VIEWS = {"view", "reshape", "reshape_as", "unflatten"}


class Misread(Exception):
    """A node that moves axes does something else than what it was taken for."""


class _Beyond(RuntimeError):
    """A node hangs on more than the values that are at hand."""


class Replay:
    """Runs the original nodes of a region in float64."""

    def __init__(self, lowered: Lowered, region: Region) -> None:
        self.lowered = lowered
        self.region = region
        self.layers: dict[str, nn.Module] = {}
        self.constants: dict[fx.Node, Any] = {}
        self.values: dict[Value, Any] = {}

    def run(self, inputs: dict[Value, torch.Tensor]) -> torch.Tensor:
        values = self.values = {value: x.clone() for value, x in inputs.items()}
        for node in self.region.path:
            values[self.lowered.value_of[node]] = self._node(node, values)
            root = self.lowered.root_of.get(node)
            if root is not None:
                made = values[self.lowered.value_of[node]]
                values[root] = self._moved_back(root, made, values)
        result: torch.Tensor = values[self.region.value]
        self._check_moves(set(inputs))
        return result

    def _check_moves(self, sources: set[Value]) -> None:
        """All nodes that move what the region reads or makes, since any of them may be read."""
        if not self.lowered.layouts:
            return
        for value in [value for value in self.values if value in self.lowered.turned]:
            for node in self.lowered.moves_of(value):
                order = self.lowered.layouts[node][1].order()
                if order is not None and self.values[value].dim() == len(order):
                    self._node(node, self.values)
        for value in sources & self.lowered.rooted.keys():
            self._check_origin(value, self.values[value])

    def _check_origin(self, value: Value, x: torch.Tensor) -> None:
        """The nodes that moved what a value was made of, which itself exists in this form only."""
        for node in self.lowered.node_of[value].all_input_nodes:
            if node in self.lowered.layouts:
                source, layout = self.lowered.layouts[node]
                shape = list(x.shape)
                shape[layout.channel] = self.lowered.graph.nodes[source].channels or 0
                drawn = torch.arange(prod(shape), dtype=x.dtype).reshape(shape)
                self._node(node, {source: drawn})
                if source in self.lowered.rooted:
                    self._check_origin(source, drawn)

    def _moved_back(
        self, value: Value, made: torch.Tensor, values: dict[Value, Any]
    ) -> torch.Tensor:
        """A value of which its node gives a moved form."""
        layout, order = self.lowered.rooted[value], self.lowered.rooted[value].order()
        assert order is not None
        sizes = list(self._value(self.lowered.graph.operands(value)[0], values).shape)
        sizes[layout.channel] = self.lowered.graph.nodes[value].channels or 0
        if list(made.shape) != layout.sizes(sizes):
            raise Misread(f"{self.lowered.node_of[value].name} gives {tuple(made.shape)}")
        rows = made.reshape([sizes[axis] for axis in order])
        return rows.permute([order.index(axis) for axis in range(len(order))])

    def largest(self) -> float:
        """The largest number of the last run."""
        found = [value for value in self.values.values() if isinstance(value, torch.Tensor)]
        return max(map(largest, found), default=0.0)

    def largest_term(self) -> float:
        """The largest number that the last run added to another one."""
        graph, values = self.lowered.graph, self.values
        return max(
            (
                largest(values[operand])
                for value in values
                if isinstance(graph.nodes[value].producer, Sum)
                for operand in graph.operands(value)
                if isinstance(values.get(operand), torch.Tensor)
            ),
            default=0.0,
        )

    def derive(self, value: Value, values: dict[Value, torch.Tensor]) -> bool:
        """Compute a value from others, if these alone tell it; whether they do."""
        if not self._follows(value, values):
            return False
        values[value] = self._value(value, dict(values))
        return True

    def norm(self, value: Value, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What a norm makes of x, with and without its weight and bias."""
        node = self.lowered.node_of[value]
        (source,) = self.lowered.graph.operands(self.lowered.bare[value])
        if node.op == "call_module":
            layer = self._layer(str(node.target))
            return layer(x), bare_layer(layer)(x)
        args, kwargs = self._arguments(node, {source: x})
        target: Any = node.target
        left, named = bare_arguments(target, args, kwargs)
        return target(*args, **kwargs), target(*left, **named)

    def _follows(self, value: Value, known: dict[Value, torch.Tensor]) -> bool:
        graph, todo, seen = self.lowered.graph, [value], set(known)
        while todo:
            value = todo.pop()
            if value in seen:
                continue
            if value < min(known, default=value + 1) or not graph.is_linear(value):
                return False
            seen.add(value)
            todo.extend(graph.operands(value))
        return True

    def _value(self, value: Value, values: dict[Value, Any]) -> Any:
        """A value in its own layout, computed where it is not at hand."""
        if value not in values:
            made = self._node(self.lowered.node_of[value], values)
            rooted = value in self.lowered.rooted
            values[value] = self._moved_back(value, made, values) if rooted else made
        return values[value]

    def _node(self, node: fx.Node, values: dict[Value, Any]) -> Any:
        if node in self.lowered.layouts:
            value, layout = self.lowered.layouts[node]
            return self._moved(node, _in_layout(self._value(value, values), layout), values)
        root = self.lowered.root_of.get(node)
        if root in values:  # a source that its node gives in a moved form
            return _in_layout(values[root], self.lowered.rooted[root])
        if node.op == "placeholder":
            raise _Beyond(f"{node.name} is not at hand")
        args, kwargs = self._arguments(node, values)
        return self._run(node, args, kwargs)

    def _run(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node.op == "call_module":
            layer = self._layer(str(node.target))
            with FastConvs() if isinstance(layer, nn.Conv2d) else nullcontext():
                return layer(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        target: Any = node.target
        with FastConvs() if target is torch.conv2d else nullcontext():
            result = target(*args, **kwargs)
        return args[0] if target is operator.setitem else result

    def _moved(
        self, node: fx.Node, expected: torch.Tensor, values: dict[Value, Any]
    ) -> torch.Tensor:
        """What a node that moves axes makes; it has to be what it is expected to be."""
        name = getattr(node.target, "__name__", str(node.target))
        if name in VIEWS:
            made = self._viewed(node, name, expected, values)
        else:
            args, kwargs = self._arguments(node, values)
            made = self._run(node, args, kwargs)
        if made.shape != expected.shape or not bool(((made == expected) | made.isnan()).all()):
            raise Misread(f"{node.name} does not move the axes as it was taken to")
        return made  # type: ignore[no-any-return]

    def _viewed(
        self, node: fx.Node, name: str, expected: torch.Tensor, values: dict[Value, Any]
    ) -> Any:
        """A view, at sizes of the input at hand.

        A number in the code is another one here, unless it is that of the channels, and a size of
        what is not at hand, or one that is computed, is the one that it has to be.
        """
        shape = list(expected.shape)
        x = self._argument(node, node.args[0], values)
        if name == "reshape_as":
            with suppress(_Beyond):
                return x.reshape_as(self._argument(node, node.args[1], values))
            return x.reshape(shape)
        rest = list(node.args[1:])
        listed = len(rest) == 1 and isinstance(rest[0], tuple | list)
        sizes: list[Any] = list(rest[0]) if listed else rest  # type: ignore[arg-type]
        if len(sizes) != len(shape):  # given by name, or of some of the axes only
            sizes = shape
        found = [self._size(node, part, place, shape, values) for place, part in enumerate(sizes)]
        return x.reshape(found)

    def _size(
        self, node: fx.Node, part: Any, place: int, shape: list[int], values: dict[Value, Any]
    ) -> int:
        """One size of a view; shape: what the view has to give."""
        layout = self.lowered.layouts[node][1]
        known = self.lowered.constants.literal(part)
        if isinstance(known, int):
            return known if place == layout.place or known == -1 else shape[place]
        read = isinstance(part, fx.Node) and part.target in (operator.getitem, "size")
        if not read or layout.groups[place][0][2] > 1:
            return shape[place]
        try:
            return int(self._argument(node, part, values))
        except _Beyond:
            return shape[place]

    def _argument(self, node: fx.Node, argument: Any, values: dict[Value, Any]) -> Any:
        """An argument of a node, where these values are known."""
        reads = self.lowered.reads.get(node, {})

        def resolve(source: fx.Node) -> Any:
            value = reads.get(source, self.lowered.value_of.get(source))
            layout = self.lowered.layouts.get(source)  # of the value that is read: it moved here
            returned = value in self.lowered.turned and layout is not None and layout[0] == value
            if value is not None and value in values and not returned:
                found = values[value]  # a copy: nodes may change their arguments in place
                return found.clone() if isinstance(found, torch.Tensor) else found
            if self.lowered.constants.is_constant(source):
                if source not in self.constants:
                    self.constants[source] = self.lowered.constants._run(source, "cpu", {})
                return self.constants[source]
            return self._node(source, values)

        return fx.node.map_arg(argument, resolve)

    def _arguments(self, node: fx.Node, values: dict[Value, Any]) -> Any:
        return self._argument(node, (node.args, node.kwargs), values)

    def _layer(self, path: str) -> nn.Module:
        if path not in self.layers:
            self.layers[path] = in_double(self.lowered.modules[path])
        return self.layers[path]


def largest(tensor: torch.Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def _in_layout(x: torch.Tensor, layout: Layout) -> torch.Tensor:
    order = layout.order()
    assert order is not None
    return x.permute(order).reshape(layout.sizes(x.shape))
