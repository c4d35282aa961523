"""One block on one frontend: its operators before and after a fusion, and the float64 error."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import repfuse
from repfuse.passes import PASSES
from tests.frontends.onnx.evaluate import difference, evaluate
from tests.models.blocks import Case
from tests.models.exports import silent
from tests.numerics import assert_same, randomize

__all__ = ["Measured", "exported", "measure", "operators"]

BATCHES = (1, 3, 1)
# No work of their own: they give memory another shape, or copy nothing.
SHAPES = {"aten::empty", "aten::_unsafe_view", "aten::detach", "aten::_to_copy", "aten::lift_fresh"}
FREE = {"Constant", "Identity", "Shape", "Flatten", "Reshape", "Squeeze", "Unsqueeze"}


@dataclass(frozen=True)
class Measured:
    """before and after: operators. error: the largest relative one of all sizes. reasons: what
    the plan says of what is left. passes: those that made what is new."""

    before: int
    after: int
    error: float
    reasons: tuple[str, ...]
    passes: tuple[str, ...]


def measure(case: Case, frontend: str) -> Measured:
    """Fuse a block and compare, at each of its sizes."""
    torch.manual_seed(0)
    model = randomize(case.build().double().eval())
    inputs = list(images(case))
    if frontend == "module":
        plan = repfuse.plan(model, target=case.block.target, dynamic=case.block.dynamic)
        fused = plan.apply()
        error = max(assert_same(model, fused, x, bound=1e-10) for x in inputs)
        before, after = operators(model, inputs[0]), operators(fused, inputs[0])
    else:
        return _measure_file(case, model, inputs)
    assert plan.report.errors == []
    return Measured(before, after, error, tuple(_reasons(plan.report)), _passes(plan.report))


def _measure_file(case: Case, model: nn.Module, inputs: list[Tensor]) -> Measured:
    """One file for all sizes, or one for each where an export holds the size."""
    way, found = case.block.export, list[Measured]()
    for group in [[x] for x in inputs] if way == "fixed" else [inputs]:
        file = exported(model, group[0], way)
        plan = repfuse.plan(file, target=case.block.target, dynamic=case.block.dynamic)
        merged = plan.apply()
        onnx.checker.check_model(merged, full_check=True)
        assert plan.report.errors == []
        error = max(_difference(file, merged, x) for x in group)
        reasons = tuple(_reasons(plan.report))
        passes = _passes(plan.report)
        found.append(Measured(nodes(file), nodes(merged), error, reasons, passes))
    assert len({measured.after for measured in found}) == 1, "a size is fused less than another"
    return replace(found[0], error=max(measured.error for measured in found))


def _reasons(report: Any) -> Iterator[str]:
    yield from (entry.reason for entry in (*report.refusals, *report.kept))


def _passes(report: Any) -> tuple[str, ...]:
    """In the order of the pipeline, each once."""
    used = {name for region in report.regions for name in region.passes}
    return tuple(rule.name for rule in PASSES if rule.name in used)


def images(case: Case) -> Iterator[Tensor]:
    """Random input at each size of the block, of one sample and of three."""
    noise = torch.Generator().manual_seed(1)
    for batch, size in zip(BATCHES, case.block.sizes, strict=True):
        shape = (batch, case.block.channels, *size) if case.block.channels else (batch, *size)
        yield torch.randn(shape, generator=noise, dtype=torch.float64)


def exported(model: nn.Module, image: Tensor, way: str) -> ModelProto:
    """The module as a file, its batch norms as they are; all sizes are open unless fixed."""
    target: Any = io.BytesIO()
    open_axes = [0, *range(2, image.dim())]
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["result"]}
    quiet = contextlib.redirect_stdout(io.StringIO())
    with warnings.catch_warnings(), quiet, silent():
        warnings.simplefilter("ignore")
        if way == "dynamo":
            shapes = dict.fromkeys(open_axes, torch.export.Dim.DYNAMIC)
            program = torch.onnx.export(
                model, (image.repeat(2, *[1] * (image.dim() - 1)),), dynamo=True, optimize=False,
                verbose=False, dynamic_shapes=(shapes,), **names,
            )  # fmt: skip
            assert program is not None
            return program.model_proto
        axes = None if way == "fixed" else {"image": {axis: f"size{axis}" for axis in open_axes}}
        torch.onnx.export(
            model,
            (image,),
            target,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            dynamic_axes=axes,
            **names,
        )
    return onnx.load_from_string(target.getvalue())


def _difference(reference: ModelProto, candidate: ModelProto, image: Tensor) -> float:
    feeds: dict[str, np.ndarray[Any, Any]] = {"image": image.numpy()}
    return difference(evaluate(reference, feeds), evaluate(candidate, feeds))


def nodes(model: ModelProto) -> int:
    """The nodes that compute."""
    return sum(node.op_type not in FREE for node in model.graph.node)


def operators(model: nn.Module, *inputs: Tensor) -> int:
    """The operators that one forward executes, views of memory left out."""
    counter, own = _Counter(), copy.deepcopy(model)
    with torch.no_grad(), counter:
        own(*inputs)
    return counter.seen


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        views = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        self.seen += not views and func._schema.name not in SHAPES
        return func(*args, **(kwargs or {}))
