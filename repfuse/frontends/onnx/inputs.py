"""Random inputs for a model: seeded, at sizes that it runs on and at which its borders count.

The reference says on which of the sizes it runs that `sizes` proposes. Floats are normal or
uniform, by turns; whole numbers are small.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from zlib import crc32

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from repfuse.errors import RepfuseError
from repfuse.frontends.onnx.interface import Port
from repfuse.frontends.onnx.sizes import FLOATS, Try, tries

__all__ = ["Feeds", "check_shapes", "derive", "given", "parse_shapes", "read_npz"]

Feeds: TypeAlias = dict[str, Any]
Shapes: TypeAlias = Mapping[str, Sequence[int]]


def derive(
    ports: Sequence[Port],
    runs: Callable[[Feeds], str],
    *,
    name: str,
    shapes: Shapes | None = None,
    seed: int = 0,
    draws: int = 3,
) -> list[Feeds]:
    """`draws` inputs that the model runs on.

    runs: says why the model does not run on an input, or nothing. name: what to call the model in
    an error. shapes: the shapes of some inputs. Where it runs at fewer sizes than asked for, these
    come again with other values. Raises RepfuseError where nothing of the ladder runs.
    """
    fixed = check_shapes(ports, shapes or {}, name)
    if not ports:
        return [{}]
    found: list[tuple[Try, Feeds]] = []
    fault, tried = "", []
    for alternatives in tries(ports, fixed):
        for one in alternatives:
            if one in tried or any(one[0] == other[0] for other, _ in found):
                continue
            tried.append(one)
            feeds = _random(ports, *one, seed, len(found))
            why = runs(feeds)
            fault = fault or why
            if not why:
                found.append((one, feeds))
                break
        if len(found) == draws:
            break
    if not found:
        raise RepfuseError(
            f"{name}: no runnable input shape was found ({fault}): "
            "give one with --input NAME=SHAPE, or arrays with --inputs FILE.npz"
        )
    alike = len(found)
    while len(found) < draws:
        one, _ = found[len(found) % alike]
        found.append((one, _random(ports, *one, seed, len(found))))
    return [feeds for _, feeds in found]


def given(ports: Sequence[Port], inputs: Any, name: str) -> list[Feeds]:
    """What a user gave, checked: a dict by input name, an array for the only input, or a list."""
    several = inputs if isinstance(inputs, list) else [inputs]
    if not several:
        raise RepfuseError("no inputs were given: an empty list compares nothing")
    return [_feeds(ports, one, name) for one in several]


def read_npz(path: str | Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an .npz file by name. Raises RepfuseError where it is no such file."""
    path = Path(path)
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise RepfuseError(f"{path} holds one array: save it by name with numpy.savez")
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except FileNotFoundError:
        raise RepfuseError(f"{path} does not exist") from None
    except OSError as error:
        raise RepfuseError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RepfuseError(f"{path} is no .npz file of plain arrays: use numpy.savez") from error


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Shapes by input name from NAME=1x3x224x224; the only input's without NAME=, under ""."""
    shapes = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        parts = sizes.replace(",", "x").lower().split("x")
        if sizes != "scalar" and not all(part.isdecimal() and part.isascii() for part in parts):
            raise RepfuseError(f"{text!r} is no shape: write --input NAME=1x3x224x224")
        if name in shapes:
            raise RepfuseError(f"the shape of input {name!r} is given twice")
        shapes[name] = () if sizes == "scalar" else tuple(map(int, parts))
    return shapes


def check_shapes(ports: Sequence[Port], shapes: Shapes, name: str) -> dict[str, tuple[int, ...]]:
    """The given shapes by input name. Raises RepfuseError where one does not fit the model."""
    named = {port.name: port for port in ports}
    fitting = {}
    for key, shape in shapes.items():
        if key == "" and len(ports) == 1:
            key = ports[0].name
        if key not in named:
            raise RepfuseError(f"{name} has no input {key!r}: its inputs are {_list(ports)}")
        port, sizes = named[key], tuple(map(int, shape))
        declared = sizes if port.dims is None else port.dims
        fits = len(declared) == len(sizes) and all(
            mine == theirs or not isinstance(theirs, int)
            for mine, theirs in zip(sizes, declared, strict=True)
        )
        if not fits:
            text = "x".join(map(str, sizes)) or "scalar"
            raise RepfuseError(f"{name}: input {key!r} is {port.shape_text}, {text} was given")
        fitting[key] = sizes
    return fitting


def _random(ports: Sequence[Port], shapes: Shapes, limit: int, seed: int, draw: int) -> Feeds:
    feeds = {}
    for port in ports:
        if port.kind != "tensor":
            raise RepfuseError(
                f"input {port.name!r} is a {port.type_name}, for which no values can be made: "
                "give inputs from Python"
            )
        rng = np.random.default_rng([seed, draw, crc32(port.name.encode())])
        feeds[port.name] = _values(rng, port.elem, tuple(shapes[port.name]), limit, draw)
    return feeds


def _values(
    rng: np.random.Generator, elem: int, shape: tuple[int, ...], limit: int, draw: int
) -> npt.NDArray[Any]:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(elem)
    if elem in FLOATS:
        values = rng.random(shape) if draw % 2 else rng.standard_normal(shape)
        return np.asarray(values).astype(dtype)
    if elem == TensorProto.BOOL:
        return np.asarray(rng.random(shape) < 0.5)
    if elem == TensorProto.STRING:
        return np.full(shape, "a", object)
    if dtype.kind == "c":
        return np.asarray(rng.standard_normal(shape) + 1j * rng.standard_normal(shape), dtype)
    if elem in (TensorProto.UINT8, TensorProto.INT8):
        info = np.iinfo(dtype)
        return np.asarray(rng.integers(info.min, info.max, shape, dtype, endpoint=True))
    return np.asarray(rng.integers(0, limit, shape) if limit > 1 else np.ones(shape), dtype)


def _feeds(ports: Sequence[Port], one: Any, name: str) -> Feeds:
    if not isinstance(one, Mapping):
        if len(ports) != 1:
            raise RepfuseError(
                f"{name} has {len(ports)} inputs: give a dict by name ({_list(ports)})"
            )
        one = {ports[0].name: one}
    asked, there = {port.name for port in ports}, set(one)
    if asked != there:
        raise RepfuseError(
            f"{name} has the inputs {_list(ports)}; given are {', '.join(sorted(there)) or 'none'}"
        )
    return {port.name: _fitting(port, one[port.name], name) for port in ports}


def _fitting(port: Port, value: Any, name: str) -> Any:
    if port.kind != "tensor" or port.elem == TensorProto.STRING:
        return value
    array = np.asarray(value)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(port.elem)
    if array.dtype != dtype:
        floats = port.elem in FLOATS and array.dtype.kind == "f"
        if not floats and not (array.dtype.kind in "iu" and dtype.kind in "iu"):
            raise RepfuseError(
                f"{name}: input {port.name!r} is {port.type_name}, {array.dtype.name} was given"
            )
        array = array.astype(dtype)
    check_shapes([port], {port.name: array.shape}, name)
    return np.ascontiguousarray(array) if array.ndim else array


def _list(ports: Sequence[Port]) -> str:
    return ", ".join(f"{port.name!r} ({port.shape_text})" for port in ports) or "none"
