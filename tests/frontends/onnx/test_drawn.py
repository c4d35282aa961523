"""What random graphs have found."""

from __future__ import annotations

import onnx
import pytest
from onnx import ModelProto

from tests.frontends.onnx.build import IMAGE, Dims, Net, operators
from tests.frontends.onnx.cases import Case, each, fused
from tests.frontends.onnx.evaluate import assert_same, in_double

FIXED: Dims = (2, 8, 9, 6)
SIZE = ({"N": 2, "H": 9, "W": 6},)


@pytest.mark.parametrize("dims", [IMAGE, FIXED])
def test_a_shape_inside_of_a_round_trip_that_nobody_reads_goes_with_it(dims: Dims) -> None:
    net = Net()
    y = net.node("Transpose", net.conv(net.input("x", dims)), perm=[0, 2, 3, 1])
    y = net.node("MatMul", y, net.weight(8, 4))
    net.node("Gather", net.node("Shape", y), net.ints(1))
    model = in_double(net.model(net.node("Transpose", y, perm=[0, 3, 1, 2])))
    result, _ = fused(model)
    assert operators(result) == "Conv"
    onnx.checker.check_model(result, full_check=True)
    assert_same(model, result, sizes=SIZE)


def trip(dims: Dims, shape_of: str, work: str, after: str, asked: str) -> ModelProto:
    """Channels go last, and come back; work: what is done in between, but for factors."""
    net = Net()
    given = net.node("Transpose", net.bn(net.conv(net.input("x", dims))), perm=[0, 2, 3, 1])
    y = factor = net.node("Mul", given, net.scale(8))
    if work == "places":
        y = net.node("Add", y, net.weight(5, 6, 8))
    elif work == "left":
        y = net.node("MatMul", net.weight(6, 6), y)
    elif work == "gate":
        y = net.node("Mul", y, net.node("ReduceMean", given, axes=[1, 2]))
    places = {"given": given, "factor": factor, "work": y}
    if shape_of:
        y = net.node("Reshape", y, net.node("Shape", places[shape_of]))
    y = net.node("Transpose", net.node("Mul", y, net.scale(8)), perm=[0, 3, 1, 2])
    if after != "nothing":
        y = net.node("Transpose", y, perm=[0, 2, 3, 1])
    if after == "product":
        y = net.node("MatMul", y, net.weight(8, 4))
    elif after == "conv":
        y = net.conv(net.node("Transpose", y, perm=[0, 3, 1, 2]))
    if asked:
        net.node("Shape", places[asked])
    return in_double(net.model(y))


@pytest.mark.parametrize("after", ["nothing", "turn", "product", "conv"])
@pytest.mark.parametrize("work", ["none", "places", "left", "gate"])
@pytest.mark.parametrize("batch", ["N", 2])
def test_a_round_trip_that_is_none_after_all(batch: str | int, work: str, after: str) -> None:
    """Work that is not understood, or a shape that is read, takes the trip apart."""
    for shape_of in ("", "given", "factor", "work"):
        for asked in ("", "given", "factor", "work"):
            model = trip((batch, 8, 5, 6), shape_of, work, after, asked)
            result, _ = fused(model)
            assert len(result.graph.node) < len(model.graph.node)
            onnx.checker.check_model(result, full_check=True)
            assert_same(model, result, sizes=SIZE)


def doubled(net: Net, x: str) -> str:
    y = net.node("Transpose", net.conv(x), perm=[0, 2, 3, 1])
    y = net.node("Mul", net.add(y, y), net.scale(8))
    return net.node("Transpose", y, perm=[0, 3, 1, 2])


def doubled_product(net: Net, x: str) -> str:
    y = net.node("Transpose", net.node("MatMul", x, net.weight(8, 4)), perm=[0, 2, 1])
    return net.node("Transpose", net.add(y, y), perm=[0, 2, 1])


@each(
    {
        "a conv": Case(doubled),
        "a product": Case(doubled_product, "MatMul", ("N", "H", 8)),
    }
)
def test_a_tensor_is_added_to_itself_in_a_round_trip(case: Case) -> None:
    case.check()


def test_no_conv_slides_along_the_samples() -> None:
    """It does not run without any, which a product does."""
    net = Net()
    y = net.node("MatMul", net.input("x", ("N", "H", "W", 8)), net.weight(8, 8))
    y = net.node("Neg", net.node("Transpose", y, perm=[1, 3, 2, 0]))
    model = in_double(net.model(net.node("Transpose", y, perm=[2, 3, 0, 1])))
    result, _ = fused(model)
    assert operators(result) == "MatMul, 2 Transpose"
    assert_same(model, result, sizes=({"N": 0, "H": 3, "W": 2}, {"N": 2, "H": 3, "W": 2}))


def test_axes_of_size_one_do_not_hide_which_axis_is_copied() -> None:
    net = Net()
    y = net.node("GlobalAveragePool", net.input("x", FIXED))
    y = net.node("Add", net.node("Concat", y, y, axis=1), net.scale(16, 1, 1))
    y = net.node("Reshape", net.node("Transpose", y, perm=[0, 2, 3, 1]), net.ints(0, -1))
    y = net.node("Reshape", y, net.ints(2, 1, 1, 16))
    model = in_double(net.model(net.relu(net.node("Add", y, net.scale(16)))))
    result, _ = fused(model)
    assert_same(model, result, sizes=SIZE)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("beside", ["Relu", "Shape", "Shape of a product", "sizes"])
def test_what_hangs_on_a_round_trip_that_is_none_after_all(beside: str, late: bool) -> None:
    """Nothing reads it, or only its shape is asked for: it stays beside what is merged."""
    net = Net()
    x = net.input("x", ("N", "W", 8))
    y = net.add(net.node("MatMul", x, net.weight(8, 4)), net.node("MatMul", x, net.weight(8, 4)))
    first = net.node("Transpose", y, perm=[0, 2, 1])
    y = net.node("Mul", first, net.scale(4, 1))
    conv = net.node("Conv", y, net.weight(4, 4, 3), pads=[1, 1])

    def hang() -> None:
        if beside == "sizes":
            product = net.node("Conv", first, net.weight(4, 4, 1))
            net.node("Add", net.node("Shape", product), net.ints(1))
        elif beside == "Shape of a product":
            net.node("Shape", net.node("Conv", conv, net.weight(4, 4, 1)))
        else:
            net.node(beside, conv)

    if not late:
        hang()
    y = net.node("MatMul", net.node("Transpose", conv, perm=[0, 2, 1]), net.weight(4, 4))
    y = net.node("Transpose", y, perm=[0, 2, 1])
    if late:
        hang()
    model = in_double(net.model(y))
    result, _ = fused(model)
    assert len(result.graph.node) < len(model.graph.node)
    onnx.checker.check_model(result, full_check=True)
    assert_same(model, result, sizes=({"N": 2, "W": 6},))


def test_what_a_term_reads_was_moved_from_what_another_term_makes() -> None:
    """The sum becomes a conv of x; channels come back from what a first conv of x makes."""
    net = Net()
    x = net.input("x", (4, 4, 4, 4))
    y = net.conv(x, 4, 8, (2, 1), group=4, pads=[1, 0, 0, 0])
    last = net.node("MatMul", net.node("Transpose", y, perm=[0, 2, 3, 1]), net.weight(8, 8))
    tapped = net.relu(last)
    back = net.node("Transpose", net.node("Mul", last, net.scale(8)), perm=[0, 3, 1, 2])
    total = net.node("Sum", back, back, y, net.node("Add", y, net.scale(1)))
    model = in_double(net.model(total, tapped, net.node("Concat", y, back, axis=1)))
    result, report = fused(model)
    assert report.regions and not report.errors
    onnx.checker.check_model(result, full_check=True)
    assert_same(model, result)


def test_a_sum_that_runs_at_odd_sizes_only_is_proved_at_those() -> None:
    """Its smallest size, which runs as well, does not show enough."""
    net = Net()
    x = net.input("x", ("N", 8, "L"))
    layers = [(net.weight(6, 8, size), net.weight(6)) for size in (3, 2, 3, 2)]
    convs = [net.node("Conv", x, *layer, strides=[2], pads=[1, 1]) for layer in layers]
    model = in_double(net.model(net.add(net.add(*convs[:2]), net.add(*convs[2:]))))
    result, _ = fused(model)
    assert operators(result) == "Add, 2 Conv"
    assert_same(model, result, sizes=({"N": 2, "L": 11},))


def test_two_terms_read_the_same_tokens() -> None:
    net = Net()
    y = net.node("Reshape", net.input("x", ("N", 8, 6, 7)), net.ints(0, 8, -1))
    y = net.node("Transpose", y, perm=[0, 2, 1])
    y = net.add(net.node("MatMul", y, net.weight(8, 4)), net.node("MatMul", y, net.weight(8, 4)))
    y = net.node("Reshape", net.node("Transpose", y, perm=[0, 2, 1]), net.ints(0, 4, 6, 7))
    scaled = net.node("Mul", y, net.scale(4, 1, 1))
    wide, high = (1, 4), (4, 1)
    convs = [
        net.conv(scaled, 4, 6, dilations=steps, pads=[*steps, *steps])
        for steps in (wide, high, wide)
    ]
    model = in_double(net.model(net.node("Sum", *convs), y))
    result, _ = fused(model, "min-macs")
    assert operators(result) == "Add, 2 Conv, MatMul, 2 Reshape, 2 Transpose"
    assert_same(model, result, sizes=({"N": 2},))


@pytest.mark.parametrize("tapped", [False, True])
@pytest.mark.parametrize("end", ["Identity", "Neg", ""])
def test_no_shape_is_asked_of_what_is_made_with_it(end: str, tapped: bool) -> None:
    """The conv goes, and of what has its shape all comes after the Reshape that asks for it."""
    net = Net()
    conv = net.conv(net.input("x", ("N", 4, "H", "W")), 4, 8, 1)
    y = net.node("Transpose", net.node("Reshape", conv, net.ints(0, 8, -1)), perm=[0, 2, 1])
    product = net.node("MatMul", y, net.weight(8, 8))
    y = net.node("Transpose", product, perm=[0, 2, 1])
    shape = net.node("Shape", conv)
    sizes = [net.node("Slice", shape, net.ints(a), net.ints(b)) for a, b in ((0, 1), (2, 4))]
    y = net.node("Reshape", y, net.node("Concat", sizes[0], net.ints(8), sizes[1], axis=0))
    y = net.node(end, y) if end else y
    model = in_double(net.model(y, *[net.node("CastLike", "x", product)] * tapped))
    result, report = fused(model, "min-ops")
    assert report.regions
    onnx.checker.check_model(result, full_check=True)
    assert_same(model, result)


def test_nodes_that_moved_axes_before_a_conv_are_not_written_after_it() -> None:
    """They end where they began, and hold the sizes before the conv; those after it stay."""
    net = Net()
    x = net.input("x", ("N", 8, "H", "W"))
    tokens = net.node("Transpose", net.node("Reshape", x, net.ints(0, 8, -1)), perm=[0, 2, 1])
    y = net.node("Add", net.node("MatMul", tokens, net.weight(8, 8)), tokens)
    y = net.node("Transpose", y, perm=[0, 2, 1])
    shape = net.node("Shape", x)
    sizes = [net.node("Slice", shape, net.ints(a), net.ints(b)) for a, b in ((0, 1), (2, 4))]
    y = net.node("Reshape", y, net.node("Concat", sizes[0], net.ints(8), sizes[1], axis=0))
    y = net.conv(y, 8, 4, (1, 3), pads=[0, 0, 0, 0], strides=[2, 2])
    last = net.node("Transpose", y, perm=[0, 2, 3, 1])
    y = net.add(*[net.node("MatMul", last, net.weight(4, 8)) for _ in range(2)])
    model = in_double(net.model(net.node("Transpose", y, perm=[0, 3, 1, 2])))
    result, report = fused(model, "min-ops")
    assert report.regions
    onnx.checker.check_model(result, full_check=True)
    assert_same(model, result)


@pytest.mark.parametrize("opset", [10, 17, 18])
def test_a_border_of_what_an_operator_before_it_makes_of_zeros(opset: int) -> None:
    net = Net(opset)
    x = net.input("x", IMAGE)
    y = net.node("Sub", net.const(-0.5), x)
    if opset < 11:
        y = net.node("Pad", y, pads=[0, 0, 0, 0, 0, 0, 1, 1], value=-0.5)
    elif opset < 18:
        y = net.node("Pad", y, net.ints(0, 0, 0, 0, 0, 0, 1, 1), net.const(-0.5))
    else:
        y = net.node("Pad", y, net.ints(0, 0, 1, 1), net.const(-0.5), net.ints(-2, -1))
    model = in_double(net.model(net.conv(y, pads=[0, 0, 0, 0])))
    result, _ = fused(model)
    assert operators(result) == "Conv"
    assert_same(model, result)


def test_a_round_trip_behind_a_conv_is_not_made_before_it() -> None:
    """From tokens to the image, where a conv halves it: what moves the half is of no use there."""
    net = Net()

    def turned(y: str) -> str:
        return net.node("Transpose", y, perm=[0, 2, 1])

    y = turned(net.conv(net.input("x", (2, 4, 6)), 4, 4, 3, rank=1))
    y = net.add(net.node("MatMul", y, net.weight(4, 4)), net.node("MatMul", y, net.weight(4, 4)))
    half = net.conv(turned(y), 4, 4, 3, rank=1, group=2, pads=[1, 0], strides=[2])
    last = turned(net.node("Reshape", half, net.ints(0, 4, 3)))
    tokens = net.add(*[net.node("MatMul", last, net.weight(4, 4)) for _ in range(2)])
    tokens = net.node("Reshape", turned(tokens), net.ints(0, 4, 3))
    model = in_double(net.model(net.node("Sum", tokens, half, tokens), net.relu(y)))
    result, report = fused(model)
    assert report.regions
    onnx.checker.check_model(result, full_check=True)
    assert_same(model, result)
