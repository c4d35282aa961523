"""Hostile cases of graphs: edges, names, nesting, functions, versions, attributes and shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from tests.frontends.onnx.build import Net
from tests.hostile.runner import Place
from tests.hostile.seeds import DIMS, SEEDS, branches

__all__ = ["CASES"]

Case = Callable[[Place], Sequence[str] | None]
CASES: dict[str, Case] = {}


def written(name: str, make: Callable[[], ModelProto | bytes]) -> None:
    def write(place: Place) -> None:
        made = make()
        content = made if isinstance(made, bytes) else made.SerializeToString()
        place.source.write_bytes(content)

    CASES[name] = write


def changed(name: str, change: Callable[[Any], object], seed: str = "branches") -> None:
    """A seed after a change."""

    def make() -> ModelProto:
        model = SEEDS[seed]().model
        change(model)
        return model

    written(name, make)


def conv(model: Any) -> Any:
    return next(node for node in model.graph.node if node.op_type == "Conv")


def attribute(node: NodeProto, name: str, value: Any) -> None:
    for place, one in reversed(list(enumerate(node.attribute))):
        if one.name == name:
            del node.attribute[place]
    node.attribute.append(helper.make_attribute(name, value))


def put(message: Any, name: str, value: Any) -> object:
    setattr(message, name, value)
    return message


def conv_attribute(text: str, name: str, value: Any) -> None:
    changed(text, lambda m: attribute(conv(m), name, value))


# ------------------------------------------------------------------------------- edges and names

changed("a cycle", lambda m: conv(m).input.__setitem__(0, m.graph.output[0].name))
changed("a node that reads itself", lambda m: conv(m).input.__setitem__(0, conv(m).output[0]))
changed("a dangling edge", lambda m: conv(m).input.__setitem__(1, "nowhere"))
changed("an empty edge", lambda m: conv(m).input.__setitem__(0, ""))
changed("a weight left out", lambda m: conv(m).input.__setitem__(1, ""))
changed("no input", lambda m: conv(m).ClearField("input"))
changed("twenty inputs", lambda m: conv(m).input.extend(["x"] * 20))
changed("no output", lambda m: conv(m).ClearField("output"))
changed("an empty output", lambda m: conv(m).output.__setitem__(0, ""))
changed("two outputs of one name", lambda m: conv(m).output.append(conv(m).output[0]))
changed("an output twice", lambda m: m.graph.output.append(m.graph.output[0]))
changed("an input twice", lambda m: m.graph.input.append(m.graph.input[0]))
changed("an initializer twice", lambda m: m.graph.initializer.append(m.graph.initializer[0]))
changed("a node twice", lambda m: m.graph.node.append(conv(m)))
changed("an output that nothing makes", lambda m: setattr(m.graph.output[0], "name", "nothing"))
changed("an output that is the input", lambda m: setattr(m.graph.output[0], "name", "x"))
changed("an output that is a weight", lambda m: setattr(m.graph.output[0], "name", "c1"))
changed("an input of no name", lambda m: setattr(m.graph.input[0], "name", ""))
changed("an initializer of no name", lambda m: setattr(m.graph.initializer[0], "name", ""))
changed("a graph of no name", lambda m: m.graph.ClearField("name"))
changed("no nodes", lambda m: m.graph.ClearField("node"))
changed("no outputs", lambda m: m.graph.ClearField("output"))
changed("no graph", lambda m: m.ClearField("graph"))
changed("nodes backwards", lambda m: m.graph.node.sort(key=lambda n: n.output[0]))
changed("an empty operator", lambda m: conv(m).ClearField("op_type"))
changed("an unknown operator", lambda m: setattr(conv(m), "op_type", "Convolution"))
changed("an unknown domain", lambda m: setattr(conv(m), "domain", "private"))
changed(
    "an imported unknown domain",
    lambda m: (put(conv(m), "domain", "private"), m.opset_import.add(domain="private")),
)
changed("a long name", lambda m: setattr(conv(m), "name", "n" * 10**6))
changed("a name of lines", lambda m: setattr(m.graph.input[0], "name", "x\ny\r\n\tz"))


def _renamed(name: str, new: str, wrong: bool) -> None:
    """The input gets another name everywhere; and the model a fault, that a line has to tell."""

    def make() -> ModelProto:
        model = branches()
        model.graph.input[0].name = new
        for node in model.graph.node:
            node.name = f"{new} {node.output[0]}"
            node.input[:] = [new if one == "x" else one for one in node.input]
        if wrong:
            model.graph.node[-1].input[0] = f"none {new}"
        return model

    written(name, make)


for text, characters in (
    ("terminal codes", "\x1b[31m\x1b]0;title\x07red\x9b2J"),
    ("a zero", "a\0b"),
    ("markup", "[bold red]x[/] [/nothing] {0} %s"),
    ("other scripts", "名前\u202e\u200b\ufeffنام"),
    ("slashes", "../../outside/x"),
):
    _renamed(f"names with {text}", characters, wrong=False)
    _renamed(f"names with {text}, and a fault", characters, wrong=True)


def _invalid(name: Callable[[Any], object]) -> bytes:
    """The model with bytes for a name that are no UTF-8."""
    model = branches()
    name(model)
    return bytes(model.SerializeToString()).replace(b"QQQQ", b"\xff\xfe\xc0\x80")


for text, set_name in {
    "input": lambda m: (
        put(m.graph.input[0], "name", "QQQQ"),
        [n.input.__setitem__(0, "QQQQ") for n in m.graph.node if n.input[0] == "x"],
    ),
    "node": lambda m: setattr(conv(m), "name", "QQQQ"),
    "operator": lambda m: setattr(conv(m), "op_type", "QQQQ"),
    "domain": lambda m: setattr(conv(m), "domain", "QQQQ"),
    "edge": lambda m: conv(m).input.__setitem__(1, "QQQQ"),
    "graph": lambda m: setattr(m.graph, "name", "QQQQ"),
    "doc": lambda m: setattr(m, "doc_string", "QQQQ"),
    "initializer": lambda m: setattr(m.graph.initializer[0], "name", "QQQQ"),
    "attribute": lambda m: conv(m).attribute.append(helper.make_attribute("QQQQ", 1)),
    "auto_pad": lambda m: attribute(conv(m), "auto_pad", "QQQQ"),
    "metadata": lambda m: m.metadata_props.add(key="QQQQ", value="QQQQ"),
    "symbol": lambda m: setattr(
        m.graph.input[0].type.tensor_type.shape.dim[0], "dim_param", "QQQQ"
    ),
}.items():
    written(f"no UTF-8: {text}", partial(_invalid, set_name))

# ----------------------------------------------------------------------------------- versions


def _version(version: int, model: Any) -> None:
    model.opset_import[0].version = version


def _ir_version(version: int, model: Any) -> None:
    model.ir_version = version


for version in (0, -1, 1, 6, 2**40, 2**63 - 1):
    changed(f"opset {version}", partial(_version, version))
    changed(f"IR version {version}", partial(_ir_version, version))
changed("no IR version", lambda m: m.ClearField("ir_version"))
changed("no opset", lambda m: m.ClearField("opset_import"))
changed("two opsets", lambda m: m.opset_import.add(domain="", version=11))
changed("two names of one opset", lambda m: m.opset_import.add(domain="ai.onnx", version=9))
changed("an opset of training", lambda m: m.opset_import.add(domain="ai.onnx.ml", version=99))

# ------------------------------------------------------------------------ attributes and shapes

HUGE = 2**62
for text, name, value in (
    ("negative pads", "pads", [-1, -1, -1, -1]),
    ("very negative pads", "pads", [-HUGE] * 4),
    ("huge pads", "pads", [HUGE] * 4),
    ("large pads", "pads", [10**6] * 4),
    ("two pads", "pads", [1, 1]),
    ("no pads", "pads", [0] * 4),
    ("pads of floats", "pads", [1.0, 1.0, 1.0, 1.0]),
    ("pads of a string", "pads", "1111"),
    ("zero strides", "strides", [0, 0]),
    ("negative strides", "strides", [-1, -1]),
    ("huge strides", "strides", [HUGE, HUGE]),
    ("zero dilations", "dilations", [0, 0]),
    ("huge dilations", "dilations", [HUGE, HUGE]),
    ("three strides", "strides", [1, 1, 1]),
    ("zero groups", "group", 0),
    ("negative groups", "group", -4),
    ("three groups", "group", 3),
    ("huge groups", "group", HUGE),
    ("another kernel shape", "kernel_shape", [5, 5]),
    ("a negative kernel shape", "kernel_shape", [-3, -3]),
    ("a huge kernel shape", "kernel_shape", [HUGE, HUGE]),
    ("an unknown auto_pad", "auto_pad", "AROUND"),
    ("a number as auto_pad", "auto_pad", 3),
    ("an unknown attribute", "unheard", 3),
):
    conv_attribute(text, name, value)
changed("an attribute twice", lambda m: conv(m).attribute.append(conv(m).attribute[0]))
changed("an attribute of no name", lambda m: setattr(conv(m).attribute[0], "name", ""))
changed("an attribute of no type", lambda m: setattr(conv(m).attribute[0], "type", 0))
changed("an attribute of another type", lambda m: setattr(conv(m).attribute[0], "type", 5))
changed(
    "a reference outside of a function",
    lambda m: setattr(conv(m).attribute[0], "ref_attr_name", "p"),
)


def batch_norm(model: Any) -> Any:
    return next(node for node in model.graph.node if node.op_type == "BatchNormalization")


def _epsilon(epsilon: float, model: Any) -> None:
    attribute(batch_norm(model), "epsilon", epsilon)


for text, epsilon in (("nan", np.nan), ("negative", -9.0), ("infinite", np.inf), ("zero", 0.0)):
    changed(f"{text} epsilon", partial(_epsilon, float(epsilon)))
changed("a batch norm in training", lambda m: attribute(batch_norm(m), "training_mode", 1))
changed("a batch norm of two weights", lambda m: batch_norm(m).input.__delitem__(slice(3, None)))


def _dims(*dims: int | str) -> Callable[[Any], object]:
    def change(model: Any) -> None:
        kind = helper.make_tensor_type_proto(TensorProto.FLOAT, list(dims))
        model.graph.input[0].type.CopyFrom(kind)

    return change


changed("an input of no dimensions", _dims())
changed("an input of one dimension", _dims(4))
changed("an input of ten dimensions", _dims(*[2] * 10))
changed("an input of another number of channels", _dims(1, 5, 8, 8))
changed("an input of zero channels", _dims(1, 0, 8, 8))
changed("an input of negative size", _dims(1, 4, -8, 8))
changed("an input of a terabyte", _dims(1, 4, 2**19, 2**19))
changed("an input of ten gigabytes", _dims(1, 4, 25_000, 25_000))
changed("an input of 2^62", _dims(1, 4, HUGE, HUGE))
changed("an input of one symbol", _dims("n", "n", "n", "n"))
changed("an input of no type", lambda m: m.graph.input[0].ClearField("type"))


def _elem(elem: int, model: Any) -> None:
    model.graph.input[0].type.tensor_type.elem_type = elem


for elem in (0, 8, 9, 14, 16, 17, 22, 23, 99, -1):
    changed(f"an input of element type {elem}", partial(_elem, elem))
changed("an input that is a sequence", lambda m: m.graph.input[0].type.sequence_type.SetInParent())
changed("an input that is a map", lambda m: m.graph.input[0].type.map_type.SetInParent())
changed("an input that is optional", lambda m: m.graph.input[0].type.optional_type.SetInParent())
changed("a sparse input", lambda m: m.graph.input[0].type.sparse_tensor_type.SetInParent())
changed(
    "an output of another type",
    lambda m: setattr(m.graph.output[0].type.tensor_type, "elem_type", TensorProto.INT64),
)
changed("an output of no type", lambda m: m.graph.output[0].ClearField("type"))
changed(
    "an output of another shape",
    lambda m: m.graph.output[0].CopyFrom(
        helper.make_tensor_value_info(m.graph.output[0].name, 1, [7])
    ),
)
changed(
    "wrong shapes in between",
    lambda m: m.graph.value_info.extend(
        helper.make_tensor_value_info(n.output[0], 7, [1, 2, 3]) for n in m.graph.node
    ),
)

# -------------------------------------------------------------------------- nesting and functions


def nested(depth: int) -> ModelProto:
    """An If in an If in an If."""
    graph = _leaf("y0")
    for level in range(1, depth):
        node = helper.make_node(
            "If", ["c"], [f"y{level}"], then_branch=graph, else_branch=_leaf("z")
        )
        out = helper.make_tensor_value_info(f"y{level}", TensorProto.FLOAT, None)
        graph = helper.make_graph([node], f"g{level}", [], [out])
    graph.input.extend(
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _leaf(name: str) -> GraphProto:
    out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node("Relu", ["x"], [name])], "leaf", [], [out])


for depth in (10, 20, 30):
    written(f"bodies {depth} deep", partial(nested, depth))
written("a chain of three thousand nodes", lambda: _chain(3000))
written("a sum of five hundred branches", lambda: _wide(500))


def _chain(count: int) -> ModelProto:
    net = Net()
    x = net.input(dims=DIMS)
    for _ in range(count):
        x = net.node("Relu", x)
    return net.model(x)


def _wide(count: int) -> ModelProto:
    net = Net()
    x = net.input(dims=DIMS)
    weight = net.weight(4, 4, 1, 1)
    return net.model(net.node("Sum", *(net.node("Conv", x, weight) for _ in range(count))))


def _functions(*calls: Sequence[str], name: str = "F{}", used: int = 0) -> ModelProto:
    """Functions F0, F1, ..., each of which calls these; the graph calls one of them."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    functions = []
    for number, called in enumerate(calls):
        nodes, last = [helper.make_node("Relu", ["x"], ["t"])], "t"
        for place, one in enumerate(called):
            nodes.append(helper.make_node(one, [last], [f"t{place}"], domain="local"))
            last = f"t{place}"
        function = helper.make_function("local", name.format(number), ["x"], [last], nodes, imports)
        functions.append(function)
    call = helper.make_node(name.format(used), ["x"], ["y"], domain="local")
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 4]) for n in "xy"]
    graph = helper.make_graph([call], "g", ports[:1], ports[1:])
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=8)


written("a function that calls itself", lambda: _functions(["F0"]))
written("a function that calls itself twice", lambda: _functions(["F0", "F0"]))
written("functions that call each other", lambda: _functions(["F1"], ["F0"]))
written("an unused function that calls itself", lambda: _functions([], ["F1"]))
written("a function that is not there", lambda: _functions(["F9"]))
written("two functions of one name", lambda: _functions([], ["F0"], name="F0"))
written("functions that double forty times", lambda: _functions(*_doubling(40)))
written("functions fifty deep", lambda: _functions(*([f"F{n + 1}"] for n in range(50)), []))
written("functions a thousand deep", lambda: _functions(*([f"F{n + 1}"] for n in range(1000)), []))
changed("a function of an operator's name", lambda m: _shadow(m))
changed(
    "a function without an opset", lambda m: m.functions[0].ClearField("opset_import"), "function"
)
changed(
    "a function of another opset",
    lambda m: setattr(m.functions[0].opset_import[0], "version", 7),
    "function",
)
changed("a function of no nodes", lambda m: m.functions[0].ClearField("node"), "function")
changed("a function of no outputs", lambda m: m.functions[0].ClearField("output"), "function")
changed("a call of too many inputs", lambda m: m.graph.node[0].input.extend("xxx"), "function")


def _doubling(depth: int) -> list[list[str]]:
    return [[f"F{n + 1}"] * 2 for n in range(depth)] + [[]]


def _shadow(model: Any) -> None:
    node = helper.make_node("Neg", ["x"], ["y"])
    imports = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("", "Relu", ["x"], ["y"], [node], imports))


def body(model: Any) -> Any:
    return next(a.g for node in model.graph.node for a in node.attribute if a.name == "body")


def _turns(count: int) -> Callable[[Any], object]:
    def change(model: Any) -> None:
        for tensor in model.graph.initializer:
            if tensor.data_type == TensorProto.INT64:
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(count), tensor.name))

    return change


changed("a loop without an end", _turns(2**62), "loop")
changed("a loop of no turns", _turns(0), "loop")
changed("a loop of negative turns", _turns(-3), "loop")
changed("a loop of no body", lambda m: m.graph.node[-1].ClearField("attribute"), "loop")
changed("a body of too few outputs", lambda m: body(m).output.__delitem__(1), "loop")
changed("a body of too few inputs", lambda m: body(m).input.__delitem__(2), "loop")
changed("a body of no condition", lambda m: setattr(body(m).output[0], "name", "state"), "loop")
changed("a body that takes an outer name", lambda m: setattr(body(m).input[2], "name", "x"), "loop")
changed(
    "a body that reads an inner name",
    lambda m: m.graph.output[0].CopyFrom(body(m).output[1]),
    "loop",
)
changed("branches of other types", lambda m: _else(m), "if")
changed("an If of one branch", lambda m: m.graph.node[0].attribute.__delitem__(1), "if")
changed(
    "an If on a number", lambda m: setattr(m.graph.input[1].type.tensor_type, "elem_type", 1), "if"
)
changed("a list of graphs", lambda m: _graphs(m), "if")


def _else(model: Any) -> None:
    branch = next(a.g for a in model.graph.node[0].attribute if a.name == "else_branch")
    branch.node.append(helper.make_node("Cast", [branch.output[0].name], ["whole"], to=7))
    branch.output[0].CopyFrom(helper.make_tensor_value_info("whole", 7, None))


def _graphs(model: Any) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("others", [_leaf("q"), _leaf("r")]))
