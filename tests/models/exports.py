"""Modules as ONNX files, in the four ways in which torch writes them."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import ModelProto
from torch import Tensor, nn

__all__ = ["WAYS", "counts", "export", "silent"]

# The dynamo exporter without and with its optimizer; the legacy one, which folds conv-BN in EVAL.
WAYS = ("dynamo", "dynamo optimised", "legacy preserve", "legacy eval")
KEEPS_NORMS = ("dynamo", "legacy preserve")


def export(model: nn.Module, image: Tensor, path: Path, *ways: str) -> dict[str, ModelProto]:
    """The module exported in the given ways; both forms of dynamo come from one export."""
    found: dict[str, ModelProto] = {}
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["result"]}
    quiet = contextlib.redirect_stdout(io.StringIO())
    with warnings.catch_warnings(), quiet, silent():
        warnings.simplefilter("ignore")
        for way in ways or WAYS:
            if way.startswith("legacy"):
                keeps = way == "legacy preserve"
                mode = torch.onnx.TrainingMode
                torch.onnx.export(
                    model,
                    (image,),
                    path,
                    dynamo=False,
                    training=mode.PRESERVE if keeps else mode.EVAL,
                    do_constant_folding=not keeps,
                    dynamic_axes={"image": {0: "batch"}},
                    **names,
                )
                found[way] = onnx.load(path)
        wanted = [way for way in ways or WAYS if way.startswith("dynamo")]
        if wanted:
            program = torch.onnx.export(
                model, (image,), dynamo=True, optimize=False, verbose=False, **names
            )
            assert program is not None
            for way in sorted(wanted):
                if way == "dynamo optimised":
                    program.optimize()
                program.save(path)
                found[way] = onnx.load(path)
    return {way: found[way] for way in ways or WAYS}


@contextlib.contextmanager
def silent() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def counts(model: ModelProto) -> tuple[int, int]:
    """Conv and BatchNormalization nodes."""
    found = Counter(node.op_type for node in model.graph.node)
    return found["Conv"], found["BatchNormalization"]
