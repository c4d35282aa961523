"""When compose_convs may compose padded convs: by brute force, against the exact answer.

All weights, the input and the bias are ones, so that nothing cancels: the composed conv is
right on an input if and only if it reads what the two convs read.
"""

from __future__ import annotations

import importlib
from collections import Counter
from itertools import count, islice, product

import numpy as np
import pytest

from repfuse.arrays import Array
from repfuse.operators import Conv, Operator
from repfuse.passes import PASSES
from repfuse.rules import Refusal
from tests import reference
from tests.laws import fits

(compose_convs,) = [rule for rule in PASSES if rule.name == "compose_convs"]

KERNELS = [(1, 1), (2, 1), (3, 1), (3, 2)]
FIRST_PADDING = [(0, 0), (1, 1), (2, 2), (0, 1), (-1, 0), (4, 4)]
SECOND_PADDING = [(0, 0), (1, 1), (2, 2), (1, 0), (0, 1)]


def ones(kernel: tuple[int, int], stride: int, padding: tuple[int, int], bias: float) -> Conv:
    size, dilation = kernel
    weight, added = Array.full((1, 1, size), 1.0), Array.full((1,), bias)
    return Conv(weight, added, (stride,), (padding,), (dilation,))


def composed(monkeypatch: pytest.MonkeyPatch, first: Conv, second: Conv) -> Operator:
    """What compose_convs would answer if it asked for nothing."""
    module = importlib.import_module("repfuse.passes.compose_convs")
    with monkeypatch.context() as patched:
        patched.setattr(module, "require", lambda condition, reason: None)
        result = compose_convs(first, second)
    assert not isinstance(result, Refusal)
    return result


def is_right(first: Conv, second: Conv, result: Operator) -> bool:
    period = first.stride[0] * second.stride[0]
    lengths = (n for n in count(1) if fits("chain", (first, second), 0, n))
    for length in islice(lengths, 2 * period + 2):
        x = np.ones((1, 1, length))
        expected = reference.apply(second, reference.apply(first, x))
        if not np.array_equal(expected, reference.apply(result, x)):
            return False
    return True


def reads_next_to_the_input(conv: Conv) -> bool:
    """Whether a tap stands at position -1, the border's nearest; strides and dilations skip."""
    (size,), (stride,), (dilation,) = conv.kernel_size, conv.stride, conv.dilation
    low = conv.padding[0][0]
    return any(stride * p + dilation * t - low == -1 for p in range(low + 1) for t in range(size))


@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_fires_if_and_only_if_it_is_exact(bias: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused though right are only second convs that skip the positions next to the input."""
    seen: Counter[tuple[bool, bool]] = Counter()
    firsts = list(product(KERNELS, (1, 2, 3), FIRST_PADDING))
    seconds = list(product(KERNELS[::2] + KERNELS[-1:], (1, 2), SECOND_PADDING))
    for one, two in list(product(firsts, seconds))[:: 7 if bias else 1]:
        first, second = ones(*one, bias), ones(*two, 0.0)
        result = compose_convs(first, second)
        fired = not isinstance(result, Refusal)
        if isinstance(result, Refusal):
            right = is_right(first, second, composed(monkeypatch, first, second))
        else:
            right = is_right(first, second, result)
        seen[fired, right] += 1
        assert right or not fired, f"{one} then {two} is not exact"
        if right and not fired:
            assert not reads_next_to_the_input(second), f"{one} then {two} is exact"
    print(f"\n(fired, exact): {dict(seen)}")
    assert seen[True, True] > 50
    assert seen[False, False] > 50
