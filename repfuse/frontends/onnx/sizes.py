"""Sizes to try for the dynamic dimensions of a model.

A fixed dimension is as it is. One symbol is one size in all inputs, and so are dimensions without
a name at the same place. The sizes of the others come from a ladder with three on each rung: first
small ones, odd and even and not square, so that borders count; then odd multiples of 32, for
networks that halve their input five times; then what fixed heads ask for (224, 256, 299, 640, a
second of sound at 16 kHz).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import TypeAlias

from onnx import TensorProto

from repfuse.frontends.onnx.interface import Port

__all__ = ["FLOATS", "Try", "tries"]

Try: TypeAlias = tuple[dict[str, tuple[int, ...]], int]  # shapes, and the limit of whole numbers

BATCHES = (1, 2, 3)
# Per rung three draws of (height, width, depth) and of any other dimension.
LADDER = (
    (((33, 46, 21), 7), ((40, 37, 18), 4), ((51, 34, 15), 9)),
    (((96, 160, 32), 32), ((160, 96, 32), 16), ((224, 96, 32), 48)),
    (((224, 224, 64), 64), ((192, 320, 64), 128), ((320, 192, 64), 256)),
    (((256, 256, 96), 1), ((384, 384, 96), 77), ((299, 299, 128), 512)),
    (((640, 640, 128), 3), ((512, 512, 128), 2), ((480, 640, 128), 16000)),
)
CHANNELS = 3
LARGEST = 2**24  # elements of all inputs, unless the first try has more
WHOLE = (8, 2, 1)  # whole numbers are below one of these; the last one makes them all 1

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def tries(ports: Sequence[Port], fixed: Mapping[str, tuple[int, ...]]) -> Iterator[list[Try]]:
    """What to try: of each list the first that runs. A batch may have to be 1."""
    whole = any(port.elem not in FLOATS for port in ports)
    largest = 0
    for rung in LADDER:
        for index, (spatial, other) in enumerate(rung):
            batches = dict.fromkeys((BATCHES[index], 1))
            shapes = [_shapes(ports, fixed, batch, spatial, other) for batch in batches]
            elements = sum(map(prod, shapes[-1].values()))
            largest = largest or max(LARGEST, elements)
            if elements <= largest:
                limits = WHOLE if whole else WHOLE[:1]
                yield [(one, limit) for limit in limits for one in shapes]


def _shapes(
    ports: Sequence[Port],
    fixed: Mapping[str, tuple[int, ...]],
    batch: int,
    spatial: tuple[int, ...],
    other: int,
) -> dict[str, tuple[int, ...]]:
    bound: dict[object, int] = {}
    for port in ports:
        for axis, size in enumerate(fixed.get(port.name, ())):
            bound[_key(port, axis)] = size
    shapes = {}
    for port in ports:
        guessed = _guess(port, batch, spatial, other)
        if port.name in fixed:
            shapes[port.name] = fixed[port.name]
            continue
        sizes = []
        for axis, dim in enumerate(port.dims or ()):
            if not isinstance(dim, int):
                dim = bound.setdefault(_key(port, axis), guessed[axis])
            sizes.append(dim)
        shapes[port.name] = tuple(sizes)
    return shapes


def _key(port: Port, axis: int) -> object:
    """What dimensions that have one size share: their symbol, or their place."""
    dim = port.dims[axis] if port.dims is not None else None
    return dim if isinstance(dim, str) else (axis, axis and len(port.dims or ()))


def _guess(port: Port, batch: int, spatial: tuple[int, ...], other: int) -> list[int]:
    """A size for each axis: (batch, channels, space...), space first if only the last is fixed."""
    dims = port.dims or ()
    if len(dims) < 3 or port.elem not in (*FLOATS, TensorProto.UINT8, TensorProto.INT8):
        return [batch, *[other] * (len(dims) - 1)][: len(dims)]
    if len(dims) == 3 and isinstance(dims[2], int):
        return [batch, other, other]
    last = isinstance(dims[-1], int) and not isinstance(dims[1], int)
    space = [*spatial, *[other] * len(dims)][: len(dims) - 2]
    if len(space) == 1:  # sound may have to be long
        space = [max(spatial[0], other)]
    return [batch, *space, CHANNELS] if last else [batch, CHANNELS, *space]
