"""At which sizes a rewrite is proved, and how exactly both sides must agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from repfuse.operators import Conv

__all__ = ["BOUND", "probe_sizes"]

BOUND = 1e-10
SPARSE = 8


def probe_sizes(convs: Sequence[Conv]) -> Iterator[tuple[int, ...]]:
    """Input sizes for a probe of these operators; one empty size for Linears.

    Low and high borders apart, one for every residue of the size modulo the stride; then, from 1,
    the smallest ones, of which the first that is legal is enough.
    """
    rank = convs[0].rank if convs else 0
    if rank == 0:
        yield ()
        return
    stride = [max(conv.stride[axis] for conv in convs) for axis in range(rank)]
    base = [max(_enough(conv, axis) for conv in convs) for axis in range(rank)]
    if convs[0].transposed:
        stride, base = [1] * rank, [3] * rank
    for residue in range(max(stride)):
        yield tuple(
            b + (residue + axis) % s for axis, (b, s) in enumerate(zip(base, stride, strict=True))
        )
    for smallest in (1, 2, 3):
        yield (smallest,) * rank


def _enough(conv: Conv, axis: int) -> int:
    """A length at which every tap is inside for some output, and outside for another.

    Low and high borders do not overlap, unless the dilation is so large that this would cost
    more than it shows: then it is a length at which each tap is told from each other one.
    """
    spread = conv.span[axis] + 2
    if conv.dilation[axis] < SPARSE:
        return spread
    low, high = conv.padding[axis]
    return min(spread, max(conv.dilation[axis] + 2, conv.span[axis] + 2 - low - high))
