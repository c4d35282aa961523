"""One row of a table: a graph, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx
import pytest
from onnx import ModelProto

from repfuse.frontends.onnx.plan import plan_model
from repfuse.report import KeptReport, RefusalReport, Report
from tests.frontends.onnx.build import IMAGE, Dims, Net, bodies, nodes_of, operators
from tests.frontends.onnx.evaluate import SIZES, Sizes, assert_same, in_double

__all__ = ["Case", "Make", "all_of", "each", "fused", "same_interface", "untouched"]

Make = Callable[[Net, str], str | tuple[str, ...]]


def fused(
    model: ModelProto, target: str = "cpu", dynamic: bool = False
) -> tuple[ModelProto, Report]:
    """The fused model, and what the plan says; the given model does not change."""
    before = model.SerializeToString(deterministic=True)
    plan = plan_model(model, target=target, dynamic=dynamic)
    result = plan.apply()
    assert not plan.report.errors, plan.report.errors
    assert model.SerializeToString(deterministic=True) == before
    return result, plan.report


@dataclass(frozen=True)
class Case:
    """A graph on one input, and the nodes of its fused form; Constant nodes are not counted."""

    make: Make
    becomes: str = "Conv"
    dims: Dims = IMAGE
    opset: int = 17
    sizes: tuple[Sizes, ...] = SIZES

    def model(self) -> ModelProto:
        net = Net(self.opset)
        outputs = self.make(net, net.input("x", self.dims))
        return net.model(*([outputs] if isinstance(outputs, str) else outputs))

    def check(self) -> None:
        single = self.model()
        onnx.checker.check_model(single, full_check=True)
        assert operators(single) != self.becomes, "there is nothing to fuse"
        for model, bound in ((in_double(single), 1e-9), (single, 1e-5)):
            result, report = fused(model)
            assert operators(result) == self.becomes, str(report)
            onnx.checker.check_model(result, full_check=True)
            same_interface(model, result)
            assert_same(model, result, bound, self.sizes)
            again, _ = fused(result)
            assert nodes_of(again) == nodes_of(result)


def each(cases: dict[str, Case]) -> pytest.MarkDecorator:
    """One test per case, under its name."""
    return pytest.mark.parametrize("case", cases.values(), ids=list(cases))


def same_interface(model: ModelProto, result: ModelProto) -> None:
    """All but the nodes, the weights and what is said of tensors is as it was, byte for byte."""
    shells = []
    for given in (model, result):
        shell = ModelProto()
        shell.CopyFrom(given)
        for graph in bodies(shell):
            for name in ("initializer", "node", "value_info"):
                if hasattr(graph, name):
                    del getattr(graph, name)[:]
        shells.append(shell.SerializeToString(deterministic=True))
    assert shells[0] == shells[1]


def all_of(report: Report) -> list[RefusalReport | KeptReport]:
    """Everything that the report says of what is left alone."""
    return [*report.refusals, *report.kept]


def untouched(model: ModelProto, dynamic: bool = False) -> Report:
    """Fusing changes not one byte; the report that says why."""
    result, report = fused(model, dynamic=dynamic)
    assert result.SerializeToString(deterministic=True) == model.SerializeToString(
        deterministic=True
    ), str(report)
    return report
