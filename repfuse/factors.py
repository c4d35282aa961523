"""What the shape of a factor says: whether it is one number per sample, or per sample and channel.

Frontends run what computes a factor on inputs of two batches and sizes; numbers that no layer is
likely to have, so that what follows the batch or the image is told from what does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["DRAWS", "NODES", "Draw", "piece_of", "width_of"]

Draw = tuple[int, tuple[int, ...]]

DRAWS: tuple[Draw, ...] = ((3, (13, 17, 19)), (5, (23, 29, 11)))
NODES = 64  # that a factor may be computed by, from the values that its sum is made of


def width_of(
    shapes: Sequence[tuple[int, ...]], draws: Sequence[Draw], channels: int, rank: int
) -> int | str | None:
    """How many numbers per sample factors of these shapes hold: 1, or one for each channel of
    what they are multiplied with. A reason where the shape is another one that is common."""
    found = set()
    for shape, (batch, sizes) in zip(shapes, draws, strict=True):
        if len(shape) != rank + 2 or shape[1] not in (1, channels):
            return None
        if shape[0] == 1 != batch:
            return "the factor is the same for all samples of a batch"
        if shape[0] != batch:
            return None
        if any(size != 1 for size in shape[2:]):
            pairs = zip(shape[2:], sizes[:rank], strict=True)
            spatial = all(size in (1, most) for size, most in pairs)
            return "the factor differs from position to position" if spatial else None
        found.add(shape[1])
    return found.pop() if len(found) == 1 else None


def piece_of(numbers: np.ndarray, piece: np.ndarray, width: int) -> int | None:
    """Which piece of `width` numbers per sample a tensor is of another one, whose numbers all
    differ; None where it is none."""
    batch = len(numbers)
    rows = numbers.reshape(batch, -1)
    if piece.size != batch * width or rows.shape[1] % width or not piece.size:
        return None
    found = piece.reshape(batch, width)
    place = np.flatnonzero(rows[0] == found[0, 0])
    if len(place) != 1 or place[0] % width:
        return None
    begin = int(place[0])
    return begin // width if np.array_equal(rows[:, begin : begin + width], found) else None
