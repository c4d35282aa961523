"""Tensors that depend on no input: initializers, Constant nodes, and what is computed from them.

The dynamo exporter writes a bias as `Expand(CastLike(0, x), Shape(weight))`, legacy exporters wrap
shared weights in Identity; both are constants. Values are read when a rewrite needs them, floats
in float64. Only the values of vectors and scalars are looked at while planning: a bias of zeros is
no bias, a factor of ones no factor.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto

from repfuse.arrays import Array
from repfuse.frontends.onnx.files import external_range
from repfuse.frontends.onnx.scopes import Scope
from repfuse.frontends.onnx.shapes import FLOATS, Dim, Type
from repfuse.rounding import rounded

__all__ = ["PURE", "Constants", "read_tensor"]

HUGE = 2**30  # elements
LOOKED_AT = 65_536  # elements
DOUBLE = TensorProto.DOUBLE

# Whole numbers pass through these as they are. Floats do in steps, where the last bit decides.
STEPS = frozenset(
    [
        "Ceil",
        "Equal",
        "Floor",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Mod",
        "OneHot",
        "Round",
        "Sign",
    ]
)
LITERALS = ("value", "value_float", "value_floats", "value_int", "value_ints")
WRAPPERS = ("Identity", "Cast", "CastLike", "Transpose", "Reshape")
# What only moves, repeats or converts numbers: no work that storing the result would save.
CARRIERS = frozenset(
    [
        *WRAPPERS,
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Expand",
        "Flatten",
        "Gather",
        "Range",
        "Shape",
        "Size",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Unsqueeze",
    ]
)

PURE = frozenset(
    [
        "Abs",
        "Add",
        "And",
        "Cast",
        "CastLike",
        "Ceil",
        "Clip",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Cos",
        "CumSum",
        "Div",
        "Einsum",
        "Equal",
        "Erf",
        "Exp",
        "Expand",
        "EyeLike",
        "Flatten",
        "Floor",
        "Gather",
        "GatherElements",
        "GatherND",
        "Gemm",
        "Greater",
        "GreaterOrEqual",
        "Identity",
        "Less",
        "LessOrEqual",
        "Log",
        "MatMul",
        "Max",
        "Mean",
        "Min",
        "Mod",
        "Mul",
        "Neg",
        "Not",
        "OneHot",
        "Or",
        "Pad",
        "Pow",
        "Range",
        "Reciprocal",
        "ReduceL1",
        "ReduceL2",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "ReduceSum",
        "ReduceSumSquare",
        "Relu",
        "Reshape",
        "Round",
        "ScatterElements",
        "ScatterND",
        "Shape",
        "Sigmoid",
        "Sign",
        "Sin",
        "Size",
        "Slice",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Sum",
        "Tanh",
        "Tile",
        "Transpose",
        "Trilu",
        "Unsqueeze",
        "Where",
    ]
)


class Constants:
    """The constants that one graph can name, its own and those of the graphs around it.

    before: is called with each node when the constants among its inputs are known.
    """

    def __init__(
        self,
        scope: Scope,
        folder: Path | None,
        outer: Constants | None = None,
        before: Callable[[Constants, NodeProto], None] | None = None,
    ) -> None:
        self.scope = scope
        self.folder = folder
        self.outer = outer
        self.tensors: dict[str, TensorProto] = {}
        self.made_by: dict[str, int] = {}
        self.reasons: dict[str, str] = {}
        self._shapes: dict[str, int] = {}
        self._small: dict[str, np.ndarray] = {}
        inputs = set(scope.inputs)
        self._defined = inputs | set(scope.initializers)
        self._defined.update(name for node in scope.protos for name in node.output)
        for name, tensor in scope.initializers.items():
            if name in inputs:
                self.reasons[name] = f"{name!r} is also a graph input, so that a caller may set it"
            else:
                self.tensors[name] = tensor
        for index, node in enumerate(scope.protos):
            if before is not None:
                before(self, node)
            self._consider(index, node)

    def _consider(self, index: int, node: NodeProto) -> None:
        if node.op_type == "DequantizeLinear":
            why = "is dequantized from integers: folding into it would change what they stand for"
            self.reasons.update({name: f"{name!r} {why}" for name in node.output})
        if node.domain not in ("", "ai.onnx") or node.op_type not in PURE:
            return
        if any(attribute.ref_attr_name for attribute in node.attribute):
            return
        needed = [name for name in node.input if name]
        if node.op_type == "Shape":
            self._shapes.update(dict.fromkeys(node.output, index))
            needed = [] if needed and self._sizes(node) is not None else needed
        elif node.op_type == "Gather" and self._gathered(node) is not None:
            needed = []
        elif node.op_type == "CastLike" and len(needed) == 2:
            like, needed = needed[1], needed[:1]
            if like not in self and not self._elem(like):
                why = f"takes its type from {like!r}, whose type is not known here"
                self.reasons.update({name: f"{name!r} {why}" for name in node.output})
                return
        elif node.op_type == "Constant" and [a.name in LITERALS for a in node.attribute] != [True]:
            return  # of two values, nothing says which it is
        if any(self._is_huge(name) for name in node.output):
            return
        if all(name in self for name in needed):
            if self._steps(node, needed):
                why = f"is computed in steps ({node.op_type}), where a last bit decides"
                self.reasons.update({name: f"{name!r} {why}" for name in node.output})
                return
            self.made_by.update({name: index for name in node.output if name})
        elif node.op_type in WRAPPERS and (reason := self.why_not(needed[0])):
            self.reasons.update(dict.fromkeys(node.output, reason))

    def _is_huge(self, name: str) -> bool:
        """Whether what a few bytes describe would take more than anyone stores."""
        kind = self.scope.types.get(name)
        return kind is not None and kind.static is not None and prod(kind.static) > HUGE

    def _elem(self, name: str) -> int:
        kind = self.scope.types.get(name)
        return kind.elem if kind is not None else 0

    def _steps(self, node: NodeProto, needed: list[str]) -> bool:
        """Whether a float goes in and a small change of it may come out as a large one."""
        targets = [attribute.i for attribute in node.attribute if attribute.name == "to"]
        whole = node.op_type == "Cast" and targets != [] and targets[0] not in FLOATS
        if not (whole or node.op_type in STEPS):
            return False
        return any(self.kind(name).elem in FLOATS for name in needed)

    def __contains__(self, name: str) -> bool:
        if name in self.tensors or name in self.made_by:
            return True
        return self.outer is not None and name not in self._defined and name in self.outer

    def why_not(self, name: str) -> str | None:
        """Why a tensor that looks like a weight is no constant; None where nothing is known."""
        if name in self._defined or self.outer is None:
            return self.reasons.get(name)
        return self.outer.why_not(name)

    def kind(self, name: str) -> Type:
        """Element type and shape of a constant."""
        if name in self.tensors:
            tensor = self.tensors[name]
            return Type(tensor.data_type, tuple(tensor.dims))
        if name not in self.made_by and self.outer is not None:
            return self.outer.kind(name)
        known = self.scope.types.get(name)
        if known is not None and known.static is not None:
            return known
        value = self.value(name)
        elem = known.elem if known is not None else _elem_of(value)
        return Type(elem, value.shape)

    def precision(self, name: str) -> str | None:
        """ "float32" and the like; None for a constant that holds no floats."""
        return FLOATS.get(self.kind(name).elem)

    def array(self, name: str) -> Array:
        """The constant in float64, not read yet unless it is a vector or a scalar."""
        shape = self.kind(name).static or ()
        if sum(size > 1 for size in shape) <= 1 and np.prod(shape) <= LOOKED_AT:
            values = np.asarray(self.value(name), np.float64)
            first = float(values.flat[0]) if values.size else 0.0
            if first in (0.0, 1.0) and (values == first).all():
                return Array.full(shape, first)
            return Array.of(values)
        return Array(shape, lambda: np.asarray(self.value(name), np.float64))

    def is_computed(self, *names: str) -> bool:
        """Whether a constant is the result of arithmetic that is done whenever the graph runs."""
        todo = [name for name in names if name in self.made_by]
        seen: set[str] = set(todo)
        while todo:
            node = self.scope.protos[self.made_by[todo.pop()]]
            if node.op_type not in CARRIERS:
                return True
            found = {name for name in self._operands(node) if name in self.made_by} - seen
            seen |= found
            todo += found
        return False

    def ints(self, name: str) -> list[int] | None:
        """The whole numbers of a constant, in a list."""
        value = self.value(name)
        return [int(v) for v in value.ravel()] if value.dtype.kind in "iu" else None

    def value(self, name: str) -> np.ndarray:
        """The constant's value: floats in float64, anything else as it is."""
        if name in self._small:
            return self._small[name]
        if name in self.tensors:
            return self._remember(name, _wide(read_tensor(self.tensors[name], self.folder)))
        if name not in self.made_by:
            assert self.outer is not None, f"{name} is no constant"
            return self.outer.value(name)
        found: dict[str, np.ndarray] = {}
        todo = [name]
        while todo:  # a chain of any length, so no recursion
            node = self.scope.protos[self.made_by[todo[-1]]]
            missing = [
                needed
                for needed in self._operands(node)
                if needed in self.made_by and needed not in found and needed not in self._small
            ]
            todo += missing
            if not missing:
                results = zip(node.output, self._run(node, found), strict=False)
                found.update({made: self._remember(made, value) for made, value in results})
                todo.pop()
        return found[name]

    def _remember(self, name: str, value: np.ndarray) -> np.ndarray:
        if value.size <= LOOKED_AT:
            self._small[name] = value
        return value

    @staticmethod
    def _operands(node: NodeProto) -> list[str]:
        """The inputs whose values matter: of Shape none, of CastLike only the first."""
        count = {"Shape": 0, "CastLike": 1}.get(node.op_type)
        return [name for name in node.input[:count] if name]

    def _run(self, node: NodeProto, found: dict[str, np.ndarray]) -> list[np.ndarray]:
        if node.op_type == "Constant":
            return [_wide(self._literal(node))]
        if node.op_type == "Shape":
            return [np.array(self._sizes(node), np.int64)]
        if node.op_type == "Gather" and (sizes := self._gathered(node)) is not None:
            return [sizes]
        feeds = {
            name: found[name] if name in found else self.value(name)
            for name in dict.fromkeys(self._operands(node))
        }
        if node.op_type in ("Identity", "Cast", "CastLike"):
            before, after = self.kind(node.input[0]), self.scope.types.get(node.output[0])
            return [_cast(feeds[node.input[0]], before.elem, after)]
        if node.op_type == "Expand":  # so common that an evaluator for each would cost too much
            first, size = (feeds[name] for name in node.input)
            return [np.broadcast_to(first, np.broadcast_shapes(first.shape, tuple(size.tolist())))]
        if node.op_type == "Unsqueeze" and len(node.input) == 1:  # onnx.reference takes none
            axes = next(a.ints for a in node.attribute if a.name == "axes")
            return [np.expand_dims(feeds[node.input[0]], tuple(axes))]
        from onnx.reference import ReferenceEvaluator

        runner = ReferenceEvaluator(node, opsets={"": self.scope.opset})
        return [_wide(np.asarray(result)) for result in runner.run(None, feeds)]

    def _sizes(self, node: NodeProto) -> list[int] | None:
        """What Shape gives, where all the sizes that it asks for are known."""
        dims = self._dims(node)
        sizes = [dim for dim in dims or () if isinstance(dim, int)]
        return sizes if dims is not None and len(sizes) == len(dims) else None

    def _dims(self, node: NodeProto) -> tuple[Dim, ...] | None:
        """What is known of the sizes that Shape asks for."""
        name = node.input[0]
        kind = self.kind(name) if name in self else self.scope.types.get(name)
        if kind is None or kind.dims is None:
            return None
        given = {attribute.name: attribute.i for attribute in node.attribute}
        return kind.dims[slice(given.get("start"), given.get("end"))]

    def _gathered(self, node: NodeProto) -> np.ndarray | None:
        """Sizes out of a shape, of which others may be open."""
        shape, places = node.input[:2]
        if shape not in self._shapes or shape in self or places not in self:
            return None
        dims = self._dims(self.scope.protos[self._shapes[shape]])
        chosen = self.value(places)
        if dims is None or not all(-len(dims) <= place < len(dims) for place in chosen.ravel()):
            return None
        found = [dims[place] for place in chosen.ravel()]
        if not all(isinstance(dim, int) for dim in found):
            return None
        return np.array(found, np.int64).reshape(chosen.shape)

    def _literal(self, node: NodeProto) -> np.ndarray:
        (attribute,) = node.attribute
        if attribute.type == AttributeProto.TENSOR:
            return read_tensor(attribute.t, self.folder)
        value = onnx.helper.get_attribute_value(attribute)
        kinds: dict[Any, Any] = {AttributeProto.INT: np.int64, AttributeProto.INTS: np.int64}
        return np.array(value, kinds.get(attribute.type, np.float32))


def read_tensor(tensor: TensorProto, folder: Path | None) -> np.ndarray:
    """The values of a tensor, wherever they are stored; the protobuf itself does not grow."""
    if tensor.data_location == TensorProto.EXTERNAL:
        path, offset, length = external_range(tensor, folder or Path())
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read(length)
        located = TensorProto(data_type=tensor.data_type, dims=tensor.dims, raw_data=content)
        return onnx.numpy_helper.to_array(located)
    return onnx.numpy_helper.to_array(tensor)


def _wide(value: np.ndarray) -> np.ndarray:
    """Floats of any width in float64; ml_dtypes' ones are of no kind that NumPy knows."""
    if value.dtype.kind == "f" or value.dtype.name == "bfloat16":
        return value.astype(np.float64)
    return value


def _cast(value: np.ndarray, before: int, kind: Type | None) -> np.ndarray:
    """A cast; one to a narrower float rounds, as the model itself does whenever it runs."""
    if kind is None or kind.elem == before:
        return value
    target = onnx.helper.tensor_dtype_to_np_dtype(kind.elem)
    widens = before in (TensorProto.FLOAT16, TensorProto.BFLOAT16) or kind.elem == DOUBLE
    if before in FLOATS and kind.elem in FLOATS:
        if widens and kind.elem in (TensorProto.FLOAT, DOUBLE):
            return value
        return rounded(value, FLOATS[kind.elem]).astype(target).astype(np.float64)
    return _wide(value.astype(target))


def _elem_of(value: np.ndarray) -> int:
    if value.dtype == np.float64:
        return int(TensorProto.FLOAT)
    return int(onnx.helper.np_dtype_to_tensor_dtype(value.dtype))
