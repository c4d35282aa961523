"""What of a model is used otherwise than by the calls that were traced.

Weights that code reads by themselves, layers that lie in a list as well, modules whose inside
somebody uses who could not be traced: their tensors are no constants, or their inputs and outputs
must exist.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import fx, nn

from repfuse.frontends.torch.calls import Call, Traces, calls_of, is_entry_point
from repfuse.frontends.torch.fills import fills_only
from repfuse.frontends.torch.lowered import Lowered
from repfuse.frontends.torch.snapshot import held_by, may_hold, parts_of
from repfuse.frontends.torch.used import functions_of, looked_up, shown, weights_read
from repfuse.frontends.torch.uses import called_children, reached

__all__ = ["exclude_exposed", "may_be_called_alone", "pin_loose"]

DEPTH = 5
SIZES = {"dtype", "device", "shape", "ndim", "requires_grad", "is_cuda", "is_meta"}
SIZE_METHODS = {"size", "dim", "numel"}


def exclude_exposed(lowered: Lowered) -> None:
    """Take the tensors out of the constants that somebody else reads or changes."""
    traces, modules = lowered.traces, lowered.modules
    called = {
        id(modules[str(node.target)])
        for trace in traces.traces
        for node in trace.graph.nodes
        if node.op == "call_module"
    }
    for read in traces.reads:
        if id(read.module) not in called or read.node is None:
            continue
        fills = fills_only(read.node, lowered.constants.is_constant)
        if fills is not None:
            lowered.fills[read.node] = fills
        elif not _is_metadata_read(read.node):
            _exclude(lowered, read.module, f"are read by {read.call.path or 'the model'} as well")
    for tensor, call in traces.listed:
        reason = f"are read by {call.path or 'the model'} as well"
        lowered.constants.exclude_tensor(tensor, reason)
    functions = functions_of(traces, modules[""])
    lowered.looked_up, lowered.shown = looked_up(functions), shown(functions)
    for tensor, method in weights_read(functions):
        lowered.constants.exclude_tensor(tensor, f"are read by {method} as well")
    for module in lowered.modules[""].modules():
        for part in _in_containers(module):
            leaf = isinstance(part, nn.modules.batchnorm._BatchNorm) or not part._modules
            if leaf:
                _exclude(lowered, part, "are kept in a list as well")
    for path in traces.failures:
        module = modules[path]
        reason = f"may be used by {path or 'the model'}, which cannot be traced"
        _exclude(lowered, module, reason)
        found = reached(module)
        traces.loose.update(id(part) for part in found.modules)
        for tensor in found.tensors:
            lowered.constants.exclude_tensor(tensor, reason)
        for owner, name in found.methods:
            traces.loose_methods.add((id(owner), name))
            kind: Any = type(owner)
            for child in called_children(kind, name):
                if child in owner._modules:
                    traces.loose.add(id(owner._modules[child]))


def _exclude(lowered: Lowered, module: nn.Module, reason: str) -> None:
    for table in (module._parameters, module._buffers):
        for tensor in table.values():
            if tensor is not None:
                lowered.constants.exclude_tensor(tensor, reason)


def _is_metadata_read(node: fx.Node) -> bool:
    """Whether only the dtype, the device or the size of a tensor is asked for."""
    return all(
        (user.target is getattr and user.args[1] in SIZES)
        or (user.op == "call_method" and user.target in SIZE_METHODS)
        for user in node.users
    )


def _in_containers(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that lie in lists, dicts and other objects of a module."""
    todo: list[tuple[Any, int]] = [(value, DEPTH) for _, value in held_by(module)]
    while todo:
        value, depth = todo.pop()
        if isinstance(value, nn.Module):
            yield value
        elif depth:
            parts = enumerate(value) if isinstance(value, tuple) else parts_of(value)
            todo += [(part, depth - 1) for _, part in parts if may_hold(part)]


def may_be_called_alone(traces: Traces, call: Call) -> bool:
    """Whether users, or code that was not traced, may call the method with other arguments."""
    return is_entry_point(call) or _is_loose(traces, call)


def _is_loose(traces: Traces, call: Call) -> bool:
    if call.method == "forward":
        return id(call.module) in traces.loose
    return (id(call.module), call.method) in traces.loose_methods


def pin_loose(lowered: Lowered, call: Call) -> None:
    """What goes into and comes out of a module that is used by itself somewhere else."""
    loose = lowered.traces.loose
    reason = "a module that cannot be traced uses a part of this by itself"
    for item in [part for other in calls_of(call) for part in other.items]:
        if isinstance(item, Call):
            if _is_loose(lowered.traces, item):
                passed: list[fx.Node] = []
                fx.node.map_arg((item.args, item.kwargs, item.result), passed.append)
                _pin(lowered, passed, reason)
        elif item.op == "call_module" and id(lowered.modules[str(item.target)]) in loose:
            _pin(lowered, [item, *item.all_input_nodes], reason)


def _pin(lowered: Lowered, nodes: list[fx.Node], reason: str) -> None:
    for node in nodes:
        if node in lowered.value_of:
            lowered.graph.pin(lowered.value_of[node], reason)
