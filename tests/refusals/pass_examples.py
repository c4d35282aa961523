"""Operators for the reasons that no model reaches, because something else is found before."""

from __future__ import annotations

from tests.refusals.examples import in_a_pass

__all__ = ["EXAMPLES"]

AXES = "a frontend gives an operator to a value only where the axes of both fit"
CHANNELS = "a frontend gives an operator to a value only where the channels of both fit"
SOURCE = "branches of one sum read one source, which has as many axes for all of them"
DENSE = "a plan then asks `stack_convs` about both as convs on all channels"

EXAMPLES = (
    in_a_pass(
        "a {} border is made of what it surrounds",
        'move_padding(conv(4, 4, 1), pad(4, border="reflect"))',
        "a plan then asks `compose_convs` about the border as a conv, and gives its reason",
    ),
    in_a_pass(
        "{} channels meet a conv that reads {}",
        "compose_convs(conv(4, 6), conv(4, 4))",
        CHANNELS,
    ),
    in_a_pass("{} channels meet a scale for {}", "fold_affine(conv(4, 4), affine(1))", CHANNELS),
    in_a_pass("{} channels meet a border for {}", "move_padding(conv(4, 6, 1), pad(4))", CHANNELS),
    in_a_pass("{} channels are added to {}", "add_affines(affine(1), affine(4))", CHANNELS),
    in_a_pass(
        "a {}-D conv reads {}-D data",
        "absorb_affine(affine(4, rank=1), conv(rank=2))",
        AXES,
    ),
    in_a_pass(
        "a {}-D conv is scaled along the channel axis of {}-D data",
        "fold_affine(conv(rank=1), affine(4, rank=2))",
        AXES,
    ),
    in_a_pass(
        "a {}-D conv is added to {}-D data",
        "identity_to_conv(affine(4, rank=1), conv(rank=2))",
        SOURCE,
    ),
    in_a_pass(
        "a {}-D conv is added to a {}-D one",
        "pad_kernel(conv(rank=2), conv(rank=1))",
        SOURCE,
    ),
    in_a_pass(
        "the channel axes of {}-D and {}-D data differ",
        "merge_affines(affine(4, rank=1), affine(4, rank=2))",
        AXES,
    ),
    in_a_pass("{}-D data is padded in {} axes", "move_padding(conv(rank=1), pad(4, rank=2))", AXES),
    in_a_pass(
        "the groups map {} channels to {} and {} to {}",
        """
        left = SlicedConv(conv(groups=2), begin=0, in_channels=8)
        stack_slices(left, SlicedConv(conv(), begin=4, in_channels=8))
        """,
        DENSE,
    ),
    in_a_pass(
        "the ranges are of {} and of {} channels",
        """
        left = SlicedConv(conv(), begin=0, in_channels=8)
        stack_slices(left, SlicedConv(conv(), begin=4, in_channels=9))
        """,
        "parts of one concat read one source",
    ),
    in_a_pass(
        "a range that ends at channel {} is followed by one from {}",
        """
        left = SlicedConv(conv(), begin=4, in_channels=8)
        stack_slices(left, SlicedConv(conv(), begin=0, in_channels=8))
        """,
        DENSE,
    ),
    in_a_pass(
        "the {} channels are no range of the {}",
        "read_slice(select([0, 2]), conv(2, 2))",
        "a plan then writes the selection as a 1x1 conv, and composes both",
    ),
)
