"""Write a convolution on a range of channels as one on all channels.

    (W on the channels begin to end) * x  =  (0, W, 0) * x

Source: elementary; it lets a conv on some channels join one on all of them.
"""

from dataclasses import replace

import numpy as np

from repfuse.operators import Conv, SlicedConv
from repfuse.rules import alone


@alone
def slice_to_conv(sliced: SlicedConv) -> Conv:
    conv, groups = sliced.conv, sliced.conv.groups
    rows, columns = conv.out_channels // groups, conv.weight.shape[1]
    shape = (conv.out_channels, sliced.in_channels, *conv.kernel_size)

    def widen(weight: np.ndarray) -> np.ndarray:
        wide = np.zeros(shape)
        for group in range(groups):
            first, begin = group * rows, sliced.begin + group * columns
            block = weight[first : first + rows]
            wide[first : first + rows, begin : begin + columns] = block
        return wide

    return replace(conv, weight=conv.weight.apply(shape, widen), groups=1)
