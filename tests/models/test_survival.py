"""A fused model is still a model: it pickles, copies, exports, compiles and quantizes.

Whole models run in float64, where a copy must answer bit by bit. ONNX Runtime has no float64 conv:
what it runs is float32, measured by the original's own rounding error.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import io
import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx
from torch.nn import functional as F

import repfuse
from tests.numerics import assert_same, count_ops, randomize

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
CONV = nn.modules.conv._ConvNd

# Exact, since the same kernels run on the same numbers.
EQUAL = 0.0
# Another program for the same float64 operators: they may be summed in another order.
REORDERED = 1e-12


class Functional(nn.Module):
    """Branches that are functions of the root's own tensors, so that the root is rewritten."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, stride=2, padding=1)
        self.wide = nn.Parameter(torch.randn(channels, channels, 3, 3) / 12)
        self.thin = nn.Parameter(torch.randn(channels, channels, 1, 1) / 4)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        mean, var = self.get_buffer("running_mean"), self.get_buffer("running_var")
        branch = F.batch_norm(F.conv2d(x, self.wide, padding=1), mean, var, self.weight, self.bias)
        x = F.relu(branch + F.conv2d(x, self.thin) + x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class Masked(nn.Module):
    """Two paths through the root's forward, and the region is on both."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, channels, 3, padding=1)
        self.thin = nn.Conv2d(3, channels, 1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.norm(self.wide(x) + self.thin(x))
        if mask is not None:
            x = x * mask
        return torch.relu(x)


TIMM = ("repvgg_a0", "mobileone_s0", "fastvit_t8")
MODELS = ("quickstart", "functional", "masked", *TIMM)
# The modules that define them; timm needs torchvision, which may need its stand-ins first.
HOMES = {
    ("quickstart",): ("quickstart",),
    ("functional", "masked"): (__name__,),
    TIMM: ("tests.torchvision_cpu", "timm"),
}
# Regions in the root's own forward: no class that existed before has the new method.
REWRITTEN_ROOT = ("functional", "masked")
# torch.fx makes a value of the mask that is not given, and takes the other path.
TRACEABLE = ("quickstart", "functional", *TIMM)


def raw(name: str) -> nn.Module:
    """A model as it is built, on the default device."""
    if name == "functional":
        return Functional()
    if name == "masked":
        return Masked()
    if name == "quickstart":
        network: Any = sys.modules["quickstart"].RepVGG
        widths, depths, groups = (8, 16, 16, 32), (1, 2, 2, 1), (1, 1, 2, 4)
        return network(classes=10, widths=widths, depths=depths, groups=groups, weighted=True)  # type: ignore[no-any-return]
    import timm
    from timm.models.byobnet import model_cfgs

    # Two stages, or one block in each stage: the others only repeat them.
    short = {"layers": (1, 1, 1, 1)}
    options = {"blocks": model_cfgs[name].blocks[:2]} if name in model_cfgs else short
    return timm.create_model(name, **options)  # type: ignore[no-any-return]


def build(name: str, seed: int = 0) -> nn.Module:
    """The model in eval mode, with weights that hide no mistake."""
    torch.manual_seed(seed)
    return randomize(raw(name).eval(), seed)


def operators_of(program: Any) -> Counter[str]:
    """How often each operator stands in an exported program, or in a graph made from one."""
    return Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")


@dataclass(frozen=True)
class Case:
    """A model, the same fused, an input, and what the fused model answers; not to be changed."""

    name: str
    model: nn.Module
    fused: nn.Module
    x: Tensor
    answer: Tensor

    @classmethod
    @cache
    def of(cls, name: str, kind: torch.dtype) -> Case:
        model = build(name).to(kind)
        fused = repfuse.fuse(model)
        noise = torch.Generator().manual_seed(1)
        x = torch.randn(2, 3, 64, 64, generator=noise, dtype=torch.float64).to(kind)
        with torch.no_grad():
            return cls(name, model, fused, x, fused(x))

    @property
    def convs(self) -> int:
        return sum(isinstance(module, CONV) for module in self.fused.modules())

    def check(self, candidate: Any, bound: float = EQUAL) -> None:
        """A candidate answers as the fused model does, relative to the largest value."""
        with torch.no_grad():
            found = candidate(self.x)
        assert found.shape == self.answer.shape
        assert found.dtype == self.answer.dtype
        assert found.isfinite().all()
        assert self.answer.abs().max() > 0
        error = ((found - self.answer).abs().max() / self.answer.abs().max()).item()
        assert error <= bound, f"relative error {error:.3g}"


@pytest.fixture(scope="module", autouse=True)
def quickstart() -> Iterator[None]:
    """The example as the module `quickstart`: pickle looks its classes up by that name."""
    spec = importlib.util.spec_from_file_location("quickstart", EXAMPLES / "quickstart.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["quickstart"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield
    Case.of.cache_clear()
    del sys.modules["quickstart"]


@pytest.fixture(autouse=True)
def forget_compiled() -> Iterator[None]:
    yield
    torch._dynamo.reset()


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> Case:
    return Case.of(request.param, torch.float64)


@pytest.fixture(params=MODELS)
def single(request: pytest.FixtureRequest) -> Case:
    """In float32, for tools that know nothing wider."""
    return Case.of(request.param, torch.float32)


# ------------------------------------------------------------------------------ what fuse returns


@pytest.mark.parametrize("name", MODELS)
def test_the_result_is_fused_and_the_original_is_untouched(name: str) -> None:
    model = build(name).double()
    before = copy.deepcopy(model.state_dict())
    tensors = {key: id(tensor) for key, tensor in model.state_dict(keep_vars=True).items()}

    plan = repfuse.plan(model)
    fused = plan.apply()

    assert plan.report.regions
    assert plan.report.errors == []
    after = model.state_dict(keep_vars=True)
    assert tensors == {key: id(tensor) for key, tensor in after.items()}
    assert all(torch.equal(before[key], tensor) for key, tensor in after.items())
    shared = {tensor.data_ptr() for tensor in after.values()}
    assert not any(tensor.data_ptr() in shared for tensor in fused.state_dict().values())
    x = Case.of(name, torch.float64).x
    unfused, counts = count_ops(model, x), count_ops(fused, x)
    assert unfused.batch_norms > 0 == counts.batch_norms == counts.bn_modules
    assert counts.convs == counts.conv_modules <= unfused.convs
    assert_same(model, fused, x)


def test_the_class_is_kept(case: Case) -> None:
    assert isinstance(case.fused, type(case.model))
    assert type(case.fused).__name__ == type(case.model).__name__
    assert (type(case.fused) is type(case.model)) == (case.name not in REWRITTEN_ROOT)


def test_a_fused_model_has_nothing_to_fuse(case: Case) -> None:
    plan = repfuse.plan(case.fused)
    assert plan.report.regions == []
    case.check(plan.apply())


@pytest.mark.parametrize("name", TIMM)
def test_the_methods_of_a_timm_model_work(name: str) -> None:
    case = Case.of(name, torch.float64)
    model: Any = case.model
    fused: Any = case.fused
    with torch.no_grad():
        features, expected = fused.forward_features(case.x), model.forward_features(case.x)
        assert features.shape == expected.shape
        assert (features - expected).abs().max() <= 1e-9 * expected.abs().max()
        assert torch.equal(fused.forward_head(features), case.answer)
    classifier, own = model.get_classifier(), fused.get_classifier()
    assert type(own) is type(classifier)
    assert all(map(torch.equal, own.parameters(), classifier.parameters()))


# -------------------------------------------------------------------------- copies and state dicts


def test_pickle(case: Case) -> None:
    again = pickle.loads(pickle.dumps(case.fused))
    assert isinstance(again, type(case.model))
    case.check(again)


def test_torch_save(case: Case) -> None:
    file = io.BytesIO()
    torch.save(case.fused, file)
    file.seek(0)
    case.check(torch.load(file, weights_only=False))


def test_deepcopy(case: Case) -> None:
    again = copy.deepcopy(case.fused)
    own = {tensor.data_ptr() for tensor in again.state_dict().values()}
    assert not own & {tensor.data_ptr() for tensor in case.fused.state_dict().values()}
    case.check(again)


FRESH = """
import importlib, pickle, sys
from pathlib import Path
import torch
torch.set_num_threads(int(sys.argv[1]))
for home in sys.argv[3:]:
    importlib.import_module(home)
for fused, x, answer in pickle.loads(Path(sys.argv[2]).read_bytes()):
    with torch.no_grad():
        found = fused(x)
    assert answer.abs().max() > 0
    print(((found - answer).abs().max() / answer.abs().max()).item())
"""


@pytest.mark.parametrize("names", HOMES, ids=" ".join)
def test_pickle_in_a_fresh_process(names: tuple[str, ...], tmp_path: Path) -> None:
    cases = [Case.of(name, torch.float64) for name in names]
    file = tmp_path / "fused.pickle"
    file.write_bytes(pickle.dumps([(case.fused, case.x, case.answer) for case in cases]))
    arguments = [str(torch.get_num_threads()), str(file), *HOMES[names]]
    folders = os.pathsep.join([str(ROOT), str(EXAMPLES)])
    done = subprocess.run(
        [sys.executable, "-c", FRESH, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": folders},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    errors = [float(line) for line in done.stdout.split()]
    assert len(errors) == len(names)
    assert max(errors) <= REORDERED


def test_a_state_dict_loads_into_another_fused_model(case: Case) -> None:
    other = repfuse.fuse(build(case.name, seed=7).double())
    with torch.no_grad():
        assert not torch.allclose(other(case.x), case.answer)
    other.load_state_dict(case.fused.state_dict())
    case.check(other)


def test_a_state_dict_loads_into_a_model_built_on_the_meta_device(case: Case) -> None:
    with torch.device("meta"):
        hollow = raw(case.name)
    other = repfuse.fuse(hollow)
    other.load_state_dict(case.fused.state_dict(), assign=True)
    case.check(other)


def test_replicas_of_data_parallel(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own replication, with clones where it broadcasts to GPUs."""
    module = importlib.import_module("torch.nn.parallel.replicate")

    def clones(tensors: list[Tensor], devices: list[int], detach: bool = False) -> Any:
        return [[tensor.clone() for tensor in tensors] for _ in devices]

    monkeypatch.setattr(module, "_broadcast_coalesced_reshape", clones)
    monkeypatch.setattr(module, "_get_device_index", lambda device, *_: device)
    replicas = module.replicate(case.fused, [0, 1])
    assert len(replicas) == 2
    for replica in replicas:
        assert isinstance(replica, type(case.model))
        case.check(replica)


# ------------------------------------------------------------------------------ layout and numbers


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_low_precision_is_the_float64_fold_rounded_once(name: str, kind: torch.dtype) -> None:
    model = build(name).to(kind)
    fused = repfuse.fuse(model).state_dict()
    exact = repfuse.fuse(copy.deepcopy(model).double()).state_dict()
    assert fused.keys() == exact.keys()
    for key, tensor in fused.items():
        assert tensor.dtype == (kind if exact[key].is_floating_point() else exact[key].dtype)
        assert torch.equal(tensor, rounded(exact[key], tensor.dtype)), key


def rounded(values: Tensor, kind: torch.dtype) -> Tensor:
    """To the nearest number of the dtype, ties to even, in one step; torch itself takes two."""
    if kind not in BITS:
        return values.to(kind)
    digits, smallest = BITS[kind]
    _, exponent = torch.frexp(values)
    quantum = torch.ldexp(torch.ones_like(values), exponent.clamp(min=smallest) - digits)
    return (torch.round(values / quantum) * quantum).to(kind)


# Digits of the significand, and the smallest exponent of a normal number, as frexp has it.
BITS = {torch.float16: (11, -13), torch.bfloat16: (8, -125)}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", MODELS)
def test_the_memory_format_is_kept(name: str, layout: torch.memory_format) -> None:
    model = build(name).double().to(memory_format=layout)  # type: ignore[call-overload]
    fused = repfuse.fuse(model)
    weights = {key: tensor for key, tensor in fused.state_dict().items() if tensor.dim() == 4}
    assert weights
    assert [key for key, w in weights.items() if not w.is_contiguous(memory_format=layout)] == []
    Case.of(name, torch.float64).check(fused, REORDERED)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_requires_grad_is_kept(name: str, trained: bool) -> None:
    fused = repfuse.fuse(build(name).requires_grad_(trained))
    assert {parameter.requires_grad for parameter in fused.parameters()} == {trained}


# -------------------------------------------------------------------- tracers, exporters, compilers


@pytest.mark.parametrize("name", TRACEABLE)
def test_symbolic_trace(name: str) -> None:
    case = Case.of(name, torch.float64)
    assert isinstance(torch.fx.symbolic_trace(case.model)(case.x), Tensor)  # as it was possible
    case.check(torch.fx.symbolic_trace(case.fused))


@pytest.mark.parametrize("strict", [True, False])
def test_export(case: Case, strict: bool) -> None:
    program = torch.export.export(case.fused, (case.x,), strict=strict)
    called = operators_of(program)
    assert called["aten.conv2d.default"] == case.convs
    assert not any("batch_norm" in name for name in called)
    case.check(program.module(), REORDERED)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile_without_graph_breaks(case: Case, backend: str) -> None:
    case.check(torch.compile(case.fused, backend=backend, fullgraph=True), REORDERED)


def test_both_paths_of_a_rewritten_method_survive() -> None:
    case = Case.of("masked", torch.float64)
    masked = (case.x, torch.rand(2, 1, 64, 64, dtype=torch.float64))
    assert_same(case.model, case.fused, *masked)
    with torch.no_grad():
        answer = case.fused(*masked)
        assert not torch.equal(answer, case.answer)
        copied, pickled = copy.deepcopy(case.fused), pickle.loads(pickle.dumps(case.fused))
        exported = torch.export.export(case.fused, masked).module()
        compiled = torch.compile(case.fused, backend="aot_eager", fullgraph=True)
        for again in (copied, pickled, exported, compiled):
            assert (again(*masked) - answer).abs().max() <= REORDERED * answer.abs().max()


class InOnnxRuntime(nn.Module):
    """An ONNX file as a module."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: Tensor) -> Tensor:
        # A session cannot be copied, so that each call starts its own.
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(self.path, options, ["CPUExecutionProvider"])
        [given] = session.get_inputs()
        [found] = session.run(None, {given.name: x.numpy()})
        return torch.from_numpy(found)


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_onnx(single: Case, dynamo: bool, tmp_path: Path) -> None:
    file = tmp_path / "fused.onnx"
    torch.onnx.export(single.fused, (single.x,), file, dynamo=dynamo, verbose=False)
    operators = Counter(node.op_type for node in onnx.load(file).graph.node)
    assert operators["Conv"] == single.convs
    assert operators["BatchNormalization"] == 0
    assert onnx.load(file).functions == []
    for reference in (single.fused, single.model):
        repfuse.assert_equivalent(reference, InOnnxRuntime(file), single.x)


# ------------------------------------------------------------------------------------- quantizers


@pytest.mark.parametrize("name", TRACEABLE)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Please use quant_min")
def test_quantization_in_fx_graph_mode(name: str) -> None:
    single = Case.of(name, torch.float32)
    mapping = get_default_qconfig_mapping()
    prepared = quantize_fx.prepare_fx(copy.deepcopy(single.fused), mapping, (single.x,))
    observers = [name for name, _ in prepared.named_modules() if "activation_post_process" in name]
    assert len(observers) > single.convs
    single.check(prepared)  # observers change no value


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_quantization_of_an_exported_program(single: Case) -> None:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    program = torch.export.export(single.fused, (single.x,)).module()

    prepared = prepare_pt2e(program, quantizer)
    single.check(prepared, 1e-6)  # float32, in the order of the program
    converted = convert_pt2e(prepared)

    called = operators_of(converted)
    assert called["aten.conv2d.default"] == single.convs
    assert called["quantized_decomposed.dequantize_per_channel.default"] >= single.convs
    with torch.no_grad():
        assert converted(single.x).isfinite().all()
