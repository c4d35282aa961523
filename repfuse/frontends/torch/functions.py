"""Recognise functions, operators and methods: arithmetic, functional layers, concat, split."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from repfuse.frontends.torch import layers, shuffles
from repfuse.frontends.torch.arguments import Handler, array_of, has_nodes, is_number, name_of, read
from repfuse.frontends.torch.arithmetic import add, div, mul, neg, rsub, sub
from repfuse.frontends.torch.entries import Channels, Entry
from repfuse.frontends.torch.fills import fill
from repfuse.frontends.torch.lowering import Lowering
from repfuse.frontends.torch.moves import move
from repfuse.frontends.torch.norms import norm_function
from repfuse.frontends.torch.pieces import (
    cat,
    flip,
    getitem,
    narrow,
    reduce,
    shuffle,
    split,
    stack,
)  # fmt: skip

__all__ = ["recognise"]


def recognise(lowering: Lowering, node: fx.Node) -> Entry | None:
    """The entry of a function or method call; None where it is not known."""
    handler = HANDLERS.get(name_of(node))
    if handler is None:
        return None
    args, kwargs = list(node.args), dict(node.kwargs)
    if "out" in kwargs or kwargs.get("dtype") is not None:
        return None
    if not args:  # everything was given by name
        args = [kwargs.pop(name) for name in ("input", "tensors", "tensor") if name in kwargs]
    return handler(lowering, node, args, kwargs) if args else None


def _same(
    lowering: Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> Entry | None:
    """dropout outside of training, contiguous: another name for the same value.

    contiguous copies what is not contiguous, which nobody knows here.
    """
    if "dropout" in name_of(node):
        training = args[2] if len(args) > 2 else kwargs.get("training", True)
        if training is not False:
            return lowering.opaque(node, "a dropout that may be active")
    elif len(args) != 1 or kwargs:
        return None
    value = read(lowering, node, args[0])
    entry = lowering.entries.get(args[0]) if isinstance(args[0], fx.Node) else None
    if isinstance(entry, Channels):
        lowering.memory.share(node, [args[0]])
        return replace(entry, whole=lowering.taken_apart(node, (entry.source,)))
    if not isinstance(value, int):
        return None
    return lowering.alias(node, args[0], value, copied=name_of(node) == "contiguous")


def _conv(rank: int, transposed: bool) -> Handler:
    order = ["input", "weight", "bias", "stride", "padding", "dilation", "groups"]
    if transposed:
        order[5:] = ["output_padding", "groups", "dilation"]
    defaults = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}

    def handle(
        lowering: Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
    ) -> Entry | None:
        given = {**defaults, **dict(zip(order, args, strict=False)), **kwargs}
        value = read(lowering, node, given["input"])
        weight, bias = (array_of(lowering, given[name]) for name in ("weight", "bias"))
        names = ("stride", "padding", "dilation", "groups")
        settings = [shuffles.size_of(lowering, given[name]) for name in names]
        if not isinstance(value, int) or weight is None or len(weight.shape) != rank + 2:
            return None
        if (given["bias"] is not None and bias is None) or has_nodes(settings):
            return None
        producer = layers.conv(
            weight,
            bias,
            *settings,
            transposed=transposed,
            output_padding=given.get("output_padding", 0),
        )
        return lowering.apply(node, producer, value, _is_computed(lowering, given))

    return handle


def _is_computed(lowering: Lowering, given: dict[str, Any]) -> bool:
    """Whether a weight or bias is computed from parameters, and not one itself."""
    return any(
        isinstance(given[name], fx.Node) and given[name].op != "get_attr"
        for name in ("weight", "bias")
    )


def _linear(
    lowering: Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> Entry | None:
    given = {"bias": None, **dict(zip(("input", "weight", "bias"), args, strict=False)), **kwargs}
    value = read(lowering, node, given["input"])
    weight, bias = (array_of(lowering, given[name]) for name in ("weight", "bias"))
    if not isinstance(value, int) or weight is None or len(weight.shape) != 2:
        return None
    if given["bias"] is not None and bias is None:
        return None
    producer = layers.linear(weight, bias)
    return lowering.apply(node, producer, value, _is_computed(lowering, given))


def _matmul(
    lowering: Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> Entry | None:
    """A product with a constant matrix on the right: a Linear without bias."""
    value = read(lowering, node, args[0])
    matrix = args[1] if len(args) == 2 else kwargs.get("other", kwargs.get("mat2"))
    array = array_of(lowering, matrix)
    if not isinstance(value, int) or array is None or len(array.shape) != 2:
        return None
    weight = array.apply(array.shape[::-1], lambda values: values.T)
    return lowering.apply(node, layers.linear(weight, None), value, not _is_view(matrix))


VIEWS = {"transpose", "swapaxes", "permute", "t"}


def _is_view(matrix: Any) -> bool:
    """Whether a constant is a parameter whose axes are exchanged at most."""
    while matrix.op != "get_attr":
        turned = matrix.target is getattr and matrix.args[1] in ("T", "mT")
        source = matrix.args[0] if matrix.args else None
        if not isinstance(source, fx.Node) or not (turned or name_of(matrix) in VIEWS):
            return False
        matrix = source
    return True


def _batch_norm(
    lowering: Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> Entry | None:
    tensors = ["running_mean", "running_var", "weight", "bias"]
    names = ["input", *tensors, "training", "momentum", "eps"]
    if node.target is torch.batch_norm:  # and not torch.nn.functional.batch_norm
        names[1:5] = ["weight", "bias", "running_mean", "running_var"]
    given: dict[str, Any] = {"weight": None, "bias": None, "training": False, "eps": 1e-5}
    given |= {**dict(zip(names, args, strict=False)), **kwargs}
    value = read(lowering, node, given["input"])
    if not isinstance(value, int):
        return None
    if given["training"] is not False or given["running_mean"] is None:
        return lowering.opaque(node, "a batch norm on the statistics of the batch")
    mean, variance, weight, bias = (array_of(lowering, given[name]) for name in tensors)
    known = lowering.known(value)
    owner = node.meta["call"].module
    rank = known[1] if known and known[1] else None
    if rank is None and isinstance(owner, nn.BatchNorm2d | nn.BatchNorm3d):
        rank = 2 if isinstance(owner, nn.BatchNorm2d) else 3
    fact = lowering.facts.get(given["input"])
    if rank is None and fact is not None:
        rank = fact.norm_rank
    if rank is None and lowering.axes(value) == 2:
        rank = 0
    missing = any(
        given[name] is not None and array is None
        for name, array in (("weight", weight), ("bias", bias))
    )
    if mean is None or variance is None or missing or not is_number(given["eps"]):
        return None
    if rank is None:
        return lowering.opaque(
            node, "a batch norm over axis 1 of an input whose number of axes is not known here"
        )
    producer = layers.batch_norm(mean, variance, weight, bias, float(given["eps"]), rank)
    return lowering.apply(node, producer, value)


def _pool(rank: int) -> Handler:
    names = ["input", "kernel_size", "stride", "padding"]
    names += ["ceil_mode", "count_include_pad", "divisor_override"]

    def handle(
        lowering: Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
    ) -> Entry | None:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        value = read(lowering, node, given.pop("input"))
        if not isinstance(value, int) or has_nodes(list(given.values())):
            return None
        return lowering.apply(node, layers.pool(**given, rank=rank), value)

    return handle


def _pad(
    lowering: Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> Entry | None:
    names = ("input", "pad", "mode", "value")
    given = {"mode": "constant", "value": None, **dict(zip(names, args, strict=False)), **kwargs}
    value = read(lowering, node, given["input"])
    amounts = given["pad"]
    if not isinstance(value, int) or has_nodes([amounts, given["value"]]):
        return None
    producer = layers.pad(tuple(amounts), given["mode"], given["value"])
    return lowering.apply(node, producer, value)


def _rearranged(channels: Handler) -> Handler:
    """A view that concerns the channels, or one that leaves them whole."""

    def handle(
        lowering: Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
    ) -> Entry | None:
        found = channels(lowering, node, args, kwargs)
        return move(lowering, node, args, kwargs) if found is None else found

    return handle


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(("add", "iadd", "add_"), add),
    **dict.fromkeys(("sub", "isub", "sub_", "subtract"), sub),
    "rsub": rsub,
    **dict.fromkeys(("mul", "imul", "mul_", "multiply"), mul),
    **dict.fromkeys(("truediv", "itruediv", "div", "div_", "true_divide"), div),
    **dict.fromkeys(("divide", "divide_", "true_divide_"), div),
    **dict.fromkeys(("pos", "positive"), _same),
    **dict.fromkeys(("neg", "neg_", "negative"), neg),
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d", "contiguous"), _same),
    "alpha_dropout": _same,
    "feature_dropout": _same,
    "linear": _linear,
    **dict.fromkeys(("matmul", "mm"), _matmul),
    "batch_norm": _batch_norm,
    **dict.fromkeys(("layer_norm", "rms_norm", "group_norm"), norm_function),
    "avg_pool1d": _pool(1),
    "avg_pool2d": _pool(2),
    "avg_pool3d": _pool(3),
    "pad": _pad,
    "setitem": fill,
    **dict.fromkeys(("cat", "concat", "concatenate"), cat),
    **dict.fromkeys(("chunk", "split", "tensor_split"), split),
    "narrow": narrow,
    "flip": flip,
    **dict.fromkeys(("view", "reshape"), _rearranged(shuffles.view)),
    **dict.fromkeys(("transpose", "swapaxes"), _rearranged(shuffles.transpose)),
    "permute": _rearranged(shuffles.permute),
    "flatten": _rearranged(shuffles.flatten),
    "reshape_as": move,
    "channel_shuffle": shuffle,
    "getitem": getitem,
    "stack": stack,
    "sum": reduce(mean=False),
    "mean": reduce(mean=True),
    **{f"conv{rank}d": _conv(rank, False) for rank in (1, 2, 3)},
    **{f"conv_transpose{rank}d": _conv(rank, True) for rank in (1, 2, 3)},
}
