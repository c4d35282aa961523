"""Hypothesis strategies: operators, and NEIGHBOURS that share most of what must agree.

Two operators drawn independently almost never fit together, and a law over pairs that are
always refused proves nothing. So a second operator is drawn next to a first one: it agrees in
everything that matters, or in all but one thing (the flaw).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import gcd

from hypothesis import strategies as st

from repfuse.operators import Affine, Conv, Operator, Pad, Pool, Select, SlicedConv
from tests.builders import affine, conv, numbers, pool, select

Draw = st.DrawFn
BORDERS = ("zeros", "reflect", "replicate", "circular")
RANKS = (0, 1, 1, 2, 2, 2, 2, 3)
CHANNELS = (1, 2, 4, 4, 4, 6)
SEEDS = st.integers(0, 99)
FULL, INSIDE, ANY = "full", "inside", "any"


def one_of(draw: Draw, values: Sequence[int]) -> int:
    return draw(st.sampled_from(values))


def common_divisors(*channels: int) -> list[int]:
    return [g for g in range(1, 7) if gcd(*channels) % g == 0]


@st.composite
def convs(
    draw: Draw,
    rank: int | None = None,
    in_channels: int | None = None,
    reach: str = ANY,
    transposed: bool | None = None,
) -> Conv:
    """Any conv. reach: padding `full` so that all taps leave, `inside` so that none does."""
    rank = one_of(draw, RANKS) if rank is None else rank
    width = in_channels or one_of(draw, CHANNELS)
    out_channels = draw(st.sampled_from([width, width, 1, 2, 6]))
    flips = rank > 0 and draw(st.integers(0, 5)) == 0
    sizes, strides, dilations, padding = [], [], [], []
    for _ in range(rank):
        size, dilation = draw(taps(rank))
        span = dilation * (size - 1)
        stride = one_of(draw, (1, 1, 2, 3))
        low, high = draw(sides(span, reach))
        sizes.append(size)
        dilations.append(dilation)
        strides.append(stride)
        padding.append((low, high))
    return conv(
        width,
        out_channels,
        tuple(sizes),
        stride=tuple(strides),
        padding=tuple(padding),
        dilation=tuple(dilations),
        groups=draw(st.sampled_from(common_divisors(width, out_channels))),
        border="zeros" if transposed or (transposed is None and flips) else draw(borders()),
        transposed=flips if transposed is None else transposed,
        bias=draw(st.booleans()),
        seed=draw(SEEDS),
    )


def borders() -> st.SearchStrategy[str]:
    return st.sampled_from(BORDERS[:1] * 3 + BORDERS[1:])


@st.composite
def taps(draw: Draw, rank: int) -> tuple[int, int]:
    """kernel_size and dilation of an axis: even ones and single taps are frequent."""
    size = one_of(draw, (1, 1, 2, 3, 3) if rank == 3 else (1, 1, 2, 3, 3, 4))
    return size, one_of(draw, (1, 1, 1, 2) if rank == 3 else (1, 1, 1, 2, 3))


@st.composite
def sides(draw: Draw, span: int, reach: str) -> tuple[int, int]:
    if reach == FULL:
        return span + one_of(draw, (0, 0, 1)), span + one_of(draw, (0, 0, 1))
    if reach == INSIDE:
        return one_of(draw, (0, 0, 0, -1, -2)), one_of(draw, (0, 0, 0, -1, -2))
    same = (span // 2, span - span // 2)
    free = (one_of(draw, (-1, 0, 1, 2)), one_of(draw, (-1, 0, 1, 2)))
    return draw(st.sampled_from([same, same, (0, 0), (1, 1), free]))


@st.composite
def neighbours(draw: Draw, first: Conv, flaw: str | None = None) -> Conv:
    """A conv that can be added to the first one, but for the flaw."""
    if flaw == "rank":
        return draw(convs(rank=(first.rank + 1) % 3))
    alike = draw(st.integers(0, 2)) == 0
    sizes, dilations, padding = [], [], []
    for axis in range(first.rank):
        size, dilation = first.kernel_size[axis], first.dilation[axis]
        low, high = first.padding[axis]
        if not alike:
            size, dilation = draw(taps(first.rank))
            total = first.slack[axis] + dilation * (size - 1)
            low = total // 2 + one_of(draw, (0, 0, 0, 1, -1))
            high = total - low
        sizes.append(size)
        dilations.append(dilation)
        padding.append((low, high + (flaw == "slack" and axis == 0)))
    width, out_channels = first.in_channels, first.out_channels
    if flaw == "channels":
        width, out_channels = draw(st.sampled_from([(width, 5), (5, out_channels), (5, 5)]))
    divisors = common_divisors(width, out_channels)
    transposed = first.transposed != (flaw == "transposed")
    border = first.border
    if flaw == "border" or not any(low > 0 or high > 0 for low, high in padding):
        border = draw(borders())
    return conv(
        width,
        out_channels,
        tuple(sizes),
        stride=tuple(s + (flaw == "stride") for s in first.stride),
        padding=tuple(padding),
        dilation=tuple(dilations),
        groups=first.groups
        if alike and first.groups in divisors
        else draw(st.sampled_from(divisors)),
        border="zeros" if transposed else border,
        transposed=transposed,
        bias=draw(st.booleans()),
        seed=draw(SEEDS),
    )


@st.composite
def alike(draw: Draw, first: Conv) -> Conv:
    """A conv with the facts of the first one and other weights; sometimes with more groups."""
    times = one_of(draw, (1, 1, 2))
    return conv(
        first.in_channels * times,
        first.out_channels * times,
        first.kernel_size,
        stride=first.stride,
        padding=first.padding,
        dilation=first.dilation,
        groups=first.groups * times,
        border=first.border,
        transposed=first.transposed,
        bias=draw(st.booleans()),
        seed=draw(SEEDS),
    )


@st.composite
def affines(draw: Draw, channels: int, rank: int) -> Affine:
    scale, shift = draw(st.sampled_from([(True, True), (True, False), (False, False)]))
    return affine(channels, rank, scale=scale, shift=shift, seed=draw(SEEDS))


@st.composite
def ungrouped(draw: Draw, first: Conv) -> Conv:
    """The same conv, dense."""
    return conv(
        first.in_channels,
        first.out_channels,
        first.kernel_size,
        stride=first.stride,
        padding=first.padding,
        dilation=first.dilation,
        border=first.border,
        transposed=first.transposed,
        bias=first.has_bias,
        seed=draw(SEEDS),
    )


@st.composite
def pointwise(draw: Draw, in_channels: int, rank: int) -> Conv:
    out_channels = draw(st.sampled_from([in_channels, 1, 2, 6]))
    return conv(
        in_channels,
        out_channels,
        1,
        rank=rank,
        groups=draw(st.sampled_from(common_divisors(in_channels, out_channels))),
        border=draw(borders()),
        bias=draw(st.integers(0, 2)) == 0,
        seed=draw(SEEDS),
    )


@st.composite
def pools(draw: Draw, channels: int | None = None, rank: int | None = None) -> Pool:
    """Average poolings over 1, 2, 4, 8 positions: their divisors are exact."""
    rank = one_of(draw, (1, 2, 2, 3)) if rank is None else rank
    sizes = tuple(one_of(draw, (1, 2, 2, 4)) for _ in range(rank))
    padding = tuple(
        draw(st.sampled_from([(0, 0), (0, 0), (size // 2, size // 2), (0, size // 2)]))
        for size in sizes
    )
    return pool(
        channels or one_of(draw, CHANNELS),
        sizes,
        stride=tuple(one_of(draw, (1, 2, 3)) for _ in range(rank)),
        padding=padding if draw(st.booleans()) else 0,
        counts_border=draw(st.booleans()),
        ceil_mode=draw(st.integers(0, 4)) == 0,
        divisor=draw(st.sampled_from([None, None, 1.0, 2.0, 0.5])),
    )


@st.composite
def pads(draw: Draw, channels: int | None = None, rank: int | None = None) -> Pad:
    rank = one_of(draw, (1, 2, 2, 3)) if rank is None else rank
    padding = tuple((one_of(draw, (0, 1, 2, -1)), one_of(draw, (0, 1, 2, -1))) for _ in range(rank))
    return Pad(channels or one_of(draw, CHANNELS), padding, draw(borders()))


@st.composite
def filled(draw: Draw, before: Conv | Affine) -> Pad:
    """A border around an operator's result: of what it makes of zeros, of zeros, of others."""
    bare = draw(pads(before.out_channels, before.rank))
    own = before.bias if isinstance(before, Conv) else before.shift
    value = draw(st.sampled_from([own, own, own, None, numbers((before.out_channels,), 1)]))
    return bare if value is None else replace(bare, border="zeros", value=value)


@st.composite
def selects(draw: Draw, in_channels: int | None = None, rank: int | None = None) -> Select:
    width = in_channels or one_of(draw, CHANNELS)
    indices = draw(st.lists(st.integers(0, width - 1), min_size=1, max_size=7))
    return select(indices, width, one_of(draw, RANKS) if rank is None else rank)


@st.composite
def ranges(draw: Draw, out_channels: int, rank: int) -> Select:
    """A selection of neighbouring channels: a slice, as convs read it."""
    before, after = one_of(draw, (0, 0, 1, 2)), one_of(draw, (0, 0, 1, 3))
    return select(range(before, before + out_channels), before + out_channels + after, rank)


@st.composite
def slices(draw: Draw) -> SlicedConv:
    """A conv on a range of channels."""
    inner = draw(convs())
    before = one_of(draw, (0, 1, 3))
    return SlicedConv(inner, before, before + inner.in_channels + one_of(draw, (0, 1, 2)))


def operators() -> st.SearchStrategy[Operator]:
    """One operator of any kind."""
    return st.one_of(convs(), convs(), pools(), pads(), selects(), slices())
