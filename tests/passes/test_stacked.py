"""The parts of a concat: stack_convs."""

from __future__ import annotations

import pytest

from repfuse.passes import PASSES
from tests.builders import conv
from tests.passes.tables import Row, fires, refuses

(stack,) = [rule for rule in PASSES if rule.name == "stack_convs"]


def differs(name: str, mine: object, theirs: object) -> str:
    return f"{name} differs: {mine} against {theirs}"


ROWS: dict[str, Row] = {
    "two 1x1 convs": fires(
        stack, conv(4, 2, 1), conv(4, 6, 1, seed=4), out_channels=8, in_channels=4, has_bias=True
    ),
    "one bias": fires(
        stack, conv(4, 2, 3, padding=1, bias=False), conv(4, 6, 3, padding=1), has_bias=True
    ),
    "no bias": fires(stack, conv(bias=False), conv(bias=False), has_bias=False),
    "two linear layers": fires(stack, conv(4, 2, ()), conv(4, 3, (), seed=9), out_channels=5),
    "two transposed convs": fires(
        stack,
        conv(stride=2, padding=1, transposed=True),
        conv(stride=2, padding=1, transposed=True, seed=5),
        transposed=True,
        out_channels=8,
    ),
    "kernel_size": refuses(
        stack, conv(), conv(4, 4, (3, 1)), reason=differs("kernel_size", (3, 3), (3, 1))
    ),
    "stride": refuses(stack, conv(), conv(stride=(1, 2)), reason=differs("stride", (1, 1), (1, 2))),
    "padding": refuses(
        stack,
        conv(4, 4, (2,), padding=((1, 0),)),
        conv(4, 4, (2,), padding=((0, 1),)),
        reason=differs("padding", ((1, 0),), ((0, 1),)),
    ),
    "dilation": refuses(
        stack, conv(), conv(dilation=(2, 1)), reason=differs("dilation", (1, 1), (2, 1))
    ),
    "in_channels": refuses(stack, conv(1, 4), conv(4, 4), reason=differs("in_channels", 1, 4)),
    "border": refuses(
        stack,
        conv(padding=1, border="circular"),
        conv(padding=1),
        reason=differs("border", "circular", "zeros"),
    ),
    "transposed": refuses(
        stack,
        conv(padding=1),
        conv(padding=1, transposed=True),
        reason=differs("transposed", False, True),
    ),
    "two depthwise convs": refuses(
        stack,
        conv(groups=4),
        conv(groups=4),
        reason="rows of 4 and 4 groups do not stay contiguous per group",
    ),
    "a dense conv over a grouped one": refuses(
        stack,
        conv(),
        conv(groups=2),
        reason="rows of 1 and 2 groups do not stay contiguous per group",
    ),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
def test_row(row: Row) -> None:
    row.check()
