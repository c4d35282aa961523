"""Lazy arrays: shapes at once, numbers when asked, shared parts once."""

from __future__ import annotations

import numpy as np
import pytest

from repfuse.arrays import Array, evaluate, same
from tests.builders import Float64, conv, numbers, sealed


def test_nothing_is_computed_before_it_is_asked_for() -> None:
    with sealed():
        total = (numbers((4, 1)) + numbers((3,))) * numbers((4, 3)).reshape(1, 4, 3)
        assert total.shape == (1, 4, 3)
        assert total.size == 12
        with pytest.raises(AssertionError, match="a weight was computed"):
            total.numpy()
    expected = numbers((4, 1)).numpy() + numbers((3,)).numpy()
    assert np.array_equal(total.numpy(), expected * numbers((1, 4, 3)).numpy())


def test_a_shared_part_is_computed_once() -> None:
    calls = []

    def compute() -> Float64:
        calls.append("computed")
        return np.ones((2, 2))

    shared = Array((2, 2), compute)
    first, second = evaluate(shared + shared, shared * numbers((2, 2)))
    assert calls == ["computed"]
    assert np.array_equal(first, np.full((2, 2), 2.0))
    assert np.array_equal(second, numbers((2, 2)).numpy())


def test_a_deep_expression_needs_no_deep_stack() -> None:
    total = numbers((1,))
    for _ in range(5000):
        total = total + Array.of([1.0])
    assert total.numpy() == numbers((1,)).numpy() + 5000


def test_a_promised_shape_is_kept() -> None:
    wrong = Array((3,), lambda: np.zeros((1, 3)))
    with pytest.raises(AssertionError, match="promised"):
        wrong.numpy()


@pytest.mark.parametrize("value", [0.0, 1.0, 2.5])
def test_constants_stay_known(value: float) -> None:
    constant, other = Array.full((4,), value), Array.full((4,), 3.0)
    with sealed():
        assert (constant + other).constant == value + 3.0
        assert (constant * other).constant == value * 3.0
        assert constant.reshape(4, 1, 1).constant == value
    assert np.array_equal((constant + other).numpy(), np.full(4, value + 3.0))


def test_neutral_elements_leave_the_other_array() -> None:
    weight = numbers((4, 2))
    assert weight + Array.full((4, 2), 0.0) is weight
    assert Array.full((2,), 0.0) + weight is weight
    assert weight * Array.full((4, 1), 1.0) is weight
    assert (weight * Array.full((2,), 0.0)).is_zero
    widened = numbers((1, 2)) + Array.full((4, 1), 0.0)
    assert widened.shape == widened.numpy().shape == (4, 2)


def test_numbers_at_hand_are_no_structure() -> None:
    """A bias that happens to be zero is a bias: a plan depends on structure alone."""
    assert Array.of([0.0, 0.0]).constant is None
    assert not conv(bias=False).has_bias
    assert conv(bias=True).has_bias


def test_formulas_are_the_same_whatever_the_weights_are() -> None:
    a, b, two = numbers((4,)), numbers((4,), seed=1), Array.full((4,), 2.0)
    with sealed():
        assert same(a, a) and same(a * b, b * a) and same(a + a, a * two)
        assert same((a + b) * (a + b), a * a + two * a * b + b * b)
        assert not same(a, b) and not same(a, numbers((4,))), "two weights may be changed alone"
        assert not same(a + b, a) and not same(a, a.reshape(1, 4))
        assert same(two, Array.full((4,), 2.0)) and not same(two, Array.full((4,), 2.5))
        unknown = a.apply((4,), lambda x: np.linalg.inv(np.outer(x, x))[0])  # it raises
        assert not same(unknown, a)


def test_arrays_of_one_origin_are_the_same() -> None:
    def weight(origin: str) -> Array:
        return Array((3,), lambda: np.zeros(3), origin=origin)

    assert same(weight("w"), weight("w")) and not same(weight("w"), weight("v"))


def test_numbers_at_hand_stand_for_themselves() -> None:
    assert same(Array.of([1.0, 2.0]), Array.of([1.0, 2.0]))
    assert not same(Array.of([1.0, 2.0]), Array.of([1.0, 2.0 + 1e-6]))
    assert same(Array.of([0.0, 0.0]), Array.full((2,), 0.0))
    assert not same(Array.of([np.nan]), Array.of([np.nan])), "nothing is said of NaN"
