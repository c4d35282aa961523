"""Absorb a per-channel scale and shift into the convolution after it.

    W * (s x + t) + b  =  (W s) * x + (sum of the taps of W on t + b)

The shift reaches every output through the same taps only if no tap leaves the input: a conv
that pads with zeros sees no shift in its border. Borders made of the input itself (reflect,
replicate, circular) carry the shift along. In a transposed convolution the taps that reach
an output change from position to position, unless its stride is 1 and its crop cuts off all
positions that miss a tap.

Source: Jacob et al., "Quantization and Training of Neural Networks", CVPR 2018 (folding);
Ding et al., "Diverse Branch Block", CVPR 2021 (the border).
"""

from dataclasses import replace

import numpy as np

from repfuse.operators import Affine, Conv
from repfuse.rules import chain, require


@chain
def absorb_affine(affine: Affine, conv: Conv) -> Conv:
    require(
        conv.rank == affine.rank,
        f"a {conv.rank}-D conv reads {affine.rank}-D data",
    )
    require(
        conv.in_channels == affine.out_channels,
        f"{affine.out_channels} channels meet a conv that reads {conv.in_channels}",
    )
    if affine.is_identity:
        return conv
    shifts = not affine.shift.is_zero
    require(
        not (shifts and conv.border == "zeros" and conv.pads and not conv.transposed),
        "the conv pads with zeros where the shift before it would stand",
    )
    require(
        not (shifts and conv.transposed) or reaches_evenly(conv),
        "the shift reaches the outputs of the transposed conv through different taps",
    )

    out_channels, groups, rank = conv.out_channels, conv.groups, conv.rank

    def per_row(channelwise: np.ndarray) -> np.ndarray:
        """(in_channels,) to (out_channels, in_channels / groups, 1, ..., 1)."""
        rows = np.repeat(channelwise.reshape(groups, -1), out_channels // groups, axis=0)
        return rows.reshape(rows.shape + (1,) * rank)

    shape = conv.weight.shape
    scaled = conv.weight.apply(shape, lambda w, s: w * per_row(s), affine.scale)
    weight = conv.weight if affine.scale.is_one else scaled
    if not shifts:
        return replace(conv, weight=weight)
    added = conv.weight.apply(
        (out_channels,),
        lambda w, t: (w * per_row(t)).sum(axis=tuple(range(1, 2 + rank))),
        affine.shift,
    )
    return replace(conv, weight=weight, bias=conv.bias + added)


def reaches_evenly(conv: Conv) -> bool:
    """Whether every output of a transposed conv is reached through all of its taps."""
    return all(stride == 1 for stride in conv.stride) and all(
        low >= span and high >= span
        for (low, high), span in zip(conv.padding, conv.span, strict=True)
    )
