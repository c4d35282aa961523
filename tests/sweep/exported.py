"""Export a model, fuse the file, and compare both with the module."""

from __future__ import annotations

import copy
import io
import random
import time
import warnings
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import timm
import torch
from onnx import ModelProto
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import repfuse
from tests.models.exports import silent
from tests.models.zoo import FastDepthwise
from tests.numerics import randomize
from tests.sweep.check import MILLION, resident, size_of
from tests.sweep.families import FAMILIES
from tests.sweep.rows import ExportRow

__all__ = ["EXPORTERS", "check_export", "sample"]

EXPORTERS = ("TorchScript", "dynamo")
FACTOR = 16.0  # so much further off than the exported model a fused one may be, in float32
FLOOR = 16 * float(np.finfo(np.float32).eps)  # below which no error counts
WORK = ("Conv", "ConvTranspose", "BatchNormalization", "Gemm", "MatMul", "Add")
OFTEN = 5  # every so many models, one goes through the second exporter, too


def sample(count: int, largest: float, seed: int = 0) -> list[tuple[str, str]]:
    """Models of timm and the exporter of each: one of every file of timm, then a second.

    The same at every call. largest: in millions of parameters.
    """
    dice = random.Random(seed)
    homes = [timm.list_models(module=home) for home in sorted(timm.list_modules())]
    for names in homes:
        dice.shuffle(names)
    found: list[str] = []
    while len(found) < count and any(homes):
        for names in homes:
            while names and len(found) < count:
                name, size = names[0], size_of("timm", names.pop(0))
                if size is not None and size <= largest:
                    found.append(name)
                    break
    pairs = [(name, EXPORTERS[0]) for name in found]
    return pairs + [(name, EXPORTERS[1]) for name in found[::OFTEN]]


def check_export(family: str, name: str, exporter: str, largest: float) -> ExportRow:
    """Everything that the sweep asks of one exported model; largest is as in `sample`."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    subject = FAMILIES[family](name)
    size = sum(p.numel() for p in subject.model.parameters()) / MILLION
    row = ExportRow(name, exporter, subject.home, parameters=round(size, 2))
    if size > largest:
        return replace(row, status="skipped", detail="too large")
    model = randomize(subject.model.eval())
    inputs = pytree.tree_map(Tensor.float, subject.inputs)
    answer = _answer(model, inputs)
    try:
        exported = _export(model, inputs, exporter)
        feed = _feed(exported, inputs)
        own = _run(exported, feed)
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return replace(row, status="not exported", detail=said[:200])
    return judge(row, exported, feed, answer, own)


def judge(
    row: ExportRow,
    exported: ModelProto,
    feed: dict[str, np.ndarray],
    answer: list[np.ndarray],
    own: list[np.ndarray],
) -> ExportRow:
    """Fuse an exported model, and fill in its row."""
    written = exported.SerializeToString(deterministic=True)
    start, before = time.process_time(), resident(reset=True)
    plan = repfuse.plan(exported)
    fused = plan.apply()
    seconds, memory = time.process_time() - start, resident() - before
    ours, theirs = (Counter(node.op_type for node in m.graph.node) for m in (exported, fused))
    row = replace(
        row,
        nodes=f"{ours.total()} -> {theirs.total()}",
        convs=f"{ours['Conv']} -> {theirs['Conv']}",
        norms=f"{ours['BatchNormalization']} -> {theirs['BatchNormalization']}",
        work=f"{sum(ours[kind] for kind in WORK)} -> {sum(theirs[kind] for kind in WORK)}",
        refusals=len(plan.report.refusals),
        seconds=round(seconds, 2),
        memory=round(memory),
    )
    faults = [f"a rewrite failed its probe: {error}" for error in plan.report.errors]
    if exported.SerializeToString(deterministic=True) != written:
        faults.append("the exported model changed")
    if _ports(fused) != _ports(exported):
        faults.append("the inputs or outputs changed")
    if again := repfuse.plan(fused).report.regions:
        faults.append(f"a second fuse rewrites {again[0].where}")
    try:
        onnx.checker.check_model(fused, full_check=True)
        found = _run(fused, feed)
        mine, yours = _error(answer, own), _error(answer, found)
        row = replace(row, own_error=f"{mine:.1e}", error=f"{yours:.1e}")
        if not yours <= FACTOR * max(mine, FLOOR):
            faults.append(f"relative error {yours:.3g}, that of the exported model is {mine:.3g}")
    except Exception as error:
        faults.append(" ".join(f"{type(error).__name__}: {error}".split())[:300])
    if faults:
        return replace(row, status="failed", detail="; ".join(faults)[:300])
    return replace(row, status="equal")


def _export(model: nn.Module, inputs: tuple[Any, ...], exporter: str) -> ModelProto:
    """As it is written for training: what there is to fold is left to repfuse."""
    copies = copy.deepcopy(inputs)
    with silent():
        if exporter == "dynamo":
            program = torch.onnx.export(model, copies, dynamo=True, optimize=False, verbose=False)
            assert program is not None
            exported: ModelProto = program.model_proto
            return exported
        target: Any = io.BytesIO()
        mode = torch.onnx.TrainingMode.PRESERVE
        torch.onnx.export(
            model, copies, target, dynamo=False, training=mode, do_constant_folding=False
        )
        return onnx.load_from_string(target.getvalue())


def _answer(model: nn.Module, inputs: tuple[Any, ...]) -> list[np.ndarray]:
    """What the module gives in float64."""
    model, inputs = copy.deepcopy(model).double(), pytree.tree_map(Tensor.double, inputs)
    with torch.no_grad(), FastDepthwise():
        leaves = pytree.tree_leaves(model(*inputs))
    return [leaf.numpy() for leaf in leaves if isinstance(leaf, Tensor)]


def _feed(model: ModelProto, inputs: tuple[Any, ...]) -> dict[str, np.ndarray]:
    weights = {tensor.name for tensor in model.graph.initializer}
    names = [port.name for port in model.graph.input if port.name not in weights]
    return {name: x.numpy() for name, x in zip(names, pytree.tree_leaves(inputs), strict=True)}


def _run(model: ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: list[np.ndarray] = session.run(None, feed)
    return found


def _ports(model: ModelProto) -> list[bytes]:
    ports = (*model.graph.input, *model.graph.output)
    return [port.SerializeToString(deterministic=True) for port in ports]


def _error(answer: list[np.ndarray], found: list[np.ndarray]) -> float:
    """The largest difference of any output, relative to its largest value."""
    worst = 0.0
    for one, other in zip(answer, found, strict=True):
        assert one.shape == other.shape, f"{one.shape} against {other.shape}"
        peak = np.abs(one).max()
        assert np.isfinite(peak) and peak > 0, "an output without finite values"
        assert np.isfinite(other).all(), "NaN or Inf in float32"
        worst = max(worst, float(np.abs(one - other).max() / peak))
    return worst
