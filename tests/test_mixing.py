"""Sums with factors of the sample: the mixed kernel keeps their law, bit by bit."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from repfuse import mixing
from repfuse.compiler import Engine, Forms
from repfuse.factors import DRAWS, piece_of, width_of
from repfuse.mixing import gates_of, recipe_of
from repfuse.operators import Affine, Conv, Gate, Mixed, Operator
from repfuse.rules import Refusal
from tests import reference
from tests.builders import Float64, affine, conv, integers, pool, sealed
from tests.combinations import sums
from tests.laws import inputs

BATCH = 3
patient = settings(suppress_health_check=[HealthCheck.too_slow], max_examples=250)


def gates(count: int, channels: int = 1) -> list[Gate | None]:
    """So many gates; the last is none."""
    return [*(Gate(index, channels) for index in range(count - 1)), None]


def total_of(
    engine: Engine, parts: list[tuple[Gate | None, Operator]]
) -> Operator | Refusal | None:
    total: Operator | Refusal | None = None
    for gate, operator in parts:
        term = operator if gate is None else mixing.gated(operator, gate)
        if total is None:
            total = term
        elif not isinstance(total, Refusal):
            total = engine.add(total, term)
    return total


def draw(operator: Mixed) -> dict[int, Float64]:
    return {
        gate.value: integers((BATCH, gate.channels), seed=10 + gate.value)
        for gate in operator.gates
    }


def by_kernels(operator: Mixed, x: Float64, factors: dict[int, Float64]) -> Float64:
    """Each sample by a conv of its own, whose kernel and bias are mixed."""
    recipe, results = recipe_of(operator), []
    for sample in range(BATCH):
        kernel, bias = np.zeros(recipe.convs[0].weight.shape), np.zeros(operator.out_channels)
        for gate, part in zip(recipe.gates, recipe.convs, strict=True):
            factor = np.broadcast_to(factors[gate.value][sample], bias.shape)
            kernel += factor.reshape(-1, *[1] * (kernel.ndim - 1)) * part.weight.numpy()
            bias += factor * part.bias.numpy()
        if recipe.constant is not None:
            kernel += recipe.constant.weight.numpy()
            bias += recipe.constant.bias.numpy()
        one = recipe.convs[0]
        shape = one.weight.shape
        own = Conv(
            one.weight.apply(shape, lambda _, kernel=kernel: kernel),
            one.bias.apply(one.bias.shape, lambda _, bias=bias: bias),
            one.stride,
            one.padding,
            one.dilation,
            one.groups,
            one.border,
        )
        results.append(reference.apply(own, x[sample : sample + 1]))
    return np.concatenate(results)


def hold(engine: Engine, parts: list[tuple[Gate | None, Operator]]) -> str:
    """What became of a sum; fails where it is not what the terms are."""
    with sealed():
        total = total_of(engine, parts)
        if not isinstance(total, Mixed):
            return "refused" if isinstance(total, Refusal) else "no sum"
        found = mixing.aligned(engine, total)
    if isinstance(found, Refusal):
        return found.reason
    assert all(isinstance(operator, Conv) for _, operator in found.terms)
    for x in inputs("siblings", tuple(operator for _, operator in parts)):
        several = np.concatenate([x, x[::-1] + 1, -x])
        factors = draw(found)
        raw = Mixed(tuple(parts), found.together)
        expected = reference.mixed(raw, several, factors)
        assert np.array_equal(expected, reference.mixed(found, several, factors))
        assert np.array_equal(expected, by_kernels(found, several, factors))
    return "mixed"


@pytest.mark.parametrize("forms", [Forms(), Forms(uneven_padding=True)], ids=["even", "uneven"])
def test_a_mixed_kernel_keeps_the_law_of_the_sum(forms: Forms) -> None:
    engine, seen = Engine(forms=forms), Counter[str]()

    @patient
    @given(sums(), st.booleans())
    def try_all(terms: tuple[Operator, ...], per_channel: bool) -> None:
        width = terms[0].out_channels if per_channel else 1
        seen[hold(engine, list(zip(gates(len(terms), width), terms, strict=True)))] += 1

    try_all()
    print(seen)
    assert seen["mixed"] >= 40, seen


PLAIN = conv(padding=1, seed=1)


@pytest.mark.parametrize(
    "terms",
    [
        (PLAIN, conv(4, 4, 1, seed=2), affine()),
        (conv(padding=1, groups=2, seed=1), affine(scale=False, shift=False), affine(seed=4)),
        (conv(padding=1, groups=4, seed=1), conv(4, 4, 1, groups=4, seed=2), affine()),
        (conv(stride=2, padding=1, bias=False), conv(4, 4, 1, stride=2, bias=False)),
        (conv(padding=1, border="reflect"), conv(4, 4, 1, seed=3), affine()),
        (conv(padding=2, dilation=2), conv(padding=1, seed=3), pool(4, 3, padding=1, divisor=2.0)),
        (
            conv(4, 4, (1, 3), padding=((0, 0), (1, 1))),
            conv(4, 4, (3, 1), padding=((1, 1), (0, 0))),
        ),
        (conv(4, 4, (3,), padding=((1, 1),)), affine(4, 1)),
        (conv(4, 4, rank=3, padding=1), conv(4, 4, 1, rank=3, seed=2)),
    ],
)
@pytest.mark.parametrize("width", [1, 4])
def test_what_merges_without_factors_merges_with_them(
    terms: tuple[Operator, ...], width: int
) -> None:
    every = [Gate(index, width) for index in range(len(terms))]
    assert hold(Engine(), list(zip(every, terms, strict=True))) == "mixed"
    assert hold(Engine(), list(zip(gates(len(terms), width), terms, strict=True))) == "mixed"


def test_terms_with_one_factor_are_one_term() -> None:
    parts: list[tuple[Gate | None, Operator]] = [
        (Gate(7), PLAIN),
        (Gate(7), affine()),
        (None, affine(seed=9)),
        (None, PLAIN),
    ]
    total = total_of(Engine(), parts)
    assert isinstance(total, Mixed)
    assert [gate for gate, _ in total.terms] == [Gate(7), None]
    x, factors = integers((BATCH, 4, 5, 5)), draw(total)
    expected = reference.mixed(Mixed(tuple(parts), PLAIN), x, factors)
    assert np.array_equal(expected, reference.mixed(total, x, factors))


@pytest.mark.parametrize("second", [affine(seed=6), conv(4, 6, 1, seed=6), conv(4, 4, 3, seed=7)])
def test_what_follows_a_sum_goes_into_its_terms(second: Affine | Conv) -> None:
    engine = Engine()
    total = total_of(engine, [(Gate(0), PLAIN), (Gate(1), affine())])
    assert isinstance(total, Mixed)
    with sealed():
        found = engine.chain(total, second)
    assert isinstance(found, Mixed)
    assert [gate and gate.value for gate, _ in found.terms] == [0, 1, None]
    x, factors = integers((BATCH, 4, 6, 5)), draw(total)
    expected = reference.apply(second, reference.mixed(total, x, factors))
    assert np.array_equal(expected, reference.mixed(found, x, factors))
    constant = total_of(engine, [(Gate(0), PLAIN), (None, affine())])
    assert isinstance(constant, Mixed)
    again = engine.chain(constant, second)
    assert isinstance(again, Mixed)
    assert len(again.terms) == 2
    expected = reference.apply(second, reference.mixed(constant, x, factors))
    assert np.array_equal(expected, reference.mixed(again, x, factors))


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        (
            (PLAIN, conv(stride=2, padding=1)),
            "stride differs: (1, 1) against (2, 2)",
        ),
        (
            (PLAIN, conv()),
            "the output sizes differ: padding ((1, 1), (1, 1)) with kernel_size (3, 3) against "
            "((0, 0), (0, 0)) with (3, 3)",
        ),
        ((affine(), affine(seed=2)), "no branch is a conv"),
        (
            (conv(2, 2, transposed=True), conv(2, 2, transposed=True, seed=4)),
            "a transposed conv is not run with another kernel for each sample",
        ),
        (
            (conv(4, 4, ()), conv(4, 4, (), seed=4)),
            "a Linear is not run with another kernel for each sample",
        ),
        (
            (
                conv(4, 4, 2, padding=((0, 1), (0, 1)), border="replicate"),
                conv(4, 4, 2, padding=((0, 1), (0, 1)), border="replicate", seed=4),
            ),
            "unequal padding ((0, 1), (0, 1)) with a replicate border needs a larger border",
        ),
    ],
)
def test_what_is_no_mixed_kernel(terms: tuple[Operator, ...], reason: str) -> None:
    engine = Engine()
    total = total_of(engine, [(Gate(index), term) for index, term in enumerate(terms)])
    if isinstance(total, Mixed):
        assert not engine.emits(total)
        total = mixing.aligned(engine, total)
    assert isinstance(total, Refusal)
    assert total.reason == reason


def test_factors_of_channels_do_not_pass_a_conv() -> None:
    total = total_of(Engine(), [(Gate(0, 4), PLAIN), (Gate(1), affine())])
    assert total is not None
    assert not isinstance(total, Refusal)
    found = Engine().chain(total, conv(4, 4, 1))
    assert found == Refusal(
        "mix_kernels", "the factors differ from channel to channel, which a conv mixes"
    )
    assert isinstance(Engine().chain(total, affine()), Mixed)
    assert Engine().chain(PLAIN, total) is None
    assert Engine().stack(total, PLAIN) is None


def test_one_branch_alone_is_no_sum() -> None:
    assert not Engine().emits(mixing.gated(PLAIN, Gate(0)))


def test_the_order_of_factors_that_lie_in_one_tensor() -> None:
    def pieces(*indices: int) -> Mixed:
        made = [(Gate(10 + i, 1, base=3, index=i, pieces=3), conv(seed=i)) for i in indices]
        return Mixed(tuple(made), PLAIN)

    assert gates_of(pieces(2, 0, 1))[1] == 3
    assert [gate.index for gate in gates_of(pieces(2, 0, 1))[0]] == [0, 1, 2]
    assert gates_of(pieces(2, 0))[1] is None  # a column that no branch uses
    recipe = recipe_of(pieces(1, 0, 2))
    assert [one.weight.numpy()[0, 0, 0, 0] for one in recipe.convs] == [
        conv(seed=i).weight.numpy()[0, 0, 0, 0] for i in range(3)
    ]


# ---------------------------------------------------------------------------------------- shapes


def shapes(*dims: str | int) -> list[tuple[int, ...]]:
    names = [{"b": batch, "h": sizes[0], "w": sizes[1], "1": 1, "c": 6} for batch, sizes in DRAWS]
    return [tuple(one[d] if isinstance(d, str) else d for d in dims) for one in names]


@pytest.mark.parametrize(
    ("dims", "answer"),
    [
        (("b", 1, 1, 1), 1),
        (("b", 6, 1, 1), 6),
        (("b", 1, "h", "w"), "the factor differs from position to position"),
        (("b", 6, "h", 1), "the factor differs from position to position"),
        (("b", "c", "h", "w"), "the factor differs from position to position"),
        ((1, 6, 1, 1), "the factor is the same for all samples of a batch"),
        (("b", 3, 1, 1), None),
        (("b", 1, 1), None),
        ((1, 1), None),
        ((), None),
        (("h", 1, 1, 1), None),
        (("b", 1, 4, 4), None),
    ],
)
def test_the_shape_of_a_factor(dims: tuple[str | int, ...], answer: int | str | None) -> None:
    assert width_of(shapes(*dims), DRAWS, 6, 2) == answer


def test_a_width_that_follows_the_input_is_none() -> None:
    assert width_of([(3, 1, 1, 1), (5, 6, 1, 1)], DRAWS, 6, 2) is None


def test_pieces_of_a_tensor() -> None:
    numbers = np.arange(24.0).reshape(2, 3, 4)
    assert piece_of(numbers, numbers[:, 1], 4) == 1
    assert piece_of(numbers, numbers[:, 2].reshape(2, 4, 1, 1), 4) == 2
    assert piece_of(numbers[:, :, 0], numbers[:, 2, 0], 1) == 2
    assert piece_of(numbers, numbers[:, 1] + 0.5, 4) is None
    assert piece_of(numbers, numbers[:, 1, 1:], 3) is None  # does not begin a piece
    assert piece_of(numbers, numbers[:, :, 1], 3) is None  # strided
    assert piece_of(numbers, numbers[::-1, 1], 4) is None  # of another sample
    assert piece_of(numbers, numbers[:, :2], 4) is None
