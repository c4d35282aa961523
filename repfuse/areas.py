"""How many positions the inputs of a model have, which is what costs are in proportion to.

Structure alone does not tell it. Without a word from the user, an input is one 224 x 224 image, or
what stands for it in other dimensions; where an input has a declared size, as in most ONNX files,
that is used. `shapes` tells it: the whole shape of the input, (batch, channels, *sizes), or of
each input by its name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from repfuse.errors import RepfuseError

__all__ = ["NOMINAL_AREA", "Shapes", "basis_of", "batch_of", "check_shapes", "input_area"]

Shapes: TypeAlias = Sequence[int] | Mapping[str, Sequence[int]]

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
    """The samples of a batch, as the first given shape says; 1 where none is given."""
    first = next(iter(shapes.values()), ()) if isinstance(shapes, Mapping) else shapes
    return first[0] if len(first) > 1 else 1


def basis_of(shapes: Shapes, otherwise: str = "for a 224 x 224 image") -> str:
    """What costs are for, in words."""
    if not shapes:
        return otherwise
    named = shapes.items() if isinstance(shapes, Mapping) else (("", shapes),)
    texts = [f"{name} {' x '.join(map(str, shape))}".strip() for name, shape in named]
    return f"for an input of {', '.join(texts)}"


def check_shapes(shapes: Shapes | None) -> Shapes:
    """The shapes as given; RepfuseError where a size is no whole number above 0."""
    if shapes is None:
        return ()
    for shape in shapes.values() if isinstance(shapes, Mapping) else (shapes,):
        known = isinstance(shape, Sequence)
        if not (known and all(isinstance(size, int) and size > 0 for size in shape)):
            raise RepfuseError(
                "shapes are whole numbers above 0, as (1, 3, 224, 224), or a dict of such by the "
                f"names of the inputs, not {shape!r}"
            )
    return shapes
