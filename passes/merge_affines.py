"""Merge two per-channel scales and shifts in series.

    s2 * (s1 x + t1) + t2  =  (s2 s1) x + (s2 t1 + t2)

Source: elementary; see Ding et al., "RepVGG", CVPR 2021, for batch norms as branches.
"""

from repfuse.operators import Affine
from repfuse.rules import chain, require


@chain
def merge_affines(first: Affine, second: Affine) -> Affine:
    require(
        first.rank == second.rank,
        f"the channel axes of {first.rank}-D and {second.rank}-D data differ",
    )
    require(
        first.out_channels == second.in_channels,
        f"{first.out_channels} channels meet a scale for {second.in_channels}",
    )
    if second.is_identity:
        return first

    shift = first.shift * second.scale + second.shift
    return Affine(first.scale * second.scale, shift, first.rank)
