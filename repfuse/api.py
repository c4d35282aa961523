"""The verbs: one name each, whatever the framework of the model."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from repfuse.errors import RepfuseError

if TYPE_CHECKING:
    from torch import nn

    from repfuse.comparison import Comparison
    from repfuse.frontends.torch import Plan

__all__ = ["assert_equivalent", "fuse", "plan", "verify"]


def fuse(model: nn.Module, *, inplace: bool = False, probe: bool = True) -> nn.Module:
    """Merge every parallel branch and fold every affine that can be, exactly.

    model: any `torch.nn.Module`; one in train mode is fused as its eval form. inplace: change
    the model itself instead of a copy. probe: prove each rewrite in float64 before it is
    written. The result is in eval mode, an instance of the model's class, with its device,
    dtype, memory format and requires_grad. What cannot be merged exactly stays as it is;
    `plan(model)` says why.

    Raises RepfuseError where `model` is no module, or cannot be copied.
    """
    return _torch(model).fuse(model, inplace=inplace, probe=probe)  # type: ignore[no-any-return]


def plan(model: nn.Module) -> Plan:
    """What `fuse` would do: printing it shows each region and each refusal, `apply()` does it.

    The plan comes from the structure alone: no weight is read, and a model on the meta device
    can be planned. Raises RepfuseError where `model` is no module.
    """
    return _torch(model).plan(model)  # type: ignore[no-any-return]


def verify(reference: nn.Module, candidate: nn.Module, inputs: Any, **options: Any) -> Comparison:
    """Measure a candidate against a reference, by the reference's own rounding error.

    inputs: a tensor, a tuple of arguments, a dict of keyword arguments, or a list of such.
    """
    frontend = _torch(reference, candidate)
    return frontend.verify(reference, candidate, inputs, **options)  # type: ignore[no-any-return]


def assert_equivalent(
    reference: nn.Module, candidate: nn.Module, inputs: Any, **options: Any
) -> None:
    """Raise NotEquivalentError, with the table of errors, unless `verify` passes."""
    _torch(reference, candidate).assert_equivalent(reference, candidate, inputs, **options)


def _torch(*models: Any) -> Any:
    """The PyTorch frontend; imported when a module is at hand, never before."""
    torch = sys.modules.get("torch")
    for model in models:
        if torch is None or not isinstance(model, torch.nn.Module):
            raise RepfuseError(f"a torch.nn.Module is needed, not {_article(type(model).__name__)}")
    try:
        return importlib.import_module("repfuse.frontends.torch")
    except ImportError as error:
        raise RepfuseError(
            f'{error.name} is not installed: pip install "repfuse[torch]"'
        ) from error


def _article(name: str) -> str:
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
