"""Stack equal convolutions on neighbouring ranges of channels into one grouped convolution.

    concat(U * x[:m], V * x[m:])  =  (U, V as groups) * x

Every group of both must read and give as many channels, and the ranges must follow each other
as the parts of the concat do: a group's rows and columns stand at the same place.

Source: Krizhevsky et al., NeurIPS 2012; Xie et al., "Aggregated Residual Transformations for
Deep Neural Networks", CVPR 2017 (equal paths as groups).
"""

from dataclasses import replace

from repfuse.operators import Conv, SlicedConv
from repfuse.rules import require, stacked


@stacked
def stack_slices(left: SlicedConv, right: SlicedConv) -> SlicedConv | Conv:
    first, second = left.conv, right.conv
    for name in ("kernel_size", "stride", "padding", "dilation", "border", "transposed"):
        mine, theirs = getattr(first, name), getattr(second, name)
        require(mine == theirs, f"{name} differs: {mine} against {theirs}")
    require(
        left.in_channels == right.in_channels,
        f"the ranges are of {left.in_channels} and of {right.in_channels} channels",
    )
    require(
        left.end == right.begin,
        f"a range that ends at channel {left.end} is followed by one from {right.begin}",
    )
    shares = [(c.in_channels // c.groups, c.out_channels // c.groups) for c in (first, second)]
    require(
        shares[0] == shares[1],
        f"the groups map {shares[0][0]} channels to {shares[0][1]} "
        f"and {shares[1][0]} to {shares[1][1]}",
    )

    weight, bias = first.weight.above(second.weight), first.bias.above(second.bias)
    both = replace(first, weight=weight, bias=bias, groups=first.groups + second.groups)
    if both.in_channels == left.in_channels:
        return both
    return SlicedConv(both, left.begin, left.in_channels)
