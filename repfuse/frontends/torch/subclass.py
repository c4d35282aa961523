"""Methods written again, in a subclass that is made on the fly and pickles by its source text."""

from __future__ import annotations

import copyreg
import inspect
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import fx, nn

from repfuse.errors import RepfuseError
from repfuse.frontends.torch.argument_tests import HELPERS
from repfuse.frontends.torch.emit import Body, Method

__all__ = ["with_methods"]


ONE_EACH = threading.RLock()  # a cache alone makes two classes in two threads


def with_methods(module: nn.Module, methods: tuple[Method, ...]) -> None:
    """Give one module instance the methods; isinstance and the class's name stay."""
    if isinstance(module, fx.GraphModule):
        ((body,),) = (method.bodies for method in methods)
        module.graph = body.graph  # its code is made from it again
        return
    base, before = _origin(type(module))
    kept = tuple(method for method in before if method.name not in {m.name for m in methods})
    with ONE_EACH:
        object.__setattr__(module, "__class__", _subclass(base, kept + methods))


def _origin(kind: type) -> tuple[type, tuple[Method, ...]]:
    return getattr(kind, "_repfuse_origin", (kind, ()))


@cache
def _subclass(base: type, methods: tuple[Method, ...]) -> type:
    members: dict[str, Any] = {
        "_repfuse_origin": (base, methods),
        "__reduce_ex__": _reduce,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
    }
    for method in methods:
        members[method.name] = _function(getattr(base, method.name), method)
    return _derived(base, members)


class _Plain(nn.Module):
    """What a class is derived from until it has its base."""


def _derived(base: type, members: dict[str, Any]) -> type:
    """A subclass of which the base is not told: some note their subclasses, or allow none."""
    kind: Any = type.__new__(type(base), base.__name__, (_Plain,), members)
    try:
        kind.__bases__ = (base,)
    except TypeError:  # of another layout, as with slots
        return type(base.__name__, (base,), members)
    return kind  # type: ignore[no-any-return]


def _function(original: Callable[..., Any], method: Method) -> Callable[..., Any]:
    """The method from its source text, with the signature of the original."""
    bodies = []
    for body in method.bodies:
        space: dict[str, Any] = {}
        exec(compile(body.imports, "<repfuse imports>", "exec"), space)
        bodies.append(_compiled(body, space))
    signature = inspect.signature(original)
    only = method.bodies[0]
    lines = ["def rewritten(self"]
    space = {"_fail": _fail, "_defaults": {}, **HELPERS}
    lines[0] += _parameter_list(signature, only.parameters, space["_defaults"]) + "):"
    order = sorted(range(len(bodies)), key=lambda index: -len(method.bodies[index].tests))
    for index in order:  # what holds for any argument comes last
        body = method.bodies[index]
        space[f"_body{index}"] = bodies[index]
        call = f"_body{index}({', '.join(('self', *body.given))})"
        test = " and ".join(body.tests)
        lines.append(f"    if {test}:\n        return {call}" if test else f"    return {call}")
    if method.bodies[order[-1]].tests:
        lines.append(f"    _fail({method.name!r})")
    exec(compile("\n".join(lines), "<repfuse dispatch>", "exec"), space)
    function = space["rewritten"]
    function.__name__, function.__qualname__ = method.name, original.__qualname__
    function.__module__, function.__doc__ = original.__module__, original.__doc__
    result: Callable[..., Any] = function
    return result


def _compiled(body: Body, space: dict[str, Any]) -> Callable[..., Any]:
    function: Callable[..., Any] = fx.graph_module._forward_from_src(body.source, space)
    return function


def _parameter_list(
    signature: inspect.Signature, names: tuple[str, ...], defaults: dict[str, Any]
) -> str:
    """The parameters after self as source text, with the kinds and defaults of the original."""
    text, kinds = "", [signature.parameters[name].kind for name in names]
    for name, kind, following in zip(names, kinds, [*kinds[1:], None], strict=True):
        parameter = signature.parameters[name]
        if kind is parameter.KEYWORD_ONLY and ", *" not in text:
            text += ", *"
        text += f", {name}"
        if parameter.default is not parameter.empty:
            defaults[name] = parameter.default
            text += f"=_defaults[{name!r}]"
        if kind is parameter.POSITIONAL_ONLY and following is not kind:
            text += ", /"
    return text


def _fail(name: str) -> None:
    raise RepfuseError(
        f"{name} was rewritten for the arguments that it had when the model was traced; "
        "call it with those, or fuse the part of the model that calls it"
    )


def _reduce(self: nn.Module, protocol: Any) -> Any:
    """Pickle as the original class and the source text of the methods."""
    base, methods = _origin(type(self))
    reduced: Any = super(type(self), self).__reduce_ex__(protocol)
    function, args, *rest = reduced
    if function is copyreg.__newobj__ and args and args[0] is type(self):  # type: ignore[attr-defined]
        return (rebuild, (base, methods, *args[1:]), *rest)
    return (function, args, *rest)


def rebuild(base: type, methods: tuple[Method, ...], *args: Any) -> Any:
    """Make an instance of a rewritten class, for pickle and copy."""
    with ONE_EACH:
        kind = _subclass(base, methods)
    return kind.__new__(kind, *args)
