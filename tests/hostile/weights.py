"""Hostile cases of numbers: weights that are not what they say, and tiny files of huge tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tests.frontends.onnx.build import Net
from tests.hostile.graphs import attribute
from tests.hostile.runner import Place
from tests.hostile.seeds import DIMS, SEEDS, external

__all__ = ["CASES"]

Case = Callable[[Place], Sequence[str] | None]
CASES: dict[str, Case] = {}


def written(name: str, make: Callable[[], ModelProto]) -> None:
    def write(place: Place) -> None:
        place.source.write_bytes(make().SerializeToString())

    CASES[name] = write


def changed(name: str, change: Callable[[Any], object], seed: str = "branches") -> None:
    """A seed after a change of its first weight."""

    def make() -> ModelProto:
        model = SEEDS[seed]().model
        change(model.graph.initializer[0])
        return model

    written(f"weight: {name}", make)


def filled(name: str, value: float, place: int = 0, share: float = 1.0) -> None:
    """A weight of this value, or some of its numbers."""

    def make() -> ModelProto:
        model = SEEDS["branches"]().model
        tensor = model.graph.initializer[place]
        values = np.array(numpy_helper.to_array(tensor))
        count = max(1, int(values.size * share))
        values.flat[:count] = value
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        return model

    written(f"weight: {name}", make)


for text, number in (
    ("nan", np.nan),
    ("infinite", np.inf),
    ("minus infinite", -np.inf),
    ("huge", 3e38),
    ("tiny", 1e-45),
    ("zero", 0.0),
):
    filled(f"{text} in a conv", number)
    filled(f"one {text} in a conv", number, share=0.0)
    filled(f"{text} in a scale", number, place=1)
    filled(f"{text} in a variance", number, place=4)
filled("a negative variance", -1.0, place=4)

# What is stored does not fit what is declared.
changed("missing", lambda t: t.ClearField("raw_data"))
changed("cut", lambda t: setattr(t, "raw_data", t.raw_data[:-1]))
changed("longer", lambda t: setattr(t, "raw_data", t.raw_data + bytes(4)))
changed("in two fields", lambda t: t.float_data.extend([1.0] * 144))
changed("in the wrong field", lambda t: (t.ClearField("raw_data"), t.int32_data.extend([1] * 144)))
changed("in a field too short", lambda t: (t.ClearField("raw_data"), t.float_data.extend([1.0])))
changed(
    "in a field too long", lambda t: (t.ClearField("raw_data"), t.float_data.extend([1.0] * 999))
)
changed("strings", lambda t: (t.ClearField("raw_data"), t.string_data.extend([b"1"] * 144)))
changed("strings by type", lambda t: setattr(t, "data_type", TensorProto.STRING))


def _elem(elem: int, tensor: Any) -> None:
    tensor.data_type = elem


def _dims(sizes: Sequence[int], tensor: Any) -> None:
    tensor.dims[:] = sizes


for elem in (0, 2, 3, 6, 7, 9, 10, 11, 14, 16, 17, 21, 22, 23, 99, -1):
    changed(f"of type {elem}", partial(_elem, elem))
for text, sizes in (
    ("of no dimensions", []),
    ("of three dimensions", [4, 4, 9]),
    ("of six dimensions", [4, 4, 3, 3, 1, 1]),
    ("of other sizes", [3, 3, 4, 4]),
    ("of zero channels", [0, 4, 3, 3]),
    ("of zero taps", [4, 4, 0, 3]),
    ("of negative size", [-4, 4, 3, 3]),
    ("of twice negative size", [-4, -4, 3, 3]),
    ("of a terabyte", [2**19, 2**19, 1, 1]),
    ("of 2^63", [2**62, 2, 1, 1]),
    ("of 2^64", [2**32, 2**32, 1, 1]),
    ("of 2^128", [2**62, 2**62, 2, 2]),
    ("of many dimensions", [1] * 5000),
):
    changed(text, partial(_dims, sizes))
changed("in segments", lambda t: t.segment.SetInParent())
changed("external without a place", lambda t: setattr(t, "data_location", 1))
changed("at an unknown location", lambda t: setattr(t, "data_location", 0))


def _sparse(indices: Sequence[int], dims: Sequence[int], count: int = 2) -> ModelProto:
    """A conv whose weight is sparse."""
    net = Net()
    x = net.input(dims=DIMS)
    first = net.conv(x, 4, 4)
    model = net.model(net.add(first, net.node("Conv", x, "sparse", pads=[1] * 4)))
    sparse = model.graph.sparse_initializer.add(dims=list(dims))
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(count, np.float32), "sparse"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array(indices, np.int64), "places"))
    model.ir_version = 8
    return model


written("sparse: valid", lambda: _sparse([0, 5], [4, 4, 3, 3]))
written("sparse: beyond the end", lambda: _sparse([0, 10**9], [4, 4, 3, 3]))
written("sparse: negative", lambda: _sparse([-5, 0], [4, 4, 3, 3]))
written("sparse: not sorted", lambda: _sparse([5, 0], [4, 4, 3, 3]))
written("sparse: twice", lambda: _sparse([5, 5], [4, 4, 3, 3]))
written("sparse: too few places", lambda: _sparse([5], [4, 4, 3, 3]))
written("sparse: a terabyte", lambda: _sparse([0, 5], [2**19, 2**19, 1, 1]))
written("sparse: 2^64", lambda: _sparse([0, 5], [2**32, 2**32, 1, 1]))

# ------------------------------------------------------------------- tiny files of huge tensors

BOMB = (2**16, 2**16)  # 16 GB of float32
LARGE = (2**12, 2**12)  # 64 MB


def bomb(name: str, make: Callable[[Net, str], str]) -> None:
    """A tensor that is computed, and then read by a conv or added to one."""

    def model() -> ModelProto:
        net = Net()
        x = net.input(dims=DIMS)
        made = make(net, net.add(net.conv(x, 4, 4), net.conv(x, 4, 4, 1)))
        # Not `net.model`: shape inference itself would make what is too large.
        return helper.make_model(
            net.graph(made), opset_imports=[helper.make_opsetid("", net.opset)], ir_version=8
        )

    written(f"bomb: {name}", model)


def _constant(net: Net, *sizes: int) -> str:
    return net.node("ConstantOfShape", net.ints(*sizes))


bomb("ConstantOfShape", lambda net, x: net.add(x, _constant(net, *BOMB)))
bomb("a large ConstantOfShape", lambda net, x: net.add(x, _constant(net, 1, 1, *LARGE)))
bomb("ConstantOfShape of 2^62", lambda net, x: net.add(x, _constant(net, 2**62)))
bomb("ConstantOfShape of negative size", lambda net, x: net.add(x, _constant(net, -1)))
bomb(
    "a kernel of ConstantOfShape",
    lambda net, x: net.node("Conv", x, _constant(net, 2**16, 4, 2**8, 2**8)),
)
bomb(
    "a computed kernel",
    lambda net, x: net.node("Conv", x, _constant(net, 2**4, 4, 2**5, 2**5), pads=[15, 15, 16, 16]),
)
bomb("Expand", lambda net, x: net.add(x, net.node("Expand", net.const(1.0), net.ints(*BOMB))))
bomb(
    "Expand of a factor",
    lambda net, x: net.node(
        "Mul", x, net.node("Expand", net.const(2.0), net.ints(1, 4, 2**15, 2**15))
    ),
)
bomb(
    "Expand of a kernel",
    lambda net, x: net.node(
        "Conv", x, net.node("Expand", net.const(1.0), net.ints(2**16, 4, 2**8, 2**8))
    ),
)
bomb("Tile", lambda net, x: net.add(x, net.node("Tile", net.weight(1, 1), net.ints(*BOMB))))
bomb("Tile of the input", lambda net, x: net.node("Tile", x, net.ints(1, 1, 10**5, 10**5)))
bomb("Pad", lambda net, x: net.node("Pad", x, net.ints(0, 0, 0, 0, 0, 0, 10**6, 10**6)))
bomb("a negative Pad", lambda net, x: net.node("Pad", x, net.ints(0, 0, -(2**40), 0, 0, 0, 0, 0)))
bomb(
    "Range",
    lambda net, x: net.add(
        x, net.node("Cast", net.node("Range", *(net.const(v, elem=7) for v in (0, 2**40, 1))), to=1)
    ),
)
bomb(
    "Range without a step",
    lambda net, x: net.add(
        x, net.node("Cast", net.node("Range", *(net.const(v, elem=7) for v in (0, 9, 0))), to=1)
    ),
)
bomb(
    "OneHot",
    lambda net, x: net.add(
        x, net.node("OneHot", net.ints(*range(9)), net.const(2**40, elem=7), net.const([0.0, 1.0]))
    ),
)
bomb("EyeLike", lambda net, x: net.add(x, net.node("EyeLike", _constant(net, *BOMB))))
bomb(
    "Resize", lambda net, x: net.node("Resize", x, "", net.const([1, 1, 1e6, 1e6]), mode="nearest")
)
bomb(
    "an outer product",
    lambda net, x: net.add(x, net.node("MatMul", net.weight(2**16, 1), net.weight(1, 2**16))),
)
bomb("Reshape to 2^62", lambda net, x: net.node("Reshape", x, net.ints(2**62, -1)))
bomb(
    "a reshaped constant",
    lambda net, x: net.add(x, net.node("Reshape", net.weight(4), net.ints(2**40, -1))),
)
bomb(
    "einsum",
    lambda net, x: net.add(
        x,
        net.node(
            "Einsum", net.weight(2**12), net.weight(2**12), net.weight(2**12), equation="a,b,c->abc"
        ),
    ),
)
bomb("a string of repeats", lambda net, x: net.add(x, _doubled(net, 40)))
bomb("division by zero", lambda net, x: net.node("Div", x, net.const(np.zeros((1, 4, 1, 1)))))
bomb("Conv of a conv's output", lambda net, x: net.node("Conv", x, x))
bomb(
    "a random number as a size",
    lambda net, x: net.node(
        "Expand", x, net.node("Cast", net.node("RandomUniform", shape=[4], high=1e9), to=7)
    ),
)


def _doubled(net: Net, times: int) -> str:
    """A vector, concatenated with itself again and again."""
    name = net.weight(4)
    for _ in range(times):
        name = net.node("Concat", name, name, axis=0)
    return name


def _crash() -> ModelProto:
    """What ONNX Runtime ends the whole process on: a normal distribution of deviation 0."""
    model = SEEDS["random"]().model
    node = next(node for node in model.graph.node if node.op_type == "RandomNormalLike")
    attribute(node, "scale", 0.0)
    return model


written("a crash of ONNX Runtime", _crash)
for text, scale in (("negative", -1.0), ("nan", float("nan")), ("infinite", float("inf"))):

    def _deviation(scale: float = scale) -> ModelProto:
        model = SEEDS["random"]().model
        node = next(node for node in model.graph.node if node.op_type == "RandomNormalLike")
        attribute(node, "scale", scale)
        return model

    written(f"a {text} deviation", _deviation)


def _quantized(change: Callable[[Any], object]) -> ModelProto:
    model = SEEDS["quantized"]().model
    node = next(node for node in model.graph.node if node.op_type == "DequantizeLinear")
    change(node)
    return model


written("quantized: another axis", lambda: _quantized(lambda n: attribute(n, "axis", 99)))
written("quantized: no scale", lambda: _quantized(lambda n: n.input.__delitem__(slice(1, 3))))
written("quantized: a scale of weights", lambda: _quantized(lambda n: n.input.__setitem__(1, "c1")))


def _shared_external(place: Place) -> None:
    """A thousand weights, each all of one small file."""
    files = external()
    tensor = files.model.graph.initializer[0]
    for number in range(1000):
        other = files.model.graph.initializer.add()
        other.CopyFrom(tensor)
        other.name = f"w{number}"
    files.write(place.inside)


CASES["external: a thousand times the same"] = _shared_external


def _function_types() -> ModelProto:
    model = SEEDS["function"]().model
    for node in model.functions[0].node:
        if node.op_type == "Constant":
            node.attribute[0].t.dims[:] = [2**19, 2**19]
            break
    return model


written("a constant of a terabyte in a function", _function_types)
written(
    "a Constant of two values",
    lambda: _constant_of(value_float=1.0, value_int=2),
)
written("a Constant of no value", lambda: _constant_of())
written("a Constant of strings", lambda: _constant_of(value_strings=["a", "b"]))
written("a Constant of a sparse tensor", lambda: _constant_of(sparse_value=_sparse_value()))


def _constant_of(**values: Any) -> ModelProto:
    net = Net()
    x = net.input(dims=DIMS)
    conv = net.conv(x, 4, 4)
    node = helper.make_node("Constant", [], ["made"], **values)
    net.nodes.append(node)
    made = net.node("Mul", conv, "made")
    model = net.model(conv)
    model.graph.output[0].name = made
    return model


def _sparse_value() -> Any:
    return _sparse([0, 5], [4, 4, 3, 3]).graph.sparse_initializer[0]
