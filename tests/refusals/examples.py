"""What an example of a refusal is, and how its code is run.

The code is what docs/refusals.md prints, so that it is a text: its last line is the model (or the
operators that a pass is asked about), the lines before it make what it needs.
"""

from __future__ import annotations

import ast
import linecache
import random
import types
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from textwrap import dedent
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, TensorProto, helper
from torch import fx, nn
from torch.nn import functional as F

from repfuse.arrays import Array
from repfuse.operators import SlicedConv
from repfuse.passes import PASSES
from tests import builders
from tests.frontends import Net, conv
from tests.frontends.onnx import build

__all__ = ["Example", "in_a_function", "in_a_pass", "in_onnx", "in_torch", "nowhere", "run"]


@dataclass(frozen=True)
class Example:
    """kind: "torch", "ONNX", "pass" (only the pass can be asked) or "none" (nothing can be asked).

    template: the sentence of `repfuse.reasons` that it provokes. why: why no model does, for the
    last two kinds. shape and dtype: of the input of a module; runs: whether the module runs at all.
    dynamic: whether factors that depend on the input are looked into.
    dims, elem and opset: of the input `x` of a graph. everything: whether nothing of the model may
    change, as where the refused part is all there is.
    """

    kind: str
    template: str
    code: str = ""
    why: str = ""
    shape: tuple[int, ...] = (2, 8, 8, 8)
    dtype: torch.dtype = torch.float64
    runs: bool = True
    dynamic: bool = False
    dims: build.Dims = build.IMAGE
    elem: int = TensorProto.FLOAT
    opset: int = 17

    def __str__(self) -> str:
        return f"{self.kind}: {self.template}"


def in_torch(template: str, code: str, **facts: Any) -> Example:
    return Example("torch", template, dedent(code).strip(), **facts)


def in_onnx(template: str, code: str, **facts: Any) -> Example:
    return Example("ONNX", template, dedent(code).strip(), **facts)


def in_a_pass(template: str, code: str, why: str) -> Example:
    return Example("pass", template, dedent(code).strip(), why)


def nowhere(template: str, why: str) -> Example:
    return Example("none", template, why=why)


TORCH: dict[str, Any] = {
    "F": F,
    "Net": Net,
    "OrderedDict": OrderedDict,
    "conv": conv,
    "fx": fx,
    "nn": nn,
    "norm": lambda: nn.BatchNorm2d(8),
    "np": np,
    "random": random,
    "torch": torch,
    "types": types,
    "__name__": __name__,
}
OPERATORS: dict[str, Any] = {
    "Array": Array,
    **{name: getattr(builders, name) for name in ("affine", "conv", "numbers", "pad", "pool")},
    "select": builders.select,
    "SlicedConv": SlicedConv,
    **{rule.name: rule for rule in PASSES},
}


def run(example: Example) -> Any:
    """The module, the ONNX model, or what the pass answers."""
    if example.kind == "torch":
        return _value(example.code, dict(TORCH))
    if example.kind == "pass":
        return _value(example.code, dict(OPERATORS))
    net = build.Net(example.opset)
    x = net.input("x", example.dims, example.elem)
    names = {"n": net, "x": x, "np": np, "TensorProto": TensorProto, "in_a_function": in_a_function}
    made = _value(example.code, names)
    return made if isinstance(made, ModelProto) else _model(net, made)


def _model(net: build.Net, outputs: Any) -> ModelProto:
    return net.model(*([outputs] if isinstance(outputs, str) else outputs))


def in_a_function(make: Any) -> ModelProto:
    """A model whose only node is a function of its own, made by make(n, x)."""
    body = build.Net(prefix="in_")
    output = make(body, "a")
    constants = [
        helper.make_node("Constant", [], [weight.name], value=weight) for weight in body.weights
    ]
    nodes = [*constants, *body.nodes]
    opset = [helper.make_opsetid("", 17)]
    net = build.Net()
    net.imports["own"] = 1
    net.functions.append(helper.make_function("own", "Part", ["a"], [output], nodes, opset))
    model = net.model(net.node("Part", net.input(), domain="own"))
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, ("N", 8, "H", "W"))
    model.graph.output[0].type.CopyFrom(kind)
    return model


def _value(code: str, names: dict[str, Any]) -> Any:
    *before, last = ast.parse(code).body
    assert isinstance(last, ast.Expr)
    file = f"<example {zlib.crc32(code.encode())}>"  # whose source can be read, as of any file
    linecache.cache[file] = len(code), None, code.splitlines(True), file
    exec(compile(ast.Module(before, []), file, "exec"), names)
    return eval(compile(ast.Expression(last.value), file, "eval"), names)
