"""Whether a fused model runs the operators that its plan says: those it had, less what is merged,
and those that merges make."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import onnx
import torch
from onnx import AttributeProto, ModelProto, NodeProto
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from repfuse.report import Report
from tests.frontends.onnx.build import bodies

__all__ = ["broken", "in_file", "in_module"]

SAID = re.compile(
    r"(ConvTranspose|Conv|Linear)(?: ([\dx]+))?(?: [sg][\dx]+| depthwise)* (\d+)->(\d+)"
)


def broken(
    report: Report, before: Counter[str], after: Counter[str], read: Counter[str] | None = None
) -> str:
    """What the plan says and the fused model does not hold to; nothing where it does.

    before, after: the operators of the original and of the fused model; read: those of the
    original that something reads, for a plan does not tell of others that go. Regions are shown
    once for all calls of a module, so a plan may name less than there is of one operator.
    """
    if any("mixed" in text for region in report.regions for text in region.after):
        return ""  # a mixed kernel is written as products and sums
    made = {key for region in report.regions for text in region.after for key in _keys(text)}
    gone = {key for region in report.regions for text in region.before for key in _keys(text)}
    missing = made - set(after)
    if missing:
        return f"said to be made, and not there: {sorted(missing)}"
    surprise = set(after - before) - made
    if surprise:
        return f"there is more of, and none was said to be made: {sorted(surprise)}"
    lost = set((before if read is None else read) - after) - gone
    if lost:
        return f"there is less of, and none was said to be merged: {sorted(lost)}"
    return ""


def _keys(text: str) -> list[str]:
    return [
        _key(name, [int(n) for n in size.split("x")] if size else [], int(inputs), int(outputs))
        for name, size, inputs, outputs in SAID.findall(text)
    ]


def _key(name: str, kernel: Iterable[int], inputs: int, outputs: int) -> str:
    """A Linear is the conv of one tap that it may be written as."""
    sizes = list(kernel)
    small = "" if set(sizes) <= {1} else "x".join(map(str, sizes))
    return f"{'ConvTranspose' if name == 'ConvTranspose' else 'Conv'} {small} {inputs}->{outputs}"


def in_module(model: nn.Module, x: Tensor) -> Counter[str]:
    """The operators that one forward runs on what depends on the input: no kernel is made so."""
    found: Counter[str] = Counter()
    image = x.clone()
    data: dict[int, Tensor] = {id(image): image}  # kept, so that no number is used again

    class Count(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            name = func._schema.name
            depends = any(id(leaf) in data for leaf in pytree.tree_leaves((args, kwargs)))
            result = func(*args, **(kwargs or {}))
            if not depends:
                return result
            for leaf in pytree.tree_leaves((result, args[:1])):
                if isinstance(leaf, Tensor):
                    data[id(leaf)] = leaf
            if name == "aten::convolution":
                (rows, columns, *kernel), groups = args[1].shape, args[8]
                kind = "ConvTranspose" if args[6] else "Conv"
                if args[6]:
                    rows, columns = columns, rows
                inputs = columns if args[6] else columns * groups
                found[_key(kind, kernel, inputs, rows * groups if args[6] else rows)] += 1
            elif name in ("aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm"):
                found[_key("Linear", [], *args[-1].shape[-2:])] += 1
            return result

    with torch.no_grad(), Count():  # type: ignore[no-untyped-call]
        model(image)
    return found


def _read(graph: Any) -> Iterator[NodeProto]:
    """The nodes, last ones first, on whose numbers an output of the graph or of a function hangs;
    where only the shape or the type is asked for, they may go."""
    names = {out if isinstance(out, str) else out.name for out in graph.output}
    for node in reversed(graph.node):
        if not names.isdisjoint(node.output) and node.op_type not in ("Shape", "Size"):
            inner = [a.g for a in node.attribute if a.type == AttributeProto.GRAPH]
            while inner:
                body = inner.pop()
                names.update(out.name for out in body.output)
                for each in body.node:
                    names.update(each.input)
                    inner += [a.g for a in each.attribute if a.type == AttributeProto.GRAPH]
            names.update(node.input[:1] if node.op_type == "CastLike" else node.input)
            yield node


def in_file(model: ModelProto, read: bool = False) -> Counter[str]:
    """The operators that stand in a file, as far as their weights do, too.

    read: only those that something reads.
    """
    found: Counter[str] = Counter()
    for graph in bodies(model):
        shapes: dict[str, tuple[int, ...]] = {
            tensor.name: tuple(tensor.dims) for tensor in getattr(graph, "initializer", ())
        }
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                shapes[node.output[0]] = tuple(node.attribute[0].t.dims)
        for node in _read(graph) if read else graph.node:
            shape = shapes.get(node.input[1]) if len(node.input) > 1 else None
            if shape is None or node.domain or any(a.ref_attr_name for a in node.attribute):
                continue
            attrs: Mapping[str, Any] = {
                a.name: onnx.helper.get_attribute_value(a) for a in node.attribute
            }
            groups = attrs.get("group", 1)
            if node.op_type == "Conv":
                found[_key("Conv", shape[2:], shape[1] * groups, shape[0])] += 1
            elif node.op_type == "ConvTranspose":
                found[_key("ConvTranspose", shape[2:], shape[0], shape[1] * groups)] += 1
            elif node.op_type in ("Gemm", "MatMul") and len(shape) == 2:
                pair = shape[::-1] if attrs.get("transB") else shape
                found[_key("Linear", [], *pair)] += 1
    return found
