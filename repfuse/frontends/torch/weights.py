"""Weights that methods which were not traced compute with, read from their source.

A method that forward does not call may use the weights of layers by themselves, as in
`F.conv2d(x, self.conv.weight)`. What only writes them (`nn.init.zeros_(self.conv.weight)`,
`switch_to_deploy`) does not count: a weight is used where it meets what the method was given, and
something is returned.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from types import CodeType

import torch
from torch import nn

__all__ = [
    "METADATA",
    "gives_something",
    "meeting_data",
    "met_by_data",
    "names_in",
    "tensors_at",
    "tensors_named",
]

Chain = tuple[str, ...]
METADATA = {
    "dtype", "device", "shape", "ndim", "requires_grad", "is_cuda", "is_meta", "size", "dim",
    "numel",
}  # fmt: skip
TABLES = {"parameters", "named_parameters", "buffers", "named_buffers", "state_dict"}
LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def gives_something(function: ast.FunctionDef) -> bool:
    """Whether a method returns anything; one that does not sets something."""
    return any(
        isinstance(node, ast.Return | ast.Yield) and node.value is not None
        for node in ast.walk(function)
    )


def meeting_data(
    function: ast.FunctionDef, data: set[str], chain_of: Callable[[ast.AST], Chain | None]
) -> set[Chain]:
    """The chains of names from self, to a weight perhaps, that are computed with the data.

    data: the local names of what the method was given, and of what was computed from that.
    """
    found: set[Chain] = set()
    names = _local(function, data, chain_of)
    asked = {
        part
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and node.attr in METADATA
        for part in ast.walk(node)
    }
    for node in ast.walk(function):
        operands = [] if node in asked else _operands(node, data)
        meets = [any(_is_data(part, data) for part in _parts(operand)) for operand in operands]
        for index, operand in enumerate(operands):
            if any(met for other, met in enumerate(meets) if other != index):
                found.update(_chains(operand, names, chain_of))
    return found


def met_by_data(
    function: ast.FunctionDef, data: set[str], chain_of: Callable[[ast.AST], Chain | None]
) -> set[Chain]:
    """All that is looked up next to the data, sizes and types too."""
    found: set[Chain] = set()
    for node in ast.walk(function):
        operands = _operands(node, data)
        meets = [any(_is_data(part, data) for part in _parts(operand)) for operand in operands]
        for index, operand in enumerate(operands):
            if any(met for other, met in enumerate(meets) if other != index):
                found.update(chain for part in ast.walk(operand) if (chain := chain_of(part)))
    return found


def _operands(node: ast.AST, data: set[str]) -> Sequence[ast.AST]:
    if isinstance(node, ast.BinOp):
        return [node.left, node.right]
    if isinstance(node, ast.AugAssign):
        return [node.target, node.value]
    if not isinstance(node, ast.Call):
        return []
    given = [*node.args, *(keyword.value for keyword in node.keywords)]
    if not isinstance(node.func, ast.Attribute):
        return given[node.func.id.endswith("_") if isinstance(node.func, ast.Name) else 0 :]
    of_data = any(_is_data(part, data) for part in _parts(node.func.value))
    if node.func.attr.endswith("_") and not of_data:
        return given[1:]  # it writes what it is called on, or is given first
    return [node.func.value, *given]


def _parts(node: ast.AST) -> Iterator[ast.AST]:
    """All parts of an expression, but what is only asked for its size or type."""
    asked = isinstance(node, ast.Attribute) and node.attr in METADATA
    if not asked and not isinstance(node, ast.stmt):
        yield node
        for child in ast.iter_child_nodes(node):
            yield from _parts(child)


def _is_data(node: ast.AST, data: set[str]) -> bool:
    return isinstance(node, ast.Name) and node.id in data


def _chains(
    node: ast.AST, names: dict[str, set[Chain]], chain_of: Callable[[ast.AST], Chain | None]
) -> Iterator[Chain]:
    """The longest chains inside of an expression, those of local names among them."""
    if isinstance(node, ast.Attribute) and node.attr in METADATA:
        return
    suffix: list[str] = []
    inner = node
    while isinstance(inner, ast.Attribute):
        suffix.insert(0, inner.attr)
        inner = inner.value
    if isinstance(inner, ast.Name) and inner.id in names:
        for before in names[inner.id]:
            yield (*before, *suffix)
        return
    chain = chain_of(node)
    if chain:
        yield chain
        return
    for child in ast.iter_child_nodes(node):
        yield from _chains(child, names, chain_of)


def _local(
    function: ast.FunctionDef, data: set[str], chain_of: Callable[[ast.AST], Chain | None]
) -> dict[str, set[Chain]]:
    """Local names that are no data, by what they stand for or are computed from."""
    names: dict[str, set[Chain]] = {}
    for _ in range(3):
        for node in ast.walk(function):
            source = getattr(node, "iter", getattr(node, "value", None))
            targets = getattr(node, "targets", [getattr(node, "target", None)])
            if not isinstance(source, ast.AST) or targets == [None]:
                continue
            chains = set(_chains(source, names, chain_of))
            stored = [part for target in targets for part in ast.walk(target)]
            for part in stored if chains else ():
                if isinstance(part, ast.Name) and part.id not in data:
                    names.setdefault(part.id, set()).update(chains)
    return names


def tensors_at(module: nn.Module, chain: Chain) -> Iterator[torch.Tensor]:
    """The parameters and buffers that a chain of names leads to."""
    if not chain:
        return
    name, *rest = chain
    tensor = {**module._parameters, **module._buffers}.get(name)
    child = module._modules.get(name)
    if tensor is not None:
        if METADATA.isdisjoint(rest[:1]):
            yield tensor
    elif name in TABLES:
        yield from module.parameters()
        yield from module.buffers()
    elif child is not None:
        yield from tensors_at(child, tuple(rest))
    elif not name.isidentifier():  # any of them
        for part in module.children():
            yield from tensors_at(part, tuple(rest))
    elif isinstance(module, LISTS):  # what a loop over it looks up
        for part in module.children():
            yield from tensors_at(part, chain)


def names_in(code: CodeType) -> set[str]:
    """All that code without a source may look up: names, and strings that getattr may be given."""
    names = {*code.co_names}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= names_in(constant)
        elif isinstance(constant, str):
            names.update(constant.split("."))
    return names


def tensors_named(module: nn.Module, code: CodeType) -> Iterator[torch.Tensor]:
    """The parameters and buffers whose names occur in code that is given something."""
    if code.co_argcount < 2:
        return
    names = names_in(code)
    for owner in module.modules():
        for name, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is not None and (name in names or TABLES & names):
                yield tensor
