"""Rewrite a dilated convolution on a finer grid, where the branch beside it has its taps.

    taps at d t  =  taps at g u, zero wherever g u is no multiple of d   (g divides d)

Source: Ding et al., "Scaling Up Your Kernels to 31x31", CVPR 2022; "UniRepLKNet", CVPR 2024
(the dilated branches).
"""

from repfuse.offsets import common_grid, place_taps
from repfuse.operators import Conv
from repfuse.rules import beside


@beside
def dense_dilation(conv: Conv, other: Conv) -> Conv:
    if conv.rank != other.rank:
        return conv
    grid, sizes = common_grid(conv, other), conv.kernel_size
    if all(k == 1 or g == d for k, g, d in zip(sizes, grid, conv.dilation, strict=True)):
        return conv

    step = tuple(d // g if k > 1 else 1 for d, g, k in zip(conv.dilation, grid, sizes, strict=True))
    kernel_size = tuple(s * (k - 1) + 1 for s, k in zip(step, sizes, strict=True))
    return place_taps(conv, kernel_size, (0,) * conv.rank, step, grid)
