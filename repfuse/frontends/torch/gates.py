"""Factors of a sample: products of a value with something small that is computed from data.

What shape a factor has is found by running what computes it on the meta device, from the nearest
values whose shape is known, at two batches and sizes: 1 in all spatial axes, and in that of the
channels 1 or their number. In which tensor it is a piece is found by running the pieces on
numbers that all differ.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.func import functional_call

from repfuse.factors import DRAWS, NODES, piece_of, width_of
from repfuse.frontends.torch.calls import is_plain
from repfuse.frontends.torch.lowering import Lowering
from repfuse.graph import Value
from repfuse.operators import Gate

__all__ = ["factor_of"]

PIECES = {
    "getitem", "select", "unbind", "chunk", "split", "tensor_split", "unsqueeze", "squeeze",
    "view", "reshape", "flatten", "permute", "transpose", "contiguous", "narrow",
}  # fmt: skip

Side = tuple[fx.Node, Value]


def factor_of(lowering: Lowering, left: Side, right: Side) -> tuple[Value, Gate] | str | None:
    """Which side of a product is a factor of the sample, and the other side; a reason where it
    looks like one and is none."""
    answer: str | None = None
    for (_, value), (node, factor) in ((left, right), (right, left)):
        known = lowering.known(value)
        if known is None or not known[1] or value == factor:
            continue
        images = _images(lowering, value)
        shapes = [_shape(lowering, node, images, *draw) for draw in DRAWS]
        if any(shape is None for shape in shapes):
            continue
        channels = width_of([shape for shape in shapes if shape is not None], DRAWS, *known)
        if isinstance(channels, int):
            return value, _gate(lowering, node, images, factor, channels)
        if lowering.graph.is_linear(value):
            answer = channels or answer
    return answer


def _images(lowering: Lowering, value: Value) -> dict[fx.Node, tuple[int, int]]:
    """(channels, rank) of the value, and of what it is made of by linear operators."""
    found, todo = dict[fx.Node, tuple[int, int]](), [value]
    while todo and len(found) < NODES:
        current = todo.pop()
        known, node = lowering.known(current), lowering.to.node_of.get(current)
        if node is None or node in found:
            continue
        if known is not None and known[1]:
            found[node] = known
        if lowering.graph.is_linear(current):
            todo += lowering.graph.operands(current)
    return found


def _shape(
    lowering: Lowering,
    node: fx.Node,
    images: dict[fx.Node, tuple[int, int]],
    batch: int,
    sizes: tuple[int, ...],
) -> tuple[int, ...] | None:
    memo: dict[fx.Node, Any] = {
        image: torch.empty(batch, channels, *sizes[:rank], device="meta")
        for image, (channels, rank) in images.items()
    }
    try:
        with torch.no_grad():
            value = _on_meta(lowering, node, batch, sizes, memo)
    except Exception:  # any operation may lack a meta form, or refuse such sizes
        return None
    real = isinstance(value, torch.Tensor) and not value.is_complex()
    return tuple(value.shape) if real else None


def _on_meta(
    lowering: Lowering, node: fx.Node, batch: int, sizes: tuple[int, ...], memo: dict[fx.Node, Any]
) -> Any:
    if node in memo:
        return memo[node]
    if len(memo) > 2 * NODES:
        raise LookupError("a long way")
    value = lowering.to.value_of.get(node)
    known = None if value is None else lowering.known(value)
    if node.op == "placeholder" and known is not None and known[1]:
        memo[node] = torch.empty(batch, known[0], *sizes[: known[1]], device="meta")
        return memo[node]
    if lowering.constants.is_constant(node):
        shape = lowering.constants.shape(node)
        if shape is None:
            raise LookupError("a constant of unknown shape")
        memo[node] = torch.empty(shape, device="meta")
        return memo[node]

    def run(source: fx.Node) -> Any:
        return _on_meta(lowering, source, batch, sizes, memo)

    args, kwargs = fx.node.map_arg((node.args, node.kwargs), run)
    memo[node] = _execute(lowering, node, args, kwargs)
    return memo[node]


def _execute(lowering: Lowering, node: fx.Node, args: Any, kwargs: Any) -> Any:
    if node.op == "call_module":
        module: nn.Module = lowering.to.modules[str(node.target)]
        if not is_plain(module):
            raise LookupError(node.target)
        tensors = {
            name: torch.empty(tensor.shape, device="meta", dtype=torch.float32)
            for table in (module.named_parameters(), module.named_buffers())
            for name, tensor in table
        }
        return functional_call(module, tensors, args, kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if node.op != "call_function":
        raise LookupError(node.op)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _gate(
    lowering: Lowering,
    node: fx.Node,
    images: dict[fx.Node, tuple[int, int]],
    factor: Value,
    channels: int,
) -> Gate:
    """The gate, as a piece of another value where it is one."""
    plain, base = Gate(factor, channels), node
    while _is_piece(base):
        base = base.args[0]  # type: ignore[assignment]
    value = lowering.to.value_of.get(base)
    width = _width(lowering, base, images)
    if value is None or width is None or base is node or lowering.entries.get(base) != value:
        return plain
    found = set()
    for batch, _ in DRAWS:
        numbers = torch.arange(batch * width[0], dtype=torch.float64).reshape(batch, *width[1])
        try:
            piece = _pieces(node, base, numbers)
        except Exception:  # a view for another size
            return plain
        found.add(piece_of(numbers.numpy(), piece.numpy(), channels))
    index = found.pop()
    if found or index is None:
        return plain
    return Gate(factor, channels, value, index, width[0] // channels)


def _is_piece(node: fx.Node) -> bool:
    name = str(getattr(node.target, "__name__", node.target))
    home = node.op in ("call_method", "call_function") and bool(node.args)
    return home and name in PIECES and isinstance(node.args[0], fx.Node)


def _width(
    lowering: Lowering, base: fx.Node, images: dict[fx.Node, tuple[int, int]]
) -> tuple[int, tuple[int, ...]] | None:
    """How many numbers a tensor has per sample, and in which axes."""
    shapes = [_shape(lowering, base, images, *draw) for draw in DRAWS]
    if shapes[0] is None or shapes[1] is None or not shapes[0]:
        return None
    batches = [shape[0] for shape in shapes if shape is not None]
    same = shapes[0][1:] == shapes[1][1:]
    if not same or batches != [batch for batch, _ in DRAWS]:
        return None
    return torch.Size(shapes[0][1:]).numel(), shapes[0][1:]


def _pieces(node: fx.Node, base: fx.Node, numbers: torch.Tensor) -> Any:
    """The piece of the base that a node is."""
    if node is base:
        return numbers
    if not _is_piece(node):
        raise LookupError("something else than a piece")

    def run(source: fx.Node) -> Any:
        if _is_batch(source):
            return numbers.shape[0]
        return _pieces(source, base, numbers)

    args, kwargs = fx.node.map_arg((node.args, node.kwargs), run)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _is_batch(node: fx.Node) -> bool:
    """Whether a number that a view is given is the size of the batch."""
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        source, index = node.args[0], node.args[1]
        return bool(source.target is getattr and source.args[1] == "shape" and index == 0)
    return bool(node.op == "call_method" and node.target == "size" and node.args[1:] == (0,))
