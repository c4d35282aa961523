"""A slice of the campaign, and that the campaign can fail."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.campaign.checks import Wrong, check, gap
from tests.campaign.graphs import check_graph, random_graph, shrink_graph
from tests.campaign.modules import random_program
from tests.campaign.program import Body, Program, Statement
from tests.campaign.shrink import shrink
from tests.campaign.work import Tally, one
from tests.frontends.onnx.build import Net

ROOT = Path(__file__).parents[1]
SLICES = 5
SIZE = 12  # networks of one


@pytest.mark.parametrize("part", range(SLICES))
def test_a_slice(part: int) -> None:
    tally = Tally()
    for number in range(part * SIZE, (part + 1) * SIZE):
        one(0, number, tally)
    assert tally.failures == []
    assert tally.counts["checked"] + tally.counts["invalid"] == SIZE
    assert tally.counts["fused"] > 0.6 * SIZE, "too few have anything to fuse"
    assert tally.counts["refused"] > 0.4 * SIZE, "too few have a near-miss"
    assert tally.counts["invalid"] <= 1


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False))
def test_networks_that_hypothesis_draws(dice: random.Random) -> None:
    check(random_program(dice, 4))


def test_a_seed_is_a_network() -> None:
    first, second, other = (random_program(random.Random(seed)) for seed in (5, 5, 6))
    assert first == second
    assert first != other
    assert random_graph(5)[0] == random_graph(5)[0]


# A network whose answer is not the same twice stands for one that is fused wrongly.
LAYERS = (
    ("conv", "nn.Conv2d(4, 4, 3, padding=1)"),
    ("bn", "nn.BatchNorm2d(4)"),
)
STATEMENTS = (
    Statement("v1", "self.conv(x)"),
    Statement("v2", "self.bn(v1)"),
    Statement("v3", "v2 + torch.rand(1)"),
    Statement("v4", "torch.relu(v3)"),
    Statement("", "v4 += 1"),
    Statement("v5", "v4[:, :2]"),
)
WRONG = Program((Body("Net", "x", LAYERS, STATEMENTS, "v5, v2"),), ((1, 4, 5, 7), (2, 4, 8, 6)))


def test_a_wrong_answer_is_found_and_made_small(tmp_path: Path) -> None:
    with pytest.raises(Wrong) as found:
        check(WRONG)
    assert found.value.kind == "not equal"

    def fails(program: Program) -> bool:
        try:
            check(program)
        except Wrong as wrong:
            return wrong.kind == "not equal"
        except Exception:
            return False
        return False

    small = shrink(WRONG, fails)
    assert [str(one) for one in small.bodies[0].statements] == ["v3 = x + torch.rand(1)"]
    assert len(small.shapes) == 1

    script = tmp_path / "failure.py"
    script.write_text(small.script(), "utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout.split(")")[-1]) > 1e-9


def test_a_graph_is_made_small() -> None:
    net = Net(17)
    x = net.input("x", ["N", 4, "H", "W"])
    y = net.node("Relu", net.bn(net.node("Sigmoid", x), 4))
    model = net.model(net.node("Abs", net.node("Neg", y)), y)

    def fails(smaller: object) -> bool:
        return "Neg" in str(smaller)

    small = shrink_graph(model, fails)
    assert [node.op_type for node in small.graph.node] == ["Neg", "Abs"]
    assert len(small.graph.output) == 1


def test_a_graph_that_is_right_passes() -> None:
    model, sizes = random_graph(3)
    assert check_graph(model, sizes).regions >= 0


def test_the_gap_sees_what_differs() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    assert gap([x], [x]) == 0
    assert gap([x], [x * 1.001]) > 1e-4
    assert gap([x], [x.T]) == float("inf")
    assert gap([x], [x, x]) == float("inf")
    assert gap([x], [x * float("nan")]) == float("inf")
    assert gap([3], [4]) == float("inf")
