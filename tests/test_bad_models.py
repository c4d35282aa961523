"""Bad input has a defined outcome, and what is given to repfuse comes back unchanged."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.ao.nn import quantized
from torch.ao.quantization import quantize_dynamic
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import repfuse
from tests.frontends import Net, conv, executed
from tests.numerics import assert_same, randomize


def block() -> nn.Sequential:
    return nn.Sequential(conv(), nn.BatchNorm2d(8))


def branches() -> nn.Module:
    """A module whose own forward is written again."""
    return Net(lambda n, x: F.relu(n.a(x) + n.b(x) + x), a=block(), b=conv(size=1))


def images(**options: Any) -> Tensor:
    return torch.randn(2, 8, 7, 9, **options)


# What is no module.


def a_function(x: Tensor) -> Tensor:
    return x


THINGS: dict[str, object] = {
    "None": None,
    "a class": nn.Conv2d,
    "a function": a_function,
    "a lambda": lambda x: x,
    "a method": nn.ReLU().forward,
    "a list of modules": [nn.ReLU()],
    "a state dict": nn.Linear(2, 2).state_dict(),
    "a tensor": torch.zeros(2),
}


NO_MODEL = (
    r"^a torch\.nn\.Module, an onnx\.ModelProto or the path of an ONNX file is needed, not an? "
)


@pytest.mark.parametrize("name", THINGS)
def test_what_is_no_model(name: str) -> None:
    thing: Any = THINGS[name]
    calls: tuple[Callable[[], object], ...] = (
        lambda: repfuse.fuse(thing),
        lambda: repfuse.fuse(thing, inplace=True),
        lambda: repfuse.plan(thing),
        lambda: repfuse.verify(thing, conv(), images()),
        lambda: repfuse.verify(conv(), thing, images()),
        lambda: repfuse.assert_equivalent(thing, thing, images()),
    )
    for call in calls:
        with pytest.raises(repfuse.RepfuseError, match=NO_MODEL):
            call()


def test_a_module_is_not_compared_with_a_file() -> None:
    for first, second in ((conv(), "model.onnx"), ("model.onnx", conv())):
        with pytest.raises(repfuse.RepfuseError, match="cannot be compared: export the module"):
            repfuse.verify(first, second, images())


# Modules that are little more than a frame.


ROOTS: dict[str, Callable[[], nn.Module]] = {
    "Module": nn.Module,
    "an empty Sequential": nn.Sequential,
    "a ModuleList": lambda: nn.ModuleList([block()]),
    "a ModuleDict": lambda: nn.ModuleDict({"block": block()}),
    "a ParameterList": lambda: nn.ParameterList([torch.zeros(2)]),
    "a conv": conv,
    "a batch norm": lambda: nn.BatchNorm2d(8),
    "a batch norm without running statistics": lambda: nn.BatchNorm2d(8, track_running_stats=False),
    "a lazy conv": lambda: nn.LazyConv2d(8, 3),
}


@pytest.mark.parametrize("name", ROOTS)
def test_any_root(name: str) -> None:
    model = ROOTS[name]().eval()
    plan = repfuse.plan(model)
    fused = plan.apply()
    assert plan.report.errors == []
    assert type(fused) is type(model)
    assert any(isinstance(part, nn.BatchNorm2d) for part in fused.modules()) == (
        "batch norm" in name
    )


class NoForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = block()


class Raises(NoForward):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("this forward has a bug")


class Endless(NoForward):
    def forward(self, x: Tensor) -> Tensor:
        return self.forward(self.block(x))


@pytest.mark.parametrize("kind", [NoForward, Raises, Endless])
def test_a_broken_forward_is_reported_and_its_children_are_fused(kind: type[NoForward]) -> None:
    plan = repfuse.plan(kind().eval())
    assert plan.report.untraced[""]
    fused: Any = plan.apply()
    assert type(fused) is kind
    assert isinstance(fused.block[1], nn.Identity)


# Batch norms and lazy layers.


def test_a_mixed_training_mode() -> None:
    model: Any = randomize(nn.Sequential(block(), nn.Dropout(), branches()).double().train())
    model[2].eval()
    modes = [module.training for module in model.modules()]
    fused = repfuse.fuse(model)
    assert [module.training for module in model.modules()] == modes
    assert not any(module.training for module in fused.modules())
    assert executed(fused, images(dtype=torch.float64)) == "2 conv, relu"
    assert_same(model, fused, images(dtype=torch.float64))


def test_in_place_the_model_itself_ends_in_eval_mode() -> None:
    model = randomize(nn.Sequential(block(), branches()).train())
    assert repfuse.fuse(model, inplace=True) is model
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("lost", [("running_mean",), ("running_mean", "running_var")])
def test_running_statistics_that_were_taken_away(lost: tuple[str, ...]) -> None:
    model = randomize(nn.Sequential(block(), nn.ReLU(), block()).eval())
    for name in lost:
        setattr(model.get_submodule("0.1"), name, None)
    plan = repfuse.plan(model)
    fused: Any = plan.apply()
    assert [refusal.where for refusal in plan.report.refusals] == ["0.1"]
    assert "without running statistics" in plan.report.refusals[0].reason
    assert isinstance(fused[0][1], nn.BatchNorm2d)
    assert isinstance(fused[2][1], nn.Identity)


def test_lazy_layers_are_fused_once_they_have_seen_an_input() -> None:
    model: Any = nn.Sequential(
        block(), nn.ReLU(), nn.LazyConv2d(6, 3), nn.LazyBatchNorm2d(),
        nn.Flatten(), nn.LazyLinear(4), nn.LazyBatchNorm1d(),
    ).eval()  # fmt: skip
    plan = repfuse.plan(model)
    early: Any = plan.apply()
    assert sum("not initialised" in r.reason for r in plan.report.refusals) == 4
    assert isinstance(early[0][1], nn.Identity)
    assert all(nn.parameter.is_lazy(tensor) for tensor in model[2].parameters())
    with torch.no_grad():
        early(images())  # the copy learns its shapes, the original does not
    assert early[2].in_channels == 8
    assert all(nn.parameter.is_lazy(tensor) for tensor in model[2].parameters())
    late: Any = repfuse.fuse(randomize(early))
    assert executed(late, images()) == "2 conv, linear, relu"
    assert_same(early, late, images(dtype=torch.float64), bound=1e-5)


# Weights that hold no numbers.

FAULT = "the weights hold NaN, infinity or a negative variance"
NAN, INF = float("nan"), float("inf")
FAULTY = [
    *((name, value) for name in ("0.0.weight", "0.0.bias") for value in (NAN, INF, -INF)),
    *((f"0.1.{name}", v) for name in ("weight", "bias", "running_mean") for v in (NAN, INF)),
    *(("0.1.running_var", value) for value in (NAN, -INF, -1.0)),
]  # fmt: skip


def with_value(name: str, value: float) -> nn.Module:
    """Two blocks; the tensor of this name, in the first, has one element of this value."""
    model = randomize(nn.Sequential(block(), nn.ReLU(), block()).eval())
    path, _, tensor = name.rpartition(".")
    with torch.no_grad():
        getattr(model.get_submodule(path), tensor).view(-1)[3] = value
    return model


@pytest.mark.parametrize(("name", "value"), FAULTY)
def test_a_faulty_value_leaves_its_region(name: str, value: float) -> None:
    model = with_value(name, value)
    plan = repfuse.plan(model)
    assert plan.report.refusals == []  # a plan reads no weight
    fused: Any = plan.apply()
    assert [(r.where, r.reason) for r in plan.report.refusals] == [("0.1", FAULT)]
    assert plan.report.errors == []
    assert isinstance(fused[0][1], nn.BatchNorm2d)
    assert isinstance(fused[2][1], nn.Identity)
    with torch.no_grad():
        x = images()
        expected, given = model(x), fused(x)
    assert torch.allclose(expected, given, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_a_region_with_a_fault_stays_when_probing_is_off() -> None:
    fused: Any = repfuse.fuse(with_value("0.0.weight", NAN), probe=False)
    assert isinstance(fused[0][1], nn.BatchNorm2d)
    assert isinstance(fused[2][1], nn.Identity)


def test_a_fault_in_a_branch_leaves_the_method() -> None:
    model: Any = branches().eval()
    with torch.no_grad():
        model.a[1].running_var[2] = -1.0
    plan = repfuse.plan(model)
    fused = plan.apply()
    assert FAULT in [refusal.reason for refusal in plan.report.refusals]
    x = images()
    assert executed(fused, x) == executed(model, x)
    assert torch.equal(model(x).isnan(), fused(x).isnan())


def test_without_eps_a_variance_of_zero_is_a_fault() -> None:
    model: Any = with_value("0.1.running_var", 0.0)
    model[0][1].eps = 0.0
    plan = repfuse.plan(model)
    plan.apply()
    assert [refusal.reason for refusal in plan.report.refusals] == [FAULT]


@pytest.mark.parametrize("value", [-1e-6, 0.0, INF])
def test_a_variance_that_a_norm_can_divide_by_is_no_fault(value: float) -> None:
    model = with_value("0.1.running_var", value)
    fused = repfuse.fuse(model)
    assert executed(fused, images()) == "2 conv, relu"
    assert_same(model, fused, images(dtype=torch.float64), bound=1e-4)


def test_weights_that_overflow_when_they_are_folded() -> None:
    model: Any = block().half().eval()
    with torch.no_grad():
        model[0].weight.fill_(6e4)
        model[1].weight.fill_(2.0)
    plan = repfuse.plan(model)
    fused: Any = plan.apply()
    assert isinstance(fused[1], nn.BatchNorm2d)
    assert [r.reason for r in plan.report.refusals] == ["the folded weights overflow torch.float16"]


def test_applying_a_plan_twice_reports_once() -> None:
    plan = repfuse.plan(with_value("0.0.weight", NAN))
    first = plan.apply()
    once = plan.report.to_dict()
    second = plan.apply()
    assert plan.report.to_dict() == once
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert one is not other
        assert torch.equal(one.nan_to_num(), other.nan_to_num())


def test_a_plan_that_was_applied_in_place_is_used_up() -> None:
    plan = repfuse.plan(block().eval())
    plan.apply(inplace=True)
    with pytest.raises(repfuse.RepfuseError, match="applied in place; plan the model again"):
        plan.apply()


# Modules without Python code, quantized modules.


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, images())])
def test_a_torchscript_module_comes_back(make: Callable[[nn.Module], Any], inplace: bool) -> None:
    model = make(randomize(block().eval()))
    assert "no Python code" in str(repfuse.plan(model))
    fused = repfuse.fuse(model, inplace=inplace)
    assert isinstance(fused, torch.jit.ScriptModule)
    x = images()
    assert torch.equal(model(x), fused(x))


def quantized_net() -> nn.Module:
    return nn.Sequential(
        quantized.Quantize(0.1, 128, torch.quint8),
        quantized.Conv2d(8, 8, 3, padding=1),
        quantized.DeQuantize(),
        nn.BatchNorm2d(8),
    )


def dynamic_net() -> nn.Module:
    layers = nn.Sequential(nn.Linear(9, 4), nn.Linear(4, 4)).eval()
    made: nn.Module = quantize_dynamic(layers, {nn.Linear})
    return made


@pytest.mark.parametrize("make", [quantized_net, dynamic_net])
def test_quantized_modules_stay(make: Callable[[], nn.Module]) -> None:
    model = make().eval()
    plan = repfuse.plan(model)
    assert plan.report.untraced == {}
    fused = plan.apply()
    assert plan.report.regions == []
    assert list(map(type, fused.modules())) == list(map(type, model.modules()))
    x = images()
    assert torch.equal(model(x), fused(x))


def test_a_graph_module_is_a_module_like_any_other() -> None:
    model = randomize(nn.Sequential(block(), branches()).eval())
    traced = torch.fx.symbolic_trace(model)
    fused = repfuse.fuse(traced)
    x = images()
    assert isinstance(fused, torch.fx.GraphModule)
    assert executed(fused, x) == "2 conv, relu"
    repfuse.assert_equivalent(model, fused, x)


def test_an_exported_module_is_a_module_like_any_other() -> None:
    model = randomize(block().eval())
    exported = torch.export.export(model, (images(),)).module()
    fused = repfuse.fuse(exported)
    x = images()
    assert torch.allclose(model(x), fused(x), rtol=1e-4, atol=1e-4)


# Hooks on what a merge would swallow.


def test_a_hook_on_a_branch_sees_what_it_saw() -> None:
    model: Any = branches()
    randomize(model.double().eval())
    seen: list[Tensor] = []
    model.a.register_forward_hook(lambda module, args, output: seen.append(output))
    fused = repfuse.fuse(model)
    x = images(dtype=torch.float64)
    with torch.no_grad():
        model(x), fused(x)
    before, after = seen
    assert torch.allclose(before, after, rtol=0, atol=1e-9)


def test_a_hook_that_changes_the_value_of_a_branch() -> None:
    model: Any = branches()
    randomize(model.double().eval())
    model.b.register_forward_hook(lambda module, args, output: output.abs())
    assert_same(model, repfuse.fuse(model), images(dtype=torch.float64))


def test_hooks_of_the_root_run_once_per_call() -> None:
    model = randomize(branches().double().eval())
    calls: list[str] = []
    model.register_forward_pre_hook(lambda module, args: calls.append("before"))
    model.register_forward_hook(lambda module, args, output: calls.append("after"))
    fused = repfuse.fuse(model)
    assert calls == []
    x = images(dtype=torch.float64)
    fused(x)
    assert calls == ["before", "after"]
    assert executed(fused, x) == "conv, relu"


# Meta tensors.


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make().eval()


@pytest.mark.parametrize("make", [block, branches])
def test_a_meta_model_gives_the_structure_of_the_fused_model(
    make: Callable[[], nn.Module],
) -> None:
    real = repfuse.fuse(randomize(make().eval()))
    fused = repfuse.fuse(on_meta(make))
    state = real.state_dict()
    assert {k: v.shape for k, v in fused.state_dict().items()} == {
        k: v.shape for k, v in state.items()
    }
    assert all(tensor.is_meta for tensor in fused.state_dict().values())
    assert fused(images(device="meta")).shape == (2, 8, 7, 9)
    fused.load_state_dict(state, assign=True)
    x = images()
    assert torch.equal(real(x), fused(x))


def test_a_region_that_is_partly_on_meta_stays() -> None:
    model: Any = block().eval()
    model[1].to("meta")
    plan = repfuse.plan(model)
    assert plan.report.regions
    fused: Any = plan.apply()
    assert "on the meta device" in plan.report.refusals[-1].reason
    assert [type(layer) for layer in fused] == [type(layer) for layer in model]


# What cannot be copied.


def locked() -> nn.Module:
    model = randomize(nn.Sequential(block(), nn.ReLU()).eval())
    model.lock = threading.Lock()  # type: ignore[assignment]
    return model


def test_what_cannot_be_copied_is_refused_with_the_way_out() -> None:
    with pytest.raises(repfuse.RepfuseError, match=r"cannot be copied .*inplace=True"):
        repfuse.fuse(locked())


def test_what_cannot_be_copied_is_fused_in_place() -> None:
    model = locked()
    x = images()
    expected = model(x)
    assert repfuse.fuse(model, inplace=True) is model
    assert executed(model, x) == "conv, relu"
    assert torch.allclose(model(x), expected, rtol=1e-4, atol=1e-4)


# Inputs of verify.


INPUTS: dict[str, tuple[object, str]] = {
    "None": (None, "inputs hold a NoneType: give a tensor"),
    "a string": ("images", "inputs hold a str: give a tensor"),
    "an array": (np.zeros((1, 8, 7, 9)), "inputs hold a ndarray: give a tensor"),
    "nothing": ([], "an empty list compares nothing"),
    "no argument": ((), "cannot run: TypeError"),
    "too many arguments": ((images(), images()), "cannot run: TypeError"),
    "an unknown keyword": ({"images": images()}, "cannot run: TypeError"),
    "another number of channels": (torch.zeros(1, 3, 7, 9), "cannot run: RuntimeError"),
    "whole numbers": (torch.zeros(1, 8, 7, 9, dtype=torch.long), "cannot run: RuntimeError"),
    "a meta tensor": (images(device="meta"), "cannot run: "),
}


@pytest.mark.parametrize("name", INPUTS)
def test_wrong_inputs_are_refused_in_one_line(name: str) -> None:
    inputs, message = INPUTS[name]
    for compare in (repfuse.verify, repfuse.assert_equivalent):
        with pytest.raises(repfuse.RepfuseError, match=message) as raised:
            compare(block(), block(), inputs)
        assert "\n" not in str(raised.value)


# The original.


class Busy(nn.Module):
    """Draws, counts, caches and writes into its tensors in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.branches = block(), branches()
        self.calls, self.cache, self.kept = 0, {"n": [0]}, [torch.zeros(1)]
        self.register_buffer("scale", torch.ones(8, 1, 1))

    def forward(self: Any, x: Tensor) -> Tensor:
        self.calls += 1
        self.cache["n"].append(self.calls)
        self.scale.mul_(0.5 + random.random() + np.random.rand())
        y: Tensor = self.block(x) * self.scale + torch.rand(8, 1, 1)
        self.kept[0] = y
        return self.branches(F.dropout(y, 0.5, self.training))  # type: ignore[no-any-return]


def trained_in_part() -> nn.Module:
    model: Any = nn.Sequential(block(), nn.Dropout(), branches()).train()
    model[0].requires_grad_(False).eval()
    model[2].a[1].weight.grad = torch.ones(8)
    return model  # type: ignore[no-any-return]


def hooked() -> nn.Module:
    model: Any = nn.Sequential(block(), branches())
    model[0][1].register_forward_hook(lambda *_: None)
    model[1].register_full_backward_hook(lambda *_: None)
    model.register_state_dict_pre_hook(lambda *_: None)
    return model  # type: ignore[no-any-return]


def weight_normed() -> nn.Module:
    normed = torch.nn.utils.parametrizations.weight_norm
    return nn.Sequential(normed(conv()), nn.BatchNorm2d(8), branches())


ORIGINALS: dict[str, Callable[[], nn.Module]] = {
    "two blocks": lambda: nn.Sequential(block(), nn.ReLU(), branches()),
    "busy": Busy,
    "trained in part": trained_in_part,
    "hooked": hooked,
    "weight norm": weight_normed,
    "faulty": lambda: with_value("0.0.weight", NAN),
    "not traced": Raises,
    "float16": lambda: nn.Sequential(block(), branches()).half(),
}


def snapshot(model: nn.Module) -> list[Any]:
    """Everything about a model, and about the world around it, that fuse has to leave alone."""
    found: list[Any] = []
    for name, module in model.named_modules(remove_duplicate=False):
        found += [name, type(module), module.training]
        for key, value in sorted(vars(module).items()):
            found += [key, id(value), *pytree.tree_map(describe, pytree.tree_leaves(value))]
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found += [name, tensor.requires_grad, tensor._version, tensor.data_ptr()]
        found += [tensor.detach().double().nan_to_num(nan=7.0).flatten().tolist()]
        found += [None if tensor.grad is None else tensor.grad.tolist()]
    found += [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]
    found += [torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()]
    return found


def describe(leaf: Any) -> Any:
    return leaf if isinstance(leaf, bool | int | float | str) else id(leaf)


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_original_stays_as_it_is(name: str) -> None:
    model = ORIGINALS[name]()
    before = snapshot(model)
    repfuse.plan(model).apply()
    assert snapshot(model) == before
    repfuse.fuse(model)
    assert snapshot(model) == before


def test_the_result_and_the_original_share_no_memory() -> None:
    model = randomize(nn.Sequential(block(), nn.ReLU(), conv(), nn.ReLU(), branches()).eval())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fused = repfuse.fuse(model)
    with torch.no_grad():
        for tensor in fused.state_dict().values():
            tensor.zero_()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
