"""Write a skip, a batch norm branch or a scaled skip as a 1x1 depthwise convolution.

    s x + t  =  (diagonal kernel s) * x + t

The diagonal is held as one tap per channel with groups = channels; `expand_groups` spreads
it to the groups of the branch beside it, one non-zero per row at the channel's own index
within its group. A broadcast of 1 channel against many is no identity.

Source: Ding et al., "RepVGG", CVPR 2021.
"""

from repfuse.operators import Affine, Conv
from repfuse.rules import beside, require


@beside
def identity_to_conv(skip: Affine, branch: Conv) -> Conv:
    require(
        skip.rank == branch.rank,
        f"a {branch.rank}-D conv is added to {skip.rank}-D data",
    )
    require(
        branch.in_channels == branch.out_channels == skip.in_channels,
        f"the skip keeps {skip.in_channels} channels, the conv beside it maps "
        f"{branch.in_channels} to {branch.out_channels}",
    )

    ones, channels = (1,) * skip.rank, skip.in_channels
    return Conv(
        weight=skip.scale.reshape(channels, 1, *ones),
        bias=skip.shift,
        stride=ones,
        padding=((0, 0),) * skip.rank,
        dilation=ones,
        groups=channels,
        transposed=branch.transposed,
    )
