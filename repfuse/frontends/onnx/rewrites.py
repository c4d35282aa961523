"""The weights of what is rewritten: computed in float64, proved, rounded once."""

from __future__ import annotations

from typing import Any

import numpy as np

from repfuse.arrays import evaluate
from repfuse.frontends.onnx.emit import Names, emit
from repfuse.frontends.onnx.lowering import Lowered
from repfuse.frontends.onnx.parts import ROUNDS, Part
from repfuse.frontends.onnx.patch import Rewrite
from repfuse.frontends.onnx.probe import path_of, probe
from repfuse.frontends.onnx.shapes import FLOATS
from repfuse.graph import Value, describe
from repfuse.report import RefusalReport, Report
from repfuse.rounding import rounded
from repfuse.select import Choice

__all__ = ["compute_rewrites"]

LARGEST = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38, "float32": 3.4028234663852886e38}


def compute_rewrites(
    part: Part, names: Names, probing: bool, report: Report, tell: Any
) -> list[Rewrite]:
    """The weights of all rewrites, proved; what fails is forbidden, and the rest chosen anew."""
    ready: dict[tuple[Any, ...], Rewrite] = {}
    for _ in range(ROUNDS):
        failed = False
        wanted = part.rewritten()
        for count, (value, choice) in enumerate(wanted.items()):
            key = (value, *((t.source, describe(t.operator)) for t in choice.terms))
            if key not in ready:
                try:
                    fault = _rewrite(part, value, choice, names, probing, ready, key)
                except Exception as error:  # what cannot be computed stays as it is
                    fault = f"!{type(error).__name__}: {error}"
                if fault is not None:
                    failed = True
                    _complain(part, value, choice, fault, report)
                    part.forbid(value, choice)
            tell(count + 1)
        if not failed:
            break
        part.decide()
    keys = {
        (value, *((t.source, describe(t.operator)) for t in choice.terms))
        for value, choice in part.rewritten().items()
    }
    return [rewrite for key, rewrite in sorted(ready.items(), key=lambda p: p[0][0]) if key in keys]


def _rewrite(
    part: Part,
    value: Value,
    choice: Choice,
    names: Names,
    probing: bool,
    ready: dict[tuple[Any, ...], Rewrite],
    key: tuple[Any, ...],
) -> str | None:
    """Compute one rewrite; a text where it cannot be: "!" before it marks a failed probe."""
    lowered = part.lowered
    elem = _elem(lowered, value, choice)
    precision = FLOATS.get(elem)
    if precision is None:
        return "the element type of the result is not known here"
    emitted = emit(lowered, part.engine, value, choice, names, elem)
    arrays = dict(zip(emitted.arrays, evaluate(*emitted.arrays.values()), strict=True))
    if not all(np.isfinite(array).all() for array in arrays.values()):
        return "the weights hold NaN, infinity or a negative variance"
    if probing:
        disagreement = probe(lowered, value, choice, emitted, arrays)
        if disagreement is not None:
            return f"!{disagreement}"
    limit = LARGEST.get(precision, np.inf)
    if any(np.abs(array).max(initial=0.0) > limit for array in arrays.values()):
        return f"the folded weights overflow {precision}"
    constants = {
        name: rounded(_compact(array) if name in emitted.operands else array, precision)
        for name, array in arrays.items()
    }
    emitted.arrays.clear()
    ready[key] = Rewrite(value, emitted, constants, elem)
    return None


def _compact(array: np.ndarray) -> np.ndarray:
    """The operand of a Mul or an Add as a single number where all of its elements are equal."""
    if array.size > 1 and (array == array.flat[0]).all():
        return array.reshape(-1)[:1].reshape((1,) * array.ndim)
    return array


def _elem(lowered: Lowered, value: Value, choice: Choice) -> int:
    """The element type of a value: as inferred, or that of the constants it is made with."""
    elem = lowered.kinds[value].elem
    if elem:
        return elem
    for member in path_of(lowered, value, choice):
        for index in lowered.made_by[member]:
            for name in lowered.scope.protos[index].input:
                if name in lowered.constants and lowered.constants.precision(name):
                    return lowered.constants.kind(name).elem
    return 0


def _complain(part: Part, value: Value, choice: Choice, fault: str, report: Report) -> None:
    lowered = part.lowered
    label = lowered.graph.nodes[value].label
    if not fault.startswith("!"):
        part.refusals.append(RefusalReport(label, "weights", "fold", fault))
        return
    indices = {i for member in path_of(lowered, value, choice) for i in lowered.made_by[member]}
    nodes = ", ".join(lowered.scope.label(index) for index in sorted(indices))
    report.errors.append(f"{fault[1:]}; nodes {nodes}")
