"""At which sizes a rewrite is proved, and how exactly both sides must agree."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence, Set
from itertools import product

from repfuse.operators import Conv

__all__ = [
    "BOUND",
    "CANCELS",
    "SMALL",
    "chances",
    "input_size",
    "output_size",
    "probe_sizes",
    "source_sizes",
    "unproved",
]

BOUND = 1e-10
# x - x is zero, or nearly: what cancels leaves errors of what it was, a few last bits of a double.
CANCELS = 1e-5
SPARSE = 8
LARGER = (0, 4, 16)  # strides more, where an input is too small for what stands in between
SMALL = 4  # below, a size is one of the smallest


def probe_sizes(convs: Sequence[Conv], proved: Set[bool]) -> Iterator[tuple[int, ...]]:
    """Input sizes for a probe of these operators; one empty size for Linears.

    Low and high borders apart, one for every residue of the size modulo the stride; then, from 1,
    the smallest ones, of which the first that is legal is enough. A sum of strided convs may run at
    some of the residues only: while nothing is proved yet, other combinations of them follow.
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
    for residues in product(*map(range, stride)) if rank > 1 else ():
        if not proved:
            yield tuple(b + residue for b, residue in zip(base, residues, strict=True))
    for smallest in (1, 2, 3):
        yield (smallest,) * rank


def chances(convs: Sequence[Conv], size: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """A size, and larger ones of the same residues for a region that does not run on it.

    A border that is made of the input (reflect, circular) must be shorter than what it borders,
    which may be the small result of a strided conv. Of the smallest sizes there is one.
    """
    strides = [max(conv.stride[axis] for conv in convs) for axis in range(len(size))]
    for more in LARGER if max(size, default=0) >= SMALL else (0,):
        yield tuple(length + more * stride for length, stride in zip(size, strides, strict=True))


def unproved(proved: set[bool], failed: dict[bool, str]) -> str | None:
    """What to say of a rewrite that was proved at no size, or only at the smallest ones though it
    has larger ones; False stands for the smallest, True for the others."""
    if True in proved or (proved and True not in failed):
        return None
    return failed.get(True) or failed.get(False) or "there is no size to prove it at"


def _enough(conv: Conv, axis: int) -> int:
    """A length at which every tap is inside for some output, and outside for another.

    Low and high borders do not overlap, unless the dilation is so large that this would cost
    more than it shows: then it is a length at which each tap is told from each other one.
    """
    spread = conv.span[axis] + 2
    low, high = conv.padding[axis]
    if conv.dilation[axis] >= SPARSE:
        spread = min(spread, max(conv.dilation[axis] + 2, spread - low - high))
    # A border that is no zeros is made of the input, and reaches no further than that is long.
    return spread if conv.border == "zeros" else max(spread, max(low, high) + 1)


def output_size(conv: Conv, size: tuple[int, ...]) -> tuple[int, ...]:
    """The spatial size of the output for an input of `size`; below 1 where it is too small."""
    axes = zip(conv.stride, size, conv.slack, strict=True)
    if conv.transposed:
        return tuple(stride * (length - 1) + 1 - slack for stride, length, slack in axes)
    return tuple((length + slack - 1) // stride + 1 for stride, length, slack in axes)


def input_size(conv: Conv, size: tuple[int, ...]) -> tuple[int, ...]:
    """A spatial size of the input for which the output has `size`."""
    axes = zip(conv.stride, size, conv.slack, strict=True)
    if conv.transposed:
        return tuple((length - 1 + slack) // stride + 1 for stride, length, slack in axes)
    return tuple((length - 1) * stride + 1 - slack for stride, length, slack in axes)


def source_sizes(
    terms: Sequence[tuple[Hashable, Conv]], size: tuple[int, ...]
) -> tuple[dict[Hashable, tuple[int, ...]], tuple[int, ...]]:
    """Sizes of the sources of a sum of convs, and of the sum, so that all its terms fit.

    terms: (source, conv). The source of the conv with the largest stride has the given size.
    """
    source, first = max(terms, key=lambda term: term[1].stride)
    result = output_size(first, size)
    sizes = {source: size}
    for other, conv in terms:
        sizes.setdefault(other, input_size(conv, result))
    return sizes, result
