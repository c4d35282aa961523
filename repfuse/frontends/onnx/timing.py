"""Times one operator in ONNX Runtime, for the target "measured"."""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from repfuse.errors import RepfuseError
from repfuse.measured import Work, quickest
from repfuse.timings import processor

__all__ = ["Timer"]

OPSET, IR = 17, 8
SHORTEST = 1e-7  # seconds: what is left of an operator that takes no longer than the call of a file


class Timer:
    """Runs a work as a file of one node in ONNX Runtime with its own choice of threads.

    The call of a file takes time of its own, which is measured once and taken off.
    """

    @cached_property
    def machine(self) -> str:
        """What the times hold for. Raises RepfuseError where there is no ONNX Runtime."""
        try:
            import onnxruntime
        except ImportError as error:
            raise RepfuseError(
                f'{error.name} is not installed: pip install "repfuse[onnx]", or choose another '
                "target than 'measured'"
            ) from error
        return f"onnxruntime {onnxruntime.__version__}, {processor()}, {os.cpu_count()} threads"

    @cached_property
    def call(self) -> float:
        """The seconds of a call that computes next to nothing."""
        return self._seconds(
            helper.make_node("Relu", ["x0"], ["y"]), [np.ones((1, 1), np.float32)], []
        )

    def __call__(self, work: Work) -> float | None:
        """Seconds of one run; None for what is not timed."""
        noise = np.random.default_rng(0)

        def random(*shape: int) -> Any:
            return noise.random(shape, np.float32)

        channels = work.channels[0]
        inputs = [random(work.batch, count, *work.sizes) for count in work.channels]
        names = [f"x{place}" for place in range(len(inputs))]
        settings: dict[str, Any] = {}
        weights: list[Any] = []
        if work.kind == "linear":
            kind, inputs = "Gemm", [random(work.batch * work.sizes[0], channels)]
            weights = [random(channels, work.out_channels), random(work.out_channels)]
        elif work.kind == "affine":
            kind = "BatchNormalization"
            weights = [random(channels) + 1 for _ in range(4)]
        elif work.kind == "concat":
            kind, settings = "Concat", {"axis": 1}
        elif work.kind == "sum":
            kind = "Sum" if len(inputs) > 2 else "Add"
        else:
            settings = {
                "kernel_shape": work.kernel_size,
                "strides": work.stride,
                "pads": [low for low, _ in work.padding] + [high for _, high in work.padding],
            }
            kind = "AveragePool"
            if work.kind == "conv":
                kind = "ConvTranspose" if work.transposed else "Conv"
                settings |= {"dilations": work.dilation, "group": work.groups}
                first, second = work.out_channels, channels // work.groups
                if work.transposed:
                    first, second = channels, work.out_channels // work.groups
                weights = [random(first, second, *work.kernel_size)]
                weights += [random(work.out_channels)] if work.bias else []
        node = helper.make_node(
            kind, [*names, *(f"w{place}" for place in range(len(weights)))], ["y"], **settings
        )
        return max(self._seconds(node, inputs, weights) - self.call, SHORTEST)

    def _seconds(self, node: Any, inputs: list[Any], weights: list[Any]) -> float:
        import onnxruntime

        graph = helper.make_graph(
            [node],
            "g",
            [
                helper.make_tensor_value_info(f"x{place}", TensorProto.FLOAT, value.shape)
                for place, value in enumerate(inputs)
            ],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(value, f"w{place}") for place, value in enumerate(weights)],
        )
        opset = helper.make_opsetid("", OPSET)
        model: onnx.ModelProto = helper.make_model(graph, opset_imports=[opset], ir_version=IR)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        feeds = {f"x{place}": value for place, value in enumerate(inputs)}
        return quickest(lambda: session.run(None, feeds))
