"""The stand-ins for tensors that record what is done with them."""

from __future__ import annotations

import dis
import operator as _operator
import sys
from collections.abc import Callable, Iterator
from functools import cache
from types import CodeType
from typing import Any

import torch
from torch import fx, nn
from torch.fx.proxy import Attribute, Proxy

from repfuse.frontends.torch.askers import from_torch, from_user, instruction_of
from repfuse.frontends.torch.calls import is_plain
from repfuse.frontends.torch.instructions import is_only_told
from repfuse.frontends.torch.kinds import ABSENT, DEVICE_INDEX, MAY_BE_NONE, NAMES, sample_of
from repfuse.frontends.torch.snapshot import held_by, parts_of

__all__ = ["RecordingAttribute", "RecordingProxy", "is_surely_tensor", "kept_in_attributes"]


PLAIN_FUNCTIONS = {"torch", "torch.nn.functional", "torch._C._nn", "torch.functional"}


OWN = {"node", "tracer", "root", "attr", "_node"}


KEY = "it looks a recorded value up in a set or a table"
TEXT = "it makes a text of a recorded value"
CLASS = "it asks for the class of a value"
ATTRIBUTE = "it asks whether a value has the attribute {}"
NONE = "it reads the attribute {} of a tensor, which may be None"


class Unpacked(Proxy):
    """What `a, b = x`, `x += 1` and `x.data = y` do with a proxy, and what Python asks of it.

    What it cannot answer truly it refuses, and the tracer is told: nobody may catch the error and
    go on. torch.fx asks, too, and gets an answer.
    """

    tracer: Any

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        frame = sys._getframe(1)
        if not from_torch(frame) and instruction_of(frame) in ("LOAD_ATTR", "MATCH_CLASS"):
            raise self.tracer.fault(NotImplementedError(CLASS))
        return type(self)

    def __hash__(self) -> int:
        if from_user(sys._getframe(1)):
            raise self.tracer.fault(NotImplementedError(KEY))
        return object.__hash__(self)

    def __repr__(self) -> str:
        self._refuse_text(sys._getframe(1))
        return super().__repr__()

    def __str__(self) -> str:
        self._refuse_text(sys._getframe(1))
        return super().__repr__()

    def __format__(self, specification: str) -> str:
        self._refuse_text(sys._getframe(1))
        return super().__repr__()

    def __len__(self) -> int:
        try:
            return super().__len__()
        except RuntimeError as error:
            raise self.tracer.fault(error) from None

    def __iter__(self) -> Iterator[Proxy]:
        """As torch.fx: it takes two. No frame is kept, it would keep its variables alive."""
        caller = sys._getframe(1)
        count = _unpacked(caller.f_code, caller.f_lasti)
        del caller
        if count is None:
            return iter(self.tracer.iter(self))
        return iter([_operator.getitem(self, index) for index in range(count)])

    def __getattr__(self, k: str) -> Attribute:
        frame = sys._getframe(1)
        if not from_torch(frame) or self.tracer.guards:
            self._check_attribute(k, frame)
        return RecordingAttribute(self, k)

    @property
    def keys(self) -> Any:
        """A tensor has none, and torch.fx has them for anything."""
        self._check_attribute("keys", sys._getframe(1))
        return super().keys

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in OWN:
            raise self.tracer.fault(
                NotImplementedError(f"the attribute {name} of a tensor is assigned")
            )
        super().__setattr__(name, value)

    def _refuse_text(self, frame: Any) -> None:
        if from_user(frame) and not is_only_told(frame.f_code, frame.f_lasti):
            raise self.tracer.fault(NotImplementedError(TEXT))

    def _check_attribute(self, name: str, frame: Any) -> None:
        """What is read of a value can be recorded; whether there is such an attribute cannot."""
        self.tracer.note_guarded()
        loads = instruction_of(frame).startswith("LOAD_")
        if loads and name not in MAY_BE_NONE:
            return
        sample = sample_of(self)
        if sample is not ABSENT and not issubclass(type(sample), torch.Tensor):
            if not hasattr(sample, name):
                raise AttributeError(name)
            if getattr(sample, name) is None:
                raise self.tracer.fault(NotImplementedError(NONE.format(name)))
        elif loads and name == DEVICE_INDEX:
            return
        elif name in MAY_BE_NONE:
            raise self.tracer.fault(NotImplementedError(NONE.format(name)))
        elif name in NAMES:
            self.tracer.note_type_question(self.node)
        elif name.startswith("__"):
            raise AttributeError(name)
        else:
            raise self.tracer.fault(NotImplementedError(ATTRIBUTE.format(name)))


def _number(name: str) -> Callable[[Unpacked], Any]:
    def refuse(self: Unpacked) -> Any:
        text = f"{name}() argument must be a string or a real number, not '{type(self).__name__}'"
        raise self.tracer.fault(TypeError(text))

    return refuse


for _name in ("int", "float", "complex", "round"):
    setattr(Unpacked, f"__{_name}__", _number(_name))


class RecordingAttribute(Unpacked, Attribute):
    """An attribute of a proxy, or a method of it until that is called."""


class RecordingProxy(Unpacked):
    """Records in-place arithmetic and slice assignment, which torch.fx turns into copies."""

    @classmethod
    def __torch_function__(
        cls, orig_method: Any, types: Any, args: Any = None, kwargs: Any = None
    ) -> Proxy:
        """What torch.fx does for a plain function, without its search through all arguments."""
        first = args[0] if args else None
        function = getattr(orig_method, "__module__", None) in PLAIN_FUNCTIONS
        if type(first) is not cls or not function:
            return super().__torch_function__(orig_method, types, args, kwargs)
        made: Proxy = first.tracer.create_proxy("call_function", orig_method, args, kwargs or {})
        return made

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", _operator.setitem, (self, index, value), {})


TENSOR_METHODS = {
    "view", "reshape", "permute", "flatten", "transpose", "contiguous", "unsqueeze", "squeeze",
    "float", "relu", "sigmoid", "tanh", "softmax", "mean", "sum", "add", "sub", "mul", "div",
}  # fmt: skip


def is_surely_tensor(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a recorded operation has one tensor as its result, and nothing else."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        home = type(module).__module__
        if isinstance(module, nn.MultiheadAttention) or getattr(module, "return_indices", False):
            return False
        other = home.endswith(("rnn", "transformer"))
        return home.startswith("torch.nn.modules.") and is_plain(module) and not other
    if node.op == "call_method":
        return node.target in TENSOR_METHODS
    home = getattr(node.target, "__module__", "")
    name = getattr(node.target, "__name__", "")
    if home in ("_operator", "operator"):
        return name != "getitem"
    known = ("conv", "relu", "norm", "linear", "sigmoid", "tanh", "gelu", "silu", "cat", "matmul")
    return node.op == "call_function" and any(part in name for part in known)


@cache
def _unpacked(code: CodeType, offset: int) -> int | None:
    """Into how many names the instruction unpacks, if that is what it does."""
    for instruction in dis.get_instructions(code):
        if instruction.offset == offset and instruction.opname == "UNPACK_SEQUENCE":
            return int(instruction.argval)
    return None


def _in_place(name: str) -> Callable[[Proxy, Any], Proxy]:
    function = getattr(_operator, name)

    def record(self: Proxy, other: Any) -> Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return record


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "imod"):
    setattr(Unpacked, f"__{_name}__", _in_place(_name))


def kept_in_attributes(root: nn.Module) -> dict[str, list[fx.Node]]:
    """What the traced code put into attributes, where users may read it later."""
    found: dict[str, list[fx.Node]] = {}
    for module in root.modules():
        for name, value in (*held_by(module), *vars(module)["_buffers"].items()):
            if isinstance(value, torch.Tensor):
                continue
            nodes = [proxy.node for proxy in _proxies_in(value, 5)]
            if nodes:
                found.setdefault(name, []).extend(nodes)
    return found


def _proxies_in(value: Any, depth: int) -> Iterator[RecordingProxy]:
    if type(value) is RecordingProxy:
        yield value
    elif type(value) is tuple:
        for part in value:
            yield from _proxies_in(part, depth - 1) if depth else ()
    elif depth:
        for _, part in parts_of(value):
            yield from _proxies_in(part, depth - 1)
