"""Hypothesis strategies: operators that stand together, in a sum, a concat or a chain."""

from __future__ import annotations

from hypothesis import strategies as st

from repfuse.operators import Conv, Operator, SlicedConv
from tests.strategies import (
    ANY,
    CHANNELS,
    FULL,
    INSIDE,
    Draw,
    affines,
    alike,
    convs,
    filled,
    neighbours,
    one_of,
    operators,
    pads,
    pointwise,
    pools,
    ranges,
    selects,
    slices,
    ungrouped,
)

FLAWS = ("rank", "channels", "stride", "slack", "border", "transposed")


@st.composite
def branches(draw: Draw) -> tuple[Operator, Operator]:
    """Two operators on one source: the terms of a sum, or the parts of a concat."""
    flaw = draw(st.sampled_from((None,) * 8 + FLAWS))
    if draw(st.integers(0, 3)):
        first = draw(convs())
        second = draw(neighbours(first, flaw))
        if draw(st.integers(0, 2)) == 0:
            return draw(ungrouped(first)), draw(ungrouped(second))
        return first, second
    branch = draw(convs())
    width, rank = branch.in_channels, branch.rank
    channels = one_of(draw, CHANNELS) if flaw == "channels" else width
    skip = draw(affines(channels, (rank + 1) % 3 if flaw == "rank" else rank))
    if draw(st.booleans()):
        return skip, draw(affines(width, rank))
    return skip, branch


@st.composite
def ranges_of_channels(draw: Draw) -> tuple[SlicedConv, SlicedConv]:
    """Two convs on ranges of channels: equal and next to each other, but for the flaw."""
    flaw = draw(st.sampled_from((None,) * 6 + ("order", "gap", "width", "conv", "share")))
    first = draw(convs())
    second = draw(convs(in_channels=first.in_channels)) if flaw == "conv" else draw(alike(first))
    if flaw == "share" and first.rank:
        second = draw(ungrouped(first))
    begin, gap = one_of(draw, (0, 0, 2)), int(flaw == "gap")
    middle = begin + first.in_channels + gap
    width = middle + second.in_channels + one_of(draw, (0, 0, 1))
    left = SlicedConv(first, begin, width + (flaw == "width"))
    right = SlicedConv(second, middle, width)
    return (right, left) if flaw == "order" else (left, right)


@st.composite
def series(draw: Draw) -> tuple[Operator, Operator]:
    """Two operators, the second of which reads the first."""
    kind = draw(
        st.sampled_from(
            ("conv affine", "affine conv", "affines", "slice", "slice", "border", "border")
            + ("convs",) * 4
        )
    )
    flaw = draw(st.sampled_from((None,) * 9 + ("rank", "channels")))
    reach = draw(st.sampled_from((FULL, INSIDE, ANY)))
    leader = draw(convs(reach=draw(st.sampled_from((FULL, ANY)))))
    first: Operator = leader
    if kind in ("affine conv", "affines"):
        first = draw(affines(first.in_channels, first.rank))
    if kind == "slice":
        return draw(sliced_series(flaw))
    if kind == "border":
        before = draw(st.one_of(pointwise(leader.in_channels, leader.rank), st.just(leader)))
        scaled = draw(affines(leader.in_channels, leader.rank))
        around = scaled if draw(st.integers(0, 2)) == 0 else before
        return around, draw(filled(around))
    rank = (first.rank + 1) % 3 if flaw == "rank" else first.rank
    channels = 5 if flaw == "channels" else first.out_channels
    if kind in ("conv affine", "affines"):
        return first, draw(affines(channels, rank))
    if isinstance(first, Conv):
        first = draw(leading(first))
    shape = draw(st.sampled_from((None, None, "pointwise", "transposed")))
    if shape == "pointwise":
        return first, draw(pointwise(channels, rank))
    flips = True if shape == "transposed" and rank else None
    second = draw(convs(rank=rank, in_channels=channels, reach=reach, transposed=flips))
    return first, second


@st.composite
def sliced_series(draw: Draw, flaw: str | None) -> tuple[Operator, Operator]:
    """A slice and a conv that reads it; or a conv on a slice and a batch norm."""
    second = draw(convs())
    width, rank = second.in_channels, second.rank
    if draw(st.integers(0, 2)) == 0:
        sliced = draw(slices())
        return sliced, draw(affines(5 if flaw == "channels" else sliced.out_channels, sliced.rank))
    rank = (rank + 1) % 3 if flaw == "rank" else rank
    width = 5 if flaw == "channels" else width
    return draw(st.one_of(ranges(width, rank), ranges(width, rank), selects(width, rank))), second


@st.composite
def leading(draw: Draw, first: Conv) -> Conv:
    """The first of two convs: often without a bias, often pointwise."""
    if draw(st.integers(0, 2)) == 0:
        return draw(pointwise(first.in_channels, first.rank))
    return first


@st.composite
def sums(draw: Draw) -> tuple[Operator, ...]:
    """The terms of a sum: neighbours and skips, at most one with a flaw."""
    first = draw(convs())
    count = one_of(draw, (1, 2, 2, 3, 4))
    flaw = draw(st.sampled_from((None,) * 8 + FLAWS))
    terms: list[Operator] = [first]
    for index in range(count):
        skip = first.in_channels == first.out_channels and draw(st.integers(0, 2)) == 0
        if skip and (index or flaw is None):
            terms.append(draw(affines(first.in_channels, first.rank)))
        else:
            terms.append(draw(neighbours(first, None if index else flaw)))
    return tuple(draw(st.permutations(terms)))


@st.composite
def parts(draw: Draw) -> tuple[Operator, ...]:
    """The parts of a concat: dense convs, or channels taken as they are."""
    first = draw(ungrouped(draw(convs())))
    found: list[Operator] = [first]
    for _ in range(one_of(draw, (1, 2, 3))):
        if draw(st.integers(0, 4)) == 0:
            found.append(draw(selects(first.in_channels, first.rank)))
        else:
            found.append(draw(ungrouped(draw(neighbours(first)))))
    return tuple(draw(st.permutations(found)))


@st.composite
def chains(draw: Draw) -> tuple[Operator, ...]:
    """Two to four operators in series; most convs do not pad."""
    found = [draw(operators())]
    for _ in range(one_of(draw, (1, 2, 3))):
        width, rank = found[-1].out_channels, found[-1].rank
        kinds: list[st.SearchStrategy[Operator]] = [
            affines(width, rank),
            selects(width, rank),
            pointwise(width, rank),
            convs(rank=rank, in_channels=width, reach=INSIDE),
        ]
        if rank:
            kinds += [pools(width, rank), pads(width, rank)]
        found.append(draw(st.one_of(kinds)))
    return tuple(found)
