"""What must hold of a fused network, asked of one random network at a time."""

from __future__ import annotations

import copy
import io
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import repfuse
from repfuse.report import Report
from tests.campaign.program import Program
from tests.frontends.onnx.cases import same_interface
from tests.frontends.onnx.evaluate import difference, evaluate
from tests.models.exports import silent

__all__ = ["Outcome", "Wrong", "check", "gap", "outputs"]

BOUND = 1e-9
FLOOR = 1e-3  # of the largest value inside, below which an output is the rest of a cancellation


class Wrong(AssertionError):
    """Something that must hold does not. kind: which of them."""

    def __init__(self, kind: str, said: object) -> None:
        super().__init__(f"{kind}: {' '.join(str(said).split())[:400]}")
        self.kind = kind


@dataclass
class Outcome:
    """regions and refusals: of the plan. stable: whether a second fuse finds nothing. exported:
    whether an ONNX file was made and checked, too."""

    regions: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    stable: bool = True
    exported: bool = False


def check(program: Program, export: bool = False) -> Outcome:
    """Fuse one network; raises Wrong, naming what does not hold.

    The network itself must run: what it raises is passed on. export: also write it as an ONNX
    file, fuse that, and compare.
    """
    with warnings.catch_warnings(), silent():
        warnings.simplefilter("ignore")
        model, inputs = program.build(), program.inputs()
        expected = [outputs(model, x) for x in inputs]
        scale = largest(model, inputs)
        outcome, fused = _module(model, inputs, expected, scale)
        if export:
            outcome.exported = _file(model, fused, inputs, scale)
    return outcome


def outputs(model: nn.Module, x: Tensor) -> list[Any]:
    """Everything that it returns, in order; the input may be changed by it."""
    with torch.no_grad():
        return list(pytree.tree_leaves(model(x.clone())))


def gap(left: list[Any], right: list[Any], scale: float = 0.0) -> float:
    """The largest difference, relative to each output's largest value; infinite where the outputs
    are not of the same kind."""
    if len(left) != len(right):
        return float("inf")
    worst = 0.0
    for mine, theirs in zip(left, right, strict=True):
        if not isinstance(mine, Tensor) or not isinstance(theirs, Tensor):
            worst = max(worst, 0.0 if mine == theirs else float("inf"))
            continue
        if (mine.shape, mine.dtype) != (theirs.shape, theirs.dtype):
            return float("inf")
        peak = max(mine.abs().max().item(), FLOOR * scale, 1e-300)
        apart = (mine - theirs).abs().max().item() / peak
        worst = max(worst, apart if apart == apart else float("inf"))
    return worst


def largest(model: nn.Module, inputs: list[Tensor]) -> float:
    """The largest number that any layer or product inside of it gives."""
    seen: list[float] = [1.0]

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            found = function(*args, **(kwargs or {}))
            if isinstance(found, Tensor) and found.is_floating_point() and found.numel():
                with torch._C.DisableTorchFunction():
                    seen.append(found.abs().max().item())
            return found

    with Watch():
        for x in inputs:
            outputs(model, x)
    return max(seen)


def _module(
    model: nn.Module, inputs: list[Tensor], expected: list[list[Any]], scale: float
) -> tuple[Outcome, nn.Module]:
    state = {key: value.clone() for key, value in model.state_dict().items()}
    keys = list(model.__dict__), [name for name, _ in model.named_modules()]
    try:
        plan = repfuse.plan(model)
        said = plan.report.to_dict()
        fused = plan.apply()
    except Exception as error:
        raise Wrong("raises", f"{type(error).__name__}: {error}") from error
    report: Report = plan.report
    if report.errors:
        raise Wrong("a rewrite failed its probe", report.errors[0])
    if (list(model.__dict__), [name for name, _ in model.named_modules()]) != keys:
        raise Wrong("the original has other parts", model)
    for key, value in model.state_dict().items():
        if not torch.equal(value, state[key]):
            raise Wrong("the original changed", key)
    if not isinstance(fused, type(model)):
        raise Wrong("the class is another", type(fused))
    if repfuse.plan(model).report.to_dict() != said:
        raise Wrong("a second plan of the same says something else", said)
    for x, reference in zip(inputs, expected, strict=True):
        try:
            found = outputs(fused, x)
        except Exception as error:
            raise Wrong("the fused network raises", f"{type(error).__name__}: {error}") from error
        apart = gap(reference, found, scale)
        if not apart <= BOUND:
            raise Wrong("not equal", f"{apart:.3g} at {tuple(x.shape)}")
    if not report.regions and _work(fused) != _work(model):
        raise Wrong("the plan has no region, and something changed", _work(fused))
    again = repfuse.plan(fused)
    if again.report.regions:
        x, reference = inputs[0], expected[0]
        if not gap(reference, outputs(again.apply(), x), scale) <= BOUND:
            raise Wrong("fused twice, not equal", again)
    refusals = Counter(refusal.rule for refusal in report.refusals)
    return Outcome(len(report.regions), refusals, not again.report.regions), fused


def _work(model: nn.Module) -> Counter[str]:
    """Its layers by class, and its parameters."""
    return Counter(
        type(module).__name__ for module in model.modules() if not list(module.children())
    )


def _file(model: nn.Module, fused: nn.Module, inputs: list[Tensor], scale: float) -> bool:
    """The same network as a file; False where torch cannot export it."""
    file = _exported(model, inputs[0])
    if file is None:
        return False
    feeds = [{"image": x.numpy()} for x in inputs]
    try:
        expected = [evaluate(file, feed) for feed in feeds]
        if difference([t.numpy() for t in outputs(model, inputs[0])], expected[0]) > BOUND:
            return False  # the exporter's own mistake
    except Exception:
        return False  # nothing that the reference can run
    try:
        plan = repfuse.plan(file)
        merged = plan.apply()
        onnx.checker.check_model(merged, full_check=True)
    except Exception as error:
        raise Wrong("ONNX: raises", f"{type(error).__name__}: {error}") from error
    if plan.report.errors:
        raise Wrong("ONNX: a rewrite failed its probe", plan.report.errors[0])
    same_interface(file, merged)
    for feed, reference in zip(feeds, expected, strict=True):
        found = evaluate(merged, feed)
        apart = max(
            (
                abs(a - b).max() / max(abs(a).max(), FLOOR * scale)
                for a, b in zip(reference, found, strict=True)
            ),
            default=0.0,
        )
        if not apart <= BOUND:
            raise Wrong("ONNX: not equal", f"{apart:.3g} at {feed['image'].shape}")
    return True


def _exported(model: nn.Module, x: Tensor) -> onnx.ModelProto | None:
    target: Any = io.BytesIO()
    axes = [0, *range(2, x.dim())]
    try:
        torch.onnx.export(
            copy.deepcopy(model), (x.clone(),), target, dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,
            input_names=["image"],
            dynamic_axes={"image": {axis: f"size{axis}" for axis in axes}},
        )  # fmt: skip
        file = onnx.load_from_string(target.getvalue())
        onnx.checker.check_model(file, full_check=True)
    except Exception:
        return None
    return file
