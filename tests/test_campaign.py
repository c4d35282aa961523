"""A slice of the campaign, and that the campaign can fail."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto
from torch import nn

import repfuse
from tests.campaign.checks import check
from tests.campaign.files import check_file
from tests.campaign.gaps import gap
from tests.campaign.graphs import RandomFile, check_graph, check_running, random_file
from tests.campaign.methods import compared, method_calls
from tests.campaign.modules import random_program
from tests.campaign.outcome import Share, Wrong
from tests.campaign.program import Body, Options, Program, Statement, unread
from tests.campaign.shrink import shrink
from tests.campaign.shrink_graphs import shrink_graph
from tests.campaign.structure import with_structure
from tests.campaign.work import Tally, one
from tests.frontends.onnx.build import Net
from tests.frontends.onnx.evaluate import in_double, with_floats

ROOT = Path(__file__).parents[1]
SLICES = 5
SIZE = 24  # networks of one


@pytest.mark.parametrize("part", range(SLICES))
def test_a_slice(part: int) -> None:
    tally = Tally()
    for number in range(part * SIZE, (part + 1) * SIZE):
        one(0, number, tally)
    assert tally.failures == []
    assert tally.counts["checked"] + tally.counts["invalid"] == SIZE
    assert tally.counts["fused"] > 0.5 * SIZE, "too few have anything to fuse"
    assert tally.counts["refused"] > 0.4 * SIZE, "too few have a near-miss"
    assert tally.counts["invalid"] <= 1
    assert tally.checks.keys() >= {"planned twice", "other sizes"}


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False))
def test_networks_that_hypothesis_draws(dice: random.Random) -> None:
    check(random_program(dice, 4))


def test_a_seed_is_a_network() -> None:
    first, second, other = (random_program(random.Random(seed)) for seed in (5, 5, 6))
    assert first == second
    assert first != other
    assert random_file(5) == random_file(5)


def test_the_generators_draw_what_is_to_be_checked() -> None:
    operators, options, dead = set[str](), set[str](), 0
    for seed in range(250):
        program = random_program(random.Random(seed))
        operators |= program.operators()
        options.update(program.options.names())
        dead += program.dead()
    wanted = {"Conv1d", "Conv2d", "Conv3d", "ConvTranspose2d", "BatchNorm2d", "Linear", "LayerNorm"}
    wanted |= {"cat", "stack", "transpose", "flatten", "unflatten", "pad", "einsum", "ModuleList"}
    assert wanted - operators == set()
    assert options >= {"target=gpu", "target=min-ops", "target=min-macs", "shapes", "dynamic"}
    assert options >= {"inplace", "float16", "float32"}
    assert 0 < dead < 25, "code that nobody reads is rare"
    nodes, opsets, kinds = set[str](), set[int](), set[str]()
    for seed in range(250):
        file = random_file(seed)
        nodes.update(node.op_type for node in file.nodes())
        opsets.add(file.opset)
        kinds.add(file.options.dtype)
    wanted = {"Conv", "ConvTranspose", "Gemm", "MatMul", "If", "Loop", "Constant", "Identity"}
    assert wanted | {"Transpose", "Reshape", "Pad", "Slice", "Split", "Gather", "Concat"} <= nodes
    wanted = {"Einsum", "Where", "DequantizeLinear", "ConstantOfShape", "CastLike", "Twist"}
    assert wanted | {"Expand", "Squeeze", "Shape", "Clip", "Sqrt", "InstanceNormalization"} <= nodes
    assert opsets >= {7, 9, 13, 17, 22, onnx.defs.onnx_opset_version()}
    assert kinds >= {"float64", "float32", "float16"}


STRUCTURE = {
    "a method of one's own": "def (part|_part|forward_part)",
    "a block": "class Part",
    "a base class": "class Base",
    "super": r"super\(\)\.(?!__init__)",
    "a lambda": "= lambda ",
    "a static method": "@staticmethod",
    "a function": r"^def stage",
    "an inner function": r"^ +def stage",
    "a hook": "register_forward",
    "a tie": r"self\.\w+\.(weight|bias)(\.data)? = self",
    "a kept value": r"self\.kept",
    "a dict of values": r"box\d+\['",
    "an option": r"(scale|steps|flip|mode|more)=",
    "a method beside": "def (features|extract)",
    "a holder": r"= nn\.Module\(\)",
}


def test_modules_have_the_structure_of_real_ones() -> None:
    programs = [random_program(random.Random(seed)) for seed in range(250)]
    texts = [program.source() for program in programs]
    found = {
        name: sum(bool(re.search(pattern, text, re.MULTILINE)) for text in texts)
        for name, pattern in STRUCTURE.items()
    }
    assert all(found.values()), found
    assert 100 < sum(bool(program.text) for program in programs) < 200


STRUCTURED = """
class Part(nn.Module):

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, given, scale=1.0):
        v1 = self.conv(given['x'])
        v2 = v1 + torch.rand(1)
        for _ in range(2):
            v2 = v2 * scale
        return {'v2': v2, 'x': v1}

class Net(nn.Module):

    def __init__(self):
        super().__init__()
        self.part = Part()

    def forward(self, x):
        found = self.part({'x': x}, scale=0.5)
        v2 = found['v2']
        return (torch.relu(v2), found['x'])
"""


def test_a_text_is_made_small() -> None:
    program = replace(WRONG, text=STRUCTURED)

    def fails(smaller: Program) -> bool:
        try:
            check(smaller)
        except Wrong:
            return "rand" in smaller.source()
        except Exception:
            return False
        return False

    small = shrink(program, fails)
    lines = [line for line in small.text.splitlines() if line.strip()]
    assert len(lines) < 15 and "conv" not in small.text, small.text
    assert len(small.shapes) == 1


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> Any:
        return self.features(x, scale=1.0).relu()

    def features(self, x: torch.Tensor, scale: float = 2.0) -> Any:
        return self.conv(x) * scale


@torch.no_grad()
def test_another_method_that_is_wrong_is_found() -> None:
    model, x = Both().double(), torch.ones(1, 4, 5, 7).double()
    other = copy.deepcopy(model)
    other.features = lambda x, scale=1.0: model.conv(x) * (scale == 1.0)  # type: ignore[method-assign]
    calls = method_calls(model, x)
    assert [(call.traced, call.kwargs) for call in calls] == [
        (True, {"scale": 1.0}), (False, {"scale": 0.5}), (False, {}),
    ]  # fmt: skip
    assert [bool(compared(model, other, call, 1.0)) for call in calls] == [False, True, True]
    assert not any(compared(model, copy.deepcopy(model), call, 1.0) for call in calls)


def test_what_nobody_reads_is_seen() -> None:
    statements = [Statement("v1", "x + 1"), Statement("v2", "x + v1"), Statement("v3", "x")]
    assert unread(statements, "v3") == ["v2"]
    assert unread(statements[:2], "v2") == []


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
SHAPES = ((1, 4, 5, 7), (2, 4, 8, 6))
WRONG = Program((Body("Net", "x", LAYERS, STATEMENTS, "v5, v2"),), SHAPES)
RIGHT = Program((Body("Net", "x", LAYERS, STATEMENTS[:2], "v2"),), SHAPES)
ONES = Share(exported=True)


def test_a_wrong_answer_is_found_and_made_small(tmp_path: Path) -> None:
    kind = "the original gives something else"
    with pytest.raises(Wrong) as found:
        check(WRONG)
    assert found.value.kind == kind

    def fails(program: Program) -> bool:
        try:
            check(program)
        except Wrong as wrong:
            return wrong.kind == kind
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


# What is wrong with a fuse, planted by what stands for `repfuse.plan`: every kind is found.

Plant = Callable[[Any, Any, Any], Any]  # (plan, model, fused) -> what apply gives


def planted(monkeypatch: pytest.MonkeyPatch, plant: Plant, kind: type = nn.Module) -> None:
    """Every plan of such a model is applied, and then spoilt."""
    real = repfuse.plan

    def plan(model: Any, **options: Any) -> Any:
        found = real(model, **options)
        if not isinstance(model, kind):
            return found
        report = SimpleNamespace(report=found.report)
        report.apply = lambda inplace=False: plant(found, model, found.apply())
        return report

    monkeypatch.setattr(repfuse, "plan", plan)


@torch.no_grad()
def _other_number(plan: Any, model: Any, fused: Any) -> Any:
    fused.conv.weight *= 1.00001
    return fused


@torch.no_grad()
def _changed_original(plan: Any, model: Any, fused: Any) -> Any:
    model.bn.bias += 1e-12
    return fused


def _other_original(plan: Any, model: Any, fused: Any) -> Any:
    model.cache = 1
    return fused


def _other_class(plan: Any, model: Any, fused: Any) -> Any:
    return nn.Sequential(fused)


def _not_done(plan: Any, model: Any, fused: Any) -> Any:
    narrow, wide = fused.conv, nn.Conv2d(4, 4, 5, padding=2).double().eval()
    wide.weight = nn.Parameter(nn.functional.pad(narrow.weight, (1, 1, 1, 1)))
    wide.bias = narrow.bias
    fused.conv = wide
    return fused


def _unsaid(plan: Any, model: Any, fused: Any) -> Any:
    plan.report.regions.clear()
    return fused


def _failed_probe(plan: Any, model: Any, fused: Any) -> Any:
    plan.report.errors.append("difference 1")
    return fused


def _raises(plan: Any, model: Any, fused: Any) -> Any:
    raise KeyError("v1")


def _raises_later(plan: Any, model: Any, fused: Any) -> Any:
    fused.conv.in_channels = 4
    fused.conv.weight = nn.Parameter(torch.ones(4, 3, 3, 3).double())
    return fused


def _of_one_size(plan: Any, model: Any, fused: Any) -> Any:
    """Right at the sizes that are always checked."""
    forward = fused.conv.forward
    fused.conv.forward = lambda x: forward(x) * (1 if tuple(x.shape) in SHAPES else 2)
    return fused


FAULTS: dict[str, tuple[Plant, str]] = {
    "another number": (_other_number, "not equal"),
    "the original's numbers": (_changed_original, "the original changed"),
    "the original's attributes": (_other_original, "the original has other parts"),
    "the class": (_other_class, "the class is another"),
    "an operator that was not announced": (
        _not_done, "the plan says something else than was done",
    ),
    "a report that changes": (_unsaid, "the plan says something else once it was applied"),
    "a probe": (_failed_probe, "a rewrite failed its probe"),
    "an exception": (_raises, "raises"),
    "an exception of the fused": (_raises_later, "the fused network raises"),
    "another size": (_of_one_size, "not equal at another size"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_with_a_fuse_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, kind = FAULTS[name]
    assert check(RIGHT, ONES).regions == 1
    planted(monkeypatch, plant)
    with pytest.raises(Wrong) as found:
        check(RIGHT, ONES)
    assert found.value.kind == kind, found.value


def test_another_dtype_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    single = replace(RIGHT, options=Options(dtype="float32"))
    assert check(single).done["float32"] == 1
    planted(monkeypatch, lambda plan, model, fused: fused.double())
    with pytest.raises(Wrong, match="the dtype of a weight"):
        check(single)


def test_rounding_that_is_too_coarse_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, lambda plan, model, fused: fused.half().float())
    with pytest.raises(Wrong, match="verify does not accept"):
        check(replace(RIGHT, options=Options(dtype="float32")))


def test_a_fuse_in_place_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    in_place = replace(RIGHT, options=Options(inplace=True))
    check(in_place)
    real = repfuse.fuse

    def fuse(model: Any, **options: Any) -> Any:
        return _other_number(None, None, real(model, **options))

    monkeypatch.setattr(repfuse, "fuse", fuse)
    with pytest.raises(Wrong, match="fused in place, not equal"):
        check(in_place)


def test_a_second_fuse_that_finds_more_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(RIGHT).unsettled == ""
    planted(monkeypatch, lambda plan, model, fused: copy.deepcopy(model))
    monkeypatch.setattr("tests.campaign.checks.broken", lambda *args: "")
    assert check(RIGHT).unsettled == "other"
    dead = (*STATEMENTS[:2], Statement("v3", "x + 1"))
    body = Body("Net", "x", LAYERS, dead, "v2")
    assert check(replace(RIGHT, bodies=(body,))).unsettled == "dead code"


def _other_initializer(plan: Any, model: Any, fused: Any) -> Any:
    for tensor in fused.graph.initializer:
        if tensor.dims and tensor.data_type == onnx.TensorProto.DOUBLE:
            values = onnx.numpy_helper.to_array(tensor) * 1.00001
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return fused


def _changed_file(plan: Any, model: Any, fused: Any) -> Any:
    model.graph.doc_string = "changed"
    return fused


def _invalid(plan: Any, model: Any, fused: Any) -> Any:
    fused.graph.node[0].op_type = "NoSuchOperator"
    return fused


def _other_interface(plan: Any, model: Any, fused: Any) -> Any:
    fused.producer_name = "another"
    return fused


def _never_done(plan: Any, model: Any, fused: Any) -> Any:
    made = ModelProto()
    made.CopyFrom(model)
    return made


def _another_each_time(plan: Any, model: Any, fused: Any) -> Any:
    fused.graph.node[0].name = str(random.random())
    return fused


FILE_FAULTS: dict[str, tuple[Plant, str]] = {
    "another number": (_other_initializer, "ONNX: not equal"),
    "the original": (_changed_file, "ONNX: the original changed"),
    "no valid model": (_invalid, "ONNX: the result is no valid model"),
    "the interface": (_other_interface, "ONNX: the interface changed"),
    "nothing was done": (_never_done, "ONNX: the plan says something else than was done"),
    "a report that changes": (_unsaid, "ONNX: the plan says something else once it was applied"),
    "a probe": (_failed_probe, "ONNX: a rewrite failed its probe"),
    "an exception": (_raises, "ONNX: raises"),
    "names": (_another_each_time, "ONNX: a second fuse of the same gives another file"),
}


def _file() -> RandomFile:
    """Its fused form has a 3x3 kernel, which it has not."""
    net = Net(17)
    x = net.input("x", ["N", 8, "H", "W"])
    y = net.add(net.conv(x, size=(1, 3)), net.conv(x, size=(3, 1)))
    options = Options(target="min-ops")
    return RandomFile(in_double(net.model(y)), ({"N": 1, "H": 5, "W": 7},), options)


@pytest.mark.parametrize("name", FILE_FAULTS)
def test_what_is_wrong_with_a_file_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, kind = FILE_FAULTS[name]
    assert check_graph(_file()).regions > 0
    planted(monkeypatch, plant, ModelProto)
    with pytest.raises(Wrong) as found:
        check_graph(_file())
    assert found.value.kind == kind, found.value


@pytest.mark.parametrize(
    ("plant", "kind"),
    [
        (_another_each_time, "ONNX: the same as a file gives another one"),
        (_raises, "ONNX: raises, given as a file"),
    ],
)
def test_a_path_that_is_fused_to_something_else_is_found(
    plant: Plant, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch, plant, Path)
    with pytest.raises(Wrong) as found:
        check_graph(_file())
    assert found.value.kind == kind, found.value


def test_a_file_that_says_something_else_than_its_module_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert check(RIGHT, ONES).done["exported, both fused to the same operators"] == 1
    planted(monkeypatch, _other_initializer, ModelProto)
    with pytest.raises(Wrong) as found:
        check(RIGHT, ONES)
    assert found.value.kind == "ONNX: not equal"


class Changed(nn.Module):
    """What it gives is changed in place, by a view that has a name or has none."""

    def __init__(self, named: bool, factor: float = 3.0) -> None:
        super().__init__()
        self.named, self.factor = named, factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.named:
            y = x[:, :6]
            y.mul_(self.factor)
        else:
            x[:, :6].mul_(self.factor)
        return x


def test_a_change_that_is_lost_where_torch_exports_it_is_no_failure() -> None:
    inputs = [torch.randn(1, 8, 5, dtype=torch.float64)]
    assert check_file(Changed(False), Changed(True), inputs, 1.0) == {
        "not exported: torch loses a change in place": 1
    }
    for wrong in (Changed(True, 2.0), Changed(False, 2.0), nn.Identity()):
        with pytest.raises(Wrong):
            check_file(Changed(False), wrong, inputs, 1.0)


def test_a_graph_is_made_small() -> None:
    net = Net(17)
    x = net.input("x", ["N", 4, "H", "W"])
    y = net.node("Relu", net.bn(net.node("Sigmoid", x), 4))
    model = net.model(net.node("Abs", net.node("Neg", y)), y)

    def fails(smaller: RandomFile) -> bool:
        return "Neg" in str(smaller.model)

    small = shrink_graph(RandomFile(model, ({"N": 1}, {"N": 2})), fails)
    assert [node.op_type for node in small.model.graph.node] == ["Neg", "Abs"]
    assert len(small.model.graph.output) == len(small.sizes) == 1


def test_a_graph_that_does_not_run_is_no_smaller_form_of_one_that_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planted(monkeypatch, _raises, ModelProto)
    with pytest.raises(Wrong):
        check_running(_file())
    net = Net(17)
    model = net.model(net.node("Add", net.input("x", ["N", "W"]), net.weight(2, 3, 5)))
    file = RandomFile(in_double(model), ({"N": 3, "W": 4},))
    with pytest.raises(Wrong):
        check_graph(file)
    with pytest.raises(TypeError, match="Add"):
        check_running(file)


def test_the_mean_of_an_empty_batch_is_not_compared() -> None:
    net = Net(17)
    y = net.conv(net.conv(net.input("x", ["N", 8, "H", "W"]), size=1), size=1)
    numbers = [net.scale(8), net.scale(8), net.scale(8), net.positive(8)]
    outputs = [net.name() for _ in range(3)]
    net.nodes.append(
        onnx.helper.make_node("BatchNormalization", [y, *numbers], outputs, training_mode=1)
    )
    options = Options(target="min-ops")
    file = RandomFile(in_double(net.model(*outputs)), ({"N": 2, "H": 5, "W": 7},), options)
    done = check_graph(file, Share(sizes=True))
    assert done.regions == 1
    assert not done.done["ONNX of an empty batch"]
    assert check_graph(_file(), Share(sizes=True)).done["ONNX of an empty batch"] == 1


def test_a_model_of_which_onnx_runtime_dies_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    file = replace(_file(), options=Options(target="min-ops", dtype="float32"))
    file = replace(file, model=with_floats(file.model, TensorProto.FLOAT))
    load = onnxruntime.InferenceSession
    assert check_graph(file).done["ONNX in float32"] == 1

    def deadly(nodes: int) -> Callable[..., Any]:
        def dies(data: bytes, *options: Any, **more: Any) -> Any:
            if len(onnx.load_from_string(data).graph.node) <= nodes:
                os.kill(os.getpid(), signal.SIGKILL)
            return load(data, *options, **more)

        return dies

    monkeypatch.setattr("onnxruntime.InferenceSession", deadly(len(file.model.graph.node)))
    assert check_graph(file).done["ONNX in float32, of which ONNX Runtime dies"] == 1
    monkeypatch.setattr("onnxruntime.InferenceSession", deadly(1))
    with pytest.raises(Wrong, match="dies of it"):
        check_graph(file)


def test_counts_of_runs_can_be_added() -> None:
    first, second = Tally(), Tally()
    for number in range(4):
        one(1, number, first if number < 2 else second)
    both = Tally()
    both.add(first)
    both.add(Tally.from_dict(json.loads(json.dumps(second.to_dict()))))
    assert both.counts["checked"] == 4
    assert both.operators == first.operators + second.operators


def test_what_is_written_into_a_tensor_of_another_size_is_no_network() -> None:
    lines = ("same = x[:, :1] * 2", "torch.add(x, 1, out=same)", "return same")
    source = "\n        ".join(("class Net(nn.Module):\n    def forward(self, x):", *lines))
    program = dataclasses.replace(random_program(random.Random(1), 2), text=source + "\n")
    changed = [with_structure(random.Random(seed), program) for seed in range(9)]
    assert {one.source() for one in changed} == {program.source()}


def test_a_network_that_takes_too_long_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.campaign.work.LONGEST", 0.001)
    tally = Tally()
    one(1, 1, tally)
    assert [failure.kind for failure in tally.failures] == ["takes too long"]


def test_the_gap_sees_what_differs() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    assert gap([x], [x]) == 0
    assert gap([x], [x * 1.001]) > 1e-4
    assert gap([x], [x.T]) == float("inf")
    assert gap([x], [x, x]) == float("inf")
    assert gap([x], [x * float("nan")]) == float("inf")
    assert gap([3], [4]) == float("inf")
    odd = torch.tensor([1.0, float("inf"), float("nan")])
    assert gap([odd], [odd.clone()]) == 0
    assert gap([odd], [odd + 0.001]) > 1e-4
    assert gap([odd], [odd.nan_to_num(posinf=float("inf"))]) == float("inf")
    assert gap([odd], [odd.clamp(max=9)]) == float("inf")
    assert gap([odd], [-odd]) == float("inf")
