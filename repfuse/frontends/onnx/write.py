"""Write a fused model: as an object, as one file, or as a file beside one with its weights.

A protobuf message is written piece by piece, as the wire format allows: the new weights go from
their arrays to the file, and no copy of the whole model is ever made.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto

from repfuse.errors import RepfuseError
from repfuse.frontends.onnx.constants import read_tensor
from repfuse.frontends.onnx.files import tensors_of
from repfuse.frontends.onnx.patch import Patched, tensor_proto

__all__ = ["LIMIT", "complete", "has_weights_apart", "is_external", "size_of", "write_model"]

LIMIT = 2**31 - 2**20  # bytes: what protobuf can hold, with some room
APART = 1024  # bytes: smaller tensors stay in the model file
ALIGNED = 4096


def complete(patched: Patched, folder: Path | None) -> ModelProto:
    """The fused model as one object, with all weights in it."""
    if size_of(patched) > LIMIT:
        raise RepfuseError(
            "the model holds more than 2 GB, which one ModelProto cannot: "
            "use repfuse-onnx, which writes its weights into a file of their own"
        )
    for scope, added in patched.added:
        for name, (values, elem) in added.items():
            scope.holder.initializer.append(tensor_proto(name, values, elem))
    for tensor in tensors_of(patched.model):
        take_in(tensor, folder)
    return patched.model


def is_external(model: ModelProto) -> bool:
    """Whether values of the model lie in files of their own."""
    return any(t.data_location == TensorProto.EXTERNAL for t in tensors_of(model))


def has_weights_apart(model: ModelProto) -> bool:
    """Whether initializers do, so that those of the result should, too."""
    return any(t.data_location == TensorProto.EXTERNAL for t in model.graph.initializer)


def take_in(tensor: TensorProto, folder: Path | None) -> None:
    """Put values that lie in a file into the tensor itself."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return
    tensor.raw_data = onnx.numpy_helper.from_array(read_tensor(tensor, folder)).raw_data
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")


def size_of(patched: Patched) -> int:
    """About how many bytes the model takes, all weights included."""
    total = int(patched.model.ByteSize())
    for tensor in tensors_of(patched.model):
        if tensor.data_location == TensorProto.EXTERNAL:
            total += _length(tensor)
    for _, added in patched.added:
        total += sum(values.nbytes for values, _ in added.values())
    return total


def _length(tensor: TensorProto) -> int:
    given = {entry.key: entry.value for entry in tensor.external_data}
    if "length" in given:
        return int(given["length"])
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return int(np.prod(tensor.dims)) * kind.itemsize


def write_model(
    patched: Patched, path: Path, folder: Path | None = None, data: Path | None = None
) -> None:
    """Write to `path`; with `data`, weights go to that file, which must lie beside it.

    folder: where the external data of the model that was read lies.
    """
    main = patched.model.graph
    new: dict[str, tuple[np.ndarray, int]] = {}
    for scope, added in patched.added:
        if scope.holder is main:
            new.update(added)
        elif added:  # of a body, which is small; a function has got Constant nodes
            scope.holder.initializer.extend(tensor_proto(n, *tensor) for n, tensor in added.items())
    for tensor in islice(tensors_of(patched.model), len(main.initializer), None):
        take_in(tensor, folder)  # in nodes and bodies; the main graph's initializers come first
    tensors: Iterable[TensorProto] = main.initializer
    if data is not None:
        with data.open("wb") as store:
            tensors = [_stored(store, data.name, tensor, folder) for tensor in main.initializer]
            tensors += [
                _stored(store, data.name, tensor_proto(n, *t), None) for n, t in new.items()
            ]
            _flush(store)
        new = {}
    with path.open("wb") as file:
        _stream(file, patched.model, tensors, new)
        _flush(file)


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _stored(
    store: IO[bytes], location: str, tensor: TensorProto, folder: Path | None
) -> TensorProto:
    """The tensor with its values in the data file; small ones stay where they are."""
    external = tensor.data_location == TensorProto.EXTERNAL
    if tensor.data_type == TensorProto.STRING or not (external or tensor.ByteSize() > APART):
        return tensor
    if tensor.HasField("raw_data") and not external:
        content = tensor.raw_data
    else:
        full = onnx.numpy_helper.from_array(read_tensor(tensor, folder))
        assert full.data_type == tensor.data_type, f"{tensor.name} is of a type without raw form"
        content = full.raw_data
    store.write(b"\0" * (-store.tell() % (ALIGNED if len(content) >= ALIGNED else 16)))
    located = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    located.doc_string = tensor.doc_string
    located.metadata_props.extend(tensor.metadata_props)
    located.data_location = TensorProto.EXTERNAL
    for key, entry in (("location", location), ("offset", store.tell()), ("length", len(content))):
        located.external_data.add(key=key, value=str(entry))
    store.write(content)
    return located


def _stream(
    file: IO[bytes],
    model: ModelProto,
    tensors: Iterable[TensorProto],
    new: dict[str, tuple[np.ndarray, int]],
) -> None:
    """The model with these initializers in its main graph. Fields may come in any order."""
    shell, bare = ModelProto(), GraphProto()
    _copy_but(shell, model, {"graph"})
    _copy_but(bare, model.graph, {"node", "initializer"})
    messages = [(1, node) for node in model.graph.node] + [(5, tensor) for tensor in tensors]
    body = bare.SerializeToString()
    heads = {name: _head(name, *tensor) for name, tensor in new.items()}
    total = len(body)
    total += sum(_framed(message.ByteSize()) for _, message in messages)
    total += sum(_framed(len(head) + values.nbytes) for head, values in heads.values())
    file.write(shell.SerializeToString())
    file.write(_key(7, total))
    file.write(body)
    for number, message in messages:
        file.write(_key(number, message.ByteSize()))
        file.write(message.SerializeToString())
    for head, values in heads.values():
        file.write(_key(5, len(head) + values.nbytes))
        file.write(head)
        file.write(values.tobytes())


def _head(name: str, values: np.ndarray, elem: int) -> tuple[bytes, np.ndarray]:
    """A tensor up to its numbers, which follow as its last field; and these."""
    if elem == TensorProto.BFLOAT16:
        values = values.astype(ml_dtypes.bfloat16)
    head = TensorProto(name=name, data_type=elem, dims=values.shape).SerializeToString()
    return head + _key(9, values.nbytes), values


def _copy_but(target: Any, source: Any, left_out: set[str]) -> None:
    for field, content in source.ListFields():
        if field.name in left_out:
            continue
        if hasattr(content, "extend"):
            getattr(target, field.name).extend(content)
        elif hasattr(content, "CopyFrom"):
            getattr(target, field.name).CopyFrom(content)
        else:
            setattr(target, field.name, content)


def _key(number: int, length: int) -> bytes:
    """The start of a field that holds `length` bytes."""
    return _varint(number << 3 | 2) + _varint(length)


def _framed(length: int) -> int:
    """Bytes of such a field; all the field numbers used here take one byte."""
    return len(_key(1, length)) + length


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)
