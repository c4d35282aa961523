"""Rewrite a grouped convolution with fewer groups, so that it can be added to another one.

    groups g  ->  groups gcd(g, h):  block diagonals become blocks with zeros beside them

A depthwise conv (groups = channels) beside a dense one becomes dense; beside another
depthwise one it stays as it is.

Source: Ding et al., "RepVGG", CVPR 2021 (the grouped identity kernel).
"""

from dataclasses import replace
from math import gcd

import numpy as np

from repfuse.operators import Conv
from repfuse.rules import beside


@beside
def expand_groups(conv: Conv, other: Conv) -> Conv:
    groups = gcd(conv.groups, other.groups)
    if groups == conv.groups:
        return conv

    blocks = conv.groups // groups
    rows, columns = conv.out_channels // conv.groups, conv.weight.shape[1]
    kernel_size = conv.kernel_size
    shape = (conv.out_channels, columns * blocks, *kernel_size)

    def spread(weight: np.ndarray) -> np.ndarray:
        old = weight.reshape(groups, blocks, rows, columns, *kernel_size)
        new = np.zeros((groups, blocks, rows, blocks, columns, *kernel_size))
        for block in range(blocks):
            new[:, block, :, block] = old[:, block]
        return new.reshape(shape)

    return replace(conv, weight=conv.weight.apply(shape, spread), groups=groups)
