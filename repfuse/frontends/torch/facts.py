"""What the operations of a trace tell of their inputs: channels, rank, number of axes."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from repfuse.frontends.torch.axes import count_axes
from repfuse.frontends.torch.calls import is_plain
from repfuse.frontends.torch.constants import Constants

__all__ = ["Facts", "collect_facts", "keeps_shape", "reduces_to_matrix", "shrinks"]


@dataclass
class Facts:
    """channels and rank as a conv or norm that reads the node demands them; axes: how many the
    node has, where that is certain."""

    channels: int | None = None
    rank: int = 0
    axes: int | None = None

    @property
    def norm_rank(self) -> int | None:
        """0 where the node is known to be a matrix (batch, channels)."""
        return 0 if self.axes == 2 else None


CONV_MODULES: dict[type, int] = {
    nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3,
    nn.ConvTranspose1d: 1, nn.ConvTranspose2d: 2, nn.ConvTranspose3d: 3,
}  # fmt: skip
CONV_FUNCTIONS = {"conv1d": 1, "conv2d": 2, "conv3d": 3}
PRODUCTS = {operator.matmul, torch.matmul, torch.mm, "matmul", "mm"}  # a constant on the right
KEEPERS = {
    "relu", "relu_", "relu6", "gelu", "silu", "mish", "sigmoid", "tanh", "hardswish", "elu",
    "hardsigmoid", "hardtanh", "leaky_relu", "leaky_relu_", "softplus", "clamp", "clip", "celu",
    "selu", "prelu", "dropout", "dropout2d", "contiguous", "clone", "detach", "float", "sqrt",
    "exp", "abs", "square", "logsigmoid", "softsign", "normalize", "batch_norm", "neg",
    "channel_shuffle", "flip", "roll",
}  # fmt: skip
KEEPER_MODULES = (
    "torch.nn.modules.activation",
    "torch.nn.modules.dropout",
    "torch.nn.modules.batchnorm",
    "torch.nn.modules.normalization",
    "torch.nn.modules.instancenorm",
    "torch.nn.modules.channelshuffle",
)
ARITHMETIC = {"add", "sub", "mul", "truediv", "div", "iadd", "isub", "imul", "itruediv", "multiply"}
CHANGING_MODULES = (nn.GLU, nn.MultiheadAttention)
SPATIAL_MODULES = ("torch.nn.modules.padding", "torch.nn.modules.pooling")
SPATIAL_FUNCTIONS = ("max_pool", "avg_pool", "adaptive_")
BOUNDED = {"clamp", "clip"}


UNKNOWN = nn.Module()


def _layer(node: fx.Node, modules: dict[str, nn.Module]) -> Any:
    """The layer that a node calls; a bare module where hooks or other code may do anything."""
    module = modules[str(node.target)]
    return module if is_plain(module) else UNKNOWN


def is_uninitialised(module: nn.Module) -> bool:
    """A lazy layer that has not seen an input yet."""
    tensors = module._parameters.values()
    return any(tensor is not None and nn.parameter.is_lazy(tensor) for tensor in tensors)


def collect_facts(
    graph: fx.Graph, modules: dict[str, nn.Module], constants: Constants
) -> dict[fx.Node, Facts]:
    """Facts of every node that an operation with fixed channels reads."""
    found: dict[fx.Node, Facts] = {}
    for node in graph.nodes:
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node):
            continue
        told = _told(node, modules, constants)
        if told is not None:
            fact = found.setdefault(source, Facts())
            if fact.channels is None:
                fact.channels, fact.rank = told
    demanded = {
        node: fact.rank + 2
        for node, fact in found.items()
        if fact.rank and node.op in ("placeholder", "call_module")
    }
    demanded |= _norms_of_moved(graph, modules)
    for node in graph.find_nodes(op="get_attr"):
        if (tensor := constants.tensor(node)) is not None:
            demanded[node] = tensor.dim()
    for node, axes in count_axes(
        graph, modules, lambda node: keeps_shape(node, modules), demanded
    ).items():
        found.setdefault(node, Facts()).axes = axes
    for node in reversed(graph.nodes):
        _infer_source(node, modules, found)
    return found


def _norms_of_moved(graph: fx.Graph, modules: dict[str, nn.Module]) -> dict[fx.Node, int]:
    """A batch norm in one dimension reads at most three axes, and a transposition of axis 2 gives
    no fewer."""
    found: dict[fx.Node, int] = {}
    for node in graph.nodes:
        source: Any = node.args[0] if node.args else None
        if node.op != "call_module" or not isinstance(source, fx.Node):
            continue
        if not isinstance(_layer(node, modules), nn.BatchNorm1d):
            continue
        name = getattr(source.target, "__name__", source.target)
        if name in ("transpose", "swapaxes") and set(source.args[1:]) == {1, 2}:
            before = source.args[0]
            if isinstance(before, fx.Node):
                found[before] = 3
    return found


def _infer_source(
    node: fx.Node, modules: dict[str, nn.Module], found: dict[fx.Node, Facts]
) -> None:
    """What is known of a result tells of the source: the same channels, or the end of a slice."""
    fact, source = found.get(node), node.args[0] if node.args else None
    if isinstance(source, fx.Node) and (pieces := _pieces(node, found)):
        known = found.setdefault(source, Facts())
        if known.channels is None:
            known.channels, known.rank = sum(c for c, _ in pieces), pieces[0][1]
        return
    if not isinstance(source, fx.Node) or fact is None or fact.channels is None:
        return
    if node.target is operator.getitem and isinstance(node.args[1], int):
        total, whole = _whole_of_split(source)
        if whole is not None and found.setdefault(whole, Facts()).channels is None:
            found[whole].channels, found[whole].rank = total, fact.rank
        return
    if source in found and found[source].channels is not None:
        return
    channels = fact.channels if keeps_shape(node, modules, fact.rank) else None
    if node.target is operator.getitem and fact.rank:
        index: Any = node.args[1]
        cut = index[1] if isinstance(index, tuple) and len(index) > 1 else None
        if isinstance(cut, slice) and cut.stop is None and cut.step is None:
            begin = cut.start or 0
            channels = fact.channels + begin if isinstance(begin, int) and begin >= 0 else None
    if channels is not None:
        known = found.setdefault(source, Facts())
        known.channels, known.rank = channels, fact.rank


def _pieces(node: fx.Node, found: dict[fx.Node, Facts]) -> list[tuple[int, int]]:
    """Channels and rank of all pieces of a chunk, where readers of each of them tell."""
    if getattr(node.target, "__name__", node.target) not in ("chunk", "tensor_split"):
        return []
    given: dict[str, Any] = dict(zip(("", "count", "dim"), node.args, strict=False))
    given |= {"dim" if name == "dim" else "count": arg for name, arg in node.kwargs.items()}
    count, pieces = given.get("count"), dict[int, tuple[int, int]]()
    for user in node.users:
        fact = found.get(user)
        index = user.args[1] if user.target is operator.getitem else None
        if isinstance(index, int) and fact is not None and fact.channels is not None and fact.rank:
            pieces[index] = fact.channels, fact.rank
    whole = isinstance(count, int) and sorted(pieces) == list(range(count))
    return list(pieces.values()) if whole and given.get("dim", 0) == 1 else []


def _whole_of_split(split: fx.Node) -> tuple[int, fx.Node | None]:
    """How many channels a tensor has that is split into pieces of given sizes."""
    if getattr(split.target, "__name__", split.target) != "split" or not split.args:
        return 0, None
    given: dict[str, Any] = dict(zip(("", "sizes", "dim"), split.args, strict=False))
    given |= {"dim" if name == "dim" else "sizes": arg for name, arg in split.kwargs.items()}
    source, sizes = given[""], given.get("sizes")
    whole = isinstance(sizes, tuple | list) and all(isinstance(size, int) for size in sizes)
    if not whole or given.get("dim", 0) != 1 or not isinstance(source, fx.Node):
        return 0, None
    return sum(sizes or ()), source


def _told(
    node: fx.Node, modules: dict[str, nn.Module], constants: Constants
) -> tuple[int, int] | None:
    if node.op == "call_module":
        module = _layer(node, modules)
        if is_uninitialised(module):
            return None
        if isinstance(module, nn.Linear):
            return module.in_features, 0
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            return module.num_features, 2 if isinstance(module, nn.BatchNorm2d) else 3
        layer: Any = module
        for kind, rank in CONV_MODULES.items():
            if isinstance(module, kind):
                return layer.in_channels, rank
    elif node.op == "call_function" or node.target in PRODUCTS:
        name, product = getattr(node.target, "__name__", ""), node.target in PRODUCTS
        weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
        if name not in CONV_FUNCTIONS and node.target is not F.linear and not product:
            return None
        if not isinstance(weight, fx.Node) or not constants.is_constant(weight):
            return None
        shape = constants.shape(weight)
        if shape is None:
            return None
        if node.target is F.linear or product:
            return (shape[0 if product else 1], 0) if len(shape) == 2 else None
        groups: Any = node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1)
        groups = constants.literal(groups)
        if not isinstance(groups, int):
            return None
        return shape[1] * groups, CONV_FUNCTIONS[name]
    return None


def reduces_to_matrix(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Flattening from axis 1, or the mean over both axes of an image: the cost model asks."""
    arguments = [arg for arg in node.args[1:] if not isinstance(arg, fx.Node)]
    if node.op == "call_module":
        module = _layer(node, modules)
        return isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1)
    name = getattr(node.target, "__name__", str(node.target))
    start: Any
    end: Any
    if name == "flatten":
        start = arguments[0] if arguments else node.kwargs.get("start_dim", 0)
        end = arguments[1] if len(arguments) > 1 else node.kwargs.get("end_dim", -1)
        return (start, end) == (1, -1)
    if name == "mean":
        axes = arguments[0] if arguments else node.kwargs.get("dim")
        keep = arguments[1] if len(arguments) > 1 else node.kwargs.get("keepdim", False)
        return not keep and axes is not None and tuple(_listed(axes)) in ((2, 3), (-2, -1))
    return False


def shrinks(node: fx.Node, modules: dict[str, nn.Module], area: float) -> float:
    """By what factor an operation without weights changes the number of positions."""
    if reduces_to_matrix(node, modules):
        return 1.0 / max(area, 1.0)
    if node.op == "call_module":
        module = _layer(node, modules)
        name = type(module).__name__
        if name.startswith("Adaptive"):
            return 1.0 / max(area, 1.0)
        if name.startswith("MaxPool"):
            stride, rank = module.stride, int(name[-2])
            strides = tuple(stride) if isinstance(stride, tuple | list) else (stride,) * rank
            return 1.0 / float(math.prod(strides))
    return 1.0


def keeps_shape(node: fx.Node, modules: dict[str, nn.Module], rank: int | None = None) -> bool:
    """Whether the result has the channels and the rank of the first argument, of `rank` axes.

    Without a rank: whether it has as many axes, whatever they are.
    """
    module: Any = None
    if node.op == "call_module":
        module = _layer(node, modules)
        name, home = type(module).__name__, type(module).__module__
        if len(node.args) != 1 or node.kwargs or isinstance(module, CHANGING_MODULES):
            return False
        if home in KEEPER_MODULES or isinstance(module, nn.Identity):
            return True
        if home not in SPATIAL_MODULES:
            return False
    else:
        name = getattr(node.target, "__name__", str(node.target))
        if name in KEEPERS:
            return name not in BOUNDED or len(node.all_input_nodes) == 1
        if name.rstrip("_") in ARITHMETIC:
            return len(node.all_input_nodes) == 1 and len(node.args) == 2
        if name != "pad" and not name.startswith(SPATIAL_FUNCTIONS):
            return False
    return rank is None or _keeps_channels(node, module, name, rank)


def _keeps_channels(node: fx.Node, module: Any, name: str, rank: int) -> bool:
    """Whether a pooling or a border only concerns the last `rank` axes."""
    if "indices" in name or getattr(module, "return_indices", False):
        return False
    if node.kwargs.get("return_indices") or not rank:
        return False
    if name == "pad":
        amounts: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("pad")
        return isinstance(amounts, tuple | list) and len(amounts) <= 2 * rank
    return f"{rank}d" in name.lower()


def _listed(axes: Any) -> list[Any]:
    return list(axes) if isinstance(axes, tuple | list | torch.Size) else [axes]
