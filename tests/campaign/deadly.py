"""Models of which ONNX Runtime itself dies."""

from __future__ import annotations

import os
import signal

import onnxruntime as ort
from onnx import ModelProto

__all__ = ["ends_the_process"]

LONGEST = 60  # seconds


def ends_the_process(model: ModelProto) -> bool:
    """Whether a process that loads it with all optimizations ends there, or never
    does; found out in a process of its own."""
    data = model.SerializeToString()
    child = os.fork()
    if not child:
        try:
            signal.alarm(LONGEST)
            options = ort.SessionOptions()
            options.log_severity_level, options.intra_op_num_threads = 4, 1
            ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        finally:
            os._exit(0)  # also where it raises: that is said, and no death
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])
