"""Pad a kernel with zero taps until it covers the taps of the branch beside it.

    offsets {d t - pad}  ->  the smallest range of offsets that holds those of both branches

The stride must agree, and pad_low + pad_high - dilation (kernel_size - 1): then both
branches give the same output size for every input size, and so does the larger kernel. Even,
asymmetric (k x 1, 1 x k) and off-centre kernels are the same case.

Source: Ding et al., "ACNet", ICCV 2019; Ding et al., "RepVGG", CVPR 2021.
"""

from repfuse.offsets import common_grid, place_taps
from repfuse.operators import Conv
from repfuse.rules import beside, require


@beside
def pad_kernel(conv: Conv, other: Conv) -> Conv:
    require(conv.rank == other.rank, f"a {conv.rank}-D conv is added to a {other.rank}-D one")
    require(conv.transposed == other.transposed, "a transposed conv is added to one that is not")
    require(conv.stride == other.stride, f"stride differs: {conv.stride} against {other.stride}")
    require(
        conv.slack == other.slack,
        f"the output sizes differ: padding {conv.padding} with kernel_size {conv.kernel_size} "
        f"against {other.padding} with {other.kernel_size}",
    )

    if conv.border != other.border:
        return conv  # match_border comes first

    grid = common_grid(conv, other)
    first, sizes = [], []
    for axis, spacing in enumerate(grid):
        if conv.kernel_size[axis] > 1 and conv.dilation[axis] != spacing:
            return conv  # dense_dilation comes first
        low = max(conv.padding[axis][0], other.padding[axis][0])
        end = max(c.span[axis] - c.padding[axis][0] for c in (conv, other))
        first.append((low - conv.padding[axis][0]) // spacing)
        sizes.append((low + end) // spacing + 1)
    dilation = tuple(g if k > 1 else 1 for g, k in zip(grid, sizes, strict=True))
    if tuple(sizes) == conv.kernel_size and dilation == conv.dilation:
        return conv

    return place_taps(conv, tuple(sizes), tuple(first), (1,) * conv.rank, dilation)
