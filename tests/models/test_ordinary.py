"""What ordinary networks hold beside their convs is merged, however it is written."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import onnx
import pytest
import torch
from onnx import ModelProto
from torch import Tensor, nn

import repfuse
from tests.frontends.onnx.evaluate import difference, evaluate
from tests.models.exports import silent
from tests.models.measure import exported, nodes, operators
from tests.models.ordinary import PATTERNS, Pattern
from tests.numerics import assert_same, randomize

BOUND = 1e-10
WAYS = [(name, how) for name, pattern in PATTERNS.items() for how in pattern.ways]
# The older exporter has no channel shuffle, and computes the widths of a border that stays in many
# nodes.
NOT_EXPORTED = {"ChannelShuffle"}
LEFT = {
    ("branches with two kinds of border", "reflect, replicate"),
    ("branches with two kinds of border", "replicate, reflect"),
    ("a border of a number", "a norm after"),
}
# Every way of what the newer exporter writes in nodes of its own; of the others the first.
WITH_DYNAMO = {"averaged heads", "shuffle after a conv", "equal convs on halves"}
DYNAMO = [
    (name, how)
    for name, pattern in PATTERNS.items()
    for how in (pattern.ways if name in WITH_DYNAMO else list(pattern.ways)[:1])
]


# Its optimiser joins two Transpose nodes.
FEWER = {"layer scale, channels last": 9}


def made(name: str, how: str) -> tuple[Pattern, nn.Module, Tensor]:
    pattern = PATTERNS[name]
    torch.manual_seed(0)
    model = randomize(pattern.ways[how]().double().eval())
    return pattern, model, torch.randn(*pattern.shape, dtype=torch.float64)


@pytest.mark.parametrize(("name", "how"), WAYS)
def test_modules(name: str, how: str) -> None:
    pattern, model, image = made(name, how)
    plan = repfuse.plan(model)
    fused = plan.apply()
    assert plan.report.errors == []
    assert_same(model, fused, image, bound=BOUND)
    assert operators(fused, image) == pattern.smallest, plan
    assert repfuse.plan(fused).report.regions == []


def check_file(
    file: ModelProto, pattern: Pattern, image: Tensor, left: bool = False, nodes_left: int = 0
) -> None:
    """Fuse a file, and compare; left: it stays as it is. nodes_left: if not as many as usual."""
    plan = repfuse.plan(file)
    fused = plan.apply()
    assert plan.report.errors == []
    onnx.checker.check_model(fused, full_check=True)
    feeds: dict[str, Any] = {"image": image.numpy()}
    assert difference(evaluate(file, feeds), evaluate(fused, feeds)) <= BOUND
    fewest = nodes_left or pattern.nodes or pattern.smallest
    assert (nodes(fused) > fewest) if left else (nodes(fused) == fewest), plan
    assert repfuse.plan(fused).report.regions == []


@pytest.mark.parametrize(("name", "how"), [way for way in WAYS if way[1] not in NOT_EXPORTED])
def test_files(name: str, how: str) -> None:
    pattern, model, image = made(name, how)
    check_file(exported(model, image, "open"), pattern, image, (name, how) in LEFT)


@pytest.mark.parametrize(("name", "how"), DYNAMO)
def test_files_of_the_newer_exporter(name: str, how: str) -> None:
    pattern, model, image = made(name, how)
    axes = dict.fromkeys([0, *range(2, image.dim())], torch.export.Dim.DYNAMIC)
    with contextlib.redirect_stdout(io.StringIO()), silent():
        program = torch.onnx.export(
            model,
            (image,),
            dynamo=True,
            verbose=False,
            dynamic_shapes=(axes,),
            input_names=["image"],
            output_names=["result"],
        )
    assert program is not None
    check_file(program.model_proto, pattern, image, nodes_left=FEWER.get(name, 0))
