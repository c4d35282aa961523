"""Prove one rewrite: the original nodes against the new layers, in float64, borders included."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from repfuse.frontends.torch.copies import in_double
from repfuse.frontends.torch.edits import Region
from repfuse.frontends.torch.lowered import Lowered
from repfuse.frontends.torch.norms import bare_arguments, bare_layer
from repfuse.graph import Sum, Value
from repfuse.layouts import Layout
from repfuse.mixing import gates_of
from repfuse.operators import Conv, Mixed, Operator
from repfuse.probing import BOUND, SMALL, chances, probe_sizes, source_sizes
from repfuse.select import is_skip

__all__ = ["probe"]


def probe(lowered: Lowered, region: Region, layers: list[nn.Module | None]) -> str | None:
    """Compare on random inputs of batch 2; a text that says where they disagree, or None.

    layers: the new float64 layer of each term, None for a skip. Sizes: low and high borders
    apart, one for every residue of the size modulo the stride, and the smallest legal one.
    """
    replay, convs = _Replay(lowered, region), _convs(region)
    generator = torch.Generator().manual_seed(len(region.removed))
    for size in probe_sizes(convs):
        for tried in chances(convs, size):
            try:
                with torch.no_grad(), FastConvs():
                    inputs, new = _new_result(lowered, region, layers, tried, generator, replay)
                    old = replay.run(inputs)
                break
            except (RuntimeError, ValueError) as error:  # ValueError: a norm of one element
                failed = f"it does not run on an input of size {tried}: {error}"
        else:
            if max(size, default=9) < SMALL:
                continue  # smaller than this region accepts
            return failed
        if old.shape != new.shape:
            return f"shapes {tuple(old.shape)} and {tuple(new.shape)} at input size {tried}"
        gap, scale = _largest(old - new), _largest(old)
        if gap > BOUND * scale:  # terms may cancel
            scale = max(scale, replay.largest_term())
        if not gap <= BOUND * max(scale, 1e-300):
            return f"difference {gap:.3g} of {scale:.3g} at input size {tried}"
        if size and max(size) < SMALL:
            break  # the smallest legal size
    return None


class FastConvs(TorchFunctionMode):
    """Float64 convolutions as one batched product: torch's own take ten times as long."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.conv2d and not kwargs and len(args) == 7:
            x, weight, bias, stride, padding, dilation, groups = args
            if not isinstance(padding, str) and x.dim() == 4:
                return _as_product(x, weight, bias, stride, padding, dilation, groups)
        return function(*args, **kwargs)


def _as_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> torch.Tensor:
    kernel_size = tuple(weight.shape[2:])
    patches = torch.nn.functional.unfold(x, kernel_size, dilation, padding, stride)
    batch, positions = x.shape[0], patches.shape[-1]
    columns = patches.reshape(batch, groups, -1, positions).permute(1, 2, 0, 3).flatten(2)
    rows = weight.reshape(groups, weight.shape[0] // groups, -1)
    result = (rows @ columns).reshape(weight.shape[0], batch, positions)
    if bias is not None:
        result = result + bias[:, None, None]
    result = result.transpose(0, 1)
    pads = padding if isinstance(padding, tuple | list) else (padding,) * 2
    strides = stride if isinstance(stride, tuple | list) else (stride,) * 2
    dilations = dilation if isinstance(dilation, tuple | list) else (dilation,) * 2
    height, width = (
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, p, d, k, s in zip(x.shape[2:], pads, dilations, kernel_size, strides, strict=True)
    )
    return result.reshape(batch, weight.shape[0], height, width)


def _convs(region: Region) -> list[Conv]:
    return [conv for _, conv in _terms(region)]


def _terms(region: Region) -> list[tuple[Value, Conv]]:
    """The convs by their sources; a mixed kernel stands for a conv of its geometry."""
    found = []
    for term in region.choice.terms:
        operator = term.operator
        operator = operator.together if isinstance(operator, Mixed) else operator
        if isinstance(operator, Conv):
            found.append((term.source, operator))
    return found


def _new_result(
    lowered: Lowered,
    region: Region,
    layers: list[nn.Module | None],
    size: tuple[int, ...],
    generator: torch.Generator,
    replay: _Replay,
) -> tuple[dict[Value, torch.Tensor], torch.Tensor]:
    """Random values of the sources, and the sum of the new layers on them.

    A source that is computed from others is computed from them here, too.
    """
    inputs: dict[Value, torch.Tensor] = {}

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    terms = _terms(region)
    sizes, _ = source_sizes(terms, size)
    for source, conv in sorted(terms, key=lambda term: term[0]):
        if source not in inputs and not replay.derive(source, inputs):
            spatial = bool(conv.rank) or _of_matrices(lowered, region)
            batch = (2,) if spatial else (2, 3)
            roots = [lowered.root_of[node] for node in region.path if node in lowered.root_of]
            if roots:  # these tell how many axes there are
                count = len(lowered.rooted[roots[0]].order() or ())
                shape = (2, *(3,) * (count - 2 - conv.rank), conv.in_channels, *sizes[source])
                inputs[source] = random(*shape)
                continue
            inputs[source] = random(*batch, conv.in_channels, *sizes[source])
    bare: dict[Value, torch.Tensor] = {}
    for norm in region.bare:
        inputs[norm], bare[norm] = replay.norm(norm, inputs[norm])
    total: torch.Tensor | None = None
    for term, layer in zip(region.choice.terms, layers, strict=True):
        if layer is not None:
            x = bare.get(term.source, inputs[term.source])
            factors = _factors(term.operator, random, replay, inputs)
            part = _run(layer, x, term.operator.rank, factors)
            total = part if total is None else total + part
    assert total is not None
    for term in region.choice.terms:
        if is_skip(term):
            if term.source not in inputs and not replay.derive(term.source, inputs):
                inputs[term.source] = random(*total.shape)
            total = total + inputs[term.source]
    return inputs, total


def _factors(
    operator: Operator, random: Any, replay: _Replay, inputs: dict[Value, torch.Tensor]
) -> list[torch.Tensor]:
    """Random factors, other ones for each sample of the batch; their pieces follow from them."""
    if not isinstance(operator, Mixed):
        return []
    (gates, base), ones = gates_of(operator), (1,) * operator.rank
    for gate in gates:
        if gate.value not in inputs:
            inputs[gate.value] = random(2, gate.channels, *ones)
    if base is None:
        return [inputs[gate.value] for gate in gates]
    return [torch.cat([inputs[gate.value] for gate in gates], 1)]


def _run(layer: Any, x: torch.Tensor, rank: int, factors: list[torch.Tensor]) -> torch.Tensor:
    """The layer on data of a rank; if it is one of another rank, on each position by itself."""
    own = max(layer.weight.dim() - 2, 0)
    if own == rank or factors:
        result: torch.Tensor = layer(x, *factors)
        return result
    last = x.movedim(-(rank + 1), -1)
    flat: torch.Tensor = layer(last.reshape(-1, last.shape[-1], *[1] * own))
    return flat.reshape(*last.shape[:-1], -1).movedim(-1, -(rank + 1))


def _of_matrices(lowered: Lowered, region: Region) -> bool:
    """A batch norm over the last axis and `mm` take a matrix, others on tokens three axes too."""
    return any(
        isinstance(lowered.modules[str(node.target)], nn.modules.batchnorm._BatchNorm)
        if node.op == "call_module"
        else node.target in (torch.nn.functional.batch_norm, torch.mm, "mm")
        for node in region.removed
    )


def _largest(tensor: torch.Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def _in_layout(x: torch.Tensor, layout: Layout) -> torch.Tensor:
    order = layout.order()
    assert order is not None
    return x.permute(order).reshape(layout.sizes(x.shape))


class _Replay:
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
                values[root] = self._moved_back(root, made)
        result: torch.Tensor = values[self.region.value]
        return result

    def _moved_back(self, value: Value, made: torch.Tensor) -> torch.Tensor:
        """A value of which its node gives a moved form."""
        layout, order = self.lowered.rooted[value], self.lowered.rooted[value].order()
        assert order is not None
        sizes = list(self.values[self.lowered.graph.operands(value)[0]].shape)
        sizes[layout.channel] = self.lowered.graph.nodes[value].channels or 0
        rows = made.reshape([sizes[axis] for axis in order])
        return rows.permute([order.index(axis) for axis in range(len(order))])

    def largest_term(self) -> float:
        """The largest number that the last run added to another one."""
        graph, values = self.lowered.graph, self.values
        return max(
            (
                _largest(values[operand])
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
        values[value] = self._node(self.lowered.node_of[value], dict(values))
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

    def _node(self, node: fx.Node, values: dict[Value, Any]) -> Any:
        if node in self.lowered.layouts:
            value, layout = self.lowered.layouts[node]
            if value not in values:
                values[value] = self._node(self.lowered.node_of[value], values)
            return _in_layout(values[value], layout)
        root = self.lowered.root_of.get(node)
        if root in values:  # a source that its node gives in a moved form
            return _in_layout(values[root], self.lowered.rooted[root])
        args, kwargs = self._arguments(node, values)
        if node.op == "call_module":
            return self._layer(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        result = node.target(*args, **kwargs)  # type: ignore[operator]
        return args[0] if node.target is operator.setitem else result

    def _arguments(self, node: fx.Node, values: dict[Value, Any]) -> Any:
        """The arguments of a node, where these values are known."""
        reads = self.lowered.reads.get(node, {})

        def resolve(source: fx.Node) -> Any:
            value = reads.get(source, self.lowered.value_of.get(source))
            if value is not None and value in values:
                found = values[value]  # a copy: nodes may change their arguments in place
                return found.clone() if isinstance(found, torch.Tensor) else found
            if self.lowered.constants.is_constant(source):
                if source not in self.constants:
                    self.constants[source] = self.lowered.constants._run(source, "cpu", {})
                return self.constants[source]
            return self._node(source, values)

        return fx.node.map_arg((node.args, node.kwargs), resolve)

    def _layer(self, path: str) -> nn.Module:
        if path not in self.layers:
            self.layers[path] = in_double(self.lowered.modules[path])
        return self.layers[path]
