"""Write a method again from what was recorded of it, with its edits.

The new method lives in a subclass of the module's own class that is made on the fly, has the
original signature and pickles by its source text.
"""

from __future__ import annotations

import contextlib
import inspect
import keyword
import operator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import fx, nn
from torch.package.importer import sys_importer

from repfuse.frontends.torch.argument_tests import argument_tests, nodes_in
from repfuse.frontends.torch.calls import Call
from repfuse.frontends.torch.edits import Edit
from repfuse.frontends.torch.faults import CannotEmit
from repfuse.frontends.torch.instructions import only_tested
from repfuse.frontends.torch.lowered import Lowered
from repfuse.frontends.torch.norms import bare_arguments
from repfuse.frontends.torch.patterns import none_checked
from repfuse.frontends.torch.usage import Usage
from repfuse.graph import Value
from repfuse.mixing import gates_of
from repfuse.operators import Mixed
from repfuse.select import Term, is_skip

__all__ = ["Body", "Method", "is_writable", "write_body"]

PLAIN = (*fx.node.base_types, fx.Node, type(None), type(...), slice, range, bytes, Enum)

HARMLESS = {
    getattr, int, "size", "dim", operator.getitem, operator.add, operator.sub, operator.mul,
    operator.floordiv, operator.mod,
}  # fmt: skip


@dataclass(frozen=True)
class Body:
    """One traced argument pattern of a method: source text of a function, and when it holds.

    given: the parameters that the function takes. tests: what must be true of the arguments, as
    Python expressions. graph: the same as a graph, for a module that runs one.
    """

    source: str
    imports: str
    parameters: tuple[str, ...]
    given: tuple[str, ...]
    tests: tuple[str, ...]
    graph: fx.Graph = field(compare=False, repr=False)

    def __reduce__(self) -> Any:  # pickles without the graph, which the source text holds
        text = (self.source, self.imports, self.parameters, self.given, self.tests)
        return Body, (*text, fx.Graph())

    def does_as(self, other: Body) -> bool:
        """Whether both run the same operations, whatever their variables are called."""
        return _steps(self.graph) == _steps(other.graph)


@dataclass(frozen=True)
class Method:
    """A method written again, one body per argument pattern."""

    name: str
    bodies: tuple[Body, ...]


class BodyWriter:
    """Copies the items of one call into a new fx graph, with the edits applied."""

    def __init__(
        self,
        lowered: Lowered,
        call: Call,
        edits: dict[Value, Edit],
        removed: set[fx.Node],
        names: dict[tuple[Value, int], str],
        usage: Usage,
    ) -> None:
        self.inlined, self.bare = usage.inlined, usage.bare
        self.lowered = lowered
        self.call = call
        self.edits = edits
        self.removed = removed
        self.names = names
        self.graph = fx.Graph()
        self.nodes: dict[fx.Node, fx.Node] = {}
        self.values: dict[Value, fx.Node] = {}
        self.own_nodes: set[fx.Node] = set(call.nodes())
        self.replaced = [edit for edit in edits.values() if not edit.bares]

    def write(self) -> Body:
        signature = inspect.signature(getattr(type(self.call.module), self.call.method))
        given, tests = self._parameters(signature)
        for item in self.call.items:
            self._item(item)
        results = self.lowered.results.get(self.call, {})
        _check_result(self.call.result)
        self.graph.output(
            fx.node.map_arg(self.call.result, lambda node: self._map(node, results.get(node)))
        )
        self._drop_unused()
        code = self.graph.python_code("self")
        imports = _imports(code.globals)
        parameters = tuple(signature.parameters)[1:]  # the first is the module itself
        return Body(code.src, imports, parameters, given, tests, self.graph)

    def _parameters(self, signature: inspect.Signature) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The arguments that hold tensors, and what must be true of all to run this body."""
        if any(
            parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            for parameter in signature.parameters.values()
        ):
            raise CannotEmit(f"{self.call.method} takes any number of arguments")
        if "self" in list(signature.parameters)[1:]:
            raise CannotEmit(f"{self.call.method} calls another argument self")
        bound = signature.bind(self.call.module, *self.call.args, **self.call.kwargs)
        bound.apply_defaults()
        arguments = dict(list(bound.arguments.items())[1:])
        given = [name for name, argument in arguments.items() if nodes_in(argument)]
        for name in given:
            self._bind(arguments[name], self.graph.placeholder(name))
        method = getattr(type(self.call.module), self.call.method)
        maybe_none, tested = none_checked(method), only_tested(method)
        tests = [
            f"{name} is not None"
            for name in given
            if isinstance(arguments[name], fx.Node) and name in maybe_none
        ]
        return tuple(given), (*tests, *argument_tests(arguments, tested))

    def _bind(self, structure: Any, expression: fx.Node) -> None:
        """Give names to the nodes inside an argument or a result."""
        if isinstance(structure, fx.Node):  # the same node twice: a test asks that it is
            self.nodes.setdefault(structure, expression)
            value = self.lowered.value_of.get(structure)
            if value is not None:
                self.values.setdefault(value, expression)
        elif isinstance(structure, tuple | list):
            for index, part in enumerate(structure):
                self._bind_part(part, expression, index)
        elif isinstance(structure, dict):
            for key, part in structure.items():
                self._bind_part(part, expression, key)

    def _bind_part(self, part: Any, whole: fx.Node, key: Any) -> None:
        found: list[fx.Node] = []
        fx.node.map_arg(part, found.append)
        if found:
            self._bind(part, self.graph.call_function(operator.getitem, (whole, key)))

    def _item(self, item: fx.Node | Call) -> None:
        if isinstance(item, Call):
            self._call(item)
            return
        value = self.lowered.value_of.get(item)
        root = self.lowered.root_of.get(item)
        if root in self.edits and self.edits[root].node is item:
            self._apply_moved(self.edits[root], item)
            return
        edit = self.edits.get(value) if value is not None else None
        if edit is not None and edit.bares:
            self._copy(item)
        elif edit is not None and edit.node is item:
            self._apply(edit)
            self.nodes[item] = self.values[edit.value]
        elif item in self.removed or self.lowered.constants.is_constant(item):
            return  # constants are written where something reads them
        elif not self._only_about_removed(item):
            self._copy(item)

    def _call(self, call: Call) -> None:
        inside = list(call.nodes())
        for edit in self.replaced:
            if call in edit.node.meta["call"].chain():
                self._check_left_out(inside, edit)
                self._apply(edit)
                self._rename(call, edit)
                return
        data = [node for node in inside if node in self.lowered.value_of]
        if data and all(node in self.removed for node in data):
            return
        if inside and all(self.lowered.constants.is_constant(node) for node in inside):
            return  # what it computes is written where something reads it
        if call in self.inlined:
            for item in call.items:
                self._item(item)
            return
        path = self._relative(call.path)
        given = self.lowered.given.get(call, {})
        args, kwargs = self._argument(call.args, given), self._argument(call.kwargs, given)
        if call.method == "forward":
            made = self.graph.call_module(path, args, kwargs)
        else:
            method = self.graph.get_attr(f"{path}.{call.method}".lstrip("."))
            made = self.graph.call_function(operator.call, (method, *args), kwargs)
        self._bind(call.result, made)

    def _check_left_out(self, inside: list[fx.Node], edit: Edit) -> None:
        """A call that an edit stands for does nothing else: it may change what it is given."""
        for node in inside:
            value = self.lowered.value_of.get(node, edit.value)
            constant = self.lowered.constants.is_constant(node)
            if value != edit.value and node not in self.removed and not constant:
                text = "also has to run, and the call that runs it would go"
                raise CannotEmit(f"{node.name} {text}")

    def _argument(self, argument: Any, given: dict[fx.Node, Value]) -> Any:
        """What a call was given, as it can be written: nodes, modules, literals."""
        if isinstance(argument, fx.Node):
            return self._map(argument, given.get(argument))
        if isinstance(argument, nn.Module):
            paths = self.lowered.traces.paths.get(id(argument))
            if paths is None:
                raise CannotEmit("a method is given a module that is not part of the model")
            return self.graph.get_attr(self._relative(paths[0]))
        if isinstance(argument, tuple | list):
            return type(argument)([self._argument(part, given) for part in argument])
        if isinstance(argument, dict):
            return {name: self._argument(part, given) for name, part in argument.items()}
        if not isinstance(argument, fx.node.base_types) and argument is not None:
            raise CannotEmit(f"a method is given a {type(argument).__name__}")
        return argument

    def _rename(self, call: Call, edit: Edit) -> None:
        """The nodes that a call returned, and that mean the edited value."""
        found: list[fx.Node] = []
        fx.node.map_arg(call.result, found.append)
        for node in found:
            if self.lowered.value_of.get(node) == edit.value:
                self.nodes[node] = self.values[edit.value]

    def _only_about_removed(self, node: fx.Node) -> bool:
        """A check of the shape of something that is gone, with nobody else reading it."""
        if node in self.lowered.value_of or node.op == "output":
            return False
        sources = [source for source in node.all_input_nodes if source.op != "get_attr"]
        return (
            bool(sources)
            and any(
                source in self.removed
                or (source not in self.lowered.value_of and self._only_about_removed(source))
                for source in sources
            )
            and all(
                user not in self.lowered.value_of or user in self.removed for user in node.users
            )
        )

    def _apply(self, edit: Edit) -> None:
        total: fx.Node | None = None
        for index, term in enumerate(edit.terms):
            source = self._source(term.source)
            if not is_skip(term):
                given = (source, *self._factors(term))
                source = self.graph.call_module(self.names[edit.value, index], given)
            total = (
                source if total is None else self.graph.call_function(operator.add, (total, source))
            )
        assert total is not None
        self.values[edit.value] = total

    def _factors(self, term: Term) -> list[fx.Node]:
        """What else a layer with a mixed kernel reads."""
        if not isinstance(term.operator, Mixed):
            return []
        gates, base = gates_of(term.operator)
        if base is not None:
            with contextlib.suppress(CannotEmit):
                return [self._source(base)]
        return [self._source(gate.value) for gate in gates]

    def _apply_moved(self, edit: Edit, node: fx.Node) -> None:
        """An edit where a moved form of the source is read, and one of the value is made."""
        wanted = edit.terms[0].source, self.lowered.rooted[edit.value]
        at_hand = [name for name in self.nodes if self.lowered.form(name) == wanted]
        if at_hand:
            made = self.nodes[at_hand[0]]
        else:
            reads = self.lowered.reads.get(node, {})
            moved = [name for name, value in reads.items() if value in self.lowered.moved]
            if len(moved) != 1 or self.lowered.graph.operands(edit.value) != wanted[:1]:
                raise CannotEmit("a source of the merged branches is not at hand in this layout")
            made = self._map(moved[0], reads[moved[0]])
        if not edit.passes:
            made = self.graph.call_module(self.names[edit.value, 0], (made,))
        self.nodes[node] = self.values[self.lowered.value_of[node]] = made

    def _source(self, value: Value) -> fx.Node:
        if value in self.values:
            return self.values[value]
        for node, made in self.nodes.items():
            if self.lowered.value_of.get(node) == value:
                return made
        for name in self.lowered.names_of.get(value, ()):
            if name in self.nodes:
                return self.nodes[name]
        raise CannotEmit("a source of the merged branches is not at hand")

    def _copy(self, node: fx.Node) -> None:
        target, reads = node.target, self.lowered.reads.get(node, {})
        args, kwargs = node.args, node.kwargs
        if node in self.bare:
            args, kwargs = bare_arguments(target, args, kwargs)
        args, kwargs = fx.node.map_arg(
            (args, kwargs), lambda source: self._map(source, reads.get(source))
        )
        if node.op in ("call_module", "get_attr"):
            target = self._relative(str(target))
        made = self.graph.create_node(node.op, target, args, kwargs, name=node.name)
        self._bind(node, made)

    def _map(self, node: fx.Node, value: Value | None) -> fx.Node:
        """What stands for a node that is read while it means `value`."""
        changed = value is not None and value != self.lowered.value_of.get(node)
        if changed and value in self.values:  # the node itself may have become another tensor
            return self.values[value]
        if node in self.nodes:
            return self.nodes[node]
        if node.op == "get_attr":
            made = self.graph.get_attr(self._relative(str(node.target)))
            self.nodes[node] = made
            return made
        if self.lowered.constants.is_constant(node):
            self._copy(node)
            return self.nodes[node]
        if value is None:
            value = self.lowered.value_of.get(node)
        if value is not None and value in self.values:
            return self.values[value]
        if node not in self.lowered.value_of and node in self.own_nodes:
            self._copy(node)
            return self.nodes[node]
        raise CannotEmit(f"{node.name} is read, but not made any more")

    def _relative(self, path: str) -> str:
        own = self.call.path
        if not is_writable(path):
            raise CannotEmit(f"{path} has a Python keyword as a name")
        if not own:
            return path
        if path == own:
            return ""
        for other in self.lowered.traces.paths[id(self.call.module)]:
            if path.startswith(f"{other}."):
                return path[len(other) + 1 :]
        raise CannotEmit(f"it uses {path}, which belongs to another module")

    def _drop_unused(self) -> None:
        """Indexing, attribute reads and arithmetic with sizes that nobody needs any more.

        Tensors that nobody ever needed stay: they kept what they read from being merged, and
        without them a second call would merge more.
        """
        known, made = self.lowered.value_of, self.nodes
        idle = {made[node] for node in made if node in known and not node.users}
        for node in reversed(list(self.graph.nodes)):
            harmless = node.op == "get_attr" or node.target in HARMLESS
            if harmless and not node.users and node not in idle:
                self.graph.erase_node(node)


def write_body(
    lowered: Lowered,
    call: Call,
    edits: dict[Value, Edit],
    removed: set[fx.Node],
    names: dict[tuple[Value, int], str],
    usage: Usage,
) -> tuple[Body, fx.Graph]:
    """The body of a recorded call with its edits; CannotEmit where it cannot be written."""
    writer = BodyWriter(lowered, call, edits, removed, names, usage)
    return writer.write(), writer.graph


def _check_result(value: Any) -> None:
    """A module that is returned may be called by whoever gets it; of an object nobody can write
    how it was made."""
    if isinstance(value, tuple | list):
        for part in value:
            _check_result(part)
    elif isinstance(value, dict):
        for part in value.values():
            _check_result(part)
    elif isinstance(value, torch.Tensor) or not isinstance(value, PLAIN):
        raise CannotEmit(f"its result holds a {type(value).__name__}")


def is_writable(path: str) -> bool:
    """Whether code can name the path; torch.fx takes care of all names but Python's own."""
    return not any(keyword.iskeyword(name) for name in path.split("."))


def _steps(graph: fx.Graph) -> list[Any]:
    """The nodes of a graph, each read by its place and not by its name."""
    places = {node: place for place, node in enumerate(graph.nodes)}

    def place_of(node: fx.Node) -> str:
        return f"%{places[node]}"

    return [
        (node.op, str(node.target), repr(fx.node.map_arg((node.args, node.kwargs), place_of)))
        for node in graph.nodes
        if node.op != "placeholder" or node.users
    ]


def _imports(names: dict[str, Any]) -> str:
    try:
        block: str = fx.graph_module._format_import_block(names, sys_importer)
    except Exception as error:
        raise CannotEmit(f"a function that it calls cannot be imported: {error}") from error
    return block
