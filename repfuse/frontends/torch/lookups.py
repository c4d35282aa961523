"""What names, attributes and elements stand for in a function that is read."""

from __future__ import annotations

import ast
from typing import Any

import torch
from torch import nn

from repfuse.frontends.torch.called import apply
from repfuse.frontends.torch.calls import is_leaf
from repfuse.frontends.torch.frames import Notes, Scope
from repfuse.frontends.torch.objects import (
    LISTS,
    NOTHING,
    Bound,
    Box,
    Closure,
    Made,
    Super,
    Text,
    Thing,
    Usual,
    Values,
    Weight,
    boxed,
    elements,
    found_in,
    member_of,
    things,
)
from repfuse.frontends.torch.weights import METADATA
from repfuse.frontends.torch.written import outer_of

__all__ = ["Lookups"]

SIZES = {"shape", "size", "numel"}
USUAL = frozenset(dir(nn.Module()))


class Lookups(Notes):
    def call(
        self, scope: Scope, called: Any, args: list[Values], named: dict[str, Values],
        rest: Values | None,
    ) -> Values:  # fmt: skip
        """Call a Python function; rest: what further arguments may be, None if there are none."""
        raise NotImplementedError

    def value(self, scope: Scope, node: Any) -> Values:
        """What an expression gives."""
        raise NotImplementedError

    def escape(self, scope: Scope, values: Values) -> None:
        """The values go somewhere unknown, where anything may be done with them."""
        if not self.answers:
            return
        self.consume(scope, values)
        for each in found_in(values):
            if isinstance(each, Thing) and isinstance(each.it, nn.Module):
                for part in each.it.modules():
                    self.run(scope, part, None)
                    for tensor in (*part._parameters.values(), *part._buffers.values()):
                        if tensor is not None:
                            self.consume(scope, things(tensor))
            elif isinstance(each, Closure | Bound):
                apply(self, scope, each, None, [], {}, NOTHING)
            elif isinstance(each, Made):
                for (owner, _), kept in list(self.kept.items()):
                    if owner == each and not kept & {each}:
                        self.escape(scope, frozenset(kept))

    def _Name(self, scope: Scope, node: ast.Name) -> Values:
        inner: Scope | None = scope
        while inner is not None:
            if node.id in inner.names:
                return frozenset(inner.names[node.id])
            if "__class__" in inner.names:
                break
            inner = inner.outer
        if inner is None:
            return NOTHING
        (home,) = [each for each in inner.names["__class__"] if isinstance(each, Super)]
        function = outer_of(home.owner)
        code, cells = function.__code__, function.__closure__ or ()
        for name, cell in zip(code.co_freevars, cells, strict=False):
            if name == node.id:
                try:
                    return things(cell.cell_contents)
                except ValueError:
                    return NOTHING
        built = function.__globals__.get("__builtins__", {})
        built = built if isinstance(built, dict) else vars(built)
        return things(function.__globals__.get(node.id, built.get(node.id)))

    def _Attribute(self, scope: Scope, node: ast.Attribute) -> Values:
        found: set[Any] = set()
        for owner in self.value(scope, node.value):
            found |= self.member(scope, owner, node.attr, node)
        return frozenset(found)

    def member(self, scope: Scope, owner: Any, name: str, node: ast.AST | None) -> Values:
        """What an object has under a name."""
        found = frozenset(self.kept.get((owner, name), ()))
        if isinstance(owner, Weight):
            return self._of_weight(scope, owner, name)
        if isinstance(owner, Box):
            return frozenset({Usual(owner, name)})
        if isinstance(owner, Super):
            return self._of_class(scope, owner.owner, owner.above, name)
        if isinstance(owner, Made):
            return found | self._of_class(scope, owner, owner.kind.__mro__, name)
        if isinstance(owner, Bound | Closure | Usual) or not isinstance(owner, Thing):
            return frozenset({owner}) if name in ("__func__", "__call__", "__wrapped__") else found
        if not isinstance(owner.it, nn.Module):
            try:
                return found | things(getattr(owner.it, name, None))
            except Exception:
                return found
        return found | self._of_module(scope, owner, name, node)

    def _of_module(self, scope: Scope, owner: Thing, name: str, node: ast.AST | None) -> Values:
        module = owner.it
        if module._modules.get(name) is not None:
            return things(module._modules[name])
        if name in ("_modules", "_parameters", "_buffers"):
            return boxed(NOTHING.union(*map(things, getattr(module, name).values())))
        if name == "__dict__":
            return things(vars(module))
        if name == "__class__":
            return self.class_of(scope, owner, node)
        leaf = is_leaf(module)
        tensor = module._parameters.get(name, module._buffers.get(name))
        if leaf and (tensor is not None or (name not in USUAL and hasattr(module, name))):
            self.look(scope, module, name, node)
        if tensor is not None:
            weight = Weight(id(tensor), name, tensor, module)
            if not leaf and not (not self.answers and self._guarded(scope, node)):
                scope.frame.weights[weight.key] = weight  # None stands there if it is folded
            return frozenset({weight})
        if leaf and isinstance(vars(module).get(name), torch.Tensor):
            return NOTHING.union(*map(things, module.parameters()))  # a hook computes it of these
        if name in vars(module):
            return things(vars(module)[name])
        inner = getattr(module._modules.get("parametrizations"), "_modules", {}).get(name)
        if inner is not None:
            return NOTHING.union(*map(things, [*inner.parameters(), *inner.buffers()]))
        found = self._of_class(scope, owner, type(module).__mro__, name)
        if not found and not hasattr(type(module), name):
            for kind in type(module).__mro__:
                getter = vars(kind).get("__getattr__")
                if kind is not nn.Module and getter is not None and not leaf:
                    bound = Bound(id(getter), owner, "__getattr__", getter)
                    return self.call(scope, bound, [frozenset({Text(name)})], {}, None)
        return found

    def class_of(self, scope: Scope, owner: Thing, node: ast.AST | None) -> Values:
        if self.answers:
            self.look(scope, owner.it, "__class__", node)
        return frozenset({Thing(id(type(owner.it)), type(owner.it))})

    def _of_class(self, scope: Scope, owner: Any, kinds: tuple[type, ...], name: str) -> Values:
        values, getters = member_of(owner, kinds, name) or (NOTHING, [])
        for getter in getters:
            if hasattr(getter, "__code__") and getter.__module__.partition(".")[0] != "torch":
                values |= self.call(scope, Bound(id(getter), owner, name, getter), [], {}, None)
        return values

    def _of_weight(self, scope: Scope, weight: Weight, name: str) -> Values:
        if name in METADATA:
            if name in SIZES and weight.owner is not None:
                self.look(scope, weight.owner, f"{weight.name}.{name}", None)
            return NOTHING
        if name in ("data", "grad"):
            return frozenset({weight})
        if not name.endswith("_"):
            self.consume(scope, frozenset({weight}))
        return NOTHING

    def _Subscript(self, scope: Scope, node: ast.Subscript) -> Values:
        values = self.value(scope, node.value)
        where = self.value(scope, node.slice)
        found: set[Any] = set()
        for each in values:
            module = each.it if isinstance(each, Thing) else None
            if isinstance(module, LISTS):
                found |= self._picked(module, node.slice, where)
            elif isinstance(module, nn.Module):
                for own in self.member(scope, each, "__getitem__", node):
                    found |= apply(self, scope, own, None, [where], {}, None)
            elif isinstance(each, Weight):
                self.consume(scope, frozenset({each}))
            elif isinstance(each, Text):
                found.add(Text("*"))
            else:
                found |= elements(frozenset({each}))
        return boxed(frozenset(found)) if isinstance(node.slice, ast.Slice) else frozenset(found)

    def _picked(self, module: nn.Module, where: ast.AST, names: Values) -> Values:
        """An element of a list, or some of them."""
        children: Any = module
        try:
            index = ast.literal_eval(where)
            return things(children[index])
        except (ValueError, KeyError, IndexError, TypeError, NotImplementedError):
            pass
        if isinstance(where, ast.Slice):
            parts = [where.lower, where.upper, where.step]
            try:
                ends = [None if part is None else ast.literal_eval(part) for part in parts]
                return frozenset().union(*map(things, list(module.children())[slice(*ends)]))
            except (ValueError, TypeError):
                pass
        return frozenset().union(*map(things, module.children()))

    def _super(self, scope: Scope, node: ast.Call) -> Values:
        inner: Scope | None = scope
        while inner is not None and "__class__" not in inner.names:
            inner = inner.outer
        homes = inner.names["__class__"] if inner is not None else NOTHING
        found: set[Any] = set()
        for home in homes:
            owner = getattr(home.owner, "owner", None)
            kind = getattr(owner, "kind", None) or type(getattr(owner, "it", None))
            kinds, above = list(kind.__mro__), home.above
            if node.args:
                above = tuple(e.it for e in self.value(scope, node.args[0]) if isinstance(e, Thing))
            after = kinds.index(above[0]) + 1 if above and above[0] in kinds else 1
            found.add(Super(owner, tuple(kinds[after:])))
        return frozenset(found)
