"""Questions about what torch is doing: whether it traces, exports, compiles."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import repfuse
from tests.frontends import Net, conv
from tests.numerics import randomize

jit: Any = torch.jit
is_tracing = jit.is_tracing
X = torch.randn(2, 8, 9, 11, generator=torch.Generator().manual_seed(0))


def traced(model: nn.Module) -> int:
    return int(torch.jit.trace(model, X, check_trace=False)(X).dim())


def compiled(model: nn.Module) -> int:
    return int(torch.compile(model, backend="eager")(X).dim())


def exported(model: nn.Module) -> int:
    return int(torch.export.export(model, (X,)).module()(X).dim())


def exported_to_onnx(model: nn.Module) -> int:
    file: Any = io.BytesIO()
    torch.onnx.export(model, (X,), file, dynamo=False)
    return len(onnx.load_from_string(file.getvalue()).graph.output[0].type.tensor_type.shape.dim)


def with_anomalies(model: nn.Module) -> int:
    with torch.autograd.set_detect_anomaly(True):
        return int(model(X).dim())


def deterministic(model: nn.Module) -> int:
    torch.use_deterministic_algorithms(True)
    try:
        return int(model(X).dim())
    finally:
        torch.use_deterministic_algorithms(False)


QUESTIONS: dict[str, tuple[Callable[[], Any], Callable[[nn.Module], int]]] = {
    "torch.jit.is_tracing": (lambda: jit.is_tracing(), traced),
    "is_tracing under its name": (lambda: is_tracing(), traced),
    "the state of jit": (lambda: torch._C._get_tracing_state(), traced),
    "is_compiling": (lambda: torch.compiler.is_compiling(), compiled),
    "is_exporting": (lambda: torch.compiler.is_exporting(), exported),
    "is_in_onnx_export": (lambda: torch.onnx.is_in_onnx_export(), exported_to_onnx),
    "is_anomaly_enabled": (lambda: torch.is_anomaly_enabled(), with_anomalies),
    "deterministic": (lambda: torch.are_deterministic_algorithms_enabled(), deterministic),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", QUESTIONS)
def test_the_fused_model_asks_again(name: str) -> None:
    asks, run = QUESTIONS[name]

    def forward(n: Any, x: Tensor) -> Tensor:
        y: Tensor = n.n(n.a(x) + n.b(x) + x)
        return y.flatten(1) if asks() else y

    model = randomize(Net(forward, a=conv(), b=conv(size=1), n=nn.BatchNorm2d(8))).eval()
    fused = repfuse.fuse(model)
    assert run(model) == run(fused) == 2
    assert model(X).dim() == fused(X).dim() == 4


@pytest.mark.filterwarnings("ignore")
def test_a_trace_of_repfuse_is_none_of_torch() -> None:
    def forward(n: Any, x: Tensor) -> Tensor:
        y: Tensor = n.n(n.a(x) + n.b(x) + x)
        return y.flatten(1) if torch.fx._symbolic_trace.is_fx_tracing() else y

    model = randomize(Net(forward, a=conv(), b=conv(size=1), n=nn.BatchNorm2d(8))).eval()
    assert repfuse.fuse(model)(X).dim() == 4
