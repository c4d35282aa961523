"""A border around the result of an operator: move_padding."""

from __future__ import annotations

from dataclasses import replace

import pytest

from repfuse.arrays import Array
from repfuse.passes import PASSES
from tests.builders import affine, conv, numbers, pad
from tests.passes.tables import Row, fires, refuses

(move,) = (rule for rule in PASSES if rule.name == "move_padding")

BIASED, SHIFT = conv(4, 6, 1), affine()
DOWN, WIDE = conv(4, 6, 1, stride=2), conv(4, 4, 3, padding=2)
OTHERS = "the border holds other numbers than the operator before it makes of zeros"

ROWS: dict[str, Row] = {
    "the bias of a 1x1": fires(
        move,
        BIASED,
        pad(6, value=BIASED.bias),
        padding=((1, 1), (1, 1)),
        has_bias=True,
        out_channels=6,
    ),
    "one side only": fires(
        move, BIASED, pad(6, ((1, 0), (0, -1)), value=BIASED.bias), padding=((1, 0), (0, -1))
    ),
    "the shift of a batch norm": fires(
        move, SHIFT, pad(4, 2, value=SHIFT.shift), groups=4, padding=((2, 2), (2, 2))
    ),
    "the same formula": fires(
        move,
        SHIFT,
        pad(4, value=SHIFT.shift * Array.full((4,), 2.0) + SHIFT.shift * Array.full((4,), -1.0)),
        groups=4,
    ),
    "zeros after a conv without bias": fires(
        move, conv(4, 6, 1, bias=False), pad(6), padding=((1, 1), (1, 1))
    ),
    "a stride": fires(move, DOWN, pad(6, value=DOWN.bias), stride=(2, 2), padding=((2, 2), (2, 2))),
    "a 3x3 that reaches only zeros": fires(
        move, WIDE, pad(4, value=WIDE.bias), kernel_size=(3, 3), padding=((3, 3), (3, 3))
    ),
    "an unused border mode": fires(
        move,
        replace(BIASED, border="reflect"),
        pad(6, value=BIASED.bias),
        border="zeros",
    ),
    "a number that the structure tells": fires(
        move,
        replace(SHIFT, shift=Array.full((4,), 0.5)),
        pad(4, value=Array.full((4,), 0.5)),
        groups=4,
    ),
    "a border of another rank": refuses(
        move, conv(4, 4, (1,)), pad(4), reason="1-D data is padded in 2 axes"
    ),
    "a border of another width": refuses(
        move, BIASED, pad(4), reason="6 channels meet a border for 4"
    ),
    "a border made of the input": refuses(
        move,
        BIASED,
        pad(6, border="reflect"),
        reason="a reflect border is made of what it surrounds",
    ),
    "a transposed conv": refuses(
        move,
        conv(4, 4, 1, bias=False, transposed=True),
        pad(4),
        reason="a transposed conv stands before the border",
    ),
    "a 3x3 that reaches its input": refuses(
        move,
        conv(4, 4, 3, padding=1, bias=False),
        pad(4),
        reason="the conv before the border would reach its input there: it pads by "
        "((1, 1), (1, 1))",
    ),
    "a 3x3 that mirrors its input": refuses(
        move,
        conv(4, 4, 3, padding=2, bias=False, border="reflect"),
        pad(4),
        reason="the conv before the border would reach its input there: it pads by "
        "((2, 2), (2, 2))",
    ),
    "zeros where the bias would stand": refuses(move, BIASED, pad(6), reason=OTHERS),
    "numbers of something else": refuses(
        move, BIASED, pad(6, value=numbers((6,), seed=9)), reason=OTHERS
    ),
    "a shape that is no number per channel": refuses(
        move, BIASED, pad(6, value=Array.full((1,), 0.0)), reason=OTHERS
    ),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
def test_row(row: Row) -> None:
    row.check()
