"""The public methods of a network beside forward: what they give for what forward gives them."""

from __future__ import annotations

import copy
import dis
import inspect
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from repfuse.errors import RepfuseError
from tests.campaign.gaps import gap

__all__ = ["MethodCall", "compared", "method_calls"]

PLAIN = (Tensor, int, float, str, bool, type(None))
OTHER: dict[str, object] = {"scale": 0.5, "flip": True, "mode": "b", "steps": 2}


@dataclass(frozen=True)
class MethodCall:
    """One call; traced: forward makes it, so that it must not be refused."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    traced: bool

    def run(self, model: nn.Module) -> list[Any]:
        """What it returns, and what becomes of what it is given."""
        args, kwargs = _copied((self.args, self.kwargs))
        with torch.no_grad():
            found = getattr(copy.deepcopy(model), self.name)(*args, **kwargs)
        return list(pytree.tree_leaves((found, args, kwargs)))


def method_calls(model: nn.Module, x: Tensor) -> list[MethodCall]:
    """The calls that forward makes, the same with other options, and those of x alone."""
    found: list[MethodCall] = []
    watched, names = copy.deepcopy(model), _public(type(model))

    def watch(name: str) -> None:
        method = getattr(watched, name)

        def run(*args: Any, **kwargs: Any) -> Any:
            given = _copied((args, kwargs))
            found.append(MethodCall(name, given[0], given[1], traced=True))
            return method(*args, **kwargs)

        watched.__dict__[name] = run

    for name in names:
        watch(name)
    if names:
        with torch.no_grad():
            watched(x.clone())
    for one in found[:]:
        for option in OTHER.keys() & inspect.signature(getattr(model, one.name)).parameters.keys():
            given = {**one.kwargs, option: OTHER[option]}
            found.append(MethodCall(one.name, one.args, given, traced=False))
    called = {one.name for one in found}
    alone = [name for name in names if name in called or not _passes_itself(model, name)]
    return found + [MethodCall(name, (x,), {}, traced=False) for name in alone]


def _passes_itself(model: nn.Module, name: str) -> bool:
    """Whether a method gives the module to a function or a static method, as nobody sees then."""
    steps = list(dis.get_instructions(getattr(type(model), name)))
    return any(
        one.argval in ("self", "super") and after.opname not in ("LOAD_ATTR", "LOAD_METHOD")
        for one, after in pairwise(steps)
    )


def compared(model: nn.Module, fused: nn.Module, call: MethodCall, scale: float) -> str:
    """How the fused model answers a call otherwise; nothing where it does not, or says why, and
    where it gives what cannot be compared."""
    try:
        expected = call.run(model)
    except Exception:
        return ""
    if not all(isinstance(one, PLAIN) for one in expected):
        return ""
    try:
        apart = gap(expected, call.run(fused), scale)
    except RepfuseError as error:
        return f"{call.name}: {error}" if call.traced else ""
    except Exception as error:
        return f"{call.name}: {type(error).__name__}: {error}"
    return "" if apart <= 1e-9 else f"{call.name}: {apart:.3g}"


def _public(kind: type) -> list[str]:
    found = [
        name
        for base in kind.__mro__[: kind.__mro__.index(nn.Module)]
        for name, member in vars(base).items()
        if inspect.isfunction(member) and name[:1] != "_" and name != "forward"
    ]
    return list(dict.fromkeys(found))


def _copied(given: Any) -> Any:
    """Copies, of one tensor one only."""
    leaves: dict[int, Tensor] = {}
    return copy.deepcopy(
        pytree.tree_map_only(Tensor, lambda x: leaves.setdefault(id(x), x.detach()), given)
    )
