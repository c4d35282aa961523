"""The verbs: one name each, whatever the framework of the model."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from repfuse.areas import Shapes
from repfuse.errors import RepfuseError

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from repfuse.comparison import Comparison
    from repfuse.frontends.onnx.plan import Plan as OnnxPlan
    from repfuse.frontends.torch.plan import Plan as TorchPlan

    Onnx: TypeAlias = onnx.ModelProto | str | os.PathLike[str]

__all__ = ["assert_equivalent", "fuse", "plan", "verify"]


@overload
def fuse(
    model: Onnx,
    *,
    inplace: bool = ...,
    probe: bool = ...,
    target: str = ...,
    shapes: Shapes | None = ...,
) -> onnx.ModelProto: ...


@overload
def fuse(
    model: nn.Module,
    *,
    inplace: bool = ...,
    probe: bool = ...,
    target: str = ...,
    shapes: Shapes | None = ...,
) -> nn.Module: ...


def fuse(
    model: Any,
    *,
    inplace: bool = False,
    probe: bool = True,
    target: str = "cpu",
    shapes: Shapes | None = None,
) -> Any:
    """Merge every parallel branch and fold every affine that can be, exactly.

    model: any `torch.nn.Module`, an `onnx.ModelProto`, or the path of an ONNX file. inplace:
    change the model itself instead of a copy. probe: prove each rewrite in float64 before it is
    written. target: what to save for, one of "cpu", "gpu", "min-macs", "min-ops" and "measured",
    which times the operators on this machine. shapes: that of the input, as (1, 3, 224, 224), or
    of the inputs by name, for the costs alone; without it, what a file declares, or a 224 x 224
    image.

    A module in train mode is fused as its eval form; the result is in eval mode, an instance of
    the model's class, with its device, dtype, memory format and requires_grad. Of an ONNX model,
    interface, opset and metadata stay, and so do all nodes that no merge touches; a file is read,
    and the result is a ModelProto. What cannot be merged exactly stays as it is; `plan(model)`
    says why.

    Raises RepfuseError where `model` is neither, cannot be copied, or is no valid file.
    """
    verb = _verb("fuse", model)
    return verb(model, inplace=inplace, probe=probe, target=target, shapes=shapes)


@overload
def plan(model: Onnx, *, target: str = ..., shapes: Shapes | None = ...) -> OnnxPlan: ...


@overload
def plan(model: nn.Module, *, target: str = ..., shapes: Shapes | None = ...) -> TorchPlan: ...


def plan(model: Any, *, target: str = "cpu", shapes: Shapes | None = None) -> Any:
    """What `fuse` would do: printing it shows each region and each refusal, `apply()` does it.

    The plan of a module comes from the structure alone: no weight is read, and a model on the
    meta device can be planned; of an ONNX model, vectors and scalars are looked at. target and
    shapes are as in `fuse`. Raises RepfuseError where `model` is neither.
    """
    return _verb("plan", model)(model, target=target, shapes=shapes)


def verify(reference: Any, candidate: Any, inputs: Any = None, **options: Any) -> Comparison:
    """Measure a candidate against a reference, by the reference's own rounding error.

    Both are modules, or both are ONNX models or files. inputs: a tensor, a tuple of arguments, a
    dict of keyword arguments, or a list of such; for ONNX, arrays by input name, or nothing, for
    seeded random inputs of several sizes.
    """
    verb = _verb("verify", reference, candidate)
    return verb(reference, candidate, inputs, **options)  # type: ignore[no-any-return]


def assert_equivalent(reference: Any, candidate: Any, inputs: Any = None, **options: Any) -> None:
    """Raise NotEquivalentError, with the table of errors, unless `verify` passes."""
    verb = _verb("assert_equivalent", reference, candidate)
    verb(reference, candidate, inputs, **options)


# Where each frontend has its verbs. What is not needed is not imported.
HOMES = {
    "torch": {"fuse": "plan", "plan": "plan", "verify": "verify", "assert_equivalent": "verify"},
    "onnx": {"fuse": "fuse", "plan": "fuse", "verify": "verify", "assert_equivalent": "verify"},
}


def _verb(verb: str, *models: Any) -> Any:
    """The verb of the models' frontend; imported when a model is at hand, never before."""
    torch = sys.modules.get("torch")
    modules = [torch is not None and isinstance(model, torch.nn.Module) for model in models]
    files = [_is_onnx(model) for model in models]
    for model, is_module, is_onnx in zip(models, modules, files, strict=True):
        if not (is_module or is_onnx):
            raise RepfuseError(
                "a torch.nn.Module, an onnx.ModelProto or the path of an ONNX file is needed, "
                f"not {_article(type(model).__name__)}"
            )
    if not (all(modules) or all(files)):
        raise RepfuseError("a module and an ONNX model cannot be compared: export the module")
    name = "torch" if modules[0] else "onnx"
    try:
        home = importlib.import_module(f"repfuse.frontends.{name}.{HOMES[name][verb]}")
    except ImportError as error:
        raise RepfuseError(
            f'{error.name} is not installed: pip install "repfuse[{name}]"'
        ) from error
    return getattr(home, verb)


def _is_onnx(model: Any) -> bool:
    onnx = sys.modules.get("onnx")
    path = isinstance(model, str | os.PathLike)
    return path or (onnx is not None and isinstance(model, onnx.ModelProto))


def _article(name: str) -> str:
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
