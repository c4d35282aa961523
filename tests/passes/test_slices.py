"""Convs on ranges of channels: read_slice, slice_to_conv, stack_slices."""

from __future__ import annotations

import pytest

from repfuse.operators import Conv, SlicedConv
from repfuse.passes import PASSES
from tests.builders import affine, conv, select
from tests.passes.tables import Row, fires, idle, refuses

RULES = {rule.name: rule for rule in PASSES}
read, widen = RULES["read_slice"], RULES["slice_to_conv"]
stack, fold = RULES["stack_slices"], RULES["fold_affine"]


def sliced(inner: Conv, begin: int = 0, in_channels: int = 8) -> SlicedConv:
    return SlicedConv(inner, begin, in_channels)


LEFT, RIGHT = sliced(conv()), sliced(conv(seed=7), 4)

ROWS: dict[str, Row] = {
    "a slice before a conv": fires(
        read, select(range(2, 6), 9), conv(4, 6, 3), begin=2, end=6, in_channels=9
    ),
    "all channels before a conv": idle(read, select(range(4)), conv(4, 6, 3), index=1),
    "a slice before a linear layer": fires(read, select([1, 2], 4, 0), conv(2, 3, ()), begin=1),
    "a slice of another rank": refuses(
        read, select([0, 1], 4, 1), conv(2, 2), reason="a 2-D conv reads 1-D data"
    ),
    "a slice of another width": refuses(
        read, select([0, 1]), conv(3, 2), reason="2 channels meet a conv that reads 3"
    ),
    "a shuffle before a conv": refuses(
        read, select([1, 0]), conv(2, 2), reason="the 2 channels are no range of the 4"
    ),
    "every second channel": refuses(
        read, select([0, 2]), conv(2, 2), reason="the 2 channels are no range of the 4"
    ),
    "a conv on a slice as a conv": fires(
        widen, sliced(conv(4, 6, 3, padding=1), 3), in_channels=8, out_channels=6, groups=1
    ),
    "a grouped conv on a slice": fires(widen, sliced(conv(groups=2), 1, 6), groups=1),
    "a depthwise conv on a slice": fires(widen, sliced(conv(groups=4), 4), groups=1),
    "a transposed conv on a slice": fires(
        widen, sliced(conv(stride=2, groups=2, transposed=True), 2), transposed=True
    ),
    "batch norm after a conv on a slice": fires(
        fold, sliced(conv(4, 6, 3), 2), affine(6), begin=2, in_channels=8
    ),
    "two halves": fires(stack, LEFT, RIGHT, groups=2, in_channels=8, out_channels=8),
    "two of three thirds": fires(
        stack, sliced(conv(), 0, 12), sliced(conv(seed=3), 4, 12), begin=0, in_channels=12
    ),
    "a depthwise conv after another": fires(
        stack, sliced(conv(2, 2, groups=2), 0, 6), sliced(conv(4, 4, groups=4), 2, 6), groups=6
    ),
    "one bias": fires(stack, sliced(conv(bias=False)), RIGHT, has_bias=True),
    "no bias": fires(stack, sliced(conv(bias=False)), sliced(conv(bias=False), 4), has_bias=False),
    "two transposed convs": fires(
        stack,
        sliced(conv(stride=2, transposed=True)),
        sliced(conv(stride=2, transposed=True, seed=2), 4),
        groups=2,
        transposed=True,
    ),
    "kernel_size": refuses(
        stack, LEFT, sliced(conv(4, 4, 1), 4), reason="kernel_size differs: (3, 3) against (1, 1)"
    ),
    "another source": refuses(
        stack, LEFT, sliced(conv(), 4, 9), reason="the ranges are of 8 and of 9 channels"
    ),
    "the wrong order": refuses(
        stack, RIGHT, LEFT, reason="a range that ends at channel 8 is followed by one from 0"
    ),
    "channels in between": refuses(
        stack,
        sliced(conv(), 0, 9),
        sliced(conv(), 5, 9),
        reason="a range that ends at channel 4 is followed by one from 5",
    ),
    "unequal groups": refuses(
        stack,
        sliced(conv(groups=2), 0),
        RIGHT,
        reason="the groups map 2 channels to 2 and 4 to 4",
    ),
    "unequal outputs": refuses(
        stack, LEFT, sliced(conv(4, 6), 4), reason="the groups map 4 channels to 4 and 4 to 6"
    ),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
def test_row(row: Row) -> None:
    row.check()
