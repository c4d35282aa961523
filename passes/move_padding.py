"""Move a border in front of the operator that would give what the border holds.

    (U * x + b), padded with b  =  U * (x, padded with zeros) + b

What lies beyond the middle value must be what U makes of zeros, its bias, per channel; and U
must reach only zeros there, as a pointwise conv or a per-channel scale and shift does.

Source: Ding et al., "Diverse Branch Block", CVPR 2021 (the batch norm that pads); Zhang et al.,
"Edge-oriented Convolution Block for Real-time Super Resolution on Mobile Devices", ACM MM 2021.
"""

from dataclasses import replace

from repfuse.arrays import Array, same
from repfuse.offsets import sees_only_zeros
from repfuse.operators import Affine, Conv, Pad
from repfuse.rules import chain, require


@chain
def move_padding(before: Conv | Affine, pad: Pad) -> Conv:
    require(before.rank == pad.rank, f"{before.rank}-D data is padded in {pad.rank} axes")
    require(
        before.out_channels == pad.channels,
        f"{before.out_channels} channels meet a border for {pad.channels}",
    )
    require(pad.border == "zeros", f"a {pad.border} border is made of what it surrounds")
    conv = before if isinstance(before, Conv) else diagonal(before)
    require(not conv.transposed, "a transposed conv stands before the border")
    require(
        sees_only_zeros(conv, pad.padding),
        f"the conv before the border would reach its input there: it pads by {conv.padding}",
    )
    value = Array.full((pad.channels,), 0.0) if pad.value is None else pad.value
    require(
        same(conv.bias, value),
        "the border holds other numbers than the operator before it makes of zeros",
    )

    padding = tuple(
        (low + stride * below, high + stride * above)
        for (low, high), stride, (below, above) in zip(
            conv.padding, conv.stride, pad.padding, strict=True
        )
    )
    return replace(conv, padding=padding, border="zeros")


def diagonal(affine: Affine) -> Conv:
    """The scale and shift as a 1x1 depthwise conv."""
    ones, channels = (1,) * affine.rank, affine.in_channels
    return Conv(
        weight=affine.scale.reshape(channels, 1, *ones),
        bias=affine.shift,
        stride=ones,
        padding=((0, 0),) * affine.rank,
        dilation=ones,
        groups=channels,
    )
