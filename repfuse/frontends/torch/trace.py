"""Record what a model computes: one symbolic trace that keeps the structure of its calls.

torch.fx records a flat list of nodes. To rewrite a model where it is, one has to know which
call of which module's method made each node; so the trace is a tree of `Call`s, whose items
are nodes and calls. A child that cannot be traced is rolled back, stays one opaque call, and
is tried by itself afterwards, and so are its children.
"""

from __future__ import annotations

import gc
import inspect
import operator as _operator
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import cache
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import fx, is_autocast_enabled, is_grad_enabled, nn
from torch.fx.proxy import Proxy

from repfuse.frontends.torch.alone import alone
from repfuse.frontends.torch.answers import Answers
from repfuse.frontends.torch.askers import from_torch
from repfuse.frontends.torch.calls import (
    Call,
    Read,
    Trace,
    Traces,
    calls_of,
    has_hooks,
    is_leaf,
)
from repfuse.frontends.torch.copies import tensors_by_path
from repfuse.frontends.torch.draws import Draws
from repfuse.frontends.torch.given import may_be_given
from repfuse.frontends.torch.instructions import only_tested
from repfuse.frontends.torch.patterns import Pattern, patterns_of
from repfuse.frontends.torch.proxies import RecordingProxy, is_surely_tensor, kept_in_attributes
from repfuse.frontends.torch.snapshot import Snapshot
from repfuse.frontends.torch.starts import CAUGHT, HARMLESS, followed
from repfuse.frontends.torch.tables import listed_tensors
from repfuse.frontends.torch.uses import asks_types, looks_up
from repfuse.frontends.torch.watch import ELSEWHERE, attribute_reads, suppressed, watched
from repfuse.interruption import undone

__all__ = ["trace_model"]


class ModuleTracer(fx.Tracer):
    """Traces a model and, where it or a part of it resists, its parts."""

    proxy_buffer_attributes = True

    def __init__(self, model: nn.Module, earlier: Draws | None = None) -> None:
        super().__init__()
        self.model = model
        self.earlier = earlier
        self.draws: Draws | None = None
        self.thread = threading.get_ident()
        self.paths: dict[int, list[str]] = {}
        modules = dict(model.named_modules(remove_duplicate=False))
        self.modules_by_path = modules
        for path, module in modules.items():
            self.paths.setdefault(id(module), []).append(path)
        self.tensor_names: dict[int, str] = {}
        for name, tensor in tensors_by_path(modules).items():
            self.tensor_names.setdefault(id(tensor), name)
        self.constants: dict[str, torch.Tensor] = {}
        self.failures: dict[str, str] = {}
        self.traces: list[Trace] = []
        self.current: Call | None = None
        self.log: list[fx.Node] = []
        self.pending: list[nn.Module] = []
        self.seen: set[int] = set()
        self.loose: set[int] = set()
        self.mode: tuple[bool, ...] = ()
        self.reads: list[Read] = []
        self.in_tables: dict[int, torch.Tensor] = {}
        self.listed: list[tuple[torch.Tensor, Call]] = []
        self.lists: dict[int, list[Call]] = {}
        self.proxies: list[weakref.ref[RecordingProxy]] = []
        self.faults: dict[Call, Exception] = {}
        self.guards: list[tuple[Call, Callable[[], bool]]] = []
        self.replaced: dict[int, tuple[Any, Any]] = {}

    def run(self) -> Traces:
        if isinstance(self.model, torch.jit.ScriptModule):
            return Traces(
                [], {}, self.paths, {"": "a TorchScript module has no Python code"}, set()
            )
        if not isinstance(getattr(type(self.model), "forward", None), FunctionType):
            return Traces([], {}, self.paths, {"": "its forward is no method of its class"}, set())
        snapshot = Snapshot(self.model)
        draws = self.draws = Draws(self.earlier)
        with undone(snapshot.restore), undone(draws.restore):
            self._wrap_methods()
            with watched(self._freeze, self._note_question, self.replaced), draws.watched():
                super().trace(self.model)
            changed = snapshot.restore()
            drew = draws.restore()
        failed = {id(self.modules_by_path[path]) for path in self.failures}
        for trace in self.traces:
            calls = list(calls_of(trace.call))
            called = {id(call.module) for call in calls}
            strangers = changed - called  # changed by the methods of a module around them
            for call in calls:
                if id(call.module) in failed:
                    reason = f"{call.method} is also called in a way that cannot be traced"
                    call.unknown = call.unknown or reason
                inside = strangers and any(id(m) in strangers for m in call.module.modules())
                if id(call.module) in changed or inside:
                    reason = f"{call.method} changes attributes of the module"
                    call.frozen = call.frozen or reason
                    kind: Any = type(call.module)
                    modules = call.module.modules() if inside else [call.module]
                    names = [name for m in modules for name in snapshot.names.get(id(m), ())]
                    if any(looks_up(kind, name) for name in names):
                        call.varies = call.varies or reason
                if drew:
                    call.frozen = call.frozen or "the trace drew random numbers"
        return Traces(
            self.traces,
            self.constants,
            self.paths,
            self.failures,
            self.loose,
            self.reads,
            self.listed,
            self.lists,
        )

    # What torch.fx calls.

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        def session() -> None:
            answers = Answers(self._tensor_of, self.note_type_question, self._note_fault)
            with (
                attribute_reads(self.model, self._note_read, answers, self.replaced),
                listed_tensors(
                    self.model, self.in_tables, self._note_tensor, self._note_list, self._note_kind
                ),
                suppressed(self._owner, self.guards, self._note_fault, HARMLESS, CAUGHT),
                followed(self.replaced, self._note_fault, self._owner, self.guards),
            ):
                self._session()

        return session, []

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any
    ) -> Proxy:
        if rest or options:
            return super().create_proxy(kind, target, args, kwargs, *rest, **options)
        given = self.create_arg(args), {name: self.create_arg(a) for name, a in kwargs.items()}
        return self.proxy(self.create_node(kind, target, *given))

    def iter(self, obj: Proxy) -> Iterator[Any]:
        """A split into pieces of given sizes has as many of them, whatever the input."""
        node, name = obj.node, getattr(obj.node.target, "__name__", obj.node.target)
        sizes = node.args[1] if len(node.args) > 1 else node.kwargs.get("split_size_or_sections")
        sizes = node.kwargs.get("split_size", sizes)
        if name == "split" and isinstance(sizes, tuple | list):
            return iter([_operator.getitem(obj, index) for index in range(len(sizes))])
        try:
            return super().iter(obj)
        except Exception as error:
            raise self.fault(error) from None

    def to_bool(self, obj: Proxy) -> bool:
        try:
            return super().to_bool(obj)
        except Exception as error:
            raise self.fault(error) from None

    def proxy(self, node: fx.Node) -> Proxy:
        made = RecordingProxy(node, self)
        self.proxies.append(weakref.ref(made))
        return made

    def _is_traced(self) -> bool:
        """Whether this is the thread of the trace. torch.fx looks at what all of them do."""
        return threading.get_ident() == self.thread

    def path_of_module(self, mod: nn.Module) -> str:
        if id(mod) not in self.paths:
            raise NameError("the module is not part of the model")
        return self.paths[id(mod)][0]

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if isinstance(attr_val, torch.Tensor) and self.current is not None and self._is_traced():
            name = self.tensor_names.get(id(attr_val))
            if name is not None:
                return self.create_proxy("get_attr", name, (), {})
        return attr_val

    def create_arg(self, a: Any) -> Any:
        kind = type(a)
        if kind is RecordingProxy:
            return a.node
        if a is None or kind in (int, float, str, bool):
            return a
        if isinstance(a, np.generic):
            return a.item()
        if kind is tuple or kind is list:
            return kind([self.create_arg(part) for part in a])
        if isinstance(a, torch.Tensor):
            if id(a) in self.in_tables:
                self._note_tensor(a, recorded=True)
            name = self.tensor_names.get(id(a)) or self.tensor_attrs.get(a)
            if name is None:
                name = f"_repfuse_constant_{len(self.constants)}"
                self.constants[name] = a
                self.tensor_attrs[a] = name
            if name in self.constants:
                self._freeze("the trace holds a tensor that the method makes itself")
            return self.create_node("get_attr", name, (), {})
        return super().create_arg(a)

    def create_node(
        self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any
    ) -> fx.Node:
        if not self._is_traced():
            raise NotImplementedError(ELSEWHERE)
        # The base adds what nobody reads here, and searches the arguments for symbolic numbers.
        node = self.graph.create_node(kind, target, (), {}, *rest, **options)
        if args:
            node.args = args
        if kwargs:
            node.kwargs = kwargs
        if self.guards:
            self.note_guarded()
        if self.current is not None:
            node.meta["call"] = self.current
            self.current.items.append(node)
            self.log.append(node)
            modes = _modes()
            if modes != self.mode:
                # Without gradients the values are the same; autocast changes them.
                node.meta["mode"] = modes[1:] != self.mode[1:]
                self._freeze("the method enters a grad or autocast mode")
        return node

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self.current is None or not self._is_traced():
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        self._note_code()
        kind: Any = type(m)
        if _overrides_call(kind):
            self._freeze("it calls a module whose class has a __call__ of its own")
        if is_leaf(m):
            return self.create_proxy("call_module", path, args, kwargs)
        if path in self.failures or has_hooks(m):
            return self._opaque_call(m, path, args, kwargs)
        mark = len(self.log)
        call = Call(m, path, "forward", self.current, args, kwargs)
        try:
            result = self._inside(call, lambda: forward(*args, **kwargs))
        except Exception as error:
            self._roll_back(mark, call)
            if isinstance(error, RecursionError) and _is_deep(sys._getframe()):
                raise  # of who calls it
            self.failures[path] = _first_line(error)
            return self._opaque_call(m, path, args, kwargs)
        return result

    def _note_read(self, module: nn.Module, name: str, value: Any) -> None:
        """A layer was not called, but looked into."""
        if self.current is not None:
            node = value.node if type(value) is RecordingProxy else None
            self.reads.append(Read(module, name, node, self.current))

    def _note_tensor(self, tensor: torch.Tensor, recorded: bool) -> None:
        """A parameter or buffer was listed, and something was computed from it."""
        if self.current is not None:
            self.listed.append((tensor, self.current))
            if not recorded:
                self._freeze("it computes with listed parameters or buffers")

    def _note_list(self, module: nn.Module) -> None:
        """The children of a module were listed, or counted."""
        if self.current is not None:
            self.lists.setdefault(id(module), []).append(self.current)

    def _note_code(self) -> None:
        """Whether the code between the current call and the call of a module asks for types."""
        current, frame = self.current, sys._getframe(2)
        assert current is not None
        while not current.asks_types and frame.f_code not in BORDERS:
            if not from_torch(frame):
                current.asks_types = asks_types(frame.f_code)
            if frame.f_back is None:
                break
            frame = frame.f_back

    def note_type_question(self, node: fx.Node) -> None:
        """User code asks for the type of a value, which may be another one at another time."""
        if self.current is None:
            return
        given: list[fx.Node] = []
        fx.node.map_arg((self.current.args, self.current.kwargs), given.append)
        if node in given or not is_surely_tensor(node, self.modules_by_path):
            for call in self.current.chain():
                call.unknown = call.unknown or "it asks for the type of what it is given"
                if call.method == "forward":
                    break

    # What cannot be answered truly. The method that asks is not traced, whatever it makes of it.

    def fault(self, error: Exception) -> Exception:
        """The error, to be raised, which nobody may catch and go on."""
        self._note(error, self._owner())
        return error

    def note_guarded(self) -> None:
        """Something is recorded that may raise an error where it is computed."""
        for owner, inside in self.guards:
            if inside():
                self._note_fault(CAUGHT, owner)

    def _note_fault(self, reason: str, owner: Call | None = None) -> None:
        self._note(NotImplementedError(reason), owner or self._owner())

    def _note(self, error: Exception, owner: Call | None) -> None:
        if owner is not None:  # without its traceback, which would keep all values alive
            self.faults.setdefault(owner, type(error)(*error.args))

    def _owner(self) -> Call | None:
        """The call that is traced or not as a whole."""
        if self.current is None or not self._is_traced():
            return None
        return next(
            (call for call in self.current.chain() if call.method == "forward"), self.current
        )

    def _check_faults(self, call: Call) -> None:
        self.guards[:] = [guard for guard in self.guards if guard[0] is not call]
        if call in self.faults:
            raise self.faults.pop(call)

    def _tensor_of(self, node: fx.Node) -> torch.Tensor | None:
        path, _, name = str(node.target).rpartition(".")
        owner = self.modules_by_path.get(path)
        tables = () if owner is None else (owner._parameters, owner._buffers)
        return next((table[name] for table in tables if name in table), None)

    def _note_question(self, reason: str) -> None:
        """The answer may be another one at another time, and so what runs after which."""
        self._freeze(reason)
        if self.current is not None:
            self.current.varies = self.current.varies or reason

    # The session: every root with every argument pattern.

    def _session(self) -> None:
        self.pending = [self.model]
        while self.pending:
            module = self.pending.pop(0)
            if id(module) in self.seen:
                continue
            self.seen.add(id(module))
            if is_leaf(module):
                self.loose.add(id(module))
            if is_leaf(module) or not self._trace_root(module):
                self.pending.extend(module.children())
        self.graph = fx.Graph(tracer_cls=type(self))

    def _trace_root(self, module: nn.Module) -> bool:
        path = self.paths[id(module)][0]
        patterns, unknown = patterns_of(module)
        unknown = unknown or self._open_options(module, patterns)
        traced: list[Trace] = []
        for pattern in patterns:
            waiting = list(self.pending)
            try:
                traced.append(self._trace_pattern(module, path, pattern))
            except Exception as error:
                if not traced:
                    self.pending = waiting
                    self.failures[path] = _first_line(error)
                    return False
                unknown = unknown or f"forward with {pattern.text} cannot be traced"
        for trace in traced:
            if unknown:
                for call in calls_of(trace.call):
                    if call is trace.call or _has_literals(call):
                        call.unknown = unknown
        self.traces.extend(traced)
        return True

    def _open_options(self, module: nn.Module, patterns: list[Pattern]) -> str | None:
        """What the method may be given that it was not traced with, by code nobody has traced."""
        if module is self.model:
            return None  # its caller is told which arguments it takes
        tested = only_tested(module.forward)
        options = [
            name
            for name, value in patterns[0].arguments.items()
            if isinstance(value, bool) and name not in patterns[0].given and name not in tested
        ]
        paths = self.paths[id(module)]
        if options and may_be_given(paths, self.modules_by_path, module.forward, options):
            return f"its caller, which cannot be traced, may give {options[0]} another value"
        return None

    def _trace_pattern(self, module: nn.Module, path: str, pattern: Pattern) -> Trace:
        self.graph = fx.Graph(tracer_cls=type(self))
        self.log = []
        self.mode = _modes()
        call = Call(module, path, "forward", None)
        self.current = call
        try:
            arguments = {
                name: self.create_proxy("placeholder", name, (), {})
                if name in pattern.given
                else value
                for name, value in pattern.arguments.items()
            }
            call.items.clear()
            plain, named = pattern.split(arguments)
            call.args = fx.node.map_aggregate(tuple(plain), _unwrap)
            call.kwargs = fx.node.map_aggregate(named, _unwrap)
            result = module.forward(*plain, **named)
            self._check_faults(call)
            plain.clear()
            named.clear()
            if _is_odd(result):
                self._freeze("it returns a container of a class of its own")
            call.result = fx.node.map_aggregate(result, _unwrap)
            kept = kept_in_attributes(module)
            output = self.create_node("output", "output", (self.create_arg(result),), {})
            call.items.pop()
        finally:
            self.current = None
            self.guards.clear()
            self.faults.clear()
        arguments, result = {}, None
        self._find_strays(call, kept)
        return Trace(call, pattern, self.graph, output, kept)

    def _find_strays(self, call: Call, kept: dict[str, list[fx.Node]]) -> None:
        """Values that still live after the trace, and in no attribute: somebody else has them."""
        inside = {node for nodes in kept.values() for node in nodes}

        def strays() -> list[fx.Node]:
            alive = [proxy.node for ref in self.proxies if (proxy := ref()) is not None]
            return [node for node in alive if node not in inside and node.graph is self.graph]

        found = strays()
        if found:  # perhaps only garbage that refers to itself
            gc.collect()
            found = strays()
        self.proxies.clear()
        if found:
            kept["outside of the model"] = found
            for other in calls_of(call):
                other.frozen = other.frozen or "forward keeps a value outside of the model"

    # Calls and methods.

    def _inside(self, call: Call, run: Callable[[], Any]) -> Any:
        """Run inside a call; what it records becomes the call's items."""
        outer = self.current
        assert outer is not None
        outer.items.append(call)
        if _is_odd([*call.args, *call.kwargs.values()]):
            self._freeze("it passes on a container of a class of its own")
        self.current = call
        call.args = fx.node.map_aggregate(call.args, _unwrap)
        call.kwargs = fx.node.map_aggregate(call.kwargs, _unwrap)
        try:
            result = run()
            if call.method == "forward":
                self._check_faults(call)
            if _is_odd(result):
                self._freeze("it returns a container of a class of its own")
        finally:
            self.current = outer
        call.result = fx.node.map_aggregate(result, _unwrap)
        if call.varies and not _is_made_in(call):
            outer.varies = outer.varies or call.varies
        if not call.items:
            outer.items.pop()
        return result

    def _opaque_call(self, module: nn.Module, path: str, args: Any, kwargs: Any) -> Any:
        if id(module) not in self.seen:
            self.pending.append(module)
        return self.create_proxy("call_module", path, args, kwargs)

    def _roll_back(self, mark: int, call: Call) -> None:
        for node in reversed(self.log[mark:]):
            self.graph.erase_node(node)
        del self.log[mark:]
        assert call.parent is not None
        if call in call.parent.items:
            call.parent.items.remove(call)

    def _note_kind(self) -> None:
        self._freeze("it asks for the dtype or device of weights that it lists")

    def _freeze(self, reason: str) -> None:
        if self.current is not None:
            for call in self.current.chain():
                call.frozen = call.frozen or reason
                if call.method == "forward":
                    break

    def _wrap_methods(self) -> None:
        """Make calls of other methods than forward visible; the snapshot undoes it."""
        names: dict[type, list[str]] = {}
        for module in self.model.modules():
            kind = type(module)
            if kind not in names:
                names[kind] = [] if is_leaf(module) else _methods(kind)
            for name in names[kind]:
                if name not in module.__dict__:
                    module.__dict__[name] = self._wrapped(module, name)
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not is_leaf(module):
                _skip_input_check(module)

    def _wrapped(self, module: nn.Module, name: str) -> Callable[..., Any]:
        method = getattr(type(module), name)

        def run(*args: Any, **kwargs: Any) -> Any:
            if self.current is None:
                return method(module, *args, **kwargs)
            path = self.paths[id(module)][0]
            call = Call(module, path, name, self.current, args, kwargs)
            return self._inside(call, lambda: method(module, *args, **kwargs))

        return run


def trace_model(model: nn.Module) -> Traces:
    """Trace a model in eval mode; its attributes are as they were afterwards."""
    with alone(), torch.no_grad(), torch.enable_grad():
        tracer = ModuleTracer(model)
        traces = tracer.run()
        if tracer.draws is not None and tracer.draws.unsure:
            return ModuleTracer(model, tracer.draws).run()
        return traces


BORDERS = {
    ModuleTracer._inside.__code__, ModuleTracer._trace_pattern.__code__,
    ModuleTracer._session.__code__,
}  # fmt: skip


def _is_deep(frame: Any) -> bool:
    """Whether half of all the calls that may lie in one another already do."""
    left = sys.getrecursionlimit() // 2
    while frame is not None and left:
        frame, left = frame.f_back, left - 1
    return not left


@cache
def _overrides_call(kind: Any) -> bool:
    """Whether calling a module runs code of the class around its forward."""
    bases = kind.__mro__[: kind.__mro__.index(nn.Module)]
    return any("__call__" in vars(base) for base in bases)


def _is_odd(value: Any) -> bool:
    """Whether a container is of a class that what was recorded would not make again."""
    if isinstance(value, dict):
        return type(value) is not dict or any(map(_is_odd, value.values()))
    if isinstance(value, tuple | list):
        known = type(value) in (tuple, list) or hasattr(value, "_fields")
        return not known or any(map(_is_odd, value))
    return False


def _is_made_in(call: Call) -> bool:
    """Whether all that a call returns was recorded in it, and nothing only passes through."""
    leaves: list[Any] = []
    fx.node.map_aggregate(call.result, leaves.append)
    return all(isinstance(leaf, fx.Node) and call in _calls_around(leaf) for leaf in leaves)


def _calls_around(node: fx.Node) -> list[Call]:
    return list(node.meta["call"].chain()) if "call" in node.meta else []


def _has_literals(call: Call) -> bool:
    """Whether an argument is a plain value, which the caller may have got from its own caller."""
    parts = (*call.args, *call.kwargs.values())
    return any(part is not None and not isinstance(part, fx.Node) for part in parts)


def _unwrap(value: Any) -> Any:
    return value.node if isinstance(value, Proxy) else value


def _modes() -> tuple[bool, ...]:
    return (
        is_grad_enabled(),
        is_autocast_enabled("cpu"),
        is_autocast_enabled("cuda"),
    )


def _methods(kind: type) -> list[str]:
    found = []
    for base in kind.__mro__:
        if base is nn.Module or base.__module__.startswith("torch.nn"):
            continue
        for name, member in vars(base).items():
            own = inspect.isfunction(member) and not name.startswith("__") and name != "forward"
            if own and not hasattr(nn.Module, name) and name not in found:
                found.append(name)
    return found


def _skip_input_check(module: Any) -> None:
    """A batch norm subclass that calls torch's forward: its check of the axes is no data flow."""
    if type(module)._check_input_dim.__module__.startswith("torch.nn.modules"):
        module.__dict__["_check_input_dim"] = lambda input: None


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
