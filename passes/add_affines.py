"""Add two per-channel scales and shifts of the same input.

    (s1 x + t1) + (s2 x + t2)  =  (s1 + s2) x + (t1 + t2)

A skip is the scale 1; a subtraction is the scale -1; `x + x` is the scale 2.

Source: Ding et al., "RepVGG", CVPR 2021 (the batch norm branch).
"""

from repfuse.operators import Affine
from repfuse.rules import require, siblings


@siblings
def add_affines(left: Affine, right: Affine) -> Affine:
    require(
        left.rank == right.rank,
        f"the channel axes of {left.rank}-D and {right.rank}-D data differ",
    )
    require(
        left.out_channels == right.out_channels,
        f"{left.out_channels} channels are added to {right.out_channels}",
    )

    return Affine(left.scale + right.scale, left.shift + right.shift, left.rank)
