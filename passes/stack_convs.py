"""Stack two convolutions of the same input whose outputs are concatenated.

    concat(U * x, V * x)  =  (U over V) * x

The rows of a grouped convolution must stay contiguous per group, so that only dense ones
stack: the first group of the stacked kernel would have to hold rows of both.

Source: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015 (the parallel 1x1 convs).
"""

from dataclasses import replace

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

    weight, bias = left.weight.above(right.weight), left.bias.above(right.bias)
    return replace(left, weight=weight, bias=bias)
