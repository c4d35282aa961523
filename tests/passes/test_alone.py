"""One operator as another: symmetric_padding, pool_to_conv, pad_to_conv, select_to_conv."""

from __future__ import annotations

import pytest

from repfuse.arrays import Array
from repfuse.operators import Pad
from repfuse.passes import PASSES
from tests.builders import conv, numbers, pad, pool, select
from tests.passes.tables import Row, fires, idle, refuses

RULES = {rule.name: rule for rule in PASSES}
symmetric, pooled = RULES["symmetric_padding"], RULES["pool_to_conv"]
chosen, bordered = RULES["select_to_conv"], RULES["pad_to_conv"]

ROWS: dict[str, Row] = {
    "equal padding": idle(symmetric, conv(4, 4, 3, padding=1)),
    "a linear layer": idle(symmetric, conv(4, 6, (), groups=2)),
    "an even kernel": fires(
        symmetric,
        conv(4, 4, (2, 3), padding=((0, 1), (1, 1))),
        kernel_size=(3, 3),
        padding=((1, 1), (1, 1)),
    ),
    "the difference is a multiple of the dilation": fires(
        symmetric,
        conv(4, 4, (3,), dilation=2, padding=((0, 4),)),
        kernel_size=(5,),
        padding=((4, 4),),
        dilation=(2,),
    ),
    "a finer grid": fires(
        symmetric,
        conv(4, 4, (3,), dilation=2, padding=((1, 2),)),
        kernel_size=(6,),
        padding=((2, 2),),
        dilation=(1,),
    ),
    "a crop": fires(
        symmetric,
        conv(4, 4, (3,), padding=((-1, -1),)),
        kernel_size=(5,),
        padding=((0, 0),),
    ),
    "a crop on a coarse grid": fires(
        symmetric,
        conv(4, 4, (3,), dilation=2, padding=((-1, -1),)),
        kernel_size=(5,),
        padding=((1, 1),),
        dilation=(2,),
    ),
    "a strided tap off its place": fires(
        symmetric,
        conv(4, 4, (1,), stride=2, padding=((-1, 0),)),
        kernel_size=(2,),
        padding=((0, 0),),
        stride=(2,),
    ),
    "a border of ones": refuses(bordered, pad(value=Array.full((4,), 1.0)), reason="a border of 1"),
    "a border of other numbers": refuses(
        bordered, pad(value=numbers((4,))), reason="a border of numbers per channel"
    ),
    "a border of zeros": fires(
        bordered, Pad(4, ((1, 0), (2, -1))), padding=((1, 0), (2, -1)), groups=4, has_bias=False
    ),
    "a reflected border": fires(bordered, Pad(2, ((1, 2),), "reflect"), border="reflect"),
    "output padding": idle(
        symmetric, conv(4, 4, (3,), stride=2, padding=((1, 0),), transposed=True)
    ),
    "output padding that crops nothing": idle(
        symmetric, conv(4, 4, (3,), stride=2, padding=((0, -1),), transposed=True)
    ),
    "output padding as large as the stride": fires(
        symmetric,
        conv(4, 4, (3,), stride=2, padding=((1, -1),), transposed=True),
        kernel_size=(5,),
        padding=((1, 1),),
    ),
    "a transposed conv that crops more at its end": fires(
        symmetric,
        conv(4, 4, (3,), stride=2, padding=((0, 1),), transposed=True),
        kernel_size=(4,),
        padding=((1, 1),),
    ),
    "one tap, whose dilation allows the output padding": fires(
        symmetric,
        conv(4, 4, (1, 2), dilation=3, padding=((2, 0), (0, 1)), transposed=True),
        dilation=(3, 1),
        padding=((2, 0), (1, 1)),
    ),
    "another border": refuses(
        symmetric,
        conv(4, 4, (2,), padding=((0, 1),), border="reflect"),
        reason="unequal padding ((0, 1),) with a reflect border needs a larger border",
    ),
    "a mean": fires(
        pooled,
        pool(4, (2, 4), stride=2),
        kernel_size=(2, 4),
        stride=(2, 2),
        dilation=(1, 1),
        groups=4,
        has_bias=False,
    ),
    "the border counts": fires(pooled, pool(4, 2, padding=1), padding=((1, 1), (1, 1))),
    "the border does not matter": fires(
        pooled, pool(4, 2, counts_border=False), padding=((0, 0), (0, 0))
    ),
    "a fixed divisor": fires(
        pooled, pool(4, (3,), padding=1, counts_border=False, divisor=2.0), kernel_size=(3,)
    ),
    "ceil mode": refuses(
        pooled,
        pool(4, 2, stride=2, ceil_mode=True),
        reason="the pooling window may hang over the end (ceil_mode)",
    ),
    "the border does not count": refuses(
        pooled,
        pool(4, 3, padding=((0, 0), (0, 1)), counts_border=False),
        reason="the average does not count the border, so that its divisor changes there",
    ),
    "a shuffle": fires(
        chosen,
        select([0, 2, 1, 3]),
        kernel_size=(1, 1),
        out_channels=4,
        groups=1,
        pointwise=True,
        has_bias=False,
    ),
    "a slice, and one channel twice": fires(
        chosen, select([1, 1, 5], in_channels=6, rank=0), out_channels=3, in_channels=6
    ),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
def test_row(row: Row) -> None:
    row.check()
