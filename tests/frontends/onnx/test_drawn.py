"""What random graphs have found."""

from __future__ import annotations

import onnx
import pytest

from tests.frontends.onnx.build import IMAGE, Dims, Net, operators
from tests.frontends.onnx.cases import fused
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
