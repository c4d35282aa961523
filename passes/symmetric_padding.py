"""Write a conv with unequal or negative padding as one with equal padding on both sides.

    zero taps on the short side read what the other side's padding allows

The kernel grows by |pad_low - pad_high| / dilation taps, on a finer grid where the dilation
does not divide the difference; a crop is undone the same way. A transposed conv keeps a
high side that is smaller, as its output padding.

Source: Wu et al., "Convolution with Even-Sized Kernels and Symmetric Padding", NeurIPS 2019
(the uneven borders of even kernels); elementary otherwise.
"""

from math import gcd

from repfuse.offsets import place_taps
from repfuse.operators import Conv
from repfuse.rules import alone, require


@alone
def symmetric_padding(conv: Conv) -> Conv:
    if all(is_plain(conv, axis) for axis in range(conv.rank)):
        return conv
    require(
        conv.border == "zeros",
        f"unequal padding {conv.padding} with a {conv.border} border needs a larger border",
    )

    first, step, sizes, dilation = [], [], [], []
    for axis, (low, high) in enumerate(conv.padding):
        size = conv.kernel_size[axis]
        old = conv.dilation[axis] if size > 1 else 0
        even = is_plain(conv, axis)
        grid = conv.dilation[axis] if even else gcd(old, low - high) or 1
        side = low if even else max(low, high, 0)
        while not even and (side - low) % grid:
            side += 1
        begin = (side - low) // grid
        spread = old // grid if size > 1 else 1
        rest = 0 if even else (side - high) // grid
        first.append(begin)
        step.append(spread)
        dilation.append(grid)
        sizes.append(begin + spread * (size - 1) + 1 + rest)
    return place_taps(conv, tuple(sizes), tuple(first), tuple(step), tuple(dilation))


def is_plain(conv: Conv, axis: int) -> bool:
    """Whether frameworks take the padding of this axis as it is."""
    low, high = conv.padding[axis]
    if conv.transposed:
        return 0 <= low - high < max(conv.stride[axis], conv.dilation[axis]) and low >= 0
    return low == high and low >= 0
