"""CPU seconds of calls that are compared: run in turn, one thread, medians.

Process time counts what this process computes, and not what others do meanwhile; the caches are
shared, though, so that calls run in turn, every other round backwards, and the median counts.
"""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import onnxruntime as ort
import torch
from torch import Tensor, nn

from repfuse.timings import processor
from tests.models.exports import silent

__all__ = ["eager", "exported", "in_turn", "machine", "session"]

SLOT = 0.004  # seconds: what is shorter is called several times
ROUNDS = 9


def in_turn(calls: Sequence[Callable[[], object]], rounds: int = ROUNDS) -> list[float]:
    """The median CPU seconds of one run of each call."""
    counts = []
    for call in calls:
        call()
        begin, runs = time.process_time(), 0
        while time.process_time() - begin < SLOT / 2:
            call()
            runs += 1
        counts.append(2 * runs)
    taken: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds):
        for place in list(range(len(calls)))[:: 1 if turn % 2 else -1]:
            begin = time.process_time()
            for _ in range(counts[place]):
                calls[place]()
            taken[place].append((time.process_time() - begin) / counts[place])
    return [median(seconds) for seconds in taken]


def eager(model: nn.Module, *inputs: Tensor) -> Callable[[], object]:
    return lambda: model(*inputs)


def exported(model: nn.Module, *inputs: Tensor, norms: bool = False) -> bytes:
    """The module as a file of fixed sizes; norms: kept as they are, or folded by the exporter."""
    target: Any = io.BytesIO()
    mode = torch.onnx.TrainingMode
    with warnings.catch_warnings(), silent():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            inputs,
            target,
            dynamo=False,
            input_names=[f"x{place}" for place in range(len(inputs))],
            output_names=["y"],
            training=mode.PRESERVE if norms else mode.EVAL,
            do_constant_folding=not norms,
        )
    content: bytes = target.getvalue()
    return content


def session(file: bytes, *inputs: Tensor) -> Callable[[], object]:
    """A run of the file in ONNX Runtime, on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    made = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    feeds = {f"x{place}": x.numpy() for place, x in enumerate(inputs)}
    return lambda: made.run(None, feeds)


def machine() -> str:
    """The processor, as the system names it, and the versions of what runs on it."""
    version = torch.__version__.partition("+")[0]
    return f"{processor()}, torch {version}, ONNX Runtime {ort.__version__}"
