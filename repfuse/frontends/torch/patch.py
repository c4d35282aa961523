"""Write patches into a model: build the layers, prove them, then put them in place."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from repfuse.frontends.torch.assemble import Operation, Patch
from repfuse.frontends.torch.edits import Region
from repfuse.frontends.torch.lowered import Lowered
from repfuse.frontends.torch.mixed import build_mixed
from repfuse.frontends.torch.modules import Merged, ValueFault, build, convert
from repfuse.frontends.torch.norms import bare_layer
from repfuse.frontends.torch.probe import probe
from repfuse.frontends.torch.subclass import with_methods
from repfuse.operators import Mixed
from repfuse.select import is_skip

__all__ = ["ProbeFailure", "build_layers", "write_patch"]


class ProbeFailure(Exception):
    """A rewrite that disagrees with what it replaces: an error of repfuse."""


def write_patch(model: nn.Module, patch: Patch, layers: dict[str, nn.Module]) -> None:
    """Put the layers in their places, and all that goes with them; all of it or nothing."""
    before = [(owner, type(owner), _tables_of(owner)) for owner in _owners(model, patch)]
    try:
        _write(model, patch, layers)
    except BaseException:
        for owner, kind, tables in before:
            owner.__class__ = kind
            for table, content in tables:
                table.clear()
                table.update(content)
        raise


def _owners(model: nn.Module, patch: Patch) -> list[nn.Module]:
    """The modules of the model whose class, children or tensors the patch changes."""
    places = [*patch.layers, *patch.identities, *patch.bare, *patch.rests, *patch.merged]
    paths = {path.rpartition(".")[0] for path in places}
    paths |= {*patch.methods, *(path for path, _ in patch.dropped)}
    found = []
    for path in paths:
        with suppress(AttributeError):  # of a module that is put there first
            found.append(model.get_submodule(path))
    return found


def _tables_of(module: nn.Module) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    tables = vars(module)["_modules"], vars(module)["_parameters"], vars(module)["_buffers"]
    return [(table, dict(table)) for table in tables]


def _write(model: nn.Module, patch: Patch, layers: dict[str, nn.Module]) -> None:
    for path, layer in layers.items():
        _put(model, path, layer)
    for path in patch.identities:
        _put(model, path, nn.Identity().train(False))
    for path in patch.bare:
        _put(model, path, bare_layer(model.get_submodule(path)))
    for path, children in patch.rests.items():
        parts = OrderedDict((name, model.get_submodule(f"{path}.{name}")) for name in children)
        _put(model, path, nn.Sequential(parts).train(False))
    for path, into in patch.merged.items():
        _put(model, path, Merged(into).train(False))
    for path, methods in patch.methods.items():
        with_methods(model.get_submodule(path), methods)
    for path, name in patch.dropped:
        owner = model.get_submodule(path)
        for table in (owner._parameters, owner._buffers):
            if name in table:  # the name stays: what prints or copies a layer may ask for it
                table[name] = None


def build_layers(patch: Patch, lowered: Lowered, probing: bool) -> dict[str, nn.Module]:
    """The new layers by path, proved; one layer where several paths share an operation.

    Raises ValueFault or ProbeFailure where the patch must not be written.
    """
    made: dict[int, nn.Module] = {}
    layers: dict[str, nn.Module] = {}
    by_region: dict[Region, dict[int, nn.Module]] = {}
    for path, operation in patch.layers.items():
        key = id(operation.conv)
        if key not in made:
            make: Any = build_mixed if isinstance(operation.conv, Mixed) else build
            made[key] = make(operation.conv, _device(operation))
        layers[path] = made[key]
        by_region.setdefault(operation.region, {})[operation.index] = made[key]
    for region, index, path in patch.repeated:
        by_region.setdefault(region, {}).setdefault(index, layers[path])
    for region, own in by_region.items():
        if probing and not any(layer.weight.is_meta for layer in own.values()):
            _prove(lowered, region, own)
    for operation in patch.layers.values():
        layer = made[id(operation.conv)]
        kinds = {tensor.dtype for tensor in operation.like if tensor.dim() > 1}
        if len(kinds) > 1:
            raise ValueFault(f"the branches have different dtypes: {sorted(map(str, kinds))}")
        convert(layer, operation.like)
    return layers


def _prove(lowered: Lowered, region: Region, layers: dict[int, nn.Module]) -> None:
    terms = [
        None if is_skip(term) else layers[index] for index, term in enumerate(region.choice.terms)
    ]
    fault = probe(lowered, region, terms)
    if fault is not None:
        names = ", ".join(node.name for node in region.removed)
        raise ProbeFailure(f"{fault}; nodes {names}")


def _device(operation: Operation) -> torch.device | str:
    on_meta = {tensor.is_meta for tensor in operation.like}
    if len(on_meta) > 1:
        raise ValueFault("some of the weights are on the meta device, and have no values")
    return "meta" if True in on_meta else "cpu"


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    owner = model.get_submodule(parent) if parent else model
    if name in owner._modules:
        owner._modules[name] = module
    else:
        owner.add_module(name, module)
