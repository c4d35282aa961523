"""Fold a batch norm, or any per-channel scale and shift, into the convolution before it.

    s * (W * x + b) + t  =  (s W) * x + (s b + t)

It holds for every convolution: the output channels of the weight are scaled, whatever the
groups, the padding or the stride.

Source: Ioffe and Szegedy, "Batch Normalization", ICML 2015 (inference form); Ding et al.,
"RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021.
"""

from dataclasses import replace

from repfuse.operators import Affine, Conv, SlicedConv
from repfuse.rules import chain, require


@chain
def fold_affine(before: Conv | SlicedConv, affine: Affine) -> Conv | SlicedConv:
    conv = before.conv if isinstance(before, SlicedConv) else before
    require(
        conv.rank == affine.rank,
        f"a {conv.rank}-D conv is scaled along the channel axis of {affine.rank}-D data",
    )
    require(
        conv.out_channels == affine.in_channels,
        f"{conv.out_channels} channels meet a scale for {affine.in_channels}",
    )
    if affine.is_identity:
        return before

    scale = affine.scale.reshape(conv.out_channels, *[1] * (1 + conv.rank))
    bias = conv.bias * affine.scale + affine.shift
    scaled = replace(conv, weight=conv.weight * scale, bias=bias)
    return replace(before, conv=scaled) if isinstance(before, SlicedConv) else scaled
