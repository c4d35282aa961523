"""Give a branch that never reads beyond the input the border mode of the branch beside it.

    no tap leaves the input  =>  zeros, reflect, replicate and circular borders are equal

Source: elementary; it lets a 1x1 branch or a skip join a reflect-padded 3x3 (A16).
"""

from dataclasses import replace

from repfuse.operators import Conv
from repfuse.rules import beside, require


@beside
def match_border(conv: Conv, other: Conv) -> Conv:
    other_adapts = not other.pads and (conv.pads or other.border == "zeros")
    if conv.border == other.border or other_adapts:
        return conv
    require(
        not conv.pads,
        f"the borders differ: {conv.border} against {other.border}",
    )

    return replace(conv, border=other.border)
