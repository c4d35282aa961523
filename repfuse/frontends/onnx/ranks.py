"""How many spatial axes a tensor has: what the operators around it say of its channel axis.

The last axis holds the channels before a MatMul, the second one before a Conv. Operators that work
on each element by itself carry this on, forwards and backwards.
"""

from __future__ import annotations

from repfuse.frontends.onnx.constants import Constants
from repfuse.frontends.onnx.scopes import Scope

__all__ = ["spatial_ranks"]

SPATIAL = frozenset(
    [
        "BatchNormalization",
        "AveragePool",
        "MaxPool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "InstanceNormalization",
        "LpPool",
        "GlobalLpPool",
        "Resize",
        "Upsample",
        "DepthToSpace",
        "SpaceToDepth",
        "LRN",
        "PRelu",
    ]
)
ELEMENTWISE = frozenset(
    [
        "Abs",
        "Add",
        "BatchNormalization",
        "Cast",
        "CastLike",
        "Ceil",
        "Celu",
        "Clip",
        "Div",
        "Dropout",
        "Elu",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "Log",
        "Max",
        "Mean",
        "Min",
        "Mish",
        "Mul",
        "Neg",
        "Pad",
        "Pow",
        "PRelu",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Sigmoid",
        "Sign",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Sub",
        "Sum",
        "Swish",
        "Tanh",
        "ThresholdedRelu",
        "Where",
        "AveragePool",
        "MaxPool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "InstanceNormalization",
    ]
)


NORMS = ("LayerNormalization", "RMSNormalization")


def spatial_ranks(scope: Scope, constants: Constants) -> dict[str, int]:
    """The number of spatial axes by tensor name, where the operators tell it."""
    found: dict[str, int] = {}

    def axes(name: str) -> int | None:
        kind = scope.types.get(name)
        return None if kind is None else kind.ndim

    def spread(names: list[str], others: list[str]) -> None:
        for name in names:
            for other in others:
                if other in found and axes(name) == axes(other):
                    found.setdefault(name, found[other])

    linear = {"Conv": None, "ConvTranspose": None, "MatMul": 0, "Gemm": 0}
    protos = [node for node in scope.protos if node.domain in ("", "ai.onnx")]
    for node in protos:
        data = [name for name in node.input if name and name not in constants]
        if node.op_type in linear and data:
            rank = linear[node.op_type]
            if rank is None:
                weight = node.input[1] if len(node.input) > 1 else ""
                ndim = constants.kind(weight).ndim if weight in constants else axes(node.input[0])
                rank = (ndim or 2) - 2
            found.setdefault(node.input[0], rank)
            found.setdefault(node.output[0], rank)
        elif node.op_type in SPATIAL and (ndim := axes(node.input[0])) is not None:
            found.setdefault(node.input[0], max(ndim - 2, 0))
            found.setdefault(node.output[0], max(ndim - 2, 0))
    for node in protos:
        axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
        if node.op_type in NORMS and axis in (-1, (axes(node.input[0]) or 0) - 1):
            found.setdefault(node.input[0], 0)
            found.setdefault(node.output[0], 0)
    for nodes in (protos, protos[::-1], protos):
        for node in nodes:
            if node.op_type in ELEMENTWISE:
                data = [name for name in node.input if name and name not in constants]
                spread(list(node.output), data)
                spread(data, list(node.output))
    for name, kind in scope.types.items():
        if kind.ndim in (2, 4, 5):
            found.setdefault(name, kind.ndim - 2)
        elif kind.ndim == 3:
            found.setdefault(name, 0)
    return found
