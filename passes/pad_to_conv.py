"""Write explicit padding as a 1x1 depthwise convolution that pads.

    pad(x)  =  (1 on the diagonal) * x, padded

A conv without padding after it then takes the padding over. Convs pad with zeros, or with what
the input itself holds.

Source: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning",
arXiv:1603.07285.
"""

from repfuse.arrays import Array
from repfuse.operators import Conv, Pad
from repfuse.rules import alone, require


@alone
def pad_to_conv(pad: Pad) -> Conv:
    filled = None if pad.value is None else pad.value.constant
    require(
        pad.value is None,
        "a border of numbers per channel" if filled is None else f"a border of {filled:g}",
    )

    ones = (1,) * pad.rank
    return Conv(
        weight=Array.full((pad.channels, 1, *ones), 1.0),
        bias=Array.full((pad.channels,), 0.0),
        stride=ones,
        padding=pad.padding,
        dilation=ones,
        groups=pad.channels,
        border=pad.border,
    )
