"""The building blocks of examples/quickstart.py, and its two parts at a small size."""

import copy
import importlib.util
import io
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import repfuse

SCRIPT = Path(__file__).parents[1] / "examples" / "quickstart.py"


@pytest.fixture(scope="module")
def quickstart() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("quickstart", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["quickstart"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["quickstart"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The script's own default, and quicker for small networks; put back what the others use."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=100)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def modules_of(model: nn.Module, kind: type[nn.Module]) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, kind)]


# ------------------------------------------------------------------------------------ the network


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "stride", "has_skip"),
    [(8, 8, 1, True), (8, 8, 2, False), (8, 16, 1, False), (8, 16, 2, False)],
)
def test_block_has_a_1x1_branch_always_and_a_bn_branch_where_shapes_agree(
    quickstart: ModuleType, in_channels: int, out_channels: int, stride: int, has_skip: bool
) -> None:
    block = quickstart.RepVGGBlock(in_channels, out_channels, stride, groups=2)

    convs = modules_of(block, nn.Conv2d)
    assert [(conv.kernel_size, conv.stride, conv.groups) for conv in convs] == [
        ((3, 3), (stride, stride), 2),
        ((1, 1), (stride, stride), 2),
    ]
    assert (block.skip is not None) == has_skip
    assert block(torch.zeros(1, in_channels, 8, 8)).shape == (
        1,
        out_channels,
        8 // stride,
        8 // stride,
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_weighted_block_is_the_weighted_sum_of_its_branches(
    quickstart: ModuleType, stride: int
) -> None:
    block = quickstart.RepVGGBlock(4, 4, stride, weighted=True).eval()
    quickstart.randomize_batch_norm(block)
    weights = [2.0, -3.0, 0.5]
    x = torch.randn(2, 4, 6, 6)

    with torch.no_grad():
        names = ("alpha", "beta", "gamma") if stride == 1 else ("alpha", "beta")
        for name, weight in zip(names, weights, strict=False):
            getattr(block, name).fill_(weight)
        branches = [block.conv3x3(x), block.conv1x1(x)]
        if stride == 1:
            branches.append(block.skip(x))
        terms = [weight * branch for weight, branch in zip(weights, branches, strict=False)]
        expected = torch.stack(terms).sum(0).clamp(min=0)
        torch.testing.assert_close(block(x), expected)

    assert hasattr(block, "gamma") == (stride == 1)


def test_deployment_network_has_the_branches_of_repvgg_a(quickstart: ModuleType) -> None:
    with torch.device("meta"):
        model = quickstart.RepVGG()

    blocks = modules_of(model, quickstart.RepVGGBlock)
    assert len(blocks) == 1 + 2 + 4 + 14 + 1
    assert len(modules_of(model, nn.Conv2d)) == 44
    assert len(modules_of(model, nn.BatchNorm2d)) == 61
    assert [block.conv3x3[0].out_channels for block in blocks if block.skip is None] == [
        64,
        64,
        128,
        256,
        512,
    ]


def test_digits_network_uses_groups_and_branch_weights(quickstart: ModuleType) -> None:
    model = quickstart.build_digits_network()

    assert {conv.groups for conv in modules_of(model, nn.Conv2d)} == {1, 2, 4}
    assert all(block.weighted for block in modules_of(model, quickstart.RepVGGBlock))
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


def test_randomized_batch_norm_is_seeded_and_far_from_the_identity(quickstart: ModuleType) -> None:
    models = [quickstart.RepVGG(widths=(4, 4, 4, 4), depths=(1, 1, 1, 1)) for _ in range(2)]
    for model in models:
        torch.manual_seed(3)
        quickstart.randomize_batch_norm(model)

    for first, second in zip(*(modules_of(model, nn.BatchNorm2d) for model in models), strict=True):
        assert torch.equal(first.running_var, second.running_var)
        assert (first.running_var > 0).all()
        fresh = nn.BatchNorm2d(first.num_features)
        for name in ("running_mean", "running_var", "weight", "bias"):
            assert not torch.isclose(getattr(first, name), getattr(fresh, name)).all()


# ------------------------------------------------------------------------------- data and training


def test_digit_images_are_split_by_seed_and_scaled(quickstart: ModuleType) -> None:
    data, again, other = (quickstart.load_digit_images(seed) for seed in (0, 0, 1))

    assert data.train_images.shape == (1347, 1, 32, 32)
    assert data.test_images.shape == (450, 1, 32, 32)
    assert data.train_images.min() >= -1
    assert data.train_images.max() <= 1
    assert data.train_images.std() > 0.5
    assert set(data.test_labels.tolist()) == set(range(10))
    assert torch.equal(data.test_images, again.test_images)
    assert not torch.equal(data.test_images, other.test_images)

    seen = {image.numpy().tobytes() for image in data.train_images}
    assert not any(image.numpy().tobytes() in seen for image in data.test_images)


def trained(quickstart: ModuleType, data: Any, epochs: int, console: Console) -> Any:
    torch.manual_seed(0)
    model = quickstart.build_digits_network()
    quickstart.train(model, data, epochs, seed=0, console=console)
    return model


def test_training_learns(quickstart: ModuleType, console: Console) -> None:
    data = quickstart.load_digit_images(0)
    model = trained(quickstart, data, epochs=2, console=console)

    assert not model.training
    predictions = quickstart.predict(model, data.test_images)
    assert quickstart.accuracy(predictions, data.test_labels) > 0.85
    assert "Training" in printed(console)


def test_training_is_seeded(quickstart: ModuleType, console: Console) -> None:
    data = quickstart.load_digit_images(0)
    few = replace(data, train_images=data.train_images[:64], train_labels=data.train_labels[:64])

    first, second = (trained(quickstart, few, epochs=1, console=console) for _ in range(2))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_accuracy_is_the_share_of_right_predictions(quickstart: ModuleType) -> None:
    assert quickstart.accuracy(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 0])) == 0.75


# -------------------------------------------------------------------------------------- measurement


def test_activation_meter_counts_what_is_alive_at_one_moment(quickstart: ModuleType) -> None:
    x = torch.zeros(100)  # 400 bytes, not counted

    with quickstart.ActivationMeter(fixed=[x]) as meter:
        a = x + 1
        b = a + 1
        c = a * b  # 3 alive
        del a, b
        d = c.view(10, 10)
        d += 1  # in place on a view: nothing new
        e = d.clone()  # 2 alive
        x.view(4, 25)

    assert meter.peak_bytes == 3 * 400
    assert e.shape == (10, 10)


def test_activation_meter_sees_operations_with_several_results(quickstart: ModuleType) -> None:
    x = torch.arange(6.0)

    with quickstart.ActivationMeter(fixed=[x]) as meter:
        values, indices = x.sort()

    assert meter.peak_bytes == values.nbytes + indices.nbytes


def test_cost_of_a_conv_is_what_one_computes_by_hand(quickstart: ModuleType) -> None:
    conv = nn.Conv2d(4, 6, 3, padding=1, groups=2)

    cost = quickstart.measure_cost(conv, torch.zeros(1, 4, 8, 8), latency_ms=1.5)

    assert cost.latency_ms == 1.5
    assert cost.parameters == 6 * 2 * 9 + 6
    assert cost.macs == 8 * 8 * 6 * 2 * 9
    assert cost.activation_bytes == 6 * 8 * 8 * 4


def test_latency_runs_take_turns(quickstart: ModuleType, console: Console) -> None:
    calls = []

    class Recorder(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: Tensor) -> Tensor:
            calls.append(self.name)
            return x

    models = (Recorder("a"), Recorder("b"))
    latencies = quickstart.interleaved_latency(models, torch.zeros(1), 3, console)

    assert calls == ["a", "b"] * 4
    assert len(latencies) == 2
    assert all(latency >= 0 for latency in latencies)


# ------------------------------------------------------------------------------------- presentation


def test_layers_are_counted(quickstart: ModuleType) -> None:
    block = quickstart.RepVGGBlock(8, 8)
    assert quickstart.layers(block) == "2 convs and 3 batch norms"


def test_shortened_says_how_much_it_left_out(quickstart: ModuleType) -> None:
    assert quickstart.shortened("a\nb\nc", 3) == "a\nb\nc"
    assert quickstart.shortened("a\nb\nc\nd", 2) == "a\nb\n... (2 more lines)"


def test_cost_table_shows_ratios(quickstart: ModuleType, console: Console) -> None:
    before = quickstart.Cost(30.0, 3_000_000, 4_000_000_000, 9_000_000)
    after = quickstart.Cost(20.0, 2_000_000, 1_000_000_000, 3_000_000)

    console.print(quickstart.cost_table(before, after))

    rows = [line.split() for line in printed(console).splitlines() if "x" in line]
    assert [row[-2] for row in rows] == ["1.50x", "1.50x", "4.00x", "3.00x"]


def test_accuracy_table_counts_identical_predictions(
    quickstart: ModuleType, console: Console
) -> None:
    labels = torch.tensor([0, 1, 2, 3])
    console.print(quickstart.accuracy_table(labels, torch.tensor([0, 1, 2, 0]), labels))

    assert "100.00%" in printed(console)
    assert "75.00%" in printed(console)
    assert "3 of 4" in printed(console)


# ----------------------------------------------------------------------------------------- fusing


def hand_written_deploy_form(model: nn.Module) -> nn.Module:
    """What RepVGG's authors would ship: per block one 3x3 conv and the activation."""
    deploy = copy.deepcopy(model)
    for name, block in list(deploy.named_modules()):
        if type(block).__name__ == "RepVGGBlock":
            parent, _, child = name.rpartition(".")
            merged = nn.Sequential(merged_conv(block), block.activation)
            setattr(deploy.get_submodule(parent), child, merged)
    return deploy


@torch.no_grad()
def merged_conv(block: Any) -> nn.Conv2d:
    first = block.conv3x3[0]
    conv = nn.Conv2d(
        first.in_channels, first.out_channels, 3, first.stride, padding=1, groups=first.groups
    ).to(first.weight.dtype)
    assert conv.bias is not None
    terms = [
        ("alpha", first.weight, block.conv3x3[1]),
        ("beta", nn.functional.pad(block.conv1x1[0].weight, [1, 1, 1, 1]), block.conv1x1[1]),
    ]
    if block.skip is not None:
        identity = nn.init.dirac_(torch.empty_like(conv.weight), groups=conv.groups)
        terms.append(("gamma", identity, block.skip))

    conv.weight.zero_()
    conv.bias.zero_()
    for name, kernel, norm in terms:
        factor = getattr(block, name, 1.0)
        scale = factor * norm.weight / torch.sqrt(norm.running_var + norm.eps)
        conv.weight += kernel * scale.view(-1, 1, 1, 1)
        conv.bias += factor * norm.bias - scale * norm.running_mean
    return conv


def conv_shapes(model: nn.Module) -> Counter[tuple[Any, ...]]:
    return Counter(
        (tuple(conv.weight.shape), conv.stride, conv.padding, conv.groups)
        for conv in modules_of(model, nn.Conv2d)
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_fused_network_is_the_hand_written_deploy_form(
    quickstart: ModuleType, weighted: bool
) -> None:
    torch.manual_seed(0)
    model = quickstart.RepVGG(
        classes=10,
        widths=(8, 8, 16, 16),
        depths=(2, 1, 2, 2),
        groups=(1, 2, 4, 1),
        weighted=weighted,
    )
    model = model.double().eval()
    quickstart.randomize_batch_norm(model)
    for name, parameter in model.named_parameters():
        if name.endswith(("alpha", "beta", "gamma")):
            nn.init.uniform_(parameter, -2, 2)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)

    fused = repfuse.fuse(model)
    deploy = hand_written_deploy_form(model)

    assert conv_shapes(fused) == conv_shapes(deploy)
    assert not modules_of(fused, nn.BatchNorm2d)
    with torch.no_grad():
        reference = model(x)
        for candidate in (deploy, fused):
            assert (candidate(x) - reference).abs().max() <= 1e-9 * reference.abs().max()


# -------------------------------------------------------------------------------- the whole script


@pytest.fixture
def tiny(quickstart: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    size = quickstart.Size(epochs=1, depths=(1, 1, 1, 1), image_size=32, rounds=1)
    monkeypatch.setattr(quickstart, "FAST", size)
    return size


def test_main_prints_both_parts_and_saves_loadable_weights(
    quickstart: ModuleType, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "weights.pt"

    assert quickstart.main(["--fast", "--seed", "1", "--out", str(out)]) == 0

    text = capsys.readouterr().out
    assert "14 convs and 16 batch norms became 7 convs and 0 batch norms" in text
    assert "450 of 450" in text
    assert "equivalent to the trained one" in text
    for row in ("latency", "parameters", "MACs", "activation memory"):
        assert row in text
    assert "Fused and equal" in text
    fused = repfuse.fuse(quickstart.build_digits_network())
    fused.load_state_dict(torch.load(out, weights_only=True))


class WrongPlan:
    """A plan whose result is slightly wrong: its last layer is scaled by 1.001."""

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model)

    def apply(self) -> nn.Module:
        with torch.no_grad():
            self.model.get_parameter("head.weight").mul_(1.001)
        return self.model


def test_a_wrong_fusion_is_noticed(
    quickstart: ModuleType, tiny: Any, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repfuse, "plan", WrongPlan)

    assert not quickstart.show_cost(tiny, console)


@pytest.mark.parametrize("failing", ["show_accuracy", "show_cost"])
def test_main_fails_when_a_part_fails(
    quickstart: ModuleType,
    failing: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for part in ("show_accuracy", "show_cost"):
        monkeypatch.setattr(quickstart, part, lambda *_, part=part: part != failing)

    assert quickstart.main(["--fast", "--out", str(tmp_path / "weights.pt")]) == 1
    assert "NOT EQUAL" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--out", "missing/weights.pt"], "there is no folder missing"),
        (["--threads", "0"], "needs at least 1, not 0"),
        (["--seed", "x"], "invalid int value: 'x'"),
    ],
)
def test_bad_arguments_are_named_before_any_work(
    quickstart: ModuleType,
    arguments: list[str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        quickstart.main(arguments)

    assert stop.value.code == 2
    assert complaint in capsys.readouterr().err


def test_help_teaches(quickstart: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        quickstart.main(["--help"])

    assert stop.value.code == 0
    text = capsys.readouterr().out
    for taught in (
        "repfuse.plan(model)",
        "repfuse.verify(",
        "--out",
        "--seed",
        "--threads",
        "--fast",
    ):
        assert taught in text
