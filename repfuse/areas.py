"""How many positions the inputs of a model have, which is what costs are in proportion to.

Structure alone does not tell it. Without a word from the user, an input is one 224 x 224 image, or
what stands for it in other dimensions; where an input has a declared size, as in most ONNX files,
that is used. `shapes` tells it: the whole shape of the input, (batch, channels, *sizes), or of
each input by its name.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from operator import index
from typing import Any, NoReturn, TypeAlias

from repfuse.errors import RepfuseError

__all__ = ["NOMINAL_AREA", "Shapes", "basis_of", "batch_of", "check_shapes", "input_area"]

Shapes: TypeAlias = Sequence[int] | Mapping[str, Sequence[int]]

LARGEST = 2**63 - 1  # numbers of a tensor
SHOWN = 100  # characters of what is no shape

# Positions of an input by the number of its spatial axes.
NOMINAL_AREA = {0: 196.0, 1: 16384.0, 2: 224.0**2, 3: 16 * 112.0**2}


def input_area(name: str, channels: int | None, rank: int | None, shapes: Shapes) -> float | None:
    """The positions of an input whose shape is given, all samples of the batch together.

    A shape without a name, or with an empty one, holds for every input that it fits.
    """
    shape = shapes.get(name, shapes.get("")) if isinstance(shapes, Mapping) else shapes
    if not shape or rank is None or len(shape) < rank + 1 or channels != shape[-(rank + 1)]:
        return None
    return math.prod(shape) / channels


def batch_of(shapes: Shapes) -> int:
    """The samples of a batch, as the given shape with the most axes says; 1 where none is given."""
    given = shapes.values() if isinstance(shapes, Mapping) else (shapes,)
    longest = max(given, key=len, default=())
    return longest[0] if len(longest) > 1 else 1


def basis_of(
    shapes: Shapes, sized: Collection[str] = (), otherwise: str = "for a 224 x 224 image"
) -> str:
    """What costs are for, in words. sized: the inputs that a given shape told the size of."""
    named = dict(shapes) if isinstance(shapes, Mapping) else {"": shapes}
    others = any(name not in named for name in sized)
    used, unused = list[str](), list[str]()
    for name, shape in named.items():
        if shape:
            text = f"{name} {' x '.join(map(str, shape))}".strip()
            (used if name in sized or (not name and others) else unused).append(text)
    basis = f"for an input of {', '.join(used)}" if used else otherwise
    return f"{basis}; not used: {', '.join(unused)}" if unused else basis


def check_shapes(shapes: Shapes | None) -> Shapes:
    """The shapes as given, in plain numbers; RepfuseError where a size is no whole number above 0,
    or a shape that of no tensor."""
    if shapes is None:
        return ()
    if not isinstance(shapes, Mapping):
        return _checked(shapes)
    for name in shapes:
        if not isinstance(name, str):
            _refuse(shapes)
    return {name: _checked(shape) for name, shape in shapes.items()}


def _checked(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, Sequence) or isinstance(shape, str | bytes):
        _refuse(shape)
    try:
        sizes = tuple(map(index, shape))
    except TypeError:
        _refuse(shape)
    if any(isinstance(size, bool) for size in shape) or min(sizes, default=1) < 1:
        _refuse(shape)
    if math.prod(sizes) > LARGEST:
        _refuse(shape)
    return sizes


def _refuse(given: object) -> NoReturn:
    shown = repr(given)
    if len(shown) > SHOWN or not shown.isprintable():
        shown = f"this {type(given).__name__}"
    raise RepfuseError(
        "shapes are whole numbers above 0, as (1, 3, 224, 224), or a dict of such by the "
        f"names of the inputs, not {shown}"
    ) from None
