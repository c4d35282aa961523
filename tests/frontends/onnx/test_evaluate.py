"""The comparison of ONNX models fails where it has to, and agrees with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime as ort
import pytest
from onnx import ModelProto

from tests.frontends.onnx.build import Net
from tests.frontends.onnx.evaluate import assert_same, difference, evaluate, random_feeds


def convs(tail: Callable[[Net, str], str] | None = None) -> ModelProto:
    net = Net()
    y = net.conv(net.input())
    return net.model(tail(net, y) if tail else y)


def permuted(net: Net, y: str) -> str:
    return net.node("Gather", y, net.ints(1, 0, 2, 3, 4, 5, 6, 7), axis=1)


TAILS: dict[str, tuple[Callable[[Net, str], str], str]] = {
    "1.001 * y": (lambda n, y: n.node("Mul", y, n.const(1.001)), "relative difference 0.001"),
    "a small shift": (lambda n, y: n.node("Add", y, n.const(1e-7)), "relative difference"),
    "NaN": (lambda n, y: n.node("Mul", y, n.const(np.nan)), "a value is not finite"),
    "a permuted channel": (permuted, "relative difference"),
    "another shape": (lambda n, y: n.node("Unsqueeze", y, n.ints(0)), "shape"),
}


@pytest.mark.parametrize("name", TAILS)
def test_it_fails(name: str) -> None:
    tail, message = TAILS[name]
    with pytest.raises(AssertionError, match=message):
        assert_same(convs(), convs(tail))


def test_it_passes_on_the_same_function() -> None:
    assert_same(convs(), convs(lambda net, y: net.node("Identity", y)), bound=0.0)


def test_bound_is_relative() -> None:
    left = [np.array([1e6, 1.0])]
    assert difference(left, [np.array([1e6, 1.0 + 1e-4])]) == pytest.approx(1e-10)
    assert difference([np.array([1, 2])], [np.array([1, 3])]) == np.inf


OWN: dict[str, tuple[int, Callable[[Net, str], str]]] = {
    "Conv": (
        17,
        lambda n, x: n.conv(x, 8, 4, (2, 3), group=2, dilations=[2, 1], pads=[1, 0, 2, 1]),
    ),
    "Conv SAME_UPPER": (17, lambda n, x: n.conv(x, strides=[2, 3], auto_pad="SAME_UPPER")),
    "Conv SAME_LOWER": (17, lambda n, x: n.conv(x, size=(2, 4), auto_pad="SAME_LOWER")),
    "ConvTranspose": (
        17,
        lambda n, x: n.conv_transpose(
            x, 8, 4, group=2, strides=[2, 3], output_padding=[1, 2], pads=[1, 0, 0, 2]
        ),
    ),
    "BatchNormalization 9": (9, lambda n, x: n.bn(x, epsilon=0.1)),
    "BatchNormalization 15": (17, lambda n, x: n.bn(x, epsilon=0.1)),
    "AveragePool": (
        17,
        lambda n, x: n.node("AveragePool", x, kernel_shape=[3, 2], pads=[1, 0, 1, 1]),
    ),
    "AveragePool counting its border": (
        17,
        lambda n, x: n.node(
            "AveragePool",
            x,
            kernel_shape=[3, 2],
            pads=[1, 0, 1, 1],
            strides=[2, 1],
            count_include_pad=1,
        ),
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_what_torch_computes_agrees_with_onnx_runtime(name: str) -> None:
    opset, make = OWN[name]
    net = Net(opset)
    model = net.model(make(net, net.input()))
    feeds = random_feeds(model, {"N": 2, "H": 9, "W": 8})
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    narrow = {name: value.astype(np.float32) for name, value in feeds.items()}
    got = [np.asarray(output, np.float64) for output in session.run(None, narrow)]
    assert difference(evaluate(model, narrow_to_wide(narrow)), got) < 1e-5


def narrow_to_wide(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value.astype(np.float64) for name, value in feeds.items()}
