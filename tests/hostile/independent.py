"""Whether two files compute the same, found out without any code of repfuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

__all__ = ["compare"]

SIZES = (6, 5, 8, 1, 32)
CLOSE = {"float16": 0.05, "bfloat16": 0.2, "float64": 1e-6}  # of the largest value
RANDOM = (b"Random", b"Bernoulli", b"Multinomial", b"Dropout")  # another node, another draw
APART = 30.0  # times as far as two ways of running the original


def compare(original: str, result: str, said: str) -> None:
    """Write to the file `said`: nothing where they agree, why nobody can tell, or what is wrong."""
    with open(said, "w", encoding="utf-8") as answer:  # noqa: PTH123
        answer.write(_difference(original, result))


def _difference(original: str, result: str) -> str:
    if (fault := _invalid(result)) and not _invalid(original):
        return f"the result is not valid: {fault}"
    text = onnx.load(original, load_external_data=False).SerializeToString()
    if any(operator in text for operator in RANDOM):
        return "draws random numbers"
    for run in (_runtime, _reference):
        for size in SIZES:
            try:
                feeds = _feeds(onnx.load(original, load_external_data=False), size)
                wanted, other = run(original, feeds, False), run(original, feeds, True)
            except Exception:
                continue
            try:
                found = run(result, feeds, False)
            except Exception as error:
                return f"the result does not run: {error}"
            return _gap(wanted, other, found)
    return "does not run"


def _invalid(path: str) -> str:
    try:
        onnx.checker.check_model(path)
    except Exception as error:
        return str(error) or "for no reason"
    return ""


def _gap(wanted: list[Any], other: list[Any], found: list[Any]) -> str:
    for place, (mine, again, theirs) in enumerate(zip(wanted, other, found, strict=True)):
        if not isinstance(mine, np.ndarray) or mine.dtype.kind in "OUS":
            continue
        if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            return f"output {place}: {mine.shape} {mine.dtype}, now {theirs.shape} {theirs.dtype}"
        close = CLOSE.get(mine.dtype.name, 1e-3)
        mine, again, theirs = (np.asarray(v, np.float64) for v in (mine, again, theirs))
        if mine.shape != again.shape or not np.isfinite(mine).any():
            continue
        sure = np.isfinite(mine) & np.isfinite(again)
        finite = sure & np.isfinite(theirs)
        if sure.sum() > 2 * finite.sum():
            return f"output {place}: {finite.sum()} of {sure.sum()} values are finite"
        with np.errstate(all="ignore"):
            largest = np.abs(mine[finite]).max(initial=0.0)
            gap = np.abs(mine - theirs)[finite].max(initial=0.0)
            own = np.abs(mine - again)[finite].max(initial=0.0)
        if gap > close * largest + APART * own + 1e-12:
            return (
                f"output {place}: {gap:.3g} apart, of {largest:.3g}; the original itself {own:.3g}"
            )
    return ""


def _feeds(model: ModelProto, size: int) -> dict[str, Any]:
    rng, held = np.random.default_rng(size), {t.name for t in model.graph.initializer}
    feeds: dict[str, Any] = {}
    for value in model.graph.input:
        if value.name in held:
            continue
        kind = value.type.tensor_type
        dims = [d.dim_value if d.dim_value > 0 else size for d in kind.shape.dim]
        if np.prod(dims, dtype=float) > 2**22:
            raise ValueError("too large")
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        values = rng.standard_normal(dims) if dtype.kind in "fV" else rng.integers(0, 2, dims)
        feeds[value.name] = np.asarray(values).astype(dtype)
    return feeds


def _runtime(path: str, feeds: dict[str, Any], optimize: bool) -> list[Any]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def _reference(path: str, feeds: dict[str, Any], optimize: bool) -> list[Any]:
    from onnx.reference import ReferenceEvaluator

    del optimize
    with np.errstate(all="ignore"):
        return list(ReferenceEvaluator(path).run(None, feeds))
