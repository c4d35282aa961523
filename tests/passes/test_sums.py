"""The terms of a sum: the `beside` passes that align them and the `siblings` that add."""

from __future__ import annotations

import pytest

from repfuse.passes import PASSES
from tests.builders import affine, conv
from tests.passes.tables import Row, fires, idle, refuses

RULES = {rule.name: rule for rule in PASSES}
identity, groups = RULES["identity_to_conv"], RULES["expand_groups"]
dense, border, pad = RULES["dense_dilation"], RULES["match_border"], RULES["pad_kernel"]
add, merge = RULES["add_affines"], RULES["merge_branch_sum"]

BESIDE: dict[str, Row] = {
    "a skip": fires(
        identity,
        affine(scale=False, shift=False),
        conv(padding=1),
        kernel_size=(1, 1),
        groups=4,
        pointwise=True,
        has_bias=False,
    ),
    "a batch norm beside a transposed conv": fires(
        identity, affine(), conv(padding=1, transposed=True), transposed=True, has_bias=True
    ),
    "a skip beside another rank": refuses(
        identity, affine(4, 1), conv(), reason="a 2-D conv is added to 1-D data"
    ),
    "a skip beside more channels": refuses(
        identity,
        affine(1),
        conv(1, 4),
        reason="the skip keeps 1 channels, the conv beside it maps 1 to 4",
    ),
    "a skip beside another source": refuses(
        identity,
        affine(4),
        conv(1, 4),
        reason="the skip keeps 4 channels, the conv beside it maps 1 to 4",
    ),
    "a skip of fewer channels": refuses(
        identity,
        affine(1),
        conv(4, 4),
        reason="the skip keeps 1 channels, the conv beside it maps 4 to 4",
    ),
    "depthwise beside dense": fires(groups, conv(groups=4), conv(), groups=1, in_channels=4),
    "groups meet at their gcd": fires(
        groups, conv(12, 12, groups=6), conv(12, 12, groups=4), groups=2
    ),
    "depthwise beside depthwise": idle(groups, conv(groups=4), conv(groups=4)),
    "dense beside depthwise": idle(groups, conv(), conv(groups=4)),
    "a dilated kernel beside a dense one": fires(
        dense,
        conv(dilation=2, padding=2),
        conv(padding=1),
        kernel_size=(5, 5),
        dilation=(1, 1),
        padding=((2, 2), (2, 2)),
    ),
    "dilations 2 and 4": fires(
        dense,
        conv(4, 4, (3,), dilation=4, padding=4),
        conv(4, 4, (3,), dilation=2, padding=2),
        kernel_size=(5,),
        dilation=(2,),
    ),
    "a dilated kernel beside its own middle": idle(
        dense, conv(dilation=2, padding=2), conv(4, 4, 1)
    ),
    "a dilated kernel beside another rank": idle(
        dense, conv(dilation=2, padding=2), conv(4, 4, (3,))
    ),
    "1x1 beside 3x3": fires(
        pad, conv(4, 4, 1), conv(padding=1), kernel_size=(3, 3), padding=((1, 1), (1, 1))
    ),
    "1x1 beside a dilated 3x3": fires(
        pad, conv(4, 4, 1), conv(dilation=2, padding=2), kernel_size=(3, 3), dilation=(2, 2)
    ),
    "1x3 beside 3x1": fires(
        pad,
        conv(4, 4, (1, 3), padding=((0, 0), (1, 1))),
        conv(4, 4, (3, 1), padding=((1, 1), (0, 0))),
        kernel_size=(3, 3),
    ),
    "an even kernel beside its neighbour": fires(
        pad,
        conv(4, 4, (2,), padding=((0, 1),)),
        conv(4, 4, (2,), padding=((1, 0),)),
        kernel_size=(3,),
        padding=((1, 1),),
    ),
    "3x3 beside 1x1": idle(pad, conv(padding=1), conv(4, 4, 1)),
    "off the common grid": idle(
        pad, conv(4, 4, (3,), dilation=2, padding=2), conv(4, 4, (3,), padding=1)
    ),
    "before its border matches": idle(pad, conv(4, 4, 1), conv(padding=1, border="reflect")),
    "transposed kernels": fires(
        pad,
        conv(4, 4, (2,), stride=2, transposed=True),
        conv(4, 4, (4,), stride=2, padding=1, transposed=True),
        kernel_size=(4,),
        padding=((1, 1),),
    ),
    "kernels of another rank": refuses(
        pad, conv(), conv(4, 4, (3,)), reason="a 2-D conv is added to a 1-D one"
    ),
    "transposed beside plain": refuses(
        pad,
        conv(4, 4, 1, transposed=True),
        conv(padding=1),
        reason="a transposed conv is added to one that is not",
    ),
    "another stride": refuses(
        pad,
        conv(4, 4, 1, stride=2),
        conv(padding=1, stride=(2, 1)),
        reason="stride differs: (2, 2) against (2, 1)",
    ),
    "another output size": refuses(
        pad,
        conv(4, 4, (1,), stride=2),
        conv(4, 4, (2,), stride=2),
        reason="the output sizes differ: padding ((0, 0),) with kernel_size (1,) "
        "against ((0, 0),) with (2,)",
    ),
    "1x1 beside a reflected border": fires(
        border, conv(4, 4, 1), conv(padding=1, border="reflect"), border="reflect"
    ),
    "an unused border beside an unused one": fires(
        border, conv(4, 4, 1, border="circular"), conv(4, 4, 1, border="reflect"), border="reflect"
    ),
    "the border of a conv that reads it stays": idle(
        border, conv(padding=1, border="reflect"), conv(4, 4, 1)
    ),
    "zeros that are read beside an unused border": idle(
        border, conv(padding=1), conv(4, 4, 1, border="reflect")
    ),
    "an unused border beside zeros that are not read": idle(
        border, conv(4, 4, 1, border="reflect"), conv(4, 4, 1)
    ),
    "the same border": idle(
        border, conv(padding=1, border="reflect"), conv(padding=1, border="reflect")
    ),
    "borders that both are read": refuses(
        border,
        conv(padding=1),
        conv(padding=1, border="reflect"),
        reason="the borders differ: zeros against reflect",
    ),
}


def differs(name: str, mine: object, theirs: object) -> str:
    return f"{name} differs: {mine} against {theirs}"


SIBLINGS: dict[str, Row] = {
    "two batch norms": fires(add, affine(seed=1), affine(seed=7), rank=2, out_channels=4),
    "x + x": fires(add, *[affine(scale=False, shift=False)] * 2, is_identity=False),
    "channel axes apart": refuses(
        add,
        affine(4, 1),
        affine(4, 2),
        reason="the channel axes of 1-D and 2-D data differ",
    ),
    "a broadcast": refuses(add, affine(1), affine(4), reason="1 channels are added to 4"),
    "two branches": fires(
        merge,
        conv(4, 6, groups=2, padding=1, bias=False),
        conv(4, 6, groups=2, padding=1, seed=8),
        groups=2,
        kernel_size=(3, 3),
        padding=((1, 1), (1, 1)),
        has_bias=True,
    ),
    "two linear layers": fires(
        merge, conv(4, 6, ()), conv(4, 6, (), seed=5), out_channels=6, in_channels=4
    ),
    "two transposed convs": fires(
        merge,
        conv(stride=2, transposed=True),
        conv(stride=2, transposed=True, seed=5),
        transposed=True,
    ),
    "kernel_size": refuses(
        merge, conv(), conv(4, 4, (3, 1)), reason=differs("kernel_size", (3, 3), (3, 1))
    ),
    "stride": refuses(merge, conv(), conv(stride=(1, 2)), reason=differs("stride", (1, 1), (1, 2))),
    "padding": refuses(
        merge,
        conv(4, 4, (2,), padding=((1, 0),)),
        conv(4, 4, (2,), padding=((0, 1),)),
        reason=differs("padding", ((1, 0),), ((0, 1),)),
    ),
    "dilation": refuses(
        merge, conv(), conv(dilation=(2, 1)), reason=differs("dilation", (1, 1), (2, 1))
    ),
    "groups": refuses(merge, conv(4, 4), conv(8, 4, groups=2), reason=differs("groups", 1, 2)),
    "in_channels": refuses(merge, conv(1, 4), conv(4, 4), reason=differs("in_channels", 1, 4)),
    "out_channels": refuses(merge, conv(4, 1), conv(4, 4), reason=differs("out_channels", 1, 4)),
    "border": refuses(
        merge,
        conv(padding=1, border="circular"),
        conv(padding=1),
        reason=differs("border", "circular", "zeros"),
    ),
    "transposed": refuses(
        merge,
        conv(padding=1),
        conv(padding=1, transposed=True),
        reason=differs("transposed", False, True),
    ),
}

ROWS = {f"beside: {name}": row for name, row in BESIDE.items()}
ROWS |= {f"siblings: {name}": row for name, row in SIBLINGS.items()}


@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
def test_row(row: Row) -> None:
    row.check()
