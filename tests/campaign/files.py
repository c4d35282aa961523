"""The same network as an ONNX file: it says what the module says, and is fused as it is."""

from __future__ import annotations

import copy
import io
from collections import Counter
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import repfuse
from tests.campaign.gaps import BOUND, FLOOR, outputs
from tests.campaign.outcome import Wrong
from tests.campaign.promises import broken, in_file
from tests.frontends.onnx.cases import same_interface
from tests.frontends.onnx.evaluate import difference, evaluate, in_double

__all__ = ["check_file", "exported"]


def check_file(
    model: nn.Module, fused: nn.Module, inputs: list[Tensor], scale: float
) -> Counter[str]:
    """Export both, and fuse what was exported; what was done, which is nothing where torch cannot
    export the original, or exports something else, or loses a change in place of the fused one.

    The file of the original and its fused form must give what the module gives, and so must the
    file of the fused module, and what a fuse makes of that.
    """
    file, other = exported(model, inputs), exported(fused, inputs)
    feeds = [{"image": x.numpy()} for x in inputs]
    expected = [[t.numpy() for t in outputs(model, x)] for x in inputs]
    if file is None or not _as_exported(file, feeds[:1], expected[:1]):
        return Counter()
    good = [i for i in range(len(feeds)) if _as_exported(file, [feeds[i]], [expected[i]])]
    feeds, expected = [feeds[i] for i in good], [expected[i] for i in good]
    merged = _check("ONNX", file, feeds, expected, scale)
    if other is None:
        raise Wrong("ONNX: the fused module cannot be exported", fused)
    if not _as_exported(other, feeds, expected) and _loses_a_change(
        fused, [inputs[i] for i in good], expected
    ):
        return Counter({"not exported: torch loses a change in place": 1})
    _equal("ONNX: the file of the fused module is not equal", other, feeds, expected, scale)
    _check("ONNX of the fused module", other, feeds, expected, scale)
    alike = in_file(merged) == in_file(other)
    return Counter({"exported": 1, "exported, both fused to the same operators": int(alike)})


def _as_exported(
    file: ModelProto, feeds: list[dict[str, np.ndarray]], expected: list[list[np.ndarray]]
) -> bool:
    """Whether the exporter made no mistake, and the reference runs what it made."""
    try:
        return all(
            difference(reference, evaluate(file, feed)) <= BOUND
            for feed, reference in zip(feeds, expected, strict=True)
        )
    except Exception:
        return False


def _loses_a_change(
    fused: nn.Module, inputs: list[Tensor], expected: list[list[np.ndarray]]
) -> bool:
    """Whether the exporter begins with a trace that gives what is expected and changes something
    in place: with y = x[:, 1:] it writes x + 1 for x[:, 1:].add_(1), and x for y.add_(1)."""
    try:
        options: dict[str, Any] = {"check_trace": False, "strict": False}
        trace = torch.jit.trace(copy.deepcopy(fused), (inputs[0].clone(),), **options)
        kinds = [node.kind() for node in trace.inlined_graph.nodes()]
        found = [[t.detach().numpy() for t in tree_leaves(trace(x.clone()))] for x in inputs]
        right = all(difference(a, b) <= BOUND for a, b in zip(expected, found, strict=True))
    except Exception:
        return False
    return right and any(kind.endswith("_") and not kind.endswith("__") for kind in kinds)


def _check(
    kind: str,
    file: ModelProto,
    feeds: list[dict[str, np.ndarray]],
    expected: list[list[np.ndarray]],
    scale: float,
) -> ModelProto:
    before = file.SerializeToString(deterministic=True)
    try:
        plan = repfuse.plan(file)
        merged = plan.apply()
        onnx.checker.check_model(merged, full_check=True)
    except Exception as error:
        raise Wrong(f"{kind}: raises", f"{type(error).__name__}: {error}") from error
    if plan.report.errors:
        raise Wrong(f"{kind}: a rewrite failed its probe", plan.report.errors[0])
    if file.SerializeToString(deterministic=True) != before:
        raise Wrong(f"{kind}: the original changed", plan)
    try:
        same_interface(file, merged)
    except AssertionError as error:
        raise Wrong(f"{kind}: the interface changed", plan) from error
    _equal(f"{kind}: not equal", merged, feeds, expected, scale)
    fault = broken(plan.report, in_file(file), in_file(merged), in_file(file, read=True))
    if fault:
        raise Wrong(f"{kind}: the plan says something else than was done", fault)
    return merged


def _equal(
    kind: str,
    file: ModelProto,
    feeds: list[dict[str, np.ndarray]],
    expected: list[list[np.ndarray]],
    scale: float,
) -> None:
    for feed, reference in zip(feeds, expected, strict=True):
        try:
            found = evaluate(file, feed)
        except Exception as error:
            raise Wrong(kind, f"{type(error).__name__}: {error}") from error
        if [a.shape for a in found] != [a.shape for a in reference]:
            raise Wrong(kind, f"other shapes at {feed['image'].shape}")
        apart = max(
            (
                np.abs(a - b).max(initial=0.0) / max(np.abs(a).max(initial=0.0), FLOOR * scale)
                for a, b in zip(reference, found, strict=True)
            ),
            default=0.0,
        )
        if not apart <= BOUND:
            raise Wrong(kind, f"{apart:.3g} at {feed['image'].shape}")


def exported(model: nn.Module, inputs: list[Tensor]) -> ModelProto | None:
    """The network as a file in float64, also what the exporter casts to float32, whose open sizes
    are those that differ; None where torch cannot write it."""
    target: Any = io.BytesIO()
    x = inputs[0]
    axes = [axis for axis in range(x.dim()) if len({one.shape[axis] for one in inputs}) > 1]
    try:
        torch.onnx.export(
            copy.deepcopy(model), (x.clone(),), target, dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,
            input_names=["image"],
            dynamic_axes={"image": {axis: f"size{axis}" for axis in axes}},
        )  # fmt: skip
        file = in_double(onnx.load_from_string(target.getvalue()))
        onnx.checker.check_model(file, full_check=True)
    except Exception:
        return None
    return file
