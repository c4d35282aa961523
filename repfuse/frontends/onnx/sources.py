"""A model that is to be run several times: without its large values, and where these are.

ONNX Runtime maps external data into memory and holds no second copy of them, so that large values
that stand in the file itself are written to a temporary file first. Nodes that draw random numbers
get a seed, counted in their order: two models, and two runs of one model, draw the same.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto

from repfuse.errors import RepfuseError
from repfuse.frontends.onnx.files import check_model, external_range, graphs_of, read_model
from repfuse.frontends.onnx.light import without_values

__all__ = ["Source", "moved", "open_source"]

LARGE = 2**16  # bytes; smaller values stay where they are
DETACHED = 2**26  # bytes; with less than this in it a model stays as it is
ALIGNMENT = 2**16
RANDOM = {
    "Bernoulli",
    "Dropout",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}

# The integers that share their bytes with a type of floats: consecutive ones are an ulp apart.
INTEGERS: dict[int, type[np.signedinteger]] = {
    TensorProto.FLOAT: np.int32,
    TensorProto.DOUBLE: np.int64,
    TensorProto.FLOAT16: np.int16,
    TensorProto.BFLOAT16: np.int16,
}
# An operator's inputs that decide shapes: moved by an ulp, they may give another one.
SHAPING = {"Resize": (1, 2, 3), "Upsample": (1,), "Range": (0, 1, 2)}


@dataclass(frozen=True)
class Source:
    """A model as it is run. name: what to call it; folder: where its external data are."""

    name: str
    model: ModelProto
    folder: Path

    @property
    def outside(self) -> int:
        """Bytes of the initializers that lie in files."""
        return sum(
            external_range(tensor, self.folder)[2]
            for tensor in self.model.graph.initializer
            if tensor.data_location == TensorProto.EXTERNAL
        )


def open_source(model: ModelProto | str | os.PathLike[str], role: str, scratch: Path) -> Source:
    """The model in a file, or a copy of one in memory; scratch: a folder for large values.

    Raises RepfuseError as `files.read_model` does.
    """
    if isinstance(model, ModelProto):
        name, folder = f"the {role}", Path()
        check_model(model, name, folder)
    elif isinstance(model, str | os.PathLike):
        name, folder = str(model), Path(model).parent
        model = read_model(model)
    else:
        raise RepfuseError(f"the {role} is a {type(model).__name__}, not an ONNX model or its path")
    large = _large(model)
    # A copy also of what was read here: a message gives back no memory when a field is cleared.
    light = without_values(model, lambda tensor: tensor.name in large)
    if large:
        folder = scratch
        _detach(model, light, large, scratch / f"{role}.data")
    _seed(light)
    return Source(name, light, folder)


def _large(model: ModelProto) -> set[str]:
    """The initializers to be written to a file; none where a model has external data anyway."""
    sizes = {tensor.name: len(tensor.raw_data) for tensor in model.graph.initializer}
    external = any(t.data_location == TensorProto.EXTERNAL for t in model.graph.initializer)
    if external or sum(sizes.values()) < DETACHED:
        return set()
    return {name for name, size in sizes.items() if size >= LARGE}


def _detach(model: ModelProto, light: ModelProto, large: set[str], path: Path) -> None:
    try:
        with path.open("wb") as file:
            for tensor, stub in zip(model.graph.initializer, light.graph.initializer, strict=True):
                if tensor.name not in large:
                    continue
                file.seek(-file.tell() % ALIGNMENT, 1)
                place = {"location": path.name, "offset": file.tell()}
                place["length"] = file.write(tensor.raw_data)
                stub.data_location = TensorProto.EXTERNAL
                for key, value in place.items():
                    stub.external_data.add(key=key, value=str(value))
    except OSError as error:
        raise RepfuseError(
            f"no room for a temporary copy of the weights in {path.parent}: {error.strerror}"
        ) from error


def _seed(model: ModelProto) -> None:
    count = 0
    for graph in graphs_of(model):
        for node in graph.node:
            if node.op_type in RANDOM and node.domain in ("", "ai.onnx"):
                dropout = node.op_type == "Dropout"
                if dropout and len(node.input) < 3:
                    continue  # not in training mode; before opset 12 it has no seed
                count += 1
                if all(attribute.name != "seed" for attribute in node.attribute):
                    seed = count if dropout else float(count)
                    node.attribute.append(onnx.helper.make_attribute("seed", seed))


# ---------------------------------------------------------------------------------- moved weights


def moved(
    source: Source, rng: np.random.Generator, ndim: int
) -> tuple[ModelProto, dict[str, npt.NDArray[np.signedinteger]]]:
    """The model with every float weight of at least `ndim` axes moved by up to an ulp at random.

    Half of the values stay, a quarter goes up and a quarter down; whole numbers stay, since they
    are often masks, sizes or factors. What lies in external files is returned by its name, as the
    integers that share its bytes.
    """
    model = ModelProto()
    model.CopyFrom(source.model)
    kept = _shaping(model)
    arrays = {}
    for tensor in model.graph.initializer:
        if not _moves(tensor, tensor.name, kept, ndim):
            continue
        if tensor.data_location != TensorProto.EXTERNAL:
            _move_inside(tensor, rng)
            continue
        path, offset, _ = external_range(tensor, source.folder)
        kind = INTEGERS[tensor.data_type]
        values = np.fromfile(path, kind, prod(tensor.dims), offset=offset)
        move_bits(values, tensor.data_type, rng)
        arrays[tensor.name] = values.reshape(tuple(tensor.dims))
    for graph in graphs_of(model):
        for node in graph.node:
            for tensor in _values(node):
                if _moves(tensor, node.output[0], kept, ndim):
                    _move_inside(tensor, rng)
    return model, arrays


def move_bits(
    values: npt.NDArray[np.signedinteger], elem: int, rng: np.random.Generator, chunk: int = 2**22
) -> None:
    """Move floats, given as the integers that share their bytes, by up to an ulp, in place."""
    flat = values.reshape(-1)
    for start in range(0, len(flat), chunk):
        part = flat[start : start + chunk]
        draw = rng.integers(0, 4, len(part), np.int8)
        step = (draw == 1).astype(part.dtype) - (draw == 2)
        floats = as_floats(part, elem)
        with np.errstate(invalid="ignore"):
            step[(floats == np.rint(floats)) | ~np.isfinite(floats)] = 0
        after = part + step
        after[~np.isfinite(as_floats(after, elem))] = 0
        np.copyto(part, after, where=(step != 0) & (after != 0))


def as_floats(integers: npt.NDArray[np.signedinteger], elem: int) -> npt.NDArray[np.floating]:
    """The floats whose bytes these integers have; bfloat16 in float32."""
    if elem == TensorProto.BFLOAT16:
        return (integers.astype(np.int32) << 16).view(np.float32)
    return integers.view(onnx.helper.tensor_dtype_to_np_dtype(elem))


def _shaping(model: ModelProto) -> set[str]:
    return {
        node.input[slot]
        for graph in graphs_of(model)
        for node in graph.node
        for slot in SHAPING.get(node.op_type, ())
        if slot < len(node.input)
    }


def _moves(tensor: TensorProto, name: str, kept: set[str], ndim: int) -> bool:
    return tensor.data_type in INTEGERS and name not in kept and len(tensor.dims) >= ndim


def _values(node: NodeProto) -> list[TensorProto]:
    """The tensors of a Constant node that are in the model."""
    if node.op_type != "Constant":
        return []
    tensors = [a.t for a in node.attribute if a.type == AttributeProto.TENSOR]
    return [tensor for tensor in tensors if tensor.data_location != TensorProto.EXTERNAL]


def _move_inside(tensor: TensorProto, rng: np.random.Generator) -> None:
    values = np.ascontiguousarray(onnx.numpy_helper.to_array(tensor))
    bits = values.view(INTEGERS[tensor.data_type]).copy()
    move_bits(bits, tensor.data_type, rng)
    name, kind, dims = tensor.name, tensor.data_type, list(tensor.dims)
    tensor.Clear()
    tensor.name, tensor.data_type, tensor.raw_data = name, kind, bits.tobytes()
    tensor.dims.extend(dims)
