"""Compare two modules on given inputs, by the reference's own rounding error.

The answer is what a float64 copy of the reference gives. Its own rounding error is measured in
its own precision: as it stands, and `MOVED_RUNS` times with every parameter and input moved by
about half an ulp at random. One run is not enough. A float64 reference has no distance from
itself; an output of one or two values can be right by luck; and in float16 and bfloat16 a
rounded weight is wrong by the same amount at every position, which pooling does not average away
as it does the rounding of activations, while a fused weight is a newly rounded weight. With six
moved runs and the factor of `repfuse.rounding`, equal timm networks of all four precisions pass,
down to outputs of a single value.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from repfuse.comparison import Comparison, Output, compare
from repfuse.errors import NotEquivalentError, RepfuseError
from repfuse.frontends.torch.alone import kept_modes
from repfuse.frontends.torch.outputs import named_outputs
from repfuse.interruption import undone, whole
from repfuse.rounding import FACTOR, distance

__all__ = ["assert_equivalent", "verify"]

MOVED_RUNS = 6
ONE_AT_A_TIME = threading.RLock()


@whole
def verify(
    reference: nn.Module, candidate: nn.Module, inputs: object, *, factor: float = FACTOR
) -> Comparison:
    """Measure how far both modules are from the float64 answer, in eval mode and without grad.

    inputs is a tensor, a tuple of arguments, a dict of keyword arguments, or a list of several
    such draws (so a model that takes one list of tensors is given a tuple that holds the list).
    The candidate may be `factor` times as far from the answer as the reference, plus a few ulps.
    Outputs may be nested in any way; tuples and lists count as the same. Neither module nor input
    is changed: copies of them run. Raises RepfuseError where one of the modules cannot be run.
    In float16 and bfloat16 a mistake hides below half a percent: compare float32 forms as well.

    One thread verifies at a time. The default dtype of the process is float64 meanwhile, so other
    threads had better make no tensors.
    """
    with ONE_AT_A_TIME, kept_modes():
        state = torch.get_rng_state()
        with undone(lambda: torch.set_rng_state(state)):
            return _verify(reference, candidate, inputs, factor)


def _verify(
    reference: nn.Module, candidate: nn.Module, inputs: object, factor: float
) -> Comparison:
    draws = _draws(inputs)
    for role, model in (("reference", reference), ("candidate", candidate)):
        _check(role, model)

    exact = _widen(_copy("reference", reference))
    with _in_float64():
        answers = [
            _run("float64 copy of the reference", exact, draw.map(_double)) for draw in draws
        ]
    del exact

    own = _copy("reference", reference)
    references = [_run("reference", own, draw) for draw in draws]
    rounding = [_observe(reference, own, *pair) for pair in zip(draws, answers, strict=True)]
    del own

    other = _copy("candidate", candidate)
    candidates = [_run("candidate", other, draw) for draw in draws]
    rows = zip(answers, references, candidates, rounding, strict=True)
    found = [compare(*row, factor=factor, rounding=observed) for *row, observed in rows]
    return Comparison(tuple(error for one in found for error in one.outputs))


def assert_equivalent(
    reference: nn.Module, candidate: nn.Module, inputs: object, *, factor: float = FACTOR
) -> Comparison:
    """Raise NotEquivalentError with the table of errors unless `verify` passes."""
    comparison = verify(reference, candidate, inputs, factor=factor)
    if not comparison.passed:
        raise NotEquivalentError(str(comparison))
    return comparison


@dataclass(frozen=True)
class _Draw:
    """The arguments of one call; `prefix` tells the outputs of several calls apart."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    prefix: str = ""

    def map(self, function: Callable[[Tensor], Tensor]) -> _Draw:
        """The same call with other tensors, and with copies of whatever else it holds."""

        def each(leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                return function(leaf.detach())
            return copy.deepcopy(leaf)

        args, kwargs = pytree.tree_map(each, (self.args, self.kwargs))
        return _Draw(args, kwargs, self.prefix)


def _draws(inputs: object) -> list[_Draw]:
    several = inputs if isinstance(inputs, list) else [inputs]
    if not several:
        raise RepfuseError("no inputs were given: an empty list compares nothing")
    draws = []
    for index, one in enumerate(several):
        prefix = f"draw {index}: " if len(several) > 1 else ""
        if isinstance(one, Tensor):
            draws.append(_Draw((one,), {}, prefix))
        elif isinstance(one, tuple):
            draws.append(_Draw(one, {}, prefix))
        elif isinstance(one, Mapping):
            draws.append(_Draw((), dict(one), prefix))
        else:
            raise RepfuseError(
                f"inputs hold a {type(one).__name__}: give a tensor, a tuple of arguments, a dict "
                "of keyword arguments, or a list of these"
            )
    return draws


def _check(role: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise RepfuseError(f"the {role} is a {type(model).__name__}, not an nn.Module")
    for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
        if nn.parameter.is_lazy(parameter):
            raise RepfuseError(f"the {role}'s {name} is uninitialized: run the module once")
        if parameter.is_meta:
            raise RepfuseError(f"the {role}'s {name} is on the meta device: load its weights")


def _copy(role: str, model: nn.Module) -> nn.Module:
    """A copy in eval mode. Old-style weight norm keeps tensors that deepcopy refuses to copy."""
    kept = [value for module in model.modules() for value in vars(module).values()]
    memo: dict[int, Any] = {
        id(value): value.detach().clone()
        for value in kept
        if isinstance(value, Tensor) and not value.is_leaf
    }
    try:
        copied = copy.deepcopy(model, memo)
    except Exception as error:
        raise RepfuseError(f"the {role} cannot be copied: {_first_line(error)}") from error
    if any(module.training for module in copied.modules()):
        with suppress(NotImplementedError):  # of exported programs, which need no eval()
            copied.eval()
    return copied


def _run(role: str, model: nn.Module, draw: _Draw) -> list[Output]:
    fresh = draw.map(torch.clone)
    try:
        with torch.no_grad(), _seeded(0):
            result = model(*fresh.args, **fresh.kwargs)
        return list(named_outputs(result, f"{draw.prefix}output"))
    except Exception as error:
        tensors = [*model.parameters(), *pytree.tree_leaves((fresh.args, fresh.kwargs))]
        kinds = {f"{t.dtype} on {t.device.type}" for t in tensors if isinstance(t, Tensor)}
        where = ", ".join(sorted(kinds)).replace("torch.", "") or "no tensors"
        raise RepfuseError(f"the {role} ({where}) cannot run: {_first_line(error)}") from error


def _observe(
    reference: nn.Module, own: nn.Module, draw: _Draw, answers: list[Output]
) -> dict[str, float]:
    """The largest distance of each output from its answer, over runs moved by half an ulp."""
    answer_of = {answer.name: answer.values for answer in answers if answer.is_float}
    errors = dict.fromkeys(answer_of, 0.0)
    pairs = list(zip(own.parameters(), reference.parameters(), strict=True))
    for seed in range(MOVED_RUNS):
        with torch.no_grad(), _seeded(seed):
            for target, source in pairs:
                target.copy_(_moved(source))
            moved = draw.map(_moved)
        for output in _run("reference", own, moved):
            if output.name in errors:
                error = distance(output.values, answer_of[output.name])
                errors[output.name] = max(errors[output.name], error)
    return errors


def _moved(tensor: Tensor) -> Tensor:
    """A copy whose elements are half an ulp off at random; whole numbers, often masks, stay."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor.clone()
    wide = _double(tensor)
    noise = torch.rand(tensor.shape, dtype=torch.float64, device=tensor.device) - 0.5
    moved = wide + wide * (noise * torch.finfo(tensor.dtype).eps)
    whole = (wide.real == wide.real.round()) & (not wide.is_complex())
    return torch.where(whole, wide, moved).to(tensor.dtype)


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().to(_wide(tensor.dtype), copy=True)


def _wide(dtype: torch.dtype) -> torch.dtype:
    if dtype.is_complex:
        return torch.complex128
    return torch.float64 if dtype.is_floating_point else dtype


def _widen(model: nn.Module) -> nn.Module:
    """The model with every tensor in float64, also complex ones and plain attributes."""
    model._apply(_double)
    for module in model.modules():
        for key, value in list(vars(module).items()):
            if isinstance(value, Tensor):
                setattr(module, key, _double(value))
    return model


class _WideTypes(TorchFunctionMode):
    """Turns every request for a float type into one for float64.

    Code that says `x.float()` or `dtype=torch.float32` would round the answer.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        def each(leaf: Any) -> Any:
            return _wide(leaf) if isinstance(leaf, torch.dtype) else leaf

        if func in (Tensor.float, Tensor.half, Tensor.bfloat16):
            func = Tensor.double
        return func(*map(each, args), **{key: each(value) for key, value in (kwargs or {}).items()})


@contextmanager
def _in_float64() -> Iterator[None]:
    default = torch.get_default_dtype()
    with undone(lambda: torch.set_default_dtype(default)), _WideTypes():
        torch.set_default_dtype(torch.float64)
        yield


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
