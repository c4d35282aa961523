"""Recognise functions, operators and methods: arithmetic, functional layers, concat, split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from repfuse.arrays import Array
from repfuse.frontends.torch import layers, shuffles
from repfuse.frontends.torch.entries import Channels, Entry, Parts
from repfuse.graph import Concat, Sum, Value
from repfuse.operators import Select

if TYPE_CHECKING:
    from repfuse.frontends.torch.lower import _Lowering

__all__ = ["recognise"]

Handler = Callable[["_Lowering", fx.Node, list[Any], dict[str, Any]], "Entry | None"]


def recognise(lowering: _Lowering, node: fx.Node) -> Entry | None:
    """The entry of a function or method call; None where it is not known."""
    handler = HANDLERS.get(_name(node))
    if handler is None:
        return None
    args, kwargs = list(node.args), dict(node.kwargs)
    if not args:  # everything was given by name
        args = [kwargs.pop(name) for name in ("input", "tensors", "tensor") if name in kwargs]
    return handler(lowering, node, args, kwargs) if args else None


def _name(node: fx.Node) -> str:
    if node.op == "call_method":
        return str(node.target)
    home = getattr(node.target, "__module__", None) or ""
    known = home.startswith(("torch", "_operator", "operator", "builtins")) or home == ""
    return getattr(node.target, "__name__", "") if known else ""


def _add(lowering: _Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    return _sum(lowering, node, args, kwargs, 1.0)


def _sub(lowering: _Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    return _sum(lowering, node, args, kwargs, -1.0)


def _sum(
    lowering: _Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any], sign: float
) -> Entry | None:
    """a + sign * alpha * b."""
    left, right = (*args, kwargs.get("other"))[:2]
    alpha = kwargs.get("alpha", 1)
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        return None
    factor = sign * alpha
    a, b = _read(lowering, node, left), _read(lowering, node, right)
    if isinstance(a, int) and isinstance(b, int):
        if factor != 1.0:
            scaled = lowering.affine(node, b, factor, 0.0)
            if scaled is None:
                return None
            lowering.graph.nodes[scaled].inner = True
            b = scaled
        return lowering.changed_in_place(node, lowering.make(node, Sum(), (a, b)))
    if isinstance(a, int):
        return _shifted(lowering, node, left, a, right, 1.0, factor)
    if isinstance(b, int):
        return _shifted(lowering, node, right, b, left, factor, 1.0)
    return None


def _shifted(
    lowering: _Lowering,
    node: fx.Node,
    source: fx.Node,
    value: Value,
    other: Any,
    scale: float,
    factor: float,
) -> Entry | None:
    """scale * value + factor * other, where other is a constant."""
    if _is_number(other) and other * factor == 0 and scale == 1.0:
        return _unchanged(lowering, node, source, value)
    shift = _per_channel(lowering, other, value)
    if shift is None:
        return None
    if factor != 1.0:
        shift = shift * Array.full(shift.shape, factor)
    result = lowering.affine(node, value, scale, shift)
    return None if result is None else lowering.changed_in_place(node, result)


def _unchanged(lowering: _Lowering, node: fx.Node, source: fx.Node, value: Value) -> Entry:
    """x + 0 and x * 1: the same numbers, in memory of their own."""
    result = lowering.affine(node, value, 1.0, 0.0)
    if result is None:
        return lowering.alias(node, source, value, fresh=True)
    return lowering.changed_in_place(node, result)


def _rsub(lowering: _Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    return _sum(lowering, node, [args[1], args[0]], kwargs, -1.0)


def _mul(
    lowering: _Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> Entry | None:
    left, right = (*args, kwargs.get("other"))[:2]
    a, b = _read(lowering, node, left), _read(lowering, node, right)
    if isinstance(a, int) and isinstance(b, int):
        return _product(lowering, node, a, b)
    source, value, other = (left, a, right) if isinstance(a, int) else (right, b, left)
    if not isinstance(value, int):
        return None
    if _is_number(other) and other == 1:
        return _unchanged(lowering, node, source, value)
    scale = _per_channel(lowering, other, value)
    result = None if scale is None else lowering.affine(node, value, scale, 0.0)
    return None if result is None else lowering.changed_in_place(node, result)


def _product(lowering: _Lowering, node: fx.Node, a: Value, b: Value) -> Value:
    """Two data values multiplied: nothing to fold, but the shape of the wider one is known."""
    result = lowering.opaque(node, "mul")
    facts = [fact for fact in (lowering.known(a), lowering.known(b)) if fact is not None]
    made = lowering.graph.nodes[result]
    if facts and len({rank for _, rank in facts}) == 1 and max(facts)[0] > 1:
        made.channels, made.rank = max(facts)
    return result


def _div(
    lowering: _Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> Entry | None:
    left, right = (*args, kwargs.get("other"))[:2]
    value = _read(lowering, node, left)
    if not isinstance(value, int) or kwargs.get("rounding_mode") is not None:
        return None
    divisor = _per_channel(lowering, right, value)
    if divisor is None:
        return None
    scale = divisor.apply(divisor.shape, lambda d: 1.0 / d)
    result = lowering.affine(node, value, scale, 0.0)
    return None if result is None else lowering.changed_in_place(node, result)


def _neg(
    lowering: _Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> Entry | None:
    value = _read(lowering, node, args[0])
    result = lowering.affine(node, value, -1.0, 0.0) if isinstance(value, int) else None
    return None if result is None else lowering.changed_in_place(node, result)


def _same(
    lowering: _Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> Entry | None:
    """dropout outside of training, contiguous: another name for the same value."""
    if "dropout" in _name(node):
        training = args[2] if len(args) > 2 else kwargs.get("training", True)
        if training is not False:
            return None
    elif len(args) != 1 or kwargs:
        return None
    value = _read(lowering, node, args[0])
    entry = lowering.entries.get(args[0]) if isinstance(args[0], fx.Node) else None
    if isinstance(entry, Channels):
        lowering.memory.share(node, [args[0]])
        return replace(entry, whole=lowering.taken_apart(node, (entry.source,)))
    return lowering.alias(node, args[0], value) if isinstance(value, int) else None


def _conv(rank: int, transposed: bool) -> Handler:
    order = ["input", "weight", "bias", "stride", "padding", "dilation", "groups"]
    if transposed:
        order[5:] = ["output_padding", "groups", "dilation"]
    defaults = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}

    def handle(
        lowering: _Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
    ) -> Entry | None:
        given = {**defaults, **dict(zip(order, args, strict=False)), **kwargs}
        value = _read(lowering, node, given["input"])
        weight, bias = (_array(lowering, given[name]) for name in ("weight", "bias"))
        names = ("stride", "padding", "dilation", "groups")
        settings = [shuffles.size_of(lowering, given[name]) for name in names]
        if not isinstance(value, int) or weight is None or len(weight.shape) != rank + 2:
            return None
        if (given["bias"] is not None and bias is None) or _has_nodes(settings):
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


def _is_computed(lowering: _Lowering, given: dict[str, Any]) -> bool:
    """Whether a weight or bias is computed from parameters, and not one itself."""
    return any(
        isinstance(given[name], fx.Node) and given[name].op != "get_attr"
        for name in ("weight", "bias")
    )


def _linear(
    lowering: _Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> Entry | None:
    given = {"bias": None, **dict(zip(("input", "weight", "bias"), args, strict=False)), **kwargs}
    value = _read(lowering, node, given["input"])
    weight, bias = (_array(lowering, given[name]) for name in ("weight", "bias"))
    if not isinstance(value, int) or weight is None or len(weight.shape) != 2:
        return None
    if given["bias"] is not None and bias is None:
        return None
    producer = layers.linear(weight, bias)
    return lowering.apply(node, producer, value, _is_computed(lowering, given))


def _batch_norm(
    lowering: _Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> Entry | None:
    names = [
        *("input", "running_mean", "running_var", "weight", "bias"),
        *("training", "momentum", "eps"),
    ]
    given: dict[str, Any] = {"weight": None, "bias": None, "training": False, "eps": 1e-5}
    given |= {**dict(zip(names, args, strict=False)), **kwargs}
    value = _read(lowering, node, given["input"])
    if not isinstance(value, int):
        return None
    if given["training"] is not False or given["running_mean"] is None:
        return lowering.opaque(node, "a batch norm on the statistics of the batch")
    mean, variance, weight, bias = (_array(lowering, given[name]) for name in names[1:5])
    known = lowering.known(value)
    owner = node.meta["call"].module
    rank = known[1] if known and known[1] else None
    if rank is None and isinstance(owner, nn.BatchNorm2d | nn.BatchNorm3d):
        rank = 2 if isinstance(owner, nn.BatchNorm2d) else 3
    fact = lowering.facts.get(given["input"])
    if rank is None and fact is not None:
        rank = fact.norm_rank
    missing = any(
        given[name] is not None and array is None
        for name, array in (("weight", weight), ("bias", bias))
    )
    if mean is None or variance is None or missing or not _is_number(given["eps"]):
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
        lowering: _Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
    ) -> Entry | None:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        value = _read(lowering, node, given.pop("input"))
        if not isinstance(value, int) or _has_nodes(list(given.values())):
            return None
        return lowering.apply(node, layers.pool(**given, rank=rank), value)

    return handle


def _channel_cut(index: tuple[Any, ...], rank: int) -> slice | None:
    """The slice of the channels, where an index takes all of every other axis."""
    if not rank:  # the channels are the last axis, however many stand before it
        last = index[-1]
        return last if index[:-1] == (Ellipsis,) and isinstance(last, slice) else None
    if Ellipsis in index:
        place, rest = index.index(Ellipsis), rank + 3 - len(index)
        index = (*index[:place], *(slice(None),) * rest, *index[place + 1 :])
    others = (*index[:1], *index[2:])
    if not 2 <= len(index) <= rank + 2 or any(part != slice(None) for part in others):
        return None
    return index[1] if isinstance(index[1], slice) else None


def _pad(
    lowering: _Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> Entry | None:
    names = ("input", "pad", "mode", "value")
    given = {"mode": "constant", "value": None, **dict(zip(names, args, strict=False)), **kwargs}
    value = _read(lowering, node, given["input"])
    amounts = given["pad"]
    if not isinstance(value, int) or _has_nodes([amounts, given["value"]]):
        return None
    producer = layers.pad(tuple(amounts), given["mode"], given["value"])
    return lowering.apply(node, producer, value)


def _cat(
    lowering: _Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> Entry | None:
    pieces = args[0] if args else kwargs.get("tensors")
    axis = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))
    if not isinstance(pieces, tuple | list) or len(pieces) < 2:
        return None
    read = [_read(lowering, node, piece) for piece in pieces]
    values = [value for value in read if value is not None]
    facts = [fact for value in values if (fact := lowering.known(value)) is not None]
    if len(facts) < len(pieces) or not _is_channel_axis(axis, facts[0][1]):
        return None
    return lowering.make(node, Concat(), tuple(values))


SIZES = ("chunks", "split_size", "split_size_or_sections")


def _is_channel_axis(axis: Any, rank: int) -> bool:
    """Axis 1 of batched data, or counted from the end."""
    return axis == -(rank + 1) or (axis == 1 and rank > 0)


def _split(
    lowering: _Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> Entry | None:
    """chunk and split along the channels: one selection per piece, made when it is taken."""
    given = {name: kwargs[name] for name in SIZES if name in kwargs}
    size = args[1] if len(args) > 1 else next(iter(given.values()), None)
    axis = args[2] if len(args) > 2 else kwargs.get("dim", 0)
    value = _read(lowering, node, args[0])
    known = lowering.known(value) if isinstance(value, int) else None
    if known is None or not isinstance(value, int) or not _is_channel_axis(axis, known[1]):
        return None
    channels, rank = known
    if _name(node) == "chunk" and isinstance(size, int):
        size = -(-channels // size)
    if isinstance(size, int):
        size = [min(size, channels - begin) for begin in range(0, channels, size)]
    if not isinstance(size, tuple | list) or _has_nodes(list(size)) or sum(size) != channels:
        return None
    lowering.memory.share(node, [args[0]])
    pieces, begin = [], 0
    for width in size:
        select = Select(tuple(range(begin, begin + width)), channels, rank)
        pieces.append(lowering.make(node, select, (value,)))
        lowering.graph.nodes[pieces[-1]].inner = True  # until it is taken
        begin += width
    return Parts(lowering.taken_apart(node, (value,)), tuple(pieces), stacked=False)


def _getitem(
    lowering: _Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> Entry | None:
    entry = lowering.entries.get(args[0]) if isinstance(args[0], fx.Node) else None
    if isinstance(entry, Parts) and not entry.stacked and isinstance(args[1], int):
        value = entry.values[args[1]]
        assert value is not None
        lowering.to.node_of[value] = node
        lowering.graph.nodes[value].inner = False
        lowering.to.reads.setdefault(node, {})[args[0]] = entry.whole
        lowering.memory.share(node, [args[0]])
        return value
    value = _read(lowering, node, args[0])
    known = lowering.known(value) if isinstance(value, int) else None
    index = args[1]
    if known is None or not isinstance(value, int) or not isinstance(index, tuple):
        return None
    channels, rank = known
    cut = _channel_cut(index, rank)
    if cut is None or _has_nodes([cut.start, cut.stop, cut.step]):
        return None
    lowering.memory.share(node, [args[0]])
    indices = tuple(range(channels)[cut])
    return lowering.make(node, Select(indices, channels, rank), (value,)) if indices else None


def _shuffle(
    lowering: _Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> Entry | None:
    value = _read(lowering, node, args[0])
    groups = args[1] if len(args) > 1 else kwargs.get("groups")
    return shuffles.shuffle(lowering, node, value, groups) if isinstance(value, int) else None


def _stack(
    lowering: _Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
) -> Entry | None:
    pieces = args[0] if args else kwargs.get("tensors")
    axis = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    if axis != 0 or not isinstance(pieces, tuple | list):
        return None
    values = [_read(lowering, node, piece) for piece in pieces]
    if not all(isinstance(value, int) for value in values):
        return None
    present = tuple(value for value in values if value is not None)
    return Parts(lowering.taken_apart(node, present), tuple(values), stacked=True)


def _reduce(mean: bool) -> Handler:
    """The sum or mean over the new axis of a stack."""

    def handle(
        lowering: _Lowering, node: fx.Node, args: list[Any], kwargs: dict[str, Any]
    ) -> Entry | None:
        entry = lowering.entries.get(args[0]) if isinstance(args[0], fx.Node) else None
        axis = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis"))
        keep = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
        if not isinstance(entry, Parts) or not entry.stacked or axis not in (0, (0,), [0]) or keep:
            return None
        lowering.to.reads.setdefault(node, {})[args[0]] = entry.whole
        values = tuple(value for value in entry.values if value is not None)
        if len(values) < 2:
            return None
        if mean:
            shares = [lowering.affine(node, value, 1.0 / len(values), 0.0) for value in values]
            values = tuple(share for share in shares if share is not None)
            if len(values) < len(shares):
                return None
            for share in values:
                lowering.graph.nodes[share].inner = True
        return lowering.make(node, Sum(), values)

    return handle


# Reading arguments.


def _read(lowering: _Lowering, node: fx.Node, argument: Any) -> Value | None:
    return lowering.value(argument, node) if isinstance(argument, fx.Node) else None


def _array(lowering: _Lowering, argument: Any) -> Array | None:
    """A constant argument as an array."""
    if isinstance(argument, fx.Node) and lowering.constants.is_constant(argument):
        return lowering.constants.array(argument)
    return None


def _per_channel(lowering: _Lowering, argument: Any, value: Value) -> Array | None:
    """A number or a constant that broadcasts along the channels only, as (channels,)."""
    known = lowering.known(value)
    if known is None:
        return None
    channels, rank = known
    if _is_number(argument):
        return Array.full((channels,), float(argument))
    array = _array(lowering, argument)
    if array is None or lowering.widens(value, argument, array):
        return None
    shape = array.shape
    if array.size == 1 and len(shape) <= rank + 2:
        return array.apply((channels,), lambda a: a.reshape(1).repeat(channels))
    axis = len(shape) - rank - 1
    if axis < 0 or axis > (1 if rank else 2) or shape[axis] != channels:
        return None
    return array.reshape(channels) if array.size == channels else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _has_nodes(values: list[Any]) -> bool:
    found: list[fx.Node] = []
    fx.node.map_arg(tuple(values), lambda node: found.append(node))
    return bool(found)


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(("add", "iadd", "add_"), _add),
    **dict.fromkeys(("sub", "isub", "sub_", "subtract"), _sub),
    "rsub": _rsub,
    **dict.fromkeys(("mul", "imul", "mul_", "multiply"), _mul),
    **dict.fromkeys(("truediv", "itruediv", "div", "div_", "true_divide"), _div),
    **dict.fromkeys(("divide", "divide_", "true_divide_"), _div),
    **dict.fromkeys(("pos", "positive"), _same),
    **dict.fromkeys(("neg", "neg_", "negative"), _neg),
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d", "contiguous"), _same),
    "alpha_dropout": _same,
    "feature_dropout": _same,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "avg_pool1d": _pool(1),
    "avg_pool2d": _pool(2),
    "avg_pool3d": _pool(3),
    "pad": _pad,
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    **dict.fromkeys(("chunk", "split"), _split),
    **dict.fromkeys(("view", "reshape"), shuffles.view),
    **dict.fromkeys(("transpose", "swapaxes"), shuffles.transpose),
    "permute": shuffles.permute,
    "flatten": shuffles.flatten,
    "channel_shuffle": _shuffle,
    "getitem": _getitem,
    "stack": _stack,
    "sum": _reduce(mean=False),
    "mean": _reduce(mean=True),
    **{f"conv{rank}d": _conv(rank, False) for rank in (1, 2, 3)},
    **{f"conv_transpose{rank}d": _conv(rank, True) for rank in (1, 2, 3)},
}
