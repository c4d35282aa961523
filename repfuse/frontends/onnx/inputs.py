"""Random inputs for a model: seeded, at sizes that it runs on and at which its borders count.

The reference says on which of the sizes it runs that `sizes` proposes. Floats are normal or
uniform, by turns; whole numbers are small, or all rows of the table that they are indices of.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from math import prod
from operator import index
from pathlib import Path
from typing import Any, TypeAlias
from zlib import crc32

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from repfuse.errors import RepfuseError
from repfuse.frontends.onnx.interface import Port
from repfuse.frontends.onnx.sizes import FLOATS, WHOLE_NUMBERS, Limits, Try, tries

__all__ = ["Feeds", "check_fit", "check_shapes", "derive", "given", "parse_shapes", "read_npz"]

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
    rows: Mapping[str, int] | None = None,
) -> list[Feeds]:
    """`draws` inputs that the model runs on.

    runs: says why the model does not run on an input, or nothing. name: what to call the model in
    an error. shapes: the shapes of some inputs. rows: as `sizes.rows_of` says. Where it runs at
    fewer sizes than asked for, these come again with other values. Raises RepfuseError where
    nothing of the ladder runs.
    """
    fixed = check_shapes(ports, shapes or {}, name)
    if not ports:
        return [{}]
    found: list[tuple[Try, Feeds]] = []
    fault, tried = "", []
    rows = rows or {}
    for alternatives in tries(ports, fixed, rows):
        for one in alternatives:
            if one in tried or any(one[0] == other[0] for other, _ in found):
                continue
            tried.append(one)
            feeds = _random(ports, *one, rows, seed, len(found))
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
        found.append((one, _random(ports, *one, rows, seed, len(found))))
    return [feeds for _, feeds in found]


def given(
    ports: Sequence[Port], inputs: Any, name: str, overridable: Sequence[Port] = ()
) -> list[Feeds]:
    """What a user gave, checked: a dict by input name, an array for the only input, or a list.

    overridable: inputs that may be given, but need not be.
    """
    several = inputs if isinstance(inputs, list) else [inputs]
    if not several:
        raise RepfuseError("no inputs were given: an empty list compares nothing")
    return [_feeds(ports, overridable, one, name) for one in several]


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
    if not isinstance(shapes, Mapping):
        raise RepfuseError(f"shapes is {shapes!r}: give a dict of shapes by input name")
    named = {port.name: port for port in ports}
    fitting = {}
    for key, shape in shapes.items():
        if key == "" and len(ports) == 1:
            key = ports[0].name
        if key not in named:
            raise RepfuseError(f"{name} has no input {key!r}: its inputs are {_list(ports)}")
        port, sizes = named[key], _sizes(key, shape)
        if not _fits(port, sizes):
            text = "x".join(map(str, sizes)) or "scalar"
            raise RepfuseError(f"{name}: input {key!r} is {port.shape_text}, {text} was given")
        fitting[key] = sizes
    return fitting


def check_fit(ports: Sequence[Port], shapes: Shapes | Sequence[int], name: str) -> None:
    """Raise RepfuseError where a shape that was given for the costs fits no input.

    One without a name, or with an empty one, has to fit any of them.
    """
    named = dict(shapes) if isinstance(shapes, Mapping) else {"": shapes}
    free = named.pop("", ())
    check_shapes(ports, named, name)
    others = [port for port in ports if port.name not in named]
    if len(others) == 1 and free:
        check_shapes(others, {"": free}, name)
    elif free and not any(_fits(port, tuple(free)) for port in others):
        text = "x".join(map(str, free))
        raise RepfuseError(f"{name} has no input {text}: its inputs are {_list(ports)}")


def _fits(port: Port, sizes: tuple[int, ...]) -> bool:
    declared = sizes if port.dims is None else port.dims
    return len(declared) == len(sizes) and all(
        mine == theirs or not isinstance(theirs, int)
        for mine, theirs in zip(sizes, declared, strict=True)
    )


def _sizes(key: str, shape: Any) -> tuple[int, ...]:
    """A shape that a user gave, as plain numbers."""
    sizes: tuple[int, ...] = ()
    try:
        sizes = tuple(map(index, shape))
        usable = all(size >= 0 for size in sizes)
    except TypeError:
        usable = False
    if not usable:
        raise RepfuseError(
            f"the shape of input {key!r} is {shape!r}: give sizes like (1, 3, 224, 224)"
        )
    return sizes


def _random(
    ports: Sequence[Port],
    shapes: Shapes,
    limits: Limits,
    rows: Mapping[str, int],
    seed: int,
    draw: int,
) -> Feeds:
    feeds = {}
    _check_room(ports, shapes)
    for port in ports:
        if port.kind != "tensor":
            raise RepfuseError(
                f"input {port.name!r} is a {port.type_name}, for which no values can be made: "
                "give inputs from Python"
            )
        rng = np.random.default_rng([seed, draw, crc32(port.name.encode())])
        shape, below = tuple(shapes[port.name]), rows.get(port.name)
        if limits.rows and below and port.elem in WHOLE_NUMBERS:
            below = min(below, limits.rows, np.iinfo(_dtype(port)).max)
            feeds[port.name] = rng.integers(0, below, shape).astype(_dtype(port))
        else:
            feeds[port.name] = _values(rng, port, shape, limits.others, draw)
    return feeds


def _check_room(ports: Sequence[Port], shapes: Shapes) -> None:
    """Raise RepfuseError where no random inputs of these shapes can be held."""
    numbers = sum(prod(shapes[port.name]) for port in ports if port.kind == "tensor")
    if numbers * 8 > _memory():  # they are drawn in float64
        texts = (f"{p.name!r} ({'x'.join(map(str, shapes.get(p.name, ())))})" for p in ports)
        raise RepfuseError(
            f"{numbers * 8:.1e} bytes are needed for the inputs {', '.join(texts)}, more than this "
            "machine has: export the model for smaller ones"
        )


def _memory() -> int:
    """Bytes of this machine, or what is more than any machine has."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**44


def _values(
    rng: np.random.Generator, port: Port, shape: tuple[int, ...], limit: int, draw: int
) -> npt.NDArray[Any]:
    elem, dtype = port.elem, _dtype(port)
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


def _dtype(port: Port) -> np.dtype[Any]:
    try:
        return onnx.helper.tensor_dtype_to_np_dtype(port.elem)
    except KeyError:
        raise RepfuseError(f"input {port.name!r} is a tensor of {port.type_name}") from None


def _feeds(ports: Sequence[Port], overridable: Sequence[Port], one: Any, name: str) -> Feeds:
    if not isinstance(one, Mapping):
        if len(ports) != 1:
            raise RepfuseError(
                f"{name} has {len(ports)} inputs: give a dict by name ({_list(ports)})"
            )
        one = {ports[0].name: one}
    known = {port.name: port for port in (*ports, *overridable)}
    if not {port.name for port in ports} <= set(one) <= set(known):
        there = ", ".join(sorted(map(str, one))) or "none"
        raise RepfuseError(f"{name} has the inputs {_list([*known.values()])}; given are {there}")
    return {key: _fitting(known[key], value, name) for key, value in one.items()}


def _fitting(port: Port, value: Any, name: str) -> Any:
    if port.kind != "tensor" or port.elem == TensorProto.STRING:
        return value
    array = np.asarray(value)
    dtype = _dtype(port)
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
    texts = (
        f"{port.name!r} ({port.shape_text}{', may be left out' if port.default else ''})"
        for port in ports
    )
    return ", ".join(texts) or "none"
