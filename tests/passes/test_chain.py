"""Two operators in series: fold_affine, absorb_affine, merge_affines, compose_convs."""

from __future__ import annotations

import pytest

from repfuse.passes import PASSES
from tests.builders import affine, conv
from tests.passes.tables import Row, fires, idle, refuses

RULES = {rule.name: rule for rule in PASSES}
fold, absorb = RULES["fold_affine"], RULES["absorb_affine"]
merge, compose = RULES["merge_affines"], RULES["compose_convs"]

BIAS_OR_TAPS = "where the first would give its bias or taps"
BEFORE = "the conv before a transposed conv has a bias or is no pointwise conv"
AFTER = "the conv after a transposed conv is no pointwise conv"
PADS = "the conv pads with zeros where the shift before it would stand"
UNEVEN = "the shift reaches the outputs of the transposed conv through different taps"

AFFINES: dict[str, Row] = {
    "batch norm after a conv": fires(
        fold,
        conv(4, 6, 3, padding=1, groups=2, bias=False),
        affine(6),
        kernel_size=(3, 3),
        padding=((1, 1), (1, 1)),
        groups=2,
        has_bias=True,
    ),
    "a scale alone": fires(fold, conv(4, 4, 3, bias=False), affine(shift=False), has_bias=False),
    "after a grouped transposed conv": fires(
        fold, conv(4, 6, 3, stride=2, groups=2, transposed=True), affine(6), groups=2
    ),
    "after a linear layer": fires(fold, conv(4, 6, ()), affine(6, 0), out_channels=6),
    "a skip after a conv": idle(fold, conv(), affine(scale=False, shift=False)),
    "a conv of another rank": refuses(
        fold,
        conv(4, 4, (3,)),
        affine(4, 2),
        reason="a 1-D conv is scaled along the channel axis of 2-D data",
    ),
    "a scale of another width": refuses(
        fold, conv(4, 4), affine(1), reason="4 channels meet a scale for 1"
    ),
    "batch norm before a conv": fires(
        absorb, affine(), conv(4, 6, 3, groups=2, bias=False), groups=2, has_bias=True
    ),
    "a scale before a padded conv": fires(
        absorb, affine(shift=False), conv(padding=1), padding=((1, 1), (1, 1))
    ),
    "a shift before a reflected border": fires(
        absorb, affine(), conv(padding=1, border="reflect"), border="reflect"
    ),
    "a shift before a crop": fires(absorb, affine(), conv(padding=-1), has_bias=True),
    "a scale before a transposed conv": fires(
        absorb, affine(shift=False), conv(4, 6, 3, stride=2, groups=2, transposed=True), groups=2
    ),
    "a shift before a transposed conv that crops its borders": fires(
        absorb, affine(), conv(padding=2, transposed=True), transposed=True
    ),
    "a skip before a padded conv": idle(
        absorb, affine(scale=False, shift=False), conv(padding=1), index=1
    ),
    "a reader of another rank": refuses(
        absorb, affine(4, 1), conv(), reason="a 2-D conv reads 1-D data"
    ),
    "a reader of another width": refuses(
        absorb, affine(1), conv(4, 4), reason="1 channels meet a conv that reads 4"
    ),
    "a shift before zeros": refuses(absorb, affine(), conv(padding=((0, 0), (0, 1))), reason=PADS),
    "a shift before a stride of 2": refuses(
        absorb, affine(), conv(4, 4, 1, stride=2, transposed=True), reason=UNEVEN
    ),
    "a shift before an uncropped border": refuses(
        absorb, affine(), conv(padding=((2, 2), (2, 1)), transposed=True), reason=UNEVEN
    ),
    "two batch norms": fires(merge, affine(seed=1), affine(seed=5), rank=2, out_channels=4),
    "two scales": fires(merge, affine(shift=False), affine(shift=False, seed=9), rank=2),
    "a skip after a batch norm": idle(merge, affine(), affine(scale=False, shift=False)),
    "channel axes apart": refuses(
        merge,
        affine(4, 1),
        affine(4, 2),
        reason="the channel axes of 1-D and 2-D data differ",
    ),
    "widths apart": refuses(merge, affine(1), affine(4), reason="1 channels meet a scale for 4"),
}

CONVS: dict[str, Row] = {
    "1x1 then 3x3": fires(
        compose,
        conv(4, 6, 1),
        conv(6, 2, 3, stride=2),
        kernel_size=(3, 3),
        stride=(2, 2),
        out_channels=2,
    ),
    "3x3 then 1x1": fires(
        compose, conv(4, 6, 3, padding=1), conv(6, 2, 1), padding=((1, 1), (1, 1))
    ),
    "1x1 without bias then a padded 3x3": fires(
        compose, conv(4, 6, 1, bias=False), conv(6, 2, 3, padding=1), padding=((1, 1), (1, 1))
    ),
    "full padding": fires(
        compose,
        conv(4, 4, (3,), padding=2, bias=False),
        conv(4, 4, (3,), padding=1),
        kernel_size=(5,),
        padding=((3, 3),),
    ),
    "a border on one side only": fires(
        compose,
        conv(4, 4, (3,), padding=((2, 0),), bias=False),
        conv(4, 4, (2,), padding=((1, 0),)),
        padding=((3, 0),),
    ),
    "strides and dilations": fires(
        compose,
        conv(4, 4, (3,), stride=3, dilation=2),
        conv(4, 4, (2,), stride=2, dilation=2, padding=((-1, 0),)),
        stride=(6,),
        dilation=(2,),
        kernel_size=(6,),
        padding=((-3, 0),),
    ),
    "groups meet at their gcd": fires(
        compose, conv(12, 12, 1, groups=6), conv(12, 12, 3, groups=4), groups=2
    ),
    "depthwise stays depthwise": fires(
        compose, conv(4, 4, 3, groups=4), conv(4, 8, 3, groups=4), groups=4, kernel_size=(5, 5)
    ),
    "a biased 1x1 then a reflected border": fires(
        compose, conv(4, 4, 1), conv(4, 4, 3, padding=1, border="reflect"), border="reflect"
    ),
    "a reflected border then 1x1": fires(
        compose, conv(4, 4, 3, padding=1, border="reflect"), conv(4, 4, 1), border="reflect"
    ),
    "an unused border mode": fires(
        compose,
        conv(4, 4, 1, border="reflect", bias=False),
        conv(4, 4, 3, padding=1),
        border="zeros",
    ),
    "two linear layers": fires(compose, conv(4, 2, ()), conv(2, 6, ()), out_channels=6),
    "1x1 then a transposed conv": fires(
        compose,
        conv(4, 4, 1, bias=False, border="reflect"),
        conv(4, 4, 3, stride=2, padding=1, dilation=3, transposed=True),
        transposed=True,
        border="zeros",
        stride=(2, 2),
        dilation=(3, 3),
        padding=((1, 1), (1, 1)),
    ),
    "a transposed conv then 1x1": fires(
        compose,
        conv(4, 4, 3, stride=2, padding=1, groups=2, transposed=True),
        conv(4, 4, 1, groups=2),
        transposed=True,
        groups=2,
    ),
    "a reader of another rank": refuses(
        compose, conv(4, 4, (1,)), conv(), reason="a 2-D conv reads 1-D data"
    ),
    "a reader of another width": refuses(
        compose, conv(4, 6), conv(4, 4), reason="6 channels meet a conv that reads 4"
    ),
    "a biased 1x1 before a transposed conv": refuses(
        compose, conv(4, 4, 1), conv(4, 4, 2, stride=2, transposed=True), reason=BEFORE
    ),
    "a 3x3 before a transposed conv": refuses(
        compose, conv(bias=False), conv(4, 4, 2, stride=2, transposed=True), reason=BEFORE
    ),
    "a transposed conv before a 3x3": refuses(
        compose, conv(4, 4, 2, stride=2, transposed=True), conv(), reason=AFTER
    ),
    "a bias in the border": refuses(
        compose,
        conv(4, 4, (1,)),
        conv(4, 4, (3,), padding=1),
        reason=f"the second conv pads by ((1, 1),) {BIAS_OR_TAPS}",
    ),
    "taps in the lower border": refuses(
        compose,
        conv(4, 4, (3,), padding=((1, 2),), bias=False),
        conv(4, 4, (3,), padding=1),
        reason=f"the second conv pads by ((1, 1),) {BIAS_OR_TAPS}",
    ),
    "taps in the upper border": refuses(
        compose,
        conv(4, 4, (3,), padding=((2, 1),), bias=False),
        conv(4, 4, (3,), padding=1),
        reason=f"the second conv pads by ((1, 1),) {BIAS_OR_TAPS}",
    ),
    "zeros beyond a reflected border": refuses(
        compose,
        conv(4, 4, (3,), padding=2, border="reflect", bias=False),
        conv(4, 4, (3,), padding=1),
        reason=f"the second conv pads by ((1, 1),) {BIAS_OR_TAPS}",
    ),
    "a 3x3 mirrored by the next border": refuses(
        compose,
        conv(4, 4, (3,), padding=2, bias=False),
        conv(4, 4, (3,), padding=1, border="replicate"),
        reason=f"the second conv pads by ((1, 1),) {BIAS_OR_TAPS}",
    ),
}

ROWS = {f"affine: {name}": row for name, row in AFFINES.items()}
ROWS |= {f"convs: {name}": row for name, row in CONVS.items()}


@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
def test_row(row: Row) -> None:
    row.check()
