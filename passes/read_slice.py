"""Let a convolution read a range of its source's channels where a slice stood before it.

    W * (x[begin : end])  =  (W on the channels begin to end) * x

The result costs what the conv cost; it is there to be stacked with its neighbours.

Source: Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks",
NeurIPS 2012 (a convolution split into groups).
"""

from repfuse.operators import Conv, Select, SlicedConv
from repfuse.rules import chain, require


@chain
def read_slice(select: Select, conv: Conv) -> SlicedConv | Conv:
    require(select.rank == conv.rank, f"a {conv.rank}-D conv reads {select.rank}-D data")
    require(
        select.out_channels == conv.in_channels,
        f"{select.out_channels} channels meet a conv that reads {conv.in_channels}",
    )
    require(
        select.is_range,
        f"the {select.out_channels} channels are no range of the {select.in_channels}",
    )

    if conv.in_channels == select.in_channels:
        return conv
    return SlicedConv(conv, select.indices[0], select.in_channels)
