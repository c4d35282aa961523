"""Write explicit padding as a 1x1 depthwise convolution that pads.

    pad(x)  =  (1 on the diagonal) * x, padded

A conv without padding after it then takes the padding over.

Source: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning",
arXiv:1603.07285.
"""

from repfuse.arrays import Array
from repfuse.operators import Conv, Pad
from repfuse.rules import alone


@alone
def pad_to_conv(pad: Pad) -> Conv:
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
