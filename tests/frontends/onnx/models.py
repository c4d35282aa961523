"""Small ONNX models for the tests of files, inputs and comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

Shape = Sequence[int | str | None]

ELEMS = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float64": TensorProto.DOUBLE,
    "int64": TensorProto.INT64,
}
MISTAKES = ("border", "bias", "scale", "channel", "nan")


def model_of(
    nodes: Sequence[NodeProto],
    inputs: dict[str, Shape | None],
    outputs: dict[str, Shape | None],
    weights: dict[str, npt.NDArray[Any]] | None = None,
    *,
    elem: int = TensorProto.FLOAT,
    elems: dict[str, int] | None = None,
    opset: int = 22,
    domains: dict[str, int] | None = None,
) -> ModelProto:
    """A model; `elems` says which inputs and outputs are not of the type `elem`."""

    def value(name: str, shape: Shape | None) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, (elems or {}).get(name, elem), shape)

    tensors = [onnx.numpy_helper.from_array(v, name) for name, v in (weights or {}).items()]
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [value(*item) for item in inputs.items()],
        [value(*item) for item in outputs.items()],
        tensors,
    )
    imports = [helper.make_opsetid(*pair) for pair in {"": opset, **(domains or {})}.items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    """A node named after its first output; inputs and outputs separated by spaces."""
    made = outputs.split()
    return helper.make_node(kind, inputs.split(), made, name=f"{made[0]}_node", **attributes)


def one(kind: str, dims: Shape = ("N", 3), **attributes: Any) -> ModelProto:
    """A model of one node from x to y."""
    return model_of([node(kind, "x", "y", **attributes)], {"x": dims}, {"y": None})


def external(weight: npt.NDArray[Any], **entries: str) -> ModelProto:
    """y = x @ weight, where the weight is said to be in a file."""
    model = model_of([node("MatMul", "x w", "y")], {"x": ["N", len(weight)]}, {"y": None})
    tensor = model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=weight.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, entry in entries.items():
        tensor.external_data.add(key=key, value=entry)
    return model


def network(dtype: str = "float32", *, folded: bool = False, mistake: str = "") -> ModelProto:
    """conv, batch norm and ReLU, three times; or the same with each batch norm folded.

    The second conv reads a padded border. mistake: what is wrong with it in the folded form.
    """
    elem = ELEMS[dtype]
    kind = helper.tensor_dtype_to_np_dtype(elem)
    rng = np.random.default_rng(0)
    weights: dict[str, npt.NDArray[Any]] = {}
    nodes, last, channels = [], "x", 3
    for i in range(3):
        kernel = rng.standard_normal((8, channels, 3, 3)) / np.sqrt(9 * channels)
        vectors = rng.standard_normal((4, 8)), rng.random((1, 8)) + 0.5
        conv, *norm = [kernel.astype(kind), *np.concatenate(vectors).astype(kind)]
        bias, scale, shift, mean, variance = norm
        if folded:
            wide = [values.astype(np.float64) for values in (conv, bias, scale, shift, mean)]
            eps = float(np.float32(1e-5))
            factor = wide[2] / np.sqrt(variance.astype(np.float64) + eps)
            w = wide[0] * factor[:, None, None, None]
            b = (wide[1] - wide[4]) * factor + wide[3]
            w, b = _mistaken(w, b, mistake, wide[1] * factor) if i == 1 else (w, b)
            weights |= {f"w{i}": w.astype(kind), f"b{i}": b.astype(kind)}
        else:
            names = ("w", "b", "scale", "shift", "mean", "variance")
            values = (conv, bias, scale, shift, mean, variance)
            weights |= {f"{n}{i}": v for n, v in zip(names, values, strict=True)}
        pads = [1] * 4
        if folded and mistake == "border" and i == 1:  # the border is the edge, and not zeros
            sizes = np.array([0, 0, 1, 1, 0, 0, 1, 1])
            weights["sizes"] = sizes
            nodes.append(node("Pad", f"{last} sizes", "padded", mode="edge"))
            last, pads = "padded", [0] * 4
        nodes.append(node("Conv", f"{last} w{i} b{i}", f"c{i}", pads=pads))
        if not folded:
            norms = f"c{i} scale{i} shift{i} mean{i} variance{i}"
            nodes.append(node("BatchNormalization", norms, f"n{i}"))
        last, channels = f"r{i}", 8
        nodes.append(node("Relu", f"c{i}" if folded else f"n{i}", last))
    shapes: dict[str, dict[str, Shape | None]] = {
        "inputs": {"x": ["N", 3, "H", "W"]},
        "outputs": {last: ["N", 8, "H", "W"]},
    }
    return model_of(nodes, shapes["inputs"], shapes["outputs"], weights, elem=elem)


def _mistaken(w: Any, b: Any, mistake: str, own_bias: Any) -> tuple[Any, Any]:
    swapped = [1, 0, *range(2, 8)]
    if mistake == "bias":
        return w, b - own_bias
    if mistake == "scale":
        return w * 1.001, b
    if mistake == "channel":
        return w[swapped], b[swapped]
    if mistake == "nan":
        return w, np.where(np.arange(8) == 0, np.nan, b)
    return w, b
