"""verify and assert_equivalent: equal networks pass, small real errors fail, nothing changes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repfuse.errors import NotEquivalentError, RepfuseError
from repfuse.frontends.torch.verify import assert_equivalent, verify
from tests.numerics import randomize
from tests.test_numerics import Apply

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def network(classes: int = 10, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    blocks: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 32)):
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, stride=2)
        blocks += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes)]
    return randomize(nn.Sequential(*blocks, *tail), seed).eval()


@torch.no_grad()
def folded(model: nn.Sequential, mistake: str = "") -> nn.Sequential:
    """The same network without its batch norms, folded in float64 and rounded once."""
    dtype = next(model.parameters()).dtype
    result: Any = copy.deepcopy(model).double()
    for index in (0, 3, 6):
        conv, bn = result[index], result[index + 1]
        eps = 2e-5 if mistake == "eps" else bn.eps
        scale = bn.weight / torch.sqrt(bn.running_var + eps)
        bias = 0.0 if mistake == "bias" and index == 6 else conv.bias
        conv.weight *= scale.view(-1, 1, 1, 1)
        conv.bias.copy_((bias - bn.running_mean) * scale + bn.bias)
        result[index + 1] = nn.Identity()
    if mistake == "tap":
        result[6].weight[:, :, 0, 0] *= 1.001
    if mistake == "padding":
        result[3].padding_mode = "replicate"
        result[3]._reversed_padding_repeated_twice = [1, 1, 1, 1]
    narrow: nn.Sequential = result.to(dtype)
    return narrow


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 2, 100])
def test_equal_networks_pass(dtype: torch.dtype, classes: int) -> None:
    for seed in range(5):
        model = network(classes, seed).to(dtype)
        comparison = verify(model, folded(model), torch.randn(1, 3, 32, 32, dtype=dtype))
        assert comparison.passed, str(comparison)
        (output,) = comparison.outputs
        assert output.original_error > 0.0
        assert output.dtype == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("mistake", ["bias", "eps", "tap", "padding"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_small_mistake_fails(mistake: str, dtype: torch.dtype) -> None:
    model = network().to(dtype)
    comparison = verify(model, folded(model, mistake), torch.randn(4, 3, 32, 32, dtype=dtype))
    assert not comparison.passed
    assert comparison.outputs[0].excess > 1.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_mistake_fails_in_low_precision(dtype: torch.dtype) -> None:
    model, x = network().to(dtype), torch.randn(4, 3, 32, 32, dtype=dtype)
    assert not verify(model, folded(model, "bias"), x).passed


def test_assert_equivalent_raises_with_the_table() -> None:
    model, x = network(), torch.randn(2, 3, 32, 32)
    assert assert_equivalent(model, folded(model), x).passed
    with pytest.raises(NotEquivalentError, match=r"(?s)1 of 1 outputs differ.*tolerance.*FAILS"):
        assert_equivalent(model, folded(model, "bias"), x)
    assert issubclass(NotEquivalentError, RepfuseError)
    assert issubclass(NotEquivalentError, AssertionError)


def test_the_factor_decides() -> None:
    reference, candidate = Apply(lambda x: x.sqrt()), Apply(lambda x: x.sqrt() * (1 + 1e-6))
    x = torch.rand(100) + 0.5
    assert not verify(reference, candidate, x).passed
    assert verify(reference, candidate, x, factor=100.0).passed


class Stateful(nn.Module):
    """Changes itself and its input in forward, and its weights when its mode changes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([2.0, 3.0]))
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.drop = nn.Dropout(0.5)

    def train(self, mode: bool = True) -> Stateful:
        self.switches = getattr(self, "switches", 0) + 1
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x *= 2.0
        result: Tensor = self.drop(x * self.scale)
        return result


def test_neither_module_nor_input_nor_global_state_changes() -> None:
    reference, candidate = Stateful(), Stateful()
    reference.drop.eval()
    candidate.drop.eval()
    before = [copy.deepcopy(vars(model)) for model in (reference, candidate)]
    x = torch.randn(4, 2, requires_grad=True)
    kept, random = x.detach().clone(), torch.get_rng_state()

    assert verify(reference, candidate, x).passed

    for model, old in zip((reference, candidate), before, strict=True):
        assert model.training and not model.drop.training
        assert vars(model)["switches"] if "switches" in old else "switches" not in vars(model)
        assert model.calls == 0
        assert torch.equal(model.scale, old["_parameters"]["scale"])
        assert model.scale.requires_grad and model.scale.dtype == torch.float32
    assert torch.equal(x, kept) and x.requires_grad
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()


def test_train_mode_is_compared_in_eval_form() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, eps=0.1), nn.Dropout(0.5)).train()
    assert verify(model, copy.deepcopy(model).eval(), torch.randn(2, 3, 4, 4)).passed
    assert model.training and model[1].training
    assert model[0].num_batches_tracked == 0


def test_inputs_as_tensor_tuple_dict_and_list() -> None:
    model = Apply(lambda x, y=None, *, z=1.0: x if y is None else x * y * z)

    class Named(nn.Module):
        def forward(self, x: Tensor, y: Tensor, z: float = 1.0) -> Tensor:
            return x * y * z

    x, y = torch.randn(2, 3), torch.randn(2, 3)
    assert verify(model, model, x).passed
    assert verify(model, model, (x, y)).passed
    assert verify(Named(), Named(), {"x": x, "y": y, "z": 2.0}).passed
    several = verify(model, model, [x, (x, y), (y[:1],)])
    assert [one.name for one in several.outputs] == [f"draw {i}: output" for i in range(3)]
    assert several.outputs[2].shape == (1, 3)
    summed = Apply(lambda tensors: tensors[0] + tensors[1])
    assert verify(summed, summed, ([x, y],)).passed


@pytest.mark.parametrize(
    ("inputs", "message"),
    [([], "an empty list"), (3, "inputs hold a int: give a tensor"), ([[torch.ones(1)]], "a list")],
)
def test_other_inputs_are_refused(inputs: Any, message: str) -> None:
    with pytest.raises(RepfuseError, match=message):
        verify(nn.ReLU(), nn.ReLU(), inputs)


def test_the_answer_is_float64_where_the_code_says_float32() -> None:
    def code(x: Tensor) -> Tensor:
        grid = torch.linspace(0, 1, 3, dtype=torch.float32) + torch.ones(3)
        return (x.float() @ torch.eye(3) + grid).to(torch.float32).sqrt()

    comparison = verify(Apply(code), Apply(code), torch.rand(2, 3))
    assert comparison.passed
    assert comparison.outputs[0].dtype == "float32"
    assert comparison.outputs[0].max_abs > 1e-9


def test_random_numbers_in_forward_are_the_same_in_every_run() -> None:
    shuffle = Apply(lambda x: x[torch.randperm(len(x))])
    assert verify(shuffle, Apply(shuffle.function), torch.randn(50)).passed


def test_whole_numbers_in_float_inputs_stay_whole() -> None:
    masked = Apply(lambda x, mask: x * (mask == 1.0))
    comparison = verify(masked, masked, (torch.randn(50), (torch.randn(50) > 0).float()))
    assert comparison.passed
    assert comparison.outputs[0].original_error < 1e-6


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_norm_and_complex_networks() -> None:
    for norm in (nn.utils.weight_norm, nn.utils.parametrizations.weight_norm):
        model: Any = norm(nn.Conv1d(3, 4, 3))
        plain = nn.Conv1d(3, 4, 3)
        plain.load_state_dict({"weight": model.weight.detach(), "bias": model.bias.detach()})
        assert verify(model, plain, torch.randn(2, 3, 8)).passed

    linear = nn.Linear(8, 4, dtype=torch.complex64)
    other = copy.deepcopy(linear)
    x = torch.randn(2, 8, dtype=torch.complex64)
    assert verify(linear, other, x).passed
    other.bias.data += 1e-5j
    assert not verify(linear, other, x).passed


def test_an_exported_program_can_be_the_candidate() -> None:
    model, x = network(), torch.randn(2, 3, 32, 32)
    exported: nn.Module = torch.export.export(model, (x,)).module()
    assert verify(model, exported, x).passed


def fail(x: Tensor) -> Tensor:
    raise RuntimeError("\"sorted_cpu\" not implemented for 'Half'\nmany more lines")


def fail_in_half(x: Tensor) -> Tensor:
    return fail(x) if x.dtype == torch.float16 else x


class Uncopyable(nn.ReLU):
    def __deepcopy__(self, memo: object) -> Uncopyable:
        raise TypeError("cannot pickle a lock")


@pytest.mark.parametrize(
    ("reference", "candidate", "message"),
    [
        (torch.relu, nn.ReLU(), "the reference is a builtin_function_or_method, not an nn.Module"),
        (nn.ReLU(), None, "the candidate is a NoneType, not an nn.Module"),
        (nn.LazyLinear(2), nn.ReLU(), "the reference's weight is uninitialized: run the module"),
        (nn.ReLU(), nn.Linear(2, 2, device="meta"), "the candidate's weight is on the meta device"),
        (Uncopyable(), nn.ReLU(), "the reference cannot be copied: TypeError: cannot pickle"),
        (Apply(fail_in_half), nn.ReLU(), r"the reference \(float16 on cpu\) cannot run: RuntimeE"),
        (nn.ReLU(), Apply(fail), r"the candidate \(float16 on cpu\) cannot run: .* 'Half'$"),
        (Apply(fail), nn.ReLU(), r"float64 copy of the reference \(float64 on cpu\) cannot run"),
    ],
)
def test_what_cannot_be_compared_is_one_clear_line(
    reference: Any, candidate: Any, message: str
) -> None:
    with pytest.raises(RepfuseError, match=message) as raised:
        verify(reference, candidate, torch.ones(2, 2, dtype=torch.float16))
    assert "\n" not in str(raised.value)
    assert not isinstance(raised.value, NotEquivalentError)
