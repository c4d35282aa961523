"""Branches with factors of the input: when they are merged, what is said, and what survives."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import repfuse
from repfuse.findings import FACTOR
from repfuse.frontends.torch.mixed import MixedConv
from tests.frontends.onnx.build import Net
from tests.models.gated import Bank, ChannelGates, GatedBranches, ScaledInputs, SharedNorm
from tests.models.measure import exported
from tests.numerics import assert_same, randomize

BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "index": lambda: GatedBranches(norms=True),
    "own": lambda: SharedNorm(mode="reflect"),
    "channels": lambda: ChannelGates(groups=2),
    "bank": lambda: Bank(bias=True, stride=2),
    "before": ScaledInputs,
}


class Apply(nn.Module):
    """A forward of one's own on two convs and a layer for the gates."""

    def __init__(self, run: Callable[[Any, Tensor], Any], channels: int = 4) -> None:
        super().__init__()
        self.run = run
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv1 = nn.Conv2d(channels, channels, 1)
        self.gate = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)

    def factor(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))


def built(make: Callable[[], nn.Module], kind: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return randomize(make().eval()).to(kind)


def image(
    batch: int = 3, kind: torch.dtype = torch.float64, size: tuple[int, int] = (9, 7)
) -> Tensor:
    noise = torch.Generator().manual_seed(1)
    return torch.randn(batch, 4, *size, generator=noise, dtype=torch.float64).to(kind)


def reasons(plan: Any) -> str:
    report = plan.report
    return "\n".join(entry.reason for entry in (*report.refusals, *report.kept))


def merged(model: nn.Module) -> nn.Module:
    plan = repfuse.plan(model, dynamic=True, target="min-ops")
    fused = plan.apply()
    assert plan.report.errors == []
    assert any(isinstance(module, MixedConv) for module in fused.modules())
    return fused


# ---------------------------------------------------------------------------- asked for, or not


@pytest.mark.parametrize("name", BLOCKS)
def test_by_default_nothing_is_done_and_the_plan_says_what_could_be(name: str) -> None:
    model = built(BLOCKS[name])
    plan = repfuse.plan(model)
    fused = plan.apply()
    assert plan.report.errors == []
    assert not any(isinstance(module, MixedConv) for module in fused.modules())
    said = [entry for entry in plan.report.refusals if entry.rule == "mix_kernels"]
    assert len(said) == 1
    one_line(plan, said[0].where)
    assert "depend on the input: dynamic=True (--dynamic) makes it one Conv" in said[0].reason
    assert "dynamic=True" in str(plan)
    assert_same(model, fused, image())

    file = exported(model, image(), "open")
    other = repfuse.plan(file)
    lines = [entry for entry in other.report.refusals if entry.rule == "mix_kernels"]
    assert [line.reason for line in lines] == [said[0].reason]
    one_line(other, lines[0].where)
    assert "Scan" not in {node.op_type for node in other.apply().graph.node}


def one_line(plan: Any, where: str) -> None:
    """A gated sum is told of once: that its branches have factors goes without saying."""
    report = plan.report
    assert [e.rule for e in (*report.refusals, *report.kept) if e.where == where] == ["mix_kernels"]
    assert FACTOR not in [entry.reason for entry in report.refusals]
    assert str(plan).count("dynamic=True") == 1


def test_the_line_of_one_sum_leaves_those_of_others() -> None:
    def both(net: Any, x: Tensor) -> Tensor:
        y = torch.relu(net.factor(x) * net.conv3(x) + net.conv1(x))
        total: Tensor = torch.sigmoid(net.gate(y)) * net.conv3(y) + net.conv1(y)
        return total

    model = built(lambda: Apply(both))
    for plan in (repfuse.plan(model), repfuse.plan(exported(model, image(), "open"))):
        found = [(entry.rule, entry.reason == FACTOR) for entry in plan.report.refusals]
        assert sorted(found) == [("merge_branch_sum", True), ("mix_kernels", False)]


def test_only_sums_are_pointed_at() -> None:
    model = built(lambda: Apply(lambda net, x: net.conv1(net.factor(x) * net.conv3(x))))
    assert "dynamic" not in reasons(repfuse.plan(model))


@pytest.mark.parametrize("name", BLOCKS)
def test_the_plan_with_factors_is_made_without_a_weight(name: str) -> None:
    torch.manual_seed(0)
    with torch.device("meta"):
        hollow = BLOCKS[name]().eval()
    fused = repfuse.fuse(hollow, dynamic=True, target="min-ops")
    assert all(tensor.is_meta for tensor in fused.state_dict().values())
    expected = merged(built(BLOCKS[name]))
    fused.load_state_dict(expected.state_dict(), assign=True)
    with torch.no_grad():
        assert torch.equal(fused(image()), expected(image()))


# -------------------------------------------------------------------------------------- the price


class Staged(nn.Module):
    """A block on a map that is so many times smaller than the input."""

    def __init__(self, stride: int, make: Callable[[], nn.Module], channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, stride, stride=stride)
        self.block = make()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.block(torch.relu(self.stem(x)))
        return result


@pytest.mark.parametrize(
    ("channels", "stride", "count", "chosen"),
    [
        # (channels, 224 / stride): what was measured at batch 1 and 8, merged against unmerged.
        (16, 2, 0, True),  # 0.78, 0.51
        (64, 4, 0, True),  # 0.79, 0.55
        (64, 8, 0, True),  # 0.92, 0.87
        (256, 16, 0, False),  # 1.01, 1.79
        (256, 32, 0, False),  # 1.09, 5.04
        (64, 4, 4, True),  # 0.27, 0.25
        (256, 16, 4, True),  # 0.35, 0.35
        (512, 32, 4, False),  # 0.50, 1.65
    ],
)
def test_the_price_of_a_kernel_for_each_sample_decides(
    channels: int, stride: int, count: int, chosen: bool
) -> None:
    def block() -> nn.Module:
        return Bank(count, channels) if count else GatedBranches(channels=channels)

    with torch.device("meta"):
        model = Staged(stride, block, channels).eval()
    plan = repfuse.plan(model, dynamic=True)
    assert bool(plan.report.regions) is chosen
    if not chosen:
        assert "with a kernel mixed of" in reasons(plan)
        assert "times the price" in reasons(plan)
    assert repfuse.plan(model, dynamic=True, target="min-ops").report.regions


@pytest.mark.parametrize(
    ("make", "size", "chosen"),
    [
        (lambda: GatedBranches(channels=16), 56, False),  # 1.20 in ONNX Runtime at 112
        (lambda: Bank(4, 16), 56, True),  # 0.39
        (lambda: Bank(2, 16), 56, True),  # 0.70
        (lambda: Bank(2, 64, groups=64), 28, False),  # 1.51
    ],
)
def test_the_price_in_a_file(make: Callable[[], nn.Module], size: int, chosen: bool) -> None:
    """There a conv of constant weights is the faster one."""
    model: Any = built(make, torch.float32)
    width = model.gate.in_features
    file = exported(model, torch.zeros(1, width, size, size), "fixed")
    plan = repfuse.plan(file, dynamic=True)
    assert bool(plan.report.regions) is chosen
    assert repfuse.plan(file, dynamic=True, target="min-ops").report.regions


# -------------------------------------------------------------------------------- what stays


def squeezed(net: Any, x: Tensor) -> Tensor:
    y = net.conv3(x)
    total: Tensor = net.factor(y) * y + net.conv1(x) + x
    return total


def by_position(net: Any, x: Tensor) -> Tensor:
    total: Tensor = torch.sigmoid(net.gate(x)) * net.conv3(x) + net.conv1(x) + x
    return total


def of_the_batch(net: Any, x: Tensor) -> Tensor:
    factor = torch.sigmoid(net.gate(x).mean((0, 2, 3), keepdim=True))
    total: Tensor = factor * net.conv3(x) + net.conv1(x) + x
    return total


def activated(net: Any, x: Tensor) -> Tensor:
    total: Tensor = net.factor(x) * torch.relu(net.conv3(x)) + net.factor(x) * net.conv1(x)
    return total


def twice(net: Any, x: Tensor) -> Tensor:
    g = net.factor(x)
    total: Tensor = g * (g * net.conv3(x)) + net.conv1(x)
    return total


def in_place(net: Any, x: Tensor) -> Tensor:
    y = net.conv3(x)
    y *= net.factor(x)
    total: Tensor = y + net.conv1(x)
    return total


def returned(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = net.factor(x) * net.conv3(x)
    return y + net.factor(x) * net.conv1(x), y


OWN = "the factor is computed from the output of its own branch, which has to exist"
POSITION = "the factor differs from position to position"
STAYS: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "squeeze and excite": (squeezed, OWN),
    "a factor for each position": (by_position, POSITION),
    "a factor for the batch": (of_the_batch, "the factor is the same for all samples of a batch"),
    "an activation in a branch": (activated, ""),
    "two factors": (twice, "a branch with a factor of its own has another one"),
    "in place": (in_place, ""),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_is_not_mixed(name: str) -> None:
    run, reason = STAYS[name]
    model = built(lambda: Apply(run))
    plan = repfuse.plan(model, dynamic=True)
    fused = plan.apply()
    assert reason in reasons(plan)
    assert plan.report.errors == []
    mixed = any(isinstance(module, MixedConv) for module in fused.modules())
    assert not mixed
    assert_same(model, fused, image())

    default = repfuse.plan(model)
    assert reason == "" or reason not in reasons(default)
    if name == "in place":
        return  # an export has no memory that changes
    other = repfuse.plan(exported(model, image(), "open"), dynamic=True)
    assert reason in reasons(other)
    assert not {"Scan"} & {node.op_type for node in other.apply().graph.node}


def test_a_product_that_is_also_an_output_stays() -> None:
    model = built(lambda: Apply(returned))
    fused = repfuse.fuse(model, dynamic=True)
    assert isinstance(fused.conv3, nn.Conv2d)
    assert_same(model, fused, image())


def test_factors_that_another_method_gives_are_taken_one_by_one() -> None:
    class Helper(GatedBranches):
        def given(self, x: Tensor) -> tuple[Tensor, ...]:
            g = torch.softmax(self.gate(x.mean((2, 3))), 1)[:, :, None, None, None]
            return g[:, 0], g[:, 1], g[:, 2]

        def forward(self, x: Tensor) -> Tensor:
            a, b, c = self.given(x)
            total: Tensor = a * self.conv3(x) + b * self.conv1(x) + c * x
            return total

    model = built(Helper)
    assert_same(model, merged(model), image())


def test_a_batch_of_0() -> None:
    for make in (*BLOCKS.values(), lambda: GatedBranches(groups=2)):
        model = built(make)
        fused = merged(model)
        with torch.no_grad():
            before, after = model(image()[:0]), fused(image()[:0])
        assert before.shape[0] == 0
        assert (after.shape, after.dtype) == (before.shape, before.dtype)
        assert_same(model, fused, image())


def test_one_block_that_is_called_twice() -> None:
    model = built(lambda: nn.Sequential(*[GatedBranches()] * 2))
    assert_same(model, merged(model), image())


def test_an_image_without_a_batch() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        g = torch.sigmoid(net.gate(x.mean((-2, -1), keepdim=True)))
        total: Tensor = g * net.conv3(x) + net.conv1(x)
        return total

    model = built(lambda: Apply(forward))
    fused = merged(model)
    assert_same(model, fused, image())
    assert_same(model, fused, image()[0])


class Negated(GatedBranches):
    def forward(self, x: Tensor) -> Tensor:
        g = self.gate(x.mean((2, 3)))[:, :1, None, None]
        total: Tensor = g * self.conv3(x) + (-g) * self.conv1(x)
        return total


@pytest.mark.parametrize("make", [*BLOCKS.values(), Negated])
def test_a_fused_model_has_nothing_to_fuse(make: Callable[[], nn.Module]) -> None:
    fused = merged(built(make))
    plan = repfuse.plan(fused, dynamic=True, target="min-ops")
    assert plan.report.regions == []
    assert_same(fused, plan.apply(), image())


# ------------------------------------------------------------------------ what factors are like

KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "bool": lambda g: g > 0.5,
    "whole": lambda g: (g > 0.5).long(),
    "narrow": lambda g: g.float(),
    "wide": lambda g: g.double(),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("own", [torch.float32, torch.float64])
def test_factors_of_a_dtype_of_their_own(kind: str, own: torch.dtype) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        g = net.factor(x)
        total: Tensor = KINDS[kind](g) * net.conv3(x) + net.conv1(x)
        return total

    model = built(lambda: Apply(forward), own)
    fused, x = merged(model), image(kind=own)
    with torch.no_grad():
        before, after = model(x), fused(x)
    assert after.dtype == before.dtype
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()


def test_complex_factors_stay() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        g = net.factor(x)
        total: Tensor = torch.complex(g, g) * net.conv3(x) + net.conv1(x)
        return torch.view_as_real(total)

    model = built(lambda: Apply(forward))
    plan = repfuse.plan(model, dynamic=True, target="min-ops")
    fused = plan.apply()
    assert plan.report.errors == []
    assert_same(model, fused, image())


class Conditioned(nn.Module):
    """Factors of another input than the branches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3, self.conv1 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.gate = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        g = torch.sigmoid(self.gate(other)).mean((2, 3), keepdim=True)
        total: Tensor = g[:, :1] * self.conv3(x) + g[:, 1:] * self.conv1(x)
        return total


@pytest.mark.parametrize("batches", [(3, 3), (3, 1), (1, 3), (1, 1), (0, 1), (1, 0), (0, 0)])
def test_factors_of_another_input_broadcast(batches: tuple[int, int]) -> None:
    model = built(Conditioned)
    fused, (mine, theirs) = merged(model), batches
    x, other = image(3)[:mine], image(5, size=(3, 4))[:theirs]
    with torch.no_grad():
        before, after = model(x, other), fused(x, other)
    assert after.shape == before.shape
    if before.numel():
        assert_same(model, fused, x, other)


@pytest.mark.parametrize(
    ("dims", "given", "count"),
    [
        (("N", "N"), [(1, 1), (3, 3)], 1),
        ((3, 3), [(3, 3)], 1),
        (("N", "M"), [(3, 3), (3, 1), (1, 3)], 0),
        (("N", None), [(3, 3), (3, 1), (1, 3)], 0),
        (("N", 1), [(3, 1), (1, 1)], 0),
        ((3, "N"), [(3, 3), (3, 1)], 0),
    ],
)
def test_factors_of_another_input_of_a_file(
    dims: tuple[int | str | None, ...], given: list[tuple[int, ...]], count: int
) -> None:
    net = Net()
    x, other = (
        net.input(name, (dim, 4, 6, 7)) for name, dim in zip(("x", "other"), dims, strict=True)
    )
    gate = net.node("Sigmoid", net.node("GlobalAveragePool", net.conv(other, 4, 4)))
    total = net.add(net.node("Mul", net.conv(x, 4, 4), gate), net.conv(x, 4, 4, size=1))
    file = net.model(total)
    plan = repfuse.plan(file, dynamic=True, target="min-ops")
    fused = plan.apply()
    assert plan.report.errors == []
    assert len(plan.report.regions) == count
    for batches in given:
        images = [image(batch, torch.float32, (6, 7)).numpy() for batch in batches]
        inputs = dict(zip(("x", "other"), images, strict=True))
        before, after = every(file, inputs), every(fused, inputs)
        assert before.shape == after.shape
        assert np.abs(after - before).max() <= 1e-4 * np.abs(before).max()


# ------------------------------------------------------------------------------------- survival


@pytest.fixture(params=list(BLOCKS))
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    model = built(BLOCKS[request.param])
    return model, merged(model)


Case = tuple[nn.Module, nn.Module]


def same(candidate: Any, fused: nn.Module, x: Tensor, bound: float = 0.0) -> None:
    with torch.no_grad():
        found, expected = candidate(x), fused(x)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= bound * expected.abs().max()


def test_copies(case: Case) -> None:
    model, fused = case
    assert isinstance(fused, type(model))
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    for again in (
        copy.deepcopy(fused),
        pickle.loads(pickle.dumps(fused)),
        torch.load(file, weights_only=False),
        torch.fx.symbolic_trace(fused),
    ):
        same(again, fused, image())
    other = merged(built(lambda: copy.deepcopy(model)))
    other.load_state_dict(fused.state_dict())
    same(other, fused, image())


def test_what_a_parameter_is_like_is_kept(case: Case) -> None:
    model, _ = case
    for trained in (True, False):
        fused = repfuse.fuse(model.requires_grad_(trained), dynamic=True, target="min-ops")
        assert {p.requires_grad for p in fused.parameters()} == {trained}
        assert not fused.training
    assert "branches=" in str(fused)


@pytest.mark.parametrize("strict", [True, False])
def test_torch_export(case: Case, strict: bool) -> None:
    _, fused = case
    program = torch.export.export(fused, (image(),), strict=strict)
    same(program.module(), fused, image(), 1e-12)
    several = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(fused, (image(),), strict=strict, dynamic_shapes=(several,))
    for batch in (2, 5):
        same(program.module(), fused, image(batch), 1e-12)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile(case: Case, backend: str) -> None:
    _, fused = case
    compiled = torch.compile(fused, backend=backend, fullgraph=True)
    for batch in (3, 2, 5):  # from the second on the batch is a symbol
        same(compiled, fused, image(batch), 1e-12)
    torch._dynamo.reset()


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_onnx_exporters(case: Case, dynamo: bool) -> None:
    _, fused = case
    single = copy.deepcopy(fused).float()
    x = image(3, torch.float32)
    settings: dict[str, Any] = {"dynamic_axes": {"x": {0: "batch"}}}
    if dynamo:
        settings = {"dynamic_shapes": ({0: torch.export.Dim.DYNAMIC},), "verbose": False}
    file: Any = io.BytesIO()
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(single, (x,), file, dynamo=dynamo, input_names=["x"], **settings)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        x = image(batch, torch.float32)
        with torch.no_grad():
            expected = single(x).numpy()
        (found,) = session.run(None, {"x": x.numpy()})
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_low_precision(kind: torch.dtype) -> None:
    for make in BLOCKS.values():
        model = built(make, kind)
        fused, x = merged(model), image(3, kind)
        exact = copy.deepcopy(model).double()(x.double())
        with torch.no_grad():
            before, after = model(x), fused(x)
        assert after.dtype == kind
        limit = 2 * (before.double() - exact).abs().max() + torch.finfo(kind).eps
        assert (after.double() - exact).abs().max() <= limit


def test_channels_last() -> None:
    model = built(BLOCKS["index"])
    fused = merged(model)
    x = image().contiguous(memory_format=torch.channels_last)
    assert_same(model, fused, x)


# ------------------------------------------------------------------------------------------ files


def in_runtime(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return every(model, {"image": x})


def every(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    text = model.SerializeToString()
    session = onnxruntime.InferenceSession(text, options, ["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, inputs)[0]
    return found


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("way", ["open", "fixed", "dynamo"])
def test_a_file_in_onnx_runtime(name: str, way: str) -> None:
    """A batch that is open, and one of 1 and 3 samples that is not."""
    model = built(BLOCKS[name], torch.float32)
    for batch in (1, 3):
        x = image(batch, torch.float32)
        file = exported(model, x, way)
        plan = repfuse.plan(file, dynamic=True, target="min-ops")
        fused = plan.apply()
        assert plan.report.errors == []
        assert plan.report.regions
        onnx.checker.check_model(fused, full_check=True)
        kinds = {node.op_type for node in fused.graph.node}
        assert ("Scan" in kinds) == (way != "fixed")
        for size in (1, 3) if way != "fixed" else (batch,):
            given = image(size, torch.float32, (9, 7)).numpy()
            before, after = in_runtime(file, given), in_runtime(fused, given)
            assert np.abs(after - before).max() <= 1e-4 * np.abs(before).max()


@pytest.mark.parametrize("opset", [9, 11, 12, 13, 16, 18, 20])
def test_opsets(opset: int) -> None:
    for make in (BLOCKS["index"], BLOCKS["channels"], BLOCKS["own"]):
        model, x = built(make, torch.float32), image(2, torch.float32)
        file = written(model, x, opset)
        plan = repfuse.plan(file, dynamic=True, target="min-ops")
        fused = plan.apply()
        assert plan.report.errors == []
        assert plan.report.regions
        onnx.checker.check_model(fused, full_check=True)
        assert [entry.version for entry in fused.opset_import] == [opset]
        before, after = in_runtime(file, x.numpy()), in_runtime(fused, x.numpy())
        assert np.abs(after - before).max() <= 1e-4 * np.abs(before).max()


def around_a_vector(net: Net, x: str) -> str:
    """A map times a vector that is linear in the pooled input, plus another such vector."""
    pooled = net.node("GlobalAveragePool", x)
    vector = net.conv(pooled, size=1)
    return net.add(net.node("Mul", vector, net.conv(x)), net.conv(pooled, size=1))


def gate_first(net: Net, x: str) -> str:
    gate = net.node("Sigmoid", net.node("GlobalAveragePool", x))
    return net.add(net.node("Mul", gate, net.conv(x)), net.conv(x, size=1))


@pytest.mark.parametrize("dims", [(1, 8, "H", "W"), ("N", 8, "H", "W"), (1, 8, 6, 7)])
@pytest.mark.parametrize(("make", "count"), [(around_a_vector, 0), (gate_first, 1)])
def test_a_map_is_no_factor_of_a_vector_whose_shape_is_fixed(
    make: Callable[[Net, str], str], count: int, dims: tuple[int | str, ...]
) -> None:
    net = Net()
    file = net.model(make(net, net.input("image", dims)))
    plan = repfuse.plan(file, dynamic=True, target="min-ops")
    fused = plan.apply()
    assert plan.report.errors == []
    assert len(plan.report.regions) == count
    x = np.random.default_rng(0).standard_normal((1, 8, 6, 7)).astype(np.float32)
    before, after = in_runtime(file, x), in_runtime(fused, x)
    assert before.shape == after.shape
    assert np.abs(after - before).max() <= 1e-4 * np.abs(before).max()


def test_an_opset_without_scan() -> None:
    net = Net(opset=8)
    x = net.input()
    factor = net.node("Sigmoid", net.conv(net.node("GlobalAveragePool", x), outputs=1, size=1))
    file = net.model(net.add(net.node("Mul", net.conv(x), factor), net.conv(x, size=1)))
    plan = repfuse.plan(file, dynamic=True, target="min-ops")
    assert "a kernel for each sample takes a Scan, which opset 8 lacks" in reasons(plan)
    assert "Scan" not in {node.op_type for node in plan.apply().graph.node}


def written(model: nn.Module, x: Tensor, opset: int) -> onnx.ModelProto:
    file: Any = io.BytesIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (x,), file, dynamo=False, opset_version=opset, input_names=["image"],
            dynamic_axes={"image": {0: "batch"}}, keep_initializers_as_inputs=False,
        )  # fmt: skip
    return onnx.load_from_string(file.getvalue())
