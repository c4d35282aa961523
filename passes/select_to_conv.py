"""Write a selection of channels (chunk, slice, shuffle) as a 1x1 convolution.

    x[indices]  =  (one-hot rows) * x

Source: Zhang et al., "ShuffleNet", CVPR 2018 (the shuffle); elementary otherwise.
"""

import numpy as np

from repfuse.arrays import Array
from repfuse.operators import Conv, Select
from repfuse.rules import alone


@alone
def select_to_conv(select: Select) -> Conv:
    ones = (1,) * select.rank
    shape = (select.out_channels, select.in_channels, *ones)

    def one_hot() -> np.ndarray:
        return np.eye(select.in_channels)[list(select.indices)].reshape(shape)

    return Conv(
        weight=Array(shape, one_hot),
        bias=Array.full((select.out_channels,), 0.0),
        stride=ones,
        padding=((0, 0),) * select.rank,
        dilation=ones,
    )
