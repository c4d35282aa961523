"""Write an average pooling as a depthwise convolution with equal taps.

    mean over k positions  =  (1 / k at every tap) * x

The divisor must not change at the border: padding counts as positions, or there is none, or
the divisor is fixed; and no window may hang over the end (ceil_mode).

Source: Ding et al., "Diverse Branch Block", CVPR 2021.
"""

from math import prod

from repfuse.arrays import Array
from repfuse.operators import Conv, Pool
from repfuse.rules import alone, require


@alone
def pool_to_conv(pool: Pool) -> Conv:
    require(not pool.ceil_mode, "the pooling window may hang over the end (ceil_mode)")
    require(
        pool.counts_border
        or pool.divisor is not None
        or all(side == (0, 0) for side in pool.padding),
        "the average does not count the border, so that its divisor changes there",
    )

    divisor = prod(pool.kernel_size) if pool.divisor is None else pool.divisor
    return Conv(
        weight=Array.full((pool.channels, 1, *pool.kernel_size), 1.0 / divisor),
        bias=Array.full((pool.channels,), 0.0),
        stride=pool.stride,
        padding=pool.padding,
        dilation=(1,) * pool.rank,
        groups=pool.channels,
    )
