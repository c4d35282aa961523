"""The law of each form, and the inputs on which it is tried."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import reduce
from itertools import count, islice

import numpy as np

from repfuse.cost import cost_of
from repfuse.operators import Affine, Conv, Mixed, Operator, Pad, Select, SlicedConv
from tests import reference
from tests.builders import Float64, integers, sealed

Law = Callable[[tuple[Operator, ...], Float64], Float64]


def added(terms: tuple[Operator, ...], x: Float64) -> Float64:
    values = [reference.apply(term, x) for term in terms]
    assert len({value.shape for value in values}) == 1, "the terms of a sum differ in shape"
    return reduce(np.add, values)


LAWS: dict[str, Law] = {
    "alone": lambda terms, x: reference.apply(terms[0], x),
    "chain": lambda terms, x: reduce(lambda y, term: reference.apply(term, y), terms, x),
    "siblings": added,
    "beside": lambda terms, x: reference.apply(terms[0], x),
    "stacked": lambda terms, x: np.concatenate([reference.apply(t, x) for t in terms], axis=1),
}


def hold(form: str, terms: tuple[Operator, ...], result: Operator) -> None:
    """The law of the form, bit by bit, and what a result promises without computing."""
    with sealed():
        assert cost_of(result, 64.0, ()).macs >= 0
        assert result.in_channels == terms[0].in_channels
    for x in inputs(form, terms):
        expected, found = LAWS[form](terms, x), reference.apply(result, x)
        assert expected.shape == found.shape, f"{form} of {terms} on {x.shape}: {result}"
        assert np.array_equal(expected, found), f"{form} of {terms} on {x.shape}: {result}"
    result = result.conv if isinstance(result, SlicedConv) else result
    arrays = (result.weight, result.bias) if isinstance(result, Conv) else ()
    arrays = (result.scale, result.shift) if isinstance(result, Affine) else arrays
    for array in arrays:
        assert array.constant is None or np.all(array.numpy() == array.constant)


def inputs(form: str, terms: tuple[Operator, ...]) -> Iterator[Float64]:
    """Inputs of every length modulo the strides, from the shortest that the terms can take."""
    first = terms[0]
    terms = tuple(term for term in terms if term.rank == first.rank)
    together = math.prod if form == "chain" else lcm
    periods = [together([stride(term, axis) for term in terms]) for axis in range(first.rank)]
    lengths = [
        list(islice((n for n in count(1) if fits(form, terms, axis, n)), min(2 * period + 2, 12)))
        for axis, period in enumerate(periods)
    ]
    for step in range(max((len(found) for found in lengths), default=1)):
        sizes = [
            found[(step + (step > 0) * axis) % len(found)] for axis, found in enumerate(lengths)
        ]
        yield integers((1, first.in_channels, *sizes), seed=step)


def stride(operator: Operator, axis: int) -> int:
    assert not isinstance(operator, Mixed)
    if isinstance(operator, SlicedConv):
        operator = operator.conv
    return 1 if isinstance(operator, Affine | Pad | Select) else operator.stride[axis]


def lcm(numbers: list[int]) -> int:
    return math.lcm(*numbers)


def fits(form: str, terms: tuple[Operator, ...], axis: int, size: int) -> bool:
    """Whether an axis of this length is long enough for all operators."""
    sizes = [size] * len(terms)
    if form == "chain":
        for index, term in enumerate(terms[:-1]):
            sizes[index + 1] = reference.output_size(term, axis, sizes[index])
    return all(
        reference.output_size(term, axis, length) > 0
        for term, length in zip(terms, sizes, strict=True)
    )
