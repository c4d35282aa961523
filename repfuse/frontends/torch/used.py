"""What methods use that no trace has seen: weights, and attributes of layers.

Only methods that are given something and answer count, and what torch itself calls, as for `eval()`
and `repr()`. Others set or merge weights, or describe a block, which nobody asks for once it is
merged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn

from repfuse.frontends.torch.calls import Traces, is_leaf
from repfuse.frontends.torch.frames import Frame
from repfuse.frontends.torch.methods import (
    answering,
    answers,
    definitions,
    opened,
    options_of,
    torch_calls,
)
from repfuse.frontends.torch.objects import Weight
from repfuse.frontends.torch.reading import Reading
from repfuse.frontends.torch.sources import code_of

__all__ = ["functions_of", "looked_up", "shown", "weights_read"]

PRINTS = {"__repr__", "__str__", "extra_repr"}


@dataclass
class Use:
    """weights: that are computed with. looks: layers, and what is looked up of them. shown: the
    module's own tensors that it prints something of."""

    weights: list[Weight]
    looks: list[tuple[nn.Module, str]]
    shown: list[Weight] = field(default_factory=list)


Function: TypeAlias = tuple[str, Use]  # which method uses it


def weights_read(functions: list[Function]) -> Iterator[tuple[torch.Tensor, str]]:
    """The tensors that methods which forward does not call compute with, and who does."""
    for where, found in functions:
        for weight in found.weights:
            yield weight.tensor, where


def shown(functions: list[Function]) -> set[int]:
    """The tensors, by their ids, that a module prints something of: they are not taken from it."""
    return {id(weight.tensor) for _, use in functions for weight in use.shown}


def looked_up(functions: list[Function]) -> dict[int, set[tuple[str, str]]]:
    """What methods which forward does not call look up of torch's layers: for each layer, by its
    id, the method and the attribute, or what is asked of a weight that may be of another size."""
    found: dict[int, set[tuple[str, str]]] = {}
    for where, used in functions:
        for layer, name in used.looks:
            found.setdefault(id(layer), set()).add((where, name))
    return found


def functions_of(traces: Traces, model: nn.Module) -> list[Function]:
    """What methods use that forward does not call, or that do more for other options."""
    found: list[Function] = []
    options, entries = options_of(traces), opened(traces)
    run: dict[int, set[str]] = {}
    for key, method in options:
        run.setdefault(key, set()).add(method)
    reading, common = Reading(answers=True), Reading(answers=False)
    named = dict(model.named_modules(remove_duplicate=False))
    failed = {id(named[path]) for path in traces.failures}
    for path, module in model.named_modules():
        kind: Any = type(module)
        uses = [
            (each, _of_torch(module, each, _use(common.method(module, each))))
            for each in sorted(torch_calls(kind))
        ]
        for method in sorted(answering(kind) - run.get(id(module), set())):
            uses.append((method, _use(reading.method(module, method))))
        for method in sorted(entries.get(id(module), ())):
            given = options[id(module), method]
            uses.append((method, _for_options(reading, traces, module, method, given)))
        if id(module) not in run and id(module) not in failed and answers(kind, "forward"):
            use = _use(reading.method(module, "forward"))
            uses.append(("forward", _of_others(traces, module, use)))
        found += [(f"{path}.{method}".lstrip("."), use) for method, use in uses]
    return [(where, use) for where, use in found if use.weights or use.looks or use.shown]


def _of_torch(module: nn.Module, method: str, use: Use) -> Use:
    """What a method that torch calls uses; one that prints a module only asks it about itself."""
    own = {
        id(tensor) for table in (module._parameters, module._buffers) for tensor in table.values()
    }
    if method not in PRINTS:
        return use
    kept = [weight for weight in use.weights if id(weight.tensor) not in own]
    return Use(kept, use.looks, [weight for weight in use.weights if id(weight.tensor) in own])


def _use(frame: Frame) -> Use:
    frames = frame.all()
    weights = [weight for each in frames for weight in each.weights.values()]
    return Use(weights, [(layer.it, name) for each in frames for layer, name in each.looks])


def _of_others(traces: Traces, module: nn.Module, use: Use) -> Use:
    """What a module that is not run uses of layers that lie elsewhere as well."""
    inside = tuple(f"{path}." for path in traces.paths[id(module)])

    def is_shared(layer: nn.Module | None) -> bool:
        paths = traces.paths.get(id(layer), [])
        outside = any(not path.startswith(inside) for path in paths)
        return layer is not None and is_leaf(layer) and outside

    weights = [weight for weight in use.weights if is_shared(weight.owner)]
    return Use(weights, [(layer, name) for layer, name in use.looks if is_shared(layer)])


def _for_options(
    reading: Reading, traces: Traces, module: nn.Module, method: str, options: set[str]
) -> Use:
    """What of torch's layers a method uses that was traced, where an option is another."""
    used = Use([], [])
    kind: Any = type(module)
    if not options or not answers(kind, method):
        return used
    listed = {id(tensor) for tensor, _ in traces.listed}
    for function in definitions(kind, method):
        code = code_of(function)
        places = (
            set().union(*(code.steered.get(each, set()) for each in options)) if code else set()
        )
        for frame in reading.statements(module, method, function, places).all() if places else ():
            for weight in frame.weights.values():
                owner = weight.owner
                if owner is None and weight.key in listed:
                    continue
                if owner is None or (is_leaf(owner) and not _is_read(traces, owner, weight.name)):
                    used.weights.append(weight)
            used.looks += [
                (layer.it, name)
                for layer, name in frame.looks
                if not _is_read(traces, layer.it, name)
            ]
    return used


def _is_read(traces: Traces, layer: nn.Module, name: str) -> bool:
    """Whether a trace has seen that it is looked up."""
    return any(read.name == name.partition(".")[0] for read in traces.reads_of(layer))
