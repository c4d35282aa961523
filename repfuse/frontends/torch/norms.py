"""Norms that scale and shift what they normalised: as two values, of which the first may remain.

    norm(x)  =  weight * norm_bare(x) + bias

Where every reader of a LayerNorm, RMSNorm, GroupNorm or InstanceNorm absorbs the weight and the
bias, the norm is made bare: the same layer, or the same call, without them.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from repfuse.arrays import Array
from repfuse.frontends.torch.arguments import array_of, read
from repfuse.frontends.torch.constants import to_array
from repfuse.frontends.torch.entries import Entry
from repfuse.frontends.torch.lowering import Lowering
from repfuse.graph import Value
from repfuse.operators import Affine

__all__ = ["bare_arguments", "bare_layer", "norm_function", "norm_layer"]

LAST = (nn.LayerNorm, nn.RMSNorm)
SECOND = (nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)

# The arguments of each function, and those that a bare call is not given.
TORCH = ["input", "normalized_shape", "weight", "bias", "eps", "cudnn_enable"]
GROUPS = ["input", "num_groups", "weight", "bias", "eps", "cudnn_enable"]
ROOT = ["input", "normalized_shape", "weight", "eps"]
ARGUMENTS: dict[Any, list[str]] = {
    F.layer_norm: TORCH[:5],
    torch.layer_norm: TORCH,
    F.rms_norm: ROOT,
    torch.rms_norm: ROOT,
    F.group_norm: GROUPS[:5],
    torch.group_norm: GROUPS,
}
TAKEN = ("weight", "bias")


def norm_layer(lowering: Lowering, node: fx.Node, value: Value) -> Entry | None:
    """One of torch's norms with a weight for every channel, and for nothing else."""
    module: Any = lowering.to.modules[str(node.target)]
    if not isinstance(module, LAST + SECOND) or module.weight is None:
        return None
    if getattr(module, "track_running_stats", False):
        return None
    bias = getattr(module, "bias", None)
    weight, shift = to_array(module.weight), None if bias is None else to_array(bias)
    return _apart(lowering, node, value, weight, shift, isinstance(module, LAST))


def norm_function(
    lowering: Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> Entry | None:
    """layer_norm, rms_norm and group_norm with a constant weight."""
    names = ARGUMENTS.get(node.target)
    if names is None:
        return None
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    value = read(lowering, node, given["input"])
    weight, bias = (array_of(lowering, given.get(name)) for name in TAKEN)
    if not isinstance(value, int) or weight is None:
        return None
    if bias is None and given.get("bias") is not None:
        return None
    return _apart(lowering, node, value, weight, bias, "normalized_shape" in names)


def _apart(
    lowering: Lowering, node: fx.Node, value: Value, weight: Array, bias: Array | None, last: bool
) -> Entry | None:
    """The bare norm, and the scale and shift after it.

    last: the channels are the last axis; otherwise axis 1 of a value whose axes are known.
    """
    known = lowering.known(value)
    if len(weight.shape) != 1 or (known is None and not last):
        return None
    channels, rank = (weight.shape[0], 0) if known is None else known
    if weight.shape != (channels,) or (rank == 0) != last:
        return None
    bare = lowering.opaque(node)
    shift = Array.full((channels,), 0.0) if bias is None else bias
    made = lowering.graph.nodes[bare]
    made.channels, made.rank = channels, rank
    count = lowering.axes(value)
    if count is not None:
        lowering.to.counts[bare] = count
    result = lowering.make(node, Affine(weight, shift, rank), (bare,))
    lowering.graph.nodes[result].within = True
    lowering.to.bare[result] = bare
    return result


def bare_layer(module: nn.Module) -> nn.Module:
    """The layer without its weight and bias, with everything else that it has."""
    made = copy.copy(module)
    made.__dict__ = {**vars(module), "_parameters": dict.fromkeys(module._parameters)}
    for name in ("elementwise_affine", "affine"):
        if name in vars(made):
            setattr(made, name, False)
    return made


def bare_arguments(
    target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call of a norm, without a weight and a bias."""
    names = ARGUMENTS[target]
    left = tuple(None if n in TAKEN else a for n, a in zip(names, args, strict=False))
    return left, {name: None if name in TAKEN else a for name, a in kwargs.items()}
