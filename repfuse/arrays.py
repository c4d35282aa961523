"""Lazy float64 arrays: their shape is known before anything is computed.

Planning needs shapes, not numbers. An `Array` is a node of a small expression graph over
the model's weights; `evaluate` computes what one rewrite needs, each node once, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "evaluate", "same"]

Float64 = npt.NDArray[np.float64]
Compute = Callable[..., Float64]

AT_HAND = "numbers that may be looked at"
DRAWS = 2
CLOSE = 1e-10


class Array:
    """A float64 array that is computed when it is asked for.

    `constant` is the value of every element where the structure alone tells it (the absent
    bias is 0, the scale of a plain skip is 1): it is never read from a weight, so that a plan
    depends on structure only. `origin` is what an array without parents holds the numbers of:
    arrays of one origin are equal.
    """

    __slots__ = ("compute", "constant", "origin", "parents", "shape")

    def __init__(
        self,
        shape: Sequence[int],
        compute: Compute,
        parents: tuple[Array, ...] = (),
        constant: float | None = None,
        origin: Hashable = None,
    ) -> None:
        self.shape = tuple(int(size) for size in shape)
        self.compute = compute
        self.parents = parents
        self.constant = constant
        self.origin = origin

    @classmethod
    def full(cls, shape: Sequence[int], value: float) -> Array:
        """An array whose elements all have a value known from the structure."""
        value = float(value)
        return cls(shape, lambda: np.full(tuple(shape), value), (), value)

    @classmethod
    def of(cls, values: npt.ArrayLike) -> Array:
        """An array over numbers that are at hand already."""
        array = np.asarray(values, dtype=np.float64)
        return cls(array.shape, lambda: array, origin=AT_HAND)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def is_zero(self) -> bool:
        return self.constant == 0.0

    @property
    def is_one(self) -> bool:
        return self.constant == 1.0

    def apply(self, shape: Sequence[int], function: Compute, *others: Array) -> Array:
        """The array `function(self, *others)`, of the given shape."""
        return Array(shape, function, (self, *others))

    def reshape(self, *shape: int) -> Array:
        if self.constant is not None:
            return Array.full(shape, self.constant)
        return self.apply(shape, lambda value: value.reshape(shape))

    def above(self, other: Array) -> Array:
        """The rows of this array, and below them those of the other."""
        shape = (self.shape[0] + other.shape[0], *self.shape[1:])
        if self.is_zero and other.is_zero:
            return Array.full(shape, 0.0)
        return self.apply(shape, lambda top, bottom: np.concatenate([top, bottom]), other)

    def __add__(self, other: Array) -> Array:
        if self.is_zero and np.broadcast_shapes(self.shape, other.shape) == other.shape:
            return other
        if other.is_zero and np.broadcast_shapes(self.shape, other.shape) == self.shape:
            return self
        return self._elementwise(other, np.add)

    def __mul__(self, other: Array) -> Array:
        shape = np.broadcast_shapes(self.shape, other.shape)
        if self.is_zero or other.is_zero:
            return Array.full(shape, 0.0)
        if self.is_one and shape == other.shape:
            return other
        if other.is_one and shape == self.shape:
            return self
        return self._elementwise(other, np.multiply)

    def _elementwise(self, other: Array, function: Callable[..., Float64]) -> Array:
        shape = np.broadcast_shapes(self.shape, other.shape)
        if self.constant is not None and other.constant is not None:
            return Array.full(shape, float(function(self.constant, other.constant)))
        return self.apply(shape, function, other)

    def numpy(self) -> Float64:
        """The value; nothing is kept for the next call."""
        return evaluate(self)[0]

    def __repr__(self) -> str:
        kind = "" if self.constant is None else f", all {self.constant:g}"
        return f"Array{self.shape}{kind}"


def evaluate(
    *arrays: Array, instead: Callable[[Array], Float64 | None] = lambda array: None
) -> list[Float64]:
    """Compute several arrays: what they share once; what nothing needs any more is dropped.

    instead: gives the value of an array that is not to be computed, and None for the others.
    """
    order: list[Array] = []
    readers: dict[int, int] = {id(array): 1 for array in arrays}  # the caller
    stack, seen = list(arrays), set[int]()
    while stack:
        array = stack[-1]
        missing = [parent for parent in array.parents if id(parent) not in seen]
        if missing and id(array) not in seen:
            stack.extend(missing)
            continue
        stack.pop()
        if id(array) in seen:
            continue
        seen.add(id(array))
        order.append(array)
        for parent in array.parents:
            readers[id(parent)] = readers.get(id(parent), 0) + 1
    values: dict[int, Float64] = {}
    for array in order:
        value = instead(array)
        if value is None:
            value = array.compute(*(values[id(parent)] for parent in array.parents))
        assert value.shape == array.shape, f"{value.shape} was computed, {array.shape} promised"
        values[id(array)] = value
        for parent in array.parents:
            readers[id(parent)] -= 1
            if not readers[id(parent)]:
                del values[id(parent)]
    return [values[id(array)] for array in arrays]


def same(left: Array, right: Array) -> bool:
    """Whether both hold the same numbers whatever the weights are; no weight is read.

    Both are computed with random numbers in place of the weights, the same ones for one origin:
    two formulas that agree on those are equal (Schwartz, "Fast Probabilistic Algorithms for
    Verification of Polynomial Identities", JACM 1980). Numbers that are at hand stand for
    themselves.
    """
    if left is right:
        return True
    if left.shape != right.shape:
        return False
    if left.constant is not None and right.constant is not None:
        return left.constant == right.constant
    for seed in range(DRAWS):
        noise, drawn = np.random.default_rng(seed), dict[Hashable, Float64]()

        def draw(
            array: Array,
            noise: np.random.Generator = noise,
            drawn: dict[Hashable, Float64] = drawn,
        ) -> Float64 | None:
            if array.parents or array.constant is not None or array.origin == AT_HAND:
                return None
            key = id(array) if array.origin is None else (array.origin, array.shape)
            if key not in drawn:
                drawn[key] = noise.uniform(0.5, 1.5, array.shape)  # variances are no less than 0
            return drawn[key]

        try:
            one, other = evaluate(left, right, instead=draw)
        except Exception:  # a formula may take other numbers than these
            return False
        if not np.abs(one - other).max(initial=0.0) <= CLOSE * np.abs(one).max(initial=0.0):
            return False
    return True
