"""Read an ONNX file, and say in one line what is wrong with one that cannot be used.

Values in external files are not read: the tensors keep their location, which is checked (inside
the model's folder, there, long enough). onnx.checker gets the model without large values, since it
would copy them.
"""

from __future__ import annotations

import os
import re
import stat
from collections import deque
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from repfuse.errors import RepfuseError
from repfuse.frontends.onnx.light import without_values
from repfuse.frontends.onnx.wire import looks_like_a_model

__all__ = [
    "check_model",
    "data_files",
    "external_range",
    "graphs_of",
    "read_model",
    "tensors_of",
]

SMALL = 2048  # bytes; what the checker gets to see of a tensor
# Where a tensor may hold values, and the types of which one takes two of them, or less than a byte.
FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
PAIRS = (TensorProto.COMPLEX64, TensorProto.COMPLEX128)
NARROW: dict[int, int] = {TensorProto.UINT4: 4, TensorProto.INT4: 4, TensorProto.FLOAT4E2M1: 4}
NARROW |= {getattr(TensorProto, name, -1): 2 for name in ("UINT2", "INT2")}  # of a newer onnx
NODES = 10**7  # more than any model has; where functions call each other, few bytes make more
LIMIT = 2**31  # bytes; protobuf reads no more


def read_model(path: str | os.PathLike[str]) -> ModelProto:
    """The model in a file, without the values that it keeps in other files.

    Raises RepfuseError where there is no such file, where it holds no model that onnx.checker
    accepts, or where its external data are missing, too short or outside of its folder.
    """
    path = Path(path)
    data = _bytes(path)
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise RepfuseError(f"{path} {_unparsed(data)}") from error
    if not model.HasField("graph"):
        kind = "ends before the graph" if looks_like_a_model(data) else "is not an ONNX file"
        raise RepfuseError(f"{path} {kind}: export or copy it again")
    del data
    check_model(model, str(path), path.parent)
    return model


def check_model(model: ModelProto, name: str, folder: Path) -> None:
    """Raise RepfuseError unless the model is valid; name: what to call it, folder: its data."""
    _check_names(model, name)
    _check_versions(model, name)
    for tensor in tensors_of(model):
        if tensor.HasField("segment"):
            raise RepfuseError(f"{name}: tensor {tensor.name!r} is in segments: export it whole")
        try:
            if tensor.data_location == TensorProto.EXTERNAL:
                external_range(tensor, folder)
        except RepfuseError as error:
            raise RepfuseError(f"{name}: tensor {tensor.name!r}: {error}") from error
        if tensor.data_location != TensorProto.EXTERNAL and (fault := _misstored(tensor)):
            fault = f"tensor {tensor.name!r} has {fault}: export it again"
            raise RepfuseError(f"{name} is not a valid model: {fault}")
    try:
        onnx.checker.check_model(_for_the_checker(model))
    except Exception as error:
        raise RepfuseError(f"{name} is not a valid model: {_verdict(str(error))}") from error
    if (count := _with_calls(model)) > NODES:
        raise RepfuseError(
            f"{name} has {count:.0e} nodes once each call of a function is one of its nodes, "
            "which nothing can run: export it again, with functions that call fewer others"
        )


def _with_calls(model: ModelProto) -> int:
    """How many nodes there are where each call stands for what it calls; no function calls itself,
    which the checker has seen to."""
    functions = {(function.domain, function.name): function for function in model.functions}
    known: dict[tuple[str, str], int] = {}

    def inside(holder: Any) -> int:
        total = 0
        for graph in graphs_in(holder):
            for node in graph.node:
                called = node.domain, node.op_type
                if called in functions and called not in known:
                    known[called] = inside(functions[called])  # at most 100 deep, says the checker
                total += known.get(called, 1)
        return total

    return inside(model.graph) if functions else 0


def external_range(tensor: TensorProto, folder: Path) -> tuple[Path, int, int]:
    """The file, offset and length of a tensor's external values.

    Raises RepfuseError, without the name of the tensor, where they cannot be read.
    """
    given = {entry.key: entry.value for entry in tensor.external_data}
    location = given.get("location", "")
    if not location:
        raise RepfuseError("its values are external, but no file is named: export the model again")
    if len(given) < len(tensor.external_data):  # readers differ in which of them counts
        raise RepfuseError("its external data are described twice: export the model again")
    size = _size(tensor)
    offset, length = (_number(given.get(key, ""), key) for key in ("offset", "length"))
    if length != size and given.get("length"):
        raise RepfuseError(
            f"it needs {size} bytes, but {length} bytes are external: export the model again"
        )
    path = _beside(location, folder)
    there = path.stat().st_size
    if offset + size > there:
        raise RepfuseError(
            f"its external data file {path} is cut short: it has {there} bytes, "
            f"{offset + size} are needed; copy it again"
        )
    return path, offset, size


def _number(text: str, key: str) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise RepfuseError(
            f"the {key} of its external data is {_short(text)}, no number of bytes: "
            "export the model again"
        )
    return int(text)


def _beside(location: str, folder: Path) -> Path:
    """The file of external data. Raises RepfuseError where it is none, or not in the folder."""
    relative, path = Path(location), folder / location
    try:
        inside = folder.resolve()
        there = path.is_file()
        outside = relative.is_absolute() or ".." in relative.parts
        outside = outside or inside not in path.resolve().parents
    except (OSError, ValueError, RuntimeError) as error:  # too long, with a zero, a ring of links
        reason = getattr(error, "strerror", None) or str(error)
        raise RepfuseError(
            f"its external data file {_short(location)} cannot be opened ({reason}): "
            "export the model again"
        ) from None
    if outside:
        raise RepfuseError(
            f"its external data {_short(location)} are outside of the model's folder: "
            "copy model and data into one folder"
        )
    if not there:
        raise RepfuseError(f"its external data file {path} is missing: put it next to the model")
    return path


def _short(text: str | bytes) -> str:
    """A text from a file in quotes, as one can read it."""
    shown = repr(text)
    return shown if len(shown) <= 100 else f"{shown[:97]}...{shown[0]}"


def data_files(model: ModelProto, folder: Path) -> set[Path]:
    """The files that hold values of a valid model, which is in `folder`."""
    return {
        external_range(tensor, folder)[0]
        for tensor in tensors_of(model)
        if tensor.data_location == TensorProto.EXTERNAL
    }


def tensors_of(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor of a model: initializers and attributes, in all graphs and functions."""
    for graph in graphs_of(model):
        if isinstance(graph, GraphProto):
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.TENSOR:
                    yield attribute.t
                yield from attribute.tensors


def graphs_of(model: ModelProto) -> Iterator[Any]:
    """Everything that holds nodes: the graph, its functions, and the bodies inside of nodes."""
    yield from graphs_in(model.graph, *model.functions)


def graphs_in(*holders: Any) -> Iterator[Any]:
    """Graphs or functions, and the bodies inside of their nodes."""
    waiting = deque(holders)
    while waiting:
        graph = waiting.popleft()
        yield graph
        for node in graph.node:
            waiting.extend(_bodies(node))


def _bytes(path: Path) -> bytes:
    try:
        str(path).encode()
        there = path.stat()
        if stat.S_ISDIR(there.st_mode):
            raise RepfuseError(f"{path} is a folder: name the .onnx file in it")
        if not (stat.S_ISREG(there.st_mode) or stat.S_ISFIFO(there.st_mode)):
            raise RepfuseError(f"{path} is a device: name an ONNX file")
        size, data = there.st_size, b""
        if stat.S_ISFIFO(there.st_mode):  # how much will come is not known
            with path.open("rb") as file:
                data = file.read(LIMIT)
            size = len(data)
        elif size < LIMIT:
            data = path.read_bytes()
        if size >= LIMIT:
            raise RepfuseError(
                f"{path} has {size} bytes, and protobuf reads no file above 2 GB: "
                "save the model with external data"
            )
        if not data:
            raise RepfuseError(f"{path} is empty: export or copy it again")
        return data
    except FileNotFoundError:
        raise RepfuseError(f"{path} does not exist") from None
    except OSError as error:
        raise RepfuseError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeError:  # onnx and ONNX Runtime cannot open it
        raise RepfuseError(f"{str(path)!a} is no name in UTF-8: rename the file") from None
    except ValueError as error:
        raise RepfuseError(f"{str(path)!r} cannot be read: {error}") from error


def _unparsed(data: bytes) -> str:
    if looks_like_a_model(data):
        return "is cut short or damaged: export or copy it again"
    return "is not an ONNX file"


def _check_names(model: ModelProto, name: str) -> None:
    """protobuf gives bytes where a text is no UTF-8."""
    texts: list[Any] = [entry.domain for entry in model.opset_import]
    for graph in graphs_of(model):
        texts.append(graph.name)
        for field in ("input", "output", "initializer", "value_info"):
            texts += [
                v if isinstance(v, str | bytes) else v.name for v in getattr(graph, field, ())
            ]
        for node in graph.node:
            texts += (node.name, node.op_type, node.domain, *node.input, *node.output)
            texts += (text for attribute in node.attribute for text in _texts(attribute))
    for value in (*model.graph.input, *model.graph.output):
        texts += (dim.dim_param for dim in value.type.tensor_type.shape.dim)
    wrong = next((text for text in texts if isinstance(text, bytes)), None)
    if wrong is not None:
        raise RepfuseError(
            f"{name} holds a name that is no UTF-8, {_short(wrong)}: export it again"
        )


def _texts(attribute: AttributeProto) -> tuple[Any, ...]:
    return attribute.name, attribute.ref_attr_name, attribute.t.name


def _check_versions(model: ModelProto, name: str) -> None:
    installed = f"the installed onnx {onnx.__version__} knows"
    if model.ir_version > onnx.IR_VERSION:
        raise RepfuseError(
            f"{name} has IR version {model.ir_version}, {installed} up to {onnx.IR_VERSION}: "
            "pip install -U onnx"
        )
    if not model.opset_import and not model.functions:
        raise RepfuseError(f"{name} names no opset, so it is cut short or no ONNX model")
    newest = {domain: most for domain, (_, most) in onnx.defs.C.schema_version_map().items()}
    for entry in model.opset_import:
        most = newest.get("" if entry.domain == "ai.onnx" else entry.domain)
        if most is not None and entry.version > most:
            raise RepfuseError(
                f"{name} uses opset {entry.version} of {entry.domain or 'ai.onnx'!r}, "
                f"{installed} up to {most}: pip install -U onnx"
            )


def _size(tensor: TensorProto) -> int:
    """The bytes that a tensor's values take."""
    kind = int(tensor.data_type)
    try:
        bits = 8 * int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)
    except KeyError:
        raise RepfuseError(f"its element type {kind} is unknown") from None
    bits = NARROW.get(kind, bits)
    return (int(prod(tensor.dims)) * bits + 7) // 8


def _misstored(tensor: TensorProto) -> str:
    """How what is stored in a tensor differs from what its shape asks for; the checker sees to
    tensors of which nothing is stored, or in several fields."""
    if tensor.HasField("raw_data"):
        have, need, unit = len(tensor.raw_data), _size(tensor), "bytes"
    else:
        have, need, unit = sum(len(getattr(tensor, f)) for f in FIELDS), prod(tensor.dims), "values"
        if tensor.data_type in PAIRS:
            need *= 2
        elif (bits := NARROW.get(tensor.data_type, 8)) < 8:
            need = (need * bits + 7) // 8
    return f"{have} {unit} of {need}" if have and have != need else ""


def _for_the_checker(model: ModelProto) -> ModelProto:
    """The model without large or external values; no unknown shape is a fault."""
    light = without_values(
        model,
        lambda tensor: tensor.data_location == TensorProto.EXTERNAL or len(tensor.raw_data) > SMALL,
    )
    for whole, tensor in zip(model.graph.initializer, light.graph.initializer, strict=True):
        if whole.data_location == TensorProto.EXTERNAL or len(whole.raw_data) > SMALL:
            tensor.dims[:] = [0]
    for tensor in tensors_of(light):
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.dims[:] = [0]
    for value in light.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    return light


def _verdict(text: str) -> str:
    """The checker's first sentence in one line, with the node, and what is behind it."""
    fault, _, context = text.partition("==> Context:")
    fault = re.sub(r"\s+", " ", fault).strip()
    sorted_ = re.search(r"topologically sorted, however input (.+) of node: (.*) is not", fault)
    if sorted_:
        name = re.sub(r"name: ?(.*?) ?OpType: (\w+)", r"\1 (\2)", sorted_[2]).strip()
        return (
            f"node {name} reads {sorted_[1]}, which no node before it makes: "
            "the graph has a cycle, is not sorted, or lacks a node"
        )
    node = re.search(r"Name: (.*) OpType: (\w+)", context)
    return f"node {node[1]} ({node[2]}): {fault}" if node else fault


def _bodies(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs
