"""Run a model: ONNX Runtime on the CPU, or onnx's own evaluator for types that it lacks.

ONNX Runtime has no float64 or bfloat16 convolution on the CPU. A model that it cannot run for
lack of a kernel is run by `onnx.reference`, which is slow and has every operator in every type.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import ModelProto, TensorProto

from repfuse.comparison import Output
from repfuse.errors import RepfuseError
from repfuse.frontends.onnx.sources import Source

__all__ = ["EngineLacksKernel", "Runner", "first_line"]

THREADS = 4
LACKS = re.compile(r"NOT_IMPLEMENTED|Type Error: Type 'tensor\((bfloat16|double|float16)\)'")

Array = npt.NDArray[Any]


class EngineLacksKernel(RepfuseError):
    """ONNX Runtime has no kernel for an operator in the model's types."""


class Runner:
    """A model that is ready to run; used as a context, so that it gives back its memory.

    optimize: with all of ONNX Runtime's optimizations, or with none. weights: other values for
    external initializers, as integers that share the bytes of the floats. evaluator: use
    onnx.reference. Raises RepfuseError with the model's name and the node where it cannot.
    """

    def __init__(
        self,
        source: Source,
        *,
        optimize: bool = False,
        model: ModelProto | None = None,
        weights: Mapping[str, Array] | None = None,
        evaluator: bool = False,
    ) -> None:
        self.source = source
        self.names = [output.name for output in source.model.graph.output]
        self.elems = {
            value.name: value.type.tensor_type.elem_type for value in source.model.graph.input
        }
        self._held: list[Any] = []
        self._session: Any = None
        self._evaluator: Any = None
        try:
            if evaluator:
                self._evaluate(model or source.model, weights or {})
            else:
                self._start(model or source.model, weights or {}, optimize)
        except Exception as error:
            how = " with ONNX Runtime's optimizations" if optimize else ""
            fault = f"{source.name} cannot be loaded{how}: {first_line(error)}"
            if not evaluator and LACKS.search(str(error)):
                raise EngineLacksKernel(fault) from error
            if "is not a registered function/op" in str(error):
                fault += " of ONNX Runtime: a custom operator cannot be run here"
            raise RepfuseError(fault) from error

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self._session = self._evaluator = None
        self._held.clear()

    def run(self, feeds: Mapping[str, Any]) -> list[Output]:
        """The outputs by name; a sequence as `name[0]`, ..., and nothing for an empty optional."""
        try:
            results = self._results(feeds)
        except Exception as error:
            shapes = ", ".join(f"{name}={_shape(value)}" for name, value in feeds.items())
            raise RepfuseError(
                f"{self.source.name} cannot run on {shapes or 'no inputs'}: {first_line(error)}"
            ) from error
        pairs = zip(self.names, results, strict=True)
        return [output for name, value in pairs for output in _flat(name, value)]

    def _start(self, model: ModelProto, weights: Mapping[str, Array], optimize: bool) -> None:
        options = ort.SessionOptions()
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = (
            level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
        )
        options.log_severity_level = 4
        options.intra_op_num_threads = max(1, min(THREADS, os.cpu_count() or 1))
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not optimize:  # packed weights are a second copy of those that are given here
            options.add_session_config_entry("session.disable_prepacking", "1")
        folder = str(self.source.folder.resolve())
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", folder
        )
        for name, values in weights.items():
            elem = next(t.data_type for t in model.graph.initializer if t.name == name)
            given = _ort_value(values, elem)
            self._held += [values, given]
            options.add_initializer(name, given)
        self._session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def _evaluate(self, model: ModelProto, weights: Mapping[str, Array]) -> None:
        from onnx.reference import ReferenceEvaluator

        whole = ModelProto()
        whole.CopyFrom(model)
        for tensor in whole.graph.initializer:
            if tensor.name in weights:
                tensor.ClearField("external_data")
                tensor.ClearField("data_location")
                tensor.raw_data = weights[tensor.name].tobytes()
        onnx.load_external_data_for_model(whole, str(self.source.folder))
        self._evaluator = ReferenceEvaluator(whole)

    def _results(self, feeds: Mapping[str, Any]) -> list[Any]:
        if self._evaluator is not None:
            with np.errstate(all="ignore"):
                return list(self._evaluator.run(None, dict(feeds)))
        if TensorProto.BFLOAT16 not in self._all_elems():
            return list(self._session.run(None, dict(feeds)))
        values = {name: _ort_value(value, self.elems[name]) for name, value in feeds.items()}
        return [_array(value) for value in self._session.run_with_ort_values(None, values)]

    def _all_elems(self) -> set[int]:
        outputs = self.source.model.graph.output
        return {*self.elems.values(), *(v.type.tensor_type.elem_type for v in outputs)}


def _ort_value(values: Any, elem: int) -> Any:
    if elem == TensorProto.BFLOAT16:
        bits = np.ascontiguousarray(values).view(np.uint16)
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, elem)
    if not isinstance(values, np.ndarray):
        return ort.OrtValue.ortvalue_from_numpy(np.asarray(values))
    return ort.OrtValue.ortvalue_from_numpy(
        values.view(onnx.helper.tensor_dtype_to_np_dtype(elem))
        if values.dtype.kind == "i" and elem in (1, 10, 11)
        else values
    )


def _array(value: Any) -> Any:
    """A value of ONNX Runtime in NumPy, which has no bfloat16 of its own."""
    if not value.is_tensor() or value.data_type() != "tensor(bfloat16)":
        return value.numpy()
    import ml_dtypes

    count = prod(value.shape())
    bits = (ctypes.c_uint16 * count).from_address(value.data_ptr()) if count else []
    return np.array(bits, np.uint16).view(ml_dtypes.bfloat16).reshape(value.shape())


def _flat(name: str, value: Any) -> Iterator[Output]:
    if value is None:
        return
    if isinstance(value, list | tuple):
        for index, one in enumerate(value):
            yield from _flat(f"{name}[{index}]", one)
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from _flat(f"{name}[{key!r}]", value[key])
    else:
        array = np.asarray(value)
        if array.dtype.kind == "V":  # of ml_dtypes: NumPy knows no kind for them
            yield Output(name, array.astype(np.float32), array.dtype.name)
        else:
            yield Output(name, array)


def _shape(value: Any) -> str:
    return "x".join(map(str, np.shape(value))) or "scalar"


def first_line(error: Exception) -> str:
    """What an error of ONNX Runtime or onnx says, in one line and without places in its source."""
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : (\w+) : ", "", str(error))
    text = re.sub(
        r"Non-zero status code returned while running (\w+) node. Name:'(.*?)' Status Message: ",
        r"node \2 (\1): ",
        text,
    )
    text = re.sub(r"(/\S*|\b\w+\.\w+):?\d+ \S.*?\) (?=\S)", "", text)
    text = re.sub(r"^This is an invalid model\. ", "", text)
    return re.sub(r"\s+", " ", text).strip().rstrip(".") or type(error).__name__
