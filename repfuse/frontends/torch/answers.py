"""What is said of the class of a recorded value to code that asks for it."""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from typing import Any

import torch
from torch import fx
from torch.fx.proxy import Proxy

from repfuse.frontends.torch.kinds import ABSENT, TENSOR, SizeNumber, sample_of

__all__ = ["Answers"]

TYPE = "it asks for the exact type of a value"


class Answers:
    """tensor: the tensor of the model that a node reads. ask: is told of a value whose class may
    be another one at another time. fault: of a question that has no answer."""

    def __init__(
        self,
        tensor: Callable[[fx.Node], torch.Tensor | None],
        ask: Callable[[fx.Node], None],
        fault: Callable[[str], None],
    ) -> None:
        self.tensor, self.ask, self.fault = tensor, ask, fault

    def like(self, value: Any) -> Any:
        """Something of the same class as the value: a tensor, where nothing else is known."""
        found = self._known(value)
        if found is ABSENT or type(found) is SizeNumber:
            self.ask(value.node)
        return TENSOR if found is ABSENT else found

    def type_of(self, thread: int) -> Any:
        """What stands for `type` in the code of the model."""

        def run(thing: Any, *rest: Any, **options: Any) -> Any:
            kind = type(thing, *rest, **options)
            if rest or not issubclass(kind, Proxy) or get_ident() != thread:
                return kind
            found = self._known(thing)
            if found is ABSENT or type(found) is SizeNumber:
                self.fault(TYPE)
                return torch.Tensor
            return type(found)

        class Meta(type):
            def __instancecheck__(cls, thing: Any) -> bool:
                return type.__instancecheck__(type, thing)

            def __subclasscheck__(cls, kind: Any) -> bool:
                return type.__subclasscheck__(type, kind)

        class Type(type, metaclass=Meta):
            def __new__(cls, *args: Any, **kwargs: Any) -> Any:
                return run(*args, **kwargs)

        return Type

    def _known(self, value: Any) -> Any:
        found = sample_of(value)
        if found is ABSENT and value.node.op == "get_attr":
            tensor = self.tensor(value.node)
            return ABSENT if tensor is None else tensor
        return found
