"""The passes, one identity per file, in the order in which they are tried."""

from repfuse.passes.absorb_affine import absorb_affine
from repfuse.passes.add_affines import add_affines
from repfuse.passes.compose_convs import compose_convs
from repfuse.passes.dense_dilation import dense_dilation
from repfuse.passes.expand_groups import expand_groups
from repfuse.passes.fold_affine import fold_affine
from repfuse.passes.identity_to_conv import identity_to_conv
from repfuse.passes.match_border import match_border
from repfuse.passes.merge_affines import merge_affines
from repfuse.passes.merge_branch_sum import merge_branch_sum
from repfuse.passes.move_padding import move_padding
from repfuse.passes.pad_kernel import pad_kernel
from repfuse.passes.pad_to_conv import pad_to_conv
from repfuse.passes.pool_to_conv import pool_to_conv
from repfuse.passes.read_slice import read_slice
from repfuse.passes.select_to_conv import select_to_conv
from repfuse.passes.slice_to_conv import slice_to_conv
from repfuse.passes.stack_convs import stack_convs
from repfuse.passes.stack_slices import stack_slices
from repfuse.passes.symmetric_padding import symmetric_padding
from repfuse.rules import Rule

__all__ = ["PASSES"]

PASSES: tuple[Rule, ...] = (
    pool_to_conv,
    pad_to_conv,
    select_to_conv,
    slice_to_conv,
    symmetric_padding,
    fold_affine,
    absorb_affine,
    merge_affines,
    move_padding,
    read_slice,
    compose_convs,
    identity_to_conv,
    expand_groups,
    dense_dilation,
    match_border,
    pad_kernel,
    add_affines,
    merge_branch_sum,
    stack_convs,
    stack_slices,
)
