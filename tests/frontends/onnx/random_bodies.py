"""Bodies inside of random ONNX graphs: branches of an If, bodies of a Loop, and functions, which
call each other, take attributes, and are called again with other weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import AttributeProto, NodeProto, TensorProto, helper

from tests.frontends.onnx.random_base import Tensor
from tests.frontends.onnx.random_oddities import RandomOddities
from tests.frontends.onnx.wrap import body_of

__all__ = ["RandomBodies"]


class RandomBodies(RandomOddities):
    """What is done with a value is done elsewhere."""

    def enclosed(self) -> None:
        """A block stands in both branches of an If, in a Loop, or in a function."""
        net, start, count = self.net, len(self.net.nodes), len(self.pool)
        made = len(self.outputs)
        self.block()
        if len(self.outputs) != made or start == len(net.nodes):
            return
        nodes, y = net.nodes[start:], self.pool[-1]
        del net.nodes[start:], self.pool[count:]
        own = {name for node in nodes for name in node.output}
        outside = list(dict.fromkeys(n for node in nodes for n in node.input if n and n not in own))
        forms = [self._branches] * 2
        forms += [self._called] * 3 * (net.opset >= 9)
        forms += [self._repeated] * (net.opset >= 11)
        self.dice.choice(forms)(nodes, outside, y)

    def _branches(self, nodes: list[NodeProto], outside: list[str], y: Tensor) -> None:
        """The names inside of the branches are the same ones, or not; perhaps If in If."""
        net, result = self.net, self.net.name("enclosed")
        info = helper.make_tensor_value_info(y.name, TensorProto.FLOAT, None)
        graph = helper.make_graph(nodes, "body", [], [info])
        inner = graph.output[0].name
        prefix = f"{result}_" if self.maybe(0.3) else ""
        if self.maybe(0.2):
            condition = net.const(np.array(True), elem=TensorProto.BOOL)
            bodies = {
                f"{side}_branch": body_of(graph, f"{side}_inner_") for side in ("then", "else")
            }
            inner = f"{y.name}_inner"
            node = helper.make_node("If", [condition], [inner], **bodies)
            info = helper.make_tensor_value_info(inner, TensorProto.FLOAT, None)
            graph = helper.make_graph([node], "body", [], [info])
        bodies = {
            f"{side}_branch": body_of(graph, prefix or f"{side}_{result}_")
            for side in ("then", "else")
        }
        condition = net.const(np.array(self.maybe()), elem=TensorProto.BOOL)
        net.node("If", condition, output=result, **bodies)
        self.put(result, y.channels, y.sizes)

    def _repeated(self, nodes: list[NodeProto], outside: list[str], y: Tensor) -> None:
        """A Loop that runs once or twice, on a value from outside or on its own result."""
        net, result = self.net, self.net.name("enclosed")
        known = [t for t in self.pool if t.name in outside]
        carried = len(known) == 1 and (known[0].channels, known[0].sizes) == (y.channels, y.sizes)
        carried = carried and self.maybe(0.7)
        start = known[0].name if carried else next((t.name for t in self.alike(y)), "")
        if not start:
            return
        value = f"{result}_value"
        prefix = f"{result}_"
        info = helper.make_tensor_value_info(y.name, TensorProto.FLOAT, None)
        body = body_of(helper.make_graph(nodes, "body", [], [info]), prefix)
        if carried:
            for node in body.node:
                node.input[:] = [value if name == start else name for name in node.input]
        kind = [(f"{prefix}turn", TensorProto.INT64), (f"{prefix}go", TensorProto.BOOL)]
        inputs = [helper.make_tensor_value_info(name, elem, []) for name, elem in kind]
        body.input.extend([*inputs, helper.make_tensor_value_info(value, TensorProto.FLOAT, None)])
        still = f"{prefix}still"
        body.node.append(helper.make_node("Identity", [f"{prefix}go"], [still]))
        body.output.insert(0, helper.make_tensor_value_info(still, TensorProto.BOOL, []))
        times = net.const(self.dice.choice((1, 2)), elem=TensorProto.INT64)
        net.node(
            "Loop",
            times,
            self.dice.choice(("", net.const(True, elem=TensorProto.BOOL))),
            start,
            output=result,
            body=body,
        )
        self.put(result, y.channels, y.sizes)

    def _called(self, nodes: list[NodeProto], outside: list[str], y: Tensor) -> None:
        net, name = self.net, f"Part{len(self.net.functions)}"
        stored = {tensor.name: tensor for tensor in net.weights}
        if self.maybe():  # the weights are its own
            inside = [stored[n] for n in outside if n in stored]
            constants = [helper.make_node("Constant", [], [t.name], value=t) for t in inside]
            nodes, outside = [*constants, *nodes], [n for n in outside if n not in stored]
        attrs, defaults = self._referred(nodes) if self.maybe(0.4) else ({}, [])
        opsets = [helper.make_opsetid("", net.opset)]
        net.functions.append(
            helper.make_function(
                "own", name, outside, [y.name], nodes, opsets, list(attrs), defaults
            )
        )
        net.imports["own"] = 1
        if self.maybe(0.25) and not attrs and not defaults:  # by way of another function
            opsets = [*opsets, helper.make_opsetid("own", 1)]
            call = helper.make_node(name, outside, ["middle"], domain="own")
            last = helper.make_node("Identity", ["middle"], ["end"])
            name = f"Part{len(net.functions)}"
            net.functions.append(
                helper.make_function("own", name, outside, ["end"], [call, last], opsets)
            )
        self.put(net.node(name, *outside, domain="own", **attrs), y.channels, y.sizes)
        if self.maybe(0.4):  # again, with other weights
            again = [self._other(stored[n]) if n in stored else n for n in outside]
            self.put(net.node(name, *again, domain="own", **attrs), y.channels, y.sizes)

    def _referred(self, nodes: list[NodeProto]) -> tuple[dict[str, Any], list[AttributeProto]]:
        """Attributes of the nodes become those of the function, with a default or without."""
        given: dict[str, Any] = {}
        defaults: list[AttributeProto] = []
        for number, node in enumerate(nodes):
            for attribute in node.attribute if node.op_type != "Constant" else ():
                if not self.maybe(0.3) or attribute.type == AttributeProto.STRING:
                    continue
                name = f"{attribute.name}{number}"
                if self.maybe():
                    default = AttributeProto()
                    default.CopyFrom(attribute)
                    default.name = name
                    defaults.append(default)
                else:
                    given[name] = helper.get_attribute_value(attribute)
                kind, old = attribute.type, attribute.name
                attribute.Clear()
                attribute.name, attribute.type, attribute.ref_attr_name = old, kind, name
        return given, defaults

    def _other(self, tensor: TensorProto) -> str:
        """A weight of the same shape."""
        if tensor.data_type != TensorProto.FLOAT:
            return tensor.name
        return self.net.const(self.net.noise.uniform(0.5, 1.5, tuple(tensor.dims)))
