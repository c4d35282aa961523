"""Stack two convolutions of the same input whose outputs are concatenated.

    concat(U * x, V * x)  =  (U over V) * x

The rows of a grouped convolution must stay contiguous per group, so that only dense ones
stack: the first group of the stacked kernel would have to hold rows of both.

Source: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015 (the parallel 1x1 convs).
"""

from dataclasses import replace

import numpy as np

from repfuse.operators import Conv
from repfuse.rules import require, stacked


@stacked
def stack_convs(left: Conv, right: Conv) -> Conv:
    for name in (
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "in_channels",
        "border",
        "transposed",
    ):
        mine, theirs = getattr(left, name), getattr(right, name)
        require(mine == theirs, f"{name} differs: {mine} against {theirs}")
    require(
        left.groups == right.groups == 1,
        f"rows of {left.groups} and {right.groups} groups do not stay contiguous per group",
    )

    rows = left.out_channels + right.out_channels
    weight = left.weight.apply(
        (rows, *left.weight.shape[1:]), lambda u, v: np.concatenate([u, v]), right.weight
    )
    bias = left.bias.apply((rows,), lambda u, v: np.concatenate([u, v]), right.bias)
    if left.bias.is_zero and right.bias.is_zero:
        bias = type(bias).full((rows,), 0.0)
    return replace(left, weight=weight, bias=bias)
