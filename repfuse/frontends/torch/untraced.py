"""Methods that forward does not call: what they run of a region, and whether all of it alike."""

from __future__ import annotations

import ast
import fnmatch
import inspect
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

from torch import fx, nn

from repfuse.frontends.torch.calls import LISTS, Call
from repfuse.frontends.torch.frames import Frame
from repfuse.frontends.torch.lowered import Lowered
from repfuse.frontends.torch.methods import (
    answering,
    answers,
    definitions,
    entry_points,
    opened,
    options_of,
)
from repfuse.frontends.torch.reading import Reading
from repfuse.frontends.torch.sources import ANY, LISTED, RUNS, Chain, Code, code_of
from repfuse.frontends.torch.weights import names_in

__all__ = ["Untraced"]

DEPTH = 5  # of lists in lists


@dataclass(frozen=True)
class _Step:
    """A module that is run, or one of its methods; name: the child of self that it is."""

    module: nn.Module
    method: str = "forward"
    name: str = ""
    code: Code | None = None


class Untraced:
    """What the methods of a model that no trace has seen do with the layers of regions."""

    def __init__(self, lowered: Lowered) -> None:
        self.lowered = lowered
        self.options, self.entries = options_of(lowered.traces), opened(lowered.traces)
        self.run: dict[int, set[str]] = {}
        for key, name in self.options:
            self.run.setdefault(key, set()).add(name)
        self.reading = Reading(answers=True)
        self._read: dict[tuple[int, str], Frame] = {}
        self._by_names: dict[tuple[int, int], set[int]] = {}
        self._steps: dict[tuple[int, str], list[_Step]] = {}

    def refusal(self, nodes: list[fx.Node]) -> str | None:
        """Why the nodes must stay: a method runs some of them, or all in another way."""
        part = _Part(self.lowered, nodes)
        for module in part.owners():
            traced = self.run.get(id(module), set())
            methods = entry_points(_kind(module)) - traced
            if id(module) not in self.run:
                methods |= {"forward"}
            for method in sorted(methods | answering(_kind(module)) - traced):
                known = self._known(module) if self._is_a_way(module, method) else set()
                alone = set(self._alone(module, method, part, known.copy()))
                found = sorted(alone or set(self._otherwise(module, method, part, known)))
                if found:
                    which = ", ".join(found)
                    return f"{method}, which is not traced, calls {which} alone"
            for method in sorted(self.entries.get(id(module), ())):
                found = sorted(set(self._opened(module, method, part, set())))
                if found:
                    which = ", ".join(found)
                    return f"{method}, which may be given other options, calls {which} alone"
        return None

    def _known(self, module: nn.Module) -> set[tuple[int, str]]:
        return {(id(module), name) for name in self.run.get(id(module), ())}

    def _is_a_way(self, module: nn.Module, method: str) -> bool:
        """Whether a method is another way of forward to call its methods, not one of users."""
        if module is self.lowered.modules[""]:
            return False
        return any(
            (method,) in code.read
            for name in self.run.get(id(module), ())
            for function in definitions(_kind(module), name)
            if (code := code_of(function)) is not None
        )

    def _alone(
        self, module: nn.Module, method: str, part: _Part, seen: set[tuple[int, str]]
    ) -> Iterator[str]:
        """The names of the modules with a part of the nodes that a method runs."""
        if (id(module), method) in seen:
            return
        seen.add((id(module), method))
        steps = self.steps(module, method)
        codes = [code_of(function) for function in definitions(_kind(module), method)]
        for name in _above(_kind(module), method) - {method}:
            if len(part.items(module, name)) > 1:  # one class may make some, another the others
                yield f"super().{name}"
        in_turn = all(code is not None and code.in_turn for code in codes)
        looped = {
            id(child)
            for step in steps
            if in_turn and part.is_in_order(step.module)
            for child in step.module.children()
        }
        for step in steps:
            if part.is_whole(step.module, step.method):
                yield from self._opened(step.module, step.method, part, seen)
                continue
            if id(step.module) in looped:
                continue
            if step.method != "forward":
                yield from self._alone(step.module, step.method, part, seen)
            elif (
                step.name and step.code and step.code.in_a_row(part.row(module) or [step.name])
            ) or part.is_run_of(step.module):
                continue
            elif any(self._cuts(inner, part) for inner in _run_by(step.module)):
                yield step.name or self.lowered.traces.paths[id(step.module)][0] or "forward"

    def _otherwise(
        self, module: nn.Module, method: str, part: _Part, known: set[tuple[int, str]]
    ) -> Iterator[str]:
        """The names of the modules with a part of the nodes that a method runs in a way of which
        the names in its source tell nothing."""
        paths = self.lowered.traces.paths
        if method == "forward" and id(module) not in self.run and self._is_shared(module, part):
            for child in module.children():
                if any(self._cuts(inner, part) for inner in _run_by(child)):
                    yield paths[id(child)][0]
        if not answers(_kind(module), method):
            return

        def enters(frame: Frame) -> bool:
            key = (id(frame.module), frame.method)
            if key in known or frame.module is None:
                return False
            whole = part.is_whole(frame.module, frame.method)
            return not whole or self._steers(frame.module, frame.method, part)

        reached = self._reached(module, method)
        key = (id(module), method)
        if key not in self._read:
            self._read[key] = self.reading.method(module, method)
        for frame in self._read[key].all(enters):
            known_here = (id(frame.module), frame.method) in reached
            for run, how in frame.runs.values():
                if known_here and self._is_known(frame, run, how):
                    continue
                if any(self._cuts(inner, part) for inner in _run_by(run)):
                    yield paths[id(run)][0] or "forward"

    def _reached(self, module: nn.Module, method: str) -> set[tuple[int, str]]:
        """The methods that a method calls by names, and itself."""
        found, todo = {(id(module), method)}, [(module, method)]
        while todo:
            for step in self.steps(*todo.pop()):
                key = (id(step.module), step.method)
                if step.method != "forward" and key not in found:
                    found.add(key)
                    todo.append((step.module, step.method))
        return found

    def _is_known(self, frame: Frame, run: nn.Module, how: ast.AST | None) -> bool:
        """Whether the names in the source tell that a method runs a module, and how."""
        if how is None or frame.module is None:
            return False
        if frame.function not in definitions(_kind(frame.module), frame.method):
            return False
        key = (id(frame.module), id(frame.function))
        if key not in self._by_names:
            steps = _steps_of(frame.module, frame.function)
            self._by_names[key] = {id(step.module) for step in steps if step.method == "forward"}
        return id(run) in self._by_names[key] and (frame.outside or _is_plain(how))

    def _is_shared(self, module: nn.Module, part: _Part) -> bool:
        """Whether a Sequential holds layers of others, and does not run the nodes as they are."""
        if type(module).forward is not nn.Sequential.forward or part.is_run_of(module):
            return False
        paths = self.lowered.traces.paths
        own = tuple(f"{path}." for path in paths[id(module)])
        inner = [each for each in module.modules() if each is not module]
        return any(not path.startswith(own) for each in inner for path in paths[id(each)])

    def _opened(
        self, module: nn.Module, method: str, part: _Part, seen: set[tuple[int, str]]
    ) -> Iterator[str]:
        """The names of the modules with a part of the nodes that a method, which makes all of
        them, may run alone where it is given other options."""
        if (id(module), method) in seen:
            return
        if self._steers(module, method, part):
            yield from self._alone(module, method, part, seen)
            return
        seen.add((id(module), method))
        for step in self.steps(module, method):
            if part.is_whole(step.module, step.method):
                yield from self._opened(step.module, step.method, part, seen)

    def _steers(self, module: nn.Module, method: str, part: _Part) -> bool:
        """Whether an option decides on something between the first and the last of the nodes."""
        options = self.options.get((id(module), method), set())
        items = part.items(module, method)
        if not options or len(items) < 2:
            return False
        for function in definitions(_kind(module), method):
            code = code_of(function)
            if code is None:
                return True
            names = [part.child(module, item) for item in items]
            places = [place for name in names if name for place in code.placed.get(name, ())]
            first = min(places, default=0)
            last = max(places, default=code.length) if all(names) else code.length
            if any(first <= place <= last for o in options for place in code.steered.get(o, ())):
                return True
        return False

    def _cuts(self, module: nn.Module, part: _Part) -> bool:
        return part.touches(module) and not part.is_whole(module, "forward")

    def steps(self, module: nn.Module, method: str) -> list[_Step]:
        """What a method of a module runs."""
        key = (id(module), method)
        if key not in self._steps:
            self._steps[key] = [
                step
                for function in definitions(_kind(module), method)
                for step in _steps_of(module, function)
            ]
        return self._steps[key]


class _Part:
    """Some nodes of a trace: which modules and methods around them hold how many."""

    def __init__(self, lowered: Lowered, nodes: list[fx.Node]) -> None:
        self.nodes, self.modules, self.order = nodes, lowered.modules, lowered.order
        self.called: Counter[tuple[int, str]] = Counter()
        self.around: dict[int, nn.Module] = {id(self.modules[""]): self.modules[""]}
        places: list[str] = []
        for node in nodes:
            keys, path = set(), node.meta["call"].path
            (*_, top) = node.meta["call"].chain()
            # What stands around the trace could not be traced; all of it lies inside.
            keys |= {(id(self.modules[each]), "forward") for each in _prefixes(top.path)}
            if node.op == "call_module":
                path = str(node.target)
                keys.add((id(self.modules[path]), "forward"))
            for call in node.meta["call"].chain():
                keys.add((id(call.module), call.method))
                self.around[id(call.module)] = call.module
            self.called.update(keys)
            places.append(path)
        for place in places:
            for path in (place, *_prefixes(place)):
                self.around[id(self.modules[path])] = self.modules[path]
            for other in lowered.traces.paths[id(self.modules[place])]:
                for path in (other, *_prefixes(other)):
                    module = self.modules[path]
                    if self.is_whole(module, "forward"):
                        break  # what lies around it runs all of it
                    self.around[id(module)] = module

    def items(self, module: nn.Module, method: str) -> list[fx.Node | Call]:
        """What a method's own code does to make the nodes: operations, and calls."""
        found: dict[int, fx.Node | Call] = {}
        for node in self.nodes:
            item: fx.Node | Call = node
            for call in node.meta["call"].chain():
                if call.module is module and call.method == method:
                    found[id(item)] = item
                    break
                item = call
        return list(found.values())

    def child(self, module: nn.Module, item: fx.Node | Call) -> str | None:
        """The child of a module, or its method, that an item calls."""
        if isinstance(item, Call) and item.module is module:
            return item.method
        if isinstance(item, fx.Node) and item.op != "call_module":
            return None
        inner = item.module if isinstance(item, Call) else self.modules[str(item.target)]
        names = [n for n, c in module.named_children() if any(m is inner for m in c.modules())]
        return names[0] if names else None

    def owners(self) -> list[nn.Module]:
        return list(self.around.values())

    def touches(self, module: nn.Module) -> bool:
        return id(module) in self.around

    def is_whole(self, module: nn.Module, method: str) -> bool:
        """Whether all nodes are made inside the method: it may be called wherever one likes."""
        return self.called[id(module), method] == len(self.nodes)

    def is_run_of(self, module: nn.Module) -> bool:
        """Whether the nodes are layers of a Sequential, called one by one as it calls them."""
        if type(module).forward is not nn.Sequential.forward:
            return False
        nodes = sorted(self.nodes, key=self.order.__getitem__)
        if any(node.op != "call_module" or node.kwargs for node in nodes):
            return False
        called, layers = [self.modules[str(n.target)] for n in nodes], list(module.children())
        if called[0] not in layers or any(two.args != (one,) for one, two in pairwise(nodes)):
            return False
        start = layers.index(called[0])
        return layers[start : start + len(called)] == called

    def is_in_order(self, module: nn.Module) -> bool:
        """Whether the nodes are children of a Sequential in its order, as a loop over it has them.

        A loop may keep what it has in between. Networks do so where a stage ends.
        """
        if type(module).forward is not nn.Sequential.forward:
            return False
        names, every = self.row(module) or [], list(module._modules)
        start = every.index(names[0]) if names else 0
        return bool(names) and every[start : start + len(names)] == names

    def row(self, module: nn.Module) -> list[str] | None:
        """The children that hold the nodes, if each of them is given what the last one gives."""
        names: list[str] = []
        last: fx.Node | Call | None = None
        children = {id(child): name for name, child in module._modules.items()}
        for node in sorted(self.nodes, key=self.order.__getitem__):
            item = _item_of(node, module)
            inner = item.module if isinstance(item, Call) else None
            if isinstance(item, fx.Node) and item.op == "call_module":
                inner = self.modules[str(item.target)]
            if item is None or inner is None or id(inner) not in children:
                return None
            if item is last:
                continue
            if isinstance(item, Call) and item.method != "forward":
                return None
            given = [*item.args, *item.kwargs.values()]
            if len(given) != 1 or children[id(inner)] in names:
                return None
            before = last.result if isinstance(last, Call) else last
            if last is not None and given[0] is not before:
                return None
            names.append(children[id(inner)])
            last = item
        return names


def _prefixes(path: str) -> Iterator[str]:
    """The paths of the modules around a module."""
    while path:
        path = path.rpartition(".")[0]
        yield path


def _item_of(node: fx.Node, module: nn.Module) -> fx.Node | Call | None:
    """What a module's own code does when it makes a node: the node, or a call."""
    item: fx.Node | Call = node
    for call in node.meta["call"].chain():
        if call.module is module:
            return item
        item = call
    return None


def _run_by(module: nn.Module) -> Iterator[nn.Module]:
    """A module, or what it runs one after the other; a list runs nothing."""
    if type(module).forward is nn.Sequential.forward:
        for child in module.children():
            yield from _run_by(child)
    elif not isinstance(module, nn.ModuleList | nn.ModuleDict):
        yield module


def _is_plain(called: ast.AST) -> bool:
    """A local name, names from self on, or an element."""
    if isinstance(called, ast.Attribute):
        return _is_plain(called.value)
    if isinstance(called, ast.Subscript):
        return not isinstance(called.slice, ast.Slice) and _is_plain(called.value)
    if isinstance(called, ast.Call):
        of = called.func
        name = of.attr if isinstance(of, ast.Attribute) else getattr(of, "id", "")
        return name in ("getattr", "get_submodule", "super")
    return isinstance(called, ast.Name)


def _kind(module: nn.Module) -> Any:
    return type(module)


@cache
def _above(kind: Any, method: str) -> frozenset[str]:
    """The methods that a method asks the bases for, where the class has one of its own."""
    found = set()
    for function in definitions(kind, method):
        code, raw = code_of(function), inspect.unwrap(function).__code__
        names = code.above if code else names_in(raw) if "super" in raw.co_names else set()
        bases = [vars(base) for base in kind.__mro__ if base not in (nn.Module, object)]
        found |= {name for name in names if sum(name in base for base in bases) > 1}
    return frozenset(found)


def _steps_of(module: nn.Module, function: Any) -> list[_Step]:
    code = code_of(function)
    if code is None:  # no source: whatever it names, and all of a list
        code, named = Code(), names_in(inspect.unwrap(function).__code__)
        steps = [step for name in named for step in _follow(module, (name,), code)]
        lists = [step.module for step in steps if step.method == "forward"]
        return steps + [_Step(part) for owner in lists for part in _unpacked(owner, DEPTH)]
    found = [step for chain in code.called for step in _follow(module, chain, code)]
    for chain in code.read:
        if len(chain) == 1 and isinstance(getattr(type(module), chain[0], None), property):
            found += _methods(module, chain[0])
    found += [
        _Step(part)
        for owner in _values(module, code.held, code)
        for part in _unpacked(owner, code.depth)
    ]
    for value in _values(module, code.looked, code):
        for owner in value.modules():
            found += [_Step(c) for name, c in owner.named_children() if name in code.inner]
            found += [s for name in code.inner for s in _methods(owner, name)]
    return list(dict.fromkeys(found)) if code.held or code.looked else found


def _follow(module: nn.Module, chain: Chain, code: Code) -> list[_Step]:
    """Where a chain of names leads to."""
    owners = [module]
    for name in chain:
        named = {own for owner in owners for own in owner._modules}
        if name == LISTED:
            found = code.strings & named or named
        else:
            found = set(fnmatch.filter(named, name)) if ANY in name else {name}
        children = [
            child
            for owner in owners
            for own, child in owner._modules.items()
            if child is not None and own in found
        ]
        if not children:
            if name in RUNS:
                break
            return [step for owner in owners for step in _methods(owner, name)]
        owners = children
    direct = chain[0] if len(chain) == 1 and chain[0].isidentifier() else ""
    return [_Step(owner, name=direct, code=code if direct else None) for owner in owners]


def _values(module: nn.Module, chains: set[Chain], code: Code) -> Iterator[nn.Module]:
    """The modules that chains of names lead to, and those that their methods speak of."""
    for step in [step for chain in chains for step in _follow(module, chain, code)]:
        if step.method == "forward":
            yield step.module
            continue
        for function in definitions(_kind(step.module), step.method):
            inner = code_of(function) or Code()
            for part in [p for chain in inner.values for p in _follow(step.module, chain, inner)]:
                yield part.module


def _methods(owner: nn.Module, name: str) -> list[_Step]:
    """A method of one's own; what the constructor and the like do is no use of a model."""
    if name.startswith("__") or not definitions(_kind(owner), name):
        return []
    return [_Step(owner, name)]


def _unpacked(module: nn.Module, depth: int) -> Iterator[nn.Module]:
    """A module, and what lies in it if it is a list."""
    yield module
    if depth and _kind(module).forward in LISTS:
        for child in module.children():
            yield from _unpacked(child, depth - 1)
