"""Channel shuffles as torch exports them, at open sizes and at fixed ones, and what is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional as F

from tests.frontends.onnx.build import Net
from tests.frontends.onnx.cases import Case, each, fused
from tests.frontends.onnx.evaluate import difference, evaluate
from tests.frontends.test_recognition import (
    shuffle_by_flatten,
    shuffle_by_numbers,
    shuffle_by_reshape,
    shuffle_by_view,
)
from tests.models.measure import exported
from tests.numerics import randomize

INT = TensorProto.INT64
IMAGES = [torch.randn(n, 4, h, w, dtype=torch.float64) for n, h, w in ((1, 9, 7), (3, 6, 11))]
Middle = Callable[["Shuffled", Tensor], Tensor]


class Shuffled(nn.Module):
    """A conv of stride 2, an activation, and something with 1x1 convs."""

    def __init__(self, middle: Middle) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, 2, 1)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.a, self.b, self.part = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(4, 6, 1)
        self.norm = nn.BatchNorm2d(8)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.middle(self, self.first(x).relu())


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Even and odd channels, over the batch."""
    b, c, h, w = x.shape
    y = x.reshape(b * c // 2, 2, h * w).permute(1, 0, 2).reshape(2, -1, c // 2, h, w)
    return y[0], y[1]


def by_halves(net: Shuffled, x: Tensor) -> Tensor:
    one, two = halves(x)
    return net.part(two) + net.part(one)  # type: ignore[no-any-return]


def two_readers(net: Shuffled, x: Tensor) -> Tensor:
    y = shuffle_by_view(x, 2)
    return net.a(y) * net.b(y)  # type: ignore[no-any-return]


def chunks(net: Shuffled, x: Tensor) -> Tensor:
    one, two = shuffle_by_reshape(x, 2).chunk(2, 1)
    return net.part(one) + net.part(two)  # type: ignore[no-any-return]


def sideways(x: Tensor) -> Tensor:
    """Rows and columns change places, and back."""
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, w, h).transpose(1, 2).reshape(b, c, h, w)


MERGES: dict[str, tuple[Middle, str]] = {
    "view": (lambda net, x: net.a(shuffle_by_view(x, 2)), "2 Conv, Relu"),
    "reshape": (lambda net, x: net.a(shuffle_by_reshape(x, 4)), "2 Conv, Relu"),
    "flatten": (lambda net, x: net.a(shuffle_by_flatten(x, 2)), "2 Conv, Relu"),
    "numbers": (lambda net, x: net.a(shuffle_by_numbers(x, 2)), "2 Conv, Relu"),
    "between two convs": (lambda net, x: net.a(shuffle_by_view(net.grouped(x), 2)), "2 Conv, Relu"),
    "a norm between": (lambda net, x: net.a(net.norm(shuffle_by_view(x, 2))), "2 Conv, Relu"),
    "two readers": (two_readers, "3 Conv, Mul, Relu"),
    "halves over the batch": (by_halves, "2 Conv, Relu"),
    "rows for columns": (lambda net, x: net.a(sideways(x)), "2 Conv, Relu"),
    "chunks of it": (chunks, "2 Conv, Relu"),
}  # fmt: skip


def across_rows(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, c // 2, 2, h, w).transpose(2, 3).reshape(b, c, h, w)


def across_samples(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).permute(1, 0, 2, 3, 4).reshape(b, c, h, w)


def turned(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).permute(0, 2, 1, 4, 3).reshape(b, c, h, w)


def read_between(net: Shuffled, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    y = x.view(b, 2, c // 2, h, w).transpose(1, 2)
    return net.a(y.reshape(b, c, h, w)) * y.mean()  # type: ignore[no-any-return]


def read_by_another(net: Shuffled, x: Tensor) -> Tensor:
    y = shuffle_by_view(x, 2)
    return net.a(y) * y.relu().mean()  # type: ignore[no-any-return]


STAYS: dict[str, Middle] = {
    "channels and rows": lambda net, x: net.a(across_rows(x)),
    "channels and samples": lambda net, x: net.a(across_samples(x)),
    "rows and columns, too": lambda net, x: net.a(turned(x)),
    "read in between": read_between,
    "an activation reads it, too": read_by_another,
    "a depthwise conv reads it": lambda net, x: F.conv2d(
        shuffle_by_view(x, 2), net.norm.weight.view(8, 1, 1, 1), groups=8
    ),
}  # fmt: skip


def check(middle: Middle, way: str) -> tuple[ModelProto, ModelProto]:
    images = IMAGES[:1] if way == "fixed" else IMAGES
    model = exported(randomize(Shuffled(middle).double().eval()), images[0], way)
    result, _ = fused(model)
    onnx.checker.check_model(result, full_check=True)
    for image in images:
        feeds: dict[str, Any] = {"image": image.numpy()}
        assert difference(evaluate(model, feeds), evaluate(result, feeds)) <= 1e-10
    return model, result


def counts(model: ModelProto) -> str:
    found = Counter(node.op_type for node in model.graph.node if node.op_type != "Constant")
    return ", ".join(f"{n} {op}" if n > 1 else op for op, n in sorted(found.items()))


@pytest.mark.parametrize("way", ["open", "fixed", "dynamo"])
@pytest.mark.parametrize("name", MERGES)
def test_convs_read_the_channels_in_another_order(name: str, way: str) -> None:
    middle, becomes = MERGES[name]
    _, result = check(middle, way)
    assert counts(result) == becomes


def test_torchs_own_shuffle() -> None:
    _, result = check(lambda net, x: net.a(F.channel_shuffle(x, 4)), "dynamo")
    assert counts(result) == "2 Conv, Relu"


@pytest.mark.parametrize("way", ["open", "dynamo"])
@pytest.mark.parametrize("name", STAYS)
def test_what_stays(name: str, way: str) -> None:
    model, result = check(STAYS[name], way)
    assert "Transpose" in counts(result)
    assert counts(result) == counts(model)


# By hand.


def by_sizes(net: Net, y: str, *parts: str, axes: tuple[int, ...] = (0, 2, 1, 3, 4)) -> str:
    """Reshape to the parts, "h" being the size of y along that axis; transpose; and back."""

    def size(part: str) -> str:
        axis = "nchw".find(part)
        return net.ints(int(part)) if axis < 0 else net.node("Shape", y, start=axis, end=axis + 1)

    target = [size(part) for part in parts]
    split = net.node("Reshape", y, net.node("Concat", *target, axis=0))
    turned = net.node("Transpose", split, perm=list(axes))
    return net.node("Reshape", turned, net.node("Shape", y))


SHUFFLES: dict[str, Case] = {
    "sizes of the value": Case(
        lambda n, x: n.conv(by_sizes(n, n.relu(x), "n", "2", "4", "h", "w"), size=1), "Conv, Relu"
    ),
    "one size is left open": Case(
        lambda n, x: n.conv(by_sizes(n, n.relu(x), "n", "4", "-1", "h", "w"), size=1), "Conv, Relu"
    ),
    "three axes": Case(
        lambda n, x: n.conv(
            by_sizes(n, n.relu(x), "n", "2", "2", "2", "h", "w", axes=(0, 3, 1, 2, 4, 5)), size=1
        ),
        "Conv, Relu",
    ),
    "fixed sizes but the batch": Case(
        lambda n, x: n.conv(
            n.node(
                "Reshape",
                n.node("Transpose", n.node("Reshape", n.relu(x), n.ints(0, 2, 4, 5, 7)),
                       perm=[0, 2, 1, 3, 4]),
                n.ints(-1, 8, 5, 7),
            ),
            size=1,
        ),
        "Conv, Relu",
        ("N", 8, 5, 7),
        sizes=({"N": 1}, {"N": 3}),
    ),
}  # fmt: skip


@each(SHUFFLES)
def test_shuffles_by_hand(case: Case) -> None:
    case.check()


def test_an_output_in_between_stays() -> None:
    net = Net(20)
    y = net.relu(net.input())
    shuffled = by_sizes(net, y, "n", "2", "4", "h", "w")
    (split, *_) = (node.output[0] for node in net.nodes if node.op_type == "Reshape")
    model = net.model(net.conv(shuffled, size=1), split)
    result, _ = fused(model)
    assert [node.op_type for node in result.graph.node].count("Reshape") == 2


def test_a_shuffle_of_another_domain_stays() -> None:
    net = Net(20)
    shuffled = by_sizes(net, net.relu(net.input()), "n", "2", "4", "h", "w")
    model = net.model(net.conv(shuffled, size=1))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    next(node for node in model.graph.node if node.op_type == "Transpose").domain = "mine"
    result, _ = fused(model)
    assert result.SerializeToString() == model.SerializeToString()


def in_parts(net: Net, x: str, split: str, *places: str, axis: int = 1) -> list[str]:
    parts = net.node("SplitToSequence", x, split, axis=axis)
    return [net.node("SequenceAt", parts, place) for place in places]


def convs_of(net: Net, parts: list[str], *channels: int) -> str:
    read = zip(parts, channels, strict=True)
    return net.add(*(net.conv(part, many, 8, size=1) for part, many in read))


SEQUENCES: dict[str, Case] = {
    "sizes": Case(
        lambda n, x: convs_of(
            n, in_parts(n, n.relu(x), n.ints(3, 5), n.literal(1, INT), n.literal(0, INT)), 5, 3
        ),
        "Conv, Relu",
    ),
    "one size": Case(
        lambda n, x: convs_of(
            n,
            in_parts(n, n.relu(x), n.literal(3, INT), *(n.literal(i, INT) for i in (-1, 0, 1))),
            2,
            3,
            3,
        ),
        "Conv, Relu",
    ),
}


@each(SEQUENCES)
def test_parts_of_a_sequence(case: Case) -> None:
    case.check()


@pytest.mark.parametrize("kind", ["rows", "its length", "a part that is computed", "an output"])
def test_sequences_that_stay(kind: str) -> None:
    net = Net(20)
    y = net.relu(net.input("x", (2, 8, 8, 8)))
    place = net.literal(0, INT)
    if kind == "a part that is computed":
        place = net.node("Cast", net.node("ReduceMin", y, keepdims=0), to=INT)
    parts = in_parts(net, y, net.ints(4, 4), place, net.literal(1, INT), axis=1 + (kind == "rows"))
    channels = 8 if kind == "rows" else 4
    outputs = [convs_of(net, parts, channels, channels)]
    sequence = next(node.output[0] for node in net.nodes if node.op_type == "SplitToSequence")
    if kind == "its length":
        outputs.append(net.node("SequenceLength", sequence))
    model = net.model(*outputs, *([sequence] if kind == "an output" else []))
    result, _ = fused(model)
    assert [node.op_type for node in result.graph.node] == [n.op_type for n in model.graph.node]
