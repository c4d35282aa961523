"""Outputs of any structure: each leaf is found, named and compared."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from repfuse.frontends.torch.outputs import named_outputs
from repfuse.frontends.torch.verify import verify
from tests.test_numerics import Apply


@dataclass
class Detection:
    boxes: Tensor
    labels: Tensor


class Named(OrderedDict[str, Any]):
    """A dict with attributes, as model libraries return."""


def nested(x: Tensor) -> dict[str, Any]:
    return {
        "out": (x, [x + 1, None]),
        "detection": Detection(x * 2, x.argmax(-1)),
        "named": Named(logits=x.exp()),
        "space": SimpleNamespace(mean=x.mean(), label="cat", count=2, scale=0.5),
        "mask": x > 0,
    }


def test_nested_outputs_are_named_by_their_path() -> None:
    comparison = verify(Apply(nested), Apply(nested), torch.randn(2, 3))
    assert comparison.passed, str(comparison)
    assert [output.name.removeprefix("output") for output in comparison.outputs] == [
        "['out'][0]",
        "['out'][1][0]",
        "['detection'].boxes",
        "['detection'].labels",
        "['named']['logits']",
        "['space'].mean",
        "['space'].label",
        "['space'].count",
        "['space'].scale",
        "['mask']",
    ]


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "missing in the candidate": lambda out: out.pop("mask"),
    "only in the candidate": lambda out: out.update(more=out["mask"]),
    "shape (2, 3) in the reference, (2, 2)": lambda out: out.update(mask=out["mask"][:, :2]),
    "dtype bool in the reference, float32": lambda out: out.update(mask=out["mask"].float()),
    "values differ": lambda out: out.update(mask=~out["mask"]),
    "1 of 1 values differ": lambda out: setattr(out["space"], "label", "dog"),
    "beyond the tolerance": lambda out: out["detection"].boxes.add_(1e-5),
    "NaN or Inf in only one": lambda out: out["detection"].boxes[0].fill_(torch.nan),
}


@pytest.mark.parametrize("message", CHANGES)
def test_a_change_anywhere_in_a_nested_output_fails(message: str) -> None:
    def changed(x: Tensor) -> dict[str, Any]:
        result = nested(x)
        CHANGES[message](result)
        return result

    comparison = verify(Apply(nested), Apply(changed), torch.randn(2, 3))
    assert [output.passed for output in comparison.outputs].count(False) == 1
    assert message in str(comparison)


def test_a_model_without_outputs_or_without_values_shows_nothing() -> None:
    empty = Apply(lambda x: None)
    assert not verify(empty, empty, torch.ones(1)).passed
    lost = Apply(lambda x: x / 0.0 * 0.0)
    assert not verify(lost, lost, torch.ones(1)).passed


KINDS: dict[str, tuple[Callable[[], Tensor], list[Any]]] = {
    "bfloat16": (lambda: torch.tensor([1.5], dtype=torch.bfloat16), [1.5]),
    "float8_e5m2": (lambda: torch.tensor([1.5], dtype=torch.float8_e5m2), [1.5]),
    "complex64": (lambda: torch.tensor([1 + 2j]).conj(), [1 - 2j]),
    "complex32": (lambda: torch.tensor([1 + 2j], dtype=torch.complex32), [1 + 2j]),
    "float64": (lambda: torch.eye(2, dtype=torch.float64).to_sparse(), [[1.0, 0.0], [0.0, 1.0]]),
    "float32": (lambda: torch.quantize_per_tensor(torch.ones(1), 0.5, 0, torch.qint8), [1.0]),
    "bool": (lambda: torch.tensor([True]), [True]),
}


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.filterwarnings("ignore:ComplexHalf", "ignore:torch.quantize_per_tensor")
def test_tensors_of_every_kind(dtype: str) -> None:
    tensor, values = KINDS[dtype]
    (output,) = named_outputs(tensor(), "y")
    assert output.precision == dtype
    assert output.values.tolist() == values


def test_an_output_keeps_its_values_when_the_model_reuses_the_memory() -> None:
    tensor = torch.ones(2)
    (output,) = named_outputs([tensor], "y")
    tensor.zero_()
    assert output.name == "y[0]"
    assert output.values.tolist() == [1.0, 1.0]
