"""Add two convolutions that look at the same input through the same kernel positions.

    U * x + V * x  =  (U + V) * x

Source: Ding et al., "ACNet: Strengthening the Kernel Skeletons", ICCV 2019.
"""

from dataclasses import replace

from repfuse.operators import Conv
from repfuse.rules import require, siblings


@siblings
def merge_branch_sum(left: Conv, right: Conv) -> Conv:
    for name in (
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "in_channels",
        "out_channels",
        "border",
        "transposed",
    ):
        mine, theirs = getattr(left, name), getattr(right, name)
        require(mine == theirs, f"{name} differs: {mine} against {theirs}")

    return replace(left, weight=left.weight + right.weight, bias=left.bias + right.bias)
