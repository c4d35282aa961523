"""Fuse one model of a zoo and say what became of it: the work of one process of the sweep."""

from __future__ import annotations

import copy
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm.utils
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import repfuse
from tests.models.zoo import FastDepthwise
from tests.numerics import OpCounts, assert_same, randomize
from tests.sweep.counts import counts, work
from tests.sweep.families import FAMILIES, Subject

__all__ = ["BOUND", "Row", "check"]

BOUND = 1e-9
CHAOS = 30.0  # so many roundings may come together where each of them grows
MILLION = 1e6
BY_HAND = ("fuse", "reparameterize", "switch_to_deploy")  # what timm's conversion calls


@dataclass(frozen=True)
class Row:
    """One line of the table.

    status: "equal", "skipped" (too large) or "failed", then a detail. Counts are those of one
    forward, before and after: convs, batch norms, linears, adds. work is their sum, hand_written
    that of the zoo's own conversion with its error, where it changes anything. seconds: CPU time of
    plan and rewrite, with their probes; memory: what these took beyond the model, in MB. commit:
    of this repository.
    """

    model: str
    home: str = ""
    status: str = "failed"
    detail: str = ""
    parameters: float = 0.0
    convs: str = ""
    norms: str = ""
    linears: str = ""
    adds: str = ""
    work: str = ""
    hand_written: str = ""
    hand_written_error: str = ""
    error: str = ""
    refusals: int = 0
    seconds: float = 0.0
    memory: int = 0
    commit: str = ""


def check(family: str, name: str, largest: float) -> Row:
    """Everything that the sweep asks of one model; `largest` is in millions of parameters."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    size = _parameters(family, name)
    if size is not None and size > largest:
        return Row(name, status="skipped", detail="too large", parameters=round(size, 2))
    subject = FAMILIES[family](name)
    size = sum(p.numel() for p in subject.model.parameters()) / MILLION
    row = Row(name, subject.home, parameters=round(size, 2))
    if size > largest:
        return replace(row, status="skipped", detail="too large")
    return _measure(row, subject)


def _parameters(family: str, name: str) -> float | None:
    """In millions, without memory for them; None where the model cannot be built that way."""
    try:
        with torch.device("meta"):
            model = FAMILIES[family](name).model
    except Exception:
        return None
    return sum(p.numel() for p in model.parameters()) / MILLION


def _measure(row: Row, subject: Subject) -> Row:
    model = randomize(subject.model.double().eval())
    state = {key: value.clone() for key, value in model.state_dict().items()}
    before = counts(_callable(subject, model), subject.inputs)

    start, resident = time.process_time(), _resident(reset=True)
    plan = repfuse.plan(model)
    fused = plan.apply()
    seconds, memory = time.process_time() - start, _resident() - resident

    after = counts(_callable(subject, fused), subject.inputs)
    row = replace(
        row,
        convs=f"{before.convs} -> {after.convs}",
        norms=f"{before.batch_norms} -> {after.batch_norms}",
        linears=f"{before.linears} -> {after.linears}",
        adds=f"{before.adds} -> {after.adds}",
        work=f"{work(before)} -> {work(after)}",
        refusals=len(plan.report.refusals),
        seconds=round(seconds, 2),
        memory=round(memory),
    )
    faults = [f"a rewrite failed its probe: {error}" for error in plan.report.errors]
    if not isinstance(fused, type(model)):
        faults.append(f"the class is {type(fused).__name__}")
    changed = [k for k, v in model.state_dict().items() if not torch.equal(v, state[k])]
    if changed:
        faults.append(f"the original's {changed[0]} changed")
    again = repfuse.plan(fused).report.regions
    if again:
        faults.append(f"a second fuse rewrites {again[0].where}")
    bound = BOUND
    try:
        row = replace(row, error=f"{_error(subject, model, fused):.1e}")
    except AssertionError as wrong:
        bound, said = max(BOUND, CHAOS * _sensitivity(subject, model)), str(wrong)
        try:  # a network in which any rounding grows
            error = _error(subject, model, fused, bound)
            said = f"moving the input by one ulp moves the output by {bound / CHAOS:.1e}"
            row = replace(row, error=f"{error:.1e}", detail=said)
        except AssertionError:
            faults.append(" ".join(said.split()))
    row = _hand_written(row, subject, model, before)
    if row.hand_written and work(after) > int(row.hand_written):
        faults.append(f"its own conversion has {row.hand_written} operators")
    if faults:
        return replace(row, status="failed", detail="; ".join(faults))
    return replace(row, status="equal")


def _hand_written(row: Row, subject: Subject, model: nn.Module, before: OpCounts) -> Row:
    """What timm's own conversion makes of the model, if it changes what the model executes."""
    if not any(hasattr(module, method) for module in model.modules() for method in BY_HAND):
        return row
    try:
        converted = timm.utils.reparameterize_model(model)
        found = counts(_callable(subject, converted), subject.inputs)
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return replace(row, hand_written_error=f"raises {said}"[:200])
    if found == before:
        return row
    try:
        exact = f"{_error(subject, model, converted, bound=float('inf')):.1e}"
    except AssertionError as wrong:
        exact = " ".join(str(wrong).split())
    return replace(row, hand_written=str(work(found)), hand_written_error=exact)


def _error(subject: Subject, model: nn.Module, fused: nn.Module, bound: float = BOUND) -> float:
    model, fused = _callable(subject, model), _callable(subject, fused)
    with FastDepthwise():
        return assert_same(model, fused, *copy.deepcopy(subject.inputs), bound=bound)


def _sensitivity(subject: Subject, model: nn.Module) -> float:
    """How far the output moves, relative to its largest value, with the last bit of the input."""
    moved = pytree.tree_map_only(Tensor, lambda x: x * (1 + 2**-52), subject.inputs)
    run = _callable(subject, model)
    with torch.no_grad(), FastDepthwise():
        ours, theirs = (
            [leaf for leaf in pytree.tree_leaves(run(*inputs)) if isinstance(leaf, Tensor)]
            for inputs in (copy.deepcopy(subject.inputs), moved)
        )
    pairs = zip(ours, theirs, strict=True)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def _callable(subject: Subject, model: nn.Module) -> nn.Module:
    return model if subject.call is None else _Called(model, subject.call)


class _Called(nn.Module):
    """A model by the stages that can be compared."""

    def __init__(self, model: nn.Module, call: Any) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, *inputs: Any) -> Tensor:
        result: Tensor = self.call(self.model, *inputs)
        return result


def _resident(reset: bool = False) -> float:
    """The peak of resident memory in MB since the last reset; 0 where the system does not say."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    if reset:
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    (line,) = (text for text in status.read_text("utf-8").splitlines() if "VmHWM" in text)
    return int(line.split()[1]) / 1024
