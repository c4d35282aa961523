"""What a trace consists of: the tree of calls of modules' methods, and which modules are leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn

from repfuse.frontends.torch.mixed import MixedConv
from repfuse.frontends.torch.patterns import Pattern

__all__ = [
    "LISTS",
    "Call",
    "Read",
    "Trace",
    "Traces",
    "calls_of",
    "has_hooks",
    "is_entry_point",
    "is_leaf",
    "is_plain",
    "is_torch_class",
    "is_weight_hook",
]


@dataclass(eq=False)
class Call:
    """One execution of one method of one module during the trace.

    args, kwargs and result hold the fx nodes that were passed. `frozen` says why the method
    must not be written again from what was recorded, `unknown` why it may do something else
    than what was recorded. varies: it may run its layers in another way next time, by what it
    keeps. asks_types: its code asks for types, perhaps those of its layers.
    """

    module: nn.Module
    path: str
    method: str
    parent: Call | None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    items: list[fx.Node | Call] = field(default_factory=list)
    result: Any = None
    frozen: str | None = None
    unknown: str | None = None
    varies: str | None = None
    asks_types: bool = False

    def nodes(self) -> Iterator[fx.Node]:
        for item in self.items:
            if isinstance(item, Call):
                yield from item.nodes()
            else:
                yield item

    def chain(self) -> Iterator[Call]:
        """This call and the calls around it, innermost first."""
        call: Call | None = self
        while call is not None:
            yield call
            call = call.parent


@dataclass(eq=False)
class Trace:
    """One call of a module that nothing else was traced around, for one argument pattern.

    kept: the nodes that are kept in an attribute of a module, by the attribute's name.
    """

    call: Call
    pattern: Pattern
    graph: fx.Graph
    output: fx.Node
    kept: dict[str, list[fx.Node]] = field(default_factory=dict)


@dataclass(frozen=True)
class Read:
    """A layer's attribute that traced code looked up; node: what it got, if that is a tensor."""

    module: nn.Module
    name: str
    node: fx.Node | None
    call: Call


@dataclass
class Traces:
    """All that was traced of a model.

    constants: tensors that the traced code made. paths: every path of a module. failures: why
    a module could not be traced. loose: torch's layers that a module calls which could not be
    traced, so that nobody knows what stands around them; loose_methods: methods of which the
    same is true. reads: where a layer was looked into. listed: tensors that code took from a
    table of them, and computed with. lists: the calls whose code lists the children of a module.
    """

    traces: list[Trace]
    constants: dict[str, torch.Tensor]
    paths: dict[int, list[str]]
    failures: dict[str, str]
    loose: set[int]
    reads: list[Read] = field(default_factory=list)
    listed: list[tuple[torch.Tensor, Call]] = field(default_factory=list)
    lists: dict[int, list[Call]] = field(default_factory=dict)
    loose_methods: set[tuple[int, str]] = field(default_factory=set)

    def reads_of(self, module: nn.Module) -> list[Read]:
        """Where code looked into this layer."""
        return self._by_module.get(id(module), [])

    @cached_property
    def _by_module(self) -> dict[int, list[Read]]:
        found: dict[int, list[Read]] = {}
        for read in self.reads:
            found.setdefault(id(read.module), []).append(read)
        return found


KNOWN = (
    "torch.nn.modules.", "torch.nn.intrinsic", "torch.ao.nn.", "torchao.", MixedConv.__module__,
)  # fmt: skip
LISTS = {nn.Sequential.forward, nn.ModuleList.forward, nn.ModuleDict.forward}
KNOWN_LAYERS = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.Linear)


def is_leaf(module: nn.Module) -> bool:
    """torch's own layers are read as they are; a user's modules are traced into."""
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule) or kind is MixedConv:
        return True
    if isinstance(module, nn.Sequential) or "forward" in vars(module):
        return False
    if kind.__module__.startswith(("torch.nn", "torch.ao", "torchao")):
        return True
    base = next(base for base in kind.__mro__ if base.__module__.startswith("torch.nn"))
    if base is nn.Module or not isinstance(module, KNOWN_LAYERS):
        return False
    names = ("forward", "_conv_forward", "__call__")
    return all(getattr(kind, name, None) is getattr(base, name, None) for name in names)


def is_torch_class(kind: type) -> bool:
    return kind.__module__.startswith("torch.nn.modules.")


def has_hooks(module: nn.Module) -> bool:
    """Whether something else than the forward method runs when the module is called."""
    return bool(
        module._forward_hooks
        or module._backward_hooks
        or getattr(module, "_backward_pre_hooks", None)
        or any(not is_weight_hook(hook) for hook in module._forward_pre_hooks.values())
    )


def is_plain(module: nn.Module) -> bool:
    """Whether only code of one of torch's own layers runs when the module is called."""
    home = next(base for base in type(module).__mro__ if "forward" in vars(base)).__module__
    if "forward" in vars(module) or has_hooks(module) or home == nn.Sequential.__module__:
        return False
    return home.startswith(KNOWN)


def is_weight_hook(hook: Callable[..., Any]) -> bool:
    """Weight norm and spectral norm as hooks: they compute a weight from parameters only."""
    home = type(hook).__module__
    return home in ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm")


def calls_of(call: Call) -> Iterator[Call]:
    """The call and all calls inside it."""
    yield call
    for item in call.items:
        if isinstance(item, Call):
            yield from calls_of(item)


def is_entry_point(call: Call) -> bool:
    """Whether users call the method by itself: the root's public ones, and all forward_*."""
    if call.method == "forward" or call.method.startswith("_"):
        return False
    return call.path == "" or call.method.startswith("forward_")
